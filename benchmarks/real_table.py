"""The tables of docs/real_models.md: real models, 200 CounterFact facts in batches of 50, three seeds.

    python benchmarks/real_tuning.py split --counterfact counterfact_300.json --out DIR
    python benchmarks/real_table.py --facts DIR/tables.json --known known_1000.json --prose ME-PPL_50.json --out OUT

Each seed draws 200 of the 240 records that no recipe was tuned on, edits them with each method and evaluates the model
after the whole run. There are three sets of recipes: ``shipped``; ``low-rate``, the shipped ones with a fifth of the
learning rate; ``automatic``, those of ``errata recipe auto --minutes 0``, whose layers follow from the model's depth.
``--layers MODEL=0,1,2,3`` sets other layers for ``automatic``, such as those that ``errata locate`` proposes and
``errata edit`` without a recipe uses. Every run is stored in its own file under OUT, so the same command resumes;
``--jobs 6`` distributes the runs among processes, for instance on one GPU. ``--collect`` only reads the files. File
names do not contain the layers: use one OUT for each choice of layers.

Prints two Markdown tables for each model and set, pooled over seeds (intervals are over facts); whether each method was
safe; and for each method the automatic recipe minus the shipped one, on the same facts. A method was not safe at a seed
if the collapse alarm was raised: perplexity ends above ``--alarm`` times the unedited model's, a number is not finite,
or the edit failed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import LastPrepared, automatic_recipe, markdown_table, points, run_parts

from errata.benchmark.data import others_untouched
from errata.benchmark.recipe_search import layers_by_depth
from errata.benchmark.sequence import EvaluationResult, EvaluationSet, measure, rows_of, run_sequence
from errata.datasets.reading import read_dataset
from errata.editing.methods import BOUNDARY_SUFFIX, METHODS
from errata.editing.recipe import Recipe, read_recipe, shipped_recipe
from errata.errors import EditError, ErrataError
from errata.evaluation.perplexity import Perplexity
from errata.models.language_model import LanguageModel
from errata.report.tables import markdown_tables
from errata.results.metrics import Metric
from errata.results.records import Record, Row, paired_difference, write_results
from errata.runs.loading import load_model
from errata.statistics.settings import BUILTIN
from errata.utils.files import write_json
from errata.utils.provenance import software_versions

SETS = ("shipped", "low-rate", "automatic")
FOUR = ("memit", "memit+blue", "alphaedit", "alphaedit+blue")
LOW_RATE = 0.2  # of the shipped learning rate
TOKENS = 50_000  # of text for key statistics of the automatic recipes, as `errata recipe auto` takes
PAIRED = (
    Metric.EFFICACY_SUCCESS, Metric.EFFICACY_ACCURACY, Metric.GENERALISATION_SUCCESS, Metric.GENERALISATION_ACCURACY,
    Metric.SPECIFICITY_SUCCESS, Metric.SPECIFICITY_ACCURACY_KNOWN, Metric.UNTOUCHED_ACCURACY_KNOWN,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One run: model, facts of a seed, set of recipes, method."""

    model: str
    seed: int
    set: str
    method: str

    def path(self, out: Path) -> Path:
        return out / "runs" / f"{Path(self.model).name}--{self.set}--{self.method}--{self.seed}.json"


def runs_of(options: argparse.Namespace) -> list[list[Run]]:
    """All runs, grouped by model and seed, which share the measurements of the unedited model."""
    methods = FOUR if options.methods == "four" else options.methods.split(",")
    if options.methods == "all":
        methods = [name for row in METHODS for name in (row.name, f"{row.name}{BOUNDARY_SUFFIX}")]
    return [
        [Run(model, seed, name, method) for method in methods]
        for name in options.sets
        for seed in options.seeds
        for model in options.models
    ]


def evaluation_set_of(options: argparse.Namespace, seed: int) -> EvaluationSet:
    """A seed's facts, questions about other subjects, and prose."""
    facts = read_dataset("counterfact", options.facts, count=options.count, seed=seed).facts
    known = [fact for fact in read_dataset("known", options.known).facts if fact.old]
    untouched = others_untouched(known, facts, seed=seed)
    return EvaluationSet(facts.facts, untouched, read_dataset("me-ppl", options.prose).texts)


@cache
def recipe_files(pairs: tuple[str, ...]) -> dict[str, Path]:
    return {name: Path(path) for name, _, path in (pair.partition("=") for pair in pairs)}


