"""What a model says, one prompt at a time: whole rows, no padding, all logits."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def target_log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, target: str
) -> tuple[list[float], list[bool], list[int]]:
    """For each token of the target behind prompt and a space: its log-probability, whether it is the likeliest, and
    the likeliest; the target's tokens are those that the prompt alone has not."""
    ids = tokenizer(f"{prompt} {target}", return_token_type_ids=False)["input_ids"]
    start = len(tokenizer(prompt, return_token_type_ids=False)["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = range(start - 1, len(ids) - 1)
    likeliest = [int(logits[place].argmax()) for place in places]
    return (
        [float(logits[place, ids[place + 1]]) for place in places],
        [token == ids[place + 1] for token, place in zip(likeliest, places, strict=True)],
        likeliest,
    )


def mean_log_probability(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, target: str) -> float:
    values, _, _ = target_log_probabilities(model, tokenizer, prompt, target)
    return sum(values) / len(values)


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, new_tokens: int) -> str:
    """The continuation, the whole prefix read again for each token, until an end token."""
    given = tokenizer(prompt, return_token_type_ids=False)["input_ids"]
    ids = list(given)
    for _ in range(new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    before, whole = (tokenizer.decode(row, skip_special_tokens=True) for row in (given, ids))
    return whole[len(before) :]


def weighted_f1(right: list[int], answered: list[int]) -> float:
    """Each label's F1 weighted by its share of the right labels, from the definition."""
    total = 0.0
    for label in set(right):
        hits = sum(a == b == label for a, b in zip(right, answered, strict=True))
        claimed, support = answered.count(label), right.count(label)
        precision = hits / claimed if claimed else 0.0
        recall = hits / support
        total += support * (2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return total / len(right)
