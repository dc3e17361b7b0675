"""What an edit did, as the terminal shows it."""

from __future__ import annotations

import pytest

from errata.cli.edit_output import SHOWN, show_chat, show_controls, show_facts, show_unable, show_weight_change
from errata.evaluation.outcomes import FactOutcome, Outcome, Reply, Wording, changes
from errata.results.metrics import Metric
from errata.results.records import Record


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    out, err = capsys.readouterr()
    return " ".join(out.split()), " ".join(err.split())


def asked(answers: list[tuple[str, float]]) -> list[Record]:
    return [
        Record("f", Metric.UNRELATED_ACCURACY, f"question {index}", value, text)
        for index, (text, value) in enumerate(answers)
    ]


def outcome(weights: dict[int, float] | None = None, unable: dict[str, str] | None = None) -> Outcome:
    before = asked([("Paris", 1.0), ("Rome", 0.0), ("Oslo", 0.0), ("Bonn", 1.0)])
    after = asked([("Rome", 0.0), ("Paris", 1.0), ("Lima", 0.0), ("Bonn", 1.0)])
    return Outcome((), tuple(changes(before, after)), weights or {}, 1.0, unable or {})


def test_answers_that_changed_are_shown_with_the_words_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    show_controls(outcome())
    out, _ = said(capsys)
    assert "unrelated 4 2 1 1 3 (75 %)" in out
    assert "lost, unrelated: question 0 'Paris' → 'Rome'" in out
    assert "gained, unrelated: question 1 'Rome' → 'Paris'" in out
    assert "changed, unrelated: question 2 'Oslo' → 'Lima'" in out
    assert "question 3" not in out


def test_facts_that_are_not_said_are_shown_as_far_as_there_is_room(capsys: pytest.CaptureFixture[str]) -> None:
    count = SHOWN + 3
    facts = [
        FactOutcome(f"f{index}", "new", (Wording("p", True, False, "old"), Wording("q", False, index == 0, "old")))
        for index in range(count)
    ]
    show_facts(facts)
    out, _ = said(capsys)
    assert f"0 of {count}" in out
    assert "f1: p → 'old', not 'new' (and 1 wording more)" in out
    assert "3 more, see --json" in out


def test_facts_that_were_known_before_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    def fact(name: str, took: bool, before: bool | None) -> FactOutcome:
        return FactOutcome(name, "new", (Wording("p", True, took, "old", before),))

    show_facts([fact("a", True, True), fact("b", False, True), fact("c", True, False), fact("d", False, False)])
    out, _ = said(capsys)
    assert "known before the edit: 2 of 4 (a, b)" in out
    assert "b: p → 'old', not 'new' (known before the edit)" in out
    assert "d: p → 'old', not 'new'" in out
    assert out.count("(known before the edit)") == 1
    show_facts([fact("a", True, None)])
    assert "known" not in said(capsys)[0]


def test_excerpts_of_replies_begin_with_the_reply_and_end_after_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "Tell me in one short sentence: which city is the capital of the country France?"
    reply = "The capital of France is the city of Paris, which lies on the river Seine in the north."
    show_chat([Reply("f", prompt, True, False, reply, None)], (), hint=True)
    out, _ = said(capsys)
    shown, _, answer = out.partition("f: ")[2].partition(" → ")
    assert shown.startswith("… ")
    assert prompt.endswith(f" {shown.removeprefix('… ')}")
    assert answer.startswith("'The capital of France is")
    assert f"{reply} ".startswith(answer.removeprefix("'").removesuffix("…'"))
    metric = f"{Metric.UNRELATED_ACCURACY}:chat"
    before = Record("f", metric, prompt, 1.0, reply)
    now = Record("f", metric, prompt, 0.0, reply.replace("Paris", "Lyon").replace("Seine", "Rhône"))
    show_controls(Outcome((), tuple(changes([before], [now])), {}, 1.0, {}))
    out, _ = said(capsys)
    assert "'… city of Paris, which" in out  # not the long common beginning
    assert "'… city of Lyon, which" in out


@pytest.mark.parametrize(("ratio", "words"), [(0.05, ""), (0.15, "note"), (0.74, "warning")])
def test_a_large_change_of_the_weights_is_not_left_unsaid(
    capsys: pytest.CaptureFixture[str], ratio: float, words: str
) -> None:
    show_weight_change(outcome({4: 0.02, 8: ratio}))
    out, err = said(capsys)
    assert f"layer 8: {100 * ratio:.0f} %" in out
    assert err.partition(":")[0] == words


def test_every_number_that_can_show_nothing_is_named_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {
        "specificity_accuracy": "reason one",
        "specificity_accuracy_known": "reason two",
        "other": "reason three",
    }
    show_unable(outcome(unable=reasons), iter(["specificity_accuracy", "specificity_accuracy_known"]))
    out, _ = said(capsys)
    assert "reason one" in out
    assert "reason two" in out
    assert "reason three" not in out
