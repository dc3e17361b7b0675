"""The table of docs/rows.md: methods on the embedded model, pooled over seeds, on facts that no recipe was tuned on.

``python benchmarks/lab_table.py --every-row --json docs/lab_rows.json`` prints it as Markdown. Intervals are over
the facts of all seeds, and over texts; each seed has its own facts, prefixes and questions about other people.
``--every-row`` takes every row of `errata methods` with even spreading, its own schedule and the boundary's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common import lab_evaluation_set

from errata.benchmark.sequence import EvaluationResult, measure, perplexity_summaries, run_sequence, seconds_summaries
from errata.editing.methods import BOUNDARY_SUFFIX, METHODS
from errata.editing.recipe import Recipe, shipped_recipe
from errata.evaluation.perplexity import pooled
from errata.models.language_model import LanguageModel
from errata.report.tables import markdown_tables
from errata.results.records import Row, summarise, to_long, write_results
from errata.utils.provenance import software_versions


def pooled_rows(
    method: str,
    before: Sequence[EvaluationResult],
    after: Sequence[EvaluationResult],
    batches: Sequence[tuple[float, int]],
) -> list[Row]:
    """The long form of a method's runs, one per seed. A text is one cluster, however many seeds read it.

    Args:
        batches: (seconds, facts) of each.
    """
    first, last = ([record for run in runs for record in run.records] for runs in (before, after))
    texts = (pooled([run.perplexity for run in runs]) for runs in (before, after))
    summaries = summarise(first, "before") + summarise(last, "after")
    return to_long(method, summaries + perplexity_summaries(*texts) + seconds_summaries(batches))


def recipe_of(text: str) -> Recipe:
    """``METHOD`` is the shipped recipe, ``METHOD@SCHEDULE`` the same with another schedule over all critical layers."""
    method, _, schedule = text.partition("@")
    recipe = shipped_recipe("lab", method)
    if not schedule:
        return recipe
    return recipe.with_choices({"schedule": schedule, "layers": shipped_recipe("lab", "memit").layers})


def every_row() -> list[str]:
    """Each row with even spreading, with its own schedule where that is another one, and with the boundary's."""
    return [
        name
        for row in METHODS
        for name in (
            row.name if row.schedule == "even" else f"{row.name}@even",
            *([] if row.schedule == "even" else [row.name]),
            f"{row.name}{BOUNDARY_SUFFIX}",
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="memit,memit+blue,memit_seq,memit_seq+blue,alphaedit,alphaedit+blue")
    parser.add_argument("--every-row", action="store_true", help="each row × {even, its own schedule, boundary}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    model = LanguageModel.load("lab")
    methods = every_row() if arguments.every_row else arguments.methods.split(",")
    before: list[EvaluationResult] = []
    after: dict[str, list[EvaluationResult]] = defaultdict(list)
    batches: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for seed in arguments.seeds:
        evaluation_set = lab_evaluation_set(arguments.facts, seed)
        before.append(measure(model, evaluation_set))
        for method in methods:
            recipe = recipe_of(method)
            contexts = recipe.contexts.model_copy(update={"seed": seed})
            recipe = recipe.model_copy(update={"batch_size": arguments.batch_size, "contexts": contexts})
            result = run_sequence(model, recipe, evaluation_set, before[-1], seed=seed)
            result.patch.undo(model)
            after[method].append(result.after)
            batches[method] += [(batch.seconds, len(batch.facts)) for batch in result.batches]
            print(f"seed {seed}, {method}: {time.perf_counter() - started:.0f} s", flush=True)
    rows = [row for method in methods for row in pooled_rows(method, before, after[method], batches[method])]
    print(markdown_tables(rows))
    if arguments.json is not None:
        about = {
            "command": "python " + " ".join(sys.argv),
            "facts": arguments.facts,
            "batch_size": arguments.batch_size,
            "seconds": time.perf_counter() - started,
            "versions": software_versions(),
        }
        write_results(arguments.json, rows, about)


if __name__ == "__main__":
    main()
