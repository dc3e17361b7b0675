"""Speed of the target search: all facts together with replay, compared with one fact at a time on whole sequences.

Both run in this process with the same threads, in float32, on the same facts, contexts and settings. The reference
(tests/reference/target.py) is a fair one: it runs one fact with all its contexts in one forward pass, with frozen
weights. It may search fewer facts; its time is then scaled by the number of losses evaluated.

    python benchmarks/targets.py                      the embedded model, at its first and last critical layer
    python benchmarks/targets.py --model gpt2-small   a randomly initialised GPT-2 small, at block 4
    python benchmarks/targets.py --model smollm2-135m-instruct --facts-file counterfact_300.json --whole-edits

Other models take their shipped recipe for memit+blue and facts of a CounterFact file; the layers are those that it
writes. With ``--whole-edits`` whole edits are timed too: contexts, searches, keys, solving, writing and checks.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

# tests/reference is not part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errata.analysis.cost import SearchRows, search_flops
from errata.datasets.reading import read_dataset
from errata.editing.contexts import ContextSettings, generate_prefixes
from errata.editing.recipe import Recipe, shipped_recipe
from errata.editing.search_groups import GroupLimits
from errata.editing.target_loss import TargetSettings
from errata.editing.target_search import Targets, find_targets
from errata.editors.locate_then_edit import Editor
from errata.facts.fact import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel, Site
from errata.models.replay import pass_cost
from errata.models.size import ModelSize
from errata.utils.provenance import software_versions

from tests.reference.target import ReferenceLoss, ReferenceTarget, search, texts_of

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SearchTiming:
    """One row of the table.

    Attributes:
        leaving: whether converged facts leave the batch, and the reference stops there too.
        seconds: for all facts together.
        evaluations: losses evaluated in that time, over all facts.
        reference_seconds: as measured, for the reference's facts only.
        reference_evaluations: losses evaluated in that time.
        mean_loss: the last loss, over the reference's facts.
        reference_mean_loss: the same by the reference.
        mode: ``exact`` or ``fast``; the reference is exact.
        operations: of a fact, in 10⁹, if it stays until the last evaluation; of our exact search by calculation.
        reference_operations: the same for the reference, by torch's counter.
        padding: share of replayed tokens that are padding.
    """

    model: str
    layer: int
    mode: str
    leaving: bool
    operations: float
    reference_operations: float
    padding: float
    seconds: float
    evaluations: int
    reference_seconds: float
    reference_evaluations: int
    mean_loss: float
    reference_mean_loss: float

    @property
    def scaled_reference_seconds(self) -> float:
        """The reference's time for as many evaluations as ours made."""
        return self.reference_seconds * self.evaluations / self.reference_evaluations

    @property
    def ratio(self) -> float:
        return self.scaled_reference_seconds / self.seconds


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Mean tokens of a row (a fact in one context, with the target; KL prompts are rows too).

    Attributes:
        before: tokens before the subject's last token, which are run once.
        behind: tokens from it on, which are replayed.
        target: target tokens, over rows that have any.
    """

    before: float
    behind: float
    target: float


def token_lengths(model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str]) -> TokenLengths:
    texts = [text for fact in facts for text in texts_of(model.tokenizer, fact, prefixes)]
    targets = [len(text.ids) - text.target_start for text in texts if text.target_start < len(text.ids)]
    before = sum(text.subject for text in texts) / len(texts)
    return TokenLengths(
        before, sum(len(text.read) for text in texts) / len(texts) - before, sum(targets) / len(targets)
    )


def gpt2_small(lab: LanguageModel) -> LanguageModel:
    """GPT-2 small's configuration with random weights; the lab's tokenizer, whose tokens are the first of 50,257."""
    special = lab.tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # transformers initialises from the global generator only
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=special, eos_token_id=special))
    return LanguageModel(model, lab.tokenizer, name="gpt2-small")


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def measure(
    model: LanguageModel,
    facts: Sequence[Fact],
    reference_facts: int,
    prefixes: Sequence[str],
    layer: int,
    settings: TargetSettings,
    contexts: ContextSettings,
    *,
    leaving: bool,
    modes: Sequence[str] = ("exact",),
) -> list[SearchTiming]:
    if not leaving:
        settings = settings.model_copy(update={"stop_loss": 0.0})  # no loss is below it: all steps for all facts
    some = facts[:reference_facts]

    def ours(facts: Sequence[Fact], settings: TargetSettings) -> Targets:
        return find_targets(model, facts, prefixes, layer, Site.BLOCK, settings)

    def reference(facts: Sequence[Fact], settings: TargetSettings) -> list[ReferenceTarget]:
        return [search(model, fact, prefixes, layer, Site.BLOCK, settings) for fact in facts]

    two_steps = settings.model_copy(update={"steps": 2})
    ours(facts[:2], two_steps)  # warm-up, for both
    reference(facts[:2], two_steps)
    size, limits = ModelSize.of(model.model), GroupLimits.of(model, None)
    rows = SearchRows.of(model.tokenizer, facts, contexts, prefixes, pass_cost(model), limits)
    texts = [text for fact in facts for text in texts_of(model.tokenizer, fact, prefixes)]
    replayed = sum(bucket.rows * bucket.replayed for bucket in rows.buckets)
    plain, reference_seconds = timed(lambda: reference(some, settings))
    timings = []
    for mode in modes:
        chosen = settings.model_copy(update={"mode": mode})
        found, seconds = timed(partial(ours, facts, chosen))
        timings.append(
            SearchTiming(
                model=model.name,
                layer=layer,
                mode=mode,
                leaving=leaving,
                operations=search_flops(size, rows, layer, settings.steps) / len(facts) / 1e9,
                reference_operations=_reference_operations(model, some, prefixes, layer, settings),
                padding=1 - sum(len(text.read) - text.subject for text in texts) / replayed,
                seconds=seconds,
                evaluations=int(found.evaluations.sum()),
                reference_seconds=reference_seconds,
                reference_evaluations=sum(target.evaluations for target in plain),
                mean_loss=float(found.loss[: len(some)].mean()),
                reference_mean_loss=sum(target.loss for target in plain) / len(plain),
            )
        )
    return timings


def _reference_operations(
    model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, settings: TargetSettings
) -> float:
    """In 10⁹ for a fact: products in ``steps`` losses and one gradient less, without attention's own."""
    loss_of = [ReferenceLoss(model, fact, prefixes, layer, Site.BLOCK, settings) for fact in facts]
    delta = torch.zeros(model.weight(layer).shape[0], requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        losses = [each(delta) for each in loss_of]
    with FlopCounterMode(display=False) as backward:
        torch.stack(losses).sum().backward()
    counted = settings.steps * forward.get_total_flops() + (settings.steps - 1) * backward.get_total_flops()
    return counted / len(facts) / 1e9


def measure_edits(
    model: LanguageModel, facts: Sequence[Fact], recipe: Recipe, modes: Sequence[str]
) -> list[tuple[str, float]]:
    """Whole edits of the facts in one batch: mode and seconds.

    They are not compared with the reference's search above: within an edit the second search starts where the first
    one left the model, and has less to do.
    """
    found: list[tuple[str, float]] = []
    for mode in modes:
        settings = {"target": {**recipe.target.model_dump(), "mode": mode}, "batch_size": len(facts)}
        editor = Editor(model, recipe.with_choices(settings))
        patch, seconds = timed(partial(editor.apply, facts))
        patch.undo(model)
        found.append((mode, seconds))
    return found


def table(measurements: Sequence[SearchTiming]) -> str:
    """One line per measurement; seconds of the reference are scaled to all evaluations."""
    lines = [
        f"{'model':<22}{'layer':>6}{'mode':>7}{'leaving':>9}{'evaluations':>13}{'ours (s)':>10}{'reference (s)':>15}"
        f"{'ratio':>8}{'mean loss':>12}{'reference':>11}{'10⁹ operations of a fact':>26}{'reference':>11}{'padding':>9}"
    ]
    lines += [
        f"{row.model:<22}{row.layer:>6}{row.mode:>7}{'yes' if row.leaving else 'no':>9}{row.evaluations:>13}"
        f"{row.seconds:>10.2f}{row.scaled_reference_seconds:>15.2f}{row.ratio:>7.1f}×{row.mean_loss:>12.4f}"
        f"{row.reference_mean_loss:>11.4f}{row.operations if row.mode == 'exact' else math.nan:>26.0f}"
        f"{row.reference_operations:>11.0f}{100 * row.padding:>8.1f}%"
        for row in measurements
    ]
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab", help="lab, gpt2-small, or a model with a shipped recipe")
    parser.add_argument("--facts-file", type=Path, help="CounterFact records, for models with a shipped recipe")
    parser.add_argument("--modes", default="exact", help="exact, fast or both (exact,fast)")
    parser.add_argument("--whole-edits", action="store_true", help="also time whole edits; needs a model with a recipe")
    parser.add_argument(
        "--leaving", choices=["no", "yes", "both"], default="both", help="whether converged facts leave"
    )
    parser.add_argument(
        "--layer", type=int, action="append", help="repeatable; default for lab: first and last, for gpt2-small: 4"
    )
    parser.add_argument("--facts", type=int, default=100, help="facts of our search (100)")
    parser.add_argument("--reference-facts", type=int, default=10, help="facts of the reference (10)")
    parser.add_argument("--steps", type=int, help="most evaluations of the loss (the lab recipe's)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both (2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the facts (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to this file")
    options = parser.parse_args(argv)
    if not 0 < options.reference_facts <= options.facts:
        parser.error("--reference-facts must be between 1 and --facts")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    lab = LanguageModel.load("lab", dtype=torch.float32, device="cpu")
    made = options.model in ("lab", "gpt2-small")
    recipe = shipped_recipe("lab", "memit") if made else shipped_recipe(options.model, "memit+blue")
    settings = recipe.target if options.steps is None else recipe.target.model_copy(update={"steps": options.steps})
    if made:
        facts: Sequence[Fact] = lab_facts(lab_world(), options.facts, seed=options.seed)
        model, prefixes = lab if options.model == "lab" else gpt2_small(lab), generate_prefixes(lab, recipe.contexts)
    else:
        model = LanguageModel.load(options.model, dtype=torch.float32, device="cpu")
        dataset = read_dataset("counterfact", options.facts_file, count=options.facts, seed=options.seed)
        facts, prefixes = dataset.facts.facts, generate_prefixes(model, recipe.contexts)
    layers = options.layer or ([4] if options.model == "gpt2-small" else [recipe.layers[0], recipe.layers[-1]])
    model.check_layers(layers)

    if not isinstance(settings, TargetSettings):
        raise SystemExit("this benchmark times the targets of memit")
    lengths = token_lengths(model, facts, prefixes)
    print(
        f"{options.facts} facts (the reference: {options.reference_facts}, scaled), bare prompt + {len(prefixes)} "
        f"prefixes + KL prompt, at most {settings.steps} evaluations, float32, {torch.get_num_threads()} threads"
    )
    print(
        f"tokens of a row, mean: {lengths.before:.1f} before the subject's last token, {lengths.behind:.1f} from it "
        f"on; {lengths.target:.1f} of a target"
    )
    measurements = [
        row
        for layer in layers
        for leaving in {"no": (False,), "yes": (True,), "both": (False, True)}[options.leaving]
        for row in measure(
            model, facts, options.reference_facts, prefixes, layer, settings, recipe.contexts,
            leaving=leaving, modes=options.modes.split(","),
        )
    ]  # fmt: skip
    print(table(measurements))
    edits = measure_edits(model, facts, recipe, options.modes.split(",")) if options.whole_edits else []
    for mode, seconds in edits:
        print(f"whole edit of {len(facts)} facts, {mode}: {seconds:.1f} s")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if options.json is not None:
        rows = [{**asdict(row), "ratio": row.ratio} for row in measurements]
        record = {
            "threads": options.threads,
            "facts": options.facts,
            "reference_facts": options.reference_facts,
            "contexts": len(prefixes) + 1,
            "settings": settings.model_dump(),
            "tokens": asdict(lengths),
            "whole_edits": edits,
            "versions": software_versions(),
            "measurements": rows,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
