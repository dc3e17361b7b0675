"""One file from the web: resumed where it broke off, checked where there is a checksum, whole or not at all."""

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
    """What the bytes have to be; None where nobody could say."""

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

    What has come is kept beside it as ``<name>.partial``. A later call asks for the rest alone if the server knows
    ranges and can say that its file is still the same one (ETag or date), or if a checksum will tell; else it begins
    anew. A transfer that breaks off in the middle is resumed at once as long as each attempt brings something.

    Args:
        page: where a person finds the file, for the errors.
        report: told the bytes that are there, of how many (0 if the server does not say).
        timeout: seconds without a byte after which the server counts as gone.
        largest: bytes that a file of unknown size may have.

    Raises:
        InputError: if the address is not one of the web, or nothing can be written at ``target``.
        OutputError: if the disk is full, or refuses it.
        ErrataError: if it cannot be had, is not the file that was expected, is empty or larger than it may be; then
            nothing is at ``target`` that was not there before.
    """
    parsed = urllib.parse.urlsplit(url)
    if parsed.scheme not in _SCHEMES or not parsed.netloc:
        raise InputError(
            f"{url!r} is not an address of the web", remedy="Give one that begins with https:// or http://"
        )
    check_file(target)
    transfer = _Transfer(url, target, expected or Expected(), page, report, timeout, largest)
    with _folder_of(target):
        transfer.run()


@contextmanager
def _folder_of(target: Path) -> Iterator[None]:
    """The folder of a file, made if it is not there; what was made for nothing is taken away again."""
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
                raise ErrataError(
                    f"the transfer of {self._url} broke off at byte {here} of {total}",
                    remedy=f"Run it again, and it goes on from there{self._where}",
                )
        self._check()
        self._partial.replace(self._target)
        self._mark.unlink(missing_ok=True)

    def _attempt(self, start: int) -> int | None:
        """One connection; returns the size of the whole file, if the server tells it."""
        with self._told():
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
                self._forget()  # what is here is not the beginning of what is there
                return self._attempt(0)
        with response:
            resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
            if resumed and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
                self._forget()
                if not start:
                    raise self._refused("a part of the file, which nobody asked for")
                return self._attempt(0)
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise self._refused(f"the file in the encoding {encoding!r:.40}")
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
        """The size of the whole file, if the server tells it."""
        if length is None:
            return None
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise self._refused(f"a Content-Length that is no number, {length!r:.40}")
        self._check_size(done + int(length))
        return done + int(length)

    def _check_size(self, size: int) -> None:
        if size > self._largest:
            self._forget()
            known = "that it has" if self._expected.size is not None else "that errata takes of an unknown file"
            raise self._refused(f"more than the {self._largest} bytes {known}")

    def _refused(self, what: str) -> ErrataError:
        return ErrataError(
            f"{self._url} gives {what}", remedy=f"Run it again; if it stays so, the server is at fault{self._where}"
        )

    @contextmanager
    def _writing(self) -> Iterator[IO[bytes]]:
        """The unfinished file, open at its end."""
        try:
            with open_in_place(self._partial, "ab") as file:
                yield file
        except OSError as error:
            raise OutputError(
                f"{self._target} cannot be written: {error.strerror or error}",
                remedy="Make room there, or give another place",
            ) from error

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """What comes, until it ends or breaks off: a break is seen by the caller, who knows how much was to come."""
        with self._told():
            try:
                while chunk := response.read(_CHUNK):
                    yield chunk
            except (http.client.IncompleteRead, ConnectionError):
                if response.headers.get("Content-Length") is None:
                    raise

    def _check(self) -> None:
        """Raises ErrataError, and drops what has come, if it is not what was expected."""
        size = self._here()
        if not size and self._expected.size != 0:
            self._forget()
            raise self._refused("an empty file")
        digest = file_digest(self._partial)
        wrong = ""
        if self._expected.size is not None and size != self._expected.size:
            wrong = f"{size} bytes instead of {self._expected.size}"
        elif self._expected.sha256 is not None and digest != self._expected.sha256:
            wrong = f"SHA-256 {digest} instead of {self._expected.sha256}"
        if wrong:
            self._forget()
            raise ErrataError(
                f"what {self._url} gives is not the file that errata knows: {wrong}",
                remedy=f"Run it again; if it stays so, the file has changed{self._where}",
            )

    def _remember(self, tag: str | None, date: str | None) -> None:
        """Keep by what the server knows this very file; a weak tag does not promise the same bytes."""
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
    def _told(self) -> Iterator[None]:
        """What the network raises, as an error that says what to do."""
        try:
            yield
        except urllib.error.HTTPError as error:
            what = f"{self._url} answers with status {error.code} ({error.reason})"
            error.close()
            raise ErrataError(what, remedy=f"Try again later{self._where}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            remedy = f"Check the network, and run it again{self._where}"
            raise ErrataError(f"{self._url} cannot be had: {reason}", remedy=remedy) from error


def _opener() -> urllib.request.OpenerDirector:
    """Opens addresses of the web alone, also where one is redirected to; proxies of the environment are honoured."""
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
