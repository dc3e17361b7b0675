"""``errata save``."""

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
from errata.cli.model_options import PATCH_SUFFIX
from errata.cli.terminal import JsonOption, counted, tell, warn, write_json
from errata.errors import ErrataError, InputError
from errata.facts.fact import Fact, FactSet
from errata.facts.files import write_facts
from errata.models.hub import address, check_login, check_repository, upload
from errata.models.loading import lasting_name
from errata.patches.patch import Patch
from errata.patches.stack import FILE, Stack, has_stack, is_stack, read_stack, write_stack
from errata.report.card import Measured, hub_name, is_local, ledger_of, model_card, shown_base
from errata.results.records import Results, Row, read_results
from errata.runs.loading import check_there, load_model, stack_of_run, stack_under
from errata.runs.run import is_run, open_run
from errata.utils.files import check_new, new_directory, write_text

CARD, FACTS = "README.md", "facts.jsonl"
SAVE_EXAMPLE = "Example: errata save edited --out published"

ModelArgument = Annotated[
    str, typer.Argument(help="A patch (.safetensors), a stack, an edited model, or a run.", metavar="MODEL")
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(help="What `errata evaluate --json` or `errata edit --json` wrote; default: what lies beside MODEL."),
]
BaseOption = Annotated[
    str | None, typer.Option(help="The name on the hub of a base that was edited from a local directory.")
]
app = typer.Typer()


@app.command("save", epilog=SAVE_EXAMPLE)
def save(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new directory.")],
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
        raise InputError(f"{out} lies in {model}, which is copied there", remedy="Give a directory elsewhere")
    with new_directory(out) as partial:
        write_publication(publication, partial, name=out.absolute().name, card_only=card_only)
    files = files_of(out)
    show_notes(publication, card_only=card_only)
    size = size_text(sum(count for _, count in files))
    facts = counted(len(publication.stack.facts), "fact")
    tell(f"Wrote {out}: {counted(len(files), 'file')}, {size}; {CARD} tells of {facts}.")
    write_json(json, record_of(publication, [name for name, _ in files]))


def show_notes(publication: Publication, *, card_only: bool = False) -> None:
    """What whoever publishes should know before."""
    if not publication.measured.rows:
        warn("note: nothing was measured, and the card says so; --results takes what `errata evaluate --json` wrote")
    if card_only:
        return
    if paths := publication.local_paths():
        warn(f"note: the files name what is on this machine alone: {', '.join(paths)}")
    if hidden := publication.left_out():
        warn(f"note: left out, for their names begin with a dot: {', '.join(hidden)}")


def record_of(publication: Publication, files: list[str]) -> dict[str, object]:
    """A publication for machines."""
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
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="Where to; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    results: ResultsOption = None,
    base: BaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False,
    json: JsonOption = None,
) -> None:
    """Upload the output of `errata save` to the Hugging Face hub, after showing its files.

    Uses the access token of `hf auth login` or the environment variable HF_TOKEN.
    """
    check_repository(to)
    if not yes and not sys.stdin.isatty():
        raise InputError(
            "nobody is there to say yes to it", remedy="Add --yes, or see with `errata save` what it would be"
        )
    publication = publication_of(model, results, base)
    with tempfile.TemporaryDirectory(prefix="errata-push-") as folder:
        directory = Path(folder)
        # Weights may be large: they are uploaded from where they are.
        write_publication(publication, directory, name=to.rpartition("/")[2], repository=to, copy=_link)
        files = files_of(directory)
        seen = "private: only you and those whom you let can see it" if private else "public: everybody can see it"
        tell(f"To {address(to)} ({seen}):")
        for name, count in files:
            tell(f"  {name}  {size_text(count)}")
        total = size_text(sum(count for _, count in files))
        tell(f"{counted(len(files), 'file')}, {total}; {counted(len(publication.stack.facts), 'fact')}.")
        show_notes(publication)
        check_login()
        if not yes and not typer.confirm("Upload?"):
            raise ErrataError("nothing was uploaded", remedy="You did not say yes")
        done = upload(directory, to, private=private, message=_message(len(publication.stack.facts)))
    if done.others:
        warn(f"note: what was there before and is none of these stays: {', '.join(done.others)}")
    tell(f"Uploaded to {done.url}")
    record = record_of(publication, [name for name, _ in files])
    write_json(json, {**record, "url": done.url, "private": private, "others": list(done.others)})


def _message(facts: int) -> str:
    return f"{counted(facts, 'fact')} edited by errata"


def _link(source: str, target: str) -> None:
    os.symlink(Path(source).resolve(), target)  # noqa: PTH211  (as copytree calls it)


