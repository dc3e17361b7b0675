"""Questions about consequences of an edit, made for facts that have none.

A two-hop question is made of two facts: the edited one, whose prompt is turned into a noun phrase ("The birthplace of
Ada is" becomes "the birthplace of Ada"), and one about its new answer that the unedited model answers correctly ("The
city of Lyon is located in the country of"). The phrase takes the place of that fact's subject. The questions of the lab
are those that its model was trained with. Questions for the subject ("reversal") are never made: an answer may have
several subjects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from errata.editors.contract import Answerer
from errata.evaluation.controls import known_facts
from errata.facts.fact import Fact, Question
from errata.lab.tasks import consequence_questions
from errata.lab.world import World

Hop: TypeAlias = Literal["stated", "inferred"]
"""Whether the lab's model was trained on this kind of consequence for this person, or has to infer it."""
NONE_MADE: Final = (
    "no fact has 'portability' questions, and none could be made: no prompt is a description of a place, person or "
    "company of which the model knows more"
)
_PER_FACT: Final = 3
_ARTICLES: Final = r"(?: the(?: [a-z]+ of)?| an?| called| named)?"
# "The capital of {} is the city of"; "The author of {} is"
_DESCRIBED: Final = re.compile(rf"[Tt]he (?P<rest>[^?.,:;]*?) (?:is|was){_ARTICLES}")
# "{} is located in the country of"; "{} was born in"
_PLACED: Final = re.compile(
    r"(?P<subject>.+) (?P<verb>(?:is|was|are|were) (?:located|situated|based|born|held)) in"
    r"(?: the (?P<kind>[a-z]+) of)?"
)
_APPOSED: Final = re.compile(r"[Tt]he (?:city of|country of|company) \{\}")  # a description needs no kind before it


@dataclass(frozen=True, slots=True)
class Consequence:
    """A two-hop question that was made.

    Attributes:
        fact: id of the edited fact.
        question: with the answer that follows from the edit.
        before: the answer that followed from the old fact; None if unknown.
        hop: see ``Hop``; None outside the lab.
    """

    fact: str
    question: Question
    before: str | None = None
    hop: Hop | None = None


def described(prompt: str, subject: str) -> str | None:
    """A noun phrase for the answer of a prompt, such as "the birthplace of Ada"; None if there is no safe one."""
    if prompt.count(subject) != 1:
        return None
    if found := _DESCRIBED.fullmatch(prompt):
        return f"the {found['rest']}" if subject in found["rest"] else None
    if (found := _PLACED.fullmatch(prompt)) and found["subject"] == subject:
        return f"the {found['kind'] or 'place'} where {subject} {found['verb']}"
    return None


def two_hops(model: Answerer, facts: Sequence[Fact], hops: Sequence[Fact] | None = None) -> list[Consequence]:
    """Two-hop questions of facts without ``portability``.

    Left out are questions whose second fact is edited itself, whose answer is in the question, or would be the same for
    the old answer.

    Args:
        model: unedited.
        hops: second facts, ``old`` being their right answers; those shipped with errata by default.
    """
    hops = known_facts() if hops is None else hops
    by_subject: dict[str, list[Fact]] = {}
    for hop in hops:
        by_subject.setdefault(hop.subject.casefold(), []).append(hop)
    edited = {fact.subject.casefold() for fact in facts}
    wanted: dict[str, list[tuple[Fact, str, Fact]]] = {}
    for fact in facts:
        phrase = next(filter(None, (described(text, fact.subject) for text in (fact.text, *fact.paraphrases))), None)
        if phrase is None or fact.portability or fact.target.casefold() in edited:
            continue
        entries = [(fact, phrase, hop) for hop in by_subject.get(fact.target.casefold(), ())]
        wanted.setdefault(fact.id, []).extend(entries)
    second = list(dict.fromkeys(hop for entries in wanted.values() for *_, hop in entries))
    scores = model.score([hop.pair(hop.old or "") for hop in second]) if second else []
    known = {hop for hop, found in zip(second, scores, strict=True) if found.correct}
    consequences: list[Consequence] = []
    for entries in wanted.values():
        made = [_made(fact, phrase, hop, by_subject) for fact, phrase, hop in entries if hop in known]
        consequences += [entry for entry in made if entry is not None][:_PER_FACT]
    return consequences


def _made(fact: Fact, phrase: str, hop: Fact, by_subject: Mapping[str, Sequence[Fact]]) -> Consequence | None:
    prompt = _APPOSED.sub("{}", hop.prompt).replace("{}", phrase, 1)
    prompt = prompt[0].upper() + prompt[1:]
    before = next(
        (other.old for other in by_subject.get((fact.old or "").casefold(), ()) if other.relation == hop.relation), None
    )
    answer = hop.old or ""
    if answer == before or answer.casefold() in prompt.casefold():
        return None
    return Consequence(fact.id, Question(prompt, answer), before)


def lab_consequences(world: World, facts: Sequence[Fact]) -> list[Consequence]:
    """The consequences that the lab's world states: the country of birth, and the city of the employer."""
    return [
        Consequence(fact.id, question, before, "stated" if stated else "inferred")
        for fact in facts
        if not fact.portability
        for question, before, stated in consequence_questions(world, fact)
    ]


def with_consequences(facts: Sequence[Fact], made: Sequence[Consequence]) -> list[Fact]:
    """The facts with the questions that were made for them as ``portability``."""
    questions: dict[str, list[Question]] = {}
    for entry in made:
        questions.setdefault(entry.fact, []).append(entry.question)
    return [
        replace(fact, portability=(*fact.portability, *questions[fact.id])) if fact.id in questions else fact
        for fact in facts
    ]
