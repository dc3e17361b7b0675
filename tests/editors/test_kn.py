"""Knowledge neurons against finite differences on whole passes; which neurons are a fact's; what is written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editors.kn import KnowledgeNeurons, KnSettings, attributions, candidates, refined
from errata.errors import FaultsError, UnsupportedModelError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import complete
from errata.models.weights import SparseTerm
from errata.patches.patch import Patch

from tests.reference import kn as slow
from tests.support.editing import FACTS, tiny_language_model
from tests.support.tiny_models import BLOCKS

OLD = ("Dutch", "Paris", "the piano", "Paris")  # "the piano" has two tokens or more
WORDED = tuple(
    replace(fact, old=old, paraphrases=(f"I think that {fact.text}", f"Because of the rain {fact.text}"))
    for fact, old in zip(FACTS, OLD, strict=False)
)
PAIRS = [("The mother tongue of Danielle Darrieux is", "Dutch"), ("You know that he plays", "the piano")]


def editor(model: LanguageModel, **values: Any) -> KnowledgeNeurons:
    return KnowledgeNeurons(model, KnSettings.model_validate({"steps": 3, **values}))


@pytest.mark.parametrize(("family", "steps"), [("gpt2", 1), ("llama", 2), ("gptj", 2), ("opt", 3), ("gemma2", 2)])
def test_attributions_are_those_of_finite_differences(family: str, steps: int) -> None:
    exact = family in ("gpt2", "opt")  # the others compute norms or attention in float32
    model = tiny_language_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    asked = complete(model.tokenizer, PAIRS)
    layers = (0, BLOCKS - 1)
    found, firing = attributions(model, asked, layers, steps)
    for number, each in enumerate(asked):
        assert found[number].abs().max() > 0
        for place, layer in enumerate(layers):
            own = slow.activations(model, each.ids[: each.target_start], layer)
            torch.testing.assert_close(firing[number, place], own.to(firing.dtype), rtol=1e-4, atol=1e-6)
        for place, layer in enumerate(layers):
            for neuron in found[number, place].abs().topk(1).indices.tolist():
                parts = [
                    slow.attribution(
                        model, each.ids[:end], each.ids[end], layer, neuron, steps, width=1e-4 if exact else 1e-2
                    )
                    for end in range(each.target_start, len(each.ids))
                ]
                expected = sum(parts) / len(parts)
                tolerance = {"rel": 1e-4, "abs": 1e-9} if exact else {"rel": 0.02, "abs": 1e-5}
                assert float(found[number, place, neuron]) == pytest.approx(expected, **tolerance)


def test_attributions_of_a_layer_sum_to_what_its_activations_add() -> None:
    model = tiny_language_model("llama", dtype=torch.float64, num_hidden_layers=1)
    (asked,) = complete(model.tokenizer, PAIRS[:1])
    ids, token = asked.ids[: asked.target_start], asked.ids[asked.target_start]
    assert len(asked.target_ids) == 1 or len(asked.ids) > len(ids)
    one = replace(
        asked, encoded=replace(asked.encoded, ids=(*ids, token), offsets=asked.encoded.offsets[: len(ids) + 1])
    )
    total = slow.probability(model, ids, token, 0, None) - slow.probability(
        model, ids, token, 0, torch.zeros(model.weight(0).shape[1], dtype=torch.float64)
    )
    errors = [abs(float(attributions(model, [one], (0,), steps)[0].sum()) - total) for steps in (5, 50, 500)]
    assert errors[2] < 0.01 * abs(total)
    assert errors[0] > errors[1] > errors[2]


def test_candidates_are_relative_to_each_prompt() -> None:
    attributed = torch.tensor([[[1.0, 0.3, 0.1]], [[0.01, 0.0, 0.003]], [[-1.0, -0.2, -0.1]]])
    firing = torch.tensor([[[5.0, -2.0, 1.0]]]).expand_as(attributed)
    assert candidates(attributed, firing, 0.2).int().tolist() == [[[1, 1, 0]], [[1, 0, 1]], [[0, 0, 0]]]


def test_prompts_in_which_a_neuron_fires_with_the_other_sign_do_not_count() -> None:
    firing = torch.tensor([[[3.0, -1.0, 0.0]], [[-1.0, -1.0, 0.0]], [[3.0, -1.0, 0.0]]])
    assert candidates(torch.ones_like(firing), firing, 0.2).int().tolist() == [[[1, 1, 0]], [[0, 1, 0]], [[1, 1, 0]]]


def test_the_share_moves_until_the_number_of_neurons_fits() -> None:
    def found(*counts: int) -> Tensor:
        """Of ten prompts, neuron i is a candidate of counts[i]."""
        return torch.tensor([[[prompt < count for count in counts]] for prompt in range(10)])

    assert refined(found(8, 8, 5), 0.7, 2, 5).tolist() == [[True, True, False]]
    assert refined(found(8, 6, 2), 0.7, 2, 5).tolist() == [[True, True, False]]  # 0.7 → 0.55
    assert refined(found(10, 10, 8, 8), 0.7, 1, 2).tolist() == [[True, True, False, False]]  # 0.7 → 0.8
    assert refined(found(10, 10, 10), 0.7, 1, 2).tolist() == [[True] * 3]  # never none where there are some
    assert refined(found(5, 2), 0.7, 2, 5).tolist() == [[True, False]]  # 0.4 at least
    assert not refined(found(3, 2), 0.7, 2, 5).any()
    assert refined(torch.ones(1, 1, 3, dtype=torch.bool), 0.7, 2, 5).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_columns_turn_from_the_old_answer_to_the_new(family: str, tmp_path: Path) -> None:
    model = tiny_language_model(family)
    before = {layer: model.weight(layer).clone() for layer in range(BLOCKS)}
    made = editor(model, promote=0.5, suppress=2.0)
    patch = made.apply(WORDED[:1])
    assert all(isinstance(term, SparseTerm) for term in patch.terms)
    neurons = {(layer, neuron) for _, layer, neuron in patch.state["neurons"].int().tolist()}
    assert neurons
    prompts = complete(model.tokenizer, [(text, "Dutch") for text in (WORDED[0].text, *WORDED[0].paraphrases)])
    firing = [
        torch.stack([slow.activations(model, each.ids[: each.target_start], layer) for each in prompts]).mean(0)
        for layer in range(BLOCKS)
    ]
    if family == "llama":
        assert {bool(firing[layer][neuron] > 0) for layer, neuron in neurons} == {True, False}, "take another fact"
    embedding = model.model.get_input_embeddings().weight
    directions = []
    for answer in (WORDED[0].target, WORDED[0].old):
        mean = embedding[model.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]].mean(0)
        directions.append(mean / mean.norm())
    for layer, weight in before.items():
        for neuron in range(weight.shape[1]):
            expected = weight[:, neuron].clone()
            if (layer, neuron) in neurons:
                turn = weight[:, neuron].norm() * (0.5 * directions[0] - 2 * directions[1])
                expected += turn if firing[layer][neuron] > 0 else -turn
            torch.testing.assert_close(model.weight(layer)[:, neuron], expected)
            assert (layer, neuron) in neurons or torch.equal(model.weight(layer)[:, neuron], weight[:, neuron])
    patch.save(tmp_path / "kn.safetensors")
    loaded = Patch.load(tmp_path / "kn.safetensors")
    for name in ("neurons", "attributions"):
        assert torch.equal(loaded.state[name], patch.state[name])
    made.remove(patch)
    assert all(torch.equal(model.weight(layer), weight) for layer, weight in before.items())


def test_neurons_are_those_of_all_prompts_and_do_not_depend_on_the_batch() -> None:
    model = tiny_language_model("llama")
    made = editor(model, batch_size=4)
    together = made.apply(WORDED)
    made.remove(together)
    numbers = together.state["neurons"]
    assert set(numbers[:, 0].tolist()) <= set(range(4))
    for index, fact in enumerate(WORDED[:2]):
        prompts = complete(model.tokenizer, [(text, fact.old or "") for text in (fact.text, *fact.paraphrases)])
        found = candidates(*attributions(model, prompts, range(BLOCKS), 3), 0.2)
        alone = made.apply([fact])
        assert torch.equal(alone.state["neurons"][:, 1:], numbers[numbers[:, 0] == index][:, 1:])
        for _, layer, neuron in alone.state["neurons"].int().tolist():
            assert int(found[:, layer, neuron].sum()) >= 2  # of three: more than 0.4
        made.remove(alone)
    halves = editor(model, batch_size=2).apply(WORDED)
    assert sorted(set(halves.state["neurons"][:, 0].tolist())) == sorted(set(numbers[:, 0].tolist()))


def test_facts_without_shared_neurons_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_language_model("gpt2")
    before = model.weight(0).clone()
    made = editor(model, layers=(0,), threshold=0.999, fewest=3)
    apart = replace(WORDED[0], paraphrases=("The river runs through", "Big Ben was moved to", "I think that"))
    with caplog.at_level(logging.WARNING):
        patch = made.apply([apart])
    if len(patch.state["neurons"]):
        pytest.fail("these prompts share their strongest neuron: take others")
    assert "tongue" in caplog.text
    assert not patch.terms
    assert torch.equal(model.weight(0), before)


def test_what_it_needs() -> None:
    model = tiny_language_model("gpt2")
    for lacking in (replace(WORDED[0], old=None), replace(WORDED[0], paraphrases=())):
        with pytest.raises(FaultsError) as caught:
            editor(model).apply([lacking])
        assert caught.value.code == "FACT_MISSING_FIELD"
    narrow = tiny_language_model("opt", word_embed_proj_dim=16)
    with pytest.raises(UnsupportedModelError):
        editor(narrow)


@pytest.mark.real
def test_neurons_of_a_real_model(smollm2: Path) -> None:
    model = LanguageModel.load(smollm2, device="cpu")
    wordings = ("France's capital city is",)
    fact = Fact("capital", "France", "The capital of {} is", "Rome", old="Paris", paraphrases=wordings)
    pairs = [fact.pair(answer) for answer in ("Rome", "Paris")]
    new, old = (score.log_probability for score in model.score(pairs))
    KnowledgeNeurons(model, KnSettings(steps=4)).apply([fact])
    new_after, old_after = (score.log_probability for score in model.score(pairs))
    assert new_after > new
    assert old_after < old
