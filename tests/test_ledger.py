"""A ledger: lines that are only ever added; what a crash does to its end is left out, anything else is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import errata.runs.ledger
from errata.errors import InputError
from errata.runs.ledger import START, Entry, Ledger, new_ledger, read_ledger

from tests.support.errors import raises_code
from tests.support.fuzzing import examples

# The folder is shared by a test's examples: each writes its file anew.
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(300))


def written(path: Path, lines: int = 5) -> Ledger:
    """A ledger of some batches, the last of which says things that JSON and UTF-8 have opinions about."""
    ledger = new_ledger(path)
    for index in range(lines - 1):
        ledger = ledger.add("batch", index=index, facts=[f"fact-{index}"], seconds=0.1 * index)
    return ledger.add("after", said='“é\u2028\n\\"', number=1e-300, none=None)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_added_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    kept = written(path)
    read = read_ledger(path)
    assert read == kept
    assert [entry.kind for entry in read.entries] == ["batch"] * 4 + ["after"]
    assert [entry.fields["index"] for entry in read.of("batch")] == [0, 1, 2, 3]
    assert read.entries[-1].fields == {"said": '“é\u2028\n\\"', "number": 1e-300, "none": None}
    assert not read.truncated
    assert read.valid_bytes == path.stat().st_size
    assert path.read_bytes().count(b"\n") == 5


def test_each_line_is_on_the_disk_before_add_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file held when it was synced, which must be the line that is being added."""
    ledger = new_ledger(tmp_path / "ledger.jsonl")
    synced: list[bytes] = []
    original = os.fsync

    def fsync(handle: int) -> None:
        original(handle)
        synced.append(ledger.path.read_bytes())

    monkeypatch.setattr(errata.runs.ledger.os, "fsync", fsync)
    for index in range(3):
        ledger = ledger.add("batch", index=index)
        assert synced[-1] == ledger.path.read_bytes()
        assert len(synced[-1]) == ledger.valid_bytes
    assert len(synced) == 3


def test_the_checksum_is_that_of_the_line_before_and_of_the_line(tmp_path: Path) -> None:
    """Computed here once more, so that a file can be checked without errata."""
    path = tmp_path / "ledger.jsonl"
    written(path)
    last = START
    for line in lines_of(path):
        body = json.loads(line)
        checksum = body.pop("checksum")
        canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        assert checksum == hashlib.sha256(f"{last}\n{canonical}".encode()).hexdigest()
        last = checksum


def test_a_ledger_is_never_begun_twice(tmp_path: Path) -> None:
    new_ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(FileExistsError):
        new_ledger(tmp_path / "ledger.jsonl")


def test_an_absent_ledger_is_named(tmp_path: Path) -> None:
    with raises_code("LEDGER_UNREADABLE", InputError, "ledger.jsonl"):
        read_ledger(tmp_path / "ledger.jsonl")


# What a crash leaves --------------------------------------------------------------------------------------------------


def _without_line_feed(line: bytes) -> bytes:
    return line[:-1]


def _half(line: bytes) -> bytes:
    return line[: len(line) // 2]


def _half_with_line_feed(line: bytes) -> bytes:
    """Blocks of a file may reach the disk in any order: the end before the beginning, which is zeros then."""
    return b"\x00" * (len(line) // 2) + line[len(line) // 2 :]


@pytest.mark.parametrize("tear", [_without_line_feed, _half, _half_with_line_feed], ids=lambda tear: tear.__name__)
def test_a_torn_last_line_is_left_out_and_gives_way_to_the_next(tmp_path: Path, tear: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path)
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:-1]) + tear(lines[-1]))
    torn = read_ledger(path)
    assert torn.truncated
    assert len(torn.entries) == 4
    assert torn.valid_bytes == len(b"".join(lines[:-1]))
    assert path.read_bytes().endswith(tear(lines[-1]))  # reading mends nothing

    longer = torn.add("batch", index=4)
    assert lines_of(path)[:-1] == lines[:-1]
    assert read_ledger(path) == longer
    assert [entry.fields["index"] for entry in longer.entries] == [0, 1, 2, 3, 4]
    assert not longer.truncated


