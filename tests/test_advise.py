"""``errata advise``: trials leave the model as it was, and the recommendation follows the intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errata.benchmark.sequence import EvaluationSet
from errata.benchmark.trials import LOST, Candidate, Trial, measure_baseline, run_trial, with_wordings
from errata.cli.main import run
from errata.editors.contract import OnBatch
from errata.errors import EditError
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact
from errata.report.advice import (
    PERPLEXITY,
    advice_page,
    choice,
    dominates,
    not_separate,
    recommendation,
    recommended,
)
from errata.results.metrics import Metric
from errata.results.records import Summary

from tests.support.editing import FACTS, parameter_bits, tiny_language_model
from tests.support.editors import MemoryEdit, MemoryEditor


def trial(method: str, numbers: Mapping[str, tuple[float, float, float]], **fields: Any) -> Trial:
    found = {name: Summary(name, "after", mean, low, high, 10, 10) for name, (mean, low, high) in numbers.items()}
    whole = Trial(method, "weights", 10, found, 1.0, (0.02, 0.02), (0.02, 0.02), 1000, "any")
    return replace(whole, **fields)


GOOD = {Metric.EFFICACY_ACCURACY: (0.95, 0.9, 1.0), LOST: (0.05, 0.0, 0.1)}
WORSE = {Metric.EFFICACY_ACCURACY: (0.7, 0.6, 0.8), LOST: (0.05, 0.0, 0.1)}
GENTLE = {Metric.EFFICACY_ACCURACY: (0.7, 0.6, 0.8), LOST: (0.0, 0.0, 0.0)}
LOSSY = {Metric.EFFICACY_ACCURACY: (1.0, 0.95, 1.0), LOST: (0.4, 0.3, 0.5)}
FAILED = trial("broken", {}, failure="out of luck")


def test_domination_needs_separate_intervals() -> None:
    assert dominates(trial("a", GOOD), trial("b", WORSE))
    assert not dominates(trial("b", WORSE), trial("a", GOOD))
    assert not dominates(trial("a", GOOD), trial("a", GOOD))
    assert not dominates(trial("c", LOSSY), trial("a", GOOD))  # better in no separate way, worse in one


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        ([trial("a", GOOD), trial("b", WORSE)], "a"),
        ([trial("b", WORSE), trial("a", GOOD), FAILED], "a"),
        ([trial("a", GOOD), trial("c", LOSSY)], "a"),
        ([FAILED], None),
        ([trial("weak", {Metric.EFFICACY_ACCURACY: (0.2, 0.1, 0.3)})], None),
        ([trial("a", GOOD | {PERPLEXITY: (3.0, 2.0, 4.0)}), trial("b", WORSE)], "b"),  # a broke the model
        ([], None),
    ],
)
def test_the_best_of_those_that_no_other_dominates(trials: Sequence[Trial], best: str | None) -> None:
    found = recommended(trials)
    assert (found and found.method) == best
    text = recommendation(trials)
    assert ("Take" in text) == (best is not None)
    assert best is None or f"Take {best}" in text
    assert ("Nothing was compared" in text) == (len(trials) < 2)


def test_the_recommendation_names_equals_and_larger_numbers() -> None:
    close = GOOD | {Metric.EFFICACY_ACCURACY: (0.9, 0.85, 0.95)}
    small = [trial("a", GOOD), trial("close", close), trial("b", WORSE)]
    assert [each.method for each in not_separate(small[0], small)] == ["close"]
    large = [trial("a", WORSE, facts=100), trial("close", GOOD, facts=100)]
    text = recommendation(small, large)
    assert "Take close" in text
    assert "100 facts" in text
    assert "95 % [90, 100]" in text
    # What only the larger number of facts shows is said where the smaller one is decided.
    large = [trial("a", WORSE, facts=100), trial("b", GOOD, facts=100)]
    text = recommendation([trial("a", GOOD), trial("b", WORSE)], large)
    assert "Take a" in text
    assert "70 % [60, 80]" in text
    assert "b is the better choice there" in text


def test_the_best_mean_does_not_decide_between_equals() -> None:
    close = GOOD | {Metric.EFFICACY_ACCURACY: (0.9, 0.85, 0.95)}
    small = [
        trial("ft_bf", GOOD),
        trial("retrieval", close),
        trial("memit+blue", close),
        trial("alphaedit+blue", close),
    ]
    assert recommended(small) is small[0]
    assert choice(small)[0] is small[2]  # locate-then-edit, unless more facts show a difference
    far = [trial("retrieval", GOOD, facts=60), trial("memit+blue", WORSE, facts=60)]
    assert choice(small, far)[0] is small[1]
    same = [trial("retrieval", GOOD, facts=60), trial("memit+blue", close, facts=60)]
    assert choice(small, same)[0] is small[2]
    assert choice(small, far[:1])[0] is small[2]  # a single one is no comparison
    assert choice([small[0], trial("memit+blue", WORSE)])[0] is small[0]  # a separate difference decides
    assert choice([small[0], small[1]])[0] is small[0]


def test_a_single_editor_is_not_recommended() -> None:
    for untried, remedy in (((), "--editors"), (("b", "c"), "--minutes")):
        text = recommendation([trial("a", GOOD)], (), untried)
        assert "Nothing was compared" in text
        assert remedy in text
        assert "95 % [90, 100]" in text
        assert "Take" not in text
        assert "other editor" not in text.lower()
    text = recommendation([trial("a", GOOD), trial("b", WORSE)], (), ("c",))
    assert "Take a" in text
    assert "c was not tried" in text


class Failing(MemoryEditor):
    def apply(self, facts: Sequence[Fact], *, on_batch: OnBatch | None = None) -> MemoryEdit:
        raise EditError("no such luck")


def test_a_trial_measures_and_leaves_the_model_as_it_was() -> None:
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    given = [replace(fact, old="the piano") for fact in FACTS[:3]]
    facts, added = with_wordings(given, ["It rained.", "He slept."])
    assert added == 3
    prepared = EvaluationSet(facts, prose=["The river runs through the old town to the sea."])
    baseline = measure_baseline(model, prepared)
    found = run_trial(
        model, Candidate("hooks", "hooks", lambda loaded, _: MemoryEditor(loaded, "hooks")), prepared, baseline
    )
    assert not found.failure
    editor = MemoryEditor(tiny_language_model("llama"), "hooks")
    editor.apply(facts)
    expected = [r.value for r in evaluate_facts(editor.view(), facts) if r.metric == Metric.EFFICACY_SUCCESS]
    assert found.numbers[Metric.EFFICACY_SUCCESS].mean == pytest.approx(sum(expected) / len(expected))
    assert found.numbers[PERPLEXITY].mean == pytest.approx(1)  # prose triggers nothing
    assert found.seconds_per_fact > 0
    assert found.stored_bytes > 0
    json.dumps(found.to_record())
    failed = run_trial(model, Candidate("x", "hooks", lambda loaded, _: Failing(loaded, "hooks")), prepared, baseline)
    assert failed.failure == "no such luck"
    assert all((before[name] == bits).all() for name, bits in parameter_bits(model).items())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--editors", "memitt"], "METHOD_UNKNOWN"), (["--editors", " , "], "OPTION_INVALID")],
)
def test_wrong_editors_are_refused_before_loading(
    arguments: list[str], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["advise", "--facts", "examples/facts.jsonl", *arguments]) == 2
    assert code in capsys.readouterr().err


@pytest.mark.slow
def test_advice_on_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    lines = Path("examples/facts.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "advice.json"
    options = ["--facts", str(tmp_path / "facts.jsonl"), "--editors", "memit+blue", "--json", str(out)]
    assert run(["advise", *options, "--minutes", "0"]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [entry["facts"] for entry in record["rounds"]] == [2]
    assert record["skipped"] == ["memit+blue with 20 facts"]  # no time left after the first
    (found,) = record["rounds"][0]["trials"]
    assert found["numbers"]["efficacy_accuracy"]["mean"] == 1
    assert "Nothing was compared" in record["recommendation"]
    shown = capsys.readouterr()
    assert "memit+blue" in shown.out
    assert "--minutes 0 will not do" in " ".join(shown.err.split())


def test_a_quality_in_which_all_fail_decides_nothing() -> None:
    none = {Metric.PORTABILITY_ACCURACY: (0.0, 0.0, 0.0)}
    assert recommended([trial("b", WORSE | none), trial("a", GOOD | none)]).method == "a"  # type: ignore[union-attr]


def test_the_page_shows_texts_and_no_markup_of_theirs() -> None:
    evil = "<script>alert(1)</script>"
    page = advice_page(
        model=evil,
        rounds=[("1 fact", [trial(evil, GOOD), trial("b", WORSE)]), ("10 facts", [trial("c", {}, failure=evil)])],
        advice=f"Take {evil}.",
        absent=[("consequences", evil)],
        notes=[evil],
        command=f"errata {evil}",
        versions={"errata": evil},
    )
    assert evil not in page
    assert page.count("&lt;script&gt;") >= 8
    assert page.count("<svg") == 2  # light and dark
    assert "95 [90,100]" in page


@pytest.mark.parametrize("name", ["page.txt", "mine.html"])
def test_the_page_replaces_only_pages(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.html").write_text("mine", encoding="utf-8")
    assert run(["advise", "--facts", "examples/facts.jsonl", "--out", str(tmp_path / name)]) == 2
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "mine"
