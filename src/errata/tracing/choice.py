"""Which facts are traced: those that the model knows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from errata.errors import ErrataError
from errata.evaluation.scoring import score
from errata.facts import Fact
from errata.models.language_model import LanguageModel
from errata.progress import Report, silent
from errata.tracing.places import Prompt, prompts_of

_ASKED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Chosen:
    """The facts to trace, with their prompts, and how they were found.

    Attributes:
        asked: how many facts the model was asked.
        known: how many of them it answered with their old answer, token by token.
        nothing_behind: known ones left out because their prompt ends with the subject: at one token then, the fact
            would be looked up and the answer be read, and restoring the last block there brings back all of it.
    """

    facts: tuple[Fact, ...]
    prompts: tuple[Prompt, ...]
    asked: int
    known: int
    nothing_behind: int


def choose_facts(
    model: LanguageModel, facts: Sequence[Fact], count: int, *, seed: int, report: Report = silent
) -> Chosen:
    """Ask for the old answers of facts in random order, until so many are known that can be traced.

    Raises:
        InputError: if a fact has no old answer.
        ErrataError: if no fact is known.
    """
    order = random.Random(f"locate {seed}").sample(range(len(facts)), len(facts))
    chosen: list[tuple[Fact, Prompt]] = []
    asked = known = nothing_behind = 0
    while asked < len(facts) and len(chosen) < count:
        some = [facts[index] for index in order[asked : asked + _ASKED_AT_ONCE]]
        prompts = prompts_of(model, some)
        scores = score(model, [fact.pair(fact.old or "") for fact in some])
        right = [pair for pair, found in zip(zip(some, prompts, strict=True), scores, strict=True) if found.correct]
        usable = [(fact, prompt) for fact, prompt in right if prompt.subject[-1] < len(prompt.ids) - 1]
        asked, known, nothing_behind = asked + len(some), known + len(right), nothing_behind + len(right) - len(usable)
        chosen += usable
        report("known facts", min(len(chosen), count), count)
    if not chosen:
        behind = f" ({known} are known, but nothing stands behind their subject)" if known else ""
        raise ErrataError(
            f"of {asked} facts the model knows none that can be traced{behind}",
            remedy="Give facts whose 'old' is what this model says, with words between subject and answer",
        )
    kept = chosen[:count]
    traced = tuple(fact for fact, _ in kept), tuple(prompt for _, prompt in kept)
    return Chosen(*traced, asked, known, nothing_behind)
