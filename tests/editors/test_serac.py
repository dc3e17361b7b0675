"""``serac``: features, regression and AUC against their definitions, and a classifier that sees prompts only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editors.counterfactual import loaded
from errata.editors.counterfactual import pairs_of as pairs_in_context
from errata.editors.embedders import Hidden, LexicalEmbedder
from errata.editors.retrieval import Retrieval, RetrievalSettings
from errata.editors.scope import FEATURES, Features, ScopeEmbedder, SmallModel, auc, distinct_subjects, fit, pairs_of
from errata.editors.serac import Serac, SeracSettings
from errata.editors.trained_editor import TrainedEditor
from errata.editors.trainers import train_editor, trainer_settings
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.utils.progress import silent

from tests.reference import serac as reference
from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code
from tests.support.trained import QUICK, tiny_data, tiny_trained, trained_file

ALWAYS = {"kind": "cosine", "threshold": -1.0}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model("llama")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_file("serac", tmp_path_factory.mktemp("serac"))


def serac(model: LanguageModel, file: Path, **changes: Any) -> Serac:
    return Serac(model, SeracSettings.model_validate({"embedder": {"kind": "trained", "file": str(file)}, **changes}))


def test_features_are_those_of_the_definition(model: LanguageModel) -> None:
    queries = [
        "In which city was Big Ben, the bell?",
        "big ben was moved",
        "Italy",
        "The mother tongue of Bigger Ben is",
    ]
    lexical, hidden = LexicalEmbedder(), Hidden(tokens=100).embedder(model)
    texts = [fact.text for fact in FACTS]
    first, second = lexical.index(texts).cosines(queries), hidden.index(texts).cosines(queries)
    expected = [
        [
            reference.features(query, fact, float(first[row, column]), float(second[row, column]))
            for column, fact in enumerate(FACTS)
        ]
        for row, query in enumerate(queries)
    ]
    found = Features(FACTS, lexical, hidden).of(queries)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    assert Features((), lexical, hidden).of(queries).shape == (4, 0, len(FEATURES))
    # The answer is no part of what is compared.
    other = [replace(fact, target="a very long answer of many words") for fact in FACTS]
    assert torch.equal(Features(other, lexical, hidden).of(queries), found)


def test_the_regression_is_that_of_gradient_descent() -> None:
    generator = torch.Generator().manual_seed(0)
    positives = torch.randn(6, 3, generator=generator, dtype=torch.float64) + torch.tensor([1.0, 0.0, -0.5])
    negatives = 2 * torch.randn(9, 3, generator=generator, dtype=torch.float64)
    expected = reference.regression(positives, negatives, ridge=0.5)
    found = fit(positives, negatives, ridge=0.5)
    torch.testing.assert_close(torch.cat([found.weights, found.bias[None]]), expected, atol=1e-6, rtol=0)
    rows = torch.cat([positives, negatives])
    by_hand = torch.sigmoid((rows - rows.mean(0)) / rows.std(0, correction=0) @ expected[:-1] + expected[-1])
    torch.testing.assert_close(found(rows), by_hand, atol=1e-6, rtol=0)


def test_separable_and_constant_features_give_finite_weights() -> None:
    positives = torch.tensor([[1.0, 5.0], [2.0, 5.0]], dtype=torch.float64)
    found = fit(positives, -positives.abs() * torch.tensor([1.0, -1.0]), ridge=1e-6)
    assert bool(found.weights.isfinite().all())
    assert float(found(positives).min()) > 0.99
    assert found.weights[1] == 0


def test_auc_by_hand() -> None:
    positives, negatives = [0.9, 0.4, 0.4, 0.8], [0.1, 0.4, 0.85]
    # 0.9 exceeds all 3; 0.8 two; each 0.4 one and ties with one: 3 + 2 + 1.5 + 1.5 of 12.
    assert auc(torch.tensor(positives), torch.tensor(negatives)) == pytest.approx(8 / 12)
    assert reference.auc(positives, negatives) == pytest.approx(8 / 12)


def test_pairs_are_own_questions_against_others(model: LanguageModel) -> None:
    records = distinct_subjects(tiny_data()["train"].records * 2, 5, seed=1)
    assert len({record.edit.subject for record in records}) == 5
    lexical, hidden = LexicalEmbedder(), Hidden(tokens=100).embedder(model)
    positives, negatives = pairs_of(records, lexical, hidden, 3, silent)  # memories of three and of two
    assert (len(positives), len(negatives)) == (5 * 3, 5 * (3 + 4))
    group = records[:3]
    features = Features([record.edit for record in group], lexical, hidden)
    wordings = [(place, text) for place, r in enumerate(group) for text in (r.edit.text, *(q.prompt for q in r.outer))]
    own = [features.of([text])[0, place] for place, text in wordings]
    torch.testing.assert_close(positives[:9], torch.stack(own))
    query = features.of([group[0].outer[0].prompt])[0]
    nearest = max((1, 2), key=lambda place: float(query[place, 0]))
    torch.testing.assert_close(negatives[1], query[nearest])


def test_the_trained_classifier_separates_and_is_reproducible(model: LanguageModel) -> None:
    first, again = tiny_trained("serac"), tiny_trained.__wrapped__("serac")
    assert first.record == again.record
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert first.record["calibration AUC"] > 0.7
    embedder = ScopeEmbedder(model, first)
    assert {fact.subject for fact in embedder.held_out} == {r.edit.subject for r in tiny_data()["calibration"].records}
    probabilities = embedder.index_of(FACTS).cosines([fact.text for fact in FACTS])
    assert bool((probabilities.argmax(1) == torch.arange(len(FACTS))).all())
    assert bool(((probabilities >= 0) & (probabilities <= 1)).all())


def test_an_empty_memory_is_the_model(model: LanguageModel, file: Path) -> None:
    editor = serac(model, file, gates=[ALWAYS])
    pairs = [fact.pair(fact.target) for fact in FACTS]
    assert editor.view().score(pairs) == model.score(pairs)
    assert editor.view().used([fact.text for fact in FACTS]) == [()] * len(FACTS)


def test_a_gate_that_lets_all_through_is_the_oracle(model: LanguageModel, file: Path) -> None:
    fact = replace(FACTS[0], paraphrases=("Danielle speaks",))
    prompts = [fact.text, *fact.paraphrases]
    oracle = Retrieval(model, RetrievalSettings(mode="oracle"))
    editor = serac(model, file, gates=[ALWAYS])
    for one in (oracle, editor):
        one.apply([fact])
    pairs = [fact.pair(target, prompt) for prompt in prompts for target in (fact.target, "Rome")]
    assert editor.view().score(pairs) == oracle.view().score(pairs)
    assert editor.view().continue_texts(prompts, new_tokens=4) == oracle.view().continue_texts(prompts, new_tokens=4)
    # One prompt alone is answered as in a batch.
    assert [editor.view().continue_texts([text], new_tokens=4)[0] for text in prompts] == editor.view().continue_texts(
        prompts, new_tokens=4
    )


SMALL = {"width": 32, "steps": 60, "batch_size": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def small_file(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with a small model, of the same data and settings as ``file``."""
    settings = trainer_settings("serac", {**QUICK["serac"], "counterfactual": "small", "small": SMALL})
    path = tmp_path_factory.mktemp("small") / "serac.safetensors"
    train_editor("serac", model, tiny_data(), settings).save(path)
    return path


