"""Faults of facts that depend on a tokenizer: texts without tokens, and prompts that are too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from errata.errors import Fault
from errata.facts.fact import QUESTION_LISTS, Fact, shown
from errata.facts.joining import joined


def token_faults(
    facts: Sequence[Fact], places: Sequence[str], *, count_tokens: Callable[[str], int], limit: int, lead: int = 0
) -> list[Fault]:
    """Subjects and answers without tokens, and prompts with too many.

    Args:
        facts: the facts.
        places: the place of each fact.
        count_tokens: text -> its number of tokens, without special tokens.
        limit: maximum number of tokens of a prompt with its answer, without special tokens.
        lead: number of tokens that an edit puts before a fact's own prompt.
    """
    faults: list[Fault] = []

    def check_tokens(place: str, name: str, text: str) -> bool:
        if count_tokens(text):
            return True
        remedy = "Use characters that the model's tokenizer knows"
        faults.append(Fault(place, f"'{name}' {shown(text)} has no tokens", remedy, code="FACT_NO_TOKENS"))
        return False

    for fact, place in zip(facts, places, strict=True):
        check_tokens(place, "subject", fact.subject)
        for prompt_name, prompt, answer_name, answer, joiner in _continuations(fact):
            if not check_tokens(place, answer_name, answer):
                continue
            most = limit - (lead if prompt_name == "prompt" else 0)
            if (length := count_tokens(joined(prompt, answer, joiner))) > most:
                context = f" after the {lead} of an edit's contexts" if most < limit else ""
                what = (
                    f"'{prompt_name}' with '{answer_name}' has {length} tokens, but the model accepts {most}{context}"
                )
                faults.append(Fault(place, what, "Shorten it, or leave it out", code="FACT_TOO_LONG"))
    return list(dict.fromkeys(faults))  # a target follows every paraphrase, and is reported once


def unembedded_faults(
    facts: Sequence[Fact], places: Sequence[str], *, unembedded_in: Callable[[str], Sequence[str]]
) -> list[Fault]:
    """Texts with tokens that the tokenizer knows but for which the model has no embedding.

    Args:
        unembedded_in: text -> such tokens in it.
    """
    faults: list[Fault] = []
    for fact, place in zip(facts, places, strict=True):
        for prompt_name, prompt, answer_name, answer, joiner in _continuations(fact):
            if found := unembedded_in(joined(prompt, answer, joiner)):
                what = f"'{prompt_name}' or '{answer_name}' has {found[0]!r}, a token without an embedding"
                faults.append(Fault(place, what, "Remove it", code="FACT_TOKEN_NOT_EMBEDDED"))
    return list(dict.fromkeys(faults))


def _continuations(fact: Fact) -> Iterator[tuple[str, str, str, str, str | None]]:
    """(field, prompt, field, answer, joiner) of all prompts of a fact with their answers."""
    yield "prompt", fact.text, "target", fact.target, fact.joiner
    if fact.old is not None:
        yield "prompt", fact.text, "old", fact.old, fact.joiner
    for index, paraphrase in enumerate(fact.paraphrases):
        yield f"paraphrases[{index}]", paraphrase, "target", fact.target, fact.joiner
    for name in QUESTION_LISTS:
        for index, question in enumerate(getattr(fact, name)):
            path = f"{name}[{index}]"
            yield f"{path}.prompt", question.prompt, f"{path}.answer", question.answer, question.joiner
