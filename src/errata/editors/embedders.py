"""Embedders: how similar two texts are, as the cosine of their vectors. Settings first, then what they make."""

from __future__ import annotations

import json
import math
import re
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field, StrictInt
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from errata.editors.contract import Base, with_weights
from errata.errors import InputError
from errata.facts.fact import Fact, FactSet
from errata.models.language_model import TOKEN_BUDGET, LanguageModel, Site
from errata.models.prompts import encode, length_batches, pad
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import SecondMoment
from errata.utils.files import file_text, is_there, reading
from errata.utils.settings import Positive, Settings
from errata.utils.tensors import to_float64

_SIZES: Final = (3, 4, 5)  # of character n-grams
_CACHED_TEXTS: Final = 1 << 14
_QUERIES_AT_ONCE: Final = 64
_NEUTRAL_TOKENS: Final = 32  # of a neutral prompt, which is the beginning of a document


@runtime_checkable
class TextIndex(Protocol):
    """Texts to which others can be compared."""

    def cosines(self, queries: Sequence[str]) -> Float[Tensor, "queries texts"]:
        """(queries, texts) float64 on the CPU; 0 for a text without any feature."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Makes an index; may remember the vectors of texts that it has seen."""

    def index(self, texts: Sequence[str]) -> TextIndex: ...


@runtime_checkable
class FactEmbedder(Embedder, Protocol):
    """Compares queries with facts instead of texts; it was trained.

    Attributes:
        held_out: facts that it was not trained on, for a threshold.
        digest: of what was trained.
    """

    held_out: FactSet
    digest: str

    def index_of(self, facts: Sequence[Fact]) -> TextIndex:
        """An index with one value for each fact."""
        ...


# Settings


class Lexical(Settings):
    """Character n-grams, weighted by their rarity among the facts. Needs no model."""

    kind: Literal["lexical"] = "lexical"

    def embedder(self, model: Base) -> Embedder:
        return LexicalEmbedder()


class Hidden(Settings):
    """The model's own hidden states: the mean over a text's tokens, centred and whitened."""

    kind: Literal["hidden"] = "hidden"
    layer: StrictInt | None = Field(None, ge=0, description="the block whose output is read; null: the middle one")
    corpus: str = Field("builtin", description="the text for centring and whitening: 'builtin', 'lab' or a path")
    tokens: StrictInt = Field(8192, ge=1, description="of that text, at most")
    ridge: Positive = Field(1e-3, description="added to the whitening's eigenvalues, in units of their mean")

    def embedder(self, model: Base) -> Embedder:
        model = with_weights(model, "the embedder 'hidden'")
        layer = len(model.blocks) // 2 if self.layer is None else self.layer
        model.check_layers([layer])
        return HiddenEmbedder(model, self, layer)


class Sentence(Settings):
    """A local directory of sentence-transformers, such as all-MiniLM-L6-v2, the published choice."""

    kind: Literal["sentence"] = "sentence"
    directory: str = Field(description="the directory, with modules.json")

    def embedder(self, model: Base) -> Embedder:
        return SentenceEmbedder(Path(self.directory))


# Lexical


class LexicalEmbedder:
    """tf·idf of character 3- to 5-grams inside words, hashed to 32 bits, of length 1.

    Words are what whitespace separates, without punctuation at their ends, case-folded, with one space on both sides; a
    shorter word is one n-gram. idf = ln((1 + N)/(1 + df)) + 1 over the N texts of the index; a query's n-grams that no
    text has count in its length.
    """

    def __init__(self) -> None:
        self._counts = lru_cache(maxsize=_CACHED_TEXTS)(_ngram_counts)

    def index(self, texts: Sequence[str]) -> TextIndex:
        return _LexicalIndex(self, texts)

    def counts(self, text: str) -> tuple[Tensor, Tensor]:
        """The columns of a text, ascending, and the count in each (float64)."""
        return self._counts(text)


def _ngram_counts(text: str) -> tuple[Tensor, Tensor]:
    found: Counter[int] = Counter()
    for word in unicodedata.normalize("NFC", text).casefold().split():
        while word and unicodedata.category(word[0])[0] == "P":
            word = word[1:]
        while word and unicodedata.category(word[-1])[0] == "P":
            word = word[:-1]
        if not word:
            continue
        padded = f" {word} "
        for size in _SIZES:
            # The hash must be the same in every process, as Python's own is not.
            grams = [padded[start : start + size] for start in range(max(1, len(padded) - size + 1))]
            found.update(zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in grams)
            if len(padded) <= size:
                break
    columns = sorted(found)
    counts = [float(found[column]) for column in columns]
    return torch.tensor(columns, dtype=torch.long), torch.tensor(counts, dtype=torch.float64)


