"""Linear CKA by explicit centred Gram matrices, and hidden states of one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.models.language_model import LanguageModel, Site

from tests.support.editing import read_whole


def cka(first: Tensor, second: Tensor) -> float:
    """tr(HKH · HLH) / √(tr(HKH · HKH) · tr(HLH · HLH)) with H = 1 − 11ᵀ/n."""
    count = len(first)
    centring = torch.eye(count, dtype=torch.float64) - torch.full((count, count), 1 / count, dtype=torch.float64)
    one = centring @ (first.double() @ first.double().T) @ centring
    other = centring @ (second.double() @ second.double().T) @ centring
    norms = torch.trace(one @ one).sqrt() * torch.trace(other @ other).sqrt()
    return float(torch.trace(one @ other) / norms)


def last_states(model: LanguageModel, prompts: Sequence[str], layer: int) -> Tensor:
    """(prompts, d): the block's output at the last token, each prompt read alone and whole."""
    return torch.stack(
        [read_whole(model, model.tokenizer(prompt)["input_ids"])[Site.BLOCK, layer][-1] for prompt in prompts]
    )
