"""Try recipes for the embedded model on facts that are kept for tuning, one line a try.

The seeds from 900 on are for tuning; the demo and the tables use seeds from 0 on. A try is a method and overrides in
YAML's flow style: ``python benchmarks/lab_tune.py "memit+blue {layers: [1, 4], solver: {ridge: 10}}" ...``
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml

from errata.benchmark.sequence import EvaluationSet, measure, run_sequence
from errata.editing.recipe import Recipe, shipped_recipe
from errata.lab.corpus import held_out_prose
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.models.language_model import LanguageModel

SHOWN = (
    "efficacy_accuracy", "generalisation_accuracy", "specificity_accuracy", "same_subject_accuracy",
    "untouched_accuracy", "perplexity_ratio", "seconds_per_edit",
)  # fmt: skip


def overridden(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with some of its fields, or fields of its sections, replaced; validated anew."""
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
    model, world = LanguageModel.load("lab"), lab_world()
    lines = []
    for seed in arguments.seeds:
        facts = lab_facts(world, arguments.facts, seed=seed)
        questions = untouched_questions(world, [fact.subject for fact in facts], 300, seed=seed)
        examination = EvaluationSet(facts, questions, held_out_prose(60))
        before = measure(model, examination)
        for text in arguments.tries:
            method, _, changes = text.partition(" ")
            recipe = overridden(shipped_recipe("lab", method), yaml.safe_load(changes) or {})
            recipe = recipe.model_copy(update={"batch_size": arguments.batch_size})
            started = time.perf_counter()
            result = run_sequence(model, recipe, examination, before, seed=seed)
            result.patch.undo(model)
            after = {row["metric"]: row["mean"] for row in result.rows if row["when"] == "after"}
            print(f"{seed} {text}", {name[:9]: round(after[name], 3) for name in SHOWN}, flush=True)
            lines.append({"seed": seed, "try": text, "after": after, "seconds": time.perf_counter() - started})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