class _LexicalIndex:
    def __init__(self, embedder: LexicalEmbedder, texts: Sequence[str]) -> None:
        self._embedder = embedder
        self._size = len(texts)
        found = [embedder.counts(text) for text in texts]
        rows = torch.repeat_interleave(torch.tensor([len(columns) for columns, _ in found], dtype=torch.long))
        columns = torch.cat([torch.empty(0, dtype=torch.long), *(columns for columns, _ in found)])
        counts = torch.cat([torch.empty(0, dtype=torch.float64), *(counts for _, counts in found)])
        # Only columns that some text has take memory.
        self._columns, places = torch.unique(columns, return_inverse=True)
        frequency = torch.bincount(places, minlength=len(self._columns)).double()
        self._rarity = ((1 + self._size) / (1 + frequency)).log() + 1
        self._unseen = math.log(1 + self._size) + 1
        weights = counts * self._rarity[places]
        lengths = torch.zeros(self._size, dtype=torch.float64).index_add_(0, rows, weights.square()).sqrt()
        self._matrix = torch.sparse_coo_tensor(
            torch.stack([rows, places]),
            weights / lengths[rows],
            (self._size, len(self._columns)),
            is_coalesced=True,
            check_invariants=True,
        )

    def cosines(self, queries: Sequence[str]) -> Tensor:
        parts = [
            self._cosines(queries[start : start + _QUERIES_AT_ONCE])
            for start in range(0, len(queries), _QUERIES_AT_ONCE)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, self._size, dtype=torch.float64)

    def _cosines(self, queries: Sequence[str]) -> Tensor:
        vectors = torch.zeros(len(self._columns), len(queries), dtype=torch.float64)
        for number, query in enumerate(queries):
            columns, counts = self._embedder.counts(query)
            places = torch.searchsorted(self._columns, columns).clamp_max(max(len(self._columns) - 1, 0))
            seen = self._columns[places] == columns if len(self._columns) else torch.zeros(len(columns)).bool()
            inside = counts[seen] * self._rarity[places[seen]]
            squares = float(inside.square().sum() + (counts[~seen] * self._unseen).square().sum())
            if squares > 0:
                vectors[places[seen], number] = inside / math.sqrt(squares)
        return torch.sparse.mm(self._matrix, vectors).T


# Vectors


class _VectorIndex:
    """Texts as rows of vectors of length 1 (or 0)."""

    def __init__(self, embedder: _VectorEmbedder, texts: Sequence[str]) -> None:
        self._embedder = embedder
        self._vectors = embedder.vectors(texts)

    def cosines(self, queries: Sequence[str]) -> Tensor:
        if not queries or not len(self._vectors):
            return torch.zeros(len(queries), len(self._vectors), dtype=torch.float64)
        return (self._embedder.vectors(queries) @ self._vectors.T).clamp(-1, 1)  # rounding may exceed 1


class _VectorEmbedder(ABC):
    """Remembers the vectors of the latest texts."""

    def __init__(self) -> None:
        self._known: dict[str, Tensor] = {}

    def index(self, texts: Sequence[str]) -> TextIndex:
        return _VectorIndex(self, texts)

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(texts, d) float64, each of length 1, or 0."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            found = to_float64(self.embed(new)).cpu()
            lengths = found.norm(dim=1, keepdim=True)
            self._known |= zip(new, found / lengths.masked_fill(lengths == 0, 1.0), strict=True)
        result = torch.stack([self._known[text] for text in texts]) if texts else torch.zeros(0, 0).double()
        while len(self._known) > _CACHED_TEXTS:
            del self._known[next(iter(self._known))]
        return result

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Tensor:
        """(texts, d), of any length."""


