"""The second moment of keys: one text at a time, one outer product a token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from errata.models.language_model import LanguageModel


@torch.no_grad()
def second_moment(
    model: LanguageModel, layer: int, texts: Iterable[str], *, tokens: int, length: int, special_tokens: bool = True
) -> tuple[Tensor, int]:
    """C = E[k kᵀ] over the first ``tokens`` tokens of texts cut at ``length``: (d_in, d_in) float64; their number."""
    special = set(model.tokenizer.all_special_ids)
    width = model.weight(layer).shape[1]
    total = torch.zeros(width, width, dtype=torch.float64)
    count = 0
    read: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        read.append(args[0])

    handle = model.down_projection(layer).register_forward_pre_hook(hook)
    try:
        for text in texts:
            ids = model.tokenizer(text)["input_ids"][:length]
            read.clear()
            model.model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
            keys = read[0].reshape(len(ids), -1).double().cpu()
            for token, vector in zip(ids, keys, strict=True):
                if count < tokens and (special_tokens or token not in special):
                    total += torch.outer(vector, vector)
                    count += 1
            if count == tokens:
                break
    finally:
        handle.remove()
    return total / count, count
