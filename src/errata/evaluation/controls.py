"""Control questions for a user who has none: about other subjects, and about the same subjects. The answers that should
stay are the unedited model's.

An answer need not be true. It is the model's answer before the edit, so a change of it is a side effect of the edit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any, Final

import torch

from errata.editors.contract import Answerer
from errata.facts.fact import Fact, FactSet, Question
from errata.facts.joining import holds_name
from errata.utils.progress import Report, silent
from errata.utils.yaml import parse_yaml

NEIGHBOURS = 2  # control questions of each fact: the same prompt about other subjects


@cache
def _known_relations() -> list[dict[str, Any]]:
    text = (resources.files("errata") / "evaluation" / "known_facts.yaml").read_text(encoding="utf-8")
    groups: list[dict[str, Any]] = parse_yaml(text, "known_facts.yaml").data
    return groups


@cache
def _kinds() -> dict[str, str]:
    """Subject of a shipped fact, case-folded -> its kind, such as ``country``."""
    return {subject.casefold(): group["subjects"] for group in _known_relations() for subject in group["facts"]}


@cache
def known_facts() -> tuple[Fact, ...]:
    """The facts shipped with errata; ``old`` is the right answer and ``target`` another answer of the same relation."""
    found: list[Fact] = []
    for group in _known_relations():
        pairs = list(group["facts"].items())
        answers = sorted({answer for _, answer in pairs})
        for subject, answer in pairs:
            # The next answer in the alphabet: the same for every model, and never the right one.
            target = answers[(answers.index(answer) + 1) % len(answers)]
            found.append(
                Fact(
                    id=f"{group['relation']}: {subject}",
                    subject=subject,
                    prompt=group["prompt"],
                    target=target,
                    old=answer,
                    paraphrases=tuple(text.replace("{}", subject) for text in group["paraphrases"]),
                    relation=group["relation"],
                )
            )
    return tuple(found)


def facts_to_scan(model: Answerer, count: int, *, seed: int = 0, report: Report = silent) -> tuple[Fact, ...]:
    """Facts to edit in a scan, with questions about other subjects that should stay as they are.

    Of the facts that the model answers correctly about half are edited and the others are the control questions; where
    there are too few of them, facts that it does not know are edited as well, since the target is new to it anyway.

    Args:
        count: facts at most.
    """
    facts = known_facts()
    scores = model.score([(fact.text, fact.old or "") for fact in facts], report=report)
    order = random.Random(f"scan {seed}").sample(range(len(facts)), len(facts))
    known = [facts[index] for index in order if scores[index].correct]
    unknown = [facts[index] for index in order if not scores[index].correct]
    # No subject may be both edited and in a control question, nor be edited twice.
    edited: dict[str, Fact] = {}
    controls: list[Fact] = []
    for place, fact in enumerate(known):
        if place % 2 == 0 and len(edited) < count:
            edited.setdefault(fact.subject, fact)
        else:
            controls.append(fact)
    for fact in unknown:
        if len(edited) < count:
            edited.setdefault(fact.subject, fact)
    controls = [fact for fact in controls if fact.subject not in edited]
    return tuple(_with_controls(fact, controls) for fact in edited.values())


def _with_controls(fact: Fact, controls: Sequence[Fact]) -> Fact:
    same = [other for other in controls if other.relation == fact.relation]
    chosen = random.Random(fact.id).sample(same, min(NEIGHBOURS, len(same)))
    return replace(fact, neighbours=tuple(Question(other.text, other.old or "") for other in chosen))


PER_FACT = 3  # questions of each kind about one fact
ANSWER_TOKENS = 4
GENERATED_FIELDS: Final = ("own", "neighbours")  # of facts
_PUNCTUATION: Final = re.compile(r"[,.;:!?()\"。，、；：！？]")
KIND_PROMPT = "{} is a"  # the continuation distinguishes kinds of subjects
OWN_PROMPTS = (
    "{} is known for",
    "The most important thing about {} is",
    "In the news, {} was mentioned because",
    "Many people think that {}",
    "A short description of {}:",
)
"""Open questions about a subject. None of them asks for a particular relation, so an edit of one fact has no reason to
change the answers."""


@dataclass(frozen=True, slots=True)
class Controls:
    """Facts with control questions.

    Attributes:
        facts: those given, with ``own`` questions and ``neighbours`` where they had none.
        automatic: (id of a fact, field) of each list of questions that was generated.
    """

    facts: FactSet
    automatic: frozenset[tuple[str, str]]

    @property
    def count(self) -> int:
        """The number of generated questions."""
        return sum(
            len(getattr(fact, field)) for fact in self.facts for field in GENERATED_FIELDS
            if (fact.id, field) in self.automatic
        )  # fmt: skip


def with_automatic_controls(
    model: Answerer, facts: FactSet, *, per_fact: int = PER_FACT, report: Report = silent
) -> Controls:
    """Generate control questions for facts that have none of a kind, with the model's present answers.

    Two kinds are generated, each only for facts without questions of that kind:

    - ``neighbours``: the fact's own prompt about other subjects, where it has no ``neighbours`` and no ``unrelated``
      questions. They are of the same relation, so they measure specificity; their answers are the model's, and need
      not be the fact's old one. The subjects come from a list that ships with errata and are of the fact's kind, such
      as countries: that of its subject in the list, or else the kind which the model takes for most like it (by the
      next word after "{subject} is a"). The most alike come first; none of them is edited.
    - ``own``: open questions about the fact's own subject.

    An answer is the greedy continuation up to the first punctuation mark, at most four tokens, whole words only. A
    question is left out where no answer can be read back token by token, or where the answer names the target or the
    old answer of a fact about the same subject. Answers other than names and numbers are taken only where a fact has
    none of these: a change of a phrase such as "the capital of the" means little. No question is generated twice, so
    facts with the same prompt share the subjects of their kind, and the last of many may get none.

    Args:
        model: unedited.
        per_fact: at most so many questions of each kind.

    Returns:
        The facts in the same order; equal calls give equal questions.
    """
    need_others = [fact for fact in facts if not (fact.unrelated or fact.neighbours)]
    need_own = [fact for fact in facts if not fact.own]
    candidates: list[tuple[Fact, str, str]] = []  # the fact, the field, the prompt
    if need_others:
        nearest = _nearest_subjects(model, need_others, [fact.subject for fact in facts], 2 * per_fact)
        candidates += [
            (fact, "neighbours", fact.prompt.replace("{}", subject, 1))
            for fact, subjects in zip(need_others, nearest, strict=True)
            for subject in subjects
        ]
    candidates += [(fact, "own", prompt.replace("{}", fact.subject)) for fact in need_own for prompt in OWN_PROMPTS]
    answers = _answers(model, list(dict.fromkeys(prompt for *_, prompt in candidates)), report)
    edits: dict[str, list[Fact]] = {}
    for fact in facts:
        edits.setdefault(fact.subject, []).append(fact)
    generated: dict[tuple[str, str], list[Question]] = {}
    taken: set[tuple[str, str]] = set()
    candidates.sort(key=lambda question: not says_something(answers.get(question[2]) or ""))  # stable
    for fact, field, prompt in candidates:
        answer = answers.get(prompt)
        questions = generated.setdefault((fact.id, field), [])
        if answer is None or len(questions) >= per_fact or _names_an_edit(answer, edits[fact.subject]):
            continue
        if (field, prompt) in taken:
            continue
        if says_something(answer) or not any(says_something(question.answer) for question in questions):
            # Only with a joiner of its own may a prompt end in spaces; nothing follows them in any case.
            questions.append(Question(prompt, answer, "" if prompt[-1].isspace() else None))
            taken.add((field, prompt))
    generated = {key: questions for key, questions in generated.items() if questions}
    found = [
        replace(
            fact,
            own=tuple(generated.get((fact.id, "own"), fact.own)),
            neighbours=tuple(generated.get((fact.id, "neighbours"), fact.neighbours)),
        )
        for fact in facts
    ]
    return Controls(FactSet(tuple(found), facts.source, facts.places), frozenset(generated))


def _nearest_subjects(model: Answerer, facts: Sequence[Fact], edited: Sequence[str], count: int) -> list[list[str]]:
    """For each fact the shipped subjects of its kind that the model takes for most alike, by the divergence between its
    distributions of the next word after ``KIND_PROMPT``. Facts with the same prompt have different subjects.
    """
    taken = {subject.casefold() for subject in edited}
    others = list(dict.fromkeys(fact.subject for fact in known_facts() if fact.subject.casefold() not in taken))
    subjects = [*(fact.subject for fact in facts), *others]
    prompts = [KIND_PROMPT.replace("{}", subject) for subject in subjects]
    chances = model.next_token_log_probabilities(prompts).exp()
    own, rest = chances[: len(facts)], chances[len(facts) :]
    found = []
    used: dict[str, set[str]] = {}  # prompt -> subjects
    for fact, one in zip(facts, own, strict=True):
        distance = dict(zip(others, _divergence(one, rest).tolist(), strict=True))
        kind = _kinds().get(fact.subject.casefold()) or _nearest_kind(distance)
        taken_here = used.setdefault(fact.prompt, set())
        left = [name for name in others if _kinds()[name.casefold()] == kind and name not in taken_here]
        chosen = sorted(left, key=lambda name: (distance[name], name))[:count]
        taken_here.update(chosen)
        found.append(chosen)
    return found


def _nearest_kind(distance: Mapping[str, float]) -> str:
    """The kind whose subjects have the smallest mean distance."""
    of_kind: dict[str, list[float]] = {}
    for name, value in distance.items():
        of_kind.setdefault(_kinds()[name.casefold()], []).append(value)
    return min(of_kind, key=lambda kind: (fmean(of_kind[kind]), kind))


def _divergence(one: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Jensen–Shannon, of (vocabulary,) and (n, vocabulary) -> (n,)."""
    middle = (one + others) / 2

    def entropy(chances: torch.Tensor) -> torch.Tensor:
        return -(chances * chances.clamp_min(1e-30).log()).sum(-1)

    return entropy(middle) - (entropy(one) + entropy(others)) / 2


