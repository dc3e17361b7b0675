"""Replaying upper blocks under hooks equals whole passes under the same hooks: logits and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.models.language_model import LanguageModel
from errata.models.row_hooks import RowHooks, RowPass
from errata.models.tail import Tail, TailRow

from tests.support.editing import tiny_language_model

LAYER = 2
ROWS = (
    TailRow((9, 10, 11, 12, 13, 14, 15, 16, 17), 6, (6, 8)),
    TailRow((20, 21), 1, (1,)),
    TailRow((9, 10, 11, 30, 31, 32, 33), 0, (2, 3, 6)),
    TailRow((40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51), 10, (11,)),
)


@pytest.fixture(params=["gpt2", "gptj", "llama", "mistral", "gemma2", "opt"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_language_model(request.param)


def adding(model: LanguageModel, vectors: Tensor, layer: int) -> RowHooks:
    """Adds vectors[row] to W's output at each of the row's tokens from its start on."""

    @contextmanager
    def hooks(rows: RowPass) -> Iterator[None]:
        starts = torch.tensor([ROWS[row].start for row in rows.rows])

        def add(module: Any, args: Any, output: Tensor) -> Tensor:
            own = vectors[list(rows.rows)][:, None] * (rows.positions >= starts[:, None])[..., None]
            return output + own.reshape(output.shape)

        handle = model.down_projection(layer).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    return hooks


def whole(model: LanguageModel, vectors: Tensor, layer: int, rows: list[int]) -> Tensor:
    """Each row alone, from its first token and the first block on."""
    logits = []
    for row in rows:
        ids = torch.tensor([ROWS[row].ids])
        with adding(model, vectors, layer)(RowPass((row,), torch.arange(ids.shape[1])[None])):
            logits.append(model.model(input_ids=ids, use_cache=False).logits[0, list(ROWS[row].wanted)])
    return torch.cat(logits)


@pytest.mark.parametrize("layer", [0, LAYER])
def test_logits_and_gradients_are_those_of_whole_passes(model: LanguageModel, layer: int) -> None:
    width = model.weight(layer).shape[0]
    vectors = torch.randn(len(ROWS), width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tail = Tail(model, ROWS, layer)
    plain = tail.logits(None)
    for tail_now, rows in ((tail, [0, 1, 2, 3]), (tail.select([1, 2]), [1, 2]), (tail.select([1, 2]).select([2]), [2])):
        assert tail_now.wanted_row.tolist() == [row for row in rows for _ in ROWS[row].wanted]
        found = tail_now.logits(adding(model, vectors, layer))
        expected = whole(model, vectors, layer, rows)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
        gradients = [torch.autograd.grad((logits * weights).sum(), vectors)[0] for logits in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
        others = [row for row in range(len(ROWS)) if row not in rows]
        assert not gradients[0][others].any()
    assert torch.equal(tail.logits(None), plain)  # nothing was changed by use
    unchanged = whole(model, torch.zeros(len(ROWS), width), layer, [0, 1, 2, 3])
    torch.testing.assert_close(plain, unchanged, rtol=1e-4, atol=1e-4)
    assert (plain - tail.logits(adding(model, vectors, layer))).abs().max() > 0.1


def test_lower_blocks_are_not_run_again(model: LanguageModel) -> None:
    tail = Tail(model, ROWS, LAYER)

    def must_not_run(*args: object) -> None:
        raise AssertionError("a lower block was run")

    ran: list[object] = []
    handles = [model.down_projection(layer).register_forward_hook(must_not_run) for layer in range(LAYER)]
    handles.append(model.down_projection(LAYER + 1).register_forward_hook(lambda *args: ran.append(args)))
    try:
        tail.logits(None)
        assert ran
    finally:
        for handle in handles:
            handle.remove()


def test_rows_whose_wanted_logits_lie_before_their_start_are_refused() -> None:
    with pytest.raises(ValueError, match="before the start"):
        Tail(tiny_language_model("gpt2"), [TailRow((9, 10, 11), 2, (1,))], 2)
