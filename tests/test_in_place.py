"""Files that are modified in place must be regular, in case a directory from elsewhere has links in their place."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.benchmark.recipe_search import Try, append_to_journal, read_journal
from errata.errors import InputError
from errata.runs.ledger import new_ledger, read_ledger
from errata.utils.locks import check_no_links, exclusive, in_turn, locked, open_in_place


def through_lock(path: Path) -> None:
    with locked(path) as file:
        file.write("x")


def through_exclusive(path: Path) -> None:
    with exclusive(path, "this"):
        pass


def through_turn(path: Path) -> None:
    with in_turn(path, "this"):
        pass


def through_ledger(path: Path) -> None:
    if path.exists():
        read_ledger(path).add("batch", index=0)
    else:
        path.touch()


def through_journal(path: Path) -> None:
    append_to_journal(path, "key", Try("solver", {}, "ridge 1", 1.0, 0.1))


def through_log(path: Path) -> None:
    with open_in_place(path, "a") as file:
        file.write("x")


WRITERS: list[Callable[[Path], None]] = [
    through_lock,
    through_exclusive,
    through_turn,
    through_ledger,
    through_journal,
    through_log,
]


def test_links_and_special_files_are_not_written(tmp_path: Path) -> None:
    for number, (writer, kind) in enumerate(itertools.product(WRITERS, ("link", "hard link", "dangling", "pipe"))):
        if writer is through_ledger and kind in ("dangling", "pipe"):
            continue  # it is read first
        folder = tmp_path / str(number)
        folder.mkdir()
        victim, path = folder / "victim", folder / "name"
        if kind != "dangling":
            new_ledger(victim)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "hard link":
            path.hardlink_to(victim)
        else:
            path.symlink_to(victim)
        with pytest.raises(InputError) as error:
            writer(path)
        assert error.value.code == "FILE_NOT_REGULAR"
        assert victim.exists() == (kind != "dangling")
        assert kind == "dangling" or victim.read_bytes() == b""


def test_a_regular_file_is_written(tmp_path: Path) -> None:
    for writer in WRITERS:
        path = tmp_path / writer.__name__
        writer(path)
        writer(path)
        assert path.is_file()


def test_a_journal_loses_a_line_that_was_cut_off_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    tried = Try("solver", {"ridge": 1.0}, "ridge 1", 1.0, 0.1)
    append_to_journal(path, "one", tried)
    path.write_bytes(path.read_bytes() + b'{"key": "cut')
    append_to_journal(path, "two", tried)
    assert read_journal(path) == {"one": tried, "two": tried}


@pytest.mark.parametrize("kind", ["file", "directory", "dangling", "pipe"])
def test_a_directory_with_links_is_refused_whatever_they_lead_to(tmp_path: Path, kind: str) -> None:
    directory, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (directory / "deep").mkdir(parents=True)
    (directory / "deep" / "file").touch()
    check_no_links(directory)
    path = directory / "deep" / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere)
    if kind == "file":
        elsewhere.touch()
    elif kind == "directory":
        elsewhere.mkdir()
    with pytest.raises(InputError, match=r"deep/odd"):
        check_no_links(directory)
