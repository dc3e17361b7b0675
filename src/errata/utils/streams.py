"""Standard output and error that never fail to print, so that a command's work does not fail either."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any


class _Sink(io.FileIO):
    """A file that drops everything written to it after its first failure."""

    failure: OSError | None = None  # the first one

    def write(self, data: Any, /) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


class Streams:
    """The replaced streams and their failures."""

    def __init__(self) -> None:
        self._sinks: list[_Sink] = []
        self._texts: list[io.TextIOWrapper] = []

    def steady(self, stream: Any) -> Any:
        """A stream to the same place that never fails; what cannot be encoded is printed as a replacement character."""
        try:
            handle = stream.fileno()
        except (OSError, ValueError):  # not a file: in a test or a notebook
            return stream
        sink = _Sink(handle, "w", closefd=False)
        errors = "replace" if stream.errors in (None, "strict", "surrogateescape") else stream.errors
        text = io.TextIOWrapper(
            io.BufferedWriter(sink), stream.encoding, errors, line_buffering=stream.isatty() or stream is sys.stderr
        )
        self._sinks.append(sink)
        self._texts.append(text)
        return text

    @property
    def failure(self) -> OSError | None:
        """The first failure to print; None if there was none, or a reader has closed its pipe."""
        for text in self._texts:
            text.flush()
        failures = [sink.failure for sink in self._sinks if sink.failure is not None]
        return next((error for error in failures if not isinstance(error, BrokenPipeError)), None)


@contextmanager
def steady_streams() -> Iterator[Streams]:
    """Replace the process's streams, if it has any, by such streams."""
    streams = Streams()
    out, err = sys.stdout, sys.stderr
    with redirect_stdout(out and streams.steady(out)), redirect_stderr(err and streams.steady(err)):
        yield streams
