"""Three toy editors, one of each kind that does not change weights: hooks, prompt, answer.

Each holds facts in memory and recognises a prompt by a fact's subject. They show that the contract in
``errata.editors.contract`` suffices for an editor, and for everything that measures one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from errata.editors.contract import OnBatch, Undo
from errata.errors import InputError
from errata.facts.fact import Fact, FactSet
from errata.facts.files import facts_from_records
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair, TargetScore
from errata.results.metrics import Ability


@dataclass(frozen=True, eq=False)
class MemoryEdit:
    """Facts, and the fingerprint of the state that they were added to."""

    facts: tuple[Fact, ...]
    fingerprint: str
    stored_bytes: int = 1

    def save(self, path: Path) -> None:
        record = json.dumps({"facts": [fact.to_record() for fact in self.facts], "fingerprint": self.fingerprint})
        save_file({"unused": torch.zeros(1, dtype=torch.uint8)}, path, metadata={"record": record})

    @classmethod
    def load(cls, path: Path) -> MemoryEdit:
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["record"])
        return cls(facts_from_records(record["facts"], source="test").facts, record["fingerprint"])


@dataclass(frozen=True)
class MemoryView:
    """The model with some facts in memory; answers as the model does where no fact is triggered."""

    model: LanguageModel
    facts: tuple[Fact, ...]
    abilities: ClassVar[frozenset[Ability]] = frozenset(("likelihood", "generation"))

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    @property
    def context_length(self) -> int:
        return self.model.context_length

    def fact_of(self, prompt: str) -> Fact | None:
        return next((fact for fact in reversed(self.facts) if fact.subject in prompt), None)

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        return [(fact.id,) if (fact := self.fact_of(prompt)) else () for prompt in prompts]


class HookedView(MemoryView):
    """Adds the unembedding of the target's first token to the last hidden state."""

    def score(self, pairs: Sequence[Pair], **options: Any) -> list[TargetScore]:
        return [self._with_hook(pair[0], lambda pair=pair: self.model.score([pair], **options)[0]) for pair in pairs]

    def next_token_log_probabilities(self, prompts: Sequence[str], **options: Any) -> torch.Tensor:
        rows = [
            self._with_hook(prompt, lambda prompt=prompt: self.model.next_token_log_probabilities([prompt], **options))
            for prompt in prompts
        ]
        return torch.cat(rows)

    def continue_texts(self, prompts: Sequence[str], **options: Any) -> list[str]:
        limits, uniforms = options.pop("new_tokens"), options.pop("uniforms", None)
        texts = []
        for index, prompt in enumerate(prompts):
            own = {
                "new_tokens": limits if isinstance(limits, int) else limits[index],
                "uniforms": None if uniforms is None else uniforms[index : index + 1],
            }
            texts += self._with_hook(prompt, lambda p=prompt, own=own: self.model.continue_texts([p], **own, **options))
        return texts

    def _with_hook(self, prompt: str, run: Any) -> Any:
        with self._hooked(self.fact_of(prompt)):
            return run()

    @contextmanager
    def _hooked(self, fact: Fact | None) -> Iterator[None]:
        if fact is None:
            yield
            return
        token = self.model.tokenizer(" " + fact.target, add_special_tokens=False)["input_ids"][0]
        vector = 10 * self.model.model.get_output_embeddings().weight[token]
        handle = self.model.head.register_forward_pre_hook(lambda module, args: (args[0] + vector,))
        try:
            yield
        finally:
            handle.remove()


class PromptedView(MemoryView):
    """Puts the fact before the prompt."""

    def score(self, pairs: Sequence[Pair], **options: Any) -> list[TargetScore]:
        return self.model.score([(self._rewritten(pair[0]), *pair[1:]) for pair in pairs], **options)

    def next_token_log_probabilities(self, prompts: Sequence[str], **options: Any) -> torch.Tensor:
        return self.model.next_token_log_probabilities([self._rewritten(prompt) for prompt in prompts], **options)

    def continue_texts(self, prompts: Sequence[str], **options: Any) -> list[str]:
        return self.model.continue_texts([self._rewritten(prompt) for prompt in prompts], **options)

    def _rewritten(self, prompt: str) -> str:
        fact = self.fact_of(prompt)
        return prompt if fact is None else f"{fact.text} {fact.target}. {prompt}"


class RewrittenView(MemoryView):
    """Replaces the finished answer by the target."""

    abilities: ClassVar[frozenset[Ability]] = frozenset(("generation",))

    def score(self, pairs: Sequence[Pair], **options: Any) -> list[TargetScore]:
        raise InputError("a rewritten answer has no likelihood", code="ABILITY_MISSING")

    def next_token_log_probabilities(self, prompts: Sequence[str], **options: Any) -> torch.Tensor:
        raise InputError("a rewritten answer has no likelihood", code="ABILITY_MISSING")

    def continue_texts(self, prompts: Sequence[str], **options: Any) -> list[str]:
        answers = self.model.continue_texts(prompts, **options)
        facts = [self.fact_of(prompt) for prompt in prompts]
        return [f" {fact.target}." if fact else answer for fact, answer in zip(facts, answers, strict=True)]


VIEWS = {"hooks": HookedView, "prompt": PromptedView, "answer": RewrittenView}


@dataclass
class MemoryEditor:
    """An editor of one of the three kinds."""

    model: LanguageModel
    method: str
    facts: tuple[Fact, ...] = ()
    undo: ClassVar[Undo] = "any"
    needs: ClassVar[frozenset[str]] = frozenset()

    def apply(self, facts: Sequence[Fact], *, on_batch: OnBatch | None = None) -> MemoryEdit:
        edit, before, started = MemoryEdit(tuple(facts), self.fingerprint()), self.facts, time.perf_counter()
        self.facts = (*before, *facts)
        try:
            if on_batch is not None:
                on_batch(MemoryBatch(tuple(facts), time.perf_counter() - started))
        except BaseException:
            self.facts = before
            raise
        return edit

    def remove(self, edit: MemoryEdit) -> None:
        if not {fact.id for fact in edit.facts} <= {fact.id for fact in self.facts}:
            raise InputError("this edit is not in", code="EDIT_NOT_APPLIED")
        self.facts = tuple(fact for fact in self.facts if fact not in edit.facts)

    def restore(self, edit: MemoryEdit) -> None:
        if edit.fingerprint != self.fingerprint():
            raise InputError("this edit was made on another state", code="EDIT_FOR_OTHER_WEIGHTS")
        self.facts = (*self.facts, *edit.facts)

    def view(self) -> Any:
        return VIEWS[self.method](self.model, self.facts)

    def fingerprint(self) -> str:
        records = json.dumps([fact.to_record() for fact in FactSet(self.facts, source="test")])
        return hashlib.sha256(f"{self.model.fingerprint()}{records}".encode()).hexdigest()


@dataclass(frozen=True)
class MemoryBatch:
    facts: tuple[Fact, ...]
    seconds: float = field(compare=False)
