"""Tracing many facts: the noise, the batches, and the probabilities of every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import ErrataError
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.prompts import length_batches
from errata.progress import Report, silent
from errata.tracing.cells import Array, Batch, exact
from errata.tracing.places import Part, Position, Prompt, window_around


@dataclass(frozen=True, slots=True)
class Trace:
    """Probabilities of the answers' first tokens, means over the draws of noise.

    Attributes:
        clean: (facts,) undisturbed.
        corrupted: (facts,) with noise on the subject.
        restored: (part, position) -> (facts, layers) with the same noise, and the clean values put back there; NaN for
            a fact that has no such token.
        sigma: standard deviation of the embedding entries of the subjects' tokens, which the noise is a multiple of.
    """

    clean: Array
    corrupted: Array
    restored: Mapping[tuple[Part, Position], Array]
    sigma: float

    def effects(self, part: Part, position: Position) -> Array:
        """(facts that have such a token, layers): indirect effects, P(restored) − P(corrupted)."""
        found: Array = self.restored[part, position] - self.corrupted[:, None]
        return found[~np.isnan(found).any(axis=1)]


def trace(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    window: int,
    generator: torch.Generator,
    noise: float = 3.0,
    positions: Sequence[Position] = tuple(Position),
    report: Report = silent,
) -> Trace:
    """Trace all prompts, batched over prompts × draws of noise; a prompt's noise is the same in every cell.

    Args:
        samples: draws of noise per prompt.
        window: blocks whose MLP, or attention, outputs are restored together.
        generator: of the noise, on the CPU; what it draws depends neither on the batches nor on the model's dtype.
        noise: its standard deviation, in standard deviations of the embedding entries of the subjects' tokens.
        positions: which tokens to restore.
        report: told the layers restored, all parts and batches of prompts counted.

    Raises:
        ErrataError: if a probability is not finite; names the facts.
    """
    layers = len(model.blocks)
    drawn, sigma = _noise(model, prompts, samples, noise, generator)
    clean, corrupted = np.zeros(len(prompts)), np.zeros(len(prompts))
    restored = {(part, position): np.full((len(prompts), layers), np.nan) for part in Part for position in positions}
    batches = list(length_batches([len(prompt.ids) for prompt in prompts], token_budget=TOKEN_BUDGET // samples))
    done, total = 0, len(batches) * len(Part) * layers
    for chosen in batches:
        batch = Batch(model, [prompts[index] for index in chosen], [drawn[index] for index in chosen])
        clean[chosen], corrupted[chosen] = batch.clean, batch.corrupted
        _check_finite(batch.prompts, batch.clean, batch.corrupted)
        places = {position: place for position in positions if (place := batch.place(position)) is not None}
        for part in Part:
            for layer in range(layers):
                reach = window_around(layer, 1 if part is Part.BLOCK else window, layers)
                for position, place in places.items():
                    found = batch.restored(part, reach, place)
                    _check_finite([batch.prompts[index] for index in place.facts], found)
                    restored[part, position][[chosen[index] for index in place.facts], layer] = found
                done += 1
                report("layers traced", done, total)
    return Trace(clean, corrupted, restored, sigma)


def _noise(
    model: LanguageModel, prompts: Sequence[Prompt], samples: int, noise: float, generator: torch.Generator
) -> tuple[list[Float[Tensor, "samples tokens d"]], float]:
    """For each prompt the noise on its subject's tokens; and the standard deviation that it is a multiple of."""
    embedding = model.model.get_submodule(model.architecture.embedding)
    tokens = torch.tensor([prompt.ids[index] for prompt in prompts for index in prompt.subject])
    with torch.no_grad():
        # Through the module, not from its weight: Gemma scales what it looks up.
        entries: Tensor = exact(embedding(tokens.to(model.device)))
    sigma = float(entries.std(correction=0))
    drawn = [torch.randn(samples, len(prompt.subject), entries.shape[1], generator=generator) for prompt in prompts]
    return [noise * sigma * values.to(entries.dtype) for values in drawn], sigma


def _check_finite(prompts: Sequence[Prompt], *probabilities: Array) -> None:
    finite = np.all(np.isfinite(np.stack(probabilities)), axis=0)
    if bad := [prompt.fact for prompt, fine in zip(prompts, finite, strict=True) if not fine]:
        named = ", ".join(repr(fact) for fact in bad[:5]) + (" …" if len(bad) > 5 else "")
        raise ErrataError(
            f"the probability of the answer is not finite for {named}, where noise is on the subject",
            remedy="Take --dtype float32 or bfloat16, whose range is wider than float16's",
        )
