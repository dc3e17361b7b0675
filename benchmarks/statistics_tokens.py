"""How many tokens key statistics need: the same targets, solved with C over more and more text.

Targets do not depend on C, so they are searched once; with boundary updates, too, the target of the last layer is the
one found on the unedited weights, so that only C differs between runs. For each method and amount of text the table
shows ‖ΔW − ΔW*‖/‖ΔW*‖, where ΔW* is solved with the most text, the largest of all layers, and what the edited model
recalls. ``--shrinkage`` also replaces C by (1 − s)·C + s·(tr C / d)·I.

    python benchmarks/statistics_tokens.py --model smollm2-135m-instruct --facts counterfact.json \
        --corpus wikipedia.txt --tokens 5000,20000,50000,200000,1000000 --shrinkage 0,0.01,0.1

``--quick`` searches no targets and evaluates nothing: residuals are Gaussian, keys those of the unedited weights, and
only the distance is shown. It takes a minute beside the statistics.

``--precision`` compares products of keys in float32 with those in float64 instead, in error and in time.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import markdown_table, write_json
from torch import Tensor

from errata.datasets.reading import read_dataset
from errata.editing.batch import read_keys, write_group
from errata.editing.contexts import generate_prefixes
from errata.editing.keys import SubjectTexts
from errata.editing.preparation import EditContext
from errata.editing.recipe import Recipe, shipped_recipe
from errata.editing.target_search import LayerTarget, layer_targets
from errata.errors import EditError
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.results.metrics import Metric
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import SecondMoment
from errata.statistics.settings import StatisticsSettings
from errata.statistics.store import moments_for
from errata.utils.provenance import software_versions

METHODS = ("memit", "memit+blue", "alphaedit", "alphaedit+blue")
METRICS = (
    Metric.EFFICACY_SUCCESS,
    Metric.EFFICACY_ACCURACY,
    Metric.GENERALISATION_SUCCESS,
    Metric.GENERALISATION_ACCURACY,
    Metric.SPECIFICITY_SUCCESS,
)


def recall(model: LanguageModel, facts: Sequence[Fact]) -> dict[str, float]:
    """The mean of each metric, in per cent."""
    values = defaultdict(list)
    for record in evaluate_facts(model, facts):
        values[record.metric].append(record.value)
    return {metric: 100 * sum(values[metric]) / len(values[metric]) for metric in METRICS if values[metric]}


def shrunk(matrix: Tensor, share: float) -> Tensor:
    return (1 - share) * matrix + share * matrix.trace() / len(matrix) * torch.eye(len(matrix), dtype=matrix.dtype)


def solved(
    model: LanguageModel,
    recipe: Recipe,
    prefixes: Sequence[str],
    texts: SubjectTexts,
    targets: Mapping[int, LayerTarget],
    means: Mapping[int, Tensor],
) -> tuple[dict[int, Tensor], dict[str, float]]:
    """ΔW of each layer, dense, and the recall of the edited model, which is restored."""
    solvers = {step.layer: recipe.solver.prepare(means[step.layer]) for step in recipe.steps}
    context = EditContext(model, recipe, prefixes, recipe.steps)
    with model.edits.transaction():
        group = write_group(context, texts, solvers, [], targets)
    try:
        changes: dict[int, Tensor] = {}
        for term in group.terms:
            change = changes.setdefault(term.layer, torch.zeros_like(model.weight(term.layer), dtype=torch.float64))
            term.add_to(change)
        return changes, recall(model, texts.facts)
    finally:
        model.edits.remove(group.terms)


def distance(changes: Mapping[int, Tensor], reference: Mapping[int, Tensor]) -> float:
    """The largest relative difference of a layer."""
    return max(float((changes[layer] - other).norm() / other.norm()) for layer, other in reference.items())


def quick(options: argparse.Namespace) -> None:
    """The distance alone, for Gaussian residuals: ΔW = R·Q, and Q is what C decides."""
    model = LanguageModel.load(options.model, dtype=torch.float32, device=options.device)
    facts = read_dataset("counterfact", options.facts).facts.facts[: options.count]
    recipes = {method: shipped_recipe(Path(options.model).name, method) for method in options.methods.split(",")}
    first = next(iter(recipes.values()))
    layers = sorted({step.layer for recipe in recipes.values() for step in recipe.steps})
    prefixes = generate_prefixes(model, first.contexts)
    texts = SubjectTexts.tokenise(model, facts, prefixes)
    keys = read_keys(EditContext(model, first, prefixes, first.steps), texts, layers)
    width, height = model.weight(layers[0]).shape[1], model.weight(layers[0]).shape[0]
    generator = torch.Generator().manual_seed(0)
    residuals = torch.randn(height, len(facts), generator=generator, dtype=torch.float64)
    amounts = sorted((int(text) for text in options.tokens.split(",")), reverse=True)
    moments = {}
    for tokens in amounts:
        settings = StatisticsSettings(corpus=str(options.corpus.resolve()), tokens=tokens, length=options.length)
        found = moments_for(model, layers, settings)
        moments[tokens] = {layer: moment.mean.cpu() for layer, moment in found.items()}
    shares = [float(text) for text in options.shrinkage.split(",")]
    lines = []
    for method, recipe in recipes.items():
        if method.endswith("+blue"):
            continue  # the same solver in fewer layers
        reference: dict[int, Tensor] = {}
        for tokens in amounts:
            for share in shares:
                changes = {}
                for layer in layers:
                    solver = recipe.solver.prepare(shrunk(moments[tokens][layer], share))
                    changes[layer] = solver.solve(keys[layer][0].cpu(), residuals).dense()
                reference = reference or changes
                away = [float((changes[layer] - reference[layer]).norm() / reference[layer].norm()) for layer in layers]
                size = [float(changes[layer].norm() / reference[layer].norm()) for layer in layers]
                cells = [f"{min(away):.3f} – {max(away):.3f}", f"{min(size):.2f} – {max(size):.2f}"]
                lines.append([method, f"{tokens:,}", f"{tokens / width:.1f}", f"{share:g}", *cells])
    print(f"{options.model}: {len(facts)} facts, W has {width} columns, layers {layers}, Gaussian residuals\n")
    print(markdown_table(["method", "tokens", "per column", "s", "‖ΔW − ΔW*‖/‖ΔW*‖", "‖ΔW‖/‖ΔW*‖"], lines))


def compare(options: argparse.Namespace) -> None:
    model = LanguageModel.load(options.model, dtype=torch.float32, device=options.device)
    facts = read_dataset("counterfact", options.facts).facts.facts[: options.count]
    recipes = {method: shipped_recipe(Path(options.model).name, method) for method in options.methods.split(",")}
    first = next(iter(recipes.values()))
    layers = sorted({step.layer for recipe in recipes.values() for step in recipe.steps})
    width = model.weight(layers[0]).shape[1]
    prefixes = generate_prefixes(model, first.contexts)
    texts = SubjectTexts.tokenise(model, facts, prefixes)
    amounts = sorted(int(text) for text in options.tokens.split(","))
    shares = [float(text) for text in options.shrinkage.split(",")]

    moments: dict[int, dict[int, SecondMoment]] = {}
    seconds: dict[int, float] = {}
    for tokens in amounts:
        began = time.perf_counter()
        settings = StatisticsSettings(corpus=str(options.corpus.resolve()), tokens=tokens, length=options.length)
        moments[tokens] = moments_for(model, layers, settings)
        seconds[tokens] = time.perf_counter() - began
        print(f"{tokens:,} tokens: {seconds[tokens]:.0f} s (0 if they were cached)", flush=True)
    targets: dict[int, LayerTarget] = {}
    for recipe in recipes.values():
        context = EditContext(model, recipe, prefixes, recipe.steps)
        for step in recipe.steps:
            if step.target_layer not in targets:
                began = time.perf_counter()
                targets |= layer_targets(context, texts, step, [])
                print(f"targets at layer {step.target_layer}: {time.perf_counter() - began:.0f} s", flush=True)

    print(f"\n{options.model}: {len(facts)} facts, W has {width} columns, layers {layers}, before: "
          f"{ {name: round(value, 1) for name, value in recall(model, facts).items()} }\n", flush=True)  # fmt: skip
    rows: list[dict[str, Any]] = []
    lines: list[list[object]] = []
    for method, recipe in recipes.items():
        own = {step.target_layer: targets[step.target_layer] for step in recipe.steps}
        reference: Mapping[int, Tensor] | None = None
        for tokens in reversed(amounts):
            for share in shares:
                means = {layer: shrunk(moments[tokens][layer].mean.cpu(), share) for layer in layers}
                name = f"{method}, s = {share:g}" if share else method
                try:
                    changes, values = solved(model, recipe, prefixes, texts, own, means)
                except EditError as error:
                    rows.append({"method": method, "tokens": tokens, "shrinkage": share, "failed": error.code})
                    lines.append([name, f"{tokens:,}", f"{tokens / width:.1f}", error.code])
                    continue
                if reference is None:
                    reference = changes
                away = distance(changes, reference)
                change = max(float(found.norm() / model.weight(layer).norm()) for layer, found in changes.items())
                rows.append(
                    {"method": method, "tokens": tokens, "shrinkage": share, "distance": away, "size": change} | values
                )
                cells = [f"{away:.3f}", f"{change:.3f}", *(f"{value:.1f}" for value in values.values())]
                lines.append([name, f"{tokens:,}", f"{tokens / width:.1f}", *cells])
                print(f"{name}, {tokens:,}: {cells}", flush=True)
    head = ["method", "tokens", "per column", "ΔW from the most", "‖ΔW‖/‖W‖", *map(str, METRICS)]
    print(f"\n{markdown_table(head, [line + [''] * (len(head) - len(line)) for line in lines])}")
    about = {"model": options.model, "facts": len(facts), "width": width, "seconds": seconds}
    write_json(options.json, {**about, "versions": software_versions(), "rows": rows})


def precision(options: argparse.Namespace) -> None:
    """Sums of the same keys by products in float32 and in float64."""
    model = LanguageModel.load(options.model, dtype=torch.float32, device=options.device)
    layer = shipped_recipe(Path(options.model).name, "memit").layers[-1]
    rows = [model.tokenizer(text)["input_ids"][: options.length] for text in open_corpus("builtin").documents()][:64]
    keys = []
    for row in rows:
        with model.capture({Site.KEY: [layer]}) as read, torch.no_grad():
            model.run_captured({"input_ids": torch.tensor([row], device=model.device)})
        keys.append(read[Site.KEY, layer][0])
    found = torch.cat(keys)
    sums, seconds = [], []
    for dtype in (torch.float32, torch.float64):
        moment = SecondMoment.zeros(found.shape[1], model.device)
        typed = found.to(dtype)
        moment.add(typed)  # warm-up
        moment = SecondMoment.zeros(found.shape[1], model.device)
        began = time.process_time()
        moment.add(typed)
        seconds.append(time.process_time() - began)
        sums.append(moment.total)
    error = float((sums[0] - sums[1]).norm() / sums[1].norm())
    print(
        f"{len(found)} keys of {found.shape[1]} entries at layer {layer}: products in float32 differ by {error:.1e} of "
        f"the norm; {seconds[0]:.2f} s in float32, {seconds[1]:.2f} s in float64"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model with a shipped recipe")
    parser.add_argument("--facts", type=Path, help="CounterFact records")
    parser.add_argument("--corpus", type=Path, help="text with blank lines between documents")
    parser.add_argument("--count", type=int, default=50, help="facts (50)")
    parser.add_argument("--tokens", default="5000,20000,50000,200000", help="amounts, comma-separated")
    parser.add_argument("--shrinkage", default="0", help="shares s, comma-separated; 0 first (0)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--length", type=int, default=512, help="tokens of a document to read (512)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="Gaussian residuals, no search and no evaluation")
    parser.add_argument("--precision", action="store_true", help="compare float32 and float64 products instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.precision:
        precision(options)
    elif options.quick and options.facts is not None and options.corpus is not None:
        quick(options)
    elif options.facts is None or options.corpus is None:
        parser.error("--facts and --corpus are needed")
    else:
        compare(options)


if __name__ == "__main__":
    main()
