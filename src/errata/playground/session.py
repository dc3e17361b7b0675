"""What the playground does, without its page: one model for all visitors, and the edits of each in a ``Visit``.

Between two calls the model is unedited. A call puts the visitor's patches in, does its work and takes them out; calls
wait for each other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread
from typing import Final, Literal, TypeAlias

from errata.editing.preparation import Prepared
from errata.editing.recipe import Recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import InputError
from errata.evaluation.controls import first_phrase, with_automatic_controls
from errata.facts.fact import Fact, FactSet
from errata.lab.package import lab_world
from errata.lab.world import RELATION_WORDINGS
from errata.models.language_model import LanguageModel
from errata.models.prompts import encode
from errata.patches.lora_export import Adapter, patches_applied
from errata.patches.patch import Patch
from errata.patches.stack import Stack, new_stack, write_stack
from errata.utils.progress import OnSearch, Report, SearchStep, silent

HOST: Final = "127.0.0.1"  # the page is served to this machine only
TOKENS: Final = 8  # of each answer
LIKELIEST: Final = 5  # next tokens that are shown
Export: TypeAlias = Literal["patch", "LoRA adapter"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's greedy continuation of a prompt, its first line, and the likeliest next tokens with probabilities."""

    text: str
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ControlAnswer:
    """The answers of the unedited and of the edited model to a control question, up to the first punctuation mark."""

    prompt: str
    before: str
    now: str

    @property
    def is_changed(self) -> bool:
        return self.before != self.now


@dataclass(frozen=True, slots=True)
class Visit:
    """What one visitor has done; never modified.

    Attributes:
        stack: the edits, oldest first.
        controls: prompts whose answers should not change.
        made: edits ever made, those undone included.
    """

    stack: Stack
    controls: tuple[str, ...] = ()
    made: int = 0

    @property
    def patches(self) -> list[Patch]:
        return [stacked.patch for stacked in self.stack.patches]


class _StoppedError(Exception):
    """Raised in a search that nobody waits for any more."""


