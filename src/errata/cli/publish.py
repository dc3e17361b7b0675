"""``errata save`` and ``errata push``: publish patches or a full model, with its facts and a model card."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from errata.benchmark.sequence import recorded_rows
from errata.cli.model_options import PATCH_SUFFIX, OutOption, finished_run
from errata.cli.terminal import JsonOption, echo, warn, write_json
from errata.errors import ErrataError, InputError
from errata.facts.fact import Fact, FactSet
from errata.facts.files import write_facts
from errata.models.hub import address, check_login, check_repository, upload
from errata.models.loading import lasting_name
from errata.patches.stack import FILE, Stack, has_stack, is_stack, read_stack, write_stack
from errata.report.card import Measured, hub_name, is_local, model_card, shown_base
from errata.report.ledger import edited_facts
from errata.results.records import Results, Row, read_results
from errata.runs.loading import check_exists, load_model, load_patch, stack_of_run, stack_under
from errata.runs.run import is_run, open_run
from errata.utils.files import check_new, new_directory, write_text
from errata.utils.text import counted, listed, size_text

CARD, FACTS = "README.md", "facts.jsonl"
SAVE_EXAMPLE = "Example: errata save edited --out published"

ModelArgument = Annotated[
    str, typer.Argument(help="A patch (.safetensors), a stack, an edited model, or a run.", metavar="MODEL")
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        help="Result file of `errata evaluate --json` or `errata edit --json`; default: the results stored with MODEL."
    ),
]
BaseOption = Annotated[str | None, typer.Option(help="Hub name of the base model, if a local copy was edited.")]
app = typer.Typer()


@app.command("save", epilog=SAVE_EXAMPLE)
def save(
    model: ModelArgument,
    out: OutOption,
    results: ResultsOption = None,
    base: BaseOption = None,
    card_only: Annotated[bool, typer.Option("--card-only", help=f"Write {CARD} and {FACTS} only.")] = False,
    json: JsonOption = None,
) -> None:
    """Write a directory ready to publish: patches or model, with a model card.

    The card lists the edited facts and the measured effects. A full model is copied; a patch, stack or run is published
    as patches only, which are small.
    """
    check_new(out)
    publication = publication_of(model, results, base)
    weights = publication.weights
    if weights is not None and out.absolute().resolve().is_relative_to(weights.resolve()):
        raise InputError(
            f"{out} is inside {model}, which would be copied into it",
            remedy="Give another directory",
            code="OUTPUT_CONFLICT",
        )
    with new_directory(out) as partial:
        write_publication(publication, partial, name=out.absolute().name, card_only=card_only)
    files = files_of(out)
    show_notes(publication, card_only=card_only)
    size = size_text(sum(count for _, count in files))
    facts = counted(len(publication.stack.facts), "fact")
    echo(f"Wrote {out}: {counted(len(files), 'file')}, {size}; {CARD} lists {facts}.")
    write_json(json, record_of(publication, [name for name, _ in files]))


def show_notes(publication: Publication, *, card_only: bool = False) -> None:
    """Print notes about a publication before it is uploaded."""
    if not publication.measured.rows:
        warn("note: the card contains no measurements; give results of `errata evaluate --json` as --results")
    if card_only:
        return
    if paths := publication.local_paths():
        warn(f"note: the files contain local paths: {', '.join(paths)}")
    if hidden := publication.left_out():
        warn(f"note: hidden files are not published: {', '.join(hidden)}")


def record_of(publication: Publication, files: list[str]) -> dict[str, object]:
    """The JSON record of a publication."""
    return {
        "base": publication.stack.base,
        "patches": [stacked.name for stacked in publication.stack.patches],
        "facts": len(publication.stack.facts),
        "measured": bool(publication.measured.rows),
        "files": files,
    }


PUSH_EXAMPLE = "Example: errata push edited --to OWNER/NAME"


@app.command("push", epilog=PUSH_EXAMPLE)
def push(
    model: ModelArgument,
    to: Annotated[
        str, typer.Option("--to", metavar="OWNER/NAME", help="Target repository; created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private/--public", help="Visibility of the repository.")] = True,
    results: ResultsOption = None,
    base: BaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without confirmation.")] = False,
    json: JsonOption = None,
) -> None:
    """Upload the output of `errata save` to the Hugging Face hub, after showing its files.

    Uses the access token of `hf auth login` or the environment variable HF_TOKEN.
    """
    check_repository(to)
    publication = publication_of(model, results, base)
    if not yes and not sys.stdin.isatty():
        raise InputError(
            "stdin is not a terminal, so the upload cannot be confirmed",
            remedy="Pass --yes; `errata save` shows what would be uploaded",
            code="CONFIRMATION_IMPOSSIBLE",
        )
    with tempfile.TemporaryDirectory(prefix="errata-push-") as folder:
        directory = Path(folder)
        # Weights may be large: link to them instead of copying them.
        write_publication(publication, directory, name=to.rpartition("/")[2], repository=to, copy=_link)
        files = files_of(directory)
        seen = "private: visible to you and people you authorise" if private else "public: visible to everyone"
        echo(f"Files to upload to {address(to)} ({seen}):")
        for name, count in files:
            echo(f"  {name}  {size_text(count)}")
        total = size_text(sum(count for _, count in files))
        echo(f"{counted(len(files), 'file')}, {total}; {counted(len(publication.stack.facts), 'fact')}.")
        show_notes(publication)
        check_login()
        if not yes and not typer.confirm("Upload?"):
            raise ErrataError("the upload was not confirmed; nothing was uploaded", code="NOT_CONFIRMED")
        done = upload(directory, to, private=private, message=_message(len(publication.stack.facts)))
    if done.others:
        warn(f"note: other files in the repository are unchanged: {', '.join(done.others)}")
    echo(f"Uploaded to {done.url}")
    record = record_of(publication, [name for name, _ in files])
    write_json(json, {**record, "url": done.url, "private": private, "others": list(done.others)})


def _message(facts: int) -> str:
    return f"{counted(facts, 'fact')} edited by errata"


def _link(source: str, target: str) -> None:
    os.symlink(Path(source).resolve(), target)  # noqa: PTH211  (as copytree calls it)


RECORD = "errata.json"
_MEASURE = "Measure the model: errata evaluate --model MODEL --facts FACTS --against BASE --json FILE"


def measured_of(name: str, stack: Stack, results: Path | None) -> Measured:
    """The measured results of a model; without rows if nothing was measured.

    Args:
        name: a patch, a stack, a full model or a run.
        stack: all patches of the model.
        results: a result file of `errata edit --json` or `errata evaluate --json`; None uses the results stored with
            the model or in its last patch.

    Raises:
        InputError: if results cannot be read, or belong to another model.
    """
    stored = Path(name) / RECORD
    if results is None and is_run(name):
        run = open_run(Path(name))
        left_alone = tuple(id_ for entry in run.ledger.of("batch") for id_ in entry.fields["left_alone"])
        return _of_edit(stack, tuple(recorded_rows(run)), left_alone, {})
    if results is None and not stored.is_file():
        return _of_patch(stack)
    path = results or stored
    found = read_results(path)
    if results is not None and not found.rows:
        raise InputError(f"{path} contains no results", remedy=_MEASURE, code="RESULTS_EMPTY")
    if "left_alone" in found.about:
        _check_edit(stack, found, path)
        return _of_edit(stack, found.rows, _texts(found.about["left_alone"]), _absent(found))
    if "against_fingerprint" in found.about:
        return _of_evaluation(stack, found, path)
    raise _mismatch(path, "do not identify the weights they belong to")


def _of_patch(stack: Stack) -> Measured:
    """The results stored in the last patch, if it is applied to the weights that it was measured with."""
    top = stack.patches[-1]
    found = top.patch.results
    if found is None or top.missing or top.forced:
        return Measured()
    return _of_edit(stack, found.rows, found.left_alone, found.absent)


def _of_edit(stack: Stack, rows: tuple[Row, ...], left_alone: tuple[str, ...], absent: Mapping[str, str]) -> Measured:
    return Measured(rows, "errata edit", _state(stack, len(stack.patches) - 1), absent, left_alone)


def _check_edit(stack: Stack, found: Results, path: Path) -> None:
    """Raises InputError unless the results belong to the last edit of the stack."""
    about = found.about
    made = [
        place
        for place, patch in enumerate(stacked.patch for stacked in stack.patches)
        if about.get("fingerprint") == patch.fingerprint
        and about.get("facts") == [fact.to_record() for fact in patch.facts]
        and about.get("recipe") == patch.recipe.model_dump(mode="json")
    ]
    if not made:
        raise _mismatch(path, "belong to another edit (different facts, recipe or weights)")
    edit, *later = stack.patches[made[-1] :]
    if later:
        names = ", ".join(repr(stacked.name) for stacked in later)
        raise _mismatch(path, f"belong to {edit.name!r}, but {names} was applied later")
    if edit.missing or edit.forced:
        raise _mismatch(path, f"were measured with {edit.name!r} applied to different weights")


def _mismatch(path: Path, what: str) -> InputError:
    return InputError(f"the results in {path} {what}", remedy=_MEASURE, code="RESULTS_MISMATCH")


def _of_evaluation(stack: Stack, found: Results, path: Path) -> Measured:
    """Results of `errata evaluate`, checked to belong to this base model and to none of its earlier states."""
    about = found.about
    states = [stack.fingerprint, *(stacked.patch.fingerprint for stacked in stack.patches[1:])]
    if about.get("fingerprint") in states:
        raise _mismatch(path, "belong to the model before its last edit")
    before = ""
    if (against := about["against_fingerprint"]) is not None:
        if against not in states:
            against_name = about.get("against")
            raise _mismatch(path, f"have the baseline {against_name!r}, not the base {stack.base!r} in {stack.dtype}")
        before = _state(stack, states.index(against))
    model = str(about.get("model"))
    by = f"errata evaluate on {Path(model).name if is_local(model) else model}"
    return Measured(found.rows, by, before, _absent(found))


def _absent(found: Results) -> dict[str, str]:
    absent = found.about.get("absent")
    return {str(metric): str(reason) for metric, reason in absent.items()} if isinstance(absent, dict) else {}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _state(stack: Stack, patches: int) -> str:
    """A description of the base model with its first ``patches`` patches."""
    base = f"the base {shown_base(stack.base)}"
    return base + (f" with {', '.join(stacked.name for stacked in stack.patches[:patches])}" if patches else "")


@dataclass(frozen=True, slots=True)
class Publication:
    """The contents of a publication.

    Attributes:
        stack: all patches of the model.
        weights: the directory of a full model; None publishes only the patches.
    """

    stack: Stack
    measured: Measured
    weights: Path | None

    def local_paths(self) -> list[str]:
        """Local paths that the published files contain."""
        named = [self.stack.base]
        for stacked in self.stack.patches:
            named += [stacked.patch.base, *stacked.patch.recipe.files]
        return [name for name in dict.fromkeys(named) if name != "lab" and is_local(name)]

    def left_out(self) -> list[str]:
        """Hidden files next to the weights; they are not published, since they may contain secrets."""
        return [] if self.weights is None else sorted(f.name for f in self.weights.iterdir() if f.name.startswith("."))


def publication_of(model: str, results: Path | None, base: str | None) -> Publication:
    """Collect what is published, without writing files.

    Args:
        model: a patch, a stack, a full model or a run.
        results: see ``measured_of``.
        base: the hub name of the base model, if a local copy was edited.

    Raises:
        InputError: if the model has no edits, or the results belong to another model.
    """
    stack = _stack_of(model)
    if not stack.patches:
        raise InputError(
            f"{model!r} has no patches; it equals its base model", remedy="Edit it first", code="NO_PATCHES"
        )
    measured = measured_of(model, stack, results)
    if base is not None:
        if hub_name(base) is None:
            what = f"{base!r} is not a name on the Hugging Face hub"
            raise InputError(what, remedy="Give --base as OWNER/NAME", code="HUB_NAME_INVALID")
        stack = replace(stack, base=base)
    weights = Path(model) if has_stack(model) and not is_stack(model) else None
    if weights is not None:
        _check_contents(weights)
    return Publication(stack, measured, weights)


def write_publication(
    publication: Publication,
    directory: Path,
    *,
    name: str,
    repository: str | None = None,
    card_only: bool = False,
    copy: Callable[[str, str], object] = shutil.copy2,
) -> None:
    """Write a publication to a new, empty directory; see ``errata.utils.files.new_directory``.

    Args:
        name: the name of the model in its card.
        repository: its name on the hub, if any.
        card_only: write neither weights nor patches.
        copy: copies or links a file of the weights, from one path to another.
    """
    stack, weights = publication.stack, publication.weights
    if not card_only and weights is not None:
        shutil.copytree(weights, directory, copy_function=copy, dirs_exist_ok=True, ignore=_hidden)
        if stack.base != read_stack(weights).base:
            shutil.rmtree(directory / "patches")
            (directory / FILE).unlink()
            write_stack(stack, directory)
    elif not card_only:
        write_stack(stack, directory)
    for file in (CARD, FACTS):
        (directory / file).unlink(missing_ok=True)  # copies of older versions
    write_facts(_current_facts(stack), directory / FACTS)
    card = model_card(stack, publication.measured, name=name, with_weights=weights is not None, repository=repository)
    write_text(directory / CARD, card)


def files_of(directory: Path) -> list[tuple[str, int]]:
    """(path, bytes) of every file, in order."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return [(file.relative_to(directory).as_posix(), file.stat().st_size) for file in files]


