"""``retrieval``: the facts that a prompt is about are put before it; no weight changes.

``plain`` inserts the facts alone. ``ike`` precedes them by demonstrations (Zheng et al. 2023, "Can We Edit Factual
Knowledge by In-Context Learning?", EMNLP, arXiv:2305.12740): 32 in the published code, 4 that copy their fact, 12 that
apply it to a paraphrase, and 16 that keep a neighbour's answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Final, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import Field, StrictBool, StrictInt
from transformers import PreTrainedTokenizerBase

from errata.editors.calibration import facts_of
from errata.editors.contract import Answerer
from errata.editors.embedders import Embedder
from errata.editors.fact_memory import FactMemory, FactSearch, statement_key
from errata.editors.memory_search import Memory, SearchSettings, context_of, statement
from errata.editors.prompted import Insertion, Prompted, PromptedText
from errata.errors import InputError
from errata.facts.fact import QUESTION_LISTS, Fact, FactSet
from errata.facts.joining import joined, word_places
from errata.models.language_model import LanguageModel
from errata.models.prompts import ChatFrame, chat_frames

RETRIEVAL: Final = "retrieval"
INSTRUCTION: Final = "Answer with these facts:"  # to a chat model

ModeName: TypeAlias = Literal["plain", "ike", "demonstrations", "oracle", "ike_oracle", "definition"]


class RetrievalSettings(SearchSettings):
    """Facts in the prompt."""

    mode: ModeName = Field(
        "plain",
        description="plain: the facts; ike: demonstrations and one fact; demonstrations: a control, as ike without the "
        "fact; oracle and ike_oracle: with the right fact for every question of a fact, an upper bound; definition: as "
        "oracle, for concepts, with their new definition before everything",
    )
    pool: str = Field(
        "", description="facts for demonstrations: a file, or 'lab'; those on edited subjects are left out"
    )
    demonstrations: StrictInt = Field(32, ge=1, description="at most; an eighth copies, three update, the rest retains")
    nearest_last: StrictBool = Field(True, description="order of demonstrations; EasyEdit has the nearest first")
    self_copy: StrictBool = Field(True, description="the fact itself as the last demonstration; not in EasyEdit")


# What a prompt is about


@dataclass(frozen=True, slots=True)
class Query:
    """A prompt, and the user's message in it.

    Attributes:
        text: the message of a chat; else the whole prompt.
        frame: the chat's text around it; None for other prompts.
    """

    prompt: str
    text: str
    frame: ChatFrame | None


@dataclass(frozen=True)
class QueryReader:
    """Recognises the tokenizer's chat template."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def _frames(self) -> ChatFrame | None:
        with suppress(InputError):  # none, or one that cannot be used, matters only where prompts are made with it
            return chat_frames(self.tokenizer)
        return None

    def read(self, prompt: str) -> Query:
        frame = self._frames
        if frame and prompt.startswith(frame.before) and prompt[len(frame.before) :].endswith(frame.after):
            return Query(prompt, prompt[len(frame.before) : len(prompt) - len(frame.after)], frame)
        return Query(prompt, prompt, None)


@runtime_checkable
class Selector(Protocol):
    def select(self, texts: Sequence[str]) -> list[tuple[Fact, ...]]:
        """For each text the facts that it is about, nearest first."""
        ...


@dataclass(frozen=True, slots=True)
class Gated:
    """The facts that the gates let through."""

    memory: Memory

    def select(self, texts: Sequence[str]) -> list[tuple[Fact, ...]]:
        return [tuple(self.memory.facts[place] for place, _ in found) for found in self.memory.search(texts)]


class Oracle:
    """The right fact for every question of a fact, by the evaluation's own questions: an upper bound, no editor.

    A question is one of a fact if it is its prompt, or a text or prompt of one of its fields, or contains one; the
    longest counts. Of facts with the same question the one whose own prompt or paraphrase it is counts, else the last.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._facts: dict[str, Fact] = {}
        own: dict[str, Fact] = {}
        for fact in facts:
            questions = (entry.prompt for name in QUESTION_LISTS for entry in getattr(fact, name))
            self._facts |= dict.fromkeys((*questions, *fact.generation), fact)
            own |= dict.fromkeys((fact.text, *fact.paraphrases), fact)
        self._facts |= own
        self._longest_first = sorted(self._facts, key=len, reverse=True)

    def select(self, texts: Sequence[str]) -> list[tuple[Fact, ...]]:
        found = [self._facts.get(text) or self._containing(text) for text in texts]
        return [(fact,) if fact else () for fact in found]

    def _containing(self, text: str) -> Fact | None:
        return next((self._facts[question] for question in self._longest_first if question in text), None)


class ConceptOracle:
    """As ``Oracle``; of other texts the concept that they name last, such as that of a question about an instance."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._oracle = Oracle(facts)
        self._concepts = {fact.subject: fact for fact in facts}

    def select(self, texts: Sequence[str]) -> list[tuple[Fact, ...]]:
        return [found or self._named_last(text) for text, found in zip(texts, self._oracle.select(texts), strict=True)]

    def _named_last(self, text: str) -> tuple[Fact, ...]:
        ends = {name: max(places) + len(name) for name in self._concepts if (places := word_places(text, name))}
        # Of "home page" and "page" the longer one.
        last = max(ends, key=lambda name: (ends[name], len(name)), default=None)
        return () if last is None else (self._concepts[last],)


