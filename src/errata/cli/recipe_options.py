"""Which recipe an edit takes, and what the command line puts in place of its numbers."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.benchmark.recipe_search import layers_by_depth, unsearched_recipe, with_boundary
from errata.cli.model_options import recipe_name
from errata.cli.terminal import error_console, warn
from errata.editing.methods import BOUNDARY_SUFFIX, method_named, published_faults
from errata.editing.recipe import Recipe, corpus_path, read_recipe, shipped_recipe
from errata.editing.recipe_files import shipped_file
from errata.editing.schedules import SCHEDULES
from errata.editing.shaping import SHAPERS
from errata.errors import ErrataError, Fault, FaultsError, InputError, collect_errors
from errata.evaluation.controls import facts_to_scan, known_facts
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.statistics.corpus import open_corpus
from errata.statistics.settings import BUILTIN, NAMED_CORPORA
from errata.statistics.store import check_corpus
from errata.tracing.layer_scan import FORMAT, RULE, ScanSettings, scan_layers, scan_work
from errata.utils.files import cache_directory, write_text
from errata.utils.progress import Report
from errata.utils.text import did_you_mean


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
            choices["layers"] = layers_named(layers)
        except FaultsError as error:
            faults += error.faults
    if shaping is not None:
        kinds = [kind.strip() for kind in shaping.split(",")]
        choices["shaping"] = [{"kind": kind} for kind in kinds if kind != "none"]
        faults += _shaping_faults(shaping, kinds)
    if faults:
        raise FaultsError("the command line", faults)
    return choices


def layers_named(text: str) -> list[int]:
    """What --layers names, in the order in which it does.

    Raises:
        FaultsError: if it is no list of numbers, or has empty places.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        return [int(part) for part in parts]
    except ValueError as error:
        has_gap = "" in parts and any(parts)
        what = "names no layer between two commas or at an end" if has_gap else "is no list of numbers"
        fault = Fault("--layers", f"{text!r} {what}", "Write them as 4,5,6")
        raise FaultsError("the command line", [fault]) from error


def _shaping_faults(text: str, kinds: Sequence[str]) -> list[Fault]:
    if "" in kinds:
        what = "names no shaping between two commas or at an end" if any(kinds) else "names no shaping"
        return [Fault("--shaping", f"{text!r} {what}", "Write one as rect, several as rect,norm_cap, and none as none")]
    if "none" in kinds and len(kinds) > 1:
        return [Fault("--shaping", f"{text!r} names 'none' beside others", "Leave out one of them")]
    unknown = [kind for kind in kinds if kind not in (*SHAPERS, "none")]
    return [Fault("--shaping", f"there is no shaping {kind!r}", _known(kind, [*SHAPERS, "none"])) for kind in unknown]


def _known(name: str, names: Iterable[str]) -> str:
    """What there is, and the nearest of it."""
    return f"{did_you_mean(name.lower(), names, cutoff=0.5)}Known: {', '.join(names)}"


def read_numbers(
    model: str,
    method: str,
    path: Path | None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    corpus: str | None = None,
    schedule: str | None = None,
    layers: str | None = None,
    shaping: str | None = None,
    as_published: bool = False,
    chat: bool = False,
    default: Recipe | None = None,
) -> Recipe:
    """The recipe that an edit takes, with what the command line puts in place of its numbers.

    Args:
        default: what is taken without ``path``; the recipe shipped for the model if None.

    Raises:
        InputError, FaultsError: whatever is wrong with the recipe, the choices or the text for key statistics.
    """
    method_named(method)
    numbers: Recipe | None = None
    with collect_errors("the recipe") as part:
        with part:
            if path is not None:
                numbers = read_recipe(path, method)
            else:
                numbers = default or shipped_recipe(recipe_name(model), method)
            numbers = _with_own(numbers, batch_size, seed, corpus, chat)
        with part:
            choices = choices_of(method, schedule, layers, shaping)
            if numbers is not None:
                chosen = numbers.with_choices(choices) if choices else numbers
                chosen = _as_published(chosen, numbers, choices) if as_published else chosen
        with part:
            if numbers is not None and numbers.needs_statistics:
                check_corpus(numbers.statistics)
            elif numbers is None and corpus is not None:
                open_corpus(_place_of(corpus))
    return chosen


def _with_own(recipe: Recipe, batch_size: int | None, seed: int | None, corpus: str | None, chat: bool) -> Recipe:
    """The recipe with the user's numbers in place of those that have nothing to do with the method."""
    if corpus is not None:
        recipe = recipe.with_corpus(_place_of(corpus))
    own = {"seed": seed, "chat": chat or None}
    contexts = recipe.contexts.model_copy(update={name: value for name, value in own.items() if value is not None})
    return recipe.model_copy(update={"contexts": contexts, "batch_size": batch_size or recipe.batch_size})


def _as_published(chosen: Recipe, before: Recipe, choices: Mapping[str, Any]) -> Recipe:
    """As ``Recipe.as_published``; where choices took the place of all that it would have changed, this is said."""
    if published_faults(before.model_dump()) and not published_faults(chosen.model_dump()):
        raise InputError(
            f"--as-published changes nothing here: {', '.join(choices)} took the place of what it changes",
            remedy="Leave out one of them",
        )
    return chosen.as_published()


def text_named(corpus: str | None, *, default: str) -> str:
    """The text for key statistics that an option names, by its whole path, or the default.

    Raises:
        InputError: if it cannot be read.
    """
    place = default if corpus is None else _place_of(corpus)
    open_corpus(place)
    return place