def _check_contents(directory: Path) -> None:
    """Raises InputError if a directory contains links to the outside, or entries that are not regular files."""
    root = directory.resolve()
    visible = [
        path
        for path in sorted(directory.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(directory).parts)
    ]
    if outside := [path for path in visible if path.is_symlink() and not path.resolve().is_relative_to(root)]:
        named = listed([f"{path} -> {path.resolve()}" for path in outside])
        raise InputError(
            f"{counted(len(outside), 'link')} in {directory} point to files outside of it, which would be published: "
            f"{named}",
            remedy="Replace them by copies, or remove them",
            code="LINK_LEADS_OUTSIDE",
        )
    if others := [path for path in visible if not path.is_file() and not path.is_dir()]:
        raise InputError(f"{others[0]} is neither a file nor a directory", remedy="Remove it", code="NOT_A_FILE")


def _stack_of(model: str) -> Stack:
    path = Path(model)
    if path.is_file() and path.suffix == PATCH_SUFFIX:
        return _stack_of_patch(path)
    if has_stack(model):
        return read_stack(path)
    if is_run(model):
        finished_run(model)
        return stack_of_run(model)
    check_exists(model)
    raise InputError(
        f"{model!r} contains no edit by errata",
        remedy="Give a patch (.safetensors), a stack, an edited model or a run",
        code="NO_PATCHES",
    )