RECORD = "errata.json"
_AGAIN = "Measure it: errata evaluate --model MODEL --facts FACTS --against BASE --json FILE"


def measured_of(name: str, stack: Stack, results: Path | None) -> Measured:
    """What is known of a model; without rows where nothing was measured.

    Args:
        name: of a patch, a stack, a full model or a run.
        stack: all that is in it.
        results: a file that `errata edit --json` or `errata evaluate --json` wrote; None looks beside the model, and
            in the patch that is on top.

    Raises:
        InputError: if results cannot be read, or are not of this model.
    """
    beside = Path(name) / RECORD
    if results is None and is_run(name):
        run = open_run(Path(name))
        left_alone = tuple(id_ for entry in run.ledger.of("batch") for id_ in entry.about["left_alone"])
        return _of_edit(stack, tuple(recorded_rows(run)), left_alone, {})
    if results is None and not beside.is_file():
        return _of_patch(stack)
    path = results or beside
    found = read_results(path)
    if results is not None and not found.rows:
        raise InputError(f"there are no rows in {path}: nothing was measured", remedy=_AGAIN)
    if "left_alone" in found.about:
        _check_edit(stack, found, path)
        return _of_edit(stack, found.rows, _texts(found.about["left_alone"]), _absent(found))
    if "against_fingerprint" in found.about:
        return _of_evaluation(stack, found, path)
    raise InputError(f"{path} does not say which weights it is of", remedy=_AGAIN)


def _of_patch(stack: Stack) -> Measured:
    """What the patch on top keeps of its own edit, if it is on the same weights here as it was then."""
    top = stack.patches[-1]
    found = top.patch.results
    if found is None or top.missing or top.forced:
        return Measured()
    return _of_edit(stack, found.rows, found.left_alone, found.absent)


def _of_edit(stack: Stack, rows: tuple[Row, ...], left_alone: tuple[str, ...], absent: Mapping[str, str]) -> Measured:
    return Measured(rows, "errata edit", _state(stack, len(stack.patches) - 1), absent, left_alone)


def _check_edit(stack: Stack, found: Results, path: Path) -> None:
    """Raises InputError unless results are those of the edit that is on top."""
    about = found.about
    made = [
        place
        for place, patch in enumerate(stacked.patch for stacked in stack.patches)
        if about.get("fingerprint") == patch.fingerprint
        and about.get("facts") == [fact.to_record() for fact in patch.facts]
        and about.get("recipe") == patch.recipe.model_dump(mode="json")
    ]
    if not made:
        raise InputError(f"the results in {path} are of another edit: other facts, recipe or weights", remedy=_AGAIN)
    edit, *later = stack.patches[made[-1] :]
    if later:
        names = ", ".join(repr(stacked.name) for stacked in later)
        raise InputError(f"the results in {path} are of {edit.name!r}, and {names} came after it", remedy=_AGAIN)
    if edit.missing or edit.forced:
        what = f"the results in {path} are of {edit.name!r} on other weights than those that it stands on here"
        raise InputError(what, remedy=_AGAIN)


def _of_evaluation(stack: Stack, found: Results, path: Path) -> Measured:
    """Results of `errata evaluate`: their base must be this one, and the model must not be a known earlier state."""
    about = found.about
    states = [stack.fingerprint, *(stacked.patch.fingerprint for stacked in stack.patches[1:])]
    if about.get("fingerprint") in states:
        raise InputError(f"the results in {path} are of the model before it was edited", remedy=_AGAIN)
    before = ""
    if (against := about["against_fingerprint"]) is not None:
        if against not in states:
            raise InputError(
                f"the results in {path} are against {about.get('against')!r}, whose weights are not those of the base "
                f"{stack.base!r} in {stack.dtype}",
                remedy=_AGAIN,
            )
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
    """The base with so many patches in it, in words."""
    base = f"the base {shown_base(stack.base)}"
    return base + (f" with {', '.join(stacked.name for stacked in stack.patches[:patches])}" if patches else "")


@dataclass(frozen=True, slots=True)
class Publication:
    """What is published.

    Attributes:
        stack: all that is in the model.
        weights: the directory of a full model; None where the patches are published alone.
    """

    stack: Stack
    measured: Measured
    weights: Path | None

    def local_paths(self) -> list[str]:
        """Paths of this machine that stand in the files, and that whoever gets them can read."""
        named = [self.stack.base]
        for stacked in self.stack.patches:
            named += [stacked.patch.base, stacked.patch.recipe.statistics.corpus]
        return [name for name in dict.fromkeys(named) if name != "lab" and is_local(name)]

    def left_out(self) -> list[str]:
        """Hidden files beside the weights, which are not published: they are tools' own, and may hold secrets."""
        return [] if self.weights is None else sorted(f.name for f in self.weights.iterdir() if f.name.startswith("."))