@dataclass(slots=True)
class Playground:
    """One model and one recipe, for any number of visits.

    Args:
        model: unedited; nobody else may use it.
        recipe: of the edits, each of which is a batch of its own.
        controls: the prompts that every visit begins with.
        lab: whether the model is the lab's, whose world then has the questions about the same subject.
        report: progress callback of ``prepare``.
    """

    model: LanguageModel
    recipe: Recipe
    controls: Sequence[str] = ()
    lab: bool = False
    report: Report = silent
    _prepared: Prepared | None = None
    _stack: Stack | None = None
    _before: dict[str, str] = field(default_factory=dict)  # control question -> the unedited model's answer
    _lock: Lock = field(default_factory=Lock)

    def prepare(self) -> None:
        """Key statistics and contexts, so that an edit takes only its search.

        Raises:
            InputError: see ``Editor.prepare``.
        """
        with self._lock:
            if self._prepared is None:
                editor = Editor(self.model, self.recipe, report=self.report)
                editor.prepare()
                self._prepared = editor.prepared
                self._stack = new_stack(self.model, editor.fingerprint)

    def visit(self) -> Visit:
        """A visit without edits."""
        self.prepare()
        assert self._stack is not None
        return Visit(self._stack, tuple(self.controls))

    def ask(self, visit: Visit, prompt: str) -> tuple[Answer, Answer]:
        """The answers of the unedited and of the edited model.

        Raises:
            InputError: if the prompt is empty or too long.
        """
        text = self._checked(prompt)
        with self._lock:
            before = self._answer(text)
            with patches_applied(self.model, visit.patches, force=True):
                return before, self._answer(text) if visit.patches else before

    def check(self, visit: Visit) -> list[ControlAnswer]:
        """The answers to all control questions; those of the unedited model are computed once."""
        with self._lock:
            new = [prompt for prompt in visit.controls if prompt not in self._before]
            self._before |= dict(zip(new, self._phrases(new), strict=True))
            with patches_applied(self.model, visit.patches, force=True):
                now = self._phrases(visit.controls) if visit.patches else None
        before = [self._before[prompt] for prompt in visit.controls]
        return [ControlAnswer(*each) for each in zip(visit.controls, before, now or before, strict=True)]

    def with_control(self, visit: Visit, prompt: str) -> Visit:
        """The visit with a further control question.

        Raises:
            InputError: if it is empty or too long.
        """
        return _with_controls(visit, [self._checked(prompt)])

    def edit(self, visit: Visit, subject: str, prompt: str, target: str) -> Iterator[SearchStep | Visit]:
        """Edit one fact: the steps of the search while it runs, and at the end the visit with the edit.

        The visit gets control questions about the fact's subject and about others like it. If the iterator is closed
        before its end, the search stops and nothing has changed.

        Raises:
            FaultsError, InputError: if this is no fact, or it cannot be edited.
            EditError: if the edit fails.
        """
        fact = Fact(id=f"edit-{visit.made + 1}", subject=subject, prompt=prompt, target=target)
        self._checked(fact.text)
        self.prepare()
        events: Queue[SearchStep | Patch | BaseException] = Queue()
        stopped = Event()

        def watch(step: SearchStep) -> None:
            if stopped.is_set():
                raise _StoppedError
            events.put(step)

        def work() -> None:
            try:
                events.put(self._edited(visit, fact, watch))
            except BaseException as error:  # raised again where the events are read
                events.put(error)

        worker = Thread(target=work, name="playground edit", daemon=True)
        worker.start()
        try:
            while not isinstance(event := events.get(), Patch):
                if isinstance(event, BaseException):
                    raise event
                yield event
            edited = replace(visit, stack=visit.stack.with_patch(fact.id, event), made=visit.made + 1)
            yield _with_controls(edited, self._related(fact))
        finally:
            stopped.set()
            worker.join()

    def undo(self, visit: Visit, name: str) -> Visit:
        """The visit without an edit; later ones stay as they are.

        Raises:
            InputError: if there is no such edit.
        """
        return replace(visit, stack=visit.stack.without([name]))

    def export(self, visit: Visit, kind: Export, folder: Path) -> Path:
        """Write all edits: a single patch, an archive of a stack, or an archive of an exact LoRA adapter.

        Args:
            folder: an empty directory.

        Raises:
            InputError: if there is no edit, or the changes have no low rank.
        """
        if not visit.patches:
            raise InputError("there is no edit to export", remedy="Edit a fact first", code="EDIT_MISSING")
        if kind == "LoRA adapter":
            Adapter.of(visit.patches).write(folder / "lora", self.model.model)
            return _archive(folder / "lora")
        if len(visit.patches) == 1:
            visit.patches[0].save(folder / "patch.safetensors")
            return folder / "patch.safetensors"
        (folder / "stack").mkdir()
        write_stack(visit.stack, folder / "stack")
        return _archive(folder / "stack")

    def _edited(self, visit: Visit, fact: Fact, watch: OnSearch) -> Patch:
        assert self._prepared is not None
        with self._lock, patches_applied(self.model, visit.patches, force=True):
            # Contexts and statistics are those of the unedited model, the patch is for the weights as they are.
            prepared = replace(self._prepared, fingerprint=self.model.fingerprint())
            patch = Editor(self.model, self.recipe, prepared=prepared, on_search=watch).apply([fact])
            patch.undo(self.model)
            return patch

    def _related(self, fact: Fact) -> list[str]:
        """Control questions about the fact's subject, and the fact's own prompt about others."""
        if self.lab:
            world = lab_world()
            if fact.subject not in world.people:
                return []
            others = [name for name in world.relations if fact.prompt not in RELATION_WORDINGS[name]]
            return [RELATION_WORDINGS[name][0].replace("{}", fact.subject, 1) for name in others]
        with self._lock:
            (found,) = with_automatic_controls(self.model, FactSet((fact,))).facts
        return [question.prompt for question in (*found.neighbours, *found.own)]

    def _answer(self, text: str) -> Answer:
        (line,) = self._first_lines([text])
        values, ids = self.model.next_token_log_probabilities([text])[0].exp().topk(LIKELIEST)
        tokens = [str(self.model.tokenizer.decode([token])) for token in ids.tolist()]
        return Answer(line, tuple(zip(tokens, values.tolist(), strict=True)))

    def _first_lines(self, prompts: Sequence[str]) -> list[str]:
        texts = self.model.continue_texts(list(prompts), new_tokens=TOKENS) if prompts else []
        return [text.strip().partition("\n")[0].strip() for text in texts]

    def _phrases(self, prompts: Sequence[str]) -> list[str]:
        return [first_phrase(line) for line in self._first_lines(prompts)]

    def _checked(self, prompt: str) -> str:
        """A prompt without spaces at its end, which would belong to the token of the next word."""
        text = prompt.rstrip()
        if not text.strip():
            raise InputError("the prompt is empty", remedy="Write the beginning of a sentence", code="PROMPT_EMPTY")
        (row,) = encode(self.model.tokenizer, [text])
        limit = self.model.context_length - TOKENS
        if not 0 < len(row.ids) <= limit:
            raise InputError(
                f"the prompt has {len(row.ids)} tokens, and the model takes 1 to {limit}",
                remedy="Shorten it" if row.ids else "Use characters that the model's tokenizer knows",
                code="PROMPT_TOO_LONG" if row.ids else "PROMPT_EMPTY",
            )
        return text


def _with_controls(visit: Visit, prompts: Sequence[str]) -> Visit:
    """Further control questions first, each once."""
    return replace(visit, controls=tuple(dict.fromkeys((*prompts, *visit.controls))))


def _archive(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))
