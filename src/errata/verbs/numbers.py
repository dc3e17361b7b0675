"""Which recipe an edit takes, and what the command line puts in place of its numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from errata.errors import Fault, FaultsError, InputError
from errata.methods import BOUNDARY_SUFFIX
from errata.recipe import Recipe, corpus_path, read_recipe, shipped_recipe
from errata.schedules import SCHEDULES
from errata.shaping import SHAPERS
from errata.verbs.console import error_console
from errata.verbs.models import recipe_name


def choices_of(method: str, schedule: str | None, layers: str | None, shaping: str | None) -> dict[str, Any]:
    """What --schedule, --layers and --shaping put in place of the recipe's.

    Raises:
        FaultsError: for what cannot be read, and for a schedule that the method's name speaks against.
    """
    faults: list[Fault] = []
    choices: dict[str, Any] = {}
    if schedule is not None:
        choices["schedule"] = schedule
        if schedule not in SCHEDULES:
            faults.append(Fault("--schedule", f"there is no schedule {schedule!r}", _known(schedule, SCHEDULES)))
        elif method.endswith(BOUNDARY_SUFFIX) and schedule != "boundary":
            faults.append(Fault("--schedule", f"{method!r} is the boundary schedule", "Leave out one of the two"))
    if layers is not None:
        try:
            choices["layers"] = [int(part) for part in layers.split(",")]
        except ValueError:
            faults.append(Fault("--layers", f"{layers!r} is no list of numbers", "Write them as 4,5,6"))
    if shaping is not None:
        kinds = [kind.strip() for kind in shaping.split(",") if kind.strip() not in ("", "none")]
        choices["shaping"] = [{"kind": kind} for kind in kinds]
        unknown = [kind for kind in kinds if kind not in SHAPERS]
        faults += [
            Fault("--shaping", f"there is no shaping {kind!r}", f"Known: {', '.join(SHAPERS)}, none")
            for kind in unknown
        ]
    if faults:
        raise FaultsError("the command line", faults)
    return choices


def _known(name: str, names: Iterable[str]) -> str:
    """What there is, and the nearest of it."""
    near = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(names)}"


def numbers_of(
    model: str,
    method: str,
    path: Path | None,
    batch_size: int | None,
    seed: int | None,
    corpus: str | None,
    choices: Mapping[str, Any],
    *,
    as_published: bool,
) -> Recipe:
    if path is not None:
        numbers = read_recipe(path, method, as_published=as_published)
    else:
        numbers = shipped_recipe(recipe_name(model), method, as_published=as_published)
    if corpus is not None:
        numbers = numbers.with_corpus(corpus if corpus == "lab" else corpus_path(corpus, Path()))
    contexts = numbers.contexts if seed is None else numbers.contexts.model_copy(update={"seed": seed})
    numbers = numbers.model_copy(update={"contexts": contexts, "batch_size": batch_size or numbers.batch_size})
    numbers = numbers.with_choices(choices) if choices else numbers
    if as_published:
        plain = numbers_of(model, method, path, batch_size, seed, corpus, choices, as_published=False)
        if plain.model_dump(exclude={"source"}) == numbers.model_dump(exclude={"source"}):
            raise InputError(
                f"--as-published changes nothing here: {', '.join(choices)} took the place of what it changes",
                remedy="Leave out one of them",
            )
    return numbers


def show_notes(recipe: Recipe, model: str) -> None:
    """What a user should know of the numbers before they are used."""
    names = {_last_part(model), _last_part(recipe_name(model))}
    notes = []
    if _last_part(recipe.model) not in names:
        notes.append(f"the recipe's numbers are for {recipe.model!r}; they are taken for {model!r} as they are")
    if recipe.is_automatic:
        notes.append(f"the recipe is {recipe.source}")
    for note in notes:
        error_console().print(f"note: {note}", markup=False, highlight=False)


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
