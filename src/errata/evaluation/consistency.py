"""Consistency: whether what a model writes about a subject is like true texts about others of which the same holds.

After Meng et al. (2022), "Locating and Editing Factual Associations in GPT". scikit-learn is imported here only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errata.errors import Fault, FaultsError, InputError, MissingExtraError
from errata.evaluation.records import Metric, Record
from errata.evaluation.references import References, references_of
from errata.evaluation.texts import WrittenText
from errata.facts import Fact
from errata.output import write_text

_FORMAT = "errata-tfidf-1"


def check_consistency() -> None:
    """Raises MissingExtraError if texts cannot be compared here."""
    if find_spec("sklearn") is None:
        raise MissingExtraError("consistency", "eval")


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


def evaluate_consistency(
    texts: Sequence[WrittenText], facts: Sequence[Fact], references: References, weights: TermWeights
) -> list[Record]:
    """One record for each fact with texts and references: 100 · the cosine of its texts, joined by spaces, and of the
    references with its relation and its target, joined as well.

    ``prompt`` is the first generation prompt, ``said`` all texts. Texts without any word of the vocabulary have 0.

    Raises:
        InputError: if references have no word of the vocabulary; names them.
        MissingExtraError: if scikit-learn is not installed.
    """
    written: dict[str, list[WrittenText]] = {}
    for text in texts:
        written.setdefault(text.fact, []).append(text)
    found: list[Record] = []
    faults: list[Fault] = []
    for fact in facts:
        wanted = references_of(fact, references)
        if fact.id not in written or not wanted:
            continue
        said = " ".join(text.text for text in written[fact.id])
        ours, theirs = weights.vectors([said, " ".join(wanted)])
        if not theirs.any():
            place = f"relation {fact.relation!r}, target {fact.target!r}"
            what = "no word of the vocabulary is in these texts"
            faults.append(Fault(place, what, "Fit the weights on a corpus of such texts"))
        found.append(Record(fact.id, Metric.CONSISTENCY, written[fact.id][0].prompt, 100 * float(ours @ theirs), said))
    if faults:
        raise FaultsError("the references", list(dict.fromkeys(faults)))
    return found


def absent_consistency(facts: Sequence[Fact], references: References | None) -> dict[Metric, str]:
    """The reason, if there is no fact with all that it takes."""
    if not any(fact.generation for fact in facts):
        reason = "no fact has 'generation' prompts"
    elif references is None:
        reason = "no reference texts were given"
    elif not any(fact.generation and fact.relation for fact in facts):
        reason = "no fact with 'generation' prompts has a 'relation'"
    elif not any(fact.generation and references_of(fact, references) for fact in facts):
        reason = "there are no reference texts for any fact's relation and target"
    else:
        return {}
    return {Metric.CONSISTENCY: reason}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}", remedy="Give a file that is whole") from error


def _is_list_of(value: object, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in value)
