"""Every row on a real model: CounterFact facts in batches, what they did, and how far the weights moved.

    python benchmarks/real_rows.py MODEL --facts counterfact.json --corpus text.txt --prose prose.txt \
        --count 200 --batch-size 50 --seeds 0 1 2 --rows all --device cuda --json rows.jsonl

Without ``--recipe`` the numbers are those of ``errata recipe auto --minutes 0``, so this also shows whether the
unsearched defaults are safe. One JSON line is printed for each row and seed, as soon as it is known, and one for the
unedited model of each seed (``"row": "unedited"``). Shares are in per cent. ``alarm`` is true where the perplexity ends
above ``--alarm`` times the unedited one, or where the edit or the edited model holds numbers that are not finite; the
reason is in ``failed`` then.
Facts that a seed does not edit are asked as ``untouched`` questions.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from errata.benchmark.recipe_file import automatic_file, layers_by_depth, unsearched_recipe
from errata.benchmark.sequential import Examination, Measurement, examine, run_sequence
from errata.datasets.read import read_records
from errata.errors import EditError, NonFiniteError
from errata.evaluation.metrics import NOT_SHARES
from errata.evaluation.records import summarise
from errata.facts import Fact, Question
from errata.loading import load_model
from errata.methods import BOUNDARY_SUFFIX, METHODS, method_named
from errata.models.language_model import LanguageModel
from errata.patch import software_versions
from errata.recipe import Recipe, parse_recipe, read_recipe
from errata.statistics.corpus import open_corpus

FOUR = ("memit", "memit+blue", "alphaedit", "alphaedit+blue")


def rows_named(text: str) -> list[str]:
    """``four``, ``all`` (each row of `errata methods` with and without ``+blue``), or names by commas."""
    if text == "four":
        return list(FOUR)
    if text == "all":
        return [name for row in METHODS for name in (row.name, f"{row.name}{BOUNDARY_SUFFIX}")]
    return text.split(",")


def recipes_of(model: LanguageModel, rows: Sequence[str], options: argparse.Namespace) -> dict[str, Recipe]:
    """The recipe of each row: from a file, or the unsearched defaults; with the choices of the command line."""
    layers = tuple(options.layers) if options.layers else layers_by_depth(len(model.blocks))
    statistics = {"corpus": options.corpus, "tokens": options.tokens, "length": min(1024, model.context_length)}
    columns = model.weight(layers[0]).shape[1]
    found = {}
    for row in rows:
        if options.recipe is not None:
            recipe = read_recipe(options.recipe, row)
        else:
            plain = row.removesuffix(BOUNDARY_SUFFIX)
            default = unsearched_recipe(model.name, method_named(plain), layers, columns, statistics)
            recipe = parse_recipe(automatic_file(model.name, layers, "", {plain: default}), row, source="defaults")
        choices: dict[str, Any] = {"batch_size": options.batch_size}
        if options.recipe is not None and options.corpus is not None:
            recipe = recipe.with_corpus(options.corpus)
        target = {"learning_rate": options.learning_rate, "steps": options.steps}
        if target := {name: value for name, value in target.items() if value is not None}:
            choices["target"] = {**recipe.target.model_dump(), **target}
        if options.solver is not None:
            choices["solver"] = {**recipe.solver.model_dump(), **json.loads(options.solver)}
        found[row] = recipe.with_choices(choices)
    return found


def examination_of(facts: Sequence[Fact], count: int, prose: Sequence[str], seed: int) -> Examination:
    """``count`` facts of a seed; the others are questions about subjects that are not edited."""
    order = random.Random(seed).sample(range(len(facts)), len(facts))
    edited = [facts[index] for index in order[:count]]
    subjects = {fact.subject for fact in edited}
    rest = [facts[index] for index in order[count:]]
    untouched = [
        (fact.subject, Question(fact.text, fact.old))
        for fact in rest
        if fact.subject not in subjects and fact.old is not None
    ]
    return Examination(edited, untouched, prose)


def shares(measured: Measurement, seed: int) -> dict[str, float]:
    """metric -> mean, shares in per cent."""
    return {
        str(summary.metric): round(summary.mean * (1 if summary.metric in NOT_SHARES else 100), 2)
        for summary in summarise(measured.records, "after", seed=seed, resamples=10)
    }


def edited(
    model: LanguageModel, recipe: Recipe, examination: Examination, before: Measurement, seed: int, alarm: float
) -> dict[str, Any]:
    """One row of one seed; the model is afterwards what it was."""
    started = time.perf_counter()
    contexts = recipe.contexts.model_copy(update={"seed": seed})
    try:
        result = run_sequence(model, recipe.model_copy(update={"contexts": contexts}), examination, before, seed=seed)
    except (EditError, NonFiniteError) as error:
        return {"alarm": True, "failed": str(error), "seconds": round(time.perf_counter() - started, 1)}
    norms = result.patch.relative_norms(model)
    result.patch.undo(model)
    assert before.perplexity is not None
    assert result.after.perplexity is not None
    ratio = result.after.perplexity.value / before.perplexity.value
    return {
        **shares(result.after, seed),
        "perplexity_ratio": round(ratio, 4),
        "weight_change": {str(layer): round(value, 4) for layer, value in norms.items()},
        "largest_weight_change": round(max(norms.values(), default=0.0), 4),
        "alarm": ratio > alarm,
        "left_alone": len(result.left_alone),
        "seconds_per_edit": round(sum(batch.seconds for batch in result.batches) / len(examination.facts), 3),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory, or any name that --model takes")
    parser.add_argument("--facts", type=Path, required=True, help="CounterFact's JSON")
    parser.add_argument("--corpus", help="text for the key statistics; not needed where --recipe names one")
    parser.add_argument("--tokens", type=int, default=50_000, help="how many tokens of it, without --recipe")
    parser.add_argument("--prose", type=Path, required=True, help="text for the perplexity, blank lines between texts")
    parser.add_argument("--texts", type=int, default=60, help="how many of its texts of at least 500 characters")
    parser.add_argument("--count", type=int, default=200, help="facts of each seed")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", default="four", help="four, all, or names by commas")
    parser.add_argument("--layers", type=int, nargs="+", help="critical layers; default: by depth")
    parser.add_argument("--recipe", type=Path, help="a recipe file; default: the unsearched automatic numbers")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's, in the recipe's unit")
    parser.add_argument("--steps", type=int, help="steps of the target search, instead of the recipe's")
    parser.add_argument("--solver", help='JSON laid over the solver section, such as {"ridge": 1500}')
    parser.add_argument("--alarm", type=float, default=1.5, help="perplexity ratio above which a row failed")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--json", type=Path, help="also append the lines to this file")
    options = parser.parse_args()
    if options.recipe is None and options.corpus is None:
        parser.error("without --recipe, give --corpus")

    def say(entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False)
        print(line, flush=True)
        if options.json is not None:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    model = load_model(options.model, dtype=getattr(torch, options.dtype), device=options.device)
    facts = read_records("counterfact", options.facts).draw().facts
    texts = [text for text in open_corpus(str(options.prose)).documents() if len(text) >= 500][: options.texts]
    recipes = recipes_of(model, rows_named(options.rows), options)
    say({"command": "python " + " ".join(sys.argv), "versions": software_versions(), "device": str(model.device)})
    for seed in options.seeds:
        examination = examination_of(facts, options.count, texts, seed)
        before = examine(model, examination)
        assert before.perplexity is not None
        common = {"seed": seed, "facts": options.count, "batch_size": options.batch_size}
        unedited = {**shares(before, seed), "perplexity": round(before.perplexity.value, 3)}
        say({"row": "unedited", **common, **unedited})
        for row, recipe in recipes.items():
            found = edited(model, recipe, examination, before, seed, options.alarm)
            say({"row": row, **common, "layers": list(recipe.layers), **found})


if __name__ == "__main__":
    main()
