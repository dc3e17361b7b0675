"""The recipe of an edit: a file, a shipped recipe or automatic settings, with overrides from the command line."""

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
from errata.cli.terminal import warn
from errata.editing.methods import BOUNDARY_SUFFIX, method_named, published_faults
from errata.editing.recipe import Recipe, corpus_path, read_recipe, shipped_recipe
from errata.editing.recipe_files import RecipeFile, read_file, shipped_file
from errata.editing.schedules import SCHEDULES
from errata.editing.shaping import SHAPERS
from errata.editors.registry import editor_settings
from errata.editors.table import EditorSettings
from errata.errors import ErrataError, Fault, FaultsError, InputError, OutputError, collect_errors
from errata.evaluation.controls import facts_to_scan, known_facts
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.statistics.corpus import open_corpus
from errata.statistics.settings import BUILTIN, NAMED_CORPORA
from errata.statistics.store import check_source
from errata.tracing.layer_scan import FORMAT, RULE, ScanSettings, scan_layers, scan_work
from errata.utils.files import cache_directory, write_json
from errata.utils.progress import Report
from errata.utils.text import did_you_mean


def choices_of(method: str, schedule: str | None, layers: str | None, shaping: str | None) -> dict[str, Any]:
    """Parse --schedule, --layers and --shaping, which override the recipe.

    Raises:
        FaultsError: for invalid values, and for a schedule that contradicts the method's +blue.
    """
    faults: list[Fault] = []
    choices: dict[str, Any] = {}
    if schedule is not None:
        choices["schedule"] = schedule
        if schedule not in SCHEDULES:
            faults.append(
                Fault(
                    "--schedule", f"unknown schedule {schedule!r}", _known(schedule, SCHEDULES), code="SCHEDULE_UNKNOWN"
                )
            )
        elif method.endswith(BOUNDARY_SUFFIX) and schedule != "boundary":
            what = f"{method!r} already means the schedule 'boundary'"
            faults.append(Fault("--schedule", what, "Remove +blue or --schedule", code="OPTION_CONFLICT"))
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
    """Parse --layers; the order is preserved.

    Raises:
        FaultsError: if it is not a list of integers, or has empty entries.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        return [int(part) for part in parts]
    except ValueError as error:
        has_gap = "" in parts and any(parts)
        what = "has an empty entry" if has_gap else "is not a list of integers"
        fault = Fault("--layers", f"{text!r} {what}", "Write layers as 4,5,6", code="LAYERS_INVALID")
        raise FaultsError("the command line", [fault]) from error


def _shaping_faults(text: str, kinds: Sequence[str]) -> list[Fault]:
    if "" in kinds:
        what = "has an empty entry" if any(kinds) else "is empty"
        remedy = "Write, for example, rect or rect,norm_cap or none"
        return [Fault("--shaping", f"{text!r} {what}", remedy, code="SHAPING_INVALID")]
    if "none" in kinds and len(kinds) > 1:
        what = f"{text!r} combines 'none' with other kinds"
        return [Fault("--shaping", what, "Use 'none' alone or remove it", code="SHAPING_INVALID")]
    unknown = [kind for kind in kinds if kind not in (*SHAPERS, "none")]
    return [
        Fault("--shaping", f"unknown shaping {kind!r}", _known(kind, [*SHAPERS, "none"]), code="SHAPING_UNKNOWN")
        for kind in unknown
    ]


def _known(name: str, names: Iterable[str]) -> str:
    """The available names, after the most similar one."""
    return f"{did_you_mean(name.lower(), names, cutoff=0.5)}Available: {', '.join(names)}"


def read_recipe_for(
    model: str,
    method: str,
    path: Path | None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    corpus: str | None = None,
    statistics: str | Path | None = None,
    schedule: str | None = None,
    layers: str | None = None,
    shaping: str | None = None,
    as_published: bool = False,
    chat: bool = False,
    default: Recipe | None = None,
) -> Recipe:
    """The recipe of an edit, with the overrides of the command line.

    Args:
        default: used without ``path``; None uses the recipe shipped for the model.

    Raises:
        InputError, FaultsError: for an invalid recipe, invalid overrides, or an unreadable text for key statistics.
    """
    method_named(method)
    recipe: Recipe | None = None
    with collect_errors("the recipe") as part:
        with part:
            if path is not None:
                recipe = read_recipe(path, method)
            else:
                recipe = default or shipped_recipe(recipe_name(model), method)
            recipe = chosen = _with_overrides(recipe, batch_size, seed, corpus, statistics, chat)
        with part:
            choices = choices_of(method, schedule, layers, shaping)
            if recipe is not None:
                chosen = recipe.with_choices(choices) if choices else recipe
                chosen = _as_published(chosen, recipe, choices) if as_published else chosen
        with part:
            if recipe is not None and recipe.needs_statistics:
                check_source(recipe.statistics, [step.layer for step in chosen.steps])
            elif recipe is None and corpus is not None:
                open_corpus(_absolute(corpus))
    return chosen


def read_settings_for(
    method: str, model: str, path: Path | None, *, seed: int | None = None, batch_size: int | None = None
) -> EditorSettings:
    """The settings of an editor for a model.

    Args:
        path: a recipe file, whose section ``editors`` is used; None uses that of the recipe shipped for the model.

    Raises:
        InputError, FaultsError: if the file cannot be read, or has invalid settings.
    """
    file: RecipeFile | None = None
    if path is not None:
        file = read_file(path)
        if method not in file.editors:
            raise InputError(
                f"{path} has no settings for {method!r}",
                remedy=f"Write them under 'editors: {{{method}: {{...}}}}', or leave out --recipe",
                code="RECIPE_WITHOUT_EDITOR",
            )
    else:
        try:
            file = shipped_file(recipe_name(model))
        except InputError:  # the defaults suit any model
            file = None
    given = {"seed": seed, "batch_size": batch_size}
    return editor_settings(method, file, {name: value for name, value in given.items() if value is not None})


def _with_overrides(
    recipe: Recipe,
    batch_size: int | None,
    seed: int | None,
    corpus: str | None,
    statistics: str | Path | None,
    chat: bool,
) -> Recipe:
    """Override the settings of a recipe that do not depend on the method."""
    if corpus is not None and statistics is not None:
        raise InputError(
            "--corpus and --statistics are both given",
            remedy="Give a text, or a file of statistics that were taken over one",
            code="OPTION_CONFLICT",
        )
    if statistics is not None:
        recipe = recipe.with_statistics(corpus_path(str(statistics), Path()))
    if corpus is not None:
        recipe = recipe.with_corpus(_absolute(corpus))
    own = {"seed": seed, "chat": chat or None}
    contexts = recipe.contexts.model_copy(update={name: value for name, value in own.items() if value is not None})
    return recipe.model_copy(update={"contexts": contexts, "batch_size": batch_size or recipe.batch_size})


def _as_published(chosen: Recipe, before: Recipe, choices: Mapping[str, Any]) -> Recipe:
    """``Recipe.as_published``; raises InputError if other options override everything that it would change."""
    if published_faults(before.model_dump()) and not published_faults(chosen.model_dump()):
        raise InputError(
            f"--as-published has no effect, because {', '.join(choices)} override what it changes",
            remedy="Remove one of these options",
            code="OPTION_CONFLICT",
        )
    return chosen.as_published()


def corpus_of(corpus: str | None, *, default: str) -> str:
    """The absolute path (or built-in name) of the text for key statistics, or the default.

    Raises:
        InputError: if it cannot be read.
    """
    place = default if corpus is None else _absolute(corpus)
    open_corpus(place)
    return place


def _absolute(corpus: str) -> str:
    """A corpus given on the command line; its path is relative to the working directory."""
    return corpus if corpus in NAMED_CORPORA else str(corpus_path(corpus, Path()))


def show_notes(recipe: Recipe, model: str) -> None:
    """Print notes about a recipe before it is used."""
    names = {_last_part(model), _last_part(recipe_name(model))}
    notes = []
    if _last_part(recipe.model) not in names:
        notes.append(f"the recipe was made for {recipe.model!r}; its settings are used unchanged for {model!r}")
    if recipe.schedule == "boundary" and len(recipe.layers) == 1:
        layer = recipe.layers[0]
        notes.append(f"with the single layer {layer}, the schedule 'boundary' is equivalent to the schedule 'single'")
    if recipe.is_automatic:
        notes.append(f"recipe: {recipe.source}")
    for note in notes:
        warn(f"note: {note}")


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


AFFORDABLE_MINUTES = 10.0  # longer layer scans are left to `errata locate`
TOKENS = 50_000  # tokens of text for the key statistics of the edit itself
_logger = logging.getLogger(__name__)


def comes_with_recipe(model: str) -> bool:
    """Whether errata ships a recipe for a model, by its name or its shape."""
    try:
        shipped_file(recipe_name(model))
    except InputError:
        return False
    return True


def automatic_recipe(
    model: str, method: str, outline: Outline, layers: Sequence[int] | None = None, why: str = ""
) -> Recipe:
    """Scale-free settings for a model without a shipped recipe.

    Args:
        layers: the critical layers; None chooses them by depth, in proportion to Llama 3.
        why: how the layers were found.

    Raises:
        InputError: for an unknown method.
    """
    row = method_named(method.removesuffix(BOUNDARY_SUFFIX))
    if layers is None:
        layers, why = layers_by_depth(outline.layers), "by depth, in proportion to Llama 3, untested on this model"
    statistics = {"corpus": BUILTIN, "tokens": TOKENS, "length": min(1024, outline.context_length)}
    recipe = unsearched_recipe(model, row, layers, outline.size.mlp_width, statistics).recipe
    if method.endswith(BOUNDARY_SUFFIX):
        recipe = with_boundary(recipe, layers)
    source = f"automatic: scale-free settings, untested on this model; layers: {why}"
    return recipe.model_copy(update={"method": method, "source": source})


def layers_of(model: LanguageModel, *, report: Report) -> tuple[tuple[int, ...] | None, str]:
    """The critical layers of a loaded model, by a scan that is cached for the user, and how they were found.

    For a stack the base model is scanned, since patches do not move the critical layers. None if a scan would take
    longer than ``AFFORDABLE_MINUTES`` on this machine, or finds no layer that accepts edits.
    """
    with model.edits.without(model.edits.terms):
        return _layers_of_base(model, report)


def _layers_of_base(model: LanguageModel, report: Report) -> tuple[tuple[int, ...] | None, str]:
    fingerprint = model.fingerprint()
    path = _cached_scan(fingerprint)
    if (cached := _read(path, fingerprint)) is not None:
        return tuple(cached["layers"]), f"{cached['why']} (cached from an earlier scan)"
    settings = ScanSettings()
    began = time.monotonic()
    facts = facts_to_scan(model, settings.count)
    # Selecting facts ran a forward pass over each of them, which measures the speed of this model on this machine.
    read = sum(len(model.tokenizer(fact.text)["input_ids"]) for fact in known_facts())
    speed = read * len(model.blocks) / max(time.monotonic() - began, 1e-3)
    minutes = scan_work(len(model.blocks), len(facts), settings) / speed / 60
    if minutes > AFFORDABLE_MINUTES:
        warn(
            f"note: trial edits would take about {minutes:.0f} minutes, so layers are chosen by depth; "
            f"`errata locate --model {model.name}` runs them, and --layers takes its proposal"
        )
        return None, ""
    warn(
        f"note: choosing layers by editing {len(facts)} well-known facts into one layer at a time, about "
        f"{max(1, round(minutes))} min, once per model (skip with --layers)"
    )
    scan = scan_layers(model, facts, settings, report=report)
    try:
        layers = scan.choose().layers
    except ErrataError as error:
        warn(f"note: {error.what}; layers are chosen by depth")
        return None, ""
    _cache(path, {"format": FORMAT, "fingerprint": fingerprint, "layers": list(layers), "why": scan.why})
    warn(f"note: layers {','.join(map(str, layers))} chosen in {scan.seconds:.0f} s, cached in {path}")
    return layers, scan.why


def _cached_scan(fingerprint: str) -> Path:
    """The cache file, keyed by everything that determines the result: model, rule, settings, facts and corpus."""
    settings = ScanSettings()
    facts = [fact.to_record() for fact in known_facts()]
    key = json.dumps([FORMAT, fingerprint, RULE, repr(settings), facts, open_corpus(settings.corpus).digest])
    return cache_directory("layers") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result of an earlier scan; None if there is none or it is unusable."""
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
            raise ValueError("it belongs to another model or is corrupt")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _logger.warning("the layers cached in %s cannot be used (%s); they are chosen again", path, error)
        return None
    return dict(record)


def _cache(path: Path, record: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record, indent=1)
    except (OSError, OutputError) as error:  # the edit continues without the cache
        _logger.warning("the layers cannot be cached in %s (%s)", path.parent, error)
