"""UltraEdit and StableEdit against two-pass statistics and a dense solve; what does not matter does not matter."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from errata.editors.training import teacher_forced
from errata.editors.ultra import (
    GradientWrite,
    GradientWriteSettings,
    Moments,
    StableSettings,
    UltraSettings,
    pseudo_targets,
    ridge_write,
)
from errata.errors import NonFiniteError
from errata.models.language_model import LanguageModel
from errata.models.row_replay import RowReplay
from errata.models.weights import Place
from errata.patches.patch import Patch

from tests.reference import gradient_write as slow
from tests.support.editing import FACTS, assert_same_bits, parameter_bits, tiny_language_model
from tests.support.tiny_models import FAMILIES

LAYERS = (2, 4)


def editor(model: LanguageModel, settings: type[GradientWriteSettings] = UltraSettings, **values: Any) -> GradientWrite:
    plain = {"layers": LAYERS, "relative": False, "learning_rate": 0.01, "ridge": 1.0, "batch_size": 2}
    return GradientWrite(model, settings.model_validate({**plain, **values}))


def random_rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_inputs_and_gradients_at_the_answer_positions(family: str) -> None:
    model = tiny_language_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    replay = RowReplay(model, teacher_forced(model.tokenizer, FACTS[:5]), LAYERS)
    order = [4, 0, 3]
    found = replay.gradients(order)
    # GPT-J computes attention's weights in float32 whatever the model's dtype is.
    rounded = family in ("gemma2", "gptj")
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if rounded else {"rtol": 1e-5, "atol": 1e-8}
    for layer in LAYERS:
        expected = slow.rows_of(model, [FACTS[index] for index in order], layer)
        torch.testing.assert_close(tuple(part.double() for part in found[layer]), expected, **tolerance)
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("settings", [UltraSettings, StableSettings])
@pytest.mark.parametrize("pooled", [False, True])
def test_two_batches_are_those_of_the_formulas(settings: type[GradientWriteSettings], pooled: bool) -> None:
    model, twin = (tiny_language_model("gpt2", dtype=torch.float64) for _ in range(2))
    made = editor(model, settings, pooled=pooled)
    start = {layer: model.weight(layer).clone() for layer in LAYERS}
    patch = made.apply(FACTS[:4])
    seen: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    total = {layer: torch.zeros_like(start[layer]) for layer in LAYERS}
    for batch in (FACTS[:2], FACTS[2:4]):
        rows = {layer: slow.rows_of(twin, batch, layer) for layer in LAYERS}
        for layer in LAYERS:
            seen.setdefault("all" if pooled else layer, []).append(rows[layer])
        for layer in LAYERS:
            all_rows = tuple(torch.cat(part) for part in zip(*seen["all" if pooled else layer], strict=True))
            total[layer] += slow.change(all_rows, *rows[layer], rate=0.01, ridge=1.0, whitened=settings.whitened)  # type: ignore[arg-type]
        for layer in LAYERS:
            twin.set_weight(layer, start[layer] + total[layer])
    for layer in LAYERS:
        torch.testing.assert_close(model.weight(layer) - start[layer], total[layer], rtol=1e-6, atol=1e-9)
        assert float(total[layer].norm()) > 0
    assert len(patch.terms) == 4


def test_relative_numbers_are_those_of_outputs_and_inputs() -> None:
    model, other = (tiny_language_model("gpt2", dtype=torch.float64) for _ in range(2))
    inputs, _ = slow.rows_of(model, FACTS[:2], 2)
    rate = 0.3 * float((inputs @ model.weight(2).T).square().mean().sqrt()) / inputs.shape[1]
    ridge = 0.2 * float((inputs**2).sum(1).mean())
    editor(model, relative=True, learning_rate=0.3, ridge=0.2, layers=(2,)).apply(FACTS[:2])
    editor(other, learning_rate=rate, ridge=ridge, layers=(2,)).apply(FACTS[:2])
    torch.testing.assert_close(model.weight(2), other.weight(2))


@pytest.mark.parametrize("chunk", [1, 2, 3, 40])
@pytest.mark.parametrize("full", [False, True])
def test_statistics_do_not_depend_on_chunks(chunk: int, full: bool) -> None:
    rows = random_rows(40, 6) * 3 + 5
    moments = Moments.none(6, torch.device("cpu"), full=full)
    for part in rows.split(chunk):
        moments = moments.updated(part)
    expected = slow.deviations(rows, rows[:7], whitened=full)
    torch.testing.assert_close(moments.normalised(rows[:7]), expected, rtol=1e-9, atol=1e-10)
    white = moments.normalised(rows)
    if full:  # the covariance has count − size − 1 in its denominator
        torch.testing.assert_close(white.T @ white / (40 - 6 - 1), torch.eye(6, dtype=torch.float64))
    else:
        torch.testing.assert_close(white.std(0), torch.ones(6, dtype=torch.float64))


def test_one_row_is_its_own_mean(caplog: pytest.LogCaptureFixture) -> None:
    rows = random_rows(1, 6)
    moments = Moments.none(6, torch.device("cpu"), full=False).updated(rows)
    assert torch.equal(moments.normalised(rows), torch.zeros(1, 6, dtype=torch.float64))
    model = tiny_language_model("gpt2")
    short = next(fact for fact in FACTS if len(teacher_forced(model.tokenizer, [fact])[0].targets) == 1)
    before = parameter_bits(model)
    made = editor(model)
    with caplog.at_level(logging.WARNING):
        made.apply([short])
    assert "nothing is written" in caplog.text
    assert_same_bits(parameter_bits(model), before)
    made.apply(FACTS[:2])  # and no later one is spoilt
    assert all(bool(model.weight(layer).isfinite().all()) for layer in LAYERS)


def test_writes_of_known_rows() -> None:
    h, v = random_rows(1, 6), random_rows(1, 4, seed=1)
    left, right = ridge_write(h, v, 1.0)
    torch.testing.assert_close(left @ right @ h[0], v[0] * (h[0] @ h[0]) / (1 + h[0] @ h[0]))
    inputs, gradients = random_rows(5, 6), random_rows(5, 4, seed=1)
    assert not bool(pseudo_targets(inputs, torch.zeros_like(gradients), 1.0).any())
    many, targets = random_rows(30, 6), random_rows(30, 4, seed=1)  # more rows than columns
    left, right = ridge_write(many, targets, 0.7)
    dense = torch.linalg.solve(many.T @ many + 0.7 * torch.eye(6, dtype=torch.float64), many.T @ targets).T
    torch.testing.assert_close(left @ right, dense)


def test_passes_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone = (tiny_language_model("llama", dtype=torch.float64) for _ in range(2))
    editor(together, batch_size=5).apply(FACTS[:5])
    monkeypatch.setattr("errata.models.row_replay.GRADIENT_BUDGET", 1)
    editor(alone, batch_size=5).apply(FACTS[:5])
    for layer in LAYERS:
        torch.testing.assert_close(together.weight(layer), alone.weight(layer), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [UltraSettings, StableSettings])
def test_statistics_are_restored_with_the_edit(tmp_path: Path, settings: type[GradientWriteSettings]) -> None:
    model = tiny_language_model("llama")
    made = editor(model, settings)
    made.apply(FACTS[:2]).save(tmp_path / "first")
    third = made.apply(FACTS[2:4])
    other = tiny_language_model("llama")
    again = editor(other, settings)
    loaded = Patch.load(tmp_path / "first")
    assert loaded.stored_bytes <= (tmp_path / "first").stat().st_size
    again.restore(loaded)
    again.apply(FACTS[2:4])
    assert_same_bits(parameter_bits(other), parameter_bits(model))
    # A removed edit leaves nothing in them.
    made.remove(third)
    made.apply(FACTS[2:4])
    assert_same_bits(parameter_bits(other), parameter_bits(model))


def test_half_precision_increments_are_not_lost() -> None:
    model = tiny_language_model("llama", dtype=torch.bfloat16)
    base = {layer: model.weight(layer).float().clone() for layer in LAYERS}
    made = editor(model, learning_rate=1e-5)
    patches = [made.apply([fact]) for fact in FACTS[:4]]
    for layer in LAYERS:
        exact = base[layer].clone()
        for term in (term for patch in patches for term in patch.of_place(Place(layer))):
            term.add_to(exact)
        assert torch.equal(model.weight(layer), exact.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_edited_models_own_logits_are_checked(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the lowest layer on, with the changes of earlier batches in the model."""
    checked: dict[tuple[int, ...], Tensor] = {}
    own = RowReplay.logits

    def noting(replay: RowReplay, changes: Any, indices: Sequence[int]) -> Tensor:
        found = own(replay, changes, indices)
        rows = [replay.rows[index] for index in indices]
        checked.update(zip([row.ids for row in rows], found.split([len(row.targets) for row in rows]), strict=True))
        return found

    monkeypatch.setattr(RowReplay, "logits", noting)
    model = tiny_language_model("llama", dtype=dtype)
    for facts in (FACTS[:2], FACTS[2:6]):
        editor(model, learning_rate=0.1).apply(facts)
        for row in teacher_forced(model.tokenizer, facts[-2:]):  # the last batch
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([row.ids])).logits[0, list(row.wanted)]
            torch.testing.assert_close(
                checked[row.ids], logits, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 0.1
            )


