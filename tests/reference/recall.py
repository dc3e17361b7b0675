"""Teacher-forced recall as it is published: one fact at a time, all of its prompts with both answers in one batch,
whole sequences through the whole model, with logits at every position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with its two answers: mean −log P of each, and whether each token of the expected one is the argmax."""

    new: float
    old: float
    correct: bool


@torch.no_grad()
def evaluate(model: LanguageModel, fact: Fact) -> tuple[dict[str, Answered], int]:
    """The fact's own prompt, paraphrases and neighbours; and how many padded tokens were read.

    Args:
        fact: with its old answer, which is also the answer to its neighbours.
    """
    prompts = [fact.text, *fact.paraphrases, *(near.prompt for near in fact.neighbours)]
    expected = [0] * (1 + len(fact.paraphrases)) + [1] * len(fact.neighbours)
    answers = [f" {fact.target}", f" {fact.old}"]
    plain = [model.tokenizer(prompt)["input_ids"] for prompt in prompts]
    rows = [model.tokenizer(prompt + answer)["input_ids"] for prompt in prompts for answer in answers]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=model.device)
    logits = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    found: dict[str, Answered] = {}
    for number, (prompt, before) in enumerate(zip(prompts, plain, strict=True)):
        losses, hits = [], []
        for which in (0, 1):
            row = rows[2 * number + which]
            losses.append(0.0)
            hits.append(True)
            for position in range(len(before), len(row)):
                at = logits[2 * number + which, position - 1]
                losses[which] -= float(at.log_softmax(0)[row[position]]) / (len(row) - len(before))
                hits[which] &= int(at.argmax()) == row[position]
        found[prompt] = Answered(losses[0], losses[1], hits[expected[number]])
    return found, ids.numel()
