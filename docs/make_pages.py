"""The generated parts of this documentation: ``python docs/make_pages.py`` (``make pages``) writes them.

- ``errors.md``: every error code in the source, with its class and the first message that carries it;
- ``commands.md``: every command with its options, from the command line itself;
- the studies in ``analysis.md``, from ``errata.analysis.studies``;
- the editors in ``editors.md``, from ``errata.editors.table`` and their settings;
- the columns in ``compare.md``, from ``errata.benchmark.columns``.

``tests/test_pages.py`` checks that they are current.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "src" / "errata"
_MESSAGE_POSITION = {"Fault": 1, "read_json": 1, "read_text": 1}  # after the place, or the path
# Functions that raise an error with the code that they get -> its class and message; {} is their own argument.
_RAISING = {
    **dict.fromkeys(("read_json", "read_text", "reading"), ("InputError", "cannot read {}: …")),
    "mismatches": ("Fault", "… was started with …, got …"),
    "kind": ("OutputError", "… cannot be written: …"),
    "__init__": ("CollapseError", "perplexity is … after batch …"),
}
# Codes that the source does not name beside an error, and those whose messages are values only -> class and message.
_BY_HAND = {
    "ABILITY_MISSING": ("InputError", "… has no likelihoods"),
    "ENDPOINT_KEY_INVALID": ("InputError", "the environment variable … is empty, expected …"),
    "JUDGE_KEY_INVALID": (
        "InputError",
        "the key in the environment variable … contains spaces, control or non-ASCII characters",
    ),
    "JUDGE_KEY_MISSING": ("InputError", "the environment variable that should hold the judge's key is not set"),
    "COMBINATION_INVALID": ("Fault", "a recipe of '…' has no field '…'"),
    "CSV_INVALID": ("Fault", "is not valid CSV: …"),
    "DATASET_UNRESOLVED_IDS": ("Fault", "the names of … are missing"),
    "FACT_NESTED_TOO_DEEPLY": ("Fault", "'…' is nested too deeply"),
    "FACT_SUBJECT_POSITION": ("Fault", "the prompt does not contain the subject exactly once"),
    "FORMAT_UNSUPPORTED": ("Fault", "… is not a format for studies"),
    "GGUF_UNSUPPORTED": ("InputError", "… is one part of a model that is split over several files"),
    "GRID_INVALID": ("Fault", "methods: is empty"),
    "LAYERS_INVALID": ("Fault", "'…' is not a list of integers"),
    "MODEL_IS_FILE": ("InputError", "… is a file, expected a directory"),
    "MODEL_MULTIMODAL": ("UnsupportedModelError", "this is a vision-language model"),
    "OPTION_INVALID": ("InputError", "… must be at least …, got …"),
    "OS_ERROR": ("OSError", "an error of the operating system, such as no permission"),
    "OUT_OF_MEMORY": ("MemoryError, OutOfMemoryError", "out of memory: …"),
    "PATCH_EMPTY": ("InputError", "the patches change no weight"),
    "PROMPT_EMPTY": ("InputError", "the prompt is empty"),
    "RECIPE_CONTRADICTION": ("Fault", "two settings of the recipe exclude each other"),
    "RECIPE_KEY_MISSING": ("Fault", "missing key"),
    "RECIPE_KEY_UNKNOWN": ("Fault", "unknown key"),
    "RECIPE_VALUE_INVALID": ("Fault", "expected a positive number"),
    "REFERENCES_MISSING_FIELD": ("Fault", "'text' is missing"),
    "RUN_FAILED": ("any other", "an unexpected error stopped a run"),
    "SEVERAL": ("FaultsError", "several faults with different codes"),
    "SHAPING_INVALID": ("Fault", "'…' has an empty entry"),
    "STUDY_DAMAGED": ("InputError", "it has unreadable content: …"),
    "STUDY_NOT_FINISHED": ("InputError", "… is not finished"),
    "STUDY_RECIPE_UNSUITABLE": ("InputError", "… changes the result of a search, which this study measures"),
    "TRAINING_SETTINGS_INVALID": ("InputError", "… was started with other settings"),
    "TRAINING_START_INVALID": ("InputError", "the model … to start from is invalid"),
    "USAGE": ("TyperException", "No such option: … (Possible options: …)"),
}
_ERRORS_HEAD = """# Error codes

