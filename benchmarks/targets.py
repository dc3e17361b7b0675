"""Speed of the target search: all facts together with replay, compared with one fact at a time on whole sequences.

Both run in this process with the same threads, in float32, on the same facts, contexts and settings. The reference
(tests/reference/target.py) is a fair one: it runs one fact with all its contexts in one forward pass, with frozen
weights. It may search fewer facts; its time is then scaled by the number of losses evaluated.

    python benchmarks/targets.py                      the embedded model, at its first and last critical layer
    python benchmarks/targets.py --model gpt2-small   a randomly initialised GPT-2 small, at block 4
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from transformers import GPT2Config, GPT2LMHeadModel

# tests/reference is not part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errata.editing.contexts import generate_prefixes
from errata.editing.recipe import shipped_recipe
from errata.editing.target_loss import TargetSettings
from errata.editing.target_search import Targets, find_targets
from errata.facts.fact import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel, Site
from errata.utils.provenance import software_versions

from tests.reference.target import ReferenceTarget, search, texts_of

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
    """

    model: str
    layer: int
    leaving: bool
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
    *,
    leaving: bool,
) -> SearchTiming:
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
    found, seconds = timed(lambda: ours(facts, settings))
    plain, reference_seconds = timed(lambda: reference(some, settings))
    return SearchTiming(
        model=model.name,
        layer=layer,
        leaving=leaving,
        seconds=seconds,
        evaluations=int(found.evaluations.sum()),
        reference_seconds=reference_seconds,
        reference_evaluations=sum(target.evaluations for target in plain),
        mean_loss=float(found.loss[: len(some)].mean()),
        reference_mean_loss=sum(target.loss for target in plain) / len(plain),
    )


def table(measurements: Sequence[SearchTiming]) -> str:
    """One line per measurement; seconds of the reference are scaled to all evaluations."""
    lines = [
        f"{'model':<12}{'layer':>6}{'leaving':>9}{'evaluations':>13}{'ours (s)':>10}{'reference (s)':>15}{'ratio':>8}"
        f"{'mean loss':>12}{'reference':>11}"
    ]
    lines += [
        f"{row.model:<12}{row.layer:>6}{'yes' if row.leaving else 'no':>9}{row.evaluations:>13}{row.seconds:>10.2f}"
        f"{row.scaled_reference_seconds:>15.2f}{row.ratio:>7.1f}×{row.mean_loss:>12.4f}{row.reference_mean_loss:>11.4f}"
        for row in measurements
    ]
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["lab", "gpt2-small"], default="lab")
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
    recipe = shipped_recipe("lab", "memit")
    settings = recipe.target if options.steps is None else recipe.target.model_copy(update={"steps": options.steps})
    prefixes = generate_prefixes(lab, recipe.contexts)
    facts = lab_facts(lab_world(), options.facts, seed=options.seed)
    model = lab if options.model == "lab" else gpt2_small(lab)
    layers = options.layer or ([recipe.layers[0], recipe.layers[-1]] if options.model == "lab" else [4])
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
        measure(model, facts, options.reference_facts, prefixes, layer, settings, leaving=leaving)
        for layer in layers
        for leaving in (False, True)
    ]
    print(table(measurements))
    if options.json is not None:
        rows = [{**asdict(row), "ratio": row.ratio} for row in measurements]
        record = {
            "threads": options.threads,
            "facts": options.facts,
            "reference_facts": options.reference_facts,
            "contexts": len(prefixes) + 1,
            "settings": settings.model_dump(),
            "tokens": asdict(lengths),
            "versions": software_versions(),
            "measurements": rows,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
