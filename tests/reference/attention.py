"""Attention without the casts to float32 that some families' code makes, so that float64 means float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.gptj.modeling_gptj import GPTJAttention


def compute_attention_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the eager attention of all families to stay in the model's dtype where that is wider than float32.

    A sum in float32 depends on how many masked entries it runs over, and the mask's least float64 becomes -inf there,
    of which rows of padding make NaN (in Gemma 2 among others).
    """
    softmax = torch.nn.functional.softmax

    def wide_softmax(values: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(values, dim=dim, dtype=torch.promote_types(values.dtype, dtype or values.dtype))

    def gptj_attention(
        self: GPTJAttention, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        scores = query @ key.transpose(-1, -2) / self.scale_attn
        weights = softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
        return weights @ value, weights

    monkeypatch.setattr(torch.nn.functional, "softmax", wide_softmax)
    monkeypatch.setattr(GPTJAttention, "_attn", gptj_attention)