def _answers(model: Answerer, prompts: Sequence[str], report: Report) -> dict[str, str]:
    """The model's answer to each prompt, if scoring the answer confirms it."""

    def generating(_: str, done: int, total: int) -> None:
        report("control questions", done, total)

    said = model.continue_texts(prompts, new_tokens=ANSWER_TOKENS + 1, report=generating)
    candidates = {prompt: first_phrase(text) for prompt, text in zip(prompts, said, strict=True)}
    pairs = [(prompt, answer) for prompt, answer in candidates.items() if answer and "\x00" not in answer]
    return {pair[0]: pair[1] for pair, found in zip(pairs, model.score(pairs), strict=True) if found.correct}


def first_phrase(text: str) -> str:
    """A continuation up to its first punctuation mark, or else without its last word, which the limit of tokens may
    have cut in two.
    """
    line = text.strip().split("\n")[0].strip()
    phrase = _PUNCTUATION.split(line, maxsplit=1)[0].strip()
    if phrase and phrase != line:
        return phrase
    words = line.split()
    return " ".join(words[:-1] if len(words) > 1 else words)


def says_something(answer: str) -> bool:
    """Whether an answer contains a name or a number, judged by its letters: scripts without capitals always do."""
    return any(sign.isdigit() or (sign.isalpha() and not sign.islower()) for sign in answer)


def _names_an_edit(answer: str, facts: Sequence[Fact]) -> bool:
    names = [name for fact in facts for name in (fact.target, *fact.aliases, fact.old) if name]
    return any(holds_name(answer, name) for name in names)
