"""Commands: path checks before any work, and reading a command's options without importing its module.

A command's module imports torch and transformers, which takes seconds, but its options and help need neither.
``command_line`` therefore executes only the parts of the module that define them: the signatures of its commands, the
constants and option types that those use, and their imports. The module is imported once the command line is valid.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from errata.datasets import jsonl
from errata.datasets.registry import is_own_file, split_file
from errata.editors.table import check_method, check_trainer
from errata.errors import InputError, collect_errors
from errata.facts.files import read_facts
from errata.facts.questions import read_questions
from errata.statistics.settings import NAMED_CORPORA
from errata.utils.files import is_there, reserved

_PACKAGE = "errata.cli."
_TEXTS = frozenset({"prompts", "subject", "dataset", "which"})  # parameters that never name a file
_METHODS = frozenset({"method", "methods"})
_DATA = frozenset({"facts", "data"})
_NEED_TORCH = ("recipe", "corpus", "schedule", "layers", "shaping", "device", "dtype")  # to be checked
READ: Final = frozenset(
    "analysis facts file files gguf_base grid patches probes recipe reference_corpus references results resume "
    "statistics untouched".split()
)
"""Path parameters of all commands that must exist; all others name output files."""


class Command(TyperCommand):
    """A command that never overwrites its own inputs or outputs, nor those of another process.

    Every command with --model also gets --gguf, which selects a file in a directory of GGUF files, unless it has an
    option of that name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = {option for parameter in self.params for option in parameter.opts}
        self._selects_gguf = "--model" in options and "--gguf" not in options
        if self._selects_gguf:
            self.params.append(_gguf_option())

    def invoke(self, ctx: Any) -> Any:  # typer does not export the class of the context
        """Run the command.

        Raises:
            InputError: before any work, if --json is or overlaps another path of the command line, if --run is --out or
                lies inside it, if another process is writing the same --out, if --dry-run is combined with
                --trust-remote-code, or if the file named by --gguf does not exist.
            InputError, FaultsError: if a named method or input file does not exist.
        """
        if self._selects_gguf and (gguf := ctx.params.pop("gguf", None)) is not None:
            ctx.params["model"] = _gguf_path(ctx.params["model"], gguf)
        out, run = ctx.params.get("out"), ctx.params.get("run")
        if isinstance(out, Path) and isinstance(run, Path) and _relation(run, out) in ("is", "is inside"):
            raise InputError(
                f"--run {run} {_relation(run, out)} --out {out}, but they must be two separate new directories",
                remedy="Give them different names",
                code="OUTPUT_CONFLICT",
            )
        if ctx.params.get("dry_run") and ctx.params.get("trust_remote_code"):
            raise InputError(
                "--dry-run never runs a model's code, so --trust-remote-code has no effect",
                remedy="Remove one of the two options",
                code="OPTION_CONFLICT",
            )
        json = ctx.params.get("json")
        if isinstance(json, Path):
            for place in _paths({name: value for name, value in ctx.params.items() if name != "json"}):
                if relation := _relation(json, place):
                    raise InputError(
                        f"--json {json} {relation} {place}, which this command reads or writes",
                        remedy="Give another file for the results",
                        code="OUTPUT_CONFLICT",
                    )
        if self.name != "check" or json is None:  # check commands report missing files in their JSON as well
            check_inputs(ctx.params, {param.name: _label(param) for param in self.params if param.name is not None})
        if self.callback is not None:
            import_module(self.callback.__module__)  # takes seconds; all checks that do not need it come first
        if ctx.obj is not None:
            ctx.obj()  # ``on_import`` of errata.cli.main.run
        with reserved(out) if isinstance(out, Path) else nullcontext():
            return super().invoke(ctx)


def command_line(module: str) -> Any:
    """The typer app of a command's module; its commands import the module when they are called.

    Args:
        module: the full name of the module.
    """
    app = _part_of(module, {"app"})["app"]
    for command in app.registered_commands:
        command.callback = _later(command.callback)
    return app


def _label(param: Any) -> str:
    """The name of a parameter on the command line: --facts, or FILE."""
    name = max(param.opts, key=len)
    return str(name if name.startswith("-") else param.metavar or name.upper())