@pytest.mark.parametrize("value", [-torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize(
    ("place", "dtype"), [("head", torch.float32), ("head", torch.bfloat16), ("mlp", torch.float32)]
)
def test_a_logit_that_is_not_finite_after_the_write_undoes_it(value: float, place: str, dtype: torch.dtype) -> None:
    """In the first batch, also of a token that is no target; the changes themselves are finite."""
    model, twin = (tiny_language_model("llama", dtype=dtype) for _ in range(2))
    made, before, start = editor(model), parameter_bits(model), model.weight(LAYERS[0]).clone()
    targets = {token for row in teacher_forced(model.tokenizer, FACTS[:4]) for token in row.targets}
    other = next(token for token in range(len(model.tokenizer)) if token not in targets)
    spoilt_at, bad = ((-1, other), FACTS[1:2]) if place == "head" else ((slice(None), 0), FACTS[:2])

    def spoil(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        spoilt = output.clone()
        if not torch.equal(model.weight(LAYERS[0]), start):
            spoilt.flatten(0, -2)[spoilt_at] = value
        return spoilt

    handle = (model.head if place == "head" else model.mlp(4)).register_forward_hook(spoil)
    with pytest.raises(NonFiniteError) as caught:
        made.apply(FACTS[:4])
    handle.remove()
    assert caught.value.quantity == "logit"
    assert caught.value.facts == tuple(fact.id for fact in bad)
    assert_same_bits(parameter_bits(model), before)
    assert not model.edits.terms
    made.apply(FACTS[:4])  # as an editor that never failed
    editor(twin).apply(FACTS[:4])
    assert_same_bits(parameter_bits(model), parameter_bits(twin))


def test_logits_that_overflow_after_the_write_undo_it() -> None:
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    with pytest.raises(NonFiniteError) as caught:
        editor(model, learning_rate=1e37).apply(FACTS[:4])
    assert "tongue" in str(caught.value)
    assert_same_bits(parameter_bits(model), before)
    assert not model.edits.terms


def test_default_layers_and_a_gradient_that_is_not_finite() -> None:
    model = tiny_language_model("llama")
    assert GradientWrite(model, UltraSettings()).layers == (3,)
    before = parameter_bits(model)
    model.model.lm_head.weight.data.fill_(torch.inf)
    with pytest.raises(NonFiniteError):
        editor(model).apply(FACTS[:2])
    model.model.lm_head.weight.data.copy_(tiny_language_model("llama").model.lm_head.weight)
    assert_same_bits(parameter_bits(model), before)
    with pytest.raises(ValueError, match="layers"):
        UltraSettings(layers=(3, 1))
