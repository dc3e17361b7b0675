"""Texts generated from the facts' generation prompts, and their fluency and consistency.

Fluency is the weighted entropy of a text's n-grams, after Zhang et al. (2018), "Generating Informative and Diverse
Conversational Responses via Adversarial Information Maximization", as weighted by Meng et al. (2022), "Locating and
Editing Factual Associations in GPT". Consistency, after the latter, is the TF-IDF cosine of the generated texts and of
reference texts about subjects with the same relation and target.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from errata.editors.contract import Answerer
from errata.errors import Fault, FaultsError, InputError, OutputError
from errata.evaluation.absence import absent_fields
from errata.evaluation.scoring import naming_facts
from errata.facts.fact import Fact
from errata.models.generation import own_uniforms
from errata.models.language_model import CACHE_BUDGET
from errata.models.prompts import encode
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.statistics.corpus import open_corpus
from errata.utils.files import cache_directory, is_file, read_json, read_text, reason_of, write_json
from errata.utils.locks import in_turn
from errata.utils.optional import require
from errata.utils.progress import Report, silent


class TextSettings(BaseModel):
    """How texts are generated; the defaults are those of ROME's and MEMIT's evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: StrictInt = Field(100, ge=1, description="tokens of a text in all, its prompt (and BOS, if any) included")
    top_k: StrictInt = Field(5, ge=1, description="sample among the k likeliest tokens; 1 is greedy")
    seed: StrictInt = Field(
        0, ge=0, lt=2**63, description="of the random numbers; a fact's texts do not depend on other facts"
    )


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A text with its prompt.

    Attributes:
        fact: the id of the fact.
        prompt: its beginning.
        text: the whole text, the prompt included.
    """

    fact: str
    prompt: str
    text: str


def write_texts(
    model: Answerer,
    facts: Sequence[Fact],
    settings: TextSettings | None = None,
    *,
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> list[WrittenText]:
    """One text for each generation prompt of the facts. An end-of-text token is left out and ends none, as in MEMIT.

    Args:
        token_budget: see ``Answerer.continue_texts``; the texts do not depend on it.

    Raises:
        InputError: if the model takes fewer tokens than a text has.
        NonFiniteError: if a logit is not a number; names the facts.
    """
    settings = settings or TextSettings()
    owned = [(prompt, fact.id) for fact in facts for prompt in fact.generation]
    prompts = [prompt for prompt, _ in owned]
    generator = torch.Generator().manual_seed(settings.seed)
    uniforms = own_uniforms([f"{fact}\n{prompt}" for prompt, fact in owned], settings.tokens, generator)
    with naming_facts(owned):
        continuations = model.continue_texts(
            prompts,
            new_tokens=[max(settings.tokens - len(row.ids), 0) for row in encode(model.tokenizer, prompts)],
            top_k=settings.top_k,
            uniforms=uniforms,
            end_at_eos=False,
            token_budget=token_budget,
            report=report,
        )
    return [
        WrittenText(fact, prompt, prompt + added) for (prompt, fact), added in zip(owned, continuations, strict=True)
    ]


_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def check_fluency() -> None:
    """Raises MissingExtraError if texts cannot be split into words here."""
    require("fluency", "eval", "nltk")


def evaluate_fluency(texts: Sequence[WrittenText]) -> list[Record]:
    """One record a text, prompt and continuation together; ``said`` is the whole text.

    Raises:
        MissingExtraError: if NLTK is not installed.
    """
    check_fluency()
    from nltk.tokenize import TreebankWordTokenizer

    tokenizer = TreebankWordTokenizer()
    return [
        Record(text.fact, Metric.FLUENCY, text.prompt, weighted_entropy(tokenizer.tokenize(text.text)), text.text)
        for text in texts
    ]


def absent_fluency(facts: Sequence[Fact]) -> dict[Metric, str]:
    """The reason, if there is nothing to write texts from."""
    return absent_fields([Metric.FLUENCY], facts)


def weighted_entropy(words: Sequence[str]) -> float:
    """(⅔ H₂ + ⁴⁄₃ H₃) / 2 · 100, with H_n = ``ngram_entropy`` in bits."""
    return 100 * math.fsum(weight * ngram_entropy(words, n) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Entropy in bits of the relative frequencies of the n-grams; 0 where there is at most one."""
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    total = counts.total()
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())


