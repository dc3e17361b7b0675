"""``errata locate`` from outside: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from rich.console import Console

from errata.cli.main import run
from errata.errors import MissingExtraError
from errata.facts.fact import Fact
from errata.facts.files import write_facts
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel
from errata.report.figures import check_drawing
from errata.report.layers import draw_heat_map, text_heat_map, tracing_table
from errata.tracing.causal_tracing import EffectEstimate, Location

from tests.support.tiny_models import tiny_model

TRACE = ["locate", "--tracing", "--no-scan"]
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Twelve of the lab's facts, traced from the command line."""
    folder = tmp_path_factory.mktemp("traced")
    arguments = [*TRACE, "--count", "12", "--samples", "2", "--out", str(folder / "out")]
    assert run([*arguments, "--json", str(folder / "result.json")]) == 0
    return folder / "out", json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A scan of the lab's layers with four of its facts, from the command line."""
    folder = tmp_path_factory.mktemp("scanned")
    arguments = ["locate", "--scan-count", "4", "--every", "2", "--out", str(folder / "out")]
    assert run([*arguments, "--json", str(folder / "result.json")]) == 0
    return folder / "out", json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_a_scan_proposes_the_labs_early_layers_and_writes_its_curve(scanned: tuple[Path, dict[str, Any]]) -> None:
    out, record = scanned
    assert sorted(path.name for path in out.iterdir()) == ["layers.json", "layers.md", "layers.png", "layers.svg"]
    assert (out / "layers.png").read_bytes().startswith(PNG)
    assert record["tracing"] is None
    scan = record["scan"]
    assert json.loads((out / "layers.json").read_text(encoding="utf-8"))["rows"] == scan["rows"]
    assert record["layers"] == scan["layers"]
    assert max(record["layers"]) <= 2, "facts cannot be written into later layers of the lab"
    score = {row["layer"]: row["score"] for row in scan["rows"]}
    assert {0, 2, 4, 6} <= set(score)
    assert max(score[0], score[2]) > 4 * max(score[4], score[6], 0)
    rows = (out / "layers.md").read_text(encoding="utf-8").splitlines()[2:]
    assert [f"**{row['layer']}**" if row["layer"] in scan["layers"] else str(row["layer"]) for row in scan["rows"]] == [
        row.split("|")[1].strip() for row in rows
    ]


def test_a_scan_that_finds_nothing_ends_with_1_when_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr("errata.tracing.layer_scan.LayerScore.score", property(lambda self: 0.0))
    arguments = ["locate", "--model", str(tmp_path / "tiny"), "--scan-count", "2", "--every", "4"]
    assert run([*arguments, "--json", str(tmp_path / "result.json"), "--out", str(tmp_path / "out")]) == 1
    assert "no layers can be chosen" in flat(capsys)[1]
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert record["layers"] is None
    assert len(record["scan"]["rows"]) >= 2
    assert (tmp_path / "out" / "layers.svg").is_file()


def facts_file(path: Path, facts: list[Fact]) -> Path:
    write_facts(facts, path)
    return path


