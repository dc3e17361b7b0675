"""The command line of a verb without the work behind it.

A verb's module imports torch and transformers, which takes seconds, but its options and its help need neither. Here,
only what they need of the module is executed: the commands' signatures, the constants and option types that these name,
and the imports of those. The module itself is imported once a command line has been read and is right.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_VERBS = "errata.cli."


def command_line(module: str) -> Any:
    """The typer app of a verb's module; its commands import the module when they are called.

    Args:
        module: its whole name.
    """
    app = _part_of(module, {"app"})["app"]
    for command in app.registered_commands:
        command.callback = _later(command.callback)
    return app


def _later(signature: Any) -> Any:
    @wraps(signature)
    def call(**options: Any) -> None:
        getattr(import_module(signature.__module__), signature.__name__)(**options)

    return call


def _part_of(module: str, wanted: set[str]) -> dict[str, Any]:
    """Some names of a module, and what they need. Of commands there is the signature and the help, and no body."""
    statements = _statements_of(module)
    kept = _needed(statements, wanted)
    if any(isinstance(statement, ast.ClassDef) for statement in kept):
        return vars(import_module(module))  # a second class of the same name would be another one
    found: dict[str, Any] = {"__name__": module}
    for statement in kept:
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith(_VERBS):
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
    """Whether it is decorated as one, or has parameters that are options, as one that another module decorates."""
    nodes = [*function.decorator_list, function.args]
    return any(
        isinstance(node, ast.Name) and node.id in ("app", "Annotated") for each in nodes for node in ast.walk(each)
    )


def _needed(statements: Sequence[ast.stmt], wanted: set[str]) -> list[ast.stmt]:
    """Those that bind a wanted name, or a name that one of them needs, and those that add to ``app``; in order.

    Imports bind only what is needed of them.
    """
    needed, kept = set(wanted), set()
    while new := [each for each in statements if each not in kept and _adds(each, needed)]:
        for statement in new:
            kept.add(statement)
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                needed |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    for statement in kept:
        if isinstance(statement, ast.Import | ast.ImportFrom) and getattr(statement, "module", "") != "__future__":
            statement.names = [name for name in statement.names if _bound(name) in needed]
    return [statement for statement in statements if statement in kept]


def _adds(statement: ast.stmt, needed: set[str]) -> bool:
    """Whether a statement binds a needed name, or adds a command to an app that is needed."""
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
