"""Studies on disk: stopped anywhere they come out the same, and nothing else may be put in their place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from errata.analysis.findings import Findings, mean_row, verdict_on, with_n
from errata.analysis.studies import STUDIES, csv_of, read_result, run_study, study_named
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.errors import FaultsError, InputError

from tests.support.study_context import done, tiny_context


class Stop(KeyboardInterrupt):
    """As the user's Ctrl-C."""


def counting(worked: list[str], stop_at: str = "") -> Study:
    """A study of three tasks; the result of each is the length of its name."""

    def work(name: str) -> TaskRecord:
        worked.append(name)
        if name == stop_at:
            raise Stop
        return {"length": len(name)}

    def tasks(context: StudyContext) -> list[StudyTask]:
        return [StudyTask(name, lambda name=name: work(name)) for name in ("a", "bb", "ccc")]  # type: ignore[misc]

    def findings(settings: AnalysisSettings, results: Mapping[str, TaskRecord]) -> Findings:
        return Findings([mean_row("length", "1", {"of": "all"}, [result["length"] for result in results.values()])])

    return Study("counting", "It counts.", "Letters.", "A test.", ("count",), tasks, findings)


def test_an_interrupted_study_resumes_after_its_last_task(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    worked: list[str] = []
    with pytest.raises(Stop):
        done(counting(worked, "bb"), context, tmp_path / "out")
    with pytest.raises(InputError) as missing:
        read_result(tmp_path / "out")
    assert missing.value.code == "STUDY_FILE_DAMAGED"
    result = done(counting(worked), context, tmp_path / "out")
    assert worked == ["a", "bb", "bb", "ccc"]
    (row,) = result.findings.rows
    assert (row.mean, row.n) == (2.0, 3)
    read = read_result(tmp_path / "out")
    assert json.dumps(read.findings.to_record()) == json.dumps(result.findings.to_record())
    assert read.about == result.about
    again = done(counting(worked), context, tmp_path / "out")
    assert len(worked) == 4
    assert again.findings == result.findings


def test_another_study_in_the_same_place_is_refused_by_what_differs(tmp_path: Path) -> None:
    done(counting([]), tiny_context(tmp_path), tmp_path / "out")
    other = tiny_context(tmp_path, count=3, recipe={"layers": (1, 2)})
    with pytest.raises(FaultsError) as caught:
        done(counting([]), other, tmp_path / "out")
    assert {fault.where for fault in caught.value.faults} == {"settings.count", "recipe.layers"}
    assert caught.value.code == "STUDY_MISMATCH"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError):
        done(counting([]), other, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_damaged_results_are_named(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    done(counting([]), context, tmp_path / "out")
    (tmp_path / "out" / "pieces" / "bb.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"bb\.json"):
        run_study(counting([]), context, tmp_path / "out", command="")


@pytest.mark.parametrize(
    ("name", "content"), [("pieces/bb.json", "{}"), ("study.json", '{"format": "errata-analysis-1"}')]
)
def test_files_without_their_fields_are_damaged(tmp_path: Path, name: str, content: str) -> None:
    context = tiny_context(tmp_path)
    done(counting([]), context, tmp_path / "out")
    (tmp_path / "out" / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        run_study(counting([]), context, tmp_path / "out", command="")
    assert caught.value.code == "STUDY_FILE_DAMAGED"


def test_seeds_are_distinct_numbers_within_limits() -> None:
    """A seed that counts twice would narrow intervals."""
    assert AnalysisSettings(seeds=3).seeds == (0, 1, 2)  # type: ignore[arg-type]
    for seeds in ((0, 0), (-1,), (2**63,), 10**12, 0, -1, ()):
        with pytest.raises(ValidationError):
            AnalysisSettings.model_validate({"seeds": seeds})


def test_rows_as_a_table(tmp_path: Path) -> None:
    rows = [mean_row("norm", "1", {"layer": 3}, [1.0, 3.0]), mean_row("cosine", "1", {"kind": 'a, "b"'}, [0.5])]
    table = list(csv.DictReader(io.StringIO(csv_of(Findings(rows)))))
    assert table[0]["layer"] == "3"
    assert float(table[0]["mean"]) == 2.0
    assert (table[1]["kind"], table[1]["low"], table[1]["n"]) == ('a, "b"', "", "1")


def test_a_claim_holds_only_beyond_its_intervals_doubt() -> None:
    values = [1.0, 1.1, 0.9, 1.0, 1.2]
    above, below = mean_row("d", "1", {}, values), mean_row("d", "1", {}, [-value for value in values])
    assert [verdict_on(row, claimed="positive") for row in (above, below)] == ["holds", "does not hold"]
    assert verdict_on(below, claimed="negative") == "holds"
    assert verdict_on(mean_row("d", "1", {}, [-1.0, 1.0] * 3), claimed="positive") == "undecided"
    for few in ([1.0], values[:4]):  # an interval of so few is hardly more than their ends
        assert verdict_on(mean_row("d", "1", {}, few), claimed="positive") == "undecided"
    nothing = mean_row("d", "1", {}, [1e-17, -1e-17, 0.0, 0.0, 0.0, 0.0])
    assert verdict_on(nothing, claimed="positive") == "does not hold"
    assert with_n(nothing) == "0 [0, 0], n = 6"
    with pytest.raises(ValueError, match="no values of 'd'"):
        mean_row("d", "1", {}, [])


def test_every_study_is_described() -> None:
    with pytest.raises(InputError) as unknown:
        study_named("contributions")
    assert unknown.value.code == "STUDY_UNKNOWN"
    for name, study in STUDIES.items():
        assert name == study.name
        assert all((study.title, study.shows, study.units, study.source))
        assert set(study.uses) <= set(AnalysisSettings.model_fields)
        json.dumps(dict(study.defaults))
