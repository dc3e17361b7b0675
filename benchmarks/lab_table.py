"""The table of the README: methods on the embedded model, several seeds pooled, facts that no recipe was tuned on.

``python benchmarks/lab_table.py --every-row --json docs/lab_rows.json`` prints it as Markdown. Intervals are over
all facts of all seeds; each seed draws its own facts, its own prefixes and its own questions about other people.
``--every-row`` takes every row of `errata methods` with even spreading, its own schedule and the boundary's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

from errata.benchmark.sequence import EvaluationResult, EvaluationSet, measure, perplexity_summaries, run_sequence
from errata.editing.methods import BOUNDARY_SUFFIX, METHODS
from errata.editing.recipe import Recipe, shipped_recipe
from errata.evaluation.perplexity import Perplexity
from errata.lab.corpus import held_out_prose
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.models.language_model import LanguageModel
from errata.report.tables import markdown_tables
from errata.results.metrics import Metric
from errata.results.records import Record, Row, summarise, summarise_groups, to_long, write_results
from errata.utils.provenance import software_versions


def pooled(parts: list[EvaluationResult]) -> tuple[list[Record], Perplexity]:
    """All records, and all texts, of several measurements."""
    texts = [part.perplexity for part in parts if part.perplexity is not None]
    return (
        [record for part in parts for record in part.records],
        Perplexity(
            tuple(value for text in texts for value in text.log_likelihoods),
            tuple(count for text in texts for count in text.counts),
        ),
    )


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
    model, world, methods = LanguageModel.load("lab"), lab_world(), arguments.methods.split(",")
    if arguments.every_row:
        methods = every_row()
    before: list[EvaluationResult] = []
    after: dict[str, list[EvaluationResult]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for seed in arguments.seeds:
        facts = lab_facts(world, arguments.facts, seed=seed)
        questions = untouched_questions(world, [fact.subject for fact in facts], 300, seed=seed)
        examination = EvaluationSet(facts, questions, held_out_prose(60))
        before.append(measure(model, examination))
        for method in methods:
            recipe = recipe_of(method)
            contexts = recipe.contexts.model_copy(update={"seed": seed})
            recipe = recipe.model_copy(update={"batch_size": arguments.batch_size, "contexts": contexts})
            result = run_sequence(model, recipe, examination, before[-1], seed=seed)
            result.patch.undo(model)
            after[method].append(result.after)
            seconds[method] += [batch.seconds for batch in result.batches]
            print(f"seed {seed}, {method}: {time.perf_counter() - started:.0f} s", flush=True)
    rows: list[Row] = []
    records_before, perplexity_before = pooled(before)
    for method in methods:
        records, perplexity = pooled(after[method])
        summaries = summarise(records_before, "before") + summarise(records, "after")
        summaries += perplexity_summaries(perplexity_before, perplexity)
        sizes = [arguments.batch_size] * len(seconds[method])
        summaries.append(summarise_groups(Metric.SECONDS_PER_EDIT, "after", seconds[method], sizes))
        rows += to_long(method, summaries)
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