def _place_of(corpus: str) -> str:
    """Where a text lies that was named on the command line: its path counts from where the user stands."""
    return corpus if corpus in NAMED_CORPORA else str(corpus_path(corpus, Path()))


def show_notes(recipe: Recipe, model: str) -> None:
    """What a user should know of the numbers before they are used."""
    names = {_last_part(model), _last_part(recipe_name(model))}
    notes = []
    if _last_part(recipe.model) not in names:
        notes.append(f"the recipe's numbers are for {recipe.model!r}; they are taken for {model!r} as they are")
    if recipe.schedule == "boundary" and len(recipe.layers) == 1:
        which = f"the schedule 'boundary' has one layer here ({recipe.layers[0]}), both the first and the last"
        notes.append(f"{which}: this is the same as the schedule 'single'")
    if recipe.is_automatic:
        notes.append(f"the recipe is {recipe.source}")
    for note in notes:
        error_console().print(f"note: {note}", markup=False, highlight=False)


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


AFFORDABLE_MINUTES = 10.0  # a scan that takes longer than this is left to `errata locate`
TOKENS = 50_000  # of text for the key statistics of the edit itself
_logger = logging.getLogger(__name__)


def comes_with_recipe(model: str) -> bool:
    """Whether a recipe ships for a model, by its name or its shape."""
    try:
        shipped_file(recipe_name(model))
    except InputError:
        return False
    return True


def automatic_recipe(
    model: str, method: str, outline: Outline, layers: Sequence[int] | None = None, why: str = ""
) -> Recipe:
    """Scale-free settings for a model that no recipe ships for.

    Args:
        layers: the critical layers; by depth, as in Llama 3, if None.
        why: how they were found.

    Raises:
        InputError: if there is no such method.
    """
    row = method_named(method.removesuffix(BOUNDARY_SUFFIX))
    if layers is None:
        layers, why = layers_by_depth(outline.layers), "by depth, as in Llama 3, not tried on this model"
    statistics = {"corpus": BUILTIN, "tokens": TOKENS, "length": min(1024, outline.context_length)}
    recipe = unsearched_recipe(model, row, layers, outline.size.mlp_width, statistics).recipe
    if method.endswith(BOUNDARY_SUFFIX):
        recipe = with_boundary(recipe, layers)
    source = f"automatic: scale-free settings, tried on no fact of this model; layers: {why}"
    return recipe.model_copy(update={"method": method, "source": source})


def layers_of(model: LanguageModel, *, report: Report) -> tuple[tuple[int, ...] | None, str]:
    """The critical layers of a loaded model, by a scan that is kept in the user's cache, and how they were found.

    Of a stack it is the base that is scanned: patches do not move the critical layers, and what is kept is kept for the
    base. None where a scan would take longer than ``AFFORDABLE_MINUTES`` on this machine, or shows no layer that takes
    edits.
    """
    with model.edits.without(model.edits.terms):
        return _layers_of_base(model, report)


def _layers_of_base(model: LanguageModel, report: Report) -> tuple[tuple[int, ...] | None, str]:
    fingerprint = model.fingerprint()
    path = _cached_scan(fingerprint)
    if (kept := _read(path, fingerprint)) is not None:
        return tuple(kept["layers"]), f"{kept['why']} (kept from an earlier scan)"
    settings = ScanSettings()
    began = time.monotonic()
    facts = facts_to_scan(model, settings.count)
    # Asking the facts reads each once through all blocks: that tells how fast this machine is with this model.
    asked = sum(len(model.tokenizer(fact.text)["input_ids"]) for fact in known_facts())
    speed = asked * len(model.blocks) / max(time.monotonic() - began, 1e-3)
    minutes = scan_work(len(model.blocks), len(facts), settings) / speed / 60
    if minutes > AFFORDABLE_MINUTES:
        warn(
            f"note: trying layers would take about {minutes:.0f} minutes here, so they are chosen by depth; "
            f"`errata locate --model {model.name}` does it, and --layers takes what it proposes"
        )
        return None, ""
    warn(
        f"note: choosing layers: {len(facts)} well-known facts are written into one layer at a time, about "
        f"{max(1, round(minutes))} min, once for this model (--layers skips it)"
    )
    scan = scan_layers(model, facts, settings, report=report)
    try:
        layers = scan.choose().layers
    except ErrataError as error:
        warn(f"note: {error.what}; they are chosen by depth")
        return None, ""
    _keep(path, {"format": FORMAT, "fingerprint": fingerprint, "layers": list(layers), "why": scan.why})
    warn(f"note: layers {','.join(map(str, layers))} chosen in {scan.seconds:.0f} s, kept in {path}")
    return layers, scan.why


def _cached_scan(fingerprint: str) -> Path:
    """One file for each model and all that decides the result: the rule, the settings, the facts and the text."""
    settings = ScanSettings()
    facts = [fact.to_record() for fact in known_facts()]
    key = json.dumps([FORMAT, fingerprint, RULE, repr(settings), facts, open_corpus(settings.corpus).digest])
    return cache_directory("layers") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """What an earlier scan found; None if there is nothing, or nothing that can be used."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        layers = record["layers"]
        usable = (
            record["fingerprint"] == fingerprint
            and isinstance(record["why"], str)
            and bool(layers)
            and all(type(layer) is int and layer >= 0 for layer in layers)
        )
        if not usable:
            raise ValueError("it belongs to another model or is damaged")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _logger.warning("the layers kept in %s cannot be used (%s); they are chosen anew", path, error)
        return None
    return dict(record)


def _keep(path: Path, record: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:  # the edit goes on; only the next one has to choose again
        _logger.warning("the layers cannot be kept in %s (%s)", path.parent, error)
