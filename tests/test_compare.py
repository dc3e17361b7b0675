"""``errata compare``: each column measures what it says, differences are over the same facts, and verdicts follow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from errata.benchmark import arguments
from errata.benchmark import columns as names
from errata.benchmark.arguments import Coverage, named_in, probes_of
from errata.benchmark.columns import COLUMNS, Argument
from errata.benchmark.sequence import EvaluationSet
from errata.benchmark.trials import Candidate, Edited, Trial, measure_baseline, run_trial, unedited_trial
from errata.cli import compare
from errata.cli.main import run
from errata.cli.trial_options import TrialData
from errata.editors.contract import Undo
from errata.editors.retrieval import Retrieval, RetrievalSettings
from errata.evaluation.ability import AbilityResults, AbilitySettings, Sample, TaskMetric, TaskResult
from errata.evaluation.consequences import Consequence
from errata.facts.fact import Fact, FactSet, Question
from errata.report import editor_comparison
from errata.report.editor_comparison import EditorComparison, absent_lines, argument_table, comparison_page, number_of
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.results.tallies import Tally
from errata.utils.progress import silent

from tests.support.editing import FACTS, parameter_bits, tiny_language_model
from tests.support.editors import MemoryEditor

SENTENCES = ["It rained.", "He slept.", "Rome is a city.", "The crowd plays.", "The rain runs through Paris."]


@dataclass
class Updating(MemoryEditor):
    """A toy editor that takes several versions of a fact."""

    def fingerprint(self) -> str:
        return repr([fact.to_record() for fact in self.facts])


@dataclass
class OnlyLast(Updating):
    undo: ClassVar[Undo] = "last"


def retrieval(model: Any, *_: Any) -> Retrieval:
    return Retrieval(model, RetrievalSettings())


@pytest.fixture(scope="module")
def compared() -> EditorComparison:
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    facts = [
        replace(
            fact,
            old="the piano",
            paraphrases=(f"It rained. {fact.text}", "They say that this is"),
            neighbours=(Question("The river stands in", "London"),),
            own=(Question(f"{fact.subject} was born in", "Paris"),),
            portability=(Question(f"The country of {fact.subject} is", "Spain"),),
        )
        for fact in FACTS[:5]
    ]
    asked = EvaluationSet(
        facts,
        untouched=[(name, Question(f"{name} was born in", "Rome")) for name in ("Thomas Stieltjes", "The crowd")],
        prose=["The river runs through the old town to the sea."],
    )
    baseline = measure_baseline(model, asked)
    made = [Consequence(fact.id, fact.portability[0], "France") for fact in facts]
    probes = probes_of(model, asked, baseline, consequences=made, absent={}, pool=facts, sentences=SENTENCES)
    candidates = (
        Candidate("answer", "answer", lambda model, _: OnlyLast(model, "answer")),
        Candidate("retrieval", "prompt", retrieval),
    )
    trials = tuple(run_trial(model, candidate, asked, baseline, probes=probes) for candidate in candidates)
    unedited = unedited_trial(model, asked, baseline, probes)
    assert all((before[name] == bits).all() for name, bits in parameter_bits(model).items())
    return EditorComparison(len(facts), trials, unedited)


def test_every_column_has_a_number_or_a_reason(compared: EditorComparison) -> None:
    for trial in compared.trials:
        assert not trial.failure
        for column in COLUMNS:
            found, reason = number_of(trial, column.name), trial.absent.get(column.name)
            assert (found is None) == (reason is not None), (trial.method, column.name)


def test_numbers_of_editors_that_are_known(compared: EditorComparison) -> None:
    answer, retrieval = compared.trials
    # The toy editor of answers says the target and nothing else, whenever the subject is named.
    for name in (names.TOOK_FREE, names.CONTINUED):
        assert answer.numbers[name].mean == 1
    # Of the five wordings, one does not name the subject.
    assert answer.numbers[names.WORDINGS_FREE].mean == pytest.approx(3 / 4)
    for name in (names.UNNAMED_FREE, names.AGREEMENT, names.AGREEMENT_DISTRACTED):
        assert answer.numbers[name].mean == 0
    assert answer.numbers[names.CONTRADICTION].mean == 0
    for trial in compared.trials:  # both look for the subject
        assert trial.numbers[names.RECALL].mean == pytest.approx(2 / 3)
        # Each fact has two own wordings that name its subject, and one other question that does.
        assert trial.numbers[names.PRECISION].mean == pytest.approx(2 / 3)
        assert trial.numbers[names.FALSE_SCOPE].mean == 0
        assert trial.numbers[names.EXACT_REMOVAL].mean == 1
    assert retrieval.numbers[names.TOKENS_HIT].mean > 0
    assert retrieval.numbers[names.TOKENS_MISS].mean == 0
    assert answer.numbers[names.TOKENS_HIT].mean == 0
    assert answer.numbers[names.LATEST].mean == 1
    assert "only the last" in answer.absent[names.REMOVAL]
    assert retrieval.numbers[names.REMOVAL].mean >= 0
    assert compared.unedited.numbers[names.TOOK_FREE].mean == 0
    assert names.RECALL in compared.unedited.absent


def test_absent_columns_have_the_right_reasons(compared: EditorComparison) -> None:
    answer, retrieval = compared.trials
    assert "likelihoods" in answer.absent[Metric.EFFICACY_ACCURACY]
    assert "likelihoods" in answer.absent[names.CALIBRATION_EDITED]
    assert "reversal" in retrieval.absent[Metric.REVERSAL_ACCURACY]
    assert "before prompts" in answer.absent[names.REPEATED]
    lines = absent_lines([compared])
    assert any("answer" in what and "likelihoods" in reason for what, reason in lines)


def test_a_trial_survives_json(compared: EditorComparison) -> None:
    for trial in (*compared.trials, compared.unedited):
        assert Trial.from_record(json.loads(json.dumps(trial.to_record()))) == trial
    json.dumps(compared.to_record(), allow_nan=False)


def test_tables_and_page_hold_every_editor(compared: EditorComparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_comparison, "_QUALITY", (names.TOOK_FREE,))  # drawing takes long
    monkeypatch.setattr(editor_comparison, "_PRICE", (names.SECONDS,))
    for argument in Argument:
        table = argument_table([compared], argument)
        if table is None:
            assert argument is Argument.COVERAGE  # no fact took
            continue
        assert all(len(line) == len(table.lines[0]) for line in table.lines)
    evil = "<img src=x onerror=alert(1)>"
    failed = replace(compared.trials[0], method=evil, failure=evil)
    whole = replace(compared, trials=(*compared.trials, failed))
    page = comparison_page([whole], model=evil, data=evil, notes=[evil], command=evil, versions={})
    assert evil not in page
    assert page.count("<svg") == 4  # two figures, light and dark
    assert all(sentence.split(":")[0] in page for sentence in compared.verdict())


def made_trial(method: str, values: Mapping[str, Sequence[float]], **fields: Any) -> Trial:
    tallies = {
        name: Tally.mean_of((f"fact {place}", value) for place, value in enumerate(found))
        for name, found in values.items()
    }
    numbers = {name: tally.summary(name) for name, tally in tallies.items()}
    whole = Trial(method, "hooks", 20, numbers, 1.0, (0.02, 0.02), (0.02, 0.02), 1000, "any", tallies=tallies)
    return replace(whole, **fields)


def test_differences_are_paired_by_fact() -> None:
    base = [float(place % 2) for place in range(20)]
    one = made_trial("a", {names.TOOK_FREE: [1.0] * 4 + base[4:]})  # better by two of twenty facts
    other = made_trial("retrieval", {names.TOOK_FREE: base})
    comparison = EditorComparison(20, (one, other), other)
    column = next(each for each in COLUMNS if each.name == names.TOOK_FREE)
    found = comparison.difference(one, other, column)
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert found.low == 0  # never below: no fact is worse
    apart = one.numbers[names.TOOK_FREE], other.numbers[names.TOOK_FREE]
    assert apart[0].low is not None
    assert apart[1].high is not None
    assert apart[0].low < apart[1].high  # unpaired, nothing could be said


def test_the_verdict_names_who_is_dominated() -> None:
    good = made_trial("good", {names.TOOK_FREE: [1.0] * 20})
    poor = made_trial("retrieval", {names.TOOK_FREE: [0.0] * 20})
    assert EditorComparison(20, (good, poor), poor).dominating(poor) == [good]
    assert "retrieval by good" in EditorComparison(20, (good, poor), poor).verdict()[0]
    quick = replace(poor, seconds_per_fact=0.1)
    comparison = EditorComparison(20, (good, quick), quick)
    assert comparison.dominating(quick) == []
    assert comparison.dominating(quick, cost=False) == [good]
    assert any("retrieval is not dominated" in each for each in comparison.verdict())
    slower = replace(good, seconds_per_fact=1.4)  # less than a factor of 1.5
    assert EditorComparison(20, (slower, poor), poor).dominating(poor) == [slower]


def test_tallies_compute_what_they_say() -> None:
    answers = [("a", 0.95, True), ("a", 0.93, False), ("b", 0.15, False), ("c", 1.0, True)]
    #  bin 9: |0.95 + 0.93 + 1.0 - 2|, bin 1: 0.15
    assert Tally.calibration_of(answers).value == pytest.approx((0.88 + 0.15) / 4)
    points = [("a", 0.0, 0.1), ("b", 0.5, 0.4), ("c", 1.0, 0.4), ("c", 1.0, 0.6)]
    slope = np.polyfit([x for _, x, _ in points], [y for *_, y in points], 1)[0]
    assert Tally.slope_of(points).value == pytest.approx(slope)
    assert math.isnan(Tally.slope_of([("a", 0.5, 1.0), ("b", 0.5, 0.0)]).value)
    assert Tally.of("relative", [("a", (1, 2, 0, 0)), ("b", (0, 0, 4, 5))]).value == pytest.approx(0.5 / 0.8)
    one, other = Tally.mean_of([("a", 1.0)]), Tally.mean_of([("b", 1.0)])
    assert one.difference(other, "x") is None  # other facts


def test_coverage_counts_facts_that_took() -> None:
    facts = tuple(FACTS[:3])
    values = ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))  # own prompt, consequence
    records = []
    for fact, (own, consequence) in zip(facts, values, strict=True):
        records.append(Record(fact.id, Metric.EFFICACY_ACCURACY, fact.text, own, ""))
        records.append(Record(fact.id, Metric.PORTABILITY_ACCURACY, "?", consequence, ""))
    model = tiny_language_model("llama")
    editor = Updating(model, "hooks")
    edited = Edited(model, editor.view(), "hooks", editor, records, records)
    ceiling = Tally.mean_of([(facts[0].id, 1.0), (facts[1].id, 0.6)])
    found = Coverage((), ceiling).measure(edited, silent)
    assert isinstance(found[names.COVERAGE], Tally)
    assert found[names.COVERAGE].value == 0.5  # type: ignore[union-attr]
    assert found[names.RELATIVE_COVERAGE].value == pytest.approx(0.5 / 0.8)  # type: ignore[union-attr]


def test_ability_counts_every_answer_and_no_part_of_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model("llama")
    samples = [
        Sample(str(place), "?", "", {"acc": value, "acc_norm": 1.0}, {}) for place, value in enumerate((1, 0, 0))
    ]
    numbers = {name: TaskMetric(0.0, 0.1, 3) for name in ("acc", "acc_norm")}
    results = AbilityResults({"task": TaskResult("", numbers, tuple(samples))})
    monkeypatch.setattr(arguments, "measure_ability", lambda *_, **__: results)
    edited = Edited(model, model, "weights", None, [], [])
    (found,) = arguments.Ability(AbilitySettings(("task",))).measure(edited, silent).values()
    assert isinstance(found, Tally)
    assert found.value == pytest.approx(1 / 3)
    results = replace(results, absent={"ability:other": "it samples"})
    assert "samples" in arguments.Ability(AbilitySettings(("task",))).measure(edited, silent)[names.ABILITY]  # type: ignore[operator]
    assert "--tasks" in arguments.Ability(None).measure(edited, silent)[names.ABILITY]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("Lyon, not Paris.", "new"),
        ("Paris; later Lyon", "old"),
        ("Rome", ""),
        ("the city of Lyons", ""),
        ("LYON", "new"),
    ],
)
def test_answers_name_the_first_of_both(answer: str, named: str) -> None:
    assert named_in(answer, Fact("a", "Ada", "{} lives in", "Lyon", old="Paris")) == named


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--editors", "memitt"], "METHOD_UNKNOWN"),
        (["--sizes", "0"], "OPTION_INVALID"),
        (["--sizes", "ten"], "OPTION_INVALID"),
        (["--facts", "examples/facts.jsonl", "--data", "lab"], "OPTION_CONFLICT"),
    ],
)
def test_wrong_options_are_refused_before_loading(
    arguments: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *arguments]) == 2
    assert code in capsys.readouterr().err


def test_trials_made_by_other_code_are_not_used(
    compared: EditorComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrialData(EvaluationSet(list(FACTS[:5])), (), (), ())
    pool = FactSet(FACTS[:5])
    runner = compare.Runner(
        tiny_language_model("llama"), data, pool, None, None, False, 0, compare.Store(tmp_path / "trials"), silent
    )
    candidate = Candidate("retrieval", "prompt", retrieval)
    monkeypatch.setattr(compare.Runner, "_trial", lambda self, candidate: compared.trials[1])
    assert not runner.is_stored(candidate)
    runner.trial(candidate)
    assert runner.is_stored(candidate)
    monkeypatch.setattr(compare, "code_digest", lambda: "changed")
    assert not runner.is_stored(candidate)


@pytest.mark.slow
def test_comparison_on_lab_resumes(tmp_path: Path) -> None:
    asked = tmp_path / "untouched.jsonl"
    asked.write_text('{"prompt": "Marco Collins was born in", "answer": "Delhi"}\n', encoding="utf-8")
    options = ["compare", "--facts", "examples/facts.jsonl", "--editors", "in_context", "--sizes", "1"]
    options += ["--untouched", str(asked)]
    out = tmp_path / "out"
    assert run([*options, "--out", str(out), "--json", str(tmp_path / "a.json")]) == 0
    stored = sorted((out / "trials").iterdir())
    assert [path.name.split("-")[0] for path in stored] == ["retrieval", "unedited"]
    assert run([*options, "--out", str(out), "--json", str(tmp_path / "b.json")]) == 0
    first, second = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("a.json", "b.json"))
    assert first["comparisons"] == second["comparisons"]
    assert any("2 trials of an earlier run" in note for note in second["notes"])
    (row,) = [row for row in first["comparisons"][0]["rows"] if row["editor"] == "retrieval"]
    assert row["columns"][names.EXACT_REMOVAL]["mean"] == 1
    assert "<title>errata: Editors of lab" in (out / "compare.html").read_text(encoding="utf-8")
