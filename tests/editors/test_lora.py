"""LoRA against W + s · B A by hand; the ways of a sequence; export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor

from errata.editors.lora import Lora, LoraSettings
from errata.editors.training import seeded, weight_scale
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.weights import LowRankTerm, Place
from errata.patches.factors import dense
from errata.patches.lora_export import Adapter
from errata.patches.patch import Patch

from tests.reference import training as slow
from tests.support.editing import FACTS, assert_same_bits, parameter_bits, tiny_language_model
from tests.support.errors import raises_code
from tests.support.tiny_models import FAMILIES, tiny_model

LAYERS = (1, 3)


def editor(model: LanguageModel, **values: Any) -> Lora:
    return Lora(model, LoraSettings.model_validate({"layers": LAYERS, "rank": 2, "alpha": 6.0, "steps": 3, **values}))


QV = {"modules": "qv", "learning_rate": 0.02}
MATRICES = ("q_proj", "v_proj")


def losses(model: LanguageModel, facts: Any) -> list[float]:
    return [-score.log_probability for score in model.score([fact.pair(fact.target) for fact in facts])]


@pytest.mark.parametrize("relative", [False, True])
def test_three_epochs_are_those_of_a_plain_loop(relative: bool) -> None:
    model = tiny_language_model("gpt2", dtype=torch.float64)
    start = {layer: model.weight(layer).clone() for layer in LAYERS}
    generator = seeded(4, 0)
    down, up, scale = {}, {}, {}
    for layer in LAYERS:
        d_out, d_in = start[layer].shape
        bound = (6 / ((1 + 5) * d_in)) ** 0.5  # Kaiming-uniform with a = √5
        drawn = torch.rand(2, d_in, generator=generator, dtype=torch.float64)
        down[layer] = (drawn * 2 * bound - bound).requires_grad_()
        up[layer] = torch.zeros(d_out, 2, dtype=torch.float64, requires_grad=True)
        scale[layer] = 3.0 * (weight_scale(start[layer]) * d_in**0.5 if relative else 1.0)
    facts = FACTS[:4]
    batches = []
    for _ in range(3):
        order = torch.randperm(4, generator=generator).tolist()
        batches += [[facts[index] for index in order[:3]], [facts[order[3]]]]

    def weights() -> dict[int, Tensor]:
        return {layer: start[layer] + scale[layer] * up[layer] @ down[layer] for layer in LAYERS}

    slow.descend(
        [tensor for layer in LAYERS for tensor in (up[layer], down[layer])],
        lambda fact: slow.teacher_forced_loss(model, fact, weights()),
        batches,
        0.02,
    )
    made = editor(model, learning_rate=0.02, mini_batch=3, seed=4, relative=relative)
    patch = made.apply(facts)
    for layer, expected in weights().items():
        torch.testing.assert_close(model.weight(layer), expected.detach(), rtol=1e-6, atol=1e-8)
    assert patch.ranks() == dict.fromkeys(LAYERS, 2)


def test_without_a_step_nothing_changes() -> None:
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    for values in ({"steps": 0}, {"steps": 0, "modules": "qv"}, {"stop_loss": 100.0}):
        assert editor(model, **values).apply(FACTS[:2]).terms == ()
    assert_same_bits(parameter_bits(model), before)


def test_queries_and_values_are_trained_as_by_a_plain_loop() -> None:
    model, rank, rate = tiny_language_model("llama", dtype=torch.float64), 2, 0.02
    places = [Place(layer, module) for layer in LAYERS for module in MATRICES]
    start = {place: model.weight(*place).clone() for place in places}
    names = {place: f"model.layers.{place.layer}.self_attn.{place.module}.weight" for place in places}
    generator, down, up, scale = seeded(0, 0), {}, {}, {}
    for place in places:
        d_out, d_in = start[place].shape
        drawn = torch.rand(rank, d_in, generator=generator, dtype=torch.float64)
        down[place] = ((drawn * 2 - 1) / d_in**0.5).requires_grad_()
        up[place] = torch.zeros(d_out, rank, dtype=torch.float64, requires_grad=True)
        scale[place] = 3.0 * weight_scale(start[place]) * d_in**0.5
    order = [torch.randperm(2, generator=generator).tolist() for _ in range(3)]

    def weights() -> dict[Place, Tensor]:
        return {place: start[place] + scale[place] * up[place] @ down[place] for place in places}

    def loss(fact: Fact) -> Tensor:
        prompt, target = slow.token_rows(model, fact)
        changed = {names[place]: weight for place, weight in weights().items()}
        ids = torch.tensor([[*prompt, *target[:-1]]])
        logits = torch.func.functional_call(model.model, changed, (ids,)).logits[0, len(prompt) - 1 :]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(target))

    parameters = [tensor for place in places for tensor in (up[place], down[place])]
    slow.descend(parameters, loss, [[FACTS[index]] for epoch in order for index in epoch], rate)
    patch = editor(model, **QV, mini_batch=1).apply(FACTS[:2])
    assert patch.places == tuple(places)
    for place, expected in weights().items():
        torch.testing.assert_close(model.weight(*place), expected.detach(), rtol=1e-6, atol=1e-8)
        assert not torch.equal(model.weight(*place), start[place])


def test_patches_of_queries_and_values_are_patches(tmp_path: Path) -> None:
    """Stacked on others, saved, undone in any order, exported; the lowest block is among those that are trained."""
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    below = editor(model, learning_rate=0.02).apply(FACTS[2:4])
    on_top = editor(model, **QV, layers=None)
    patch = on_top.apply(FACTS[:2])
    assert patch.layers == tuple(range(5))
    after = parameter_bits(model)
    patch.save(tmp_path / "edit.safetensors")
    assert patch.norms()[0] == pytest.approx(
        float(torch.cat([dense(patch.of_place(Place(0, name))).flatten() for name in MATRICES]).norm())
    )
    read = Patch.load(tmp_path / "edit.safetensors")
    assert [term.place for term in read.terms] == [term.place for term in patch.terms]
    on_top.remove(patch)
    on_top.restore(read)
    assert_same_bits(parameter_bits(model), after)
    adapter = Adapter.of([below, read])
    adapter.write(tmp_path / "adapter", model.model)
    adapted = PeftModel.from_pretrained(tiny_model("llama")[0], str(tmp_path / "adapter"))
    ids = torch.tensor([model.tokenizer(FACTS[0].text)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, model.model(ids).logits, rtol=0, atol=1e-5)
    below.undo(model)
    read.undo(model)
    assert_same_bits(parameter_bits(model), before)


def test_files_without_modules_are_as_before(tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    editor(model, learning_rate=0.02).apply(FACTS[:2]).save(tmp_path / "edit.safetensors")
    with safe_open(tmp_path / "edit.safetensors", framework="pt") as file:
        terms = json.loads(file.metadata()["record"])["terms"]
    assert terms[0].keys() == {"layer", "kind", "replaces", "rows", "columns"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_queries_and_values_or_is_refused(family: str) -> None:
    model = tiny_language_model(family)
    names = {name.rpartition(".")[2] for name, _ in model.blocks.named_modules()}
    if not {*MATRICES} <= names:
        assert names & {"c_attn", "query_key_value", "qkv_proj"}
        with raises_code("MODEL_ATTENTION_FUSED"):
            editor(model, **QV)
        return
    made = editor(model, **QV, steps=1)
    assert model.weight(1, "q_proj").shape[1] == model.weight(1, "v_proj").shape[1]
    assert len(made.apply(FACTS[:1]).places) == 4


def test_training_ends_when_every_fact_is_learnt() -> None:
    model = tiny_language_model("llama")
    epochs: list[int] = []
    settings = LoraSettings(layers=LAYERS, alpha=8.0, learning_rate=0.01, steps=200, mini_batch=2, stop_loss=1.8)
    Lora(model, settings, report=lambda what, done, total: epochs.append(done)).apply(FACTS[:4])
    assert len(epochs) < 200
    assert max(losses(model, FACTS[:4])) < 1.8


@pytest.mark.parametrize("modules", ["down_proj", "qv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_written_is_what_was_trained(dtype: torch.dtype, modules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model("llama", dtype=dtype)
    made = editor(model, learning_rate=0.02, steps=5, sequence="again", modules=modules)
    made.apply(FACTS[:2])
    # Of the last evaluation, before the last step.
    last: dict[str, Tensor] = {}
    from errata.models.row_replay import RowReplay

    own = RowReplay.losses

    def seen(self: RowReplay, changes: Any, indices: Any) -> Tensor:
        last["hooked"] = own(self, changes, indices)
        last["order"] = torch.tensor(indices)
        return last["hooked"]

    monkeypatch.setattr(RowReplay, "losses", seen)
    made.settings = made.settings.model_copy(update={"learning_rate": 1e-30, "steps": 1})  # a step of nothing
    made.apply(FACTS[2:4])
    merged = losses(model, [FACTS[2:4][index] for index in last["order"].tolist()])
    assert last["hooked"].tolist() == pytest.approx(merged, abs=1e-4 if dtype == torch.float32 else 0.1)


def test_two_evaluations_are_equal() -> None:
    model = tiny_language_model("llama")
    editor(model, learning_rate=0.02).apply(FACTS[:3])
    assert losses(model, FACTS) == losses(model, FACTS)
    assert not model.model.training


@pytest.mark.parametrize("sequence", ["stack", "again", "replay"])
def test_sequences(sequence: str) -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    made = editor(model, learning_rate=0.02, steps=4, sequence=sequence)
    start = {layer: model.weight(layer).clone() for layer in LAYERS}
    first, second = made.apply(FACTS[:2]), made.apply(FACTS[2:4])
    grown = {"stack": 4, "again": 2, "replay": 2}[sequence]
    for layer in LAYERS:
        assert int(torch.linalg.matrix_rank(model.weight(layer) - start[layer], rtol=1e-9)) == grown
    assert second.facts == FACTS[2:4]
    both = {layer: model.weight(layer).clone() for layer in LAYERS}
    # An edit that comes out and back in leaves no trace: neither in the weights nor in the next edit.
    made.remove(second)
    made.restore(second)
    third = made.apply(FACTS[4:5])
    made.remove(third)
    assert all(torch.equal(model.weight(layer), both[layer]) for layer in LAYERS)
    made.remove(second)
    made.remove(first)
    assert all(torch.equal(model.weight(layer), start[layer]) for layer in LAYERS)
    for patch in (first, second):
        made.restore(patch)
    again = made.apply(FACTS[4:5])
    for ours, theirs in zip(again.terms, third.terms, strict=True):
        assert isinstance(ours, LowRankTerm)
        assert isinstance(theirs, LowRankTerm)
        assert torch.equal(ours.left, theirs.left)
        assert torch.equal(ours.right, theirs.right)


def test_replay_keeps_earlier_facts_that_again_forgets() -> None:
    found = {}
    for sequence in ("again", "replay"):
        model = tiny_language_model("llama")
        made = editor(model, rank=4, learning_rate=0.02, steps=40, sequence=sequence)
        for fact in FACTS[:4]:
            made.apply([fact])
        found[sequence] = max(losses(model, FACTS[:4]))
    assert found["replay"] < found["again"] - 1


@pytest.mark.parametrize("sequence", ["stack", "again", "replay"])
def test_batches_of_one_call_are_those_of_several(sequence: str) -> None:
    whole, parts = (tiny_language_model("llama", dtype=torch.float64) for _ in range(2))
    values: dict[str, Any] = {"learning_rate": 0.02, "batch_size": 2, "sequence": sequence}
    editor(whole, **values).apply(FACTS[:5])
    made = editor(parts, **values)
    for start in (0, 2, 4):
        made.apply(FACTS[start : min(start + 2, 5)])
    for layer in LAYERS:
        torch.testing.assert_close(whole.weight(layer), parts.weight(layer), rtol=1e-9, atol=1e-11)


def test_exported_adapters_are_the_edit(tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    patch = editor(model, learning_rate=0.02).apply(FACTS[:3])
    adapter = Adapter.of([patch])
    assert adapter.is_exact
    assert adapter.rank == 2
    adapter.write(tmp_path / "adapter", model.model)
    adapted = PeftModel.from_pretrained(tiny_model("llama")[0], str(tmp_path / "adapter"))
    ids = torch.tensor([model.tokenizer(FACTS[0].text)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, model.model(ids).logits, rtol=0, atol=1e-4)


def test_default_layers_are_all_and_patches_are_of_their_rank(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    patch = Lora(model, LoraSettings(steps=2)).apply(FACTS[:2])
    assert patch.layers == tuple(range(5))
    assert set(patch.ranks().values()) == {8}
    patch.save(tmp_path / "edit.safetensors")
    assert Patch.load(tmp_path / "edit.safetensors").recipe == patch.recipe
    for layers in ((), (3, 1), (1, 1), (-1,)):
        with pytest.raises(ValueError, match="layers"):
            LoraSettings(layers=layers)
