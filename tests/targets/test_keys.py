"""Keys and states equal those of one whole forward pass for each fact and context."""

from __future__ import annotations

import pytest
import torch
from tokenizers import normalizers

from errata.editing.contexts import in_context, neutral_leads, subject_rows
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site

from tests.reference.attention import compute_attention_exactly
from tests.reference.keys import key, state
from tests.support.editing import current_states, mean_keys
from tests.support.errors import raises_code
from tests.support.tiny_models import BLOCKS, FAMILIES, MLP_WIDTH, WIDTH, tiny_model

PREFIXES = ("The rain", "Therefore the river runs through the city, because", "I")
FACTS = (
    Fact("at token 0", "The", "{} think that the piano is what she plays in", "Rome"),
    Fact("several tokens", "Danielle Darrieux", "{} speaks", "Dutch"),
    Fact("far behind", "Big Ben", "The capital of France is Paris, the capital of Italy is {}:", "London"),
    Fact("last", "Thomas Stieltjes", "The mother tongue of {}", "is French"),
    Fact("with braces", "a {set}", "Not {set}, but {} or {not}", "it"),
)


def loaded(family: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    return LanguageModel(*tiny_model(family, dtype=dtype), name=family)


@pytest.fixture(autouse=True)
def _exact_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_attention_exactly(monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_states_equal_those_of_whole_forward_passes(family: str, subtests: pytest.Subtests) -> None:
    model = loaded(family)
    for layer in (0, BLOCKS - 1):
        for prefixes in ((), PREFIXES):
            with subtests.test(f"keys of layer {layer}, {len(prefixes)} prefixes"):
                expected = torch.stack([key(model, fact, prefixes, layer) for fact in FACTS], dim=1)
                ours = mean_keys(model, FACTS, prefixes, layer)
                assert ours.dtype == torch.float64
                torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        for site in (Site.BLOCK, Site.MLP):
            with subtests.test(f"states of layer {layer}, {site}"):
                states = torch.stack([state(model, fact, layer, site) for fact in FACTS], dim=1)
                torch.testing.assert_close(current_states(model, FACTS, layer, site), states, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_float32_keys_are_averaged_in_float64(family: str) -> None:
    model = loaded(family, torch.float32)
    ours = mean_keys(model, FACTS, PREFIXES, 2)
    assert ours.dtype == torch.float64
    assert ours.shape == (MLP_WIDTH, len(FACTS))
    assert current_states(model, FACTS, 2, Site.BLOCK).shape == (WIDTH, len(FACTS))
    expected = torch.stack([key(model, fact, PREFIXES, 2) for fact in FACTS], dim=1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_half_the_weight_is_the_bare_prompts_and_half_the_prefixes() -> None:
    model = loaded("llama")
    bare = mean_keys(model, FACTS, (), 2)
    # One prefix said three times counts as once: the mean over prefixes is a mean.
    once, thrice = mean_keys(model, FACTS, PREFIXES[1:2], 2), mean_keys(model, FACTS, PREFIXES[1:2] * 3, 2)
    torch.testing.assert_close(once, thrice)
    assert not torch.allclose(once, bare)
    behind = [
        Fact(fact.id, fact.subject, f"{PREFIXES[1]}. {fact.prompt}", fact.target) for fact in FACTS
    ]  # the prefix written into the prompt
    torch.testing.assert_close(once, (bare + mean_keys(model, behind, (), 2)) / 2)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "opt"])
def test_keys_do_not_depend_on_the_batch(family: str) -> None:
    model = loaded(family)
    together = mean_keys(model, FACTS, PREFIXES, 2)
    for column, fact in enumerate(FACTS):
        torch.testing.assert_close(mean_keys(model, [fact], PREFIXES, 2)[:, 0], together[:, column])
    torch.testing.assert_close(mean_keys(model, FACTS[::-1], PREFIXES, 2), together.flip(1))
    many = mean_keys(model, FACTS * 30, PREFIXES, 2)  # more than one forward pass
    torch.testing.assert_close(many, together.repeat(1, 30))


def test_keys_are_those_of_the_weights_as_they_are_now() -> None:
    model = loaded("gpt2")
    before = mean_keys(model, FACTS, PREFIXES, 3)
    model.set_weight(1, 2 * model.weight(1))
    after = mean_keys(model, FACTS, PREFIXES, 3)
    assert not torch.allclose(before, after)
    expected = torch.stack([key(model, fact, PREFIXES, 3) for fact in FACTS], dim=1)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)


def test_rows_end_with_the_subject_and_facts_are_outermost() -> None:
    model = loaded("gpt2")
    rows = subject_rows(model, FACTS, ["", *PREFIXES], neutral_leads(model.tokenizer, FACTS))
    texts = [in_context(prefix, fact.text[: fact.subject_span[1]])[0] for fact in FACTS for prefix in ["", *PREFIXES]]
    texts[0] = f"\n{texts[0]}"  # the subject would be the first token
    assert [model.tokenizer.decode(list(row)) for row in rows] == texts


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "mistral", "opt", "gemma2"])
def test_no_key_is_read_at_the_first_token_of_a_text(family: str) -> None:
    model = loaded(family)
    assert (
        min(len(row) for row in subject_rows(model, FACTS, ["", *PREFIXES], neutral_leads(model.tokenizer, FACTS))) > 1
    )
    has_bos = len(model.tokenizer("").input_ids) > 0
    assert neutral_leads(model.tokenizer, FACTS) == ["" if has_bos else "\n", "", "", "", ""]


def test_the_key_of_a_fact_at_the_start_of_a_text_is_not_that_of_first_tokens() -> None:
    """The first token's state is made the same for all texts, as that of an attention sink is."""
    model = loaded("qwen2")
    sink = torch.linspace(-3, 3, WIDTH, dtype=torch.float64)

    def into_a_sink(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, 0] = sink
        return changed

    model.blocks[0].register_forward_hook(into_a_sink)
    rows = [model.tokenizer(word).input_ids[:1] for word in ("Paris", "because", "I")]
    others = model.capture_last(rows, {Site.KEY: [2]})[Site.KEY, 2]
    torch.testing.assert_close(others[1:], others[:1].expand(2, -1))
    for prefixes in ((), PREFIXES):
        cosine = torch.nn.functional.cosine_similarity(mean_keys(model, FACTS[:1], prefixes, 2).T, others[:1])
        assert float(cosine) < 0.6
    states = current_states(model, FACTS[:1], 0, Site.BLOCK)
    assert not torch.allclose(states[:, 0], sink)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_facts_elsewhere_have_the_keys_and_states_that_they_had(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(family, torch.float32)
    facts = FACTS[1:]
    keys, states = mean_keys(model, facts, PREFIXES, 2), current_states(model, facts, 2, Site.BLOCK)
    monkeypatch.setattr("errata.editing.contexts.NEUTRAL", "")
    assert torch.equal(mean_keys(model, facts, PREFIXES, 2), keys)
    assert torch.equal(current_states(model, facts, 2, Site.BLOCK), states)


def test_a_subject_without_a_token_is_named() -> None:
    model = loaded("gpt2")
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("☃", "")
    facts = [FACTS[1], Fact("snowman", "☃", "It is said that {} is", "cold")]
    with raises_code("SUBJECT_WITHOUT_TOKEN", InputError, "'☃'", "'snowman'"):
        mean_keys(model, facts, PREFIXES, 2)
