"""Which layers of the embedded model hold its facts: causal tracing, and editing each layer alone.

    python benchmarks/lab_layers.py --facts 200 --edits 25 --out docs/lab_layers.json

Tracing (Meng et al., 2022, "Locating and Editing Factual Associations in GPT", section 2): Gaussian noise on the
subject's embeddings spoils the answer; then what one place held in the clean run is put back at the subject's last
token, and the probability of the answer's first token that this brings back is that place's indirect effect.
Editing: one layer alone is written with MEMIT's recipe, and taken back again. Writes the JSON, prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from errata.edit import Editor
from errata.errors import ErrataError, InputError
from errata.evaluation.intervals import interval_of, resampled_sums
from errata.evaluation.recall import evaluate_facts, score
from errata.evaluation.records import Metric, Summary, When, summarise
from errata.facts import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.lab.world import World
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.prompts import PaddedBatch, complete, length_batches, pad
from errata.output import write_text
from errata.patch import software_versions
from errata.progress import Report, silent
from errata.recipe import shipped_recipe
from errata.statistics.store import moments_for, packaged_moments

SEED = 900  # for tuning: no report draws its facts with it
NOISE = 3.0  # in standard deviations of the embedding entries of the subjects' tokens
RESAMPLES = 1000
METRICS = {
    Metric.EFFICACY_ACCURACY: "efficacy",
    Metric.GENERALISATION_ACCURACY: "generalisation",
    Metric.SAME_SUBJECT_ACCURACY: "same subject",
    Metric.SPECIFICITY_ACCURACY: "specificity",
}
Array: TypeAlias = NDArray[np.float64]
Change: TypeAlias = Callable[[Tensor], Tensor]


class Part(StrEnum):
    """What is restored: the block's output at one layer; the others over a window of blocks."""

    BLOCK = "block"
    MLP = "mlp"
    ATTENTION = "attention"


