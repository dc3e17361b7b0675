"""Well-known facts that come with errata: for scans of layers and for control questions, where the user has none."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from importlib import resources

from errata.evaluation.scoring import score
from errata.facts import Fact, Question
from errata.models.language_model import LanguageModel
from errata.progress import Report, silent
from errata.recipe_yaml import parse_yaml

NEIGHBOURS = 2  # control questions of each fact: the same prompt about other subjects


@cache
def known_facts() -> tuple[Fact, ...]:
    """All of them; ``old`` is the right answer and ``target`` another answer of the same relation."""
    text = (resources.files("errata") / "known_facts.yaml").read_text(encoding="utf-8")
    found: list[Fact] = []
    for group in parse_yaml(text, "known_facts.yaml").data:
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


def facts_to_scan(model: LanguageModel, count: int, *, seed: int = 0, report: Report = silent) -> tuple[Fact, ...]:
    """Facts to edit in a scan, with questions about other subjects that should stay as they are.

    Of the facts that the model answers correctly about half are edited and the others are the control questions; where
    there are too few of them, facts that it does not know are edited as well, since the target is new to it anyway.

    Args:
        count: facts at most.
    """
    facts = known_facts()
    scores = score(model, [(fact.text, fact.old or "") for fact in facts], report=report)
    order = random.Random(f"scan {seed}").sample(range(len(facts)), len(facts))
    known = [facts[index] for index in order if scores[index].correct]
    unknown = [facts[index] for index in order if not scores[index].correct]
    # No subject may be both edited and asked about, nor be edited twice.
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
    record = {name: getattr(fact, name) for name in ("id", "subject", "prompt", "target", "old", "paraphrases")}
    questions = tuple(Question(other.text, other.old or "") for other in chosen)
    return Fact(**record, relation=fact.relation, unrelated=questions)
