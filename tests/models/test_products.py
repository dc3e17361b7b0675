"""Products with bfloat16 copies of weights equal products of rounded numbers, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.models.language_model import LanguageModel, Site
from errata.models.products import bfloat16_is_fast, bfloat16_products

from tests.support.editing import tiny_language_model

FIRST = 2
IDS = torch.tensor([[5, 9, 12, 3, 7, 30]])


def rounded(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16).to(value.dtype)


def linear_layers(model: LanguageModel) -> list[nn.Module]:
    """From the first block on, and the head."""
    parts = [part for block in model.blocks[FIRST:] for part in block.modules()]
    return [part for part in (*parts, model.head) if isinstance(part, nn.Linear | Conv1D)]


@contextmanager
def rounded_by_hand(model: LanguageModel) -> Iterator[None]:
    """The slow twin: weights and inputs are rounded before a float32 product, and its output after it."""
    kept, handles = [], []

    def round_output(module: Any, args: object, output: Tensor) -> Tensor:
        bias = module.bias
        return rounded(output) if bias is None else rounded(output - bias) + bias

    for part in linear_layers(model):
        kept.append((part.weight, part.weight.detach().clone()))
        handles.append(part.register_forward_pre_hook(lambda module, args: (rounded(args[0]),)))
        handles.append(part.register_forward_hook(round_output))
    with torch.no_grad():
        for weight, value in kept:
            weight.copy_(rounded(value))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in kept:
                weight.copy_(value)
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "gptj"])
def test_products_are_those_of_rounded_numbers(family: str) -> None:
    model = tiny_language_model(family)
    before = model.fingerprint()
    with torch.no_grad():
        plain = model.model(input_ids=IDS).logits
        with bfloat16_products(model, FIRST):
            found = model.model(input_ids=IDS).logits
        after = model.model(input_ids=IDS).logits
    assert model.fingerprint() == before
    assert torch.equal(after, plain)
    assert not torch.equal(found, plain)
    model.model.tie_weights = lambda *args, **kwargs: None  # a tied head is rounded with the embedding, which is not
    embedding = model.model.get_input_embeddings().weight
    if embedding is model.head.weight:
        model.head.weight = nn.Parameter(embedding.detach().clone(), requires_grad=False)
    with torch.no_grad(), rounded_by_hand(model):
        twin = model.model(input_ids=IDS).logits
    # Sums are taken in another order, so that single outputs are rounded to the next number.
    assert (found - twin).norm() < 0.25 * (twin - plain).norm()


def test_blocks_below_the_first_are_not_changed() -> None:
    model = tiny_language_model("llama")
    wanted = {Site.BLOCK: [FIRST - 1, FIRST]}
    with model.capture(wanted) as plain, torch.no_grad():
        model.run_captured({"input_ids": IDS})
    with bfloat16_products(model, FIRST), model.capture(wanted) as found, torch.no_grad():
        model.run_captured({"input_ids": IDS})
    assert torch.equal(found[Site.BLOCK, FIRST - 1], plain[Site.BLOCK, FIRST - 1])
    assert not torch.equal(found[Site.BLOCK, FIRST], plain[Site.BLOCK, FIRST])


@pytest.mark.parametrize("make", [lambda: nn.Linear(40, 24), lambda: Conv1D(24, 40), lambda: nn.Linear(40, 24, False)])
def test_a_gradient_is_that_of_the_rounded_weights(make: Any) -> None:
    model = tiny_language_model("llama")
    torch.manual_seed(0)
    module = make().requires_grad_(False)
    model.blocks[3].added = module
    given = torch.randn(7, 40, requires_grad=True)
    towards = torch.randn(7, 24)
    with bfloat16_products(model, 3):
        output = module(given)
    (found,) = torch.autograd.grad((output * towards).sum(), given)
    weight = rounded(module.weight if isinstance(module, nn.Linear) else module.weight.T)  # (24, 40)
    torch.testing.assert_close(found, rounded(towards) @ weight, rtol=0.01, atol=0.02)
    assert found.dtype == output.dtype == torch.float32


def test_wider_and_narrower_models_are_left_alone() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = tiny_language_model("llama", dtype=dtype)
        with torch.no_grad(), bfloat16_products(model, 0):
            found = model.model(input_ids=IDS).logits
        with torch.no_grad():
            assert torch.equal(found, model.model(input_ids=IDS).logits)


def test_a_cpu_without_the_instructions_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (({}, False), ({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert bfloat16_is_fast(torch.device("cpu")) == expected
    assert not bfloat16_is_fast(torch.device("mps"))
