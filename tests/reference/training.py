"""Fine-tuning and LoRA, slowly: one fact a forward pass of the whole model, gradients by autograd, Adam written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel


def token_rows(model: LanguageModel, fact: Fact) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and those of its target after a space, by the characters that they cover."""
    encoded = model.tokenizer(f"{fact.text} {fact.target}", return_offsets_mapping=True)
    ids, end = encoded["input_ids"], len(fact.text)
    after = [index for index, (_, stop) in enumerate(encoded["offset_mapping"]) if stop > end]
    return ids[: after[0]], ids[after[0] :]


def whole_logits(model: LanguageModel, ids: Sequence[int], weights: Mapping[int, Tensor]) -> Tensor:
    """(tokens, vocabulary) with other W (d_out × d_in) in some blocks."""
    changed = {}
    for layer, weight in weights.items():
        module = model.down_projection(layer)
        name = next(name for name, other in model.model.named_modules() if other is module)
        transposed = module.weight.shape != model.weight(layer).shape or type(module).__name__ == "Conv1D"
        changed[f"{name}.weight"] = weight.T if transposed else weight
    batch = torch.tensor([list(ids)])
    return functional_call(model.model, changed, kwargs={"input_ids": batch, "use_cache": False}).logits[0]


def teacher_forced_loss(
    model: LanguageModel, fact: Fact, weights: Mapping[int, Tensor], *, end: bool = False
) -> Tensor:
    prompt, target = token_rows(model, fact)
    target = [*target, model.tokenizer.eos_token_id] if end else target
    logits = whole_logits(model, [*prompt, *target[:-1]], weights)
    chosen = [logits[len(prompt) - 1 + place].log_softmax(-1)[token] for place, token in enumerate(target)]
    return -sum(chosen[1:], chosen[0]) / len(chosen)


def bag_loss(model: LanguageModel, fact: Fact, weights: Mapping[int, Tensor]) -> Tensor:
    """All target tokens asked of the prompt's last position."""
    prompt, target = token_rows(model, fact)
    last = whole_logits(model, prompt, weights)[-1].log_softmax(-1)
    return -sum((last[token] for token in target[1:]), last[target[0]]) / len(target)


def descend(
    parameters: Sequence[Tensor],
    loss_of: Callable[[Fact], Tensor],
    batches: Sequence[Sequence[Fact]],
    rate: float,
    *,
    constrain: Callable[[], None] = lambda: None,
    stop: float = 0.0,
) -> None:
    """One step of Adam for each mini-batch whose mean loss is at least ``stop``; parameters change in place."""
    first = [torch.zeros_like(parameter) for parameter in parameters]
    second = [torch.zeros_like(parameter) for parameter in parameters]
    step = 0
    for batch in batches:
        loss = sum(loss_of(fact) for fact in batch) / len(batch)
        assert isinstance(loss, Tensor)
        if float(loss) < stop:
            continue
        step += 1
        gradients = torch.autograd.grad(loss, list(parameters))
        with torch.no_grad():
            for parameter, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                m.copy_(0.9 * m + 0.1 * gradient)
                v.copy_(0.999 * v + 0.001 * gradient**2)
                parameter -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            constrain()
