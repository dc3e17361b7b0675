"""What only a tokenizer can tell of facts: texts that tokenise to nothing, and prompts that are too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from errata.errors import Fault
from errata.facts.fact import QUESTION_LISTS, Fact, shown
from errata.facts.joining import joined


def token_faults(
    facts: Sequence[Fact], places: Sequence[str], *, count_tokens: Callable[[str], int], limit: int, lead: int = 0
) -> list[Fault]:
    """What only a tokenizer can tell: subjects and continuations without tokens, prompts with too many.

    Args:
        facts: the facts.
        places: for each fact where it stands.
        count_tokens: text -> its number of tokens, special tokens left out.
        limit: the most tokens of a prompt with its continuation that the model takes, special tokens not counted.
        lead: the tokens that an edit puts before a fact's own prompt.
    """
    faults: list[Fault] = []
    remedy = "Write it in characters that the model's tokenizer knows"
    for fact, place in zip(facts, places, strict=True):
        if not count_tokens(fact.subject):
            faults.append(Fault(place, f"'subject' {shown(fact.subject)} tokenises to nothing", remedy))
        for asked, prompt, answered, answer, joiner in _continuations(fact):
            if not count_tokens(answer):
                faults.append(Fault(place, f"'{answered}' {shown(answer)} tokenises to nothing", remedy))
                continue
            length, room = count_tokens(joined(prompt, answer, joiner)), limit - (lead if asked == "prompt" else 0)
            if length > room:
                behind = f" behind the {lead} of an edit's contexts" if room < limit else ""
                what = f"'{asked}' with '{answered}' has {length} tokens, but the model takes {room}{behind}"
                faults.append(Fault(place, what, "Shorten it, or leave it out"))
    # A target stands behind every paraphrase, and is told once.
    return list(dict.fromkeys(faults))


def unembedded_faults(
    facts: Sequence[Fact], places: Sequence[str], *, unembedded_in: Callable[[str], Sequence[str]]
) -> list[Fault]:
    """Texts with tokens that the tokenizer knows and the model has no embedding for.

    Args:
        unembedded_in: text -> such tokens in it.
    """
    faults: list[Fault] = []
    for fact, place in zip(facts, places, strict=True):
        for asked, prompt, answered, answer, joiner in _continuations(fact):
            if found := unembedded_in(joined(prompt, answer, joiner)):
                what = f"'{asked}' or '{answered}' holds {found[0]!r}, a token that the model has no embedding for"
                faults.append(Fault(place, what, "Leave it out"))
    return list(dict.fromkeys(faults))


def _continuations(fact: Fact) -> Iterator[tuple[str, str, str, str, str | None]]:
    """(field, prompt, field, what follows it, what joins the two) for all that the model will read of a fact."""
    yield "prompt", fact.text, "target", fact.target, fact.joiner
    if fact.old is not None:
        yield "prompt", fact.text, "old", fact.old, fact.joiner
    for index, paraphrase in enumerate(fact.paraphrases):
        yield f"paraphrases[{index}]", paraphrase, "target", fact.target, fact.joiner
    for name in QUESTION_LISTS:
        for index, question in enumerate(getattr(fact, name)):
            asked, answered = f"{name}[{index}].prompt", f"{name}[{index}].answer"
            yield asked, question.prompt, answered, question.answer, question.joiner
