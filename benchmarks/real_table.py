"""The tables of docs/real_models.md: real models, 200 CounterFact facts in batches of 50, three seeds.

    python benchmarks/real_tuning.py split --counterfact counterfact_300.json --out DIR
    python benchmarks/real_table.py --facts DIR/tables.json --known known_1000.json --prose ME-PPL_50.json --out OUT

Each seed draws 200 of the 240 records that no recipe was tuned on, edits them with each method and asks everything
after the whole run. Recipes come in three sets: ``shipped``; ``low-rate``, the shipped ones with a fifth of the
learning rate; ``automatic``, what ``errata recipe auto --minutes 0`` writes. Every run is kept in a file of its own
under OUT, so the same command resumes; ``--jobs 6`` shares the runs among processes, for instance on one GPU.
``--collect`` only reads the files.

Printed are two Markdown tables for each model and set, pooled over seeds (intervals are over facts), and for each
method the automatic recipe minus the shipped one, on the same facts.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from errata.benchmark.recipe_file import automatic_file, layers_by_depth, unsearched_recipe
from errata.benchmark.sequential import (
    Examination,
    Measurement,
    compared,
    examine,
    perplexity_summaries,
    run_sequence,
    weight_norm_summary,
)
from errata.datasets.read import read_dataset
from errata.errors import ErrataError
from errata.evaluation.metrics import Metric
from errata.evaluation.perplexity import Perplexity, pooled
from errata.evaluation.records import Record, summarise_groups
from errata.evaluation.results_file import Row, to_long, write_results
from errata.facts import Question
from errata.loading import load_model
from errata.methods import BOUNDARY_SUFFIX, METHODS, method_named
from errata.models.language_model import LanguageModel
from errata.output import write_text
from errata.patch import software_versions
from errata.preparation import Prepared, prepare
from errata.recipe import Recipe, parse_recipe, read_recipe, shipped_recipe
from errata.report.tables import markdown_tables

SETS = ("shipped", "low-rate", "automatic")
FOUR = ("memit", "memit+blue", "alphaedit", "alphaedit+blue")
LOW_RATE = 0.2  # of the shipped learning rate
UNTOUCHED = 300
PAIRED = (
    Metric.EFFICACY_SUCCESS, Metric.EFFICACY_ACCURACY, Metric.GENERALISATION_SUCCESS, Metric.GENERALISATION_ACCURACY,
    Metric.SPECIFICITY_SUCCESS, Metric.SPECIFICITY_ACCURACY_KNOWN, Metric.UNTOUCHED_ACCURACY_KNOWN,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what is edited into which model, how."""

    model: str
    seed: int
    set: str
    method: str

    def path(self, out: Path) -> Path:
        return out / "runs" / f"{Path(self.model).name}--{self.set}--{self.method}--{self.seed}.json"


def runs_of(options: argparse.Namespace) -> list[list[Run]]:
    """All runs; those of a model and a seed together, because they share the unedited model's answers."""
    methods = FOUR if options.methods == "four" else options.methods.split(",")
    if options.methods == "all":
        methods = [name for row in METHODS for name in (row.name, f"{row.name}{BOUNDARY_SUFFIX}")]
    return [
        [Run(model, seed, name, method) for method in methods]
        for name in options.sets
        for seed in options.seeds
        for model in options.models
    ]


def examination_of(options: argparse.Namespace, seed: int) -> Examination:
    """A seed's facts, questions about other subjects, and prose."""
    facts = read_dataset("counterfact", options.facts, count=options.count, seed=seed).facts
    subjects = {fact.subject for fact in facts}
    known = [fact for fact in read_dataset("known", options.known).facts if fact.subject not in subjects and fact.old]
    chosen = random.Random(f"untouched {seed}").sample(known, min(UNTOUCHED, len(known)))
    untouched = [(fact.subject, Question(fact.text, fact.old or "")) for fact in chosen]
    return Examination(facts.facts, untouched, read_dataset("me-ppl", options.prose).texts)


@cache
def recipe_files(pairs: tuple[str, ...]) -> dict[str, Path]:
    return {name: Path(path) for name, _, path in (pair.partition("=") for pair in pairs)}


