"""The demo on a real model: its facts and questions are well-formed; what belongs to the demo on lab is refused."""

from __future__ import annotations

import pytest

from errata.cli.demo import corrections
from errata.cli.main import run


def test_ten_facts_each_in_three_wordings_and_control_questions_about_other_things() -> None:
    facts, controls = corrections()
    assert len(facts) == len({fact.subject for fact in facts}) == 10
    assert all(len(fact.paraphrases) == 2 and fact.old and fact.old != fact.target for fact in facts)
    assert len(controls) == 20
    assert not any(fact.subject in question.prompt for fact in facts for question in controls)


def test_options_of_the_demo_on_lab_are_refused_with_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--model", "smollm2-135m-instruct", "--facts", "3"]) == 2
    assert "--facts" in capsys.readouterr().err
