"""Optional dependencies, checked before the work that needs them."""

from __future__ import annotations

from importlib.util import find_spec

from errata.errors import MissingExtraError


def require(feature: str, extra: str, *packages: str) -> None:
    """Check that optional packages are installed.

    Args:
        feature: what needs them, for the message.
        extra: the extra that installs them: ``pip install 'errata[extra]'``.
        packages: their import names.

    Raises:
        MissingExtraError: if one of them cannot be imported.
    """
    if any(find_spec(package) is None for package in packages):
        raise MissingExtraError(feature, extra)
