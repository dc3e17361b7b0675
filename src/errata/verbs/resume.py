"""``errata edit --resume``: go on with a run, with what it began with and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errata.errors import Fault, FaultsError
from errata.facts_io import read_facts
from errata.loading import load_model
from errata.output import file_digest, is_file
from errata.recipe import Recipe
from errata.run_directory import RunDirectory, open_run
from errata.verbs.console import Placement, error_console
from errata.verbs.finish import finish_run
from errata.verbs.saving import check_output


def resume_run(
    path: Path,
    new: Sequence[str],
    facts: Path | None,
    model: str | None,
    method: str | None,
    recipe_for: Callable[[str, str], Recipe] | None,
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
        recipe_for: what the command line makes of a model's recipe for a method; None if it says nothing of it.

    Raises:
        FaultsError: everything that is not what the run began with; nothing has happened.
    """
    if out is not None:
        check_output(out)
    run = open_run(path)
    faults = [Fault(option, "it cannot be given together with --resume", "Leave it out") for option in new]
    if facts is not None and read_facts(facts).digest() != run.facts.digest():
        remedy = "Leave it out, or begin a new run"
        faults.append(Fault("--facts", f"{facts} does not hold the facts of the run", remedy))
    base = model or run.manifest.model
    if recipe_for is not None:
        faults += _recipe_faults(run, recipe_for(base, method or run.recipe.method))
    if where["dtype"] is not None and str(where["dtype"]) != f"torch.{run.manifest.dtype}":
        faults.append(Fault("--dtype", f"the run is in {run.manifest.dtype}", "Leave it out"))
    if faults:
        raise FaultsError(f"going on with {path}", faults)
    _note_changed_source(run)
    loaded = load_model(base, **where, trust_remote_code=trust_remote_code)
    finish_run(run, loaded, base, out, json)


def _recipe_faults(run: RunDirectory, other: Recipe) -> list[Fault]:
    """Fields of the recipe that the options would make another."""
    ours, theirs = _plain(run.recipe), _plain(other)
    return [
        Fault("the recipe", f"{name!r} is {theirs[name]} there, and {ours[name]} in the run", "Begin a new run for it")
        for name in ours
        if ours[name] != theirs[name] and name != "source"
    ]


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def _note_changed_source(run: RunDirectory) -> None:
    source = Path(run.manifest.facts_source)
    if is_file(source) and file_digest(source) != run.manifest.facts_source_sha256:
        error_console().print(
            f"note: {source} has changed since the run began; the run goes on with the copy that it keeps",
            markup=False,
            highlight=False,
        )
