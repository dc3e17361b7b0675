"""Studies on disk: stopped anywhere they come out the same, and nothing else may be put in their place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from errata.analysis.findings import Findings, compared, mean_row, told
from errata.analysis.running import csv_of, read_result, run_study
from errata.analysis.studies import STUDIES, study_named
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.errors import FaultsError, InputError

from tests.support.workbench import done, tiny_workbench


class Stop(KeyboardInterrupt):
    """As the user's Ctrl-C."""


def counting(worked: list[str], stop_at: str = "") -> Study:
    """A study of three pieces that keeps their names' lengths."""

    def work(name: str) -> Kept:
        worked.append(name)
        if name == stop_at:
            raise Stop
        return {"length": len(name)}

    def pieces(bench: Workbench) -> list[Piece]:
        return [Piece(name, lambda name=name: work(name)) for name in ("a", "bb", "ccc")]  # type: ignore[misc]

    def findings(settings: AnalysisSettings, kept: Mapping[str, Kept]) -> Findings:
        return Findings([mean_row("length", "1", {"of": "all"}, [piece["length"] for piece in kept.values()])])

    return Study("counting", "Counting", "It counts.", "Letters.", "A test.", ("count",), pieces, findings)


def test_a_study_that_was_stopped_goes_on_behind_its_last_piece(tmp_path: Path) -> None:
    bench = tiny_workbench(tmp_path)
    worked: list[str] = []
    with pytest.raises(Stop):
        done(counting(worked, "bb"), bench, tmp_path / "out")
    with pytest.raises(InputError, match=r"result\.json cannot be used: it cannot be found"):
        read_result(tmp_path / "out")
    result = done(counting(worked), bench, tmp_path / "out")
    assert worked == ["a", "bb", "bb", "ccc"]
    (row,) = result.findings.rows
    assert (row.mean, row.n) == (2.0, 3)
    read = read_result(tmp_path / "out")
    assert json.dumps(read.findings.to_record()) == json.dumps(result.findings.to_record())
    assert read.about == result.about
    again = done(counting(worked), bench, tmp_path / "out")
    assert len(worked) == 4
    assert again.findings == result.findings


def test_another_study_in_the_same_place_is_refused_by_what_differs(tmp_path: Path) -> None:
    done(counting([]), tiny_workbench(tmp_path), tmp_path / "out")
    other = tiny_workbench(tmp_path, count=3, recipe={"layers": (1, 2)})
    with pytest.raises(FaultsError) as caught:
        done(counting([]), other, tmp_path / "out")
    assert {fault.where for fault in caught.value.faults} == {"settings.count", "recipe.layers"}
    assert any("begun with 6, given now: 3" in fault.what for fault in caught.value.faults)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError):
        done(counting([]), other, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_damaged_pieces_are_named(tmp_path: Path) -> None:
    bench = tiny_workbench(tmp_path)
    done(counting([]), bench, tmp_path / "out")
    (tmp_path / "out" / "pieces" / "bb.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"bb\.json cannot be used"):
        run_study(counting([]), bench, tmp_path / "out", command="")


def test_rows_as_a_table(tmp_path: Path) -> None:
    rows = [mean_row("norm", "1", {"layer": 3}, [1.0, 3.0]), mean_row("cosine", "1", {"kind": 'a, "b"'}, [0.5])]
    table = list(csv.DictReader(io.StringIO(csv_of(Findings(rows)))))
    assert table[0]["layer"] == "3"
    assert float(table[0]["mean"]) == 2.0
    assert (table[1]["kind"], table[1]["low"], table[1]["n"]) == ('a, "b"', "", "1")


def test_a_claim_holds_only_beyond_its_intervals_doubt() -> None:
    values = [1.0, 1.1, 0.9, 1.0, 1.2]
    above, below = mean_row("d", "1", {}, values), mean_row("d", "1", {}, [-value for value in values])
    assert [compared(row, claimed="positive") for row in (above, below)] == ["holds", "does not hold"]
    assert compared(below, claimed="negative") == "holds"
    assert compared(mean_row("d", "1", {}, [-1.0, 1.0] * 3), claimed="positive") == "undecided"
    for few in ([1.0], values[:4]):  # an interval of so few is hardly more than their ends
        assert compared(mean_row("d", "1", {}, few), claimed="positive") == "undecided"
    nothing = mean_row("d", "1", {}, [1e-17, -1e-17, 0.0, 0.0, 0.0, 0.0])
    assert compared(nothing, claimed="positive") == "does not hold"
    assert told(nothing) == "0 [0, 0], n = 6"
    with pytest.raises(ValueError, match="no values of 'd'"):
        mean_row("d", "1", {}, [])


def test_every_study_is_described() -> None:
    with pytest.raises(InputError, match="no study 'contributions'"):
        study_named("contributions")
    for name, study in STUDIES.items():
        assert name == study.name
        assert all((study.title, study.shows, study.units, study.source))
        assert set(study.uses) <= set(AnalysisSettings.model_fields)
        json.dumps(dict(study.defaults))