Every error that errata raises is a subclass of `errata.ErrataError`. It says what was wrong and what to do, and carries
a stable `code`, which the command line prints in brackets: `error[FACT_MISSING_FIELD]: …`. Messages may be reworded
between versions; codes are not. An error that reports several faults has their common code, or `SEVERAL` if
they differ; then the message shows the code of each fault (in Python: `error.faults`).

The exit status of the command line depends on the class: 2 for `InputError` and its subclasses, 130 for
`InterruptedRunError`, 1 otherwise. Errors in the command line itself (an unknown command or option, a missing or
invalid value) have the code `USAGE` and the status 2.

*Example* is one message with this code; values are replaced by `…`.

| code | class | example |
|---|---|---|
"""


def error_rows(source: Path = SOURCE) -> dict[str, tuple[set[str], str]]:
    """Code -> the classes that carry it and the first message, in the order of files and lines."""
    rows: dict[str, tuple[set[str], str]] = {}
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(source.rglob("*.py"))}
    for tree in trees.values():
        for node in _walk(tree):
            if isinstance(node, ast.ClassDef):
                for code in _class_codes(node):
                    rows.setdefault(code, (set(), _sentence(ast.get_docstring(node) or "")))[0].add(node.name)
    for tree in trees.values():
        assigned: dict[str, ast.expr] = {}  # the last value of each variable, as in ``what = "…"``
        for node in _walk(tree):
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)  # ``what, remedy = "…", "…"``
                pairs = zip(target.elts, value.elts, strict=False) if both else [(target, value)]
                assigned |= {name.id: given for name, given in pairs if isinstance(name, ast.Name)}
            elif isinstance(node, ast.FunctionDef):
                assigned = {}
            if isinstance(node, ast.Call) and (code := _code_of(node)):
                kind = _name_of(node.func)
                arguments = node.args[_MESSAGE_POSITION.get(kind, 0) :]
                first_argument = arguments[0] if arguments else ast.Constant("")
                if isinstance(first_argument, ast.Name):
                    first_argument = assigned.get(first_argument.id, first_argument)
                kind, message = _RAISING.get(kind, (kind, "{}"))
                message = message.replace("{}", _text(first_argument))
                classes, first = rows.get(code, (set(), ""))
                rows[code] = (classes | {kind}, first if _has_words(first) else message)
    return rows


def _has_words(message: str) -> bool:
    return bool(re.search("[a-z]{2,}", message))


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Depth first, so in the order of lines."""
    for child in ast.iter_child_nodes(tree):
        yield child
        yield from _walk(child)


def _class_codes(node: ast.ClassDef) -> Iterator[str]:
    """``code = "…"`` in the body of an error class."""
    for entry in node.body:
        target = entry.targets[0] if isinstance(entry, ast.Assign) else getattr(entry, "target", None)
        value = getattr(entry, "value", None)
        if isinstance(target, ast.Name) and target.id == "code" and isinstance(value, ast.Constant) and value.value:
            yield str(value.value)


