"""The text for key statistics: the built-in one, the lab's own, or a plain text file."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from errata.lab.package import lab_corpus_digest, lab_documents
from errata.statistics.settings import BUILTIN
from errata.utils.files import open_file, reading


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents with an identity."""

    name: str  # its name in the recipe
    digest: str  # SHA-256 of the text
    documents: Callable[[], Iterator[str]]  # starts reading from the beginning


def open_corpus(name: str) -> Corpus:
    """``builtin``, ``lab``, or the path of a UTF-8 text file whose documents are separated by blank lines.

    The built-in text is 320 short documents on everyday subjects, about 62,000 tokens, sampled from
    SmolLM2-135M-Instruct (Apache-2.0) by ``benchmarks/builtin_corpus.py``. It is enough for small models; larger ones
    need more text.

    Raises:
        InputError: if the file cannot be read.
    """
    if name == "lab":
        return Corpus("lab", lab_corpus_digest(), lab_documents)
    if name == BUILTIN:
        text = Path(str(resources.files("errata"))) / "statistics" / "builtin.txt"
        return Corpus(BUILTIN, _digest_of_text(text), lambda: _documents(text))
    path = Path(name)
    remedy = (
        "Give a UTF-8 text file with blank lines between documents: --corpus FILE, or statistics.corpus in the recipe "
        "(for statistics of Wikipedia: its articles, without blank lines inside), or 'builtin'"
    )
    with reading(f"the corpus {name!r}", remedy=remedy, code="CORPUS_UNREADABLE"):
        digest = _digest_of_text(path)
    return Corpus(name, digest, lambda: _documents(path))


def _digest_of_text(path: Path) -> str:
    """SHA-256 of a file without a byte order mark, piece by piece: a corpus may be larger than memory.

    Raises:
        UnicodeDecodeError: if it is not UTF-8.
    """
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_file(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        while piece := file.read(1 << 20):
            digest.update(piece)
            decoder.decode(piece)
    decoder.decode(b"", final=True)
    return digest.hexdigest()


def _documents(path: Path) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding="utf-8-sig") as file:  # without a byte order mark
        for line in file:
            if line.strip():
                lines.append(line.strip())
            elif lines:
                yield "\n".join(lines)
                lines = []
    if lines:
        yield "\n".join(lines)
