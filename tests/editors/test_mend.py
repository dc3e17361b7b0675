"""``mend`` against autograd on whole weights and a loop over tokens; what its training must and must not do."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.datasets.editor_data import editor_splits
from errata.editors.mend import (
    TRAINER,
    Episode,
    Mend,
    MendSettings,
    MendTraining,
    Network,
    learn,
    question_rows,
    statistics,
    token_pairs,
)
from errata.editors.trained_editor import TrainedEditor
from errata.editors.trainers import train_editor
from errata.editors.training import teacher_forced
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.row_replay import RowReplay
from errata.models.weights import DenseTerm, LowRankTerm
from errata.utils.progress import silent

from tests.reference import mend as slow
from tests.support.editing import FACTS, assert_same_bits, parameter_bits, tiny_language_model
from tests.support.errors import raises_code
from tests.support.trained import tiny_data, tiny_trained, trained_file

LAYERS = (1, 3, 4)  # the last block of the tiny models is among them


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_file("mend", tmp_path_factory.mktemp("mend"))


def editor(model: LanguageModel, file: Path, **changes: Any) -> Mend:
    return Mend(model, MendSettings.model_validate({"network": str(file), "batch_size": 2, **changes}))


def identity(model: LanguageModel, layers: tuple[int, ...], step: float) -> Network:
    d_out, d_in = model.weight(layers[0]).shape
    ones = torch.ones(d_in + d_out)
    settings = MendTraining(rank=4, step=step)
    network = Network.at_first(layers, 0 * ones, ones, torch.ones(len(layers)), settings)
    return network.to(model.device, model.dtype)


def random_network(model: LanguageModel, layers: tuple[int, ...]) -> Network:
    generator = torch.Generator().manual_seed(5)
    network = identity(model, layers, 1e-3)
    noise = {
        name: getattr(network, name) + 0.3 * torch.randn(getattr(network, name).shape, generator=generator).double()
        for name in ("mean", "up", "down", "bias", "scale", "shift", "log_step")
    }
    return replace(network, **noise, std=0.5 + torch.rand(network.std.shape, generator=generator).double())


def pairs_of(
    model: LanguageModel, facts: tuple[Fact, ...], layers: tuple[int, ...]
) -> dict[int, tuple[Tensor, Tensor]]:
    return token_pairs(RowReplay(model, teacher_forced(model.tokenizer, facts), layers), range(len(facts)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_untrained_network_with_unit_statistics_follows_the_gradient(family: str) -> None:
    model = tiny_language_model(family, dtype=torch.float64)
    layers = tuple(layer for layer in LAYERS if layer < len(model.blocks))
    facts = FACTS[:4]  # of different lengths: padding must not count
    network = identity(model, layers, 1e-4)
    pairs = pairs_of(model, facts, layers)
    for place, layer in enumerate(layers):
        left, right = network.factors(place, *pairs[layer])
        expected = -1e-4 * slow.gradient(model, facts, layer)
        torch.testing.assert_close(left.T @ right, expected, rtol=1e-5, atol=1e-10)
    last = len(model.blocks) - 1
    if last in layers:  # nothing reads other tokens of the last block
        assert len(pairs[last][0]) == sum(len(row.wanted) for row in teacher_forced(model.tokenizer, facts))
    assert len(pairs[layers[0]][0]) > len(pairs[layers[-1]][0])


def test_the_papers_sign_lowers_the_loss_and_that_of_the_code_raises_it() -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    rows = RowReplay(model, teacher_forced(model.tokenizer, FACTS[:3]), (1, 3))
    pairs = token_pairs(rows, range(3))
    before = rows.losses({}, range(3)).sum()
    ours = identity(model, (1, 3), 1e-2)
    assert rows.losses(ours.changes(pairs), range(3)).sum() < before
    published = {layer: (x, -delta) for layer, (x, delta) in pairs.items()}
    assert rows.losses(ours.changes(published), range(3)).sum() > before


def test_the_network_is_that_of_a_loop_over_tokens() -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    network, pairs = random_network(model, (1, 3)), pairs_of(model, FACTS[:2], (1, 3))
    for place, layer in enumerate(network.layers):
        left, right = network.factors(place, *pairs[layer])
        torch.testing.assert_close(left.T @ right, slow.change(network, place, *pairs[layer]), rtol=1e-9, atol=1e-12)


def test_losses_and_their_gradient_are_those_of_the_edited_model() -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    records = tiny_data()["train"].records[:2]
    outer = [replace(record, outer=record.outer[:1]) for record in records]

    network = random_network(model, (1, 3))
    network = replace(network, up=network.up.clone().requires_grad_())
    episode = Episode.of(model, outer, (1, 3), 9, random.Random(0))
    edit, loc = episode.judge.losses(network.changes(episode.pairs()))
    (gradient,) = torch.autograd.grad(edit + 2 * loc, network.up)

    pairs = pairs_of(model, tuple(record.edit for record in records), (1, 3))
    weights = slow.edited(model, network, pairs)
    expected = torch.stack([slow.loss(model, record.outer[0].pair, weights) for record in outer]).mean()
    rows = []
    for record in records:
        for question in (*record.loc, *record.hard_loc):
            before = slow.log_probabilities(model, question.pair)
            rows.append((before.exp() * (before - slow.log_probabilities(model, question.pair, weights))).sum(1))
    kept = torch.cat(rows).mean()
    torch.testing.assert_close((edit, loc), (expected, kept), rtol=1e-5, atol=1e-8)
    (by_hand,) = torch.autograd.grad(expected + 2 * kept, network.up)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-4, atol=1e-8)
    assert float(gradient.abs().max()) > 1e-6


def test_training_starts_with_a_gradient_although_nothing_is_added_yet() -> None:
    model = tiny_language_model("llama")
    network = identity(model, (1, 3), 1e-2)
    up = torch.zeros_like(network.up, requires_grad=True)
    rows = RowReplay(model, teacher_forced(model.tokenizer, FACTS[:2]), (1, 3))
    pairs = token_pairs(rows, range(2))
    (gradient,) = torch.autograd.grad(rows.losses(replace(network, up=up).changes(pairs), range(2)).sum(), up)
    assert bool((gradient != 0).any())


def test_statistics_are_of_all_tokens_and_layers_and_one_token_is_enough() -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    mean, std = statistics(model, FACTS, (1, 3), silent)
    pairs = pairs_of(model, FACTS, (1, 3))
    rows = torch.cat([torch.cat(pairs[layer], dim=1) for layer in (1, 3)])
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(std, rows.std(0), rtol=1e-5, atol=1e-10)
    _, std = statistics(model, [Fact("one", "Rome", "{}", "piano")], (len(model.blocks) - 1,), silent)
    assert bool(std.isfinite().all())
    assert bool((std > 0).all())


def test_training_improves_and_is_reproducible_and_leaves_the_model() -> None:
    first = tiny_trained("mend")
    before, after = first.record["calibration −log P of the new answer, untrained and trained"]
    assert first.record["kept step"] > 0
    assert after < before
    model = tiny_language_model("llama")
    bits = parameter_bits(model)
    data = tiny_data()
    again = learn(model, data["train"], data["calibration"], first.settings, silent)
    assert_same_bits(parameter_bits(model), bits)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)


def test_batches_are_written_from_the_present_weights(file: Path) -> None:
    model, twin = (tiny_language_model("llama") for _ in range(2))
    patch = editor(model, file).apply(FACTS[:4])
    network = editor(twin, file).network
    expected: list[Tensor] = []
    for start in (0, 2):
        pairs = pairs_of(twin, FACTS[start : start + 2], network.layers)
        for place, layer in enumerate(network.layers):
            left, right = network.factors(place, *pairs[layer])
            expected.append((left.T @ right).detach())
        twin.edits.add([DenseTerm(layer, expected[place - 2]) for place, layer in enumerate(network.layers)])
    for term, value in zip(patch.terms, expected, strict=True):
        found = torch.zeros_like(value)
        term.add_to(found)
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-7)


def test_many_tokens_make_a_dense_change(file: Path) -> None:
    one = editor(tiny_language_model("llama"), file, batch_size=1).apply(FACTS[3:4])
    all_facts = editor(tiny_language_model("llama"), file, batch_size=99).apply(FACTS)
    assert isinstance(one.terms[-1], LowRankTerm)
    assert isinstance(all_facts.terms[0], DenseTerm)


def test_the_network_must_be_that_of_the_model_and_of_the_edit(file: Path) -> None:
    model = tiny_language_model("llama")
    with raises_code("TRAINED_EDITOR_MISSING"):
        Mend(model, MendSettings())
    with raises_code("TRAINED_EDITOR_FOR_OTHER_WEIGHTS"):
        editor(tiny_language_model("llama", seed=1), file)
    with raises_code("TRAINED_EDITOR_CHANGED"):
        editor(model, file, digest="0" * 64)
    patch = editor(model, file).apply(FACTS[:2])
    assert patch.recipe.settings["digest"] == tiny_trained("mend").digest
    editor(model, file)  # the model under the edits is what counts


def test_edits_of_people_that_training_has_not_seen_carry_over(tmp_path: Path) -> None:
    """On lab: after an edit the new answer is far more likely in other wordings, also of people of the split test."""
    model = LanguageModel.load("lab")
    data = editor_splits("lab", 0)
    settings = MendTraining(rank=64, steps=2, batch_size=4, texts=16, check_every=2, checked=4)
    path = tmp_path / "mend.safetensors"
    train_editor("mend", model, data, settings, trainers={"mend": TRAINER}).save(path)
    assert TrainedEditor.load(path, "mend", model).settings["rank"] == 64
    records = [record for record in data["test"].records if record.edit.relation == "instrument"][:4]
    rows = RowReplay(model, question_rows(model, [record.outer[0] for record in records]), (0,))
    before = float(rows.losses({}, range(4)).mean())
    editor(model, path, batch_size=4).apply([record.edit for record in records])
    rows = RowReplay(model, question_rows(model, [record.outer[0] for record in records]), (0,))
    assert float(rows.losses({}, range(4)).mean()) < before / 3
