"""Drift: by hand on three tokens, and against one prompt at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from errata.errors import NonFiniteError
from errata.evaluation.drift import absent_drift, evaluate_drift, kl_divergence, top_overlap
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel
from errata.results.metrics import Metric

from tests.reference.drift import distribution, divergence, overlap
from tests.support.editing import tiny_language_model
from tests.support.three_tokens import set_logits, three_token_model

FAMILIES = ["gpt2", "gpt_neox", "llama", "mistral", "gemma2", "gemma3_text", "opt_projected"]
FACT = Fact(
    "f",
    "Bernstein",
    "I think {} plays",
    "the piano",
    neighbours=(
        Question("Watanabe plays", "the piano"),
        Question("Rome", "x"),
        Question("Because of the rain the match was moved from Madrid to Lisbon, and the crowd", "x"),
    ),
    unrelated=(Question("The capital of Italy is", "Rome"), Question("Rome", "x")),
)
OTHERS = (("u", Question("Big Ben stands in", "London")),)


def unedited_by(
    model: LanguageModel, swap: Callable[[], None], back: Callable[[], None]
) -> tuple[Callable[[], AbstractContextManager[None]], list[str]]:
    entered: list[str] = []

    @contextmanager
    def unedited() -> Iterator[None]:
        entered.append("in")
        swap()
        try:
            yield
        finally:
            back()

    return unedited, entered


def test_drift_by_hand() -> None:
    # Before, all three are as likely; after, 1/2, 1/4, 1/4 behind "a", and as before behind "b".
    uniform = [[0.0, 0.0, 0.0]] * 3
    edited = [[math.log(2), 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, math.log(3)]]
    model = three_token_model(["a", "b", "c"], edited)
    unedited, entered = unedited_by(model, lambda: set_logits(model, uniform), lambda: set_logits(model, edited))
    fact = Fact("f", "a", "{}", "b", neighbours=(Question("ba", "x"), Question("ab", "x")))
    records = evaluate_drift(model, [fact], unedited, untouched=(("u", Question("bc", "x")),))
    by_hand = math.log(2 / 3) / 3 + 2 * math.log(4 / 3) / 3
    # 1/5, 1/5, 3/5 against thirds.
    third = 2 * math.log(5 / 3) / 3 + math.log(5 / 9) / 3
    assert [(record.fact, str(record.metric), record.prompt) for record in records] == [
        ("f", "drift_kl_neighbours", "ba"),
        ("f", "drift_top5_neighbours", "ba"),
        ("f", "drift_kl_neighbours", "ab"),
        ("f", "drift_top5_neighbours", "ab"),
        ("u", "drift_kl_untouched", "bc"),
        ("u", "drift_top5_untouched", "bc"),
    ]
    assert [record.value for record in records] == pytest.approx([by_hand, 1.0, 0.0, 1.0, third, 1.0], abs=1e-12)
    assert (records[0].said, records[4].said) == ("a", "c")
    assert len(entered) == 1
    # A chunk for each prompt: three float64 of a prompt are 24 bytes.
    assert evaluate_drift(model, [fact], unedited, untouched=(("u", Question("bc", "x")),), byte_budget=47) == records
    assert len(entered) == 1 + 3


def test_divergence_and_overlap_of_vectors() -> None:
    before, after = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.75, 0.0]).log()
    assert kl_divergence(before, after) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    assert kl_divergence(before, torch.tensor([1.0, 0.0, 0.0]).log()) == math.inf
    assert kl_divergence(before, before) == 0.0
    assert math.isnan(kl_divergence(before, torch.full((3,), math.nan)))
    ranks = torch.arange(10.0)
    assert top_overlap(ranks, ranks.flip(0)) == 0.0
    assert top_overlap(ranks, ranks.roll(2)) == 0.6


@pytest.mark.parametrize("family", FAMILIES)
def test_drift_does_not_depend_on_batches(family: str) -> None:
    model = tiny_language_model(family)
    weight = model.weight(2)
    original = weight.clone()
    change = 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    prompts = [question.prompt for question in (*FACT.neighbours, *FACT.unrelated, *(q for _, q in OTHERS))]
    first = [distribution(model, prompt) for prompt in prompts]
    model.set_weight(2, original + change)
    second = [distribution(model, prompt) for prompt in prompts]
    expected = [
        value
        for before, after in zip(first, second, strict=True)
        for value in (divergence(before, after), overlap(before, after))
    ]
    assert max(expected[::2]) > 0.01
    assert len(set(expected[1::2])) > 1
    unedited, _ = unedited_by(
        model, lambda: model.set_weight(2, original), lambda: model.set_weight(2, original + change)
    )
    for token_budget in (1, 40, 4096):
        for byte_budget in (1, 1 << 30):
            for side in ("left", "right"):
                model.tokenizer.padding_side = side
                records = evaluate_drift(
                    model, [FACT], unedited, untouched=OTHERS, token_budget=token_budget, byte_budget=byte_budget
                )
                assert [record.value for record in records] == pytest.approx(expected, abs=1e-4)


def test_non_finite_numbers_are_reported_with_the_fact() -> None:
    model = tiny_language_model("llama")

    def break_it() -> None:
        with torch.no_grad():
            model.model.model.norm.weight[3] = math.nan

    unedited, _ = unedited_by(model, lambda: None, break_it)
    with pytest.raises(NonFiniteError, match="drift of fact"):
        evaluate_drift(model, [FACT], unedited)


def test_what_is_absent() -> None:
    assert absent_drift([FACT], OTHERS) == {}
    assert set(absent_drift([], OTHERS)) == {
        Metric.DRIFT_KL_NEIGHBOURS,
        Metric.DRIFT_TOP5_NEIGHBOURS,
        Metric.DRIFT_KL_UNRELATED,
        Metric.DRIFT_TOP5_UNRELATED,
    }
    model = tiny_language_model("gpt2")
    unedited, _ = unedited_by(model, lambda: None, lambda: None)
    assert evaluate_drift(model, [], unedited) == []