def publication_of(model: str, results: Path | None, base: str | None) -> Publication:
    """Everything but the files.

    Args:
        model: a patch, a stack, a full model or a run.
        results: see ``measured_of``.
        base: the name of the base for readers elsewhere, where it is a directory of this machine.

    Raises:
        InputError: if nothing was edited there, or results are not of it.
    """
    stack = _stack_of(model)
    if not stack.patches:
        raise InputError(f"{model!r} has no patches: it is its base", remedy="Edit it first")
    measured = measured_of(model, stack, results)
    if base is not None:
        if hub_name(base) is None:
            what = f"{base!r} is not a name on the hub"
            raise InputError(what, remedy="--base takes OWNER/NAME, under which readers find the base")
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
    """Fill a directory that is empty, and new; see ``output.new_directory``.

    Args:
        name: what the model is called in its card.
        repository: its name on the hub, where it has one.
        card_only: write neither weights nor patches.
        copy: how a file of the weights gets there, from one path to another.
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
        (directory / file).unlink(missing_ok=True)  # the copies, of which they take the place
    write_facts(_holding(stack), directory / FACTS)
    card = model_card(stack, publication.measured, name=name, with_weights=weights is not None, repository=repository)
    write_text(directory / CARD, card)


def files_of(directory: Path) -> list[tuple[str, int]]:
    """(path, bytes) of every file, in order."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return [(file.relative_to(directory).as_posix(), file.stat().st_size) for file in files]


def size_text(count: int) -> str:
    """``1.2 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _check_contents(directory: Path) -> None:
    """Raises InputError where publishing a folder would publish what is elsewhere, or what is no file."""
    root = directory.resolve()
    visible = [
        path
        for path in sorted(directory.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(directory).parts)
    ]
    if outside := [path for path in visible if path.is_symlink() and not path.resolve().is_relative_to(root)]:
        named = ", ".join(f"{path} -> {path.resolve()}" for path in outside[:5]) + (", …" if len(outside) > 5 else "")
        raise InputError(
            f"{counted(len(outside), 'link')} in {directory} lead out of it, and what is there would be published: "
            f"{named}",
            remedy="Put copies in their place, or remove them",
        )
    if others := [path for path in visible if not path.is_file() and not path.is_dir()]:
        raise InputError(f"{others[0]} is neither a file nor a directory", remedy="Remove it")


def _stack_of(model: str) -> Stack:
    path = Path(model)
    if path.is_file() and path.suffix == PATCH_SUFFIX:
        return _stack_of_patch(path)
    if has_stack(model):
        return read_stack(path)
    if is_run(model):
        run = open_run(path)
        if run.batches_done < run.batches:
            raise InputError(
                f"the run {model} has done {run.batches_done} of its {run.batches} batches",
                remedy=f"Go on with it first: errata edit --resume {model}",
            )
        return stack_of_run(model)
    check_there(model)
    raise InputError(
        f"there is nothing that errata edited in {model!r}",
        remedy="Give a patch (.safetensors), a stack, an edited model or a run",
    )


def _stack_of_patch(path: Path) -> Stack:
    """A patch alone on its base; with those that were in its base before, where it was solved on top of others."""
    patch = Patch.load(path)
    if not (has_stack(patch.base) or is_run(patch.base)):
        base = lasting_name(patch.base)
        return Stack(base, patch.fingerprint, patch.dtype).with_patch(path.stem, patch)
    import torch

    under = load_model(patch.base, dtype=getattr(torch, patch.dtype))
    fingerprint = under.fingerprint()
    if fingerprint != patch.fingerprint:
        raise InputError(
            f"{path} was made on top of the edits in {patch.base}, which is not what it was then",
            remedy="Put it back as it was, or give the stack or the model that has both",
        )
    return stack_under(under, patch.base, fingerprint).with_patch(path.stem, patch)


def _holding(stack: Stack) -> FactSet:
    """The facts that hold: of those that speak of the same thing the last one, each with an id of its own."""
    facts: list[Fact] = []
    taken: set[str] = set()
    for entry in ledger_of(stack):
        if not entry.again_by:
            fact = replace(entry.fact, id=_free(entry.fact.id, entry.patch, taken))
            taken.add(fact.id)
            facts.append(fact)
    return FactSet(tuple(facts), "the facts that hold")


def _free(name: str, patch: str, taken: Collection[str]) -> str:
    if name in taken:
        name = f"{patch}/{name}"
    while name in taken:
        name += "-again"
    return name


def _hidden(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(".")]
