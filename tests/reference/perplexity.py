"""Split perplexity from its definition, one text at a time: no padding, all logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def split_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """exp of the mean negative log-probability of each text's tokens from the middle one on (and of white space before
    it), given the text before them, which is tokenised by itself like any prompt."""
    total, count = 0.0, 0
    for text in texts:
        bare = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        middle = len(bare["input_ids"]) // 2
        if middle == 0:
            continue
        first = text[: bare["offset_mapping"][middle][0]].rstrip()
        prompt = tokenizer(first)["input_ids"]
        rest = [
            token for token, (_, end) in zip(bare["input_ids"], bare["offset_mapping"], strict=True) if end > len(first)
        ]
        ids = [*prompt, *rest]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(len(prompt), len(ids)):
            total -= float(logits[place - 1, ids[place]])
            count += 1
    return math.exp(total / count)
