"""T-Patcher: its neurons against the slow twin, where they fire, and which facts get any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from errata.editors.hook_editor import TrainingRows, generator_of
from errata.editors.t_patcher import TPatcher, TPatcherSettings, mlp_inputs
from errata.models.prompts import encode
from errata.statistics.corpus import open_corpus

from tests.reference import t_patcher as reference
from tests.support.editing import FACTS, tiny_language_model

TINY: dict[str, Any] = {"tokens": 256, "value_rate": 0.5, "steps": 40}


def t_patcher(family: str = "llama", dtype: torch.dtype = torch.float32, **settings: Any) -> TPatcher:
    return TPatcher(tiny_language_model(family, dtype=dtype), TPatcherSettings(**{**TINY, **settings}))


@pytest.mark.parametrize("centred", [True, False])
def test_before_training_a_neuron_gives_1_at_its_own_token(centred: bool) -> None:
    editor = t_patcher(dtype=torch.float64, centred=centred)
    rows = TrainingRows.of(editor.model, FACTS[:4], from_boundary=True)
    wrong = editor._wrong(rows)
    contexts = editor.contexts(rows, wrong)
    neurons = contexts.neurons(*editor.started(FACTS[:4], contexts))
    assert neurons.before_relu(contexts.own).diagonal().tolist() == pytest.approx([1.0] * len(wrong), abs=1e-12)
    if not centred:
        squares = contexts.own.square().sum(1, keepdim=True)
        torch.testing.assert_close(neurons.keys, contexts.own / squares)
        assert not neurons.biases.any()


def test_the_losses_of_a_gate_are_those_of_the_twin() -> None:
    editor = t_patcher(dtype=torch.float64, tokens=1200)
    rows = TrainingRows.of(editor.model, FACTS[:2], from_boundary=True)
    contexts = editor.contexts(rows, editor._wrong(rows))
    neurons = contexts.neurons(*editor.started(FACTS[:2], contexts))
    assert not contexts.counted.all()  # BOS of the other fact counts, the same tokens do not
    own, memory, _ = contexts.gate_losses(neurons)
    for number in range(len(neurons)):
        states = [state for state, counts in zip(contexts.memory, contexts.counted[number], strict=True) if counts]
        expected = reference.gate_losses(
            contexts.own[number], states, neurons.keys[number], float(neurons.biases[number])
        )
        assert (float(own[number]), float(memory[number])) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("family", "layer"), [("gpt2", None), ("opt", 2)])
def test_a_fact_is_trained_as_by_whole_passes(family: str, layer: int | None) -> None:
    editor = t_patcher(family, torch.float64, layer=layer, steps=3, stop_loss=0.0, most=50)
    fact = FACTS[4]
    editor.apply([fact])
    found = editor.state.neurons
    assert len(found) > 1
    text = torch.cat(mlp_inputs(editor.model, editor._text(), editor.layer))
    generator = generator_of(0, fact.id)
    start = [torch.randn(found.values.shape[1], generator=generator) for _ in range(len(found))]
    settings = editor.settings
    keys, biases, values = reference.trained(
        editor.model,
        fact,
        editor.layer,
        editor.model.mlp_reader(editor.layer),
        text,
        settings.start * torch.stack(start).double(),
        steps=3,
        key_rate=settings.key_rate,
        value_rate=settings.value_rate,
        clip=settings.clip,
        weights=(settings.activation, settings.memory),
    )
    # Adam divides small gradients by their own size, so their rounding shows.
    torch.testing.assert_close(found.keys, keys, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(found.biases, biases, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(found.values, values, rtol=1e-3, atol=5e-4)


def test_trained_neurons_are_silent_on_text_that_was_held_out() -> None:
    editor = t_patcher(steps=80)
    editor.apply(FACTS[:4])
    texts = list(open_corpus("builtin").documents())[100:120]
    states = torch.cat(mlp_inputs(editor.model, [row.ids[:40] for row in encode(editor.model.tokenizer, texts)], 3))
    largest = editor.state.neurons.before_relu(states).amax(1)
    assert (largest < 0).double().mean() >= 0.95


def test_a_fact_that_the_model_predicts_gets_no_neuron() -> None:
    known = replace(FACTS[3], target="city")

    def make() -> TPatcher:
        return TPatcher(tiny_language_model("opt", seed=1), TPatcherSettings(**TINY))

    editor = make()
    pairs = [known.pair(known.target)]
    assert editor.model.score(pairs)[0].correct
    edit = editor.apply([known])
    assert len(editor.state.neurons) == 0
    assert editor.view().score(pairs) == editor.model.score(pairs)
    assert editor.view().used([known.text]) == [()]
    other = make()
    other.restore(edit)
    assert other.fingerprint() == editor.fingerprint()


def test_a_fact_has_at_most_so_many_neurons() -> None:
    fact = replace(FACTS[4], target="the New York Philharmonic in the city of Paris")
    few, all_of_them = t_patcher(most=2, steps=1), t_patcher(most=50, steps=1)
    few.apply([fact])
    all_of_them.apply([fact])
    assert len(few.state.neurons) == 2 < len(all_of_them.state.neurons)
