"""Downloads from a server that breaks off, forgets, lies and refuses: the file is there whole or not at all."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.datasets.download import Expected, fetch
from errata.errors import ErrataError, InputError

from tests.support.file_server import FileServer, file_server

CONTENT = random.Random(0).randbytes(300_000)
KNOWN = Expected(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server(CONTENT) as serving:
        yield serving


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "file.json"


def left(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} if target.parent.is_dir() else set()


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("expected", [None, KNOWN])
def test_a_file_comes_whole(server: FileServer, target: Path, length: bool, expected: Expected | None) -> None:
    server.length = length
    told: list[tuple[str, int, int]] = []
    fetch(server.address, target, expected, report=lambda *progress: told.append(progress))
    assert target.read_bytes() == CONTENT
    assert left(target) == {"file.json"}
    assert told[-1] == ("file.json", len(CONTENT), len(CONTENT) if length or expected else 0)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert server.asked == [""]


def test_a_broken_transfer_is_resumed_at_once(server: FileServer, target: Path) -> None:
    server.break_after = [100_000, 50_000]
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-", "bytes=150000-"]


def test_what_has_come_waits_for_the_next_call(server: FileServer, target: Path) -> None:
    server.break_after = [100_000, 0]
    with pytest.raises(ErrataError, match=r"broke off at byte 100000 of 300000.*goes on from there") as caught:
        fetch(server.address, target)
    assert caught.value.exit_status == 1
    assert left(target) == {"file.json.partial", "file.json.partial.etag"}
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=100000-"
    assert left(target) == {"file.json"}


def test_a_server_without_ranges_sends_it_all_again(server: FileServer, target: Path) -> None:
    server.ranges = False
    server.break_after = [100_000, 200_000]
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_a_file_that_changed_meanwhile_is_begun_anew(server: FileServer, target: Path) -> None:
    server.break_after = [100_000, 0]
    with pytest.raises(ErrataError):
        fetch(server.address, target)
    server.content, server.tag = CONTENT[::-1], '"two"'
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_tag_or_a_checksum_nothing_is_patched_together(server: FileServer, target: Path, tag: str) -> None:
    server.tag = tag
    server.break_after = [100_000, 0]
    with pytest.raises(ErrataError):
        fetch(server.address, target)
    server.content = CONTENT[::-1]
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT[::-1]
    assert set(server.asked) == {""}


def test_a_checksum_allows_to_resume_without_a_tag(server: FileServer, target: Path) -> None:
    server.tag = ""
    server.break_after = [100_000]
    fetch(server.address, target, KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-"]


def test_a_range_that_is_not_the_one_asked_for_is_not_taken(server: FileServer, target: Path) -> None:
    server.break_after = [100_000]
    server.wrong_range = True
    fetch(server.address, target, KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-", ""]


def test_a_leftover_longer_than_the_file_is_dropped(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.json.partial").write_bytes(b"x" * 400_000)
    fetch(server.address, target, KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["bytes=400000-", ""]


def test_a_leftover_that_is_not_its_beginning_is_found_by_the_checksum(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.json.partial").write_bytes(b"x" * 1000)
    with pytest.raises(ErrataError, match="is not the file that errata knows: SHA-256"):
        fetch(server.address, target, KNOWN)
    assert left(target) == set()
    fetch(server.address, target, KNOWN)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (Expected("0" * 64, len(CONTENT)), "SHA-256 .* instead of 000"),
        (Expected("0" * 64, 7), "300000 bytes instead of 7"),
    ],
)
def test_another_file_is_refused_and_the_old_one_stays(
    server: FileServer, target: Path, expected: Expected, words: str
) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(ErrataError, match=words) as caught:
        fetch(server.address, target, expected, page="https://example.org/data")
    assert "get it at https://example.org/data and give the file" in str(caught.value)
    assert caught.value.exit_status == 1
    assert left(target) == {"file.json"}
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_refusal_says_its_status(server: FileServer, target: Path, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(ErrataError, match=f"answers with status {status}") as caught:
        fetch(server.address, target)
    assert caught.value.exit_status == 1
    assert left(target) == set()


def test_a_refusal_in_the_middle_keeps_what_has_come(server: FileServer, target: Path) -> None:
    server.break_after = [100_000, 0]
    with pytest.raises(ErrataError):
        fetch(server.address, target)
    server.statuses = [500]
    with pytest.raises(ErrataError, match="status 500"):
        fetch(server.address, target)
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=100000-"


def test_chunks_that_end_early_are_no_file(server: FileServer, target: Path) -> None:
    server.length = False
    server.break_after = [100_000]
    with pytest.raises(ErrataError, match="cannot be had"):
        fetch(server.address, target)
    assert not target.exists()


def test_nobody_there(target: Path) -> None:
    with file_server(b"") as gone:
        address = gone.address
    with pytest.raises(ErrataError, match=r"cannot be had: .*Check the network") as caught:
        fetch(address, target)
    assert caught.value.exit_status == 1
    assert left(target) == set()


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://example.org/x", "data:,x", "/etc/passwd", "https:", ""]
)
def test_only_the_web_is_asked(address: str, target: Path) -> None:
    with pytest.raises(InputError, match="not an address of the web"):
        fetch(address, target)
    assert not target.parent.exists()


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_nobody_is_led_out_of_the_web(server: FileServer, target: Path, address: str) -> None:
    server.redirect = address
    with pytest.raises(ErrataError):
        fetch(server.address, target)
    assert not target.exists()


def test_a_redirect_within_the_web_is_followed(server: FileServer, target: Path) -> None:
    with file_server(b"") as front:
        front.redirect = server.address
        fetch(front.address, target, KNOWN)
    assert target.read_bytes() == CONTENT


def test_what_cannot_be_written_is_told_before_anything_is_asked(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        fetch(server.address, tmp_path)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        fetch(server.address, tmp_path / "file" / "under.json")
    assert server.asked == []
