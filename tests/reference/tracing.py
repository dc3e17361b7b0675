"""Causal tracing from its definition: one fact and one draw of noise at a time, whole unpadded forward passes.

Meng et al. (2022), "Locating and Editing Factual Associations in GPT", section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel

Key = tuple[str, str, int]  # part, kind of token, layer


def trace_slowly(
    model: LanguageModel, facts: Sequence[Fact], *, samples: int, window: int, noise: float, seed: int
) -> list[tuple[float, float, dict[Key, float]]]:
    """For each fact: P(answer) clean, corrupted, and restored; the last two are means over the draws of noise."""
    embedding = model.model.get_input_embeddings()
    texts = [tokens_of(model, fact) for fact in facts]
    entries = torch.cat([embedding(torch.tensor(ids))[subject] for ids, subject, _ in texts]).detach()
    sigma = ((entries - entries.mean()) ** 2).mean().sqrt()
    generator = torch.Generator().manual_seed(seed)
    result = []
    for ids, subject, answer in texts:
        draws = torch.randn(samples, len(subject), entries.shape[1], generator=generator)
        clean_states: dict[tuple[str, int], Tensor] = {}
        clean = probability(model, ids, answer, [(m, keep(clean_states, key)) for key, m in places(model).items()])
        corrupted, restored = 0.0, dict.fromkeys(cells(model, ids, subject), 0.0)
        for draw in draws:
            spoil = (embedding, add(subject, noise * sigma * draw.to(entries.dtype)))
            corrupted += probability(model, ids, answer, [spoil]) / samples
            for part, kind, layer in restored:
                tokens = kinds(ids, subject)[kind]
                near = [layer] if part == "block" else around(layer, window, len(model.blocks))
                back = [(places(model)[part, at], put(tokens, clean_states[part, at])) for at in near]
                restored[part, kind, layer] += probability(model, ids, answer, [spoil, *back]) / samples
        result.append((clean, corrupted, restored))
    return result


def tokens_of(model: LanguageModel, fact: Fact) -> tuple[list[int], list[int], int]:
    """The prompt's tokens, which of them are the subject's, and the first token of the answer."""
    whole = model.tokenizer(f"{fact.text} {fact.truth}", return_offsets_mapping=True)
    start, end = fact.subject_span
    offsets = whole["offset_mapping"]
    prompt = [index for index, (first, _) in enumerate(offsets) if first < len(fact.text)]
    held = [index for index in prompt if set(range(*offsets[index])) & set(range(start, end))]
    ids = whole["input_ids"]
    # A lone space within the subject may have lost its character to trimmed offsets.
    return ids[: len(prompt)], list(range(held[0], held[-1] + 1)), ids[len(prompt)]


def kinds(ids: Sequence[int], subject: Sequence[int]) -> dict[str, list[int]]:
    """Every token from the subject on, by kind; kinds without tokens are left out."""
    behind = list(range(subject[-1] + 1, len(ids)))
    found = {
        "subject_first": subject[:-1][:1],
        "subject_middle": subject[:-1][1:],
        "subject_last": subject[-1:],
        "next_first": behind[:-1][:1],
        "next_further": behind[:-1][1:],
        "last": behind[-1:],
    }
    return {kind: list(tokens) for kind, tokens in found.items() if tokens}


def cells(model: LanguageModel, ids: Sequence[int], subject: Sequence[int]) -> list[Key]:
    return [
        (part, kind, layer)
        for part in ("block", "mlp", "attention")
        for kind in kinds(ids, subject)
        for layer in range(len(model.blocks))
    ]


def around(layer: int, size: int, layers: int) -> list[int]:
    """A window of ``size`` blocks from ``size // 2`` below the layer on, as far as there are blocks."""
    return [at for at in range(layer - size // 2, layer - size // 2 + size) if 0 <= at < layers]


def places(model: LanguageModel) -> dict[tuple[str, int], nn.Module]:
    """What is restored. Behind the MLP of Gemma stands a norm: what it gives out is what joins the residual stream."""
    found: dict[tuple[str, int], nn.Module] = {}
    for layer, block in enumerate(model.blocks):
        found["block", layer] = block
        found["mlp", layer] = model.norm_after_mlp(layer) or model.mlp(layer)
        gemma = model.norm_after_mlp(layer) is not None
        found["attention", layer] = block.post_attention_layernorm if gemma else model.attention_output(layer)
    return found


Change = Callable[[Tensor], Tensor]


def keep(found: dict[tuple[str, int], Tensor], key: tuple[str, int]) -> Change:
    def change(output: Tensor) -> Tensor:
        found[key] = output.clone()
        return output

    return change


def add(tokens: Sequence[int], values: Tensor) -> Change:
    def change(output: Tensor) -> Tensor:
        moved = output.clone()
        moved[0, list(tokens)] += values
        return moved

    return change


def put(tokens: Sequence[int], clean: Tensor) -> Change:
    def change(output: Tensor) -> Tensor:
        mixed = output.clone()
        for token in tokens:
            # OPT flattens (rows, length) in its MLP; there is one row.
            if output.dim() == 3:
                mixed[0, token] = clean[0, token]
            else:
                mixed[token] = clean[token]
        return mixed

    return change


@torch.no_grad()
def probability(
    model: LanguageModel, ids: Sequence[int], answer: int, changes: Sequence[tuple[nn.Module, Change]]
) -> float:
    with ExitStack() as hooks:
        for module, change in changes:

            def hook(_: nn.Module, args: Any, output: Any, change: Change = change) -> Any:
                return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

            hooks.enter_context(module.register_forward_hook(hook))
        logits = model.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return float(logits.softmax(-1)[answer])
