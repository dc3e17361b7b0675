"""Expecting an error by its code, which is stable; messages may be reworded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from errata.errors import ErrataError


@contextmanager
def raises_code(
    code: str, kind: type[ErrataError] = ErrataError, *names: str
) -> Iterator[pytest.ExceptionInfo[ErrataError]]:
    """Expects an error of a code whose message has these names (of files, facts, numbers) in it."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    for name in names:
        assert name in str(caught.value)
