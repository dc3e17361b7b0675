"""benchmarks/real_tuning.py: a file of tries whose process was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.real_tuning import drop_incomplete_line, lines_of


def test_an_incomplete_last_line_is_not_read_and_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tries.jsonl"
    assert lines_of(path) == []
    drop_incomplete_line(path)
    path.write_text('{"key": "a"}\n{"key": "b"}\n{"key": "c', encoding="utf-8")
    assert [line["key"] for line in lines_of(path)] == ["a", "b"]
    drop_incomplete_line(path)
    assert path.read_text(encoding="utf-8") == '{"key": "a"}\n{"key": "b"}\n'
    assert str(path) in capsys.readouterr().err
    drop_incomplete_line(path)
    assert not capsys.readouterr().err
