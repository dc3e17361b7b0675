"""The command line's commands: before any work, --json is held against everything else that a command names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from errata.errors import InputError
from errata.output import is_there

_TEXTS = frozenset({"prompts", "subject", "dataset", "which"})  # parameters that name no file, whatever they look like


class Verb(TyperCommand):
    """A command whose results for machines cannot take the place of what it reads, or of what else it writes."""

    def invoke(self, ctx: Any) -> Any:  # typer keeps the class of it to itself
        """Run the command.

        Raises:
            InputError: if --json is, or lies inside, another path of the command line; nothing has happened.
        """
        json = ctx.params.get("json")
        if isinstance(json, Path):
            for place in _places({name: value for name, value in ctx.params.items() if name != "json"}):
                if relation := _relation(json, place):
                    raise InputError(
                        f"--json {json} {relation} {place}, which this command reads or writes",
                        remedy="Give another file for the results",
                    )
        return super().invoke(ctx)


def _places(params: dict[str, Any]) -> Iterator[Path]:
    """Every path that is named: what is written may not be there yet, what is read by a text is."""
    for name, value in params.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Path):
                yield one
            elif isinstance(one, str) and one not in ("", "lab") and name not in _TEXTS and is_there(Path(one)):
                yield Path(one)


def _relation(json: Path, place: Path) -> str:
    """What a path is to another; nothing where they do not meet."""
    try:
        ours, other = json.resolve(), place.resolve()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, links in a circle: told elsewhere
        return ""
    if ours == other:
        return "is"
    return "lies inside" if ours.is_relative_to(other) else "would hold" if other.is_relative_to(ours) else ""
