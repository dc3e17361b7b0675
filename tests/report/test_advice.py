"""The advice after an edit follows from what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from errata.editors.registry import EDITORS
from errata.editors.table import EDITOR_ROWS
from errata.evaluation.outcomes import Change, FactOutcome, Outcome, Wording
from errata.report.conclusions import LARGE, advice
from errata.results.records import Record


def outcome(
    own: tuple[int, int] = (10, 10),
    others: tuple[int, int] = (10, 10),
    known: int = 20,
    lost: int = 0,
    gained: int = 0,
    weights: Mapping[int, float] | None = None,
    ratio: float | None = 1.0,
) -> Outcome:
    """Of so many wordings so many took; of 20 control questions that many are known, lost and gained."""
    facts = [
        FactOutcome(
            str(index),
            "new",
            (Wording("p", True, index < own[0], ""), *([Wording("q", False, index < others[0], "")])),
        )
        for index in range(own[1])
    ]
    controls = []
    for index in range(20):
        before = index < known
        now = index >= lost if before else index < known + gained
        controls.append(
            Change(
                "unrelated",
                Record("f", "unrelated_accuracy", str(index), float(before), "x"),
                Record("f", "unrelated_accuracy", str(index), float(now), "x" if now == before else "y"),
            )
        )
    return Outcome(tuple(facts), tuple(controls), weights or {1: 0.05}, ratio, {})


def test_nothing_to_do() -> None:
    assert "fine" in advice(outcome(), "memit+blue")


def test_facts_that_did_not_take_ask_for_more() -> None:
    some = advice(outcome(own=(8, 10)), "memit")
    assert "2 of 10 facts" in some
    assert "target.steps" in some
    assert "None" in advice(outcome(own=(0, 10)), "memit")


def test_questions_that_are_asked_in_chat_too_are_not_counted_twice() -> None:
    few = outcome(known=3)
    metric = "unrelated_accuracy:chat"
    again = [replace(change, before=replace(change.before, metric=metric), now=replace(change.now, metric=metric))
             for change in few.controls]  # fmt: skip
    twice = replace(few, controls=(*few.controls, *again))
    assert "untouched" in advice(few, "memit")
    assert advice(twice, "memit") == advice(few, "memit")


def test_damage_comes_first_and_names_what_it_is() -> None:
    text = advice(outcome(own=(8, 10), lost=5), "alphaedit+blue")
    assert "damage" in text
    assert "5 of 20 unrelated" in text
    assert "learning_rate" in text
    assert "--method" not in text  # of the method that loses least, no other one is better
    assert "--method alphaedit" in advice(outcome(lost=5), "memit+blue")
    assert "learning_rate" in advice(outcome(lost=5), "memit+blue")
    assert "damage" in advice(outcome(ratio=1.45), "memit")


def test_a_single_answer_is_no_large_damage() -> None:
    assert "fine" in advice(outcome(known=6, lost=1), "memit")
    assert "2 of 6 unrelated" in advice(outcome(known=6, lost=2), "memit")
    assert "3 of 4 unrelated" in advice(outcome(known=4, lost=3), "memit"), "few questions, but most answers lost"
    assert "damage is large" not in advice(outcome(known=4, lost=2), "memit")


def test_numbers_to_change_are_named_with_a_way_to_a_recipe() -> None:
    for found in (outcome(own=(0, 10)), outcome(own=(8, 10)), outcome(others=(3, 10)), outcome(lost=5)):
        text = advice(found, "memit")
        assert "target." in text
        assert "errata recipe auto" in text
        other = advice(found, "memit", "an own model")
        commands = [part for part in re.split(r"[`(]", other) if part.startswith("errata ")]
        assert commands
        assert all(" --model 'an own model'" in command for command in commands)


def test_answers_that_were_gained_are_a_change_of_behaviour() -> None:
    text = advice(outcome(known=10, gained=8), "memit")
    assert "8 of 20 unrelated answers changed" in text
    assert "damage" in text


def test_a_large_change_of_the_weights_is_said_even_where_nothing_shows_it() -> None:
    text = advice(outcome(weights={4: 0.05, 8: 0.74}), "alphaedit+blue")
    assert "74 %" in text
    assert "fine" in advice(outcome(weights={4: LARGE}), "alphaedit+blue")


def test_questions_that_show_nothing_are_no_all_clear() -> None:
    assert "--untouched" in advice(outcome(known=2), "memit")


def test_paraphrases_that_do_not_follow() -> None:
    assert "7 of 10 paraphrases" in advice(outcome(others=(3, 10)), "memit")


def test_advice_for_an_editor_names_a_setting_that_it_has() -> None:
    """As a recipe's section ``editors``, not as a locate-then-edit method's."""
    for row in EDITOR_ROWS:
        known = EDITORS[row.name].settings.model_fields
        assert {name for _, name in (row.gentler, row.stronger, row.wider) if name} <= set(known), row.name
        for found in (outcome(own=(0, 10)), outcome(own=(8, 10)), outcome(others=(3, 10)), outcome(lost=5)):
            text = advice(found, row.name, "some-model")
            assert "recipe auto" not in text
            assert "alphaedit" not in text
            assert f"editors: {{{row.name}: " in text or "errata train-editor" in text
    assert "epsilon" in advice(outcome(lost=5), "grace")


def test_the_way_to_a_recipe_names_the_model() -> None:
    assert "errata recipe auto --model 'my model' --minutes 0" in advice(outcome(lost=5), "memit", "my model")