def recipe_of(run: Run, model: LanguageModel, options: argparse.Namespace) -> Recipe:
    if run.set == "automatic":
        shipped = recipe_of(Run(run.model, run.seed, "shipped", run.method), model, options)
        plain = run.method.removesuffix(BOUNDARY_SUFFIX)
        layers = layers_by_depth(len(model.blocks))
        columns = model.weight(layers[0]).shape[1]
        statistics = shipped.statistics.model_dump()
        found = unsearched_recipe(model.name, method_named(plain), layers, columns, statistics)
        recipe = parse_recipe(automatic_file(model.name, layers, "", {plain: found}), run.method, source="automatic")
    elif path := recipe_files(tuple(options.recipe)).get(Path(run.model).name):
        recipe = read_recipe(path, run.method)
    else:
        recipe = shipped_recipe(Path(run.model).name, run.method)
    if run.set == "low-rate":
        target = recipe.target.model_copy(update={"learning_rate": LOW_RATE * recipe.target.learning_rate})
        recipe = recipe.model_copy(update={"target": target})
    contexts = recipe.contexts.model_copy(update={"seed": run.seed})
    if options.corpus is not None:
        recipe = recipe.with_corpus(options.corpus.resolve())
    return recipe.model_copy(update={"contexts": contexts, "batch_size": options.batch_size})


def work(options: argparse.Namespace) -> None:
    """Make the runs of one part that are not there yet."""
    for runs in runs_of(options)[options.part :: options.jobs]:
        left = [run for run in runs if not run.path(options.out).exists()]
        if not left:
            continue
        model = load_model(left[0].model, device=torch.device(options.device))
        examination = examination_of(options, left[0].seed)
        before = examine(model, examination)
        kept: dict[str, Prepared] = {}
        for run in left:
            started = time.perf_counter()
            piece: dict[str, Any] = {**asdict(run), "before": _record(before)}
            try:
                recipe = recipe_of(run, model, options)
                piece["recipe"] = recipe.model_dump(mode="json")
                shared = json.dumps([recipe.solver.model_dump(), recipe.contexts.model_dump(), recipe.layers])
                kept = kept if shared in kept else {shared: prepare(model, recipe, recipe.layers)}
                result = run_sequence(model, recipe, examination, before, seed=run.seed, prepared=kept[shared])
                result.patch.undo(model)
                piece["after"] = _record(result.after)
                piece["batches"] = [[batch.seconds, len(batch.facts)] for batch in result.batches]
            except ErrataError as error:
                piece["failed"] = error.what
            write_text(run.path(options.out), json.dumps(piece, ensure_ascii=False) + "\n")
            print(f"{run}: {time.perf_counter() - started:.0f} s", flush=True)


def _record(measured: Measurement) -> dict[str, Any]:
    texts = measured.perplexity
    return {
        "records": [list(asdict(record).values()) for record in measured.records],
        "perplexity": None if texts is None else [texts.log_likelihoods, texts.counts],
        "weight_norm_ratio": measured.weight_norm_ratio,
    }


def _measurement(piece: dict[str, Any], seed: int) -> Measurement:
    """As it was written; facts of different seeds are one cluster where they are the same fact."""
    records = [Record(*values) for values in piece["records"]]
    texts = piece["perplexity"]
    perplexity = None if texts is None else Perplexity(tuple(texts[0]), tuple(texts[1]))
    return Measurement(records, perplexity, weight_norm_ratio=piece["weight_norm_ratio"])


def finished(options: argparse.Namespace) -> Iterator[tuple[Run, dict[str, Any]]]:
    for runs in runs_of(options):
        for run in runs:
            if (path := run.path(options.out)).exists():
                yield run, json.loads(path.read_text(encoding="utf-8"))


