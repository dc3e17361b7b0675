"""The rewriting model and its training row by row and token by token, with weights put in as whole matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from errata.editors.rewrite_pairs import SentencePair
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import complete


def full_stop(text: str) -> str:
    return text if text[-1] in ".!?" else text + "."


def lines(fact: Fact, text: str) -> str:
    parts = (f"{fact.text} {fact.old}", f"{fact.text} {fact.target}", text)
    return "".join(full_stop(" ".join(part.split())) + "\n" for part in parts)


def loss(model: LanguageModel, pair: SentencePair, weights: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Σ −log P of the reply of one sentence alone, and its tokens."""
    answer = " retain\n" if pair.change is None else f" {pair.change.old} = {pair.change.new}\n"
    row = complete(model.tokenizer, [(lines(pair.fact, pair.text), answer, "")])[0]
    ids = torch.tensor([row.ids])
    logits = functional_call(model.model, dict(weights), args=(), kwargs={"input_ids": ids}).logits[0]
    chances = logits[row.target_start - 1 : -1].log_softmax(-1)
    return -sum(chances[place, token] for place, token in enumerate(row.target_ids)), len(row.target_ids)


def trained(
    model: LanguageModel,
    named: Mapping[str, Tensor],
    weights_of: object,
    pairs: Sequence[SentencePair],
    *,
    steps: int,
    batch: int,
    rate: float,
    clip: float,
) -> dict[str, Tensor]:
    """What AdamW by its formulas (without decay) makes of parameters, in float64.

    Args:
        named: at first.
        weights_of: from the parameters to the model's weights.
    """
    values = {name: value.clone() for name, value in named.items()}
    first, second = ({name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2))
    for step in range(steps):
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        total, count = torch.zeros(()), 0
        for pair in pairs[step * batch : (step + 1) * batch]:
            one, tokens = loss(model, pair, weights_of(leaves))  # type: ignore[operator]
            total, count = total + one, count + tokens
        gradients = dict(zip(leaves, torch.autograd.grad(total / count, list(leaves.values())), strict=True))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        share = min(1.0, (step + 1) / max(1, round(steps / 10))) * (1 + math.cos(math.pi * step / steps)) / 2
        for name, gradient in gradients.items():
            g = gradient * min(1.0, clip / (norm + 1e-6))
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            values[name] = values[name] - rate * share * mean / (square.sqrt() + 1e-8)
    return values


def reply(model: LanguageModel, prompt: str, most: int) -> str:
    """The greedy reply up to its first newline, one whole forward pass for each token."""
    ids = list(model.tokenizer(prompt)["input_ids"])
    start, text = len(ids), ""
    for _ in range(most):
        with torch.no_grad():
            token = int(model.model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        ids.append(token)
        text = model.tokenizer.decode(ids[:], skip_special_tokens=True)
        text = text[len(model.tokenizer.decode(ids[:start], skip_special_tokens=True)) :]
        if "\n" in text:
            break
    return text


def rewritten(model: LanguageModel, fact: Fact, query: str, answer: str, most: int = 32) -> str:
    """An answer in English whose sentences end with a full stop and a space before a capital letter, in one line."""
    parts = re.split(r"(?<=\.)(?= [A-Z])", answer)
    for place, part in enumerate(parts):
        said = reply(model, lines(fact, query + part if place == 0 else part), most)
        line = said.strip()
        if "\n" not in said or line == "retain" or " = " not in line:
            continue
        old, new = line.split(" = ", 1)
        if " = " not in new:
            parts[place] = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda found, new=new: new, part)  # type: ignore[misc]
    return "".join(parts)
