"""Expecting an error by its code, which is stable; messages may be reworded."""

from __future__ import annotations

import re
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


def reported(output: str) -> list[tuple[str, str]]:
    """(code, message) of each error in the output of a command; of one with several codes, those of its faults too."""
    parts = re.split(r"\[([A-Z][A-Z_]+)\]", " ".join(output.split()))
    return list(zip(parts[1::2], parts[2::2], strict=True))


def assert_reported(output: str, *expected: tuple[str, str]) -> None:
    """The output of a command has an error of each code, with its name (of a file, an option) in the message."""
    found = reported(output)
    for code, name in expected:
        assert any(code == other and name in message for other, message in found), (code, name, found)
