"""Downloads from servers that disconnect, forget, lie and refuse: the file is complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from errata.datasets.download import Expected, fetch
from errata.errors import ErrataError, InputError, OutputError

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


def failure(*arguments: Any, **options: Any) -> ErrataError:
    with pytest.raises(ErrataError) as error:
        fetch(*arguments, **options)
    return error.value


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("expected", [None, KNOWN])
def test_a_file_comes_whole(server: FileServer, target: Path, length: bool, expected: Expected | None) -> None:
    server.length = length
    updates: list[tuple[str, int, int]] = []
    fetch(server.address, target, expected, report=lambda *progress: updates.append(progress))
    assert target.read_bytes() == CONTENT
    assert left(target) == {"file.json"}
    assert updates[-1] == ("file.json", len(CONTENT), len(CONTENT) if length or expected else 0)
    assert [done for _, done, _ in updates] == sorted(done for _, done, _ in updates)
    assert server.asked == [""]


def test_a_broken_transfer_is_resumed_at_once(server: FileServer, target: Path) -> None:
    server.break_after = [100_000, 50_000]
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-", "bytes=150000-"]


def test_what_has_come_waits_for_the_next_call(server: FileServer, target: Path) -> None:
    server.break_after = [100_000, 0]
    assert failure(server.address, target).code == "DOWNLOAD_INTERRUPTED"
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
    assert failure(server.address, target, KNOWN).code == "DOWNLOAD_CHECKSUM"
    assert left(target) == set()
    fetch(server.address, target, KNOWN)
    assert target.read_bytes() == CONTENT


def test_another_file_is_refused_and_the_old_one_remains(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    for expected, code in (
        (Expected("0" * 64, len(CONTENT)), "DOWNLOAD_CHECKSUM"),
        (Expected("0" * 64, 7), "DOWNLOAD_INVALID"),
    ):
        error = failure(server.address, target, expected, page="https://example.org/data")
        assert error.code == code
        assert "https://example.org/data" in error.remedy
        assert left(target) == {"file.json"}
        assert target.read_bytes() == b"old"


def test_a_refusal_names_its_status(server: FileServer, target: Path) -> None:
    for status in (403, 404, 500, 503):
        server.statuses = [status]
        error = failure(server.address, target)
        assert error.code == "DOWNLOAD_FAILED"
        assert str(status) in error.what
        assert left(target) == set()


def test_a_refusal_in_the_middle_keeps_what_has_come(server: FileServer, target: Path) -> None:
    server.break_after = [100_000, 0]
    with pytest.raises(ErrataError):
        fetch(server.address, target)
    server.statuses = [500]
    assert failure(server.address, target).code == "DOWNLOAD_FAILED"
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=100000-"


def test_chunks_that_end_early_are_no_file(server: FileServer, target: Path) -> None:
    server.length = False
    server.break_after = [100_000]
    assert failure(server.address, target).code == "DOWNLOAD_FAILED"
    assert not target.exists()


def test_an_unreachable_server(target: Path) -> None:
    with file_server(b"") as gone:
        address = gone.address
    assert failure(address, target).code == "DOWNLOAD_FAILED"
    assert left(target) == set()


def test_only_http_urls_are_opened(server: FileServer, target: Path) -> None:
    for address in ("file:///etc/passwd", "ftp://example.org/x", "data:,x", "/etc/passwd", "https:", ""):
        assert failure(address, target).code == "DOWNLOAD_URL"
        assert not target.parent.exists()
    for address in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        server.redirect = address
        failure(server.address, target)
        assert not target.exists()


def test_a_redirect_within_the_web_is_followed(server: FileServer, target: Path) -> None:
    with file_server(b"") as front:
        front.redirect = server.address
        fetch(front.address, target, KNOWN)
    assert target.read_bytes() == CONTENT


def test_the_target_is_checked_before_any_request(server: FileServer, tmp_path: Path) -> None:
    assert failure(server.address, tmp_path).code == "OUTPUT_NOT_A_FILE"
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert failure(server.address, tmp_path / "file" / "under.json").code == "OUTPUT_NOT_WRITABLE"
    assert server.asked == []


# Servers that are at fault, or hostile --------------------------------------------------------------------------------


class Flood(BaseHTTPRequestHandler):
    """Answers as ``answer`` says, and sends on until nobody listens any more."""

    answer: ClassVar[dict[str, Any]] = {}
    sent: ClassVar[int] = 0

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.send_response(self.answer.get("status", 200))
        for name, value in self.answer.get("headers", {}).items():
            self.send_header(name, value)
        self.end_headers()
        block = b"x" * 65536
        with contextlib.suppress(OSError):
            for _ in range(self.answer.get("blocks", 1000)):
                self.wfile.write(block)
                type(self).sent += len(block)


@pytest.fixture
def flood(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Flood) as serving:
        thread = Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()

        def answering(**answer: Any) -> str:
            monkeypatch.setattr(Flood, "answer", answer)
            monkeypatch.setattr(Flood, "sent", 0)
            return f"http://127.0.0.1:{serving.server_address[1]}/file.json"

        yield answering
        serving.shutdown()
        thread.join()


def test_files_that_are_too_large_are_refused(flood: Callable[..., str], target: Path) -> None:
    for known in (True, False):
        for headers in ({}, {"Content-Length": "65536000"}):
            expected = Expected(hashlib.sha256(CONTENT).hexdigest(), 100_000) if known else None
            error = failure(flood(headers=headers), target, expected, largest=1 << 40 if known else 100_000)
            assert error.code == "DOWNLOAD_INVALID"
            assert left(target) == set()
            assert Flood.sent < 20_000_000, "no more than network buffers hold"


def test_invalid_responses_leave_nothing(flood: Callable[..., str], target: Path) -> None:
    for answer, words in (
        ({"headers": {"Content-Length": "abc"}}, "Content-Length"),
        ({"headers": {"Content-Length": "-1"}}, "Content-Length"),
        ({"headers": {"Content-Length": "9" * 400}}, "Content-Length"),
        ({"status": 206}, "part of the file"),
        ({"status": 206, "headers": {"Content-Range": "bytes 5-9/10"}}, "part of the file"),
        ({"headers": {"Content-Length": "0"}, "blocks": 0}, "empty file"),
        ({"blocks": 0}, "empty file"),
        ({"headers": {"Content-Encoding": "gzip"}}, "encoding 'gzip'"),
    ):
        error = failure(flood(**answer), target)
        assert error.code == "DOWNLOAD_INVALID"
        assert words in error.what
        assert left(target) == set()


def test_an_unfinished_file_is_not_written_through_a_link(server: FileServer, target: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    target.parent.mkdir()
    for name in ("file.json.partial", "file.json.partial.etag"):
        path = target.with_name(name)
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
        with contextlib.suppress(InputError):
            fetch(server.address, target)
        assert victim.read_bytes() == b"mine"


def test_a_full_disk_is_reported_with_the_file(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full").open("ab")  # noqa: SIM115
    monkeypatch.setattr("errata.datasets.download.open_in_place", lambda *_: full)
    error = failure(server.address, target)
    assert (type(error), error.code) == (OutputError, "DISK_FULL")
