"""Tune recipes for a real model on CounterFact facts that no table uses.

``python benchmarks/real_tuning.py split --counterfact counterfact_300.json --out DIR`` cuts the file into 60 records
for tuning (``tuning.json``) and the rest for tables (``tables.json``), by a fixed seed.

``python benchmarks/real_tuning.py try PLAN.yaml --model DIR --facts tuning.json --corpus TEXT
--prose ME-PPL_50.json --out tries.jsonl`` edits the tuning facts, in two consecutive batches, with every setting of a
plan and appends one JSON line for each: the setting, every metric after both batches, the size of the change. Settings
that are in the file already are skipped. ``--jobs 8`` distributes them among processes, for instance on one GPU.

``python benchmarks/real_tuning.py best tries.jsonl`` prints each method's settings, the best first, by the mean of six
shares: success for efficacy, generalisation and specificity, accuracy for efficacy and generalisation, and accuracy on
the control questions that the unedited model answers correctly; less twice the perplexity ratio's excess over 1.05.

A plan is a YAML list; each entry has ``methods``, ``set`` (recipe fields, dotted, with one value) and ``vary`` (with
several): every combination is one setting.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from common import LastPrepared, run_parts

from errata.benchmark.grid import Variant
from errata.benchmark.recipe_search import starting_recipe
from errata.benchmark.sequence import EvaluationSet, measure, run_sequence
from errata.datasets.reading import read_dataset
from errata.editing.methods import method_named
from errata.editing.recipe import Recipe
from errata.errors import ErrataError
from errata.models.language_model import LanguageModel

TUNING = 60
BATCH = 30
SPLIT_SEED = 13
SHARES = (
    "efficacy_success", "generalisation_success", "specificity_success", "efficacy_accuracy",
    "generalisation_accuracy", "specificity_accuracy_known",
)  # fmt: skip


def split(counterfact: Path, out: Path) -> None:
    """Write ``tuning.json`` and ``tables.json``, disjoint parts of the same form."""
    records = json.loads(counterfact.read_text(encoding="utf-8"))
    random.Random(SPLIT_SEED).shuffle(records)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("tuning.json", records[:TUNING]), ("tables.json", records[TUNING:])):
        (out / name).write_text(json.dumps(part, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"{out / name}: {len(part)} records")


def settings_of(plan: Path) -> Iterator[Variant]:
    """Every setting of a plan."""
    for entry in yaml.safe_load(plan.read_text(encoding="utf-8")):
        fixed, varied = entry.get("set", {}), entry.get("vary", {})
        for method in entry["methods"]:
            for values in itertools.product(*varied.values()):
                yield Variant(method, {**fixed, **dict(zip(varied, values, strict=True))})


def key_of(variant: Variant) -> str:
    return json.dumps([variant.method, dict(variant.choices)], sort_keys=True)


class Trial:
    """A model with the tuning facts, on which one setting after another is tried."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model = LanguageModel.load(str(arguments.model), device=torch.device(arguments.device))
        facts = read_dataset("counterfact", arguments.facts).facts.facts[: arguments.count]
        prose = read_dataset("me-ppl", arguments.prose).texts
        self.evaluation_set = EvaluationSet(facts, (), prose)
        self.before = measure(self.model, self.evaluation_set)
        corpus = str(arguments.corpus.resolve())
        self.statistics = {"corpus": corpus, "tokens": arguments.tokens, "length": arguments.length}
        self.batch = arguments.batch
        self.prepared = LastPrepared(self.model)

    def recipe(self, variant: Variant) -> Recipe:
        row = method_named(variant.method)
        columns = self.model.weight(0).shape[1]
        layers = variant.choices["layers"]
        base = starting_recipe("model", row, layers, columns, self.statistics, batch_size=self.batch)
        return variant.applied(base)

    def run(self, variant: Variant) -> dict[str, Any]:
        """Try one setting; the model is restored."""
        started = time.perf_counter()
        line: dict[str, Any] = {"key": key_of(variant), "method": variant.method, "choices": dict(variant.choices)}
        try:
            recipe = self.recipe(variant)
            prepared = self.prepared.of(recipe)
            result = run_sequence(self.model, recipe, self.evaluation_set, self.before, prepared=prepared)
            try:
                line["weight_change"] = result.patch.relative_norms(self.model)
            finally:
                result.patch.undo(self.model)
        except ErrataError as error:
            return line | {"error": error.what, "seconds": time.perf_counter() - started}
        line["before"] = {row["metric"]: row["mean"] for row in result.rows if row["when"] == "before"}
        line["after"] = {row["metric"]: row["mean"] for row in result.rows if row["when"] == "after"}
        return line | {"edit_seconds": sum(b.seconds for b in result.batches), "seconds": time.perf_counter() - started}


