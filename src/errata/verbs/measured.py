"""What was measured of a model that is to be published: found beside it or in a named file, and checked to be of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from errata.benchmark.recorded import recorded_rows
from errata.errors import InputError
from errata.evaluation.results_file import Results, Row, read_results
from errata.report.card import Measured, is_local, shown_base
from errata.run_directory import is_run, open_run
from errata.stack import Stack

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
