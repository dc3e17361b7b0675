"""Download of one file: resumed after interruptions, verified by its checksum, complete or not at all."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from errata.errors import ErrataError, InputError, OutputError
from errata.utils.files import check_file, file_digest, write_text
from errata.utils.locks import open_in_place
from errata.utils.progress import Report, silent

_CHUNK: Final = 1 << 16
_SCHEMES: Final = ("http", "https")


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected checksum and size of a file; None where unknown."""

    sha256: str | None = None
    size: int | None = None


def fetch(
    url: str,
    target: Path,
    expected: Expected | None = None,
    *,
    page: str = "",
    report: Report = silent,
    timeout: float = 30.0,
    largest: int = 4 << 30,
) -> None:
    """Download to ``target``, over an older file there.

    Unfinished content is stored beside it as ``<name>.partial``. A later call requests only the rest if the server
    supports ranges and can confirm that its file is unchanged (ETag or date), or if there is a checksum; otherwise it
    starts again. An interrupted transfer is resumed at once as long as each attempt makes progress.

    Args:
        page: web page of the file, for error messages.
        report: progress callback: bytes so far and in total (0 if the server does not say).
        timeout: seconds without data after which the connection is given up.
        largest: maximum size in bytes of a file of unknown size.

    Raises:
        InputError: if the address is not an HTTP(S) URL, or ``target`` cannot be written.
        OutputError: if writing fails, for example because the disk is full.
        ErrataError: if the download fails, or the file is not the expected one, empty or too large; ``target`` is
            unchanged.
    """
    parsed = urllib.parse.urlsplit(url)
    if parsed.scheme not in _SCHEMES or not parsed.netloc:
        remedy = "Give a URL that begins with https:// or http://"
        raise InputError(f"{url!r} is not a URL that can be downloaded", remedy=remedy, code="DOWNLOAD_URL")
    check_file(target)
    transfer = _Transfer(url, target, expected or Expected(), page, report, timeout, largest)
    with _folder_of(target):
        transfer.run()


@contextmanager
def _folder_of(target: Path) -> Iterator[None]:
    """Create the folder of a file if needed; remove the created folders again if they remain empty."""
    made = [folder for folder in target.parents if not folder.exists()]  # the innermost first
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()


