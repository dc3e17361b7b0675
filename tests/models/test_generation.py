"""Text in batches against one token and one row at a time."""

from __future__ import annotations

import math

import pytest
import torch

from errata.errors import InputError, NonFiniteError
from errata.models.generation import continue_rows, generate, inverse_cdf, own_uniforms
from errata.models.language_model import LanguageModel

from tests.reference.generation import continue_slowly, sample_together
from tests.support.editing import tiny_language_model
from tests.support.errors import raises_code
from tests.support.three_tokens import three_token_model

FAMILIES = ["gpt2", "gpt_neox", "llama", "mistral", "gemma2", "gemma3_text", "opt", "phi"]
PROMPTS = [
    "The mother tongue of Danielle Darrieux is",
    "Rome",
    "Because of the rain the match was moved from Madrid to Lisbon, and the crowd followed. The capital of Italy is",
    "Rome",
    "I think that the piano is what",
    "Big Ben stands",
]
NEW = [9, 3, 12, 7, 0, 11]


def end_ids(model: LanguageModel) -> set[int]:
    return {model.tokenizer.eos_token_id, model.model.generation_config.eos_token_id}


def text_of(model: LanguageModel, row: list[int], added: list[int]) -> str:
    given, whole = (model.tokenizer.decode(ids, skip_special_tokens=True) for ids in (row, row + added))
    assert whole.startswith(given)
    return whole.removeprefix(given)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_continued_as_it_would_be_alone(family: str, subtests: pytest.Subtests) -> None:
    model = tiny_language_model(family)  # not float64: eager attention makes NaN of padding there
    for top_k in (1, 5):
        with subtests.test(f"top {top_k}"):
            check_rows(model, top_k)


def check_rows(model: LanguageModel, top_k: int) -> None:
    rows = [model.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    uniforms = own_uniforms(PROMPTS, 12, torch.Generator().manual_seed(3))
    expected = []
    for row, limit, numbers in zip(rows, NEW, uniforms.tolist(), strict=True):
        added = continue_slowly(model, row, limit, top_k=top_k, uniforms=numbers, ends=end_ids(model))
        expected.append(text_of(model, row, added))
    assert expected[4] == ""
    for token_budget, side in ((1, "left"), (60, "right"), (60, "left"), (8192, "right")):
        model.tokenizer.padding_side = side
        found = model.continue_texts(PROMPTS, new_tokens=NEW, top_k=top_k, uniforms=uniforms, token_budget=token_budget)
        assert found == expected, (token_budget, side)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_contexts_of_edits_draw_from_one_stream_row_by_row(family: str) -> None:
    model = tiny_language_model(family)
    model.model.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    rows = [model.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    expected = sample_together(model, rows, 6, 5, torch.Generator().manual_seed(11))
    found = generate(model, PROMPTS, new_tokens=6, top_k=5, generator=torch.Generator().manual_seed(11))
    assert found == [text_of(model, row, added) for row, added in zip(rows, expected, strict=True)]


def test_rows_that_are_done_leave_the_batch() -> None:
    # Behind a comes b, behind b comes c, behind c comes c; a text is done at the first c.
    model = three_token_model(["a", "b", "c"], [[0, 9, 0], [0, 0, 9], [0, 0, 9]])
    shapes: list[tuple[int, ...]] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    texts = model.continue_texts(["a", "ab", "abc"], new_tokens=[9, 9, 2], stop=lambda text: text.endswith("c"))
    handle.remove()
    assert texts == ["bc", "c", "c"]
    assert shapes == [(3, 3), (1, 1)]
    assert model.continue_texts(["a", "ab", "abc"], new_tokens=3) == ["bcc", "ccc", "ccc"]


def test_an_end_of_text_ends_a_row_unless_it_shall_not() -> None:
    model = three_token_model(["a", "b", "c"], [[0, 9, 0], [0, 0, 9], [9, 0, 0]])
    model.model.generation_config.eos_token_id = 2
    assert model.continue_texts(["a", "c"], new_tokens=5) == ["b", "ab"]
    assert model.continue_texts(["a", "c"], new_tokens=5, end_at_eos=False) == ["bcabc", "abcab"]


def test_inverse_cdf_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/4.
    values = torch.tensor([[math.log(2), 0.0, 0.0]]).expand(7, 3)
    uniform = torch.tensor([0.0, 0.4999, 0.5001, 0.7499, 0.7501, 0.9999, 1.0], dtype=torch.float64)
    assert inverse_cdf(values, uniform)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_sampling_follows_the_probabilities_of_the_k_likeliest() -> None:
    # Of the three the two likeliest have 3 to 1.
    model = three_token_model(["a", "b", "c"], [[math.log(3), 0.0, -0.1]] * 3)
    uniforms = own_uniforms(["a"] * 4000, 1, torch.Generator().manual_seed(0))
    texts = model.continue_texts(["a"] * 4000, new_tokens=1, top_k=2, uniforms=uniforms)
    assert set(texts) == {"a", "b"}
    assert texts.count("a") / 4000 == pytest.approx(0.75, abs=0.03)  # four standard deviations


def test_the_numbers_of_a_row_are_its_own() -> None:
    def numbers(keys: list[str], count: int = 6, seed: int = 0) -> list[list[float]]:
        return own_uniforms(keys, count, torch.Generator().manual_seed(seed)).tolist()

    one, two, again = numbers(["one", "two", "one"])
    assert numbers(["two", "three", "one"])[0] == two
    assert numbers(["two", "three", "one"])[2] == one
    assert again != one
    assert numbers(["one"], 4)[0] == one[:4]
    assert numbers(["one"], seed=1)[0] != one
    many = own_uniforms([str(index) for index in range(2000)], 4, torch.Generator())
    assert many.dtype == torch.float64
    assert float(many.min()) >= 0
    assert float(many.max()) < 1
    assert many.mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.03)
    assert abs(float(torch.corrcoef(many.T)[0, 1])) < 0.1


def test_refusals() -> None:
    model = tiny_language_model("gpt2")
    with pytest.raises(ValueError, match="uniform number"):
        model.continue_texts(["The"], new_tokens=2, top_k=5)
    with pytest.raises(ValueError, match="uniform number"):
        model.continue_texts(["The"], new_tokens=2, top_k=5, uniforms=torch.zeros(1, 1, dtype=torch.float64))
    with raises_code("TEXT_TOO_LONG", InputError, "250", "256"):
        continue_rows(model, [[5] * 250, [5] * 2, [5] * 255], new_tokens=8)
    assert len(continue_rows(model, [[5] * 250], new_tokens=7)) == 1
    assert model.continue_texts([], new_tokens=8) == []


def test_logits_that_are_not_finite_name_the_row() -> None:
    model = tiny_language_model("llama")
    with torch.no_grad():
        token = model.tokenizer("Rome")["input_ids"][-1]
        model.model.model.embed_tokens.weight[token] = math.nan
    with raises_code("NOT_FINITE", NonFiniteError, "'Rome'"):
        model.continue_texts(["The", "Rome"], new_tokens=3)
    with raises_code("NOT_FINITE", NonFiniteError, "'Rome'"):
        generate(model, ["Rome"], new_tokens=3)