# What is inserted


@runtime_checkable
class Wording(Protocol):
    def insertion(self, query: Query, facts: Sequence[Fact]) -> Insertion:
        """The text for facts, nearest first; at least one."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """``"{p} {o}.\\n"`` for each fact, the nearest last, then the prompt; in a chat as its system message.

    Where the chat template has no system message, the facts are the beginning of the user's.
    """

    def insertion(self, query: Query, facts: Sequence[Fact]) -> Insertion:
        ids = tuple(fact.id for fact in facts)
        context = context_of(facts)
        frame = query.frame
        if frame is None:
            return Insertion("", (), context, query.prompt, ids)
        message = f"{INSTRUCTION}\n{context}".removesuffix("\n")
        if frame.system is None:
            return Insertion(frame.before, (), f"{message}\n\n", query.text + frame.after, ids)
        return Insertion(frame.system[0], (), message, frame.system[1] + query.text + frame.after, ids)


@dataclass(frozen=True, slots=True)
class Definition:
    """``"Definition of {concept}: {new definition}\n"`` before everything: the baseline PROMPT of concept editing.

    Wang et al. (2024), "Editing Conceptual Knowledge for Large Language Models", arXiv:2403.06259. In a chat it is the
    beginning of the user's message.
    """

    def insertion(self, query: Query, facts: Sequence[Fact]) -> Insertion:
        line, ids = f"Definition of {facts[0].subject}: {facts[0].target}\n", (facts[0].id,)
        if query.frame is None:
            return Insertion("", (), line, query.prompt, ids)
        return Insertion(query.frame.before, (), line, query.text + query.frame.after, ids)


@dataclass(frozen=True, slots=True)
class Demonstrated:
    """Demonstrations, the fact as a demonstration of itself, and ``"New Fact: {p} {o}\\nPrompt: "``.

    Args:
        with_fact: false: the demonstrations and ``"Prompt: "`` only.
    """

    demonstrations: Callable[[Fact], tuple[str, ...]]
    nearest_last: bool
    self_copy: bool
    with_fact: bool

    def insertion(self, query: Query, facts: Sequence[Fact]) -> Insertion:
        fact = facts[0]
        stated = statement(fact)
        own = demonstration(stated, stated) if self.self_copy else ""
        fixed = f"{own}New Fact: {stated}\nPrompt: " if self.with_fact else "Prompt: "
        before, after = (
            ("", query.prompt) if query.frame is None else (query.frame.before, query.text + query.frame.after)
        )
        ids = (fact.id,) if self.with_fact else ()
        return Insertion(before, self.demonstrations(fact), fixed, after, ids, from_start=self.nearest_last)


def demonstration(fact: str, answered: str) -> str:
    """One demonstration: a fact, and a prompt with its answer; the blank line belongs to it."""
    return f"New Fact: {fact}\nPrompt: {answered}\n\n"


def copied(record: Fact, generator: random.Random) -> str:
    return statement(record)


def updated(record: Fact, generator: random.Random) -> str:
    return joined(generator.choice(record.paraphrases), record.target, record.joiner)


def retained(record: Fact, generator: random.Random) -> str:
    return joined(*generator.choice(record.neighbours).pair)


class Demonstrations:
    """Demonstrations for a fact: the records of the pool that are nearest to its statement, each of one kind.

    Args:
        pool: only records with paraphrases and neighbours are used, and none on the subject of a fact in ``facts``.

    Raises:
        InputError: if no record is left.
    """

    def __init__(
        self, pool: FactSet, facts: Sequence[Fact], embedder: Embedder, *, count: int, nearest_last: bool, seed: int
    ) -> None:
        taken = {statement_key(fact)[0].casefold() for fact in facts}
        self._records = [
            record
            for record in pool
            if record.paraphrases and record.neighbours and statement_key(record)[0].casefold() not in taken
        ]
        if not self._records:
            what = f"none of the {len(pool)} facts of the pool {pool.source!r} can be a demonstration"
            remedy = "Give facts with paraphrases and neighbours, on other subjects than the edited ones"
            raise InputError(what, remedy=remedy, code="DEMONSTRATIONS_MISSING")
        self._index = embedder.index([statement(record) for record in self._records])
        self._count, self._nearest_last, self._seed = min(count, len(self._records)), nearest_last, seed
        self._known: dict[str, tuple[str, ...]] = {}

    def __call__(self, fact: Fact) -> tuple[str, ...]:
        if fact.id not in self._known:
            self._known[fact.id] = self._of(fact)
        return self._known[fact.id]

    def _of(self, fact: Fact) -> tuple[str, ...]:
        generator = random.Random(f"demonstrations {self._seed} {fact.id}")
        copies, updates = self._count // 8, 3 * self._count // 8
        kinds = [copied] * copies + [updated] * updates + [retained] * (self._count - copies - updates)
        generator.shuffle(kinds)
        cosines = self._index.cosines([statement(fact)])[0].tolist()
        nearest = sorted(range(len(cosines)), key=lambda place: (-cosines[place], place))[: self._count]
        order = reversed(nearest) if self._nearest_last else iter(nearest)
        return tuple(
            demonstration(statement(self._records[place]), kind(self._records[place], generator))
            for place, kind in zip(order, kinds, strict=True)
        )


# The editor


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode: who selects the facts, and how they are worded."""

    oracle: Callable[[Sequence[Fact]], Selector] | None = None
    wording: Wording = field(default_factory=Plain)
    demonstrated: bool = False
    with_fact: bool = True