class _Transfer:
    """One download, over as many connections as it needs."""

    def __init__(
        self, url: str, target: Path, expected: Expected, page: str, report: Report, timeout: float, largest: int
    ) -> None:
        self._url, self._target, self._expected = url, target, expected
        self._largest = largest if expected.size is None else expected.size
        self._report, self._timeout = report, timeout
        self._partial = target.with_name(f"{target.name}.partial")
        self._mark = target.with_name(f"{target.name}.partial.etag")
        self._where = f"; or get it at {page} and give the file" if page else "; or get it elsewhere and give the file"

    def run(self) -> None:
        while True:
            before = self._here()
            total = self._attempt(before)
            here = self._here()
            if total is None or here == total:
                break
            if here <= before:
                what = f"the transfer of {self._url} was interrupted at byte {here} of {total}"
                remedy = f"Run the command again to resume it{self._where}"
                raise ErrataError(what, remedy=remedy, code="DOWNLOAD_INTERRUPTED")
        self._check()
        self._partial.replace(self._target)
        self._mark.unlink(missing_ok=True)

    def _attempt(self, start: int) -> int | None:
        """One connection; returns the size of the whole file, if the server reports it."""
        with self._network_errors():
            request = urllib.request.Request(self._url, headers={"User-Agent": "errata", "Accept-Encoding": "identity"})
            mark = (
                self._mark.read_text(encoding="utf-8") if self._mark.is_file() and not self._mark.is_symlink() else ""
            )
            if start and (mark or self._expected.sha256):
                request.add_header("Range", f"bytes={start}-")
                if mark:
                    request.add_header("If-Range", mark)
            try:
                response = _opener().open(request, timeout=self._timeout)
            except urllib.error.HTTPError as error:
                if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
                    raise
                error.close()
                self._forget()  # the stored part is not the beginning of the file
                return self._attempt(0)
        with response:
            resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
            if resumed and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
                self._forget()
                if not start:
                    raise self._invalid("an unrequested part of the file")
                return self._attempt(0)
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise self._invalid(f"the file in the encoding {encoding!r:.40}")
            done = start if resumed else 0
            total = self._total(done, response.headers.get("Content-Length"))
            self._remember(response.headers.get("ETag"), response.headers.get("Last-Modified"))
            with self._writing() as file:
                file.truncate(done)
                for chunk in self._chunks(response):
                    done += len(chunk)
                    self._check_size(done)
                    file.write(chunk)
                    self._report(self._target.name, done, total or self._expected.size or 0)
                file.flush()
                os.fsync(file.fileno())
        return total

    def _total(self, done: int, length: str | None) -> int | None:
        """The size of the whole file, if the server reports it."""
        if length is None:
            return None
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise self._invalid(f"an invalid Content-Length, {length!r:.40}")
        self._check_size(done + int(length))
        return done + int(length)

    def _check_size(self, size: int) -> None:
        if size > self._largest:
            self._forget()
            limit = "expected" if self._expected.size is not None else "allowed for a file of unknown size"
            raise self._invalid(f"more than the {self._largest} bytes {limit}")

    def _invalid(self, what: str) -> ErrataError:
        remedy = f"Run the command again; if the error persists, the server is at fault{self._where}"
        return ErrataError(f"{self._url} returned {what}", remedy=remedy, code="DOWNLOAD_INVALID")

    @contextmanager
    def _writing(self) -> Iterator[IO[bytes]]:
        """The unfinished file, open at its end."""
        try:
            with open_in_place(self._partial, "ab") as file:
                yield file
        except OSError as error:
            what = f"{self._target} cannot be written: {error.strerror or error}"
            raise OutputError(what, remedy="Free disk space, or use another place", code="DISK_FULL") from error

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The received data, until it ends or is interrupted, which the caller detects by the size."""
        with self._network_errors():
            try:
                while chunk := response.read(_CHUNK):
                    yield chunk
            except (http.client.IncompleteRead, ConnectionError):
                if response.headers.get("Content-Length") is None:
                    raise

    def _check(self) -> None:
        """Raises ErrataError, and removes the received data, if it is not the expected file."""
        size = self._here()
        if not size and self._expected.size != 0:
            self._forget()
            raise self._invalid("an empty file")
        wrong = ""
        if self._expected.size is not None and size != self._expected.size:
            wrong = f"{size} bytes instead of {self._expected.size}"
        elif (known := self._expected.sha256) is not None and (digest := file_digest(self._partial)) != known:
            wrong = f"SHA-256 {digest} instead of {known}"
        if wrong:
            self._forget()
            what = f"{self._url} is not the expected file: {wrong}"
            remedy = f"Run the command again; if the error persists, the file has changed{self._where}"
            raise ErrataError(what, remedy=remedy, code="DOWNLOAD_CHECKSUM")

    def _remember(self, tag: str | None, date: str | None) -> None:
        """Store the server's tag of this version of the file; a weak tag does not guarantee the same bytes."""
        mark = tag if tag is not None and not tag.startswith("W/") else date
        if mark:
            write_text(self._mark, mark)
        else:
            self._mark.unlink(missing_ok=True)

    def _forget(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)

    def _here(self) -> int:
        return self._partial.stat().st_size if self._partial.is_file() else 0

    @contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Convert network errors to ErrataError."""
        try:
            yield
        except urllib.error.HTTPError as error:
            what = f"{self._url} answers with status {error.code} ({error.reason})"
            error.close()
            raise ErrataError(what, remedy=f"Try again later{self._where}", code="DOWNLOAD_FAILED") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            remedy = f"Check the network, and run the command again{self._where}"
            what = f"{self._url} cannot be downloaded: {reason}"
            raise ErrataError(what, remedy=remedy, code="DOWNLOAD_FAILED") from error


def _opener() -> urllib.request.OpenerDirector:
    """Opens HTTP(S) URLs only, also after redirects; proxies of the environment are used."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