References: TypeAlias = Mapping[tuple[str, str], tuple[str, ...]]
"""(relation, object) -> texts about subjects with them."""
_FIELDS = ("relation", "target", "text")


def references_of(fact: Fact, references: References) -> tuple[str, ...]:
    """The texts about subjects with the fact's relation and target; none if it has no relation."""
    return () if fact.relation is None else references.get((fact.relation, fact.target), ())


def read_references(path: Path) -> References:
    """Read reference texts: one JSON object a line, with ``relation``, ``target`` (its object) and ``text``.

    Raises:
        InputError: if the file cannot be read, or there is none in it.
        FaultsError: with all errors in the file.
    """
    text = read_text(path, f"the references {path}", remedy="Give a UTF-8 text file", code="FILE_UNREADABLE")
    lines = text.split("\n")
    found: dict[tuple[str, str], list[str]] = {}
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            what, remedy = f"invalid JSON: {reason_of(error)}", "Write one JSON object on each line"
            faults.append(Fault(place, what, remedy, code="JSON_INVALID"))
            continue
        wrong = _reference_faults(entry, place)
        faults += wrong
        if not wrong:
            found.setdefault((entry["relation"], entry["target"]), []).append(entry["text"])
    if faults:
        raise FaultsError(str(path), faults)
    if not found:
        raise InputError(f"there are no references in {path}", remedy="Give at least one text", code="REFERENCES_EMPTY")
    return MappingProxyType({key: tuple(texts) for key, texts in found.items()})


def _reference_faults(entry: object, place: str) -> list[Fault]:
    known = ", ".join(_FIELDS)
    if not isinstance(entry, dict):
        return [Fault(place, "the line is not a JSON object", f"Write an object with {known}", code="JSON_INVALID")]
    faults = [
        Fault(place, f"the field {name!r} is unknown", f"Use only {known}", code="REFERENCES_UNKNOWN_FIELD")
        for name in entry
        if name not in _FIELDS
    ]
    missing = [name for name in _FIELDS if not isinstance(entry.get(name), str) or not entry[name].strip()]
    remedy, code = "Write it in double quotes", "REFERENCES_MISSING_FIELD"
    return faults + [Fault(place, f"'{name}' is missing, empty or not text", remedy, code=code) for name in missing]


_FORMAT = "errata-tfidf-1"
_logger = logging.getLogger(__name__)


def check_consistency() -> None:
    """Raises MissingExtraError if texts cannot be compared here."""
    require("consistency", "eval", "sklearn")