def test_small_models_are_asked_with_the_fact_before_each_wording() -> None:
    record = tiny_data()["train"].records[1]
    person, city = record.edit.subject, record.edit.target
    assert pairs_in_context([record]) == [
        (f"{person} was born in {city}.\n{person} was born in", city),
        (f"{person} was born in {city}.\nThe city of {person} is", city),
        (f"{person} was born in {city}.\nYou know that {person} is of", city),
    ]


def test_a_small_model_answers_queries_with_a_fact(model: LanguageModel, file: Path, small_file: Path) -> None:
    trained = TrainedEditor.load(small_file, "serac", model)
    classifier = TrainedEditor.load(file, "serac", model).tensors
    assert all(torch.equal(trained.tensors[name], tensor) for name, tensor in classifier.items())
    small = loaded(model, SmallModel.model_validate(SMALL), trained.tensors)
    assert len(small.blocks) == 2
    scores = small.score(pairs_in_context(tiny_data()["train"].records))
    assert sum(score.correct for score in scores) > 0.6 * len(scores)
    editor = serac(model, small_file, gates=[{"kind": "subject"}], counterfactual="small")
    assert editor.view().score([FACTS[0].pair("Rome")]) == model.score([FACTS[0].pair("Rome")])
    fact = tiny_data()["train"].records[0].edit
    editor.apply([fact])
    view = editor.view()
    queries = [fact.text, f"You know that {fact.subject} is of"]
    expected = [f"{fact.text} {fact.target}.\n{query}" for query in queries]
    answers = [fact.target, "Rome"]
    assert view.score(list(zip(queries, answers, strict=True))) == small.score(
        list(zip(expected, answers, strict=True))
    )
    assert view.continue_texts(queries, new_tokens=4) == small.continue_texts(expected, new_tokens=4)
    found = view.next_token_log_probabilities([FACTS[0].text, *queries])
    torch.testing.assert_close(found[1:], small.next_token_log_probabilities(expected))
    assert torch.equal(found[:1], model.next_token_log_probabilities([FACTS[0].text]))
    assert view.used([FACTS[0].text, *queries]) == [(), (fact.id,), (fact.id,)]