def test_an_empty_ledger_is_one_without_lines_and_a_torn_first_line_too(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert new_ledger(path) == read_ledger(path) == Ledger(path, (), 0, truncated=False)
    path.write_bytes(b'{"kind": "ba')
    assert read_ledger(path) == Ledger(path, (), 0, truncated=True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Entry, ...], bytes]:
    """A ledger's entries, and its file's bytes."""
    path = tmp_path_factory.mktemp("sound") / "ledger.jsonl"
    return written(path).entries, path.read_bytes()


@SHARED_FOLDER
@given(share=st.floats(0, 1))
def test_any_truncation_reads_as_the_lines_that_are_whole(
    sound: tuple[tuple[Entry, ...], bytes], share: float, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    entries, content = sound
    cut = content[: round(share * len(content))]
    path.write_bytes(cut)
    read = read_ledger(path)
    assert read.entries == entries[: cut.count(b"\n")]
    assert read.truncated == (not cut.endswith(b"\n") and cut != b"")
    assert path.read_bytes() == cut


@SHARED_FOLDER
@given(data=st.data())
def test_whatever_is_done_to_the_bytes_no_other_entry_is_ever_read(
    sound: tuple[tuple[Entry, ...], bytes], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    entries, content = sound
    start = data.draw(st.integers(0, len(content)), label="start")
    end = data.draw(st.integers(start, min(len(content), start + 80)), label="end")
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=6), label="new") + content[end:])
    assert_prefix_or_refused(path, entries)


def assert_prefix_or_refused(path: Path, entries: Sequence[Entry]) -> None:
    content = path.read_bytes()
    with suppress(InputError):
        read = read_ledger(path)
        assert read.entries == tuple(entries[: len(read.entries)])
    assert path.read_bytes() == content


# What no crash does ---------------------------------------------------------------------------------------------------


def _changed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"fact-1", b"fact-7"), *lines[2:]]


def _removed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *lines[2:]]


def _inserted(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[0], *lines[1:]]


def _swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def _blank(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"\n", *lines[1:]]


def _text(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"[]\n", *lines[2:]]


def _cut_in_the_middle(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1][:20] + b"\n", *lines[2:]]


def _another_ledgers(lines: list[bytes]) -> list[bytes]:
    """A line whose own checksum is right, behind another line than this one."""
    body = json.loads(lines[1])
    del body["checksum"]
    canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    body["checksum"] = hashlib.sha256(f"{START}\n{canonical}".encode()).hexdigest()
    return [lines[0], json.dumps(body).encode() + b"\n", *lines[2:]]


TAMPERED = [_changed, _removed, _inserted, _swapped, _blank, _text, _cut_in_the_middle, _another_ledgers]


@pytest.mark.parametrize("torn_as_well", [False, True])
@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_a_line_in_the_middle_that_is_not_what_was_written_is_refused_with_its_number(
    tmp_path: Path, tamper: Callable[[list[bytes]], list[bytes]], torn_as_well: bool
) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path)
    content = b"".join(tamper(lines_of(path)))
    path.write_bytes(content[:-5] if torn_as_well else content)
    with raises_code("LEDGER_DAMAGED", InputError, "ledger.jsonl:2 ") as caught:
        read_ledger(path)
    assert "the lines before it are intact" in caught.value.remedy


# What cannot be added -------------------------------------------------------------------------------------------------


def _no_space(*arguments: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_line_that_cannot_reach_the_disk_is_not_there_and_the_next_one_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = written(path)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(errata.runs.ledger.os, "fsync", _no_space)
        with pytest.raises(OSError, match="No space left"):
            ledger.add("batch", index=4)
    assert path.read_bytes() == before
    assert read_ledger(path) == ledger
    assert read_ledger(path).entries == ledger.entries
    ledger.add("batch", index=4)
    assert path.read_bytes().startswith(before)
    assert [entry.fields["index"] for entry in read_ledger(path).of("batch")] == [0, 1, 2, 3, 4]


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_no_part_of_it(tmp_path: Path) -> None:
    """/dev/full cannot be seeked, so the limit on a file's size stands for a full disk; in a process of its own."""
    path = tmp_path / "ledger.jsonl"
    ledger = written(path)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:  # nothing of pytest may run in here
        import resource
        import signal

        status = 3
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, len(before) + 40))
            try:
                ledger.add("batch", index=4, facts=["a name that is long enough"] * 10)
            except OSError:
                status = 0 if path.read_bytes() == before else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_has_no_word_for_is_refused_before_anything_is_written(
    tmp_path: Path, number: float
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = written(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.add("batch", seconds=number)
    assert path.read_bytes() == before
