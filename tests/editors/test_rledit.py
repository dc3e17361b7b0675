"""``rledit`` against whole edited weights and MALMEN's own equation; what its training must and must not do."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editors.mend import Episode
from errata.editors.rledit import (
    EditSequence,
    Rledit,
    RleditNetwork,
    RleditSettings,
    RleditTraining,
    learn,
    target_pairs,
    units,
)
from errata.editors.training import teacher_forced
from errata.editors.training_data import TrainingRecord
from errata.editors.ultra import pseudo_targets
from errata.models.language_model import LanguageModel
from errata.models.row_replay import RowReplay
from errata.models.weights import DenseTerm
from errata.utils.progress import silent

from tests.reference import rledit as slow
from tests.support.editing import FACTS, assert_same_bits, parameter_bits, tiny_language_model
from tests.support.errors import raises_code
from tests.support.trained import tiny_data, tiny_trained, trained_file

LAYERS = (1, 3, 4)  # the last block of the tiny models is among them
SETTINGS = RleditTraining(rank=4, batch_size=2, questions=9, earlier=9, change_weight=0.5)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_file("rledit", tmp_path_factory.mktemp("rledit"))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Not to be changed."""
    return tiny_language_model("llama", dtype=torch.float64)


def editor(model: LanguageModel, file: Path, **changes: Any) -> Rledit:
    return Rledit(model, RleditSettings.model_validate({"network": str(file), "batch_size": 2, **changes}))


def identity(model: LanguageModel, layers: tuple[int, ...]) -> RleditNetwork:
    d_out, d_in = model.weight(layers[0]).shape
    zeros, ones = torch.zeros(d_in + d_out), torch.ones(len(layers))
    others = {"length": ones, "log_ridge": torch.full((len(layers),), -2.0)}
    network = RleditNetwork.at_first(layers, zeros, zeros + 1, 0.05 * ones, SETTINGS, **others)
    return network.to(model.device, model.dtype)


def random_network(model: LanguageModel, layers: tuple[int, ...]) -> RleditNetwork:
    generator = torch.Generator().manual_seed(5)
    network = identity(model, layers)
    noise = {
        name: getattr(network, name) + 0.3 * torch.randn(getattr(network, name).shape, generator=generator).double()
        for name in ("mean", "up", "down", "bias", "scale", "shift", "log_step", "log_ridge")
    }
    return replace(network, **noise, std=0.5 + torch.rand(network.std.shape, generator=generator).double())


def records() -> list[TrainingRecord]:
    """Of six facts, each with one other wording, so that nothing is drawn at random."""
    return [replace(record, outer=record.outer[:1]) for record in tiny_data()["train"].records[:6]]


def turns(model: LanguageModel, layers: tuple[int, ...]) -> list[Episode]:
    found = records()
    return [Episode.of(model, found[start : start + 2], layers, 9, random.Random(0)) for start in (0, 2, 4)]


@pytest.mark.parametrize("together", [1, 4])
def test_the_write_is_the_published_ridge_regression(model: LanguageModel, together: int) -> None:
    network, facts = random_network(model, LAYERS), FACTS[:together]
    pairs = target_pairs(RowReplay(model, teacher_forced(model.tokenizer, facts), LAYERS), range(together))
    weights = {layer: model.weight(layer) for layer in LAYERS}
    for place, layer in enumerate(LAYERS):
        expected_pairs = slow.rows_of(model, facts, layer, weights)
        torch.testing.assert_close(pairs[layer], expected_pairs, rtol=1e-5, atol=1e-9)
        left, right = network.factors(place, *pairs[layer])
        torch.testing.assert_close(left.T @ right, slow.change(network, place, *expected_pairs), rtol=1e-5, atol=1e-9)


def test_the_untrained_network_makes_pseudo_targets_as_ultra(model: LanguageModel) -> None:
    """With unit statistics; −η ‖ĥ‖² ĝ is regressed on h."""
    network = identity(model, (1,))
    h, g = target_pairs(RowReplay(model, teacher_forced(model.tokenizer, FACTS[:2]), (1,)), range(2))[1]
    left, right = network.factors(0, h, g)
    inner = right @ right.T + torch.exp(network.log_ridge[0]) * torch.eye(len(right))
    torch.testing.assert_close(inner @ left, pseudo_targets(h, g, 0.05), rtol=1e-6, atol=1e-9)


def test_units_are_of_outputs_and_inputs(model: LanguageModel) -> None:
    d_out, d_in = model.weight(1).shape
    mean, std = torch.full((d_in + d_out,), 0.1), torch.full((d_in + d_out,), 2.0)
    unit, length = units(model, FACTS[:3], (1, 3), mean, std)
    h, _ = slow.rows_of(model, FACTS[:3], 3, {3: model.weight(3)})
    outputs = (h @ model.weight(3).T).square().mean().sqrt()
    assert float(unit[1]) == pytest.approx(float(outputs / (h * (h - 0.1) / 2).sum(1).abs().mean()), rel=1e-5)
    assert float(length[1]) == pytest.approx(float(h.norm(dim=1).square().mean()), rel=1e-5)


