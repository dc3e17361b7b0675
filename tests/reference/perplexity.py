"""Split perplexity from its definition, one text at a time: whole rows, no padding, all logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def split_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """exp of the mean negative log-probability of each text's tokens from the middle one on, given those before it."""
    total, count = 0.0, 0
    for text in texts:
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(text)["input_ids"]
        if len(bare) < 2:
            continue
        start = len(ids) - len(bare) + len(bare) // 2
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(start, len(ids)):
            total -= float(logits[place - 1, ids[place]])
            count += 1
    return math.exp(total / count)