@dataclass(frozen=True)
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
            words = f"{len(self.words)} words ({len(set(self.words))} distinct)"
            what = f"{words} do not fit weights of shape {self.idf.shape}"
            remedy = "Give one weight for each word of the vocabulary"
            raise InputError(what, remedy=remedy, code="TERM_WEIGHTS_INVALID")
        if not bool(np.isfinite(self.idf).all() and (self.idf > 0).all()):
            what = "a word's weight is not a positive number"
            raise InputError(what, remedy="Fit the weights again", code="TERM_WEIGHTS_INVALID")

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
            what = f"the corpus for TF-IDF cannot be used: {error}"
            raise InputError(what, remedy="Give more text", code="CORPUS_TOO_SMALL") from error
        return cls(tuple(vectoriser.get_feature_names_out().tolist()), np.asarray(vectoriser.idf_, dtype=np.float64))

    @classmethod
    def read(cls, path: Path) -> TermWeights:
        """Read a file that ``write`` wrote.

        Raises:
            InputError: if it has another form.
        """
        whole = _json(path)
        if (
            not isinstance(whole, dict)
            or whole.get("format") != _FORMAT
            or not _is_list_of(whole.get("words"), str)
            or not _is_list_of(whole.get("idf"), int | float)
        ):
            what = f"{path} is not of the format {_FORMAT!r}"
            raise InputError(what, remedy="Give a file that errata wrote", code="FILE_WRONG_FORMAT")
        return cls(tuple(whole["words"]), np.array(whole["idf"], dtype=np.float64))

    @classmethod
    def read_published(cls, vocabulary: Path, idf: Path) -> TermWeights:
        """Read the two files that are published with ROME: a JSON object word -> index, and a NumPy array (.npy).

        Raises:
            InputError: if one of them has another form, or they do not fit together.
        """
        index = _json(vocabulary)
        remedy, code = "Give the vocabulary as JSON (word -> index) and the weights as .npy", "TERM_WEIGHTS_INVALID"
        if not isinstance(index, dict) or sorted(index.values(), key=repr) != sorted(range(len(index)), key=repr):
            raise InputError(f"{vocabulary} does not number its words from 0", remedy=remedy, code=code)
        try:
            weights = np.load(idf, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{idf} cannot be read as an array: {error}", remedy=remedy, code=code) from error
        if not isinstance(weights, np.ndarray) or weights.dtype.kind != "f":
            raise InputError(f"{idf} is not an array of floating-point numbers", remedy=remedy, code=code)
        return cls(tuple(sorted(index, key=lambda word: index[word])), weights.astype(np.float64).reshape(-1))

    def write(self, path: Path) -> None:
        """Write them as JSON, completely or not at all."""
        write_json(path, {"format": _FORMAT, "words": list(self.words), "idf": self.idf.tolist()})

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, words) term frequency times IDF, each of length 1, or 0 if it has no word of the vocabulary."""
        return np.asarray(self._vectoriser.transform(texts).toarray(), dtype=np.float64)

    @cached_property
    def _vectoriser(self) -> Any:
        check_consistency()
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(vocabulary={word: index for index, word in enumerate(self.words)})
        vectoriser.idf_ = self.idf
        return vectoriser


def corpus_weights(corpus: str, *, cache: Path | None = None) -> TermWeights:
    """The weights of a corpus (see ``open_corpus``), fitted once and cached: of Wikipedia that takes minutes.

    Args:
        cache: directory; by default in the user's cache.

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
        except OutputError as error:  # not fatal: only the next run has to compute them again
            _logger.warning("the weights of words cannot be cached: %s", error)
        return weights


def _json(path: Path) -> Any:
    return read_json(path, path, remedy="Give a complete JSON file", code="TERM_WEIGHTS_INVALID")


def _is_list_of(value: object, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in value)


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
        expected = references_of(fact, references)
        if fact.id not in written or not expected:
            continue
        said = " ".join(text.text for text in written[fact.id])
        ours, theirs = weights.vectors([said, " ".join(expected)])
        if not theirs.any():
            place = f"relation {fact.relation!r}, target {fact.target!r}"
            what, remedy = "no word of the vocabulary is in these texts", "Fit the weights on a corpus of such texts"
            faults.append(Fault(place, what, remedy, code="REFERENCES_WITHOUT_KNOWN_WORDS"))
        found.append(Record(fact.id, Metric.CONSISTENCY, written[fact.id][0].prompt, 100 * float(ours @ theirs), said))
    if faults:
        raise FaultsError("the references", list(dict.fromkeys(faults)))
    return found


def absent_consistency(facts: Sequence[Fact], references: References | None) -> dict[Metric, str]:
    """The reason, if there is no fact with all that it takes."""
    if missing := absent_fields([Metric.FLUENCY], facts):
        reason = missing[Metric.FLUENCY]
    elif references is None:
        reason = "no reference texts were given"
    elif missing := absent_fields([Metric.CONSISTENCY], facts):
        reason = missing[Metric.CONSISTENCY]
    elif not any(fact.generation and references_of(fact, references) for fact in facts):
        reason = "there are no reference texts for any fact's relation and target"
    else:
        return {}
    return {Metric.CONSISTENCY: reason}