def flat(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    out, err = capsys.readouterr()
    return " ".join(out.split()), " ".join(err.split())


def test_out_holds_the_result_and_the_pictures(traced: tuple[Path, dict[str, Any]]) -> None:
    out, record = traced
    assert sorted(path.name for path in out.iterdir()) == ["heatmap.png", "heatmap.svg", "tracing.json"]
    assert record["layers"] is None, "tracing proposes nothing"
    record = record["tracing"]
    assert json.loads((out / "tracing.json").read_text(encoding="utf-8")) == record
    assert (out / "heatmap.png").read_bytes().startswith(PNG)
    assert "<svg" in (out / "heatmap.svg").read_text(encoding="utf-8")
    assert record["proposal"]["layers"] == [0, 1, 2]
    assert {"subject_first", "subject_last", "last"} <= {row["position"] for row in record["rows"]}
    about = record["about"]
    assert about["settings"]["window"] == 2
    assert about["traced"] == 12 <= about["known"] <= about["asked"]


def test_the_same_again_without_the_other_positions(
    traced: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "again.json"
    assert run([*TRACE, "--count", "12", "--samples", "2", "--no-positions", "--json", str(path)]) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["tracing"]["rows"]
    assert rows == [row for row in traced[1]["tracing"]["rows"] if row["position"] == "subject_last"]
    out, _ = flat(capsys)
    assert "Tracing indicates layers 0 to 2" in out
    assert "first subsequent token" not in out


def test_few_known_facts_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = facts_file(tmp_path / "facts.csv", lab_facts(lab_world(), 3, seed=0))
    assert run([*TRACE, "--facts", str(path), "--samples", "1", "--no-positions"]) == 0
    out, err = flat(capsys)
    assert "traced only 3 facts" in err
    assert "Traced 3 facts (3 of 3 are known)" in out


def test_facts_without_truth_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "facts.jsonl"
    lines = [{"subject": name, "prompt": "{} was born in", "target": "Rome"} for name in ("Ann Lee", "Bob Ray")]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    assert run([*TRACE, "--facts", str(path)]) == 2
    _, err = flat(capsys)
    assert "2 faults" in err
    assert err.count("missing field 'old'") == 2


def test_facts_that_nobody_knows_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = facts_file(tmp_path / "facts.jsonl", [Fact("x", "Zyx Qwv", "{} was born in", "Rome", old="Oslo")])
    assert run([*TRACE, "--facts", str(path)]) == 1
    assert "[FACTS_UNKNOWN]" in flat(capsys)[1]


def test_other_models_need_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    capsys.readouterr()
    assert run([*TRACE, "--model", str(tmp_path / "tiny")]) == 2
    _, err = flat(capsys)
    assert "error[OPTION_MISSING]" in err
    assert "Give --facts FILE with the 'old' answer of every fact" in err


WRONG = [
    (["--window", "9"], "window of 9 blocks does not fit a model of 8"),
    (["--window", "0"], "--window"),
    (["--count", "0"], "--count"),
    (["--noise", "0"], "--noise"),
    (["--dtype", "int3"], "int3"),
    (["--facts", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--corpus", "nowhere.txt"], "nowhere.txt"),
    (["--no-scan"], "[NOTHING_TO_DO]"),
]


def test_wrong_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in WRONG:
        assert run(["locate", *arguments]) == 2
        assert words in flat(capsys)[1]


def test_out_is_never_overwritten(traced: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["locate", "--out", str(traced[0])]) == 2
    assert "exists already" in flat(capsys)[1]


def test_without_matplotlib_out_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_work(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    monkeypatch.setattr(LanguageModel, "load", no_work)
    assert run(["locate", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'errata[plots]'" in flat(capsys)[1]
    assert not (tmp_path / "out").exists()
    with pytest.raises(MissingExtraError):
        check_drawing()


def test_without_a_layer_to_point_to_tracing_still_writes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Location, "curve", lambda self, part: [0.0] * self.layers)
    path = tmp_path / "result.json"
    arguments = [*TRACE, "--count", "2", "--samples", "1", "--no-positions", "--json", str(path)]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "no layers can be proposed" in flat(capsys)[1]
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["tracing"]["proposal"]["layers"] is None
    assert (tmp_path / "out" / "heatmap.png").is_file()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["locate", "--help"]) == 0
    assert "Example: errata locate --model lab" in flat(capsys)[0]


def cells(layers: int) -> list[EffectEstimate]:
    """A rising curve at the subject's last token and a negative one at the last; nothing elsewhere."""
    return [
        EffectEstimate(
            part=part,
            position=position,
            layer=layer,
            window=(max(0, layer - 1), layer) if part != "block" else (layer, layer),
            n=4,
            mean=sign * (layer + 1) / layers,
            low=None,
            high=None,
        )
        for part in ("block", "mlp", "attention")
        for position, sign in (("subject_last", 1), ("last", -1))
        for layer in range(layers)
    ]


@pytest.mark.parametrize(("layers", "bars"), [(8, "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"), (64, "·")])
def test_the_text_heat_map_has_a_bar_a_layer(layers: int, bars: str) -> None:
    lines = text_heat_map(cells(layers), width=100).splitlines()
    assert len(lines) == 3 * 7
    assert lines[0] == f"hidden state (layers 0 to {layers - 1}, █ = 1.000)"
    last = lines[3].removeprefix("    last subject token  ")
    assert last.startswith(bars)
    assert len(last) == (16 if layers == 8 else 64)
    assert set(lines[6].split()[-1]) == {"·"}  # negative
    assert lines[1].endswith("–")  # no fact has such a token


def test_the_table_marks_the_critical_layers() -> None:
    table = tracing_table(cells(3), [1, 2])
    assert [str(cell) for cell in table.columns[0].cells] == ["0", "● 1", "● 2"]
    assert [str(cell) for cell in table.columns[1].cells] == ["0.333", "0.667", "1.000"]
    widest = [cell | {"mean": -0.111, "low": -0.222, "high": -0.333} for cell in cells(3)]
    lines = StringIO()
    Console(file=lines, width=80).print(tracing_table(widest, [1, 2]))
    assert lines.getvalue().count("-0.111 [-0.222,-0.333]") == 9  # no cell is broken


def test_a_dollar_in_a_title_is_not_mathematics(tmp_path: Path) -> None:
    path = tmp_path / "map.svg"
    draw_heat_map(cells(8), [path], title="./m$_$")  # as mathematics, this cannot be parsed
    assert path.is_file()


def test_pictures_are_the_same_every_time(tmp_path: Path) -> None:
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in paths:
        draw_heat_map(cells(48), [path], title="made up", critical=[3, 4])
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("critical", "words"), [([3, 4], "layers 3 to 4"), ([5], "layer 5"), ([], None)], ids=["two", "one", "none"]
)
def test_the_frame_is_explained_in_the_picture(
    critical: list[int], words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "map.svg"
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text as text, not as outlines
    draw_heat_map(cells(8), [path], critical=critical)
    picture = path.read_text(encoding="utf-8")
    assert "hidden state" in picture
    lines = [line for line in picture.splitlines() if "proposed critical" in line]
    assert len(lines) == (words is not None)
    assert words is None or f"proposed critical {words}, at the last subject token" in lines[0]
