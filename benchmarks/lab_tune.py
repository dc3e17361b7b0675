"""Try recipes for the embedded model on facts reserved for tuning, one line per try.

Seeds from 900 on are for tuning; the demo and the tables use seeds from 0 on. A try is a method with overrides in
YAML's flow style: ``python benchmarks/lab_tune.py "memit+blue {layers: [1, 4], solver: {ridge: 10}}" ...``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import yaml
from common import lab_evaluation_set, write_json

from errata.benchmark.sequence import measure, run_sequence
from errata.editing.recipe import Recipe, shipped_recipe
from errata.models.language_model import LanguageModel

SHOWN = (
    "efficacy_accuracy", "generalisation_accuracy", "specificity_accuracy", "same_subject_accuracy",
    "untouched_accuracy", "perplexity_ratio", "seconds_per_edit",
)  # fmt: skip


def overridden(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with some of its fields, or fields of its sections, replaced and validated."""
    data = recipe.model_dump()
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    return Recipe.model_validate(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tries", nargs="+")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[900])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, lines = LanguageModel.load("lab"), []
    for seed in arguments.seeds:
        evaluation_set = lab_evaluation_set(arguments.facts, seed)
        before = measure(model, evaluation_set)
        for text in arguments.tries:
            method, _, changes = text.partition(" ")
            recipe = overridden(shipped_recipe("lab", method), yaml.safe_load(changes) or {})
            recipe = recipe.model_copy(update={"batch_size": arguments.batch_size})
            started = time.perf_counter()
            result = run_sequence(model, recipe, evaluation_set, before, seed=seed)
            result.patch.undo(model)
            after = {row["metric"]: row["mean"] for row in result.rows if row["when"] == "after"}
            print(f"{seed} {text}", {name[:9]: round(after[name], 3) for name in SHOWN}, flush=True)
            lines.append({"seed": seed, "try": text, "after": after, "seconds": time.perf_counter() - started})
    write_json(arguments.json, lines)


if __name__ == "__main__":
    main()
