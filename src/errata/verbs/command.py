"""The command line's commands: before any work, the places that a command would write to are compared and reserved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from errata.errors import InputError
from errata.output import is_there, reserved

_TEXTS = frozenset({"prompts", "subject", "dataset", "which"})  # parameters that name no file, whatever they look like


class Verb(TyperCommand):
    """A command whose outputs take the place neither of each other nor of what it reads, nor of another process's."""

    def invoke(self, ctx: Any) -> Any:  # typer keeps the class of it to itself
        """Run the command.

        Raises:
            InputError: if --json is, or lies inside, another path of the command line, if --out is or would hold
                --run, or if another process is about to write the same --out; nothing has happened.
        """
        out, run = ctx.params.get("out"), ctx.params.get("run")
        if isinstance(out, Path) and isinstance(run, Path) and _relation(run, out) in ("is", "lies inside"):
            raise InputError(
                f"--run {run} {_relation(run, out)} --out {out}: both would be new directories",
                remedy="Give them different names",
            )
        json = ctx.params.get("json")
        if isinstance(json, Path):
            for place in _places({name: value for name, value in ctx.params.items() if name != "json"}):
                if relation := _relation(json, place):
                    raise InputError(
                        f"--json {json} {relation} {place}, which this command reads or writes",
                        remedy="Give another file for the results",
                    )
        with reserved(out) if isinstance(out, Path) else nullcontext():
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
