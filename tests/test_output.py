"""Directories and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from errata.errors import InputError, OutputError
from errata.output import check_file, check_new, new_directory, new_file, write_text


def test_a_directory_appears_when_all_of_it_is_there(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_directory(target) as partial:
        assert partial != target
        assert partial.parent == target.parent  # one file system, so that the rename is one step
        (partial / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [entry.name for entry in target.parent.iterdir()] == ["b"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_no_trace(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out"
    with pytest.raises(error), new_directory(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_may_be_filled_and_is_left_empty_by_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(ValueError, match="no"), new_directory(target) as partial:
        (partial / "file").write_text("half")
        raise ValueError("no")
    assert [list(entry.iterdir()) for entry in tmp_path.iterdir()] == [[]]
    with new_directory(target) as partial:
        (partial / "file").write_text("all")
    assert (target / "file").read_text() == "all"


@pytest.mark.parametrize("kind", ["file", "full", "link", "dangling"])
def test_nothing_is_ever_overwritten(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind == "full":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        destination = tmp_path / "elsewhere"
        if kind == "link":
            destination.mkdir()
            (destination / "mine").write_text("mine")
        target.symlink_to(destination)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match="exists already"), new_directory(target):
        pytest.fail("the block must not run")
    with pytest.raises(InputError, match="exists already"):
        check_new(target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"), new_directory(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def test_text_replaces_an_older_file_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "results.json"
    write_text(target, "first – λ\n")
    assert target.read_text(encoding="utf-8") == "first – λ\n"
    write_text(target, "second")
    assert target.read_text() == "second"
    assert target.stat().st_mode & 0o777 == 0o644

    def failing(source: object, destination: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        write_text(target, "third")
    assert target.read_text() == "second"
    assert [entry.name for entry in target.parent.iterdir()] == ["results.json"]


def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written in"):
        check_file(tmp_path / "file" / "deep" / "out.json")
    with pytest.raises(InputError, match="is a directory"):
        check_file(tmp_path)
    check_file(tmp_path / "file")  # it may be replaced
    check_file(tmp_path / "new" / "out.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "somewhere/else"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
    ],
)
def test_a_full_disk_is_told_of_the_output_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    told = r"{} cannot be written: No space left on device\. Make room there"
    with pytest.raises(OutputError, match=told.format(tmp_path / "out")), new_directory(tmp_path / "out"):
        raise error
    with pytest.raises(OutputError, match=told.format(tmp_path / "out.json")), new_file(tmp_path / "out.json"):
        raise error
    # What a file of a directory suffers from is told of the directory: its own name vanishes with it.
    with pytest.raises(OutputError, match=f"^{told.format(tmp_path / 'dir')}"):  # noqa: SIM117
        with new_directory(tmp_path / "dir") as part, new_file(part / "file"):
            raise error
    assert list(tmp_path.iterdir()) == []
    assert OutputError("").exit_status == 1


@pytest.mark.parametrize("name", ["out.txt", "out.JSON", "out.safetensors", "-"])
def test_a_directory_has_no_name_of_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        check_new(tmp_path / name)
    check_new(tmp_path / "qwen2.5")


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file that can be replaced"):
        check_file(Path(os.devnull))
    with pytest.raises(InputError, match="is no name of an output"):
        check_file(Path("-"))
