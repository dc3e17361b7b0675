"""A model whose finished answers are rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from errata.editors.contract import Base, ModelView, OnlyGenerates
from errata.editors.memory_search import Memory
from errata.editors.retrieval import QueryReader
from errata.facts.fact import Fact
from errata.models.generation import Stop
from errata.models.language_model import CACHE_BUDGET
from errata.utils.progress import Report, silent


@dataclass(frozen=True, slots=True)
class AnswerToEdit:
    """A finished answer to a question about facts.

    Attributes:
        query: the prompt; of a chat the user's message.
        text: the answer, as the prompt's continuation.
        facts: that the question is about, nearest first; at least one.
    """

    query: str
    text: str
    facts: tuple[Fact, ...]


@runtime_checkable
class AnswerRewriter(Protocol):
    def rewrite(self, answers: Sequence[AnswerToEdit]) -> list[str]:
        """Each answer as it should be; the same text where nothing is to change."""
        ...


@dataclass(frozen=True, slots=True)
class Rewritten(OnlyGenerates, ModelView[Base]):
    """The model with its finished answers rewritten; see ``errata.editors.contract.Answerer``.

    Likelihoods do not exist: the answer is not the model's own. An answer to a question about no fact is the model's,
    character for character.
    """

    reader: QueryReader
    memory: Memory
    rewriter: AnswerRewriter

    def continue_texts(
        self,
        prompts: Sequence[str],
        *,
        new_tokens: int | Sequence[int],
        top_k: int = 1,
        uniforms: Tensor | None = None,
        stop: Stop | None = None,
        end_at_eos: bool = True,
        token_budget: int = CACHE_BUDGET,
        report: Report = silent,
    ) -> list[str]:
        """The model's continuations, rewritten when they are complete; ``stop`` sees them as they were."""
        texts = self.model.continue_texts(
            prompts,
            new_tokens=new_tokens,
            top_k=top_k,
            uniforms=uniforms,
            stop=stop,
            end_at_eos=end_at_eos,
            token_budget=token_budget,
            report=report,
        )
        queries = [self.reader.read(prompt).text for prompt in prompts]
        hits = [(place, facts) for place, facts in enumerate(self._hits(queries)) if facts]
        answers = [AnswerToEdit(queries[place], texts[place], facts) for place, facts in hits]
        for (place, _), text in zip(hits, self.rewriter.rewrite(answers) if answers else (), strict=True):
            texts[place] = text
        return texts

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """For each prompt, the ids of the facts that it is about, whether or not its answer changes."""
        return [
            tuple(fact.id for fact in facts)
            for facts in self._hits([self.reader.read(prompt).text for prompt in prompts])
        ]

    def _hits(self, queries: Sequence[str]) -> list[tuple[Fact, ...]]:
        found = self.memory.search(queries)
        return [tuple(self.memory.facts[place] for place, _ in entry) for entry in found]
