"""The contract between editors and everything that measures them.

An ``Answerer`` can be queried, a ``KnowledgeEditor`` edits, an ``Edit`` is its result, which can be saved.
``LanguageModel`` is an ``Answerer`` and ``Patch`` an ``Edit``; evaluation and benchmarks need nothing else of a method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.generation import Stop
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.prompts import Pair, TargetScore
from errata.results.metrics import Ability
from errata.utils.progress import Report, silent

Undo: TypeAlias = Literal["any", "last"]


@runtime_checkable
class Answerer(Protocol):
    """A model, edited or not, that can be queried.

    Attributes:
        name: for messages and records.
        abilities: the queries that it supports. A metric that needs another one is reported as absent, with the reason.
        tokenizer: for chat templates, and to count and decode tokens.
        context_length: the most tokens of a prompt and its continuation together.
    """

    @property
    def name(self) -> str: ...

    @property
    def abilities(self) -> frozenset[Ability]: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def context_length(self) -> int: ...

    def score(
        self, pairs: Sequence[Pair], *, joiner: str | None = None, token_budget: int = ..., report: Report = ...
    ) -> list[TargetScore]:
        """The likelihood of each target after its prompt. Batching and padding do not change it.

        Args:
            joiner: between prompt and target, for pairs without a joiner; None: see ``facts.joining.joiner_of``.
            token_budget: padded tokens of one forward pass.

        Raises:
            InputError: if ``likelihood`` is not one of the abilities.
            NonFiniteError: naming the prompts, if a logit is not finite.
        """
        ...

    def next_token_log_probabilities(self, prompts: Sequence[str], *, token_budget: int = ...) -> Tensor:
        """(prompts, vocabulary) natural log-probabilities of every token after each prompt, finite or not.

        Args:
            token_budget: padded tokens of one forward pass.

        Raises:
            InputError: if ``likelihood`` is not one of the abilities.
        """
        ...

    def continue_texts(
        self,
        prompts: Sequence[str],
        *,
        new_tokens: int | Sequence[int],
        top_k: int = 1,
        uniforms: Tensor | None = None,
        stop: Stop | None = None,
        end_at_eos: bool = True,
        token_budget: int = ...,
        report: Report = ...,
    ) -> list[str]:
        """The continuation of each prompt, without the prompt; see ``models.generation.continue_rows``.

        Args:
            report: progress callback, in prompts.

        Raises:
            InputError: if ``generation`` is not one of the abilities.
            NonFiniteError: naming the prompts, if a logit is not finite.
        """
        ...

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """For each prompt, the ids of the facts that it triggers; empty for editors without a trigger."""
        ...


@runtime_checkable
class Base(Answerer, Protocol):
    """A model before any edit: a ``LanguageModel``, or one whose weights are not at hand."""

    name: str

    def fingerprint(self) -> str:
        """Digest of what decides its answers, as far as it is known."""
        ...


def with_weights(base: Base, what: str) -> LanguageModel:
    """The base, for what needs its weights.

    Raises:
        InputError: if they are not at hand.
    """
    if not isinstance(base, LanguageModel):
        raise InputError(
            f"{what} needs the weights of the model, and those of {base.name!r} are not at hand",
            remedy="Use --method retrieval, substitute or post_edit with the lexical or the sentence embedder",
            code="ENDPOINT_WITHOUT_WEIGHTS",
        )
    return base


B = TypeVar("B", bound=Base)


@dataclass(frozen=True, slots=True)
class ModelView(Generic[B]):
    """What a view of an edited model takes from the model itself."""

    model: B

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    @property
    def context_length(self) -> int:
        return self.model.context_length


class OnlyGenerates:
    """An answerer whose likelihoods do not exist."""

    __slots__ = ()

    abilities: ClassVar[frozenset[Ability]] = frozenset(("generation",))

    def score(
        self,
        pairs: Sequence[Pair],
        *,
        joiner: str | None = None,
        token_budget: int = TOKEN_BUDGET,
        report: Report = silent,
    ) -> list[TargetScore]:
        """Raises InputError."""
        raise self._no_likelihood()

    def next_token_log_probabilities(self, prompts: Sequence[str], *, token_budget: int = TOKEN_BUDGET) -> Tensor:
        """Raises InputError."""
        raise self._no_likelihood()

    def _no_likelihood(self) -> InputError:
        return InputError(
            f"{getattr(self, 'name', 'this model')!r} only generates text, so it has no likelihoods",
            remedy="Measure generated answers",
            code="ABILITY_MISSING",
        )


@runtime_checkable
class Edit(Protocol):
    """The result of one ``apply``: its facts, and all that is needed to restore it."""

    @property
    def facts(self) -> tuple[Fact, ...]: ...

    @property
    def stored_bytes(self) -> int:
        """Size in a file: of its tensors, or of its facts where it has none."""
        ...

    def save(self, path: Path) -> None:
        """Write one file: safetensors with a JSON header."""
        ...


@runtime_checkable
class EditedBatch(Protocol):
    """Progress of ``apply``: the facts of one batch, and its wall time in seconds, preparation excluded."""

    @property
    def facts(self) -> tuple[Fact, ...]: ...

    @property
    def seconds(self) -> float: ...


OnBatch: TypeAlias = Callable[[EditedBatch], None]


@runtime_checkable
class KnowledgeEditor(Protocol):
    """Edits facts into a model.

    Attributes:
        method: its name in tables and records.
        undo: which edits can be removed: ``any``, or only the ``last``.
        needs: optional fact fields that it requires, such as ``old``.
    """

    @property
    def method(self) -> str: ...

    @property
    def undo(self) -> Undo: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def apply(self, facts: Sequence[Fact], *, on_batch: OnBatch | None = None) -> Edit:
        """Edit all facts. On any failure, one in ``on_batch`` included, nothing has changed.

        Args:
            on_batch: called after each batch, with the batch in effect.
        """
        ...

    def remove(self, edit: Edit) -> None:
        """Take an edit out, bit for bit.

        Raises:
            InputError: if it is not in, or not the last one where ``undo`` is ``last``.
        """
        ...

    def restore(self, edit: Edit) -> None:
        """Put a loaded edit in, on the state that it was made on.

        Raises:
            InputError: if the present state is another one; nothing has changed then.
        """
        ...

    def view(self) -> Answerer:
        """The edited model in its present state."""
        ...

    def fingerprint(self) -> str:
        """Digest of the model's weights and the editor's state together; equal states, equal fingerprint."""
        ...
