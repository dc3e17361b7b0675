"""Second moments: the naive loop over tokens, whatever the batches; merged from parts; nothing above is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.errors import InputError
from errata.models.language_model import LanguageModel, Site
from errata.statistics.moments import SecondMoment, key_moments
from errata.statistics.settings import StatisticsSettings

from tests.support.editing import corpus_texts, read_whole, tiny_language_model
from tests.support.errors import raises_code

LAYERS = (1, 3)
# Both orientations, a flattened second linear layer (OPT), BOS or none, a window shorter than the texts.
FAMILIES = ("gpt2", "llama", "mistral", "opt", "gemma3_text")


def amount(**options: Any) -> StatisticsSettings:
    return StatisticsSettings(corpus="builtin", **options)


def naive(
    model: LanguageModel, texts: Sequence[str], *, tokens: int, length: int, special_tokens: bool
) -> tuple[dict[int, Tensor], int]:
    """Token by token, one text a forward pass, in float64: (Σ k kᵀ by layer, the count)."""
    special = set(model.tokenizer.all_special_ids)
    width = model.weight(0).shape[1]
    totals = {layer: torch.zeros(width, width, dtype=torch.float64) for layer in LAYERS}
    count = 0
    for text in texts:
        ids = model.tokenizer(text)["input_ids"][:length]
        read = read_whole(model, ids)
        for position, token in enumerate(ids):
            if count == tokens or (token in special and not special_tokens):
                continue
            count += 1
            for layer in LAYERS:
                key = read[Site.KEY, layer][position].double()
                totals[layer] += torch.outer(key, key)
    return totals, count


@pytest.mark.parametrize("special_tokens", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_the_naive_sum_whatever_the_batches(family: str, special_tokens: bool) -> None:
    model = tiny_language_model(family)
    texts = corpus_texts()[:40]
    settings = {"tokens": 300, "length": 9, "special_tokens": special_tokens}
    totals, count = naive(model, texts, **settings)
    assert count == 300
    for token_budget in (1, 50, 4096):
        counts: list[int] = []
        moments = key_moments(
            model, LAYERS, iter(texts), amount(**settings), token_budget=token_budget, on_read=counts.append
        )
        assert list(moments) == list(LAYERS)
        assert sum(counts) == 300
        for layer, moment in moments.items():
            assert moment.count == 300
            assert moment.total.dtype == torch.float64
            assert torch.allclose(moment.total, totals[layer], rtol=1e-4, atol=1e-4 * float(totals[layer].max()))
            assert torch.allclose(moment.mean, totals[layer] / 300, rtol=1e-4, atol=1e-4)


def test_special_tokens_make_a_difference_that_is_theirs() -> None:
    model = tiny_language_model("llama")
    texts = corpus_texts()[:20]
    ids = [model.tokenizer(text)["input_ids"] for text in texts]
    every, none = sum(len(row) for row in ids), sum(len(row) - 1 for row in ids)
    with_bos = key_moments(model, [2], texts, amount(tokens=every, length=64))[2]
    without = key_moments(model, [2], texts, amount(tokens=none, length=64, special_tokens=False))[2]
    bos = read_whole(model, ids[0])[Site.KEY, 2][0].double()
    difference = with_bos.total - without.total
    assert torch.allclose(difference, len(texts) * torch.outer(bos, bos), atol=1e-3 * float(difference.abs().max()))


def test_a_text_of_special_tokens_only_is_passed_over() -> None:
    model = tiny_language_model("llama")
    texts = ["", *corpus_texts()[:2]]  # BOS alone
    plain = key_moments(model, [1], corpus_texts()[:2], amount(tokens=10, length=64, special_tokens=False))[1]
    found = key_moments(model, [1], texts, amount(tokens=10, length=64, special_tokens=False))[1]
    assert torch.allclose(found.total, plain.total)


def test_sums_of_two_halves_add_up_to_the_sum_of_the_whole() -> None:
    model = tiny_language_model("llama")
    texts = corpus_texts()[:30]
    sizes = [sum(len(model.tokenizer(text)["input_ids"]) for text in part) for part in (texts[:12], texts[12:])]
    first, second = (
        key_moments(model, LAYERS, part, amount(tokens=size, length=64))
        for part, size in zip((texts[:12], texts[12:]), sizes, strict=True)
    )
    whole = key_moments(model, LAYERS, texts, amount(tokens=sum(sizes), length=64))
    for layer in LAYERS:
        assert first[layer].count + second[layer].count == whole[layer].count
        total = first[layer].total + second[layer].total
        assert torch.allclose(total, whole[layer].total, rtol=1e-5, atol=1e-5 * float(whole[layer].total.max()))


def test_sums_are_taken_in_float64() -> None:
    """A thousand small keys beside one large: in float32 the small ones would be lost."""
    moment = SecondMoment.zeros(1)
    moment.add(torch.tensor([[1e4]]))
    for _ in range(10):
        moment.add(torch.full((100, 1), 1e-2, dtype=torch.float16))
    small = float(torch.tensor(1e-2, dtype=torch.float16).double())
    assert moment.total.item() == pytest.approx(1e8 + 1000 * small**2, rel=1e-12)
    assert moment.count == 1001


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ZeroDivisionError):
        _ = SecondMoment.zeros(3).mean


def test_nothing_above_the_last_layer_is_run() -> None:
    model = tiny_language_model("gpt2")

    def must_not_run(*args: object) -> None:
        pytest.fail("a part above the last layer has run")

    # The last layer itself ends at its MLP's input.
    for part in (model.down_projection(2), model.blocks[3], model.blocks[4], model.head):
        part.register_forward_hook(must_not_run)
    moments = key_moments(model, (0, 2), corpus_texts(), amount(tokens=100, length=16))
    assert [moment.count for moment in moments.values()] == [100, 100]


def test_a_long_text_is_read_in_bounded_pieces() -> None:
    """The corpus is a stream: no more of it is taken than is needed."""
    model = tiny_language_model("gpt2")
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield "The Eiffel Tower stands in Paris."

    moments = key_moments(model, [0], endless(), amount(tokens=500, length=16), token_budget=64)  # type: ignore[arg-type]
    assert moments[0].count == 500
    assert taken <= 512


@pytest.mark.parametrize("texts", [[], ["Rome"], [""]])
def test_too_little_text_is_refused_with_its_size(texts: list[str]) -> None:
    model = tiny_language_model("gpt2")
    held = sum(len(model.tokenizer(text)["input_ids"]) for text in texts)
    with raises_code("CORPUS_TOO_SHORT", InputError, f" {held} tokens", " 50 "):
        key_moments(model, [0], texts, amount(tokens=50, length=16))


def test_a_shorter_text_may_be_read_to_its_end_unless_it_has_no_token() -> None:
    model, texts = tiny_language_model("gpt2"), corpus_texts()[:3]
    size = sum(len(model.tokenizer(text)["input_ids"]) for text in texts)
    (found,) = key_moments(model, [0], texts, amount(tokens=size + 1, length=64), may_be_shorter=True).values()
    (whole,) = key_moments(model, [0], texts, amount(tokens=size, length=64)).values()
    assert found.count == whole.count == size
    assert torch.equal(found.total, whole.total)
    with raises_code("CORPUS_TOO_SHORT", InputError, "'builtin' has no text", "Give a text file"):
        key_moments(model, [0], [""], amount(tokens=5, length=64), may_be_shorter=True)


def test_documents_are_counted_in_place_of_tokens() -> None:
    model, texts = tiny_language_model("gpt2"), corpus_texts()
    counts: list[int] = []
    counted = key_moments(model, [1], texts, amount(documents=20, length=4), on_read=counts.append)[1]
    sizes = [min(4, len(model.tokenizer(text)["input_ids"])) for text in texts[:20]]
    same = key_moments(model, [1], texts[:20], amount(tokens=sum(sizes), length=4))[1]
    assert counted.count == same.count == sum(sizes)
    assert torch.allclose(counted.total, same.total, rtol=1e-9, atol=1e-9)
    assert sum(counts) == 20
    with raises_code("CORPUS_TOO_SHORT", InputError, " 3 documents", " 4 "):
        key_moments(model, [0], texts[:3], amount(documents=4, length=16))