def _stack_of_patch(path: Path) -> Stack:
    """The stack of a patch and all patches that its base already contained."""
    patch = load_patch(path)
    if not (has_stack(patch.base) or is_run(patch.base)):
        base = lasting_name(patch.base)
        return Stack(base, patch.fingerprint, patch.dtype).with_patch(path.stem, patch)
    import torch

    under = load_model(patch.base, dtype=getattr(torch, patch.dtype))
    fingerprint = under.fingerprint()
    if fingerprint != patch.fingerprint:
        raise InputError(
            f"{path} was made on top of the edits in {patch.base}, which has changed since",
            remedy="Restore it, or give the stack or the model that contains both",
            code="BASE_CHANGED",
        )
    return stack_under(under, patch.base, fingerprint).with_patch(path.stem, patch)


def _current_facts(stack: Stack) -> FactSet:
    """The current facts, with unique ids: the last one of all facts about the same thing."""
    facts: list[Fact] = []
    taken: set[str] = set()
    for entry in edited_facts((stacked.name, stacked.patch) for stacked in stack.patches):
        if entry.latest:
            fact = replace(entry.fact, id=_unique(entry.fact.id, entry.edit, taken))
            taken.add(fact.id)
            facts.append(fact)
    return FactSet(tuple(facts), "the current facts")


def _unique(name: str, patch: str, taken: Collection[str]) -> str:
    if name in taken:
        name = f"{patch}/{name}"
    while name in taken:
        name += "-again"
    return name


def _hidden(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(".")]