class HiddenEmbedder(_VectorEmbedder):
    """x ↦ L⁻¹(x̄ − μ): x̄ is the mean of a block's output over a text's tokens, μ that over neutral prompts.

    LLᵀ = C + ridge · (mean eigenvalue of C) · I, with C the second moment of the block's output over text. Cosines are
    those of C^{−1/2}(x̄ − μ), since L⁻¹ differs from it by a rotation. The first token is left out of every mean and of
    C: BOS, or the token that takes its place as an attention sink, says nothing of the text.
    """

    def __init__(self, model: LanguageModel, settings: Hidden, layer: int) -> None:
        super().__init__()
        self._model, self._settings, self._layer = model, settings, layer

    def embed(self, texts: Sequence[str]) -> Tensor:
        mean, lower = self._whitening
        centred = self.means([row.ids for row in encode(self._model.tokenizer, texts)]) - mean
        return torch.linalg.solve_triangular(lower, centred.T, upper=False).T

    def means(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(rows, d) float64: the mean output over a row's tokens but the first; of an only token that one's."""
        width = self._model.weight(self._layer).shape[0]
        found = torch.zeros(len(rows), width, dtype=torch.float64)
        filled = [index for index, row in enumerate(rows) if row]
        for places in length_batches([len(rows[index]) for index in filled], token_budget=TOKEN_BUDGET):
            indices = [filled[place] for place in places]
            for index, states in zip(indices, self._states([rows[index] for index in indices]), strict=True):
                found[index] = states.mean(0)
        return found

    def _states(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each row (tokens, d) float64 on the CPU, without the first token if there is another one."""
        batch = pad(rows, left=False, device=self._model.device)
        with self._model.capture({Site.BLOCK: [self._layer]}) as read, torch.no_grad():
            self._model.run_captured(batch.inputs())
        states = to_float64(read[Site.BLOCK, self._layer]).cpu()
        return [states[place, min(1, len(row) - 1) : len(row)] for place, row in enumerate(rows)]

    @cached_property
    def _whitening(self) -> tuple[Tensor, Tensor]:
        """μ and L, from the beginning of the corpus."""
        settings = self._settings
        moment = SecondMoment.zeros(self._model.weight(self._layer).shape[0])
        neutral: list[tuple[int, ...]] = []
        length = min(256, self._model.context_length)
        for text in open_corpus(settings.corpus).documents():
            if moment.count >= settings.tokens:
                break
            row = encode(self._model.tokenizer, [text])[0].ids[:length]
            if len(row) > 1:
                moment.add(self._states([row])[0][: settings.tokens - moment.count])
                neutral.append(row[:_NEUTRAL_TOKENS])
        if not neutral:
            what = f"the corpus {settings.corpus!r} has no text to centre hidden states by"
            raise InputError(what, remedy="Give a text file", code="CORPUS_TOO_SHORT")
        matrix = moment.mean
        matrix.diagonal().add_(settings.ridge * matrix.trace() / len(matrix))
        return self.means(neutral).mean(0), torch.linalg.cholesky(matrix)


_MODULE: Final = re.compile(r"sentence_transformers\.(?:[\w.]+\.)?(Transformer|Pooling|Normalize)")
_POOLING: Final = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}  # whether only the first counts


class SentenceEmbedder(_VectorEmbedder):
    """A sentence-transformers directory: an encoder, and the mean (or the first) of its last states.

    Raises:
        InputError: if the directory is no such model, or has other modules.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        remedy = (
            "Give a local directory of sentence-transformers, such as all-MiniLM-L6-v2, whose modules are a "
            "Transformer, Pooling (the mean or the first token) and perhaps Normalize"
        )
        with reading(f"the sentence encoder {str(directory)!r}", remedy=remedy, code="ENCODER_UNREADABLE"):
            parts = json.loads(file_text(directory / "modules.json"))
            paths = {_module_name(part["type"]): directory / part["path"] for part in parts}
            if list(paths) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
                raise ValueError(f"its modules are {', '.join(paths)}")
            pooling = json.loads(file_text(paths["Pooling"] / "config.json"))
            modes = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
            if len(modes) != 1 or modes[0] not in _POOLING:
                raise ValueError(f"it pools by {', '.join(modes) or 'nothing'}")
            self._first = _POOLING[modes[0]]
            limits = paths["Transformer"] / "sentence_bert_config.json"
            self._length = int(json.loads(file_text(limits)).get("max_seq_length") or 512) if is_there(limits) else 512
            self._tokenizer: Any = AutoTokenizer.from_pretrained(paths["Transformer"], local_files_only=True)
            model = AutoModel.from_pretrained(paths["Transformer"], local_files_only=True, dtype=torch.float32)
            self._model: Any = model.eval().requires_grad_(False)

    def embed(self, texts: Sequence[str]) -> Tensor:
        found: list[Tensor] = []
        for start in range(0, len(texts), _QUERIES_AT_ONCE):
            inputs = self._tokenizer(
                list(texts[start : start + _QUERIES_AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            )
            with torch.no_grad():
                states = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][:, :, None].to(states.dtype)
            found.append(states[:, 0] if self._first else (states * mask).sum(1) / mask.sum(1).clamp_min(1))
        return torch.cat(found)


def _module_name(path: str) -> str:
    found = _MODULE.fullmatch(path)
    return found[1] if found else path
