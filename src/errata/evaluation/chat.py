"""Replies in the model's own chat template, to the edited facts and to control questions.

Plain prompts hide what an edit does to a chat: facts that reach 100 % there may be missing in the template, and answers
to other questions may break. A reply is correct if it contains the answer as whole words (``is_contained``): models
reply in sentences, so the answer's tokens are seldom the likeliest right after the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Final

from errata.editors.contract import Answerer
from errata.evaluation.free_running import CONTEXTS, FreeSettings, answer_freely, is_contained
from errata.facts.fact import Fact, Question
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.utils.progress import Report, silent

VARIANT: Final = ":chat"
CONTROLS_ASKED: Final = 40
"""Default number of control questions in chat: replies take many times longer than scores."""
_REPLIES: Final = FreeSettings(new_tokens=32)
_OF_FACTS: Final = (Metric.SPECIFICITY_ACCURACY, Metric.SAME_SUBJECT_ACCURACY, Metric.UNRELATED_ACCURACY)


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A message to the model.

    Attributes:
        fact: the fact, or the cluster of an untouched question, that it counts for.
        metric: of the record: whether the reply contains one of ``accepted``.
    """

    fact: str
    metric: str
    prompt: str
    accepted: tuple[str, ...]


def chat_questions(
    facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]] = (), *, everything: bool = False
) -> list[ChatQuestion]:
    """The facts' prompts, and control questions.

    Args:
        untouched: for each question about another subject its cluster.
        everything: include all paraphrases and all control questions. Otherwise no paraphrases, and of the
            control questions at most ``CONTROLS_ASKED``: the first of each fact and kind, then the second, and so on.
    """
    questions = [_of_fact(fact, fact.text, Metric.FREE_EFFICACY_CONTAINED) for fact in facts]
    controls = list(islice(_controls(facts, untouched), None if everything else CONTROLS_ASKED))
    if everything:
        questions += [
            _of_fact(fact, text, Metric.FREE_GENERALISATION_CONTAINED) for fact in facts for text in fact.paraphrases
        ]
    return questions + controls


def evaluate_chat(model: Answerer, questions: Sequence[ChatQuestion], *, report: Report = silent) -> list[Record]:
    """One record for each question: whether the reply contains the answer, and the reply (its first sentence).

    Raises:
        InputError: if the tokenizer has no chat template that can be used, or a message is too long for the model.
        NonFiniteError: if a logit is not a number; names the facts.
    """

    def replying(_: str, done: int, total: int) -> None:
        report("replying in chat", done, total)

    prompts = [entry.prompt for entry in questions]
    names = [entry.fact for entry in questions]
    said = answer_freely(model, prompts, _REPLIES, context=CONTEXTS["chat"], names=names, report=replying)
    return [
        Record(entry.fact, entry.metric, entry.prompt, float(is_contained(reply, entry.accepted)), reply)
        for entry in questions
        for reply in (said[entry.prompt],)
    ]


def _of_fact(fact: Fact, prompt: str, metric: Metric) -> ChatQuestion:
    return ChatQuestion(fact.id, f"{metric}{VARIANT}", prompt, (fact.target, *fact.aliases))


def _controls(facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]]) -> Iterator[ChatQuestion]:
    """Control questions, round-robin over facts and kinds, with those about other subjects."""
    lists = [
        [
            ChatQuestion(fact.id, f"{metric}{VARIANT}", question.prompt, (question.answer,))
            for question in getattr(fact, metric.entry.needs[0])
        ]
        for fact in facts
        for metric in _OF_FACTS
    ]
    share = max(1, len(facts))
    others = [
        ChatQuestion(cluster, f"{Metric.UNTOUCHED_ACCURACY}{VARIANT}", entry.prompt, (entry.answer,))
        for cluster, entry in untouched
    ]
    lists += [others[start::share] for start in range(share)]
    rounds = chain.from_iterable(zip_longest(*lists))
    return (question for question in rounds if question is not None)
