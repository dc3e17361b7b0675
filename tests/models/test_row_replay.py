"""Replayed rows against forward passes of the whole model with changed weights, in every family."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from errata.editors.training import linear_change, teacher_forced
from errata.errors import InputError
from errata.models.row_replay import RowReplay, TrainingRow

from tests.reference import training as slow
from tests.support.editing import FACTS, assert_same_bits, parameter_bits, tiny_language_model
from tests.support.tiny_models import FAMILIES


def deltas(model: object, layers: tuple[int, ...]) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for layer in layers:
        weight = model.weight(layer)  # type: ignore[attr-defined]
        found[layer] = (0.1 * torch.randn(weight.shape, generator=generator)).to(weight.dtype).requires_grad_()
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [(2,), (1, 4), (4,), (0, 1)], ids=str)
def test_losses_and_gradients_are_those_of_the_whole_model(family: str, layers: tuple[int, ...]) -> None:
    model = tiny_language_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    before = parameter_bits(model)
    facts = FACTS[:5]  # of different lengths
    replay = RowReplay(model, teacher_forced(model.tokenizer, facts), layers)
    delta = deltas(model, layers)
    changes = {layer: linear_change(model, layer, lambda value=value: value) for layer, value in delta.items()}
    order = [3, 0, 4, 1]
    found = replay.losses(changes, order)
    weights = {layer: model.weight(layer) + value for layer, value in delta.items()}
    expected = torch.stack([slow.teacher_forced_loss(model, facts[index], weights) for index in order])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if family == "gemma2" else {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(found, expected, **tolerance)
    ours = torch.autograd.grad(found.sum(), list(delta.values()))
    theirs = torch.autograd.grad(expected.sum(), list(delta.values()))
    torch.testing.assert_close(ours, theirs, **tolerance)
    # Those at W's outputs, of all tokens and of the wanted ones.
    everywhere, wanted = (replay.gradients(order, at_all=at_all, changes=changes) for at_all in (True, False))
    for layer, gradient in zip(layers, theirs, strict=True):
        inputs, outputs = everywhere[layer]
        torch.testing.assert_close(outputs.T @ inputs, gradient, **tolerance)
        starts = accumulate((len(replay.rows[index].ids) for index in order), initial=0)
        places = [start + at for start, index in zip(starts, order, strict=False) for at in replay.rows[index].wanted]
        torch.testing.assert_close(wanted[layer], (inputs[places], outputs[places]), **tolerance)
    assert_same_bits(parameter_bits(model), before)
    assert not any(module._forward_hooks for module in model.model.modules())


def test_passes_hold_every_row_once_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model("gpt2")
    rows = teacher_forced(model.tokenizer, FACTS)
    replay = RowReplay(model, rows, [3])
    monkeypatch.setattr("errata.models.row_replay.GRADIENT_BUDGET", 30)
    passes = list(replay.passes(range(len(rows))))
    assert len(passes) > 1
    assert sorted(place for places in passes for place in places) == list(range(len(rows)))
    monkeypatch.setattr("errata.models.row_replay._LOGITS_AT_ONCE", 1)
    assert all(len(places) == 1 for places in replay.passes(range(len(rows))))


def test_padding_is_not_computed_by_mlps() -> None:
    model = tiny_language_model("llama")
    rows = [TrainingRow((1,) * length, (length - 1,), (2,)) for length in (9, 4, 4, 3)]
    replay = RowReplay(model, rows, [1])
    tokens: list[int] = []
    handles = [
        model.down_projection(layer).register_forward_pre_hook(
            lambda module, args: tokens.append(args[0][..., 0].numel())
        )
        for layer in range(len(model.blocks))
    ]
    replay.losses({}, [0, 1, 2, 3])
    RowReplay(model, rows, [1])
    for handle in handles:
        handle.remove()
    # Blocks above the changed one, the last with the wanted tokens only; then those below it, and that itself.
    assert tokens == [20, 20, 4, 20, 36]


def test_gradients_pass_through_no_mlp_before_the_first_wanted_token() -> None:
    model = tiny_language_model("llama")
    rows = [TrainingRow((1,) * length, (length - 2, length - 1), (2, 3)) for length in (9, 4)]
    replay = RowReplay(model, rows, [1, 2])
    tokens: list[tuple[int, bool]] = []
    handles = [
        model.down_projection(layer).register_forward_pre_hook(
            lambda module, args: tokens.append((args[0][..., 0].numel(), torch.is_grad_enabled()))
        )
        for layer in range(len(model.blocks))
    ]
    replay.gradients([0, 1])
    for handle in handles:
        handle.remove()
    assert tokens == [(9, False), (4, True), (9, False), (4, True), (4, True)]  # the last computes the wanted ones only


def test_half_precision_losses_are_those_of_the_rounded_weights() -> None:
    model = tiny_language_model("llama", dtype=torch.bfloat16)
    replay = RowReplay(model, teacher_forced(model.tokenizer, FACTS[:3]), [3])
    small = torch.full(model.weight(3).shape, 1e-7, requires_grad=True)  # rounds to no change at all
    change = linear_change(model, 3, lambda: small)
    with torch.no_grad():
        expected = replay.losses({}, [0, 1, 2])
    found = replay.losses({3: change}, [0, 1, 2])
    assert torch.equal(found.detach(), expected)
    (gradient,) = torch.autograd.grad(found.sum(), small)
    assert gradient.dtype == torch.float32
    assert bool((gradient != 0).any())


def test_rows_are_checked() -> None:
    model = tiny_language_model("gpt2")
    with pytest.raises(InputError) as caught:
        RowReplay(model, [TrainingRow((1,) * (model.context_length + 1), (0,), (1,))], [0])
    assert caught.value.code == "TEXT_TOO_LONG"
    for wanted, targets in (((), ()), ((0,), (1, 2)), ((3,), (1,)), ((-1,), (1,))):
        with pytest.raises(ValueError, match=r"row|target"):
            TrainingRow((1, 2, 3), wanted, targets)
