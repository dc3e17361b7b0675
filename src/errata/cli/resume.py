"""``errata edit --resume``: go on with a run, with what it began with and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from errata.cli.edit_output import check_output, finish_run
from errata.cli.model_options import Placement
from errata.cli.terminal import error_console
from errata.editing.recipe import Recipe
from errata.errors import Fault, FaultsError
from errata.facts.fact import FactSet
from errata.facts.files import read_facts
from errata.runs.loading import load_model
from errata.runs.run import RunDirectory, open_run
from errata.utils.files import file_digest, is_file


def resume_run(
    path: Path,
    new: Sequence[str],
    facts: Path | None,
    model: str | None,
    decide: Mapping[str, object],
    recipe_for: Callable[..., Recipe],
    out: Path | None,
    where: Placement,
    json: Path | None,
    *,
    trust_remote_code: bool,
) -> None:
    """Open a run, see that what else was given is what it began with, and do what is left of it.

    Args:
        new: options on the command line that are for new runs only.
        model: where the base is now, if that was given.
        decide: options on the command line that choose or change a recipe, with their values.
        recipe_for: what these make of a model's recipe for a method.

    Raises:
        FaultsError: everything that is not what the run began with; nothing has happened.
    """
    if out is not None:
        check_output(out)
    run = open_run(path)
    faults = [Fault(option, "it cannot be given together with --resume", "Leave it out") for option in new]
    if facts is not None and not _same_facts(read_facts(facts), run.facts):
        remedy = "Leave it out, or begin a new run"
        faults.append(Fault("--facts", f"{facts} does not hold the facts of the run", remedy))
    base = model or run.manifest.model
    if decide:
        method = decide.get("--method", run.recipe.method)
        # What errata chose by itself is not chosen again: the run has it.
        ours = run.recipe if run.recipe.is_automatic and method == run.recipe.method else None
        faults += _recipe_faults(run.recipe, recipe_for(base, str(method), default=ours), decide)
    if where["dtype"] is not None and str(where["dtype"]) != f"torch.{run.manifest.dtype}":
        faults.append(Fault("--dtype", f"the run is in {run.manifest.dtype}", "Leave it out"))
    if faults:
        raise FaultsError(f"going on with {path}", faults)
    _note_changed_source(run)
    loaded = load_model(base, **where, trust_remote_code=trust_remote_code)
    finish_run(run, loaded, base, out, json)


def _same_facts(given: FactSet, ours: FactSet) -> bool:
    """Whether a file still holds a run's facts; control questions that the run drew for itself do not count."""
    if len(given) != len(ours):
        return False
    bare = [
        replace(fact, own=fact.own if asked.own else (), unrelated=fact.unrelated if asked.unrelated else ())
        for asked, fact in zip(given, ours, strict=True)
    ]
    return FactSet(tuple(bare), ours.source).digest() == given.digest()


def _recipe_faults(ours: Recipe, theirs: Recipe, decide: Mapping[str, object]) -> list[Fault]:
    """What the options would make another: those that name one thing each by themselves, the others by what differs."""
    faults = [
        Fault(option, f"{_shown(_OF[option](theirs))}, but the run has {_shown(_OF[option](ours))}", "Leave it out")
        for option in decide
        if option in _OF and _OF[option](theirs) != _OF[option](ours)
    ]
    one, other = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    fields = [name for name in one if one[name] != other[name] and name != "source"]
    if fields and not faults:
        options = ", ".join(decide)
        faults.append(Fault(options, f"the run has another {' and '.join(fields)}", "Leave it out, or begin a new run"))
    return faults


_OF: Mapping[str, Callable[[Recipe], object]] = {
    "--method": lambda recipe: recipe.method,
    "--batch-size": lambda recipe: recipe.batch_size,
    "--seed": lambda recipe: recipe.contexts.seed,
    "--chat": lambda recipe: recipe.contexts.chat,
    "--schedule": lambda recipe: recipe.schedule,
    "--layers": lambda recipe: list(recipe.layers),
    "--shaping": lambda recipe: [shaping.kind for shaping in recipe.shaping],
    "--corpus": lambda recipe: recipe.statistics.corpus,
}


def _shown(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _note_changed_source(run: RunDirectory) -> None:
    source = Path(run.manifest.facts_source)
    if is_file(source) and file_digest(source) != run.manifest.facts_source_sha256:
        error_console().print(
            f"note: {source} has changed since the run began; the run goes on with the copy that it keeps",
            markup=False,
            highlight=False,
        )