# Tracing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's token ids, where among them the subject's tokens are, and the first token of the answer."""

    ids: tuple[int, ...]
    subject: tuple[int, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Probabilities of the answers' first tokens, means over the noise samples.

    Attributes:
        clean: (facts,) undisturbed.
        corrupted: (facts,) with noise on the subject.
        restored: part -> (facts, layers) with the same noise, and the clean values put back there.
        sigma: standard deviation of the embedding entries, which the noise is a multiple of.
    """

    clean: Array
    corrupted: Array
    restored: Mapping[Part, Array]
    sigma: float


def prompts_of(model: LanguageModel, facts: Sequence[Fact]) -> list[Prompt]:
    """The facts' prompts with their true answers.

    Raises:
        InputError: if a fact has no truth.
    """
    pairs = [(fact.text, fact.truth) for fact in facts if fact.truth is not None]
    if len(pairs) < len(facts):
        raise InputError("a fact without 'truth' cannot be traced", remedy="Trace facts that the model knows")
    prompts = []
    for fact, completion in zip(facts, complete(model.tokenizer, pairs), strict=True):
        start, end = fact.subject_span
        offsets = completion.encoded.offsets[: completion.target_start]
        subject = tuple(index for index, (first, stop) in enumerate(offsets) if max(first, start) < min(stop, end))
        prompts.append(Prompt(completion.ids[: completion.target_start], subject, completion.target_ids[0]))
    return prompts


def window_around(layer: int, size: int, layers: int) -> range:
    """``size`` blocks around a layer, cut at both ends of the model; an even window has the layer in its upper half."""
    return range(max(0, layer - size // 2), min(layers, layer + (size + 1) // 2))


def trace(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    window: int,
    generator: torch.Generator,
    report: Report = silent,
) -> Trace:
    """Trace all prompts, batched over prompts × noise samples; a prompt's noise is the same in every cell.

    Args:
        samples: draws of noise per prompt.
        window: blocks whose MLP, or attention, outputs are restored together.
        generator: of the noise, on the CPU; what it draws does not depend on the batches.
    """
    layers = range(len(model.blocks))
    embedding = model.model.get_submodule(model.architecture.embedding)
    with torch.no_grad():
        tokens = torch.tensor([prompt.ids[index] for prompt in prompts for index in prompt.subject])
        entries: Tensor = embedding(tokens.to(model.device)).float()
    sigma = float(entries.std(correction=0))
    noise = [
        NOISE * sigma * torch.randn(samples, len(prompt.subject), entries.shape[1], generator=generator)
        for prompt in prompts
    ]
    clean, corrupted = np.zeros(len(prompts)), np.zeros(len(prompts))
    restored = {part: np.zeros((len(prompts), len(layers))) for part in Part}
    done = 0
    budget = max(1, TOKEN_BUDGET // samples)
    for chosen in length_batches([len(prompt.ids) for prompt in prompts], token_budget=budget):
        once = _Pass.of(model, [prompts[index] for index in chosen])
        rows = _Pass.of(model, [prompts[index] for index in chosen for _ in range(samples)])
        states: dict[tuple[Part, int], Tensor] = {}
        readers = [(_module(model, part, layer), once.read(states, (part, layer))) for part in Part for layer in layers]
        clean[chosen] = once.probabilities(readers)
        corrupt = (embedding, rows.add([row for index in chosen for row in noise[index]]))
        corrupted[chosen] = rows.probabilities([corrupt]).reshape(-1, samples).mean(1)
        for part in Part:
            for layer in layers:
                reach = window_around(layer, 1 if part is Part.BLOCK else window, len(layers))
                put_back = [
                    (_module(model, part, near), rows.write(states[part, near].repeat_interleave(samples, 0)))
                    for near in reach
                ]
                restored[part][chosen, layer] = rows.probabilities([corrupt, *put_back]).reshape(-1, samples).mean(1)
        done += len(chosen)
        report("facts traced", done, len(prompts))
    return Trace(clean, corrupted, restored, sigma)


def _module(model: LanguageModel, part: Part, layer: int) -> nn.Module:
    row = model.architecture
    paths = {Part.BLOCK: "", Part.MLP: row.mlp, Part.ATTENTION: row.attention_output}
    return model.blocks[layer].get_submodule(paths[part])


@dataclass(frozen=True, slots=True)
class _Pass:
    """Prompts that are run together, and changes to what modules give out on the way.

    Attributes:
        flat: (rows,) the subject's last token, counted through all rows: OPT flattens (rows, length) in its MLP.
    """

    model: LanguageModel
    prompts: Sequence[Prompt]
    batch: PaddedBatch
    flat: Tensor

    @classmethod
    def of(cls, model: LanguageModel, prompts: Sequence[Prompt]) -> _Pass:
        batch = pad([prompt.ids for prompt in prompts], left=False, device=model.device)
        length = batch.input_ids.shape[1]
        flat = [row * length + prompt.subject[-1] for row, prompt in enumerate(prompts)]
        return cls(model, prompts, batch, torch.tensor(flat, device=model.device))

    def read(self, found: dict[tuple[Part, int], Tensor], key: tuple[Part, int]) -> Change:
        """Keeps (rows, d) at the subject's last token under ``key``."""

        def change(output: Tensor) -> Tensor:
            found[key] = output.reshape(-1, output.shape[-1])[self.flat]
            return output

        return change

    def write(self, values: Float[Tensor, "rows d"]) -> Change:
        """Puts values at the subject's last token."""

        def change(output: Tensor) -> Tensor:
            return output.reshape(-1, output.shape[-1]).index_copy(0, self.flat, values).view_as(output)

        return change

    def add(self, noise: Sequence[Tensor]) -> Change:
        """Adds each row's noise (subject tokens, d) to its subject's tokens."""
        whole = torch.zeros(*self.batch.input_ids.shape, noise[0].shape[-1])
        for row, (prompt, values) in enumerate(zip(self.prompts, noise, strict=True)):
            whole[row, list(prompt.subject)] = values
        moved = whole.to(self.model.device, self.model.dtype)
        return lambda output: output + moved

    def probabilities(self, changes: Sequence[tuple[nn.Module, Change]]) -> Array:
        """(rows,): what the model with these changes holds the answers' first tokens to be worth."""
        rows = torch.arange(len(self.prompts), device=self.model.device)
        last = self.batch.attention_mask.sum(1) - 1
        with ExitStack() as hooks, torch.no_grad():
            for module, change in changes:
                hooks.enter_context(module.register_forward_hook(_hook(change)))
            # The head reads one place a row only; caps and projections around it stay the model's own business.
            hooks.enter_context(
                self.model.head.register_forward_pre_hook(lambda module, args: (args[0][rows, last].unsqueeze(0),))
            )
            logits: Tensor = self.model.model(**self.batch.inputs(), use_cache=False).logits[0]
        answers = torch.tensor([prompt.answer for prompt in self.prompts], device=logits.device)
        found: Array = logits.float().softmax(-1)[rows, answers].double().cpu().numpy()
        return found


def _hook(change: Change) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


# Both measurements, and their report ----------------------------------------------------------------------------------


def known_facts(model: LanguageModel, world: World, *, seed: int) -> list[Fact]:
    """One fact a person, of a random relation in a random wording, where the model's likeliest answer is the truth."""
    facts = lab_facts(world, len(world.people), seed=seed)
    scores = score(model, [(fact.text, fact.truth or "") for fact in facts])
    return [fact for fact, found in zip(facts, scores, strict=True) if found.correct]


def measure_tracing(
    model: LanguageModel, world: World, count: int, *, samples: int, window: int, report: Report = silent
) -> dict[str, Any]:
    """Average indirect effects with 95 % bootstrap intervals over facts.

    Raises:
        ErrataError: if the model knows no fact.
    """
    known = known_facts(model, world, seed=SEED)
    if not known:
        raise ErrataError("the model answers no fact correctly", remedy="Train it longer")
    facts = known[:count]
    generator = torch.Generator().manual_seed(SEED)
    started = time.perf_counter()
    found = trace(model, prompts_of(model, facts), samples=samples, window=window, generator=generator, report=report)
    probabilities = np.stack([found.clean, found.corrupted, found.clean - found.corrupted], axis=1)
    totals = dict(zip(("clean", "corrupted", "total_effect"), _estimates(probabilities), strict=True))
    effects = {part: _estimates(found.restored[part] - found.corrupted[:, None]) for part in Part}
    layers = len(model.blocks)
    return {
        "facts": len(facts),
        "known": len(known),
        "asked": len(world.people),
        "samples": samples,
        "noise_in_sigma": NOISE,
        "sigma": found.sigma,
        "window": window,
        "seed": SEED,
        "seconds": time.perf_counter() - started,
        **totals,
        "layers": [
            {"layer": layer, "window": list(window_around(layer, window, layers))}
            | {str(part): effects[part][layer] for part in Part}
            for layer in range(layers)
        ],
    }


def _estimates(values: Array) -> list[dict[str, float | None]]:
    """(facts, quantities) -> each quantity's mean with its interval."""
    facts = len(values)
    drawn = resampled_sums(np.ascontiguousarray(values.T), seed=0, resamples=RESAMPLES) / facts
    intervals = [interval_of(column, facts) for column in drawn.T]
    return [
        {"mean": float(mean), "low": low, "high": high}
        for mean, (low, high) in zip(values.mean(0), intervals, strict=True)
    ]


def measure_editing(model: LanguageModel, world: World, count: int, *, report: Report = silent) -> dict[str, Any]:
    """Accuracies after MEMIT wrote ``count`` facts into one layer alone, for each layer; the model is left as it was.

    Raises:
        EditError: if a layer cannot be edited.
    """
    facts = lab_facts(world, count, seed=SEED)
    layers = range(len(model.blocks))
    recipe = shipped_recipe("lab", "memit")
    fingerprint = model.fingerprint()
    started = time.perf_counter()
    # One pass over the corpus for all layers; each layer's editor then finds its own in the cache.
    moments_for(model, list(layers), recipe.statistics, read_only=packaged_moments())
    before = _accuracies(model, facts, "before")
    edited = []
    for layer in layers:
        report("layers edited", layer, len(layers))
        editor = Editor(model, recipe.model_copy(update={"schedule": "single", "layers": (layer,)}))
        patch = editor.apply(facts)
        seconds = sum(record.seconds for record in editor.records)
        edited.append(
            {"layer": layer, "norm": patch.norms()[layer], "seconds": seconds} | _accuracies(model, facts, "after")
        )
        patch.undo(model)
    report("layers edited", len(layers), len(layers))
    if model.fingerprint() != fingerprint:
        raise ErrataError("undoing the edits did not bring the model's weights back", remedy="Report this as a bug")
    return {
        "facts": count,
        "seed": SEED,
        "recipe": recipe.model_dump(mode="json", exclude={"layers", "schedule"}) | {"schedule": "single"},
        "seconds": time.perf_counter() - started,
        "before": before,
        "layers": edited,
    }


def _accuracies(model: LanguageModel, facts: Sequence[Fact], when: When) -> dict[str, Any]:
    summaries: dict[str, Summary] = {found.metric: found for found in summarise(evaluate_facts(model, facts), when)}
    wanted = ("mean", "low", "high", "n", "prompts")
    return {
        str(metric): {key: asdict(summaries[metric])[key] for key in wanted}
        for metric in METRICS
        if metric in summaries
    }


def markdown(tracing: Mapping[str, Any], editing: Mapping[str, Any]) -> str:
    """Both measurements as tables, each with a note."""
    heads = ("layer", "block output", "MLP outputs", "attention outputs", "blocks of the window")
    lines = [
        (
            str(entry["layer"]),
            *(_cell(entry[part], 1, 3) for part in Part),
            "–".join(str(layer) for layer in dict.fromkeys((entry["window"][0], entry["window"][-1]))),
        )
        for entry in tracing["layers"]
    ]
    note = (
        f"Average indirect effect on the probability of the answer's first token [95 % interval over "
        f"{tracing['facts']} facts], restored at the subject's last token; {tracing['samples']} noise samples of "
        f"{tracing['noise_in_sigma']:g}σ. Probability {_cell(tracing['clean'], 1, 3)} clean, "
        f"{_cell(tracing['corrupted'], 1, 3)} corrupted. Facts from the {tracing['known']} of {tracing['asked']} that "
        f"the model answered correctly."
    )
    edits = [
        (name, *(_cell(entry.get(metric), 100, 1) for metric in METRICS))
        for name, entry in [("before", editing["before"])]
        + [(str(entry["layer"]), entry) for entry in editing["layers"]]
    ]
    edit_note = f"Accuracy in % after {editing['facts']} facts in this layer alone [95 % interval over facts]."
    return f"{_table(heads, lines)}\n\n{note}\n\n{_table(('layer', *METRICS.values()), edits)}\n\n{edit_note}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def _cell(entry: Mapping[str, float | None] | None, scale: float, digits: int) -> str:
    if entry is None:
        return "–"
    mean, low, high = (None if entry[key] is None else scale * (entry[key] or 0) for key in ("mean", "low", "high"))
    return f"{mean:.{digits}f}" + ("" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _tell(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", file=sys.stderr)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description="Which layers of the embedded model hold its facts.")
    parser.add_argument("--facts", type=_positive, default=200, help="facts to trace (at most one a person)")
    parser.add_argument("--edits", type=_positive, default=25, help="facts to edit into each layer")
    parser.add_argument("--samples", type=_positive, default=10, help="draws of noise per fact")
    # About 20 % of eight blocks.
    parser.add_argument(
        "--window", type=_positive, default=2, help="blocks whose MLP or attention is restored together"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    model, world = LanguageModel.load("lab"), lab_world()
    tracing = measure_tracing(model, world, options.facts, samples=options.samples, window=options.window, report=_tell)
    editing = measure_editing(model, world, options.edits, report=_tell)
    record = {
        "model": {"name": "lab", "fingerprint": model.fingerprint(), "layers": len(model.blocks)},
        "versions": software_versions(),
        "tracing": tracing,
        "editing": editing,
    }
    write_text(options.out, json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    print(markdown(tracing, editing))


if __name__ == "__main__":
    main()
