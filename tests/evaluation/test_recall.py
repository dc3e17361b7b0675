"""Teacher-forced recall against one prompt at a time with all logits, and against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from errata.errors import InputError, NonFiniteError
from errata.evaluation.recall import absent, agreement, evaluate_facts
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel
from errata.models.likelihood import score
from errata.models.prompts import TargetScore
from errata.results.metrics import Metric
from errata.results.records import Record

from tests.support.errors import raises_code
from tests.support.tiny_models import tiny_model

FAMILIES = ["gpt2", "gpt_neox", "llama", "llama_tied", "mistral", "gemma2", "gemma3_text", "opt", "opt_projected"]
PAIRS = [
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("The mother tongue of Danielle Darrieux is", "French, spoken in Paris and Bordeaux"),
    ("The mother tongue of Danielle Darrieux is", "Dutch"),
    ("The mother tongue of Danielle Darrieux", "is"),
    ("Big", "Ben"),
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("Leonard Bernstein (🎻, {} and כינור) works for the New York Philharmonic in", "New York"),
    ("I think that the piano is what she plays, and the violin is what he plays. The capital of Italy is", "Rome"),
]


def naive(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, target: str) -> TargetScore:
    """One row, no padding, no mask, all logits; the target's tokens are those that the prompt alone has not."""
    ids = tokenizer(f"{prompt} {target}", return_token_type_ids=False)["input_ids"]
    start = len(tokenizer(prompt, return_token_type_ids=False)["input_ids"])
    with torch.no_grad():
        log_probabilities = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = range(start - 1, len(ids) - 1)
    mean = sum(float(log_probabilities[place, ids[place + 1]]) for place in places) / len(places)
    likeliest = [int(log_probabilities[place].argmax()) for place in places]
    share = sum(map(int.__eq__, likeliest, ids[start:])) / len(likeliest)
    return TargetScore(mean, share, tuple(likeliest), tokenizer.decode(likeliest).strip())


