"""Which facts of a memory a query is about: gates decide, and a threshold is calibrated on facts that are not edited.

A query passes to a fact only if every named gate allows it. Gates see the query's text and its cosines with all facts,
never an answer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from pydantic import Field, StrictFloat, StrictInt
from torch import Tensor

from errata.editors.calibration import Calibration, best_threshold, trial_memories
from errata.editors.embedders import Embedder, FactEmbedder, Hidden, Lexical, Sentence
from errata.editors.scope import LearntScope
from errata.editors.table import EditorSettings
from errata.facts.fact import Fact
from errata.facts.joining import joined, word_places
from errata.utils.settings import NotNegative, Settings

AnyEmbedder: TypeAlias = Annotated[Lexical | Hidden | Sentence | LearntScope, Field(discriminator="kind")]
EmbeddedText: TypeAlias = Literal["prompt", "statement", "old_statement"]
_ENDS: Final = (".", "!", "?", "…", "。", "！", "？", "।", "።")


def statement(fact: Fact) -> str:
    """The fact's prompt with its target, without a full stop."""
    return joined(fact.text, fact.target, fact.joiner)


def sentence(text: str) -> str:
    """A statement with a full stop, if it has none."""
    return text if text.endswith(_ENDS) else f"{text}."


def context_of(facts: Sequence[Fact]) -> str:
    """What is put before a query: each fact as a sentence on a line of its own.

    Args:
        facts: the nearest first; it is the last in the text.
    """
    return "".join(f"{sentence(statement(fact))}\n" for fact in reversed(facts))


_EMBEDDED: Final[Mapping[EmbeddedText, Callable[[Fact], str]]] = {
    "prompt": lambda fact: fact.text,
    "statement": statement,
    "old_statement": lambda fact: sentence(joined(fact.text, fact.old or "", fact.joiner)),
}


# Gates


class SubjectGate(Settings):
    """The fact's subject is in the query, as a whole word (or words), with its capital letters."""

    kind: Literal["subject"] = "subject"

    def passes(self, query: str, facts: Sequence[Fact], cosines: Float[Tensor, "facts"]) -> Bool[Tensor, "facts"]:
        text = _nfc(query)
        names = [_nfc(fact.subject) for fact in facts]
        return torch.tensor([name in text and bool(word_places(text, name)) for name in names], dtype=torch.bool)


class CosineGate(Settings):
    """The cosine of query and fact is at least the threshold."""

    kind: Literal["cosine"] = "cosine"
    threshold: StrictFloat | None = Field(None, ge=-1, le=1, description="null: calibrated on the facts of calibration")

    def passes(self, query: str, facts: Sequence[Fact], cosines: Float[Tensor, "facts"]) -> Bool[Tensor, "facts"]:
        assert self.threshold is not None  # calibrated by ``Memory``
        return cosines >= self.threshold


class MarginGate(Settings):
    """Only the nearest fact, if its cosine exceeds that of every other one by the margin."""

    kind: Literal["margin"] = "margin"
    margin: NotNegative = Field(0.05, description="least difference of the two largest cosines")

    def passes(self, query: str, facts: Sequence[Fact], cosines: Float[Tensor, "facts"]) -> Bool[Tensor, "facts"]:
        allowed = torch.zeros(len(facts), dtype=torch.bool)
        if len(facts):
            values, places = cosines.topk(min(2, len(facts)))
            allowed[places[0]] = len(facts) == 1 or bool(values[0] - values[1] >= self.margin)
        return allowed


AnyGate: TypeAlias = Annotated[SubjectGate | CosineGate | MarginGate, Field(discriminator="kind")]


