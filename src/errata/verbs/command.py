"""The command line's commands: before any work, the places that a command would write to are compared and reserved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from errata.errors import InputError
from errata.output import is_there, reserved
from errata.verbs.inputs import check_inputs

_TEXTS = frozenset({"prompts", "subject", "dataset", "which"})  # parameters that name no file, whatever they look like


class Verb(TyperCommand):
    """A command whose outputs take the place neither of each other nor of what it reads, nor of another process's.

    Where it takes --model it takes --gguf as well, which chooses a file in a directory that holds several.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if any("--model" in parameter.opts for parameter in self.params):
            self.params.append(_gguf_option())

    def invoke(self, ctx: Any) -> Any:  # typer keeps the class of it to itself
        """Run the command.

        Raises:
            InputError: if --json is, or lies inside, another path of the command line; if --run is, or lies inside,
                --out; if another process is about to write the same --out; if a model's code may run in a dry run;
                if there is no such file as --gguf names. Nothing has happened then.
            InputError, FaultsError: if methods or files that are named do not exist, before the verb's imports.
        """
        if (gguf := ctx.params.pop("gguf", None)) is not None:
            ctx.params["model"] = _gguf_path(ctx.params["model"], gguf)
        out, run = ctx.params.get("out"), ctx.params.get("run")
        if isinstance(out, Path) and isinstance(run, Path) and _relation(run, out) in ("is", "lies inside"):
            raise InputError(
                f"--run {run} {_relation(run, out)} --out {out}: both would be new directories",
                remedy="Give them different names",
            )
        if ctx.params.get("dry_run") and ctx.params.get("trust_remote_code"):
            raise InputError("a dry run never runs a model's code", remedy="Leave --dry-run or --trust-remote-code out")
        json = ctx.params.get("json")
        if isinstance(json, Path):
            for place in _places({name: value for name, value in ctx.params.items() if name != "json"}):
                if relation := _relation(json, place):
                    raise InputError(
                        f"--json {json} {relation} {place}, which this command reads or writes",
                        remedy="Give another file for the results",
                    )
        check_inputs(ctx.params, {param.name: _label(param) for param in self.params if param.name is not None})
        if self.callback is not None:  # typer keeps its type to itself
            import_module(self.callback.__module__)  # the work itself: seconds, after what can be found without it
        if ctx.obj is not None:
            ctx.obj()  # what has to be done once the libraries are there; see errata.cli.run
        with reserved(out) if isinstance(out, Path) else nullcontext():
            return super().invoke(ctx)


def _label(param: Any) -> str:
    """What a user knows a parameter by: --facts, or FILE."""
    name = max(param.opts, key=len)
    return str(name if name.startswith("-") else param.metavar or name.upper())


def _gguf_option() -> Any:
    """The option --gguf, made by typer itself: the classes of its parameters change from version to version."""
    app = typer.Typer(add_completion=False)
    app.command()(_takes_gguf)
    return typer.main.get_command(app).params[0]


def _takes_gguf(
    gguf: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which GGUF file, where --model is a directory that holds several."),
    ] = None,
) -> None:
    """Only its parameter is used."""


def _gguf_path(model: str | None, name: str) -> str:
    """The name of a model that is a certain GGUF file in a directory."""
    path = Path(model or "") / name
    if model is None or not path.is_file():
        raise InputError(
            f"there is no GGUF file {name!r} in {model or '--model'}",
            remedy="Give its directory as --model, and its name",
        )
    return str(path)


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