def test_without_a_small_model_it_cannot_answer(model: LanguageModel, file: Path, small_file: Path) -> None:
    for path, changes in ((file, {}), (small_file, {"k_facts": 2}), (small_file, {"embedder": {"kind": "lexical"}})):
        with raises_code("COUNTERFACTUAL_MODEL_MISSING"):
            serac(model, path, gates=[ALWAYS], counterfactual="small", **changes)


def test_the_most_probable_fact_is_used_and_one_word_prompts_too(model: LanguageModel, file: Path) -> None:
    twin = replace(FACTS[3], id="twin", prompt="The river of {} is", target="the Tiber")
    word = Fact("word", "Italy", "{}", "a country")
    editor = serac(model, file, gates=[ALWAYS])
    editor.apply([FACTS[3], twin, FACTS[5]])
    prompts = [FACTS[3].text, twin.text, FACTS[5].text]
    assert editor.view().used(prompts) == [("capital",), ("twin",), ("bell",)]
    editor = serac(model, file, gates=[ALWAYS])
    editor.apply([FACTS[0], word])
    assert editor.view().used(["Italy"]) == [("word",)]


def test_the_threshold_is_calibrated_on_facts_of_the_trained_file(model: LanguageModel, file: Path) -> None:
    editor = serac(model, file)
    edit = editor.apply(FACTS)
    found = editor.calibration
    assert found is not None
    assert (found.facts, found.positives) == (len(FACTS), 2 * 8)
    assert edit.state["calibration"]["threshold"] == found.threshold
    assert edit.state["digests"]["embedder"] == tiny_trained("serac").digest
    strict = serac(model, file, gates=[{"kind": "cosine", "threshold": 1.0}])
    strict.apply(FACTS)
    assert strict.view().used([fact.text for fact in FACTS]) == [()] * len(FACTS)


def test_without_a_classifier_for_this_model_there_is_no_editor(model: LanguageModel, file: Path) -> None:
    with raises_code("TRAINED_EDITOR_MISSING"):
        Serac(model, SeracSettings())
    with raises_code("TRAINED_EDITOR_FOR_OTHER_WEIGHTS"):
        serac(tiny_language_model("llama", seed=1), file)


def test_other_editors_with_a_memory_can_use_the_classifier(model: LanguageModel, file: Path) -> None:
    embedder = {"kind": "trained", "file": str(file)}
    settings = RetrievalSettings.model_validate({"embedder": embedder, "gates": [ALWAYS, {"kind": "subject"}]})
    editor = Retrieval(model, settings)
    editor.apply(FACTS)
    assert editor.view().used([FACTS[3].text, "The river runs through the"]) == [("capital",), ()]
