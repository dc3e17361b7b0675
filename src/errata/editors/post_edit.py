"""``post_edit``: a trained model rewrites the finished answer to a question about a fact, sentence by sentence.

Song et al. 2024, "Knowledge Editing on Black-box Large Language Models" (postEdit), arXiv:2402.08631. The base answers
untouched; a memory finds the fact that the question is about; a rewriting model, small and local, changes the answer as
little as needed, or retains it. The base may be behind an endpoint: only its text is read. ``rewriting`` has the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field, StrictInt, field_validator

from errata.editors.fact_memory import FactMemory
from errata.editors.memory_search import SearchSettings
from errata.editors.retrieval import QueryReader
from errata.editors.rewriting import POST_EDIT, answers_of, replacement, request, rewriting_model
from errata.editors.rewritten import AnswerToEdit, Rewritten
from errata.editors.substitute import substituted
from errata.editors.table import trainer_row
from errata.editors.trained_editor import TrainedEditor
from errata.errors import InputError
from errata.facts.joining import joined
from errata.facts.sentences import sentences
from errata.models.language_model import LanguageModel
from errata.utils.progress import silent


class PostEditSettings(SearchSettings):
    """Sentences of the answer rewritten by a trained model."""

    rewriter: str = Field("", description="the file written by `errata train-editor post_edit`")
    new_tokens: StrictInt = Field(
        32,
        ge=1,
        description="tokens of one replacement at most; a longer one is not made (published: 512)",
    )

    @field_validator("rewriter")
    @classmethod
    def _absolute(cls, rewriter: str) -> str:
        return str(Path(rewriter).absolute()) if rewriter else rewriter

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"old"}


def with_context(query: str, parts: Sequence[str]) -> list[str]:
    """What the rewriting model reads for each sentence of an answer.

    The first one is preceded by the query's last sentence, which it completes or answers.
    """
    asked = next((part for part in reversed(sentences(query)) if part.strip()), "")
    texts: list[str] = []
    for part in parts:
        texts.append(joined(asked, part) if asked and part.strip() and not part[0].isspace() else f"{asked}{part}")
        asked = "" if part.strip() else asked
    return texts


@dataclass(frozen=True, slots=True)
class SentenceRewriter:
    """Rewrites answers with a trained model; see ``rewritten.AnswerRewriter``.

    Of several facts each reads what the nearer ones have made of the answer.
    """

    model: LanguageModel
    new_tokens: int

    def rewrite(self, answers: Sequence[AnswerToEdit]) -> list[str]:
        texts = [answer.text for answer in answers]
        for rank in range(max(len(answer.facts) for answer in answers)):
            places = [place for place, answer in enumerate(answers) if rank < len(answer.facts)]
            current = [
                replace(answers[place], text=texts[place], facts=answers[place].facts[rank:][:1]) for place in places
            ]
            for place, text in zip(places, self._by_one_fact(current), strict=True):
                texts[place] = text
        return texts

    def _by_one_fact(self, answers: Sequence[AnswerToEdit]) -> list[str]:
        parts = [sentences(answer.text) for answer in answers]
        requests = [
            [request(answer.facts[0], text) for text in with_context(answer.query, own)]
            for answer, own in zip(answers, parts, strict=True)
        ]
        distinct = list(dict.fromkeys(text for own in requests for text in own))
        found = dict(zip(distinct, answers_of(self.model, distinct, self.new_tokens, silent), strict=True))
        return [
            "".join(_rewritten(part, found[text]) for part, text in zip(own, asked, strict=True))
            for own, asked in zip(parts, requests, strict=True)
        ]


def _rewritten(part: str, answer: str) -> str:
    change = replacement(answer, part)
    return part if change is None else substituted(part, [(change.old, change.new)])


@dataclass(slots=True)
class PostEdit(FactMemory[PostEditSettings]):
    """See the module and ``FactMemory``.

    Raises:
        InputError: if there is no trained rewriting model, or it cannot be loaded.
    """

    _trained: TrainedEditor = field(init=False)
    _rewriter: SentenceRewriter = field(init=False)

    registered: ClassVar[str] = POST_EDIT

    def __post_init__(self) -> None:
        FactMemory.__post_init__(self)
        if not self.settings.rewriter:
            raise InputError(
                "post_edit needs a model that was trained to rewrite answers",
                remedy=trainer_row(POST_EDIT).remedy(),
                code="TRAINED_EDITOR_MISSING",
            )
        self._trained = TrainedEditor.read(Path(self.settings.rewriter), POST_EDIT)
        self._rewriter = SentenceRewriter(rewriting_model(self._trained, self.model), self.settings.new_tokens)

    def digests(self) -> dict[str, str]:
        return {**FactMemory.digests(self), "rewriter": self._trained.digest}

    def view(self) -> Rewritten:
        """The model with the present facts in its answers."""
        return Rewritten(self.model, QueryReader(self.model.tokenizer), self._state.search.memory, self._rewriter)
