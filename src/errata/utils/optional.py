"""Packages that only an extra installs: looked for before they are needed, and named by the extra that has them."""

from __future__ import annotations

from importlib.util import find_spec

from errata.errors import MissingExtraError


def require(feature: str, extra: str, *packages: str) -> None:
    """Raises MissingExtraError unless all of these packages can be imported.

    Args:
        feature: what they are needed for.
        extra: installs all of them: ``pip install 'errata[extra]'``.
        packages: by the names that they are imported by.
    """
    if any(find_spec(package) is None for package in packages):
        raise MissingExtraError(feature, extra)
