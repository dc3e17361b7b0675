"""An automatic recipe compared with the tuned one on the embedded model, paired, on facts that tuned neither.

    python benchmarks/recipe_auto.py AUTO.yaml --method memit+blue --seeds 0 1 2 3 4 5 6 7 8 9 --json docs/lab_auto.json

Each seed's facts are edited twice into the same model, once with each recipe, and evaluated on the same prompts. The
difference (automatic minus tuned) of each metric has a 95 % interval by bootstrap over facts.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common import lab_evaluation_set, markdown_table, points, write_json

from errata.benchmark.recipe_search import SCORED
from errata.benchmark.sequence import measure, run_sequence
from errata.editing.recipe import read_recipe, shipped_recipe
from errata.models.language_model import LanguageModel
from errata.results.records import Record, paired_difference
from errata.utils.provenance import software_versions


def compared(tuned: list[Record], automatic: list[Record]) -> list[dict[str, Any]]:
    """Both means of each metric, and the difference with its interval, as shares."""
    rows: list[dict[str, Any]] = []
    for metric in SCORED:
        ones, others = ([record for record in records if record.metric == metric] for records in (tuned, automatic))
        found = paired_difference(metric, others, ones)
        if found is None:  # a search may score kinds of questions that the lab's facts do not have
            continue
        means = {
            name: sum(record.value for record in records) / found.prompts
            for name, records in (("tuned", ones), ("automatic", others))
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
    model = LanguageModel.load("lab")
    recipes = {
        "tuned": shipped_recipe("lab", options.method),
        "automatic": read_recipe(options.recipe, options.method),
    }
    records: dict[str, list[Record]] = {name: [] for name in recipes}
    for seed in options.seeds:
        evaluation_set = lab_evaluation_set(options.facts, seed, texts=0)
        before = measure(model, evaluation_set)
        for name, recipe in recipes.items():
            result = run_sequence(model, recipe, evaluation_set, before, seed=seed)
            result.patch.undo(model)
            # The same person may occur in several seeds.
            records[name] += [
                Record(f"{seed} {record.fact}", record.metric, record.prompt, record.value, record.said)
                for record in result.after.records
            ]
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    rows = compared(records["tuned"], records["automatic"])
    lines = [
        [
            row["metric"],
            f"{100 * row['tuned']:.1f}",
            f"{100 * row['automatic']:.1f}",
            points(row["difference"], row["low"], row["high"]),
        ]
        for row in rows
    ]
    print(markdown_table(["metric", "tuned", "automatic", "difference [95 % interval]"], lines))
    record = {
        "command": "python " + " ".join(sys.argv),
        "method": options.method,
        "facts": options.facts * len(options.seeds),
        "recipes": {name: recipe.model_dump(mode="json") for name, recipe in recipes.items()},
        "rows": rows,
        "versions": software_versions(),
    }
    write_json(options.json, record)


if __name__ == "__main__":
    main()