# Sliding windows are shorter than the padding here. Some families compute in part in float32 whatever their dtype.
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("token_budget", [1, 70, 4096])
def test_scores_do_not_depend_on_what_else_is_read(family: str, token_budget: int) -> None:
    model, tokenizer = tiny_model(family, dtype=torch.float64)
    expected = [naive(model, tokenizer, *pair) for pair in PAIRS]
    found = score(LanguageModel(model, tokenizer), PAIRS, token_budget=token_budget)
    assert [entry.log_probability for entry in found] == pytest.approx(
        [entry.log_probability for entry in expected], rel=1e-6
    )
    assert [(entry.share, entry.likeliest) for entry in found] == [(entry.share, entry.likeliest) for entry in expected]
    assert [entry.said for entry in found] == [entry.said for entry in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_in_float32(family: str) -> None:
    model, tokenizer = tiny_model(family)
    expected = [naive(model, tokenizer, *pair).log_probability for pair in PAIRS]
    found = [entry.log_probability for entry in score(LanguageModel(model, tokenizer), PAIRS)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_half_precision_of_a_model_does_not_sum_its_probabilities() -> None:
    model, tokenizer = tiny_model("llama", dtype=torch.bfloat16)
    prompt, target = PAIRS[0]
    ids = tokenizer(f"{prompt} {target}")["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        exact = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = sum(float(exact[place, ids[place + 1]]) for place in range(start - 1, len(ids) - 1)) / (len(ids) - start)
    (found,) = score(LanguageModel(model, tokenizer), [(prompt, target)])
    assert found.log_probability == pytest.approx(expected, abs=1e-5)


def test_the_head_runs_on_target_positions_only_and_equal_places_once() -> None:
    model = unigram_model(UNIGRAMS)
    sizes: list[int] = []
    handle = model.head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    updates: list[tuple[str, int, int]] = []
    # Behind "I think" stand "the", twice, "is", and "the is in": one place for the first tokens, two for the others.
    pairs = [("I think", "the"), ("I think", "is"), ("I think", "the is in"), ("I think", "the")]
    score(model, pairs, report=lambda *progress: updates.append(progress))
    handle.remove()
    assert sizes == [3]
    assert updates == [("evaluation", 1, 1)]
    assert not model.head._forward_pre_hooks, "the hook is gone"


def test_refusals() -> None:
    model, tokenizer = tiny_model("gpt2")
    lm = LanguageModel(model, tokenizer)
    with raises_code("PROMPT_EMPTY", InputError):
        score(lm, [("", "Paris")])
    with raises_code("TEXT_TOO_LONG", InputError, "'model'", " 256"):
        score(lm, [("Paris " * 300 + "is", "Rome")])
    assert score(lm, []) == []


def test_a_number_that_is_none_is_an_error_that_names_the_fact() -> None:
    model, tokenizer = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    fact = Fact("the-fact", "France", "The capital of {} is", "Rome")
    with raises_code("NOT_FINITE", NonFiniteError, "the-fact"):
        evaluate_facts(LanguageModel(model, tokenizer), [fact])
    assert not model.lm_head._forward_pre_hooks


# A model that says the same everywhere: logits by hand -----------------------------------------------------------


def unigram_model(logits: dict[str, float]) -> LanguageModel:
    """A GPT-2 whose next-token logits are the same at every place: as given for the words, 0 for all other tokens."""
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64)
    with torch.no_grad():
        # The final norm gives e_0 whatever comes, so that the logits are column 0 of the (tied) head.
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
        model.transformer.ln_f.bias[0] = 1
        model.transformer.wte.weight[:, 0] = 0
        for word, logit in logits.items():
            (token,) = tokenizer(f" {word}")["input_ids"]
            model.transformer.wte.weight[token, 0] = logit
    return LanguageModel(model, tokenizer)


UNIGRAMS = {"the": 3.0, "is": 2.0, "in": 1.0}
FACT = Fact(
    id="f",
    subject="Bernstein",
    prompt="I think {} plays",
    target="the",
    truth="is",
    paraphrases=("What Bernstein plays:", "Bernstein and"),
    neighbours=(Question("Watanabe plays", "is"), Question("Stieltjes plays", "in")),
    own=(Question("Bernstein works for", "the"), Question("Bernstein lives", "in")),
)
OTHERS = (("u", Question("Rome stands", "in")), ("v", Question("Rome stands near", "the")))


def test_scores_of_the_unigram_model() -> None:
    model = unigram_model(UNIGRAMS)
    vocabulary = model.model.config.vocab_size
    normaliser = math.log(math.exp(3) + math.exp(2) + math.exp(1) + vocabulary - 3)
    found = score(model, [("I think", "the"), ("I think", "is"), ("I think", "the is in")])
    assert [entry.log_probability for entry in found] == pytest.approx(
        [3 - normaliser, 2 - normaliser, 2 - normaliser], rel=1e-12
    )
    assert [entry.correct for entry in found] == [True, False, False]
    assert [entry.said for entry in found] == ["the", "the", "the the the"]


def values(records: list[Record], metric: Metric) -> list[tuple[str, str, float]]:
    return [(record.fact, record.prompt, record.value) for record in records if record.metric == metric]


def test_every_metric_by_hand() -> None:
    records = evaluate_facts(unigram_model(UNIGRAMS), [FACT], untouched=OTHERS)
    paraphrases = ("What Bernstein plays:", "Bernstein and")
    assert values(records, Metric.EFFICACY_SUCCESS) == [("f", "I think Bernstein plays", 1.0)]
    assert values(records, Metric.EFFICACY_ACCURACY) == [("f", "I think Bernstein plays", 1.0)]
    assert values(records, Metric.GENERALISATION_SUCCESS) == [("f", prompt, 1.0) for prompt in paraphrases]
    assert values(records, Metric.GENERALISATION_ACCURACY) == [("f", prompt, 1.0) for prompt in paraphrases]
    # "the" (the target) is likelier than "is" and "in" (the neighbours' answers).
    assert [value for *_, value in values(records, Metric.SPECIFICITY_SUCCESS)] == [0.0, 0.0]
    assert [value for *_, value in values(records, Metric.SPECIFICITY_ACCURACY)] == [0.0, 0.0]
    assert [value for *_, value in values(records, Metric.SAME_SUBJECT_ACCURACY)] == [1.0, 0.0]
    assert values(records, Metric.UNTOUCHED_ACCURACY) == [("u", "Rome stands", 0.0), ("v", "Rome stands near", 1.0)]
    assert {record.said for record in records} == {"the"}
    assert len(records) == 2 + 4 + 4 + 2 + 2


def test_every_metric_by_hand_where_the_truth_is_likelier() -> None:
    records = evaluate_facts(unigram_model({"the": 1.0, "is": 2.0, "in": 0.5}), [FACT])
    for metric in (
        Metric.EFFICACY_SUCCESS,
        Metric.EFFICACY_ACCURACY,
        Metric.GENERALISATION_SUCCESS,
        Metric.GENERALISATION_ACCURACY,
    ):
        assert {value for *_, value in values(records, metric)} == {0.0}
    # "is" is likelier than the target and likeliest of all; "in" is neither.
    assert [value for *_, value in values(records, Metric.SPECIFICITY_SUCCESS)] == [1.0, 0.0]
    assert [value for *_, value in values(records, Metric.SPECIFICITY_ACCURACY)] == [1.0, 0.0]
    assert values(records, Metric.UNTOUCHED_ACCURACY) == []


def test_equally_likely_is_no_success() -> None:
    records = evaluate_facts(unigram_model({"the": 2.0, "is": 2.0}), [FACT])
    assert {value for *_, value in values(records, Metric.EFFICACY_SUCCESS)} == {0.0}
    assert values(records, Metric.SPECIFICITY_SUCCESS)[0][2] == 0.0


def test_without_truth_success_is_absent_and_never_zero() -> None:
    bare = Fact("g", "Rome", "{} stands", "in", paraphrases=("It is Rome that stands",))
    records = evaluate_facts(unigram_model(UNIGRAMS), [bare])
    assert [record.metric for record in records] == [Metric.EFFICACY_ACCURACY, Metric.GENERALISATION_ACCURACY]
    missing = absent([bare])
    assert set(missing) == {
        Metric.EFFICACY_SUCCESS,
        Metric.GENERALISATION_SUCCESS,
        Metric.SPECIFICITY_SUCCESS,
        Metric.SPECIFICITY_ACCURACY,
        Metric.SAME_SUBJECT_ACCURACY,
        Metric.UNTOUCHED_ACCURACY,
    }
    assert "'old'" in missing[Metric.EFFICACY_SUCCESS]
    assert "'neighbours'" in missing[Metric.SPECIFICITY_ACCURACY]


@pytest.mark.parametrize(
    "fact",
    [
        FACT,
        Fact("g", "Rome", "{} stands", "in"),
        Fact("g", "Rome", "{} stands", "in", truth="near"),
        Fact("g", "Rome", "{} stands", "in", neighbours=(Question("Paris stands", "near"),)),
    ],
)
def test_present_or_absent_with_a_reason_never_both(fact: Fact) -> None:
    for untouched in ((), OTHERS):
        for tokens in (False, True):
            records = evaluate_facts(unigram_model(UNIGRAMS), [fact], untouched=untouched, tokens=tokens)
            present = {record.metric for record in records}
            missing = absent([fact], untouched, tokens=tokens)
            assert present.isdisjoint(missing)
            assert present | missing.keys() - {Metric.UNRELATED_AGREEMENT} == (BY_TOKENS if tokens else EVERY_EDIT)
            assert all(missing.values())


EVERY_EDIT = {
    metric
    for metric in Metric
    if metric.startswith(("efficacy", "generalisation", "specificity", "same_subject", "untouched"))
    and metric.endswith(("_success", "_accuracy"))
}
BY_TOKENS = EVERY_EDIT | {
    Metric.EFFICACY_TOKENS, Metric.GENERALISATION_TOKENS, Metric.PORTABILITY_ACCURACY, Metric.PORTABILITY_TOKENS,
    Metric.UNRELATED_ACCURACY, Metric.UNRELATED_TOKENS,
}  # fmt: skip


def test_shares_of_tokens_portability_and_unrelated_questions_by_hand() -> None:
    fact = Fact(
        "f", "Bernstein", "I think {} plays", "the is the", paraphrases=("What Bernstein plays:",),
        portability=(Question("Bernstein lives", "in the"),), unrelated=(Question("Rome stands", "the the"),),
    )  # fmt: skip
    found = evaluate_facts(unigram_model(UNIGRAMS), [fact], tokens=True)
    shares = {record.metric: record.value for record in found if record.metric.endswith("_tokens")}
    assert shares == {
        Metric.EFFICACY_TOKENS: 2 / 3,
        Metric.GENERALISATION_TOKENS: 2 / 3,
        Metric.PORTABILITY_TOKENS: 1 / 2,
        Metric.UNRELATED_TOKENS: 1.0,
    }
    assert values(found, Metric.PORTABILITY_ACCURACY) == [("f", "Bernstein lives", 0.0)]
    assert values(found, Metric.UNRELATED_ACCURACY) == [("f", "Rome stands", 1.0)]


def test_agreement_is_with_what_the_unedited_model_says_at_each_place() -> None:
    model = unigram_model(UNIGRAMS)
    head = model.model.transformer.wte.weight

    @contextmanager
    def unedited() -> Iterator[None]:
        kept = head.detach().clone()
        with torch.no_grad():
            head[:, 0] = 0
            head[model.tokenizer(" in")["input_ids"][0], 0] = 5
        yield
        with torch.no_grad():
            head.copy_(kept)

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    fact = Fact("f", "Bernstein", "{} plays", "the", unrelated=(Question("Rome stands", "in the"),))
    assert [record.value for record in agreement(model, [fact], unedited)] == [0.0]
    (same,) = agreement(model, [fact], nothing)
    assert (same.value, same.said, same.metric) == (1.0, "the the", Metric.UNRELATED_AGREEMENT)


def test_no_facts() -> None:
    assert evaluate_facts(unigram_model(UNIGRAMS), []) == []
    assert len(absent([])) == 8


# Budget ----------------------------------------------------------------------------------------------------------


def test_prompts_are_read_once() -> None:
    model = unigram_model(UNIGRAMS)
    sizes: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    evaluate_facts(model, [FACT], untouched=OTHERS, token_budget=1)  # one row at a time: no padding
    handle.remove()
    # The two targets of a prompt are one token each: one row serves both, and a prompt that begins another with them.
    tokens = model.tokenizer
    prompts = [FACT.text, *FACT.paraphrases, *(question.prompt for question in FACT.neighbours + FACT.own)]
    prompts.append("Rome stands near")
    assert sum(sizes) == sum(len(tokens(prompt)["input_ids"]) for prompt in prompts)