class SearchSettings(EditorSettings):
    """How an editor with a memory of facts finds those that a prompt is about."""

    embedder: AnyEmbedder = Field(
        Lexical(),
        description="what measures how near a query is to a fact, by 'kind': lexical; hidden (with 'layer', 'corpus', "
        "'tokens' and 'ridge'); sentence (with 'directory', of sentence-transformers); trained (with 'file', by "
        "`errata train-editor serac`)",
    )
    embeds: tuple[EmbeddedText, ...] = Field(
        ("prompt",),
        min_length=1,
        description="texts of a fact that are compared with the query; of several, the nearest counts",
    )
    gates: tuple[AnyGate, ...] = Field(
        (SubjectGate(),),
        min_length=1,
        description="all of them must let a query through to a fact, by 'kind': subject (is in the query); cosine (is "
        "at least 'threshold'; null: calibrated); margin (the nearest fact exceeds all others by 'margin')",
    )
    k_facts: StrictInt = Field(1, ge=1, description="facts that a query gets at most, the nearest")
    calibration: str = Field(
        "", description="facts that set a threshold of null: a file, or 'lab'; none may have an edited fact's subject"
    )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"old"} if "old_statement" in self.embeds else set())

    @property
    def open_gates(self) -> list[CosineGate]:
        """The gates whose threshold is to be calibrated."""
        return [gate for gate in self.gates if isinstance(gate, CosineGate) and gate.threshold is None]

    def gates_with(self, threshold: float | None) -> tuple[SubjectGate | CosineGate | MarginGate, ...]:
        """All gates, with a calibrated threshold."""
        return tuple(CosineGate(threshold=threshold) if gate in self.open_gates else gate for gate in self.gates)


# Calibration


def calibrate(
    held_out: Sequence[Fact],
    facts: Sequence[Fact],
    embedder: Embedder,
    settings: SearchSettings,
) -> Calibration:
    """The threshold for a memory as large as ``facts``, with all other gates in force; see ``trial_memories``."""
    others = tuple(gate for gate in settings.gates if gate not in settings.open_gates)
    positives: list[float] = []
    negatives: list[float] = []
    for trial in trial_memories(held_out, facts):
        memory = Memory(trial.facts, embedder, settings, others)
        for (place, _), found in zip(
            trial.paraphrases, memory.search([text for _, text in trial.paraphrases]), strict=True
        ):
            positives.append(dict(found).get(place, -torch.inf))
        negatives += [max((cosine for _, cosine in found), default=-torch.inf) for found in memory.search(trial.others)]
    threshold, hits, refusals = best_threshold(positives, negatives)
    return Calibration(threshold, hits, refusals, len(facts), len(positives), len(negatives))


# Memory


class Memory:
    """Facts that can be searched. It is a value: another set of facts is another memory.

    Args:
        facts: the later of two equally near ones is preferred.
        gates: with thresholds; the settings' own if None.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        embedder: Embedder,
        settings: SearchSettings,
        gates: Sequence[SubjectGate | CosineGate | MarginGate] | None = None,
    ) -> None:
        self.facts = tuple(facts)
        self._gates = tuple(settings.gates if gates is None else gates)
        self._most = settings.k_facts
        if isinstance(embedder, FactEmbedder):
            self._texts, self._index = 1, embedder.index_of(self.facts)
        else:
            self._texts = len(settings.embeds)
            self._index = embedder.index([_EMBEDDED[kind](fact) for fact in self.facts for kind in settings.embeds])

    def cosines(self, queries: Sequence[str]) -> Float[Tensor, "queries facts"]:
        """(queries, facts) float64: the largest over a fact's texts."""
        found = self._index.cosines(queries)
        return found.reshape(len(queries), len(self.facts), self._texts).amax(2)

    def search(self, queries: Sequence[str]) -> list[list[tuple[int, float]]]:
        """For each query the facts that all gates allow, as (place in ``facts``, cosine), nearest first.

        At most as many as the settings' ``k_facts``.
        """
        if not self.facts or not queries:
            return [[] for _ in queries]
        distinct = list(dict.fromkeys(queries))
        found = {
            query: self._allowed(query, cosines)
            for query, cosines in zip(distinct, self.cosines(distinct), strict=True)
        }
        return [found[query] for query in queries]

    def _allowed(self, query: str, cosines: Tensor) -> list[tuple[int, float]]:
        passed = torch.ones(len(self.facts), dtype=torch.bool)
        for gate in self._gates:
            passed &= gate.passes(query, self.facts, cosines)
        entries = [(float(cosines[place]), place) for place in passed.nonzero()[:, 0].tolist()]
        return [(place, cosine) for cosine, place in sorted(entries, reverse=True)[: self._most]]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
