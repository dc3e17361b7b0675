"""What a cheaper search of targets changes: edits in exact mode and with other settings, on the same facts.

    python benchmarks/fast_search.py --facts-file counterfact_300.json --count 40 --set '{"mode": "fast"}'
    python benchmarks/fast_search.py --facts-file counterfact_300.json --set '{"products": "bfloat16"}' \
        --set '{"contexts_per_step": 2}' --method alphaedit+blue --model gemma-3-270m

All facts are one batch, in float32 on the CPU, with the model's shipped recipe. Prints for each setting the CPU seconds
of the whole edit, the evaluations of a fact's loss, and the paired difference from exact mode, in points, with its 95 %
interval over facts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import markdown_table, points, write_json

from errata.benchmark.sequence import EvaluationResult, EvaluationSet, measure
from errata.datasets.reading import read_dataset
from errata.editing.recipe import shipped_recipe
from errata.editors.locate_then_edit import Editor
from errata.models.language_model import LanguageModel
from errata.results.metrics import Metric
from errata.results.records import Record, paired_difference

METRICS = (
    Metric.EFFICACY_SUCCESS, Metric.EFFICACY_ACCURACY, Metric.GENERALISATION_SUCCESS, Metric.GENERALISATION_ACCURACY,
    Metric.SPECIFICITY_SUCCESS, Metric.SPECIFICITY_ACCURACY, Metric.SAME_SUBJECT_ACCURACY,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Edited:
    """One edit: what it cost, and the evaluation after it.

    Attributes:
        seconds: of CPU time, for the whole edit.
        evaluations: of a fact's loss, mean, for each layer.
    """

    seconds: float
    evaluations: Mapping[int, float]
    after: EvaluationResult


def edited(model: LanguageModel, method: str, facts: EvaluationSet, changes: Mapping[str, Any]) -> Edited:
    recipe = shipped_recipe(model.name, method)
    target = {**recipe.target.model_dump(), **changes}
    editor = Editor(model, recipe.with_choices({"target": target, "batch_size": len(facts.facts)}))
    began = time.process_time()
    patch = editor.apply(facts.facts)
    seconds = time.process_time() - began
    after = measure(model, facts)
    patch.undo(model)
    searches = editor.records[0].targets
    return Edited(seconds, {layer: float(found.evaluations.float().mean()) for layer, found in searches.items()}, after)


def of_metric(result: EvaluationResult, metric: str) -> list[Record]:
    return [record for record in result.records if record.metric == metric]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="with a shipped recipe")
    parser.add_argument("--method", default="memit+blue")
    parser.add_argument("--facts-file", type=Path, required=True, help="CounterFact records")
    parser.add_argument("--count", type=int, default=100, help="facts (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of facts (0)")
    parser.add_argument("--set", type=json.loads, action="append", required=True, help="target settings, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the differences to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    model = LanguageModel.load(options.model, dtype=torch.float32, device="cpu")
    chosen = read_dataset("counterfact", options.facts_file, count=options.count, seed=options.seed).facts
    facts = EvaluationSet(chosen.facts, (), ())
    exact = edited(model, options.method, facts, {})
    rows, found = [], []
    for changes in options.set:
        other = edited(model, options.method, facts, changes)
        row: list[Any] = [json.dumps(changes), f"{other.seconds:.0f} ({exact.seconds:.0f})"]
        row.append(", ".join(f"{value:.1f}" for value in other.evaluations.values()))
        for metric in METRICS:
            difference = paired_difference(metric, of_metric(other.after, metric), of_metric(exact.after, metric))
            row.append("–" if difference is None else points(difference.mean, difference.low, difference.high))
            if difference is not None:
                found.append([changes, metric, difference.mean, difference.low, difference.high])
        rows.append(row)
    evaluations = ", ".join(f"{value:.1f}" for value in exact.evaluations.values())
    print(f"{options.model}, {options.method}, {options.count} facts; exact mode: {evaluations} evaluations")
    print(markdown_table(["settings", "CPU s (exact)", "evaluations", *METRICS], rows))
    write_json(options.json, found)


if __name__ == "__main__":
    main()
