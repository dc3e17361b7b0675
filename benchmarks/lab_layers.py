"""Which layers of the embedded model hold its facts: causal tracing, and editing each layer alone.

    python benchmarks/lab_layers.py --facts 200 --edits 25 --out docs/lab_layers.json

Tracing (Meng et al., 2022, "Locating and Editing Factual Associations in GPT", section 2): Gaussian noise on the
subject's embeddings corrupts the answer; then the state of one place in the clean run is restored at the subject's last
token, and the resulting increase of the probability of the answer's first token is the place's indirect effect.
Editing: a single layer is edited with MEMIT's recipe, and the edit removed. Writes JSON, prints Markdown tables.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import markdown_table

from errata.editing.recipe import shipped_recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import ErrataError
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.lab.world import World
from errata.models.language_model import LanguageModel
from errata.models.likelihood import score
from errata.results.metrics import Metric
from errata.results.records import Summary, When, summarise
from errata.statistics.store import moments_for, packaged_moments
from errata.tracing.causal_tracing import Component, Position, estimates, prompts_of, trace, window_around
from errata.utils.files import write_json
from errata.utils.progress import Report, silent
from errata.utils.provenance import software_versions

SEED = 900  # for tuning: no report uses it
NOISE = 3.0  # in standard deviations of the embedding entries of the subjects' tokens
METRICS = {
    Metric.EFFICACY_ACCURACY: "efficacy",
    Metric.GENERALISATION_ACCURACY: "generalisation",
    Metric.SAME_SUBJECT_ACCURACY: "same subject",
    Metric.SPECIFICITY_ACCURACY: "specificity",
}


def known_facts(model: LanguageModel, world: World, *, seed: int) -> list[Fact]:
    """One fact per person, of a random relation in a random wording, that the model answers correctly."""
    facts = lab_facts(world, len(world.people), seed=seed)
    scores = score(model, [(fact.text, fact.old or "") for fact in facts])
    return [fact for fact, found in zip(facts, scores, strict=True) if found.correct]


def measure_tracing(
    model: LanguageModel, world: World, count: int, *, samples: int, window: int, report: Report = silent
) -> dict[str, Any]:
    """Average indirect effects with 95 % bootstrap intervals over facts.

    Raises:
        ErrataError: if the model knows no fact.
    """
    known = known_facts(model, world, seed=SEED)
    if not known:
        raise ErrataError("the model answers no fact correctly", remedy="Train it longer")
    facts = known[:count]
    generator = torch.Generator().manual_seed(SEED)
    started = time.perf_counter()
    found = trace(
        model,
        prompts_of(model, facts),
        samples=samples,
        window=window,
        noise=NOISE,
        positions=(Position.SUBJECT_LAST,),
        generator=generator,
        report=report,
    )
    probabilities = np.stack([found.clean, found.corrupted, found.clean - found.corrupted], axis=1)
    totals = dict(zip(("clean", "corrupted", "total_effect"), estimates(probabilities), strict=True))
    effects = {part: estimates(found.effects(part, Position.SUBJECT_LAST)) for part in Component}
    layers = len(model.blocks)
    return {
        "facts": len(facts),
        "known": len(known),
        "asked": len(world.people),
        "samples": samples,
        "noise_in_sigma": NOISE,
        "sigma": found.sigma,
        "window": window,
        "seed": SEED,
        "seconds": time.perf_counter() - started,
        **totals,
        "layers": [
            {"layer": layer, "window": list(window_around(layer, window, layers))}
            | {str(part): effects[part][layer] for part in Component}
            for layer in range(layers)
        ],
    }


def measure_editing(model: LanguageModel, world: World, count: int, *, report: Report = silent) -> dict[str, Any]:
    """Accuracies after MEMIT edited ``count`` facts into a single layer, for each layer; the model is restored.

    Raises:
        EditError: if a layer cannot be edited.
    """
    facts = lab_facts(world, count, seed=SEED)
    layers = range(len(model.blocks))
    recipe = shipped_recipe("lab", "memit")
    fingerprint = model.fingerprint()
    started = time.perf_counter()
    # One pass over the corpus for all layers; each layer's editor then finds its own in the cache.
    moments_for(model, list(layers), recipe.statistics, read_only=packaged_moments())
    before = _accuracies(model, facts, "before")
    edited = []
    for layer in layers:
        report("layers edited", layer, len(layers))
        editor = Editor(model, recipe.model_copy(update={"schedule": "single", "layers": (layer,)}))
        patch = editor.apply(facts)
        seconds = sum(record.seconds for record in editor.records)
        edited.append(
            {"layer": layer, "norm": patch.norms()[layer], "seconds": seconds} | _accuracies(model, facts, "after")
        )
        patch.undo(model)
    report("layers edited", len(layers), len(layers))
    if model.fingerprint() != fingerprint:
        raise ErrataError("undoing the edits did not restore the model's weights", remedy="Report this as a bug")
    return {
        "facts": count,
        "seed": SEED,
        "recipe": recipe.model_dump(mode="json", exclude={"layers", "schedule"}) | {"schedule": "single"},
        "seconds": time.perf_counter() - started,
        "before": before,
        "layers": edited,
    }


def _accuracies(model: LanguageModel, facts: Sequence[Fact], when: When) -> dict[str, Any]:
    summaries: dict[str, Summary] = {found.metric: found for found in summarise(evaluate_facts(model, facts), when)}
    wanted = ("mean", "low", "high", "n", "prompts")
    return {
        str(metric): {key: asdict(summaries[metric])[key] for key in wanted}
        for metric in METRICS
        if metric in summaries
    }


def markdown(tracing: Mapping[str, Any], editing: Mapping[str, Any]) -> str:
    """Both measurements as tables, each with a note."""
    heads = ("layer", "block output", "MLP outputs", "attention outputs", "blocks of the window")
    lines = [
        (
            str(entry["layer"]),
            *(_cell(entry[part], 1, 3) for part in Component),
            "–".join(str(layer) for layer in dict.fromkeys((entry["window"][0], entry["window"][-1]))),
        )
        for entry in tracing["layers"]
    ]
    note = (
        f"Average indirect effect on the probability of the answer's first token [95 % interval over "
        f"{tracing['facts']} facts], restored at the subject's last token; {tracing['samples']} noise samples of "
        f"{tracing['noise_in_sigma']:g}σ. Probability {_cell(tracing['clean'], 1, 3)} clean, "
        f"{_cell(tracing['corrupted'], 1, 3)} corrupted. Facts from the {tracing['known']} of {tracing['asked']} that "
        f"the model answered correctly."
    )
    edits = [
        (name, *(_cell(entry.get(metric), 100, 1) for metric in METRICS))
        for name, entry in [("before", editing["before"])]
        + [(str(entry["layer"]), entry) for entry in editing["layers"]]
    ]
    edit_note = f"Accuracy in % after {editing['facts']} facts in this layer alone [95 % interval over facts]."
    edit_table = markdown_table(("layer", *METRICS.values()), edits)
    return f"{markdown_table(heads, lines)}\n\n{note}\n\n{edit_table}\n\n{edit_note}"


def _cell(entry: Mapping[str, float | None] | None, scale: float, digits: int) -> str:
    if entry is None:
        return "–"
    mean, low, high = (None if entry[key] is None else scale * (entry[key] or 0) for key in ("mean", "low", "high"))
    return f"{mean:.{digits}f}" + ("" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _report(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", file=sys.stderr)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description="Which layers of the embedded model hold its facts.")
    parser.add_argument("--facts", type=_positive, default=200, help="facts to trace (at most one per person)")
    parser.add_argument("--edits", type=_positive, default=25, help="facts to edit into each layer")
    parser.add_argument("--samples", type=_positive, default=10, help="draws of noise per fact")
    # About 20 % of eight blocks.
    parser.add_argument(
        "--window", type=_positive, default=2, help="blocks whose MLP or attention is restored together"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    model, world = LanguageModel.load("lab"), lab_world()
    tracing = measure_tracing(
        model, world, options.facts, samples=options.samples, window=options.window, report=_report
    )
    editing = measure_editing(model, world, options.edits, report=_report)
    record = {
        "model": {"name": "lab", "fingerprint": model.fingerprint(), "layers": len(model.blocks)},
        "versions": software_versions(),
        "tracing": tracing,
        "editing": editing,
    }
    write_json(options.out, record, indent=1, allow_nan=False)
    print(markdown(tracing, editing))


if __name__ == "__main__":
    main()
