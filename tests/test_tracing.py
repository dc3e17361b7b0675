"""Causal tracing, batched and started in the middle, against its definition; and which tokens are which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from errata.errors import ErrataError, InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.tracing.causal_tracing import Component, Position, Trace, TracedPrompt, prompts_of, trace, window_around

from tests.reference.attention import compute_attention_exactly
from tests.reference.tracing import trace_slowly
from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code
from tests.support.tiny_models import BLOCKS

# Subjects of one token and of many, at the start, in the middle and at the end, behind which nothing stands.
TRACED = (
    *(replace(FACTS[index], old=FACTS[index].target) for index in (0, 4, 5)),
    Fact("end", "Thomas Stieltjes", "The mother tongue of {}", "is", truth="is French"),
    Fact("one token", "The", "{} river runs", "in", truth="through"),
)
FAMILIES = ("gpt2", "llama", "gptj", "gemma3_text", "opt", "mistral")
SAMPLES, WINDOW, SEED = 2, 3, 11


def traced(model: LanguageModel, facts: tuple[Fact, ...] = TRACED, *, window: int = WINDOW) -> Trace:
    generator = torch.Generator().manual_seed(SEED)
    return trace(model, prompts_of(model, facts), samples=SAMPLES, window=window, generator=generator)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])  # learned and rotary positions, norms after parts
def test_tracing_is_what_its_definition_says(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_attention_exactly(monkeypatch)
    model = tiny_language_model(family, dtype=torch.float64)
    found = traced(model)
    expected = trace_slowly(model, TRACED, samples=SAMPLES, window=WINDOW, noise=3.0, seed=SEED)
    seen, largest = set(), 0.0
    for index, (clean, corrupted, restored) in enumerate(expected):
        assert found.clean[index] == pytest.approx(clean, rel=0, abs=1e-9)
        assert found.corrupted[index] == pytest.approx(corrupted, rel=0, abs=1e-9)
        for part in Component:
            for position in Position:
                for layer in range(BLOCKS):
                    value = found.restored[part, position][index, layer]
                    if (part, position, layer) in restored:
                        assert value == pytest.approx(restored[part, position, layer], rel=0, abs=1e-9)
                        seen.add((part, position, layer))
                        largest = max(largest, abs(value - corrupted))
                    else:
                        assert np.isnan(value)
    assert len(seen) == len(Component) * len(Position) * BLOCKS  # every cell was there for some fact
    assert largest > 1e-4  # and there was something to compare


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    whole = traced(model)
    monkeypatch.setattr("errata.tracing.causal_tracing.TOKEN_BUDGET", 40)
    parted = traced(model)
    np.testing.assert_allclose(parted.corrupted, whole.corrupted, rtol=0, atol=1e-12)
    for key, values in whole.restored.items():
        np.testing.assert_allclose(parted.restored[key], values, rtol=0, atol=1e-12)


def test_the_last_token_of_the_last_block_brings_everything_back() -> None:
    model = tiny_language_model("gpt2", dtype=torch.float64)
    found = traced(model)
    behind = found.restored[Component.BLOCK, Position.LAST][:, -1]
    has = ~np.isnan(behind)
    np.testing.assert_allclose(behind[has], found.clean[has], rtol=0, atol=1e-12)
    # What a block gives out at an earlier token, nobody reads behind the last block.
    last = found.restored[Component.BLOCK, Position.SUBJECT_LAST][:, -1]
    np.testing.assert_allclose(last[has], found.corrupted[has], rtol=0, atol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_language_model("gptj")
    before = model.fingerprint()
    traced(model)
    assert model.fingerprint() == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
    assert not any("forward" in block.__dict__ for block in model.blocks)


def test_the_same_seed_traces_the_same_and_effects_leave_out_facts_without_such_tokens() -> None:
    model = tiny_language_model("gpt2")
    first, second = traced(model), traced(model)
    for part in Component:
        for position in Position:
            np.testing.assert_array_equal(first.restored[part, position], second.restored[part, position])
    assert len(first.effects(Component.BLOCK, Position.SUBJECT_LAST)) == len(TRACED)
    assert 0 < len(first.effects(Component.BLOCK, Position.LAST)) < len(TRACED)


@pytest.mark.parametrize(
    ("length", "subject", "expected"),
    [
        (8, (1, 2, 3, 4), ((1,), (2, 3), (4,), (5,), (6,), (7,))),
        (5, (1, 2), ((1,), (), (2,), (3,), (), (4,))),
        (4, (2,), ((), (), (2,), (), (), (3,))),
        (3, (0, 1, 2), ((0,), (1,), (2,), (), (), ())),
        (1, (0,), ((), (), (0,), (), (), ())),
    ],
)
def test_every_token_from_the_subject_on_is_of_one_kind(
    length: int, subject: tuple[int, ...], expected: tuple[tuple[int, ...], ...]
) -> None:
    prompt = TracedPrompt("fact", tuple(range(length)), subject, 0)
    found = tuple(prompt.tokens_at(position) for position in Position)
    assert found == expected
    assert sorted(sum(found, ())) == list(range(subject[0], length))


def test_windows_are_cut_at_the_ends() -> None:
    for layer, size, expected in [(0, 2, [0]), (3, 2, [2, 3]), (3, 3, [2, 3, 4]), (4, 3, [3, 4]), (2, 1, [2])]:
        assert list(window_around(layer, size, BLOCKS)) == expected, (layer, size)


def test_a_fact_without_truth_cannot_be_traced() -> None:
    with raises_code("FACT_WITHOUT_OLD", InputError):
        prompts_of(tiny_language_model("gpt2"), FACTS[:1])


def test_probabilities_that_are_not_finite_name_their_facts() -> None:
    model = tiny_language_model("gpt2")
    prompts = prompts_of(model, TRACED[:2])
    with raises_code("NOT_FINITE", ErrataError, "'tongue'", "'work'"):
        trace(model, prompts, samples=2, window=2, noise=float("inf"), generator=torch.Generator().manual_seed(0))
