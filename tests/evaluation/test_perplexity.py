"""Perplexity against transformers' own loss, one text at a time, and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from errata.errors import InputError, NonFiniteError
from errata.evaluation.perplexity import Perplexity, perplexity, perplexity_ratio, split_perplexity, split_texts
from errata.models.language_model import LanguageModel

from tests.reference.perplexity import split_perplexity as reference_split
from tests.support.tiny_models import tiny_model

TEXTS = [
    "The match was moved from Madrid to Lisbon.",
    "Rain.",
    "Because of the rain the match was moved from Madrid to Lisbon, and the crowd followed. The city was built.",
    "",
]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mistral", "opt_projected"])
@pytest.mark.parametrize("token_budget", [1, 60, 4096])
def test_as_the_model_s_own_loss(family: str, token_budget: int) -> None:
    model, tokenizer = tiny_model(family, dtype=torch.float64)
    sums, tokens = [], []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]], dtype=torch.long)
        count = max(0, ids.shape[1] - 1)
        tokens.append(count)
        if not count:
            sums.append(0.0)
            continue
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        sums.append(-float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")))
    reported: list[tuple[int, int]] = []
    found = perplexity(
        LanguageModel(model, tokenizer),
        TEXTS,
        token_budget=token_budget,
        report=lambda what, done, total: reported.append((done, total)),
    )
    assert found.log_likelihoods == pytest.approx(sums, rel=1e-6)
    assert list(found.counts) == tokens
    assert found.tokens == sum(tokens)
    assert found.value == pytest.approx(math.exp(-sum(sums) / sum(tokens)), rel=1e-6)
    assert reported[-1] == (3, 3)


def test_texts_are_cut_off() -> None:
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64)
    lm = LanguageModel(model, tokenizer)
    whole, cut = perplexity(lm, [TEXTS[2]]), perplexity(lm, [TEXTS[2]], max_length=7)
    assert cut.tokens == 6 < whole.tokens
    beyond = perplexity(lm, ["Rome and Paris. " * 200], max_length=10_000)
    assert beyond.tokens == 255, "the model takes 256"


def test_logits_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64)
    lm = LanguageModel(model, tokenizer)
    whole = perplexity(lm, TEXTS)
    monkeypatch.setattr("errata.models.likelihood._LOGITS_AT_ONCE", 30 * 384)
    monkeypatch.setattr("errata.models.likelihood._LOGITS_IN_FLOAT", 5 * 384)
    sizes: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    pieces = perplexity(lm, TEXTS)
    handle.remove()
    assert len(sizes) > 1
    assert pieces.log_likelihoods == pytest.approx(whole.log_likelihoods, rel=1e-12)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    model, tokenizer = tiny_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(LanguageModel(model, tokenizer), TEXTS).value == pytest.approx(model.config.vocab_size, rel=1e-5)


def test_nothing_to_predict() -> None:
    model, tokenizer = tiny_model("gpt2")
    with pytest.raises(InputError) as error:
        perplexity(LanguageModel(model, tokenizer), ["", "a"])
    assert error.value.code == "TEXTS_TOO_SHORT"


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_what_is_no_number_is_an_error(value: float) -> None:
    model, tokenizer = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(NonFiniteError, match="perplexity"):
        perplexity(LanguageModel(model, tokenizer), TEXTS)


def test_split_perplexity_is_that_of_second_halves_given_the_first() -> None:
    for family in ("gpt2", "llama"):
        model, tokenizer = tiny_model(family, dtype=torch.float64)
        lm = LanguageModel(model, tokenizer)
        halves = split_texts(tokenizer, TEXTS)
        assert [half and "".join(half) for half in halves] == [
            text if half else None for text, half in zip(TEXTS, halves, strict=True)
        ]
        assert halves[3] is None
        expected = reference_split(model, tokenizer, TEXTS)
        for budget in (1, 4096):
            found = split_perplexity(lm, halves, token_budget=budget)
            assert found.value == pytest.approx(expected, rel=1e-6)
            assert found.counts[3] == 0 < found.counts[2] < perplexity(lm, TEXTS).counts[2]
    with pytest.raises(InputError) as error:
        split_perplexity(lm, [None])
    assert error.value.code == "TEXTS_TOO_SHORT"


def test_ratio_by_hand() -> None:
    before = Perplexity((-10.0, -20.0, 0.0), (10, 20, 0))
    now = Perplexity((-12.0, -24.0, 0.0), (10, 20, 0))
    ratio = perplexity_ratio(before, now, "after")
    # Every text lost 0.2 nats a token: whichever are drawn, the ratio is exp(0.2).
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((math.exp(0.2),) * 3)
    assert (ratio.metric, ratio.when, ratio.n) == ("perplexity_ratio", "after", 2)


def test_ratio_of_two_texts_ranges_over_both() -> None:
    before = Perplexity((-10.0, -10.0), (10, 10))
    now = Perplexity((-10.0, -20.0), (10, 10))
    ratio = perplexity_ratio(before, now, "after")
    assert ratio.mean == pytest.approx(math.exp(0.5))
    # Both draws are of the same text in half of the resamples.
    assert (ratio.low, ratio.high) == pytest.approx((1.0, math.exp(1.0)))


def test_ratio_of_other_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="different texts"):
        perplexity_ratio(Perplexity((-1.0,), (1,)), Perplexity((-1.0,), (2,)), "after")
