"""RLEdit and MALMEN's write row by row, and sequences of edits with whole edited weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from errata.editors.rledit import RleditNetwork
from errata.editors.training_data import TrainingRecord
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import complete

from tests.reference import mend as slow

Weights = Mapping[int, Tensor]  # layer -> W


def change(network: RleditNetwork, place: int, inputs: Tensor, gradients: Tensor) -> Tensor:
    """(d_out, d_in) ((Hᵀ H + λ I)⁻¹ Hᵀ V)ᵀ, with one row of V after another."""
    rate = torch.exp(network.log_step[place]) * network.unit[place]
    ridge = torch.exp(network.log_ridge[place]) * network.length[place]
    rows = []
    for h, g in zip(inputs, gradients, strict=True):
        new_h, new_g = slow.pair_of(network, place, h, g)
        rows.append(-rate * torch.dot(h, new_h) * new_g)
    inner = inputs.T @ inputs + ridge * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return torch.linalg.solve(inner, inputs.T @ torch.stack(rows)).T


def named(model: LanguageModel, weights: Weights) -> dict[str, Tensor]:
    return {slow.name_of_weight(model, layer): weight for layer, weight in weights.items()}


def rows_of(model: LanguageModel, facts: Sequence[Fact], layer: int, weights: Weights) -> tuple[Tensor, Tensor]:
    """h and g where target tokens are predicted, by hooks on whole passes, one fact after another."""
    inputs, gradients = [], []
    for fact in facts:
        row = complete(model.tokenizer, [fact.pair(fact.target)])[0]
        places = range(row.target_start - 1, len(row.ids) - 1)
        seen: dict[str, Tensor] = {}

        def keep(module: object, args: tuple[Tensor, ...], output: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            seen["x"], seen["y"] = args[0][0], output
            return output

        handle = model.down_projection(layer).register_forward_hook(keep)
        values = {name: weight.clone().requires_grad_() for name, weight in named(model, weights).items()}
        kwargs = {"input_ids": torch.tensor([row.ids])}
        logits = functional_call(model.model, values, args=(), kwargs=kwargs).logits[0]
        handle.remove()
        found = logits[row.target_start - 1 : -1].log_softmax(-1)
        loss = -torch.stack([found[place, token] for place, token in enumerate(row.target_ids)]).mean()
        (gradient,) = torch.autograd.grad(loss, seen["y"])
        for place in places:
            inputs.append(seen["x"][place].detach())
            gradients.append(gradient[0, place])
    return torch.stack(inputs), torch.stack(gradients)


def judged(model: LanguageModel, records: Sequence[TrainingRecord], weights: Weights) -> tuple[Tensor, Tensor]:
    """Mean −log P of the records' other wordings, and mean KL over the answers' tokens of all their questions."""
    values = named(model, weights)
    edit = torch.stack([slow.loss(model, question.pair, values) for record in records for question in record.outer])
    parts = []
    for record in records:
        for question in (*record.loc, *record.hard_loc):
            before = slow.log_probabilities(model, question.pair)
            parts.append((before.exp() * (before - slow.log_probabilities(model, question.pair, values))).sum(1))
    return edit.mean(), torch.cat(parts).mean()