def check_inputs(params: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Check that the named methods, trainers and files exist, and that the user's own facts and questions are valid.

    This needs neither torch nor transformers. Commands read the facts again, to check them with the model's tokenizer.
    If there may be faults that only a command finds (in options that need torch, or because the output exists), facts
    are left to the command, which reports all faults together.

    Args:
        params: parameter -> value.
        labels: parameter -> its name on the command line.

    Raises:
        InputError: for one error.
        FaultsError: for several.
    """
    outputs = (params.get("out"), params.get("run"))
    reported_later = any(params.get(name) is not None for name in _NEED_TORCH) or any(
        isinstance(path, Path) and is_there(path) for path in outputs
    )
    with collect_errors("the command line") as part:
        for name, value in params.items():
            if name in _METHODS and isinstance(value, str):
                for method in filter(None, map(str.strip, value.split(","))):
                    with part:
                        check_method(method)
            if name == "trainer":
                with part:
                    check_trainer(value)
            for path in _inputs(name, value):
                with part:
                    check_input(path, labels.get(name, name))
            if reported_later:
                continue
            for path in filter(Path.is_file, _facts_files(name, value)):  # a pipe can be read only once
                with part:
                    read_facts(path, last_wins=bool(params.get("last_wins") or params.get("resume")))
            if name == "untouched" and isinstance(value, Path) and value.is_file():
                with part:
                    read_questions(value)


def check_input(path: Path, label: str) -> None:
    """Raises InputError if nothing exists at ``path``; ``label`` is the name of the parameter on the command line."""
    if not is_there(path):
        raise InputError(
            f"{label}: no file or directory {str(path)!r}",
            remedy="Check the name; relative paths start at the working directory",
            code="FILE_NOT_FOUND",
        )


def _inputs(name: str, value: Any) -> Iterator[Path]:
    """The paths that a parameter names as inputs."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, Path) and name in READ:
            yield one
        elif isinstance(one, str) and name in _DATA:
            for entry in filter(None, map(str.strip, one.split(","))):
                dataset, path = split_file(entry)
                if path is not None or is_own_file(dataset):
                    yield Path(dataset if path is None else path)
        elif isinstance(one, str) and name == "corpus" and one not in NAMED_CORPORA:
            yield Path(one)


def _facts_files(name: str, value: Any) -> Iterator[Path]:
    """The user's own files of facts among a parameter's values."""
    if name in _DATA and isinstance(value, Path):
        yield value
    elif name in _DATA and isinstance(value, str):
        for entry in filter(None, map(str.strip, value.split(","))):
            dataset, path = split_file(entry)
            if dataset == jsonl.DATASET.name and path is not None:
                yield Path(path)
            elif path is None and is_own_file(dataset):
                yield Path(dataset)


def _gguf_option() -> Any:
    """The option --gguf, built by typer because its parameter classes differ between versions."""
    app = typer.Typer(add_completion=False)
    app.command()(_takes_gguf)
    return typer.main.get_command(app).params[0]


def _takes_gguf(
    gguf: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The GGUF file to use if --model is a directory that contains several."),
    ] = None,
) -> None:
    """Only the parameter is used."""


def _gguf_path(model: str | None, name: str) -> str:
    path = Path(model or "") / name
    if model is None or not path.is_file():
        raise InputError(
            f"no GGUF file {name!r} in {model or '--model'}",
            remedy="Give its directory as --model and its file name as --gguf",
            code="GGUF_NOT_FOUND",
        )
    return str(path)


def _paths(params: dict[str, Any]) -> Iterator[Path]:
    """All paths among the parameters; a text counts as a path if it exists."""
    for name, value in params.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Path):
                yield one
            elif isinstance(one, str) and one not in ("", "lab") and name not in _TEXTS and is_there(Path(one)):
                yield Path(one)


def _relation(first: Path, second: Path) -> str:
    """How the first path overlaps the second; empty if it does not."""
    try:
        ours, other = first.resolve(), second.resolve()
    except (OSError, RuntimeError, ValueError):  # invalid names and link cycles are reported where they are opened
        return ""
    if ours == other:
        return "is"
    return "is inside" if ours.is_relative_to(other) else "would contain" if other.is_relative_to(ours) else ""


def _later(signature: Any) -> Any:
    @wraps(signature)
    def call(**options: Any) -> None:
        getattr(import_module(signature.__module__), signature.__name__)(**options)

    return call


def _part_of(module: str, wanted: set[str]) -> dict[str, Any]:
    """The named objects of a module and their dependencies; commands have a signature and help, but no body."""
    statements = _statements_of(module)
    included = _needed(statements, wanted)
    if any(isinstance(statement, ast.ClassDef) for statement in included):
        return vars(import_module(module))  # executing a class twice would create two different classes
    found: dict[str, Any] = {"__name__": module}
    for statement in included:
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith(_PACKAGE):
            part = _part_of(str(statement.module), {name.name for name in statement.names})
            found |= {name.asname or name.name: part[name.name] for name in statement.names}
        else:
            exec(compile(ast.Module([statement], []), f"<{module}>", "exec", dont_inherit=True), found)
    return found


def _statements_of(module: str) -> list[ast.stmt]:
    spec = find_spec(module)
    source = None if spec is None or spec.loader is None else spec.loader.get_source(module)  # type: ignore[attr-defined]
    if source is None:
        raise ModuleNotFoundError(f"the source of {module} is missing", name=module)
    return [*_without_bodies(ast.parse(source).body)]


def _without_bodies(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and _is_command(statement):
            statement.body = statement.body[:1]  # the docstring, which is the help
        yield statement


def _is_command(function: ast.FunctionDef) -> bool:
    """Whether a function is decorated as a command, or has ``Annotated`` parameters like one."""
    nodes = [*function.decorator_list, function.args]
    return any(
        isinstance(node, ast.Name) and node.id in ("app", "Annotated") for each in nodes for node in ast.walk(each)
    )


def _needed(statements: Sequence[ast.stmt], wanted: set[str]) -> list[ast.stmt]:
    """The statements that define the wanted names, their dependencies, and everything registered on ``app``, in order.

    Import statements are reduced to the names that are needed.
    """
    needed, included = set(wanted), set()
    while new := [each for each in statements if each not in included and _defines(each, needed)]:
        for statement in new:
            included.add(statement)
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                needed |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    for statement in included:
        if isinstance(statement, ast.Import | ast.ImportFrom) and getattr(statement, "module", "") != "__future__":
            statement.names = [name for name in statement.names if _bound(name) in needed]
    return [statement for statement in statements if statement in included]


def _defines(statement: ast.stmt, needed: set[str]) -> bool:
    """Whether a statement defines a needed name, or registers a command on a needed app."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return any(_bound(name) in needed for name in statement.names)
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        used = {node.id for each in statement.decorator_list for node in ast.walk(each) if isinstance(node, ast.Name)}
        return statement.name in needed or "app" in used & needed
    names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    if isinstance(statement, ast.Expr):
        return "app" in needed and any(name.id == "app" for name in names)
    return any(name.id in needed and isinstance(name.ctx, ast.Store) for name in names)


def _bound(name: ast.alias) -> str:
    return name.asname or name.name.split(".")[0]