MODES: Final[Mapping[ModeName, Mode]] = {
    "plain": Mode(),
    "ike": Mode(demonstrated=True),
    "demonstrations": Mode(demonstrated=True, with_fact=False),
    "oracle": Mode(oracle=Oracle),
    "ike_oracle": Mode(oracle=Oracle, demonstrated=True),
    "definition": Mode(oracle=ConceptOracle, wording=Definition()),
}


@dataclass(frozen=True, slots=True)
class PromptRewriter:
    """See ``prompted.Rewriter``."""

    reader: QueryReader
    selector: Selector
    wording: Wording

    def insertions(self, prompts: Sequence[str]) -> list[Insertion | None]:
        queries = [self.reader.read(prompt) for prompt in prompts]
        found = self.selector.select([query.text for query in queries])
        return [
            self.wording.insertion(query, facts) if facts else None for query, facts in zip(queries, found, strict=True)
        ]


@dataclass(slots=True)
class Retrieval(FactMemory[RetrievalSettings]):
    """Facts in the prompt; see ``FactMemory``.

    Raises:
        InputError: if the mode has demonstrations and there is no pool.
    """

    _pool: FactSet | None = field(init=False, default=None)
    _views: tuple[FactSearch, Answerer] | None = field(init=False, default=None)

    registered: ClassVar[str] = RETRIEVAL

    def __post_init__(self) -> None:
        FactMemory.__post_init__(self)
        if MODES[self.settings.mode].demonstrated:
            if not self.settings.pool:
                raise InputError(
                    f"the mode {self.settings.mode!r} has demonstrations, but no facts to make them of",
                    remedy="Set 'pool' to facts with paraphrases and neighbours that will not be edited",
                    code="DEMONSTRATIONS_MISSING",
                )
            self._pool = facts_of(self.settings.pool)

    @property
    def method(self) -> str:
        """With the mode, so that no table mixes them up."""
        return RETRIEVAL if self.settings.mode == "plain" else f"{RETRIEVAL}_{self.settings.mode}"

    def digests(self) -> dict[str, str]:
        found = FactMemory.digests(self)
        return found if self._pool is None else {**found, "pool": self._pool.digest()}

    def view(self) -> Answerer:
        """The model with the present facts in its prompts."""
        search = self._state.search
        if self._views is None or self._views[0] is not search:
            self._views = (search, self._made(search))
        return self._views[1]

    def _made(self, search: FactSearch) -> Answerer:
        mode = MODES[self.settings.mode]
        selector = mode.oracle(search.facts) if mode.oracle else Gated(search.memory)
        wording = mode.wording
        if self._pool is not None:
            demonstrations = Demonstrations(
                self._pool,
                search.facts,
                search.embedder,
                count=self.settings.demonstrations,
                nearest_last=self.settings.nearest_last,
                seed=self.settings.seed,
            )
            wording = Demonstrated(demonstrations, self.settings.nearest_last, self.settings.self_copy, mode.with_fact)
        rewriter = PromptRewriter(QueryReader(self.model.tokenizer), selector, wording)
        if isinstance(self.model, LanguageModel):
            return Prompted(self.model, rewriter)
        return PromptedText(self.model, rewriter)