def _code_of(call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return ""


def _name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "…"


def _text(node: ast.expr) -> str:
    """A message, with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def _sentence(text: str) -> str:
    return text.partition("\n\n")[0].replace("\n", " ").strip().rstrip(".")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def errors_page(source: Path = SOURCE) -> str:
    """Raises ValueError if ``_BY_HAND`` has a code that the source does not."""
    rows = error_rows(source)
    texts = "\n".join(path.read_text(encoding="utf-8") for path in source.rglob("*.py"))
    if outdated := [code for code in _BY_HAND if f'"{code}"' not in texts]:
        raise ValueError(f"remove from _BY_HAND the codes that no longer exist: {', '.join(outdated)}")
    rows |= {code: (rows[code][0] if code in rows else {kind}, text) for code, (kind, text) in _BY_HAND.items()}
    lines = [
        f"| `{code}` | {', '.join(f'`{name}`' for name in sorted(classes))} | {_cell(message)} |"
        for code, (classes, message) in sorted(rows.items())
    ]
    return _ERRORS_HEAD + "\n".join(lines) + "\n"


def commands_page() -> str:
    import typer

    from errata.cli.main import app

    group = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "The output of `errata COMMAND --help`, with an example for each command. Generated from the command line.",
    ]
    context = group.make_context("errata", [], resilient_parsing=True)
    for name in group.list_commands(context):  # type: ignore[attr-defined]
        lines += _command(group.get_command(context, name), f"errata {name}")  # type: ignore[attr-defined]
    return "\n".join(lines).rstrip() + "\n"


def _command(command: Any, title: str) -> Iterator[str]:
    level = "##" if title.count(" ") == 1 else "###"
    yield from ("", f"{level} {title}", "", *_help(command.help or ""))
    if examples := re.findall(r"^Example: (.*)$", _plain(command.epilog or ""), re.MULTILINE):
        yield from ("", "```console", *(f"$ {example}" for example in examples), "```")
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from _command(command.get_command(None, name), f"{title} {name}")
        return
    options = [param for param in command.params if param.name != "help" and not getattr(param, "hidden", False)]
    if options:
        yield from ("", "| option | meaning |", "|---|---|")
        for param in options:
            is_argument = param.param_type_name == "argument"
            names = param.name.upper() if is_argument else ", ".join([*param.opts, *param.secondary_opts])
            required = " Required." if param.required else ""
            yield f"| `{names}` | {_cell(_plain(getattr(param, 'help', None) or ''))}{required} |"


def _help(text: str) -> Iterator[str]:
    """Paragraphs as they are, examples as code."""
    for number, part in enumerate(_plain(textwrap.dedent(text)).replace("\b", "").strip().split("\n\n")):
        if number:
            yield ""
        lines = [line.strip() for line in part.strip().splitlines()]
        starts = [index for index, line in enumerate(lines) if line.startswith(("errata ", "$ "))]
        if starts:
            yield from (line for line in lines[: starts[0]])
            if starts[0]:
                yield ""
            yield "```console"
            yield from (f"$ {line}" if line.startswith("errata ") else line for line in lines[starts[0] :])
            yield "```"
        else:
            yield from (line.replace("<", "&lt;") for line in lines)


def _plain(text: str) -> str:
    """Without rich's markup."""
    return re.sub(r"(?<!\\)\[/?(?:bold|italic|dim|cyan|green|red|yellow|b|i|code)?\]", "", text).replace("\\[", "[")


def studies_section() -> str:
    from errata.analysis.studies import STUDIES

    parts = []
    for study in STUDIES.values():
        names = [f"`--{name.replace('measures', 'measure').replace('_', '-')}`" for name in ("seeds", *study.uses)]
        defaults = [f"{name} {_value(value)}" for name, value in study.defaults.items()]
        changed = f"; by default {', '.join(defaults)}" if defaults else ""
        parts.append(
            f"## {study.name}: {study.title}\n\n{_wrapped(study.shows)}\n\n{_wrapped('*Units.* ' + study.units)}\n\n"
            f"{_wrapped('*Source.* ' + study.source)}\n\n"
            f"{_wrapped('*Options.* ' + ', '.join(dict.fromkeys(names)) + changed)}.\n"
        )
    return "\n".join(parts)


def _value(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


_VERDICT = re.compile(r"(## How claims are decided\n\n).*?(\n\n)", re.DOTALL)
_BEGIN, _END = "<!-- studies: generated by make_pages.py -->\n\n", "\n<!-- end of studies -->"


def analysis_page() -> str:
    from errata.analysis.findings import VERDICT_RULE

    page = (DOCS / "analysis.md").read_text(encoding="utf-8")
    page = _VERDICT.sub(lambda found: found[1] + _wrapped(VERDICT_RULE) + found[2], page)
    head, _, rest = page.partition(_BEGIN)
    return f"{head}{_BEGIN}{studies_section()}{_END}{rest.partition(_END)[2]}"


_EDITORS_BEGIN, _EDITORS_END = "<!-- editors: generated by make_pages.py -->\n\n", "\n<!-- end of editors -->"
_CHANGED = {
    "weights": "weights", "hooks": "activations", "prompt": "the prompt", "answer": "the finished answer",
}  # fmt: skip


def _choices(annotation: object) -> str:
    """The values of a setting that takes one of a few words."""
    found = [get_args(each) for each in (annotation, *get_args(annotation)) if get_origin(each) is Literal]
    return f" ({', '.join(f'`{value}`' for values in found for value in values)})" if found else ""


def editors_section() -> str:
    from pydantic_core import to_jsonable_python

    from errata.editors.registry import EDITORS
    from errata.editors.table import ABILITIES, EDITOR_ROWS

    yes = {True: "yes", False: "no"}
    parts = [
        "| editor | changes | likelihoods | generated text | prose without a prompt | undo | full model, LoRA |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in EDITOR_ROWS:
        can = ABILITIES[row.where]
        parts.append(
            f"| [`{row.name}`](#{row.name}) | {_CHANGED[row.where]} | {yes['likelihood' in can]} | "
            f"{yes['generation' in can]} | {yes['rolling' in can]} | {row.undo} edit | {yes[row.where == 'weights']} |"
        )
    for row in EDITOR_ROWS:
        parts += [
            "",
            f"## {row.name}",
            "",
            _wrapped(f"{row.title[0].upper()}{row.title[1:]}."),
            "",
            _wrapped(row.use),
            "",
            _wrapped(f"*Paper.* {row.paper}."),
            "",
        ]
        parts += ["| setting | default | meaning |", "|---|---|---|"]
        for name, field in EDITORS[row.name].settings.model_fields.items():
            default = getattr(field.get_default(call_default_factory=True), "value", field.default)
            if isinstance(default, tuple):
                default = json.dumps(to_jsonable_python(default))
            shown = "section" if hasattr(default, "model_dump") else f"`{default}`" if default != "" else "none"
            parts.append(f"| `{name}` | {shown} | {_cell((field.description or '') + _choices(field.annotation))} |")
        if row.deviations:
            parts += ["", "Differences from the paper and its code:", ""]
            parts += [f"- {deviation}" for deviation in row.deviations]
    return "\n".join(parts) + "\n"


def editors_page() -> str:
    page = (DOCS / "editors.md").read_text(encoding="utf-8")
    head, _, rest = page.partition(_EDITORS_BEGIN)
    return f"{head}{_EDITORS_BEGIN}{editors_section()}{_EDITORS_END}{rest.partition(_EDITORS_END)[2]}"


_COLUMNS_BEGIN, _COLUMNS_END = "<!-- columns: generated by make_pages.py -->\n\n", "\n<!-- end of columns -->"
_BEST = {"higher": "more", "lower": "less", "zero": "0"}


def columns_section() -> str:
    from errata.benchmark.columns import COLUMNS, Argument

    lines = ["| argument | column | what it is | better |", "|---|---|---|---|"]
    for argument in Argument:
        for column in (each for each in COLUMNS if each.argument is argument):
            lines.append(f"| {argument.value} | {column.heading} | {column.meaning} | {_BEST[column.best]} |")
    return "\n".join(lines) + "\n"


def compare_page() -> str:
    page = (DOCS / "compare.md").read_text(encoding="utf-8")
    head, _, rest = page.partition(_COLUMNS_BEGIN)
    return f"{head}{_COLUMNS_BEGIN}{columns_section()}{_COLUMNS_END}{rest.partition(_COLUMNS_END)[2]}"


def pages() -> Mapping[str, str]:
    """File name -> what should be in it."""
    return {
        "errors.md": errors_page(),
        "commands.md": commands_page(),
        "analysis.md": analysis_page(),
        "editors.md": editors_page(),
        "compare.md": compare_page(),
    }


if __name__ == "__main__":
    for file, text in pages().items():
        (DOCS / file).write_text(text, encoding="utf-8")
        print(f"Wrote docs/{file}")
