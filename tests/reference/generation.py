"""Text one token and one row at a time: no cache, no padding, no mask, all logits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from errata.models.language_model import LanguageModel


def logits_behind(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([list(ids)])).logits[0, -1].double()


def continue_slowly(
    model: LanguageModel,
    ids: Sequence[int],
    new_tokens: int,
    *,
    top_k: int = 1,
    uniforms: Sequence[float] = (),
    ends: Collection[int] = (),
    stop: Callable[[list[int]], bool] = lambda added: False,
) -> list[int]:
    """The tokens that follow: of the k likeliest in order the first whose cumulated probability exceeds the number."""
    added: list[int] = []
    while len(added) < new_tokens:
        logits = logits_behind(model, [*ids, *added])
        order = sorted(range(len(logits)), key=lambda token: -float(logits[token]))[:top_k]
        chosen = order[0]
        if top_k > 1:
            weights = [float(torch.exp(logits[token] - logits[order[0]])) for token in order]
            total = 0.0
            for token, weight in zip(order, weights, strict=True):
                total += weight / sum(weights)
                chosen = token
                if total > uniforms[len(added)]:
                    break
        if chosen in ends:
            break
        added.append(chosen)
        if stop(added):
            break
    return added


def sample_together(
    model: LanguageModel, rows: Sequence[Sequence[int]], new_tokens: int, top_k: int, generator: torch.Generator
) -> list[list[int]]:
    """Rows without an end, all drawing from one stream, as the contexts of edits do."""
    added: list[list[int]] = [[] for _ in rows]
    for _ in range(new_tokens):
        logits = torch.stack([logits_behind(model, [*row, *more]) for row, more in zip(rows, added, strict=True)])
        values, candidates = logits.float().topk(top_k, dim=-1)
        chosen = candidates.gather(1, torch.multinomial(values.softmax(-1), 1, generator=generator))[:, 0]
        for more, token in zip(added, chosen.tolist(), strict=True):
            more.append(token)
    return added
