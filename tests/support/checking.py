"""The checker of annotations while tests run; no part of errata is imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype

_Function = Callable[..., Any]
_CHECKED: dict[tuple[object, ...], _Function] = {}


def checked(function: _Function) -> _Function:
    """As ``beartype``, but a function inside another one is compiled once, not each time that the outer one is called.

    jaxtyping gives it stubs that have a function's signature and nothing else. Those of one definition only differ in
    their defaults, so one can be used for all of them.
    """
    if "<locals>" not in function.__qualname__:
        return beartype(function)
    names, hints = function.__code__.co_varnames, repr(function.__annotations__)
    key = (function.__module__, function.__qualname__, names, hints)
    if key not in _CHECKED:
        _CHECKED[key] = beartype(function)
    return _CHECKED[key]


checked_everywhere = checked
