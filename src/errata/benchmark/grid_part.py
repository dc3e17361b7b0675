"""What of a grid is right, so that everything else that belongs to it can be looked at although something is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from errata.benchmark.grid import Grid
from errata.errors import InputError
from errata.methods import method_named

# What a grid cannot be without, where it is missing or wrong: in ``Grid``'s form, and of no consequence.
_STAND_INS: Final[Mapping[str, Any]] = {"methods": ["-"], "edits": 1}
_LISTS: Final[tuple[str, ...]] = ("models", "data", "methods")


def sound_part(data: Mapping[str, Any]) -> Grid | None:
    """The grid without what is wrong in it: a list that is wrong as a whole is empty, another key has its default.

    Only for looking at the rest: nothing may be run of it. None if nothing certain can be said of any of it.
    """
    given = dict(data)
    methods = given.get("methods")
    if isinstance(methods, list | tuple):
        given["methods"] = [name for name in methods if _is_method(name)]
    wrong = {name for name in _LISTS if name in given and not given[name]}
    wrong |= {"methods"} - given.keys()
    for _ in range(2):  # what a first look at all, and one at the whole without what was wrong, find
        usable = {name: value for name, value in given.items() if name not in wrong}
        try:
            grid = Grid.model_validate({**_STAND_INS, **usable})
        except ValidationError as error:
            places = [item["loc"] for item in error.errors()]
            if not all(places):
                return None
            wrong |= {str(place[0]) for place in places}
        else:
            return grid.model_copy(update={name: () for name in _LISTS if name in wrong})
    return None


def _is_method(name: object) -> bool:
    try:
        method_named(str(name))
    except InputError:  # whoever reads the whole grid tells it
        return False
    return True
