"""The edited facts of a model, with editors of every kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from errata.benchmark.sequence import EvaluationSet, measure
from errata.cli.ask import answers_of
from errata.report.ledger import edited_facts, recalled

from tests.support.editing import FACTS, tiny_language_model
from tests.support.editors import VIEWS, MemoryEdit, MemoryEditor


def test_replaced_means_another_target() -> None:
    one, other = FACTS[:2]
    edits = [
        ("first", MemoryEdit((one, other), "")),
        ("again", MemoryEdit((replace(one, id="again"),), "")),
        ("changed", MemoryEdit((replace(other, target="Elsewhere"),), "")),
    ]
    twice = edited_facts([("a", edits[0][1]), ("b", edits[0][1])])
    assert [entry.latest for entry in twice] == [False, False, True, True]
    found = [(entry.edit, entry.fact.id, entry.replaced_by, entry.latest) for entry in edited_facts(edits)]
    assert found == [
        ("first", one.id, "", False),
        ("first", other.id, "changed", False),
        ("again", "again", "", True),
        ("changed", other.id, "", True),
    ]


@pytest.mark.parametrize("kind", VIEWS)
def test_editors_of_other_kinds_are_asked_measured_and_listed(kind: str) -> None:
    model = tiny_language_model("llama")
    editor = MemoryEditor(model, kind)
    edit = editor.apply(FACTS[:2])
    view = editor.view()
    entries = edited_facts([("edit", edit)])
    facts = [entry.fact for entry in entries]
    found = recalled(view, facts)
    assert len(found) == 2
    measured = measure(view, EvaluationSet(facts, prose=["A text."]))
    assert measured.perplexity is None
    if kind == "answer":  # it has no likelihoods, and answers with the target
        assert [entry.correct for entry in found] == [True, True]
        assert [entry.correct for entry in recalled(replace(editor, facts=()).view(), facts)] == [False, False]
        assert measured.records == []
    else:
        scores = view.score([fact.pair(fact.target) for fact in facts])
        assert [entry.correct for entry in found] == [score.correct for score in scores]
        own = [entry for entry in measured.records if entry.metric == "efficacy_accuracy"]
        assert [entry.value == 1 for entry in own] == [score.correct for score in scores]
    prompts = [fact.text for fact in facts]
    answers = answers_of(view, prompts, prompts, 4)
    assert [answer["continuation"] for answer in answers] == view.continue_texts(prompts, new_tokens=4)
    assert all(bool(answer["next"]) == (kind != "answer") for answer in answers)
    assert [answer["used"] for answer in answers] == [[fact.id] for fact in facts]
    assert all(answer["next"] for answer in answers_of(model, prompts, prompts, 4))