def merit(line: Mapping[str, Any]) -> float:
    """Settings are ranked by it; see the module's docstring."""
    if "after" not in line:
        return float("-inf")
    shares = [line["after"][name] for name in SHARES]
    excess = max(0.0, line["after"].get("perplexity_ratio", 1.0) - 1.05)
    return float(sum(shares) / len(shares) - 2 * excess)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file of tries; the last one is incomplete if its process was killed."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def drop_incomplete_line(path: Path) -> None:
    """Remove what a killed process left at the end of a file of tries; call it while no other process writes there."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        print(f"{path}: removed an incomplete last line", file=sys.stderr)
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def work(arguments: argparse.Namespace) -> None:
    done = {line["key"] for line in lines_of(arguments.out)}
    variants = [variant for variant in settings_of(arguments.plan) if key_of(variant) not in done]
    variants = variants[arguments.part :: arguments.jobs]
    if not variants:
        return
    trial = Trial(arguments)
    print(f"part {arguments.part}: {len(variants)} settings", flush=True)
    for variant in variants:
        line = json.dumps(trial.run(variant), ensure_ascii=False, allow_nan=True) + "\n"
        with arguments.out.open("a", encoding="utf-8") as file:  # one write per line, so that processes do not mix
            file.write(line)


def show_best(path: Path, most: int) -> None:
    by_method = defaultdict(list)
    for line in lines_of(path):
        by_method[line["method"]].append(line)
    for method, lines in by_method.items():
        print(f"\n{method}")
        for line in sorted(lines, key=merit, reverse=True)[:most]:
            if "after" not in line:
                print(f"  failed: {line['error']}  {line['choices']}")
                continue
            after = line["after"]
            shares = " ".join(f"{100 * after[name]:5.1f}" for name in SHARES)
            largest = max(line["weight_change"].values())
            print(
                f"  {100 * merit(line):5.1f} | {shares} | ppl {after['perplexity_ratio']:.3f} dW {largest:.3f} "
                f"{line['edit_seconds']:5.1f} s  {json.dumps(line['choices'])}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("split")
    cut.add_argument("--counterfact", type=Path, required=True)
    cut.add_argument("--out", type=Path, required=True)
    attempt = commands.add_parser("try")
    attempt.add_argument("plan", type=Path)
    for name in ("--model", "--facts", "--corpus", "--prose", "--out"):
        attempt.add_argument(name, type=Path, required=True)
    attempt.add_argument("--tokens", type=int, default=50_000)
    attempt.add_argument("--length", type=int, default=512, help="tokens of a document to read")
    attempt.add_argument("--count", type=int, default=TUNING, help="number of facts")
    attempt.add_argument("--batch", type=int, default=BATCH)
    attempt.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    attempt.add_argument("--jobs", type=int, default=1)
    attempt.add_argument("--part", type=int, help=argparse.SUPPRESS)
    best = commands.add_parser("best")
    best.add_argument("tries", type=Path)
    best.add_argument("--most", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.command == "split":
        split(arguments.counterfact, arguments.out)
    elif arguments.command == "best":
        show_best(arguments.tries, arguments.most)
    elif arguments.part is not None:
        work(arguments)
    else:
        drop_incomplete_line(arguments.out)
        if arguments.jobs > 1:
            run_parts(arguments.jobs)
        else:
            arguments.part = 0
            work(arguments)


if __name__ == "__main__":
    main()