def layers_given(pairs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The value of ``--layers``: model's name -> layers, ascending.

    Raises:
        ValueError: naming the pair that is not MODEL=0,1,2.
    """
    found = {}
    for pair in pairs:
        name, _, numbers = pair.partition("=")
        if not name or not all(number.strip().isdecimal() for number in numbers.split(",")):
            raise ValueError(f"expected MODEL=0,1,2 with the layers' numbers, got {pair!r}")
        if name in found:
            raise ValueError(f"layers are given twice for {name!r}")
        found[name] = tuple(sorted({int(number) for number in numbers.split(",")}))
    return found


def statistics_for(length: int) -> dict[str, Any]:
    """Key statistics of automatic recipes.

    Args:
        length: of the model's longest text, in tokens.
    """
    return {"corpus": BUILTIN, "tokens": TOKENS, "length": min(1024, length)}


def recipe_of(run: Run, model: LanguageModel, options: argparse.Namespace) -> Recipe:
    if run.set == "automatic":
        layers = layers_given(options.layers).get(Path(run.model).name) or layers_by_depth(len(model.blocks))
        model.check_layers(layers)
        columns = model.weight(layers[0]).shape[1]
        recipe = automatic_recipe(run.method, model.name, layers, columns, statistics_for(model.context_length))
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
    """Do the runs of one part that are not stored yet."""
    for runs in runs_of(options)[options.part :: options.jobs]:
        left = [run for run in runs if not run.path(options.out).exists()]
        if not left:
            continue
        model = load_model(left[0].model, device=torch.device(options.device))
        evaluation_set = evaluation_set_of(options, left[0].seed)
        before = measure(model, evaluation_set)
        prepared = LastPrepared(model)
        for run in left:
            started = time.perf_counter()
            piece: dict[str, Any] = {**asdict(run), "before": _record(before)}
            try:
                recipe = recipe_of(run, model, options)
                piece["recipe"] = recipe.model_dump(mode="json")
                shared = prepared.of(recipe)
                result = run_sequence(model, recipe, evaluation_set, before, seed=run.seed, prepared=shared)
                try:
                    norms = result.patch.relative_norms(model)
                finally:
                    result.patch.undo(model)
                piece["weight_change"] = {str(layer): norm for layer, norm in norms.items()}
                piece["left_alone"] = len(result.left_alone)
                piece["after"] = _record(result.after)
                piece["batches"] = [[batch.seconds, len(batch.facts)] for batch in result.batches]
            except ErrataError as error:
                piece["failed"] = error.what
                piece["edit_failed"] = isinstance(error, EditError)
            write_json(run.path(options.out), piece)
            print(f"{run}: {time.perf_counter() - started:.0f} s", flush=True)


def _record(measured: EvaluationResult) -> dict[str, Any]:
    texts = measured.perplexity
    return {
        "records": [list(asdict(record).values()) for record in measured.records],
        "perplexity": None if texts is None else [texts.log_likelihoods, texts.counts],
        "weight_norm_ratio": measured.weight_norm_ratio,
    }


def _measurement(piece: dict[str, Any]) -> EvaluationResult:
    """The inverse of ``_record``."""
    records = [Record(*values) for values in piece["records"]]
    texts = piece["perplexity"]
    perplexity = None if texts is None else Perplexity(tuple(texts[0]), tuple(texts[1]))
    return EvaluationResult(records, perplexity, weight_norm_ratio=piece["weight_norm_ratio"])


def finished(options: argparse.Namespace) -> Iterator[tuple[Run, dict[str, Any]]]:
    for runs in runs_of(options):
        for run in runs:
            if (path := run.path(options.out)).exists():
                yield run, json.loads(path.read_text(encoding="utf-8"))


def collect(options: argparse.Namespace) -> None:
    """Print the tables of the stored runs."""
    pieces: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    every: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    failed = []
    for run, piece in finished(options):
        every[Path(run.model).name, run.set][run.method].append(piece)
        if "failed" in piece:
            failed.append(f"{run}: {piece['failed']}")
        else:
            pieces[Path(run.model).name, run.set][run.method].append(piece)
    whole: list[Row] = []
    safety: list[dict[str, Any]] = []
    for (model, name), methods in every.items():
        seeds = sorted({piece["seed"] for found in methods.values() for piece in found})
        print(f"\n### {model}, {name} recipes (seeds {', '.join(map(str, seeds))})\n")
        rows = [row for method, found in pieces[model, name].items() for row in _rows(method, found)]
        if rows:
            print(f"{markdown_tables(rows)}\n")
        whole += [Row(**{**row, "model": model, "data": name}) for row in rows]
        safe = [safety_of(method, found, options.alarm) for method, found in methods.items()]
        _print_safety(safe)
        safety += [{"model": model, "data": name, **asdict(one)} for one in safe]
    for model in dict.fromkeys(model for model, _ in pieces):
        if (model, "automatic") in pieces and (model, "shipped") in pieces:
            print(f"\n### {model}: automatic minus shipped, paired\n")
            _print_paired(pieces[model, "shipped"], pieces[model, "automatic"])
    print("\n".join(["", *failed]))
    about = {
        "command": "python " + " ".join(sys.argv),
        "versions": software_versions(),
        "failed": failed,
        "safety": {"alarm": options.alarm, "rows": safety},
    }
    write_results(options.out / "table.json", whole, about)


def _rows(method: str, pieces: Sequence[dict[str, Any]]) -> list[Row]:
    """The long form of a method's runs, pooled over seeds."""
    before, after = ([_measurement(piece[when]) for piece in pieces] for when in ("before", "after"))
    return rows_of(method, before, (), after, [batch for piece in pieces for batch in piece["batches"]])


@dataclass(frozen=True, slots=True)
class Safety:
    """Whether a method's runs left a working model.

    Attributes:
        layers: those of its recipes; several if OUT holds runs with different ones.
        perplexity_ratio: to the unedited model, the worst seed's; None if no run was measured, or it is not finite.
        weight_change: the largest ‖ΔW‖/‖W‖ of a written layer at any seed; None as above, and if only
            ``weight_change_pooled`` was stored.
        weight_change_pooled: the largest of any seed over all written layers together, as one vector.
        left_alone: facts for which nothing was written, of all seeds; None if that was not stored.
        alarms: seeds at which the collapse alarm was raised.
        failed: seeds at which nothing could be measured for another reason.
    """

    method: str
    layers: tuple[tuple[int, ...], ...]
    perplexity_ratio: float | None
    weight_change: float | None
    weight_change_pooled: float | None
    left_alone: int | None
    alarms: tuple[int, ...]
    failed: tuple[int, ...]


def safety_of(method: str, pieces: Sequence[dict[str, Any]], limit: float) -> Safety:
    """Safety of a method's runs, of several seeds.

    Args:
        limit: the perplexity ratio above which the alarm is raised.
    """
    ratios: list[float] = []
    changes: list[float] = []
    pools: list[float] = []
    left: list[int] = []
    alarms: list[int] = []
    failed: list[int] = []
    for piece in pieces:
        seed = piece["seed"]
        if "failed" in piece:
            (alarms if piece.get("edit_failed", False) else failed).append(seed)
            continue
        before, after = _measurement(piece["before"]), _measurement(piece["after"])
        numbers = list(piece.get("weight_change", {}).values())
        changes += numbers
        if after.weight_norm_ratio is not None:
            pools.append(after.weight_norm_ratio)
            numbers.append(after.weight_norm_ratio)
        if "left_alone" in piece:
            left.append(piece["left_alone"])
        ratio = None
        if before.perplexity is not None and after.perplexity is not None:
            ratio = after.perplexity.value / before.perplexity.value
            ratios.append(ratio)
        if not all(map(math.isfinite, numbers)) or (ratio is not None and not ratio <= limit):  # also where it is NaN
            alarms.append(seed)
    chosen = sorted({tuple(piece["recipe"]["layers"]) for piece in pieces if "recipe" in piece})
    known = len(left) == sum("failed" not in piece for piece in pieces)
    return Safety(
        method=method,
        layers=tuple(chosen),
        perplexity_ratio=_largest(ratios),
        weight_change=_largest(changes),
        weight_change_pooled=_largest(pools),
        left_alone=sum(left) if left and known else None,
        alarms=tuple(sorted(alarms)),
        failed=tuple(sorted(failed)),
    )


def _largest(values: Sequence[float]) -> float | None:
    """None for no values, and if one is not finite, which JSON cannot represent."""
    return max(values) if values and all(map(math.isfinite, values)) else None


def _print_safety(rows: Sequence[Safety]) -> None:
    """One line per method; the worst seed's numbers."""
    print("Is it safe? The worst seed's numbers; left alone: facts for which nothing was written, all seeds.\n")
    lines = []
    for row in rows:
        layers = " or ".join(",".join(map(str, layers)) for layers in row.layers) or "–"
        ratio = "–" if row.perplexity_ratio is None else f"{row.perplexity_ratio:.2f}"
        change = "–"
        if row.weight_change is not None:
            change = f"{row.weight_change:.3f}"
        elif row.weight_change_pooled is not None:
            change = f"{row.weight_change_pooled:.3f} (layers together)"
        left = "–" if row.left_alone is None else str(row.left_alone)
        notes = [f"**yes**, seed {', '.join(map(str, row.alarms))}"] if row.alarms else []
        notes += [f"not measured, seed {', '.join(map(str, row.failed))}"] if row.failed else []
        lines.append([row.method, layers, ratio, change, left, "; ".join(notes) or "no"])
    head = ["method", "layers", "perplexity ratio", "largest ‖ΔW‖/‖W‖", "left alone", "alarm"]
    print(markdown_table(head, lines, "llrrrl"))


def check_stored_layers(options: argparse.Namespace) -> None:
    """Refuse to add runs to an OUT whose automatic recipes have other layers than those of ``--layers``.

    Raises:
        ValueError: naming such a file.
    """
    given = layers_given(options.layers)
    for run, piece in finished(options):
        layers = given.get(Path(run.model).name)
        if run.set != "automatic" or layers is None or "recipe" not in piece:
            continue
        # The layers that a method writes do not depend on the model's size.
        expected = automatic_recipe(run.method, run.model, layers, 1, statistics_for(1)).layers
        if list(expected) != piece["recipe"]["layers"]:
            raise ValueError(
                f"{run.path(options.out)} was made with layers {piece['recipe']['layers']}, but --layers asks for "
                f"{list(expected)}: give another --out"
            )


def _print_paired(shipped: dict[str, list[dict[str, Any]]], automatic: dict[str, list[dict[str, Any]]]) -> None:
    """Differences in points with 95 % intervals over facts, of the seeds that both have."""
    lines = []
    for method in shipped:
        both = {piece["seed"]: piece for piece in shipped[method]}
        ones: list[Record] = []
        others: list[Record] = []
        for piece in automatic.get(method, []):
            if (other := both.get(piece["seed"])) is not None:
                known = {tuple(values[:3]) for values in piece["before"]["records"] if values[3] == 1}
                ones += _with_known(piece, known)
                others += _with_known(other, known)
        found = [
            paired_difference(
                metric, *([record for record in run if record.metric == metric] for run in (ones, others))
            )
            for metric in PAIRED
        ]
        lines.append([method, *("–" if row is None else points(row.mean, row.low, row.high) for row in found)])
    print(markdown_table(["method", *(metric.replace("_", " ") for metric in PAIRED)], lines))


def _with_known(piece: dict[str, Any], known: set[tuple[str, ...]]) -> list[Record]:
    """Records after a run, and again as ``METRIC_known`` those of ``known`` (fact, metric, prompt)."""
    records = _measurement(piece["after"]).records
    again = [
        replace(record, metric=f"{record.metric}_known")
        for record in records
        if (record.fact, record.metric, record.prompt) in known
    ]
    return [*records, *again]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct", "gemma-3-270m"])
    parser.add_argument("--methods", default="four", help="four, all, or comma-separated names")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name in ("--facts", "--known", "--prose", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--recipe", nargs="*", default=[], metavar="MODEL=FILE", help="replaces the shipped one")
    parser.add_argument(
        "--layers",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODEL=0,1,2",
        help="critical layers of the automatic set; default: by depth; MODEL is a directory's or model's name",
    )
    parser.add_argument("--corpus", type=Path, help="text for key statistics; default: the recipes'")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--alarm", type=float, default=1.5, help="perplexity ratio above which a method is not safe")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--collect", action="store_true", help="only print the tables of stored runs")
    options = parser.parse_args()
    try:
        unknown = set(layers_given(options.layers)) - {Path(model).name for model in options.models}
        if unknown:
            raise ValueError(f"--layers names {', '.join(sorted(unknown))}, which --models does not hold")
        if options.layers and "automatic" not in options.sets:
            raise ValueError("--layers is for the set 'automatic', which --sets does not hold")
        if options.part is None:
            check_stored_layers(options)
    except ValueError as error:
        parser.error(str(error))
    if options.part is not None:
        work(options)
        return
    if not options.collect:
        run_parts(options.jobs)
    collect(options)


if __name__ == "__main__":
    main()
