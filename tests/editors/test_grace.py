"""GRACE: the rules of its codebook, its vectors against the slow twin, and what the published code gets wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editors.grace import Codebook, Grace, GraceSettings, Key
from errata.errors import NonFiniteError
from errata.models.language_model import LanguageModel

from tests.reference import grace as reference
from tests.support.editing import FACTS, tiny_language_model

LABELS = ((3, 1), (1, 3), (4,), (2, 2), (5,))  # the first two and the fourth have the same mean


def filled(queries: Tensor, labels: list[tuple[int, ...]], epsilon: float, growth: Any = "coverage") -> Codebook:
    book = Codebook(epsilon, growth)
    for number, (query, label) in enumerate(zip(queries, labels, strict=True)):
        book = book.assigned(number, query, label)
    return book


def grace(family: str = "llama", **settings: Any) -> Grace:
    return Grace(tiny_language_model(family), GraceSettings(**settings))


# The book -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", ["coverage", "moving_average"])
def test_the_book_is_that_of_the_twin(growth: str) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    queries = centres[torch.randint(12, (200,), generator=generator)]
    queries = queries + 0.4 * torch.randn(200, 6, generator=generator, dtype=torch.float64)
    labels = [LABELS[int(i)] for i in torch.randint(len(LABELS), (200,), generator=generator)]
    book = filled(queries, labels, 0.8, growth)
    rows = reference.book(queries.tolist(), labels, 0.8, moving=growth == "moving_average")
    assert 20 < len(rows) < 180
    assert [(key.label, list(key.entries)) for key in book.keys] == [(label, members) for _, _, label, members in rows]
    for key, (centre, radius, _, _) in zip(book.keys, rows, strict=True):
        assert key.radius == pytest.approx(max(radius, 0), abs=1e-12)
        assert key.centre.tolist() == pytest.approx(centre, abs=1e-12)
    others = queries + 0.3 * torch.randn(200, 6, generator=generator, dtype=torch.float64)
    found = book.nearest(others, 0.0)
    assert found == [reference.hit(rows, query) for query in others.tolist()]
    assert 20 < sum(route is None for route in found) < 180


def test_labels_with_the_same_mean_are_not_the_same() -> None:
    """The published code compares means of ids."""
    queries = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    book = filled(queries, [(3, 1), (1, 3), (2, 2)], 1.0)
    assert len(book.keys) == 3
    assert [len(key.entries) for key in filled(queries, [(3, 1)] * 3, 1.0).keys] == [3]


def test_each_query_finds_its_own_ball_and_so_do_those_close_to_it() -> None:
    generator = torch.Generator().manual_seed(1)
    queries = 3 * torch.randn(60, 8, generator=generator)
    labels = [LABELS[int(i)] for i in torch.randint(len(LABELS), (60,), generator=generator)]
    book = Codebook(1.0, "coverage")
    for number, (query, label) in enumerate(zip(queries, labels, strict=True)):
        book = book.assigned(number, query, label)
        (place,) = book.nearest(query[None], 0.0)
        assert place is not None
        key = book.keys[place]
        assert number in key.entries
        assert key.label == label
        away = torch.randn(8, generator=generator)
        if len(key.entries) == 1:  # the query is the centre
            near = query.double() + 0.49 * key.radius * away / away.norm()
            assert book.nearest(near[None], 0.0) == [place]


def test_a_query_on_the_edge_is_found_again_when_it_is_rounded_differently() -> None:
    query = torch.tensor([1.0, 2.0, 3.0])
    book = filled(torch.stack([query, query + torch.tensor([0.5, 0.0, 0.0])]), [(1,), (1,)], 0.4)
    assert [key.radius for key in book.keys] == [0.5]
    edge = query + torch.tensor([0.5 + 3e-7, 0.0, 0.0])
    assert book.nearest(edge[None], 0.0) == [None]
    assert book.nearest(edge[None], 2 * torch.finfo(torch.float32).eps) == [0]


def test_keys_are_compared_by_their_own_number() -> None:
    """EasyEdit prepends labels and appends keys."""
    key = Key(torch.zeros(2, dtype=torch.float64), 1.0, (7,), (0,))
    book = Codebook(
        1.0, "coverage", (key, replace(key, centre=torch.full((2,), 9.0).double(), label=(8,), entries=(1,)))
    )
    assert len(book.assigned(2, torch.full((2,), 9.1), (8,)).keys) == 2
    assert len(book.assigned(2, torch.full((2,), 9.1), (7,)).keys) == 3


# The vectors ----------------------------------------------------------------------------------------------------------

WHERE = {
    "hold": lambda position, last: position >= last,
    "last": lambda position, last: position == last,
    "prompt": lambda position, last: position <= last,
}


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("replaced", list(WHERE))
def test_vectors_are_those_of_facts_trained_one_by_one(family: str, replaced: Any) -> None:
    editor = Grace(
        tiny_language_model(family, dtype=torch.float64) if family != "gemma2" else tiny_language_model(family),
        GraceSettings(steps=5, replaced=replaced, learning_rate=0.3, stop_loss=0.0),
    )
    editor.apply(FACTS[:4])
    assert len(editor.state.entries) == 4
    for fact, entry in zip(FACTS[:4], editor.state.entries, strict=True):
        expected = reference.trained_vector(editor.model, fact, editor.layer, 5, 0.3, 0.0, WHERE[replaced])
        close = {"rtol": 1e-6, "atol": 1e-8} if family != "gemma2" else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(entry.value, expected.to(entry.value.dtype), **close)


def test_training_stops_early_for_each_vector_by_itself() -> None:
    steps: list[int] = []
    editor = Grace(
        tiny_language_model("gpt2"),
        GraceSettings(steps=60, stop_loss=5.0),
        lambda what, done, total: steps.append(done),
    )
    editor.apply(FACTS[:2])
    scores = editor.view().score([fact.pair(fact.target) for fact in FACTS[:2]])
    assert max(steps) < 60
    for fact, score in zip(FACTS[:2], scores, strict=True):
        assert -score.log_probability < 5.0
        alone = grace("gpt2", steps=60, stop_loss=5.0)
        alone.apply([fact])
        number = FACTS.index(fact)
        torch.testing.assert_close(
            alone.state.entries[0].value, editor.state.entries[number].value, rtol=1e-4, atol=1e-4
        )


def test_a_cold_start_is_uniform_and_depends_on_seed_and_fact() -> None:
    def start(seed: int, facts: Any) -> Tensor:
        editor = grace("gpt2", seed=seed, start="cold", steps=1, learning_rate=1e-30, relative_rate=False)
        editor.apply(facts)
        return torch.stack([entry.value for entry in editor.state.entries])

    first = start(0, FACTS[:2])
    assert first.min() >= 0
    assert first.max() < 1
    assert first.std() == pytest.approx(12**-0.5, abs=0.05)
    assert torch.equal(start(0, FACTS[1:2])[0], first[1])
    assert not torch.equal(start(1, FACTS[:2]), first)


def test_facts_of_one_label_that_are_close_share_a_vector() -> None:
    """A large radius joins them; vectors of earlier batches stay as they were."""
    same = [replace_target(fact, "Rome") for fact in FACTS[:4]]
    editor = grace(epsilon=50.0, steps=5)
    editor.apply(same[:2])
    vector = editor.state.entries[0].value
    assert editor.state.entries[1].value is vector
    editor.apply(same[2:])
    assert all(entry.value is vector for entry in editor.state.entries)
    assert editor.view().used([same[0].text])[0] == tuple(fact.id for fact in same)
    apart = grace(epsilon=50.0, steps=5)
    apart.apply(FACTS[:4])
    assert len({id(entry.value) for entry in apart.state.entries}) == 4


def replace_target(fact: Any, target: str) -> Any:
    return type(fact)(fact.id, fact.subject, fact.prompt, target)


def test_removing_the_owner_of_a_shared_vector_keeps_it_for_the_others() -> None:
    same = [replace_target(fact, "Rome") for fact in FACTS[:3]]
    editor = grace(epsilon=50.0, steps=5)
    first = editor.apply(same[:1])
    editor.apply(same[1:])
    vector = editor.state.entries[0].value
    editor.remove(first)
    assert [entry.fact for entry in editor.state.entries] == [fact.id for fact in same[1:]]
    assert torch.equal(editor.state.entries[0].value, vector)
    assert editor.view().used([same[1].text])[0] == tuple(fact.id for fact in same[1:])


def test_a_split_ball_grows_again_when_the_other_fact_is_removed() -> None:
    editor = grace(epsilon=50.0, steps=2)
    alone = grace(epsilon=50.0, steps=2)
    editor.apply(FACTS[:1])
    alone.apply(FACTS[:1])
    second = editor.apply(FACTS[1:2])
    assert editor.state.book is not None
    assert alone.state.book is not None
    assert editor.state.book.keys[0].radius < alone.state.book.keys[0].radius
    editor.remove(second)
    assert editor.state.book.keys[0].radius == alone.state.book.keys[0].radius
    assert editor.fingerprint() == alone.fingerprint()


def test_a_relative_radius_scales_with_the_model_and_not_with_what_was_read_before() -> None:
    one, two = grace("gpt2"), grace("gpt2")
    one.view().used(["The capital of Portugal is", "Water boils at a temperature of"])
    assert one.apply(FACTS[:2]).state["epsilon"] == two.apply(FACTS[:2]).state["epsilon"]
    assert grace("gpt2", epsilon=0.2).apply(FACTS[:1]).state["epsilon"] == pytest.approx(
        2 * two.state.book.epsilon if two.state.book else 0
    )
    assert grace("gpt2", epsilon=1.0, relative_epsilon=False).apply(FACTS[:1]).state["epsilon"] == 1.0


def test_values_that_are_not_finite_are_reported_and_nothing_has_changed() -> None:
    editor = grace(learning_rate=3e38, relative_rate=False, steps=6, start="cold")
    before = editor.fingerprint()
    with pytest.raises(NonFiniteError) as caught:
        editor.apply(FACTS[:2])
    assert set(caught.value.facts) <= {fact.id for fact in FACTS[:2]}
    assert editor.fingerprint() == before


@pytest.mark.real
def test_on_a_real_model_facts_are_recalled_and_others_left_alone(smollm2: Path) -> None:
    model = LanguageModel.load(smollm2, device="cpu")
    editor = Grace(model, GraceSettings())
    facts = [
        FACTS[0],
        type(FACTS[0])("tower", "The Eiffel Tower", "{} stands in the city of", "Rome"),
        type(FACTS[0])("capital", "Italy", "The capital of {} is", "Lisbon"),
    ]
    editor.apply(facts)
    view = editor.view()
    assert all(score.correct for score in view.score([fact.pair(fact.target) for fact in facts]))
    controls = ["The capital of Japan is", "The Colosseum stands in the city of", "Water is made of"]
    assert view.continue_texts(controls, new_tokens=8) == model.continue_texts(controls, new_tokens=8)
    answers = view.continue_texts([fact.text for fact in facts], new_tokens=4)
    assert all(fact.target in answer for fact, answer in zip(facts, answers, strict=True))
