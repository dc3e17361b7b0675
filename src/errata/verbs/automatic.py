"""An edit without a recipe: layers by a scan, kept for next time, and scale-free settings."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.benchmark.recipe_file import layers_by_depth, unsearched_recipe
from errata.benchmark.recipe_numbers import with_boundary
from errata.cache import cache_directory
from errata.errors import ErrataError, InputError
from errata.known_facts import facts_to_scan, known_facts
from errata.layer_scan import FORMAT, RULE, ScanSettings, scan_layers, scan_work
from errata.methods import BOUNDARY_SUFFIX, method_named
from errata.models.language_model import LanguageModel
from errata.models.outline import Outline
from errata.output import write_text
from errata.progress import Report
from errata.recipe import Recipe
from errata.recipe_files import shipped_file
from errata.recipe_settings import BUILTIN
from errata.statistics.corpus import open_corpus
from errata.verbs.models import recipe_name
from errata.verbs.terminal import warn

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
    recipe = unsearched_recipe(model, row, layers, outline.columns, statistics).recipe
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