def test_turns_are_judged_on_the_weights_that_earlier_turns_left(model: LanguageModel) -> None:
    layers = (1, 3)
    network = replace(random_network(model, layers))
    learning = network.learning()
    sequence, found = EditSequence(model, turns(model, layers), layers), []
    for _ in range(3):
        loss = sequence.turn(learning, SETTINGS, random.Random(0))
        gradients = torch.autograd.grad(loss, [getattr(learning, name) for name in ("up", "log_step", "log_ridge")])
        found.append((loss.detach(), gradients))
    assert sequence.is_over

    weights = {layer: model.weight(layer).clone() for layer in layers}
    for now in range(3):
        part = [record.edit for record in records()[2 * now : 2 * now + 2]]
        again = network.learning()
        changes = {
            layer: slow.change(again, place, *slow.rows_of(model, part, layer, weights))
            for place, layer in enumerate(layers)
        }
        edited = {layer: weights[layer] + changes[layer] for layer in layers}
        loss = sum(
            0.5 * changes[layer].square().sum() / model.weight(layer).square().sum() for layer in layers
        ) + torch.zeros(())
        for turn in range(now + 1):
            edit, loc = slow.judged(model, records()[2 * turn : 2 * turn + 2], edited)
            loss = loss + 0.95 ** (now - turn) * (edit + 0.6 * loc)
        gradients = torch.autograd.grad(loss, [getattr(again, name) for name in ("up", "log_step", "log_ridge")])
        torch.testing.assert_close(found[now][0], loss.detach(), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(found[now][1], gradients, rtol=1e-4, atol=1e-8)
        weights = {layer: edited[layer].detach() for layer in layers}
    for layer, written in sequence.written.items():
        torch.testing.assert_close(model.weight(layer) + written, weights[layer], rtol=1e-5, atol=1e-8)


def test_some_turns_of_the_window_stand_for_all(model: LanguageModel) -> None:
    """The mean loss over the draws is the loss with all of them."""
    layers, network = (3,), random_network(model, (3,))

    def last_loss(settings: RleditTraining, seed: int) -> float:
        sequence = EditSequence(model, turns(model, layers), layers)
        for _ in range(3):
            loss = sequence.turn(network, settings, random.Random(seed))
        return float(loss)

    one = SETTINGS.model_copy(update={"earlier": 1})
    drawn = {round(last_loss(one, seed), 9) for seed in range(6)}
    assert len(drawn) == 2
    assert sum(drawn) / 2 == pytest.approx(last_loss(SETTINGS, 0), rel=1e-6)
    near = SETTINGS.model_copy(update={"window": 2, "earlier": 9})
    assert last_loss(near, 0) < last_loss(SETTINGS, 0)


def test_training_improves_and_is_reproducible_and_leaves_the_model() -> None:
    first = tiny_trained("rledit")
    before, after = first.record["calibration −log P of the new answer, untrained and trained"]
    assert first.record["kept step"] > 0
    assert after < before
    model = tiny_language_model("llama")
    bits, data = parameter_bits(model), tiny_data()
    again = learn(model, data["train"], data["calibration"], first.settings, silent)
    assert_same_bits(parameter_bits(model), bits)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)


def test_batches_are_written_from_the_present_weights_as_in_training(file: Path) -> None:
    model, twin = (tiny_language_model("llama") for _ in range(2))
    patch = editor(model, file).apply([record.edit for record in records()])
    network = editor(twin, file).network
    assert isinstance(network, RleditNetwork)
    sequence = EditSequence(twin, turns(twin, network.layers), network.layers)
    with torch.no_grad():
        sequence.play(network)
    for layer in network.layers:
        found = torch.zeros_like(sequence.written[layer])
        for term in patch.terms:
            if term.layer == layer:
                term.add_to(found)
        torch.testing.assert_close(found, sequence.written[layer], rtol=1e-3, atol=1e-6)
    twin.edits.add([DenseTerm(layer, written) for layer, written in sequence.written.items()])
    for layer in network.layers:
        torch.testing.assert_close(twin.weight(layer), model.weight(layer), rtol=1e-4, atol=1e-6)


def test_a_network_of_mend_is_refused(file: Path, tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    with raises_code("TRAINED_EDITOR_MISSING"):
        Rledit(model, RleditSettings())
    with raises_code("TRAINED_EDITOR_OF_ANOTHER_KIND"):
        editor(model, trained_file("mend", tmp_path))
    with raises_code("TRAINED_EDITOR_CHANGED"):
        editor(model, file, digest="0" * 64)