def collect(options: argparse.Namespace) -> None:
    """Print the tables of what is there."""
    pieces: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    failed = []
    for run, piece in finished(options):
        if "failed" in piece:
            failed.append(f"{run}: {piece['failed']}")
        else:
            pieces[Path(run.model).name, run.set][run.method].append(piece)
    whole: list[Row] = []
    for (model, name), methods in pieces.items():
        rows = [row for method, found in methods.items() for row in _rows(method, found)]
        seeds = sorted({piece["seed"] for found in methods.values() for piece in found})
        print(f"\n### {model}, {name} recipes (seeds {', '.join(map(str, seeds))})\n\n{markdown_tables(rows)}")
        whole += [Row(**{**row, "model": model, "data": name}) for row in rows]
    for model in dict.fromkeys(model for model, _ in pieces):
        if (model, "automatic") in pieces and (model, "shipped") in pieces:
            print(f"\n### {model}: automatic minus shipped, paired\n")
            _print_paired(pieces[model, "shipped"], pieces[model, "automatic"])
    print("\n".join(["", *failed]))
    about = {"command": "python " + " ".join(sys.argv), "versions": software_versions(), "failed": failed}
    write_results(options.out / "table.json", whole, about)


def _rows(method: str, pieces: Sequence[dict[str, Any]]) -> list[Row]:
    """The long form of a method's runs, pooled over seeds."""
    before = [_measurement(piece["before"], piece["seed"]) for piece in pieces]
    after = [_measurement(piece["after"], piece["seed"]) for piece in pieces]
    first = [record for one in before for record in one.records]
    summaries = compared(first, first, "before")
    summaries += compared(first, [record for one in after for record in one.records], "after")
    texts = pooled([one.perplexity for one in before]), pooled([one.perplexity for one in after])
    if texts[0] is not None and texts[1] is not None:
        summaries += perplexity_summaries(texts[0], texts[1])
    norms = [one.weight_norm_ratio for one in after if one.weight_norm_ratio is not None]
    summaries.append(weight_norm_summary(norms, "after"))
    seconds = [batch for piece in pieces for batch in piece["batches"]]
    times = summarise_groups(Metric.SECONDS_PER_EDIT, "after", [s for s, _ in seconds], [n for _, n in seconds])
    return to_long(method, [*summaries, times])


def _print_paired(shipped: dict[str, list[dict[str, Any]]], automatic: dict[str, list[dict[str, Any]]]) -> None:
    """Differences in points with 95 % intervals over facts, of the seeds that both have."""
    print(f"| method | {' | '.join(metric.replace('_', ' ') for metric in PAIRED)} |")
    print(f"|---|{'---:|' * len(PAIRED)}")
    for method in shipped:
        both = {piece["seed"]: piece for piece in shipped[method]}
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for piece in automatic.get(method, []):
            if (other := both.get(piece["seed"])) is None:
                continue
            known = {tuple(r[:3]) for r in piece["before"]["records"] if r[3] == 1}
            for one, two in zip(piece["after"]["records"], other["after"]["records"], strict=True):
                names = [one[1]] + ([f"{one[1]}_known"] if tuple(one[:3]) in known else [])
                for metric in names:
                    values[metric][one[0]].append(one[3] - two[3])
        cells = []
        for metric in PAIRED:
            facts = values[metric].values()
            if not facts:
                cells.append("–")
                continue
            found = summarise_groups(metric, "after", [sum(v) for v in facts], [len(v) for v in facts])
            low, high = 100 * (found.low or 0), 100 * (found.high or 0)
            cells.append(f"{100 * found.mean:+.1f} [{low:+.1f}, {high:+.1f}]")
        print(f"| {method} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct", "gemma-3-270m"])
    parser.add_argument("--methods", default="four", help="four, all, or names by commas")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name in ("--facts", "--known", "--prose", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--recipe", nargs="*", default=[], metavar="MODEL=FILE", help="in place of the shipped one")
    parser.add_argument("--corpus", type=Path, help="text for key statistics, in place of the recipes'")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--collect", action="store_true", help="only print what is there")
    options = parser.parse_args()
    if options.part is not None:
        work(options)
        return
    if not options.collect:
        command = [sys.executable, *sys.argv]
        parts = [subprocess.Popen([*command, "--part", str(part)]) for part in range(options.jobs)]
        statuses = [part.wait() for part in parts]
        if any(statuses):
            sys.exit("a part failed; the same command resumes")
    collect(options)


if __name__ == "__main__":
    main()
