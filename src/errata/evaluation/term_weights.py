"""How much each word of a text counts: a vocabulary with the inverse frequencies of its words in documents.

scikit-learn is imported here only.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errata.cache import cache_directory
from errata.errors import InputError, OutputError
from errata.extras import require
from errata.locking import in_turn
from errata.output import is_file, write_text
from errata.reading import reason_of
from errata.statistics.corpus import open_corpus

_FORMAT = "errata-tfidf-1"
_logger = logging.getLogger(__name__)


def check_consistency() -> None:
    """Raises MissingExtraError if texts cannot be compared here."""
    require("consistency", "eval", "sklearn")


@dataclass(frozen=True, slots=True)
class TermWeights:
    """A vocabulary and the inverse document frequency of each of its words.

    Attributes:
        words: in the order of ``idf``; as scikit-learn's TfidfVectorizer finds them by default (small letters, two
            characters at least).
        idf: (words,) positive.

    Raises:
        InputError: if the two do not fit together.
    """

    words: tuple[str, ...]
    idf: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.idf.shape != (len(self.words),) or len(set(self.words)) != len(self.words) or not self.words:
            what = f"{len(self.words)} words ({len(set(self.words))} distinct) came with weights {self.idf.shape}"
            raise InputError(what, remedy="Give one weight for each word of the vocabulary")
        if not bool(np.isfinite(self.idf).all() and (self.idf > 0).all()):
            raise InputError("a word's weight is not a positive number", remedy="Fit the weights again")

    @classmethod
    def fit(cls, documents: Iterable[str]) -> TermWeights:
        """Of a corpus, by TfidfVectorizer with its default settings (smoothed IDF).

        Raises:
            InputError: if there is no word in it.
            MissingExtraError: if scikit-learn is not installed.
        """
        check_consistency()
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer()
        try:
            vectoriser.fit(documents)
        except ValueError as error:
            raise InputError(f"the corpus for TF-IDF cannot be used: {error}", remedy="Give more text") from error
        return cls(tuple(vectoriser.get_feature_names_out().tolist()), np.asarray(vectoriser.idf_, dtype=np.float64))

    @classmethod
    def read(cls, path: Path) -> TermWeights:
        """Read what ``write`` wrote.

        Raises:
            InputError: if the file is not that.
        """
        whole = _json(path)
        if (
            not isinstance(whole, dict)
            or whole.get("format") != _FORMAT
            or not _is_list_of(whole.get("words"), str)
            or not _is_list_of(whole.get("idf"), int | float)
        ):
            raise InputError(f"{path} is not of the format {_FORMAT!r}", remedy="Give a file that errata wrote")
        return cls(tuple(whole["words"]), np.array(whole["idf"], dtype=np.float64))

    @classmethod
    def read_published(cls, vocabulary: Path, idf: Path) -> TermWeights:
        """Read the two files that are published with ROME: a JSON object word -> index, and a NumPy array (.npy).

        Raises:
            InputError: if one of them is not that, or they do not fit together.
        """
        index = _json(vocabulary)
        remedy = "Give the vocabulary as JSON (word -> index) and the weights as .npy"
        if not isinstance(index, dict) or sorted(index.values(), key=repr) != sorted(range(len(index)), key=repr):
            raise InputError(f"{vocabulary} does not number its words from 0", remedy=remedy)
        try:
            weights = np.load(idf, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{idf} cannot be read as an array: {error}", remedy=remedy) from error
        if not isinstance(weights, np.ndarray) or weights.dtype.kind != "f":
            raise InputError(f"{idf} holds no array of floating-point numbers", remedy=remedy)
        return cls(tuple(sorted(index, key=lambda word: index[word])), weights.astype(np.float64).reshape(-1))

    def write(self, path: Path) -> None:
        """Write them as JSON, whole or not at all."""
        whole = {"format": _FORMAT, "words": list(self.words), "idf": self.idf.tolist()}
        write_text(path, json.dumps(whole, ensure_ascii=False) + "\n")

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, words) term frequency times IDF, each of length 1, or 0 if it has no word of the vocabulary."""
        check_consistency()
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(vocabulary={word: index for index, word in enumerate(self.words)})
        vectoriser.idf_ = self.idf
        return np.asarray(vectoriser.transform(texts).toarray(), dtype=np.float64)


def corpus_weights(corpus: str, *, cache: Path | None = None) -> TermWeights:
    """The weights of a corpus (see ``open_corpus``), fitted once and kept: of Wikipedia that takes minutes.

    Args:
        cache: where they are kept; by default in the user's cache directory.

    Raises:
        InputError: if the corpus cannot be read, or has no word.
        MissingExtraError: if scikit-learn is not installed.
    """
    check_consistency()
    text = open_corpus(corpus)
    key = hashlib.sha256(f"{text.digest}|scikit-learn {version('scikit-learn')}".encode()).hexdigest()[:32]
    folder = cache_directory("term-weights") if cache is None else cache
    path = folder / f"{key}.json"
    with in_turn(folder / f"{key}.lock", "the weights of a text's words"):
        if is_file(path):
            return TermWeights.read(path)
        weights = TermWeights.fit(text.documents())
        try:
            weights.write(path)
        except OutputError as error:  # the work goes on; only the next run has to compute them again
            _logger.warning("the weights of words cannot be kept: %s", error)
        return weights


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = f"{path} cannot be read as JSON: {reason_of(error)}"
        raise InputError(what, remedy="Give a file that is whole") from error


def _is_list_of(value: object, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in value)
