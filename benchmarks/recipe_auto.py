"""An automatic recipe against the tuned one on the embedded model, on facts that neither was found with; paired.

    python benchmarks/recipe_auto.py AUTO.yaml --method memit+blue --seeds 0 1 2 3 4 5 6 7 8 9 --json docs/lab_auto.json

Each seed's facts are edited twice into the same model, once with each recipe, and asked the same prompts; the
difference (automatic minus tuned) of each metric has a 95 % interval by bootstrap over facts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from errata.benchmark.recipe_search import SCORED
from errata.benchmark.sequence import EvaluationSet, measure, run_sequence
from errata.editing.recipe import read_recipe, shipped_recipe
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.models.language_model import LanguageModel
from errata.results.records import Record, summarise_groups
from errata.utils.files import write_text
from errata.utils.provenance import software_versions


def differences(tuned: list[Record], automatic: list[Record], metric: str) -> tuple[list[float], list[int]]:
    """Sums of differences and numbers of prompts of each fact; both lists hold the same prompts in the same order."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for one, other in zip(tuned, automatic, strict=True):
        if one.metric == metric:
            if (one.fact, one.prompt, one.metric) != (other.fact, other.prompt, other.metric):
                raise ValueError("the two runs were asked different prompts")
            sums[one.fact] += other.value - one.value
            counts[one.fact] += 1
    return list(sums.values()), list(counts.values())


def compared(tuned: list[Record], automatic: list[Record]) -> list[dict[str, Any]]:
    """Both means of each metric that was asked for, and the difference with its interval, as shares."""
    rows: list[dict[str, Any]] = []
    for metric in SCORED:
        sums, counts = differences(tuned, automatic, metric)
        if not counts:  # a search may score kinds of questions that the lab's facts do not have
            continue
        found = summarise_groups(metric, "after", sums, counts)
        means = {
            name: sum(record.value for record in records if record.metric == metric) / sum(counts)
            for name, records in (("tuned", tuned), ("automatic", automatic))
        }
        rows.append({"metric": metric, **means, "difference": found.mean, "low": found.low, "high": found.high})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="An automatic recipe against the tuned one, paired.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--method", default="memit+blue")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--facts", type=int, default=100, help="facts of each seed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    model, world = LanguageModel.load("lab"), lab_world()
    recipes = {
        "tuned": shipped_recipe("lab", options.method),
        "automatic": read_recipe(options.recipe, options.method),
    }
    records: dict[str, list[Record]] = {name: [] for name in recipes}
    for seed in options.seeds:
        facts = lab_facts(world, options.facts, seed=seed)
        questions = untouched_questions(world, [fact.subject for fact in facts], 300, seed=seed)
        examination = EvaluationSet(facts, questions)
        before = measure(model, examination)
        for name, recipe in recipes.items():
            result = run_sequence(model, recipe, examination, before, seed=seed)
            result.patch.undo(model)
            # The same person may be asked about with several seeds.
            records[name] += [
                Record(f"{seed} {record.fact}", record.metric, record.prompt, record.value, record.said)
                for record in result.after.records
            ]
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    rows = compared(records["tuned"], records["automatic"])
    print("| metric | tuned | automatic | difference [95 % interval] |\n|---|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['metric']} | {100 * row['tuned']:.1f} | {100 * row['automatic']:.1f} | "
            f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}] |"
        )
    if options.json is not None:
        record = {
            "command": "python " + " ".join(sys.argv),
            "method": options.method,
            "facts": options.facts * len(options.seeds),
            "recipes": {name: recipe.model_dump(mode="json") for name, recipe in recipes.items()},
            "rows": rows,
            "versions": software_versions(),
        }
        write_text(options.json, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
