"""Free-running recall, "in the wild": the model generates its answer; no token of the correct answer is given."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator
from transformers import PreTrainedTokenizerBase

from errata.editors.contract import Answerer
from errata.errors import InputError
from errata.evaluation.absence import NO_FACTS, absent_fields
from errata.evaluation.drift import locality_prompts
from errata.evaluation.judge import Case, Judge, Verdict
from errata.evaluation.scoring import naming_facts
from errata.facts.fact import Fact, Question
from errata.facts.joining import is_word_boundary
from errata.facts.sentences import first_sentence_end
from errata.models.language_model import CACHE_BUDGET
from errata.models.prompts import chat_text
from errata.results.metrics import Metric, metrics_of
from errata.results.records import Record
from errata.utils.progress import Report, silent

Ending = Literal["sentence", "full_stop"]
_ARTICLES: Final = frozenset({"the", "a", "an"})
_KEPT_SIGNS: Final = frozenset("#%&")  # C#, 5 %, AT&T
_POSSESSIVE: Final = re.compile(r"['’]s\b", re.IGNORECASE)
_ANY_FULL_STOP: Final = re.compile("[.。｡។။।]")


def answer_end(text: str, ending: Ending) -> int | None:
    """Where the answer in a growing text ends: at the first newline, or earlier; None if it may still continue.

    Args:
        ending: ``sentence``: after the full stop of the first sentence (see ``first_sentence_end``);
            ``full_stop``: before the first full stop of any kind.
    """
    newline = text.find("\n")
    line = text if newline < 0 else text[:newline]
    full_stop = _ANY_FULL_STOP.search(line)
    stop = first_sentence_end(line) if ending == "sentence" else full_stop and full_stop.start()
    if stop is not None:
        return stop
    return None if newline < 0 else newline


def answer_of(text: str, ending: Ending) -> str:
    """The answer in a whole text, without space around it."""
    end = answer_end(text, ending)
    return (text if end is None else text[:end]).strip()


def normalise(text: str) -> str:
    """A text as it is compared: words in small letters with one space between them.

    Unicode NFKC, case folded; apostrophes, and full stops that are not between digits, are removed ("U.S." is
    "us", "3.5" stays), other punctuation but #, % and & becomes a space.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = re.sub(r"['’ʼ`]|(?<!\d)\.|\.(?!\d)", "", folded)
    spaced = "".join(
        " " if unicodedata.category(sign)[0] in "PZC" and sign not in _KEPT_SIGNS | {"."} else sign for sign in folded
    )
    return " ".join(spaced.split())


def is_exact(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is one of the accepted ones, normalised, an article in front not counted."""
    given = _compared(answer)
    return any(given == _compared(text) for text in accepted)


def is_contained(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is one of the accepted ones, or contains one as whole words, normalised.

    In scripts that set no spaces between words a word may begin and end at every character (``is_word_boundary``). What
    something belongs to is contained too: "Rembrandt's painting" contains "Rembrandt".
    """
    texts = [normalise(text) for text in accepted]
    matching = (normalise(answer), normalise(_POSSESSIVE.sub("", answer)))
    return is_exact(answer, accepted) or any(_count(words, text) for words in matching for text in texts)


def is_repeated(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer contains an accepted one more than once ("Rome, Rome, Rome")."""
    words = normalise(answer)
    return any(_count(words, normalise(text)) > 1 for text in accepted)


def _count(words: str, text: str) -> int:
    """How many times a text occurs in another as consecutive whole words; 0 for an empty text."""
    count, place = 0, words.find(text) if text else -1
    while place >= 0:
        end = place + len(text)
        whole = is_word_boundary(words, place) and is_word_boundary(words, end)
        count += whole
        place = words.find(text, end if whole else place + 1)
    return count


def _compared(text: str) -> str:
    """Normalised, without an article in front; a text of punctuation only is unchanged."""
    first, _, rest = normalise(text).partition(" ")
    whole = rest if rest and first in _ARTICLES else f"{first} {rest}".strip()
    return whole or text.strip()


ContextName = Literal["bare", "instruction", "chat"]
_PLACE: Final = "{}"


@dataclass(frozen=True, slots=True)
class Context:
    """The text around a question.

    Attributes:
        name: in metrics' names (``free_efficacy_exact:chat``); the bare question goes without it.
        template: a text with ``{}`` once; None for the tokenizer's own chat template, the question being the user's.
    """

    name: ContextName
    template: str | None

    def missing(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """The reason why the tokenizer does not support this context; None if it does."""
        if self.template is None and not tokenizer.chat_template:
            return "the tokenizer has no chat template"
        return None

    def text(self, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
        """The whole text that the model reads; of a chat with its special tokens."""
        if self.template is not None:
            before, after = self.template.split(_PLACE)
            return before + question + after
        return chat_text(tokenizer, question)

    def may_be_of(self, text: str, question: str) -> bool:
        """Whether a whole text may contain a question, by text alone; a chat template may trim it."""
        if self.template is not None:
            before, after = self.template.split(_PLACE)
            return text == before + question + after
        return question.strip() in text


CONTEXTS: Final[dict[str, Context]] = {
    context.name: context
    for context in (
        Context("bare", "{}"),
        Context("instruction", "Please answer the question:\n\nQ: {}\nA:"),
        Context("chat", None),
    )
}


class FreeSettings(BaseModel):
    """How answers are generated and judged. The defaults are errata's; ``WILD`` is the paper's evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_tokens: StrictInt = Field(50, ge=1, description="tokens of an answer at most, greedily chosen")
    ending: Ending = Field(
        "sentence",
        description="an answer ends at a newline, at EOS, and: after its first sentence, or before any full stop",
    )
    contexts: tuple[ContextName, ...] = Field(
        ("bare", "instruction", "chat"), min_length=1, description="the text around a question"
    )
    aliases: StrictBool = Field(True, description="a fact's aliases are right too")
    contained: StrictBool = Field(True, description="also record whether an answer contains the correct one")
    judge_alone: StrictBool = Field(False, description="a judge, if there is one, takes the place of the exact match")
    repeated_is_wrong: StrictBool = Field(False, description="an answer that repeats the correct one counts as wrong")

    @field_validator("contexts")
    @classmethod
    def _distinct(cls, contexts: tuple[ContextName, ...]) -> tuple[ContextName, ...]:
        if len(set(contexts)) != len(contexts):
            raise ValueError("a context is listed twice")
        return contexts


WILD: Final = FreeSettings(ending="full_stop", aliases=False, contained=False, judge_alone=True, repeated_is_wrong=True)
"""Free-running evaluation as in Yang et al. (2025), "The Mirage of Model Editing: Revisiting Evaluation in the Wild".

Where our default (``FreeSettings()``) deviates from it:

- an answer ends after its first *sentence*, so that "St. Louis" is one answer; there it ends before any full stop;
- an answer that *contains* the right one as whole words counts in a metric of its own (``…_contained``); there, without
  a judge, only an exact match counts;
- a fact's aliases are right too; there only the target is;
- exact match, containment and the judge are reported side by side; there the judge replaces exact match;
- an answer that repeats the right one is graded by the judge; there it is wrong (a list of several answers is wrong in
  both: it is no exact match, and the judge's instructions reject it).

Both use the bare question, the instruction and the model's own template, and report each separately.
"""


MEASURES = ("exact", "contained", "judged")


class FreeKind(StrEnum):
    """The property that a free question tests."""

    EFFICACY = "efficacy"
    GENERALISATION = "generalisation"
    PORTABILITY = "portability"


@dataclass(frozen=True, slots=True)
class FreeQuestion:
    """A question, the fact that it counts for, and the answers that are right."""

    fact: str
    kind: FreeKind
    prompt: str
    accepted: tuple[str, ...]


def free_questions(facts: Sequence[Fact], *, aliases: bool = True) -> list[FreeQuestion]:
    """The edited prompts, the paraphrases, and the multi-hop questions (whose answers have no aliases)."""
    found: list[FreeQuestion] = []
    for fact in facts:
        accepted = (fact.target, *(fact.aliases if aliases else ()))
        found.append(FreeQuestion(fact.id, FreeKind.EFFICACY, fact.text, accepted))
        found += [FreeQuestion(fact.id, FreeKind.GENERALISATION, text, accepted) for text in fact.paraphrases]
        found += [FreeQuestion(fact.id, FreeKind.PORTABILITY, hop.prompt, (hop.answer,)) for hop in fact.portability]
    return found


def expected_answer(questions: Sequence[FreeQuestion], metric: str, prompt: str) -> str | None:
    """The right answer to the question of a record of ``evaluate_free``; ``prompt`` is the question in its context.

    Args:
        questions: those of the record's fact.

    Returns:
        The target, or the question's answer; None for a metric that is not of these, or if the text can be of several
        questions with different answers.
    """
    name, _, where = metric.partition(":")
    if name == Metric.FREE_JUDGE_MISSING:
        kinds = set(FreeKind)
    else:
        kinds = {kind for kind in FreeKind if name in {f"free_{kind}_{measure}" for measure in MEASURES}}
    candidates = [entry for entry in questions if entry.kind in kinds]
    context = CONTEXTS.get(where or "bare")
    matching = [entry for entry in candidates if context is not None and context.may_be_of(prompt, entry.prompt)]
    if matching:  # a question may be part of a longer one; then the longer one is used
        longest = max(len(entry.prompt) for entry in matching)
        candidates = [entry for entry in matching if len(entry.prompt) == longest]
    answers = {entry.accepted[0] for entry in candidates}
    return answers.pop() if len(answers) == 1 else None


def answer_freely(
    model: Answerer,
    prompts: Sequence[str],
    settings: FreeSettings | None = None,
    *,
    context: Context = CONTEXTS["bare"],
    names: Sequence[str] | None = None,
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> dict[str, str]:
    """The greedy answer to each distinct prompt in a context, up to where it ends, without space around it.

    Args:
        names: what each prompt is called in an error; itself by default.
        token_budget: see ``Answerer.continue_texts``; the answers do not depend on it.

    Raises:
        InputError: if a prompt with its answer is longer than the model takes.
        NonFiniteError: if a logit is not a number; names the prompts.
    """
    settings = settings or FreeSettings()
    owners: dict[str, str] = {}
    for prompt, name in zip(prompts, prompts if names is None else names, strict=True):
        owners.setdefault(prompt, name)
    texts = [context.text(model.tokenizer, prompt) for prompt in owners]
    with naming_facts(zip(texts, owners.values(), strict=True)):
        continuations = model.continue_texts(
            texts,
            new_tokens=settings.new_tokens,
            stop=lambda text: answer_end(text, settings.ending) is not None,
            token_budget=token_budget,
            report=lambda _, done, total: report("answering", done, total),
        )
    return {prompt: answer_of(text, settings.ending) for prompt, text in zip(owners, continuations, strict=True)}


def evaluate_free(
    model: Answerer,
    facts: Sequence[Fact],
    settings: FreeSettings | None = None,
    *,
    judge: Judge | None = None,
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> list[Record]:
    """One record for each question, context and measure, ``free_{kind}_{measure}``, followed by ``:{context}`` unless
    the question is bare. ``prompt`` is the whole text that the model read, ``said`` its answer.

    A question that the judge did not answer has no ``…_judged`` record, so it counts neither as right nor as wrong;
    ``free_judge_missing`` is 1 for it, its ``said`` being the reason, and 0 for every other question put to the judge.

    Raises:
        InputError, NonFiniteError: see ``answer_freely``; the latter names the facts.
    """
    settings = settings or FreeSettings()
    questions = free_questions(facts, aliases=settings.aliases)
    unused = _unused_measures(settings, judge)
    records: list[Record] = []
    for context in (CONTEXTS[name] for name in settings.contexts):
        if context.missing(model.tokenizer) is not None:
            continue
        found = answer_freely(
            model,
            [question.prompt for question in questions],
            settings,
            context=context,
            names=[question.fact for question in questions],
            token_budget=token_budget,
            report=report,
        )
        answers = [found[question.prompt] for question in questions]
        for question, answer, verdict in zip(
            questions, answers, _verdicts(questions, answers, settings, judge), strict=True
        ):
            text = context.text(model.tokenizer, question.prompt)
            values = {
                "exact": is_exact(answer, question.accepted),
                "contained": is_contained(answer, question.accepted),
                "judged": None if verdict is None else verdict.correct,
            }
            for measure, value in values.items():
                if measure not in unused and value is not None:
                    metric = _name(f"free_{question.kind}_{measure}", context)
                    records.append(Record(question.fact, metric, text, float(value), answer))
            if verdict is not None:
                missing = verdict.correct is None
                metric, said = _name(Metric.FREE_JUDGE_MISSING, context), verdict.reason if missing else answer
                records.append(Record(question.fact, metric, text, float(missing), said))
    return records


def absent_free(
    model: Answerer, facts: Sequence[Fact], settings: FreeSettings | None = None, *, judge: Judge | None = None
) -> dict[str, str]:
    """The metrics of ``evaluate_free`` that cannot be computed, with the reason."""
    settings = settings or FreeSettings()
    measures = {Metric(f"free_{kind}_{measure}"): measure for kind in FreeKind for measure in MEASURES}
    unused = _unused_measures(settings, judge)
    lacking = absent_fields(measures, facts)
    reasons = {metric: lacking.get(metric) or unused.get(measure) for metric, measure in measures.items()}
    reasons[Metric.FREE_JUDGE_MISSING] = unused.get("judged") if facts else NO_FACTS
    missing: dict[str, str] = {}
    for context in (CONTEXTS[name] for name in settings.contexts):
        no_context = context.missing(model.tokenizer)
        for metric, reason in reasons.items():
            if (why := no_context or reason) is not None:
                missing[_name(metric, context)] = why
    return missing


def evaluate_free_locality(
    model: Answerer,
    facts: Sequence[Fact],
    before: Mapping[str, str],
    settings: FreeSettings | None = None,
    *,
    untouched: Sequence[tuple[str, Question]] = (),
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> list[Record]:
    """Whether the answer to each neighbouring, unrelated and untouched prompt, bare, is letter for letter what it was.

    Args:
        before: prompt -> answer of the unedited model by the same settings; see ``locality_answers``.

    Raises:
        InputError: if ``before`` lacks prompts, or a prompt is too long for the model.
        NonFiniteError: if a logit is not a number; names the facts.
    """
    locality = locality_prompts(facts, untouched)
    if lacking := [entry.prompt for entry in locality if entry.prompt not in before]:
        what = f"the unedited model's answers to {len(lacking)} prompts are missing, such as to {lacking[0]!r}"
        remedy = "Ask the unedited model the same prompts first"
        raise InputError(what, remedy=remedy, code="ANSWERS_BEFORE_MISSING")
    after = locality_answers(model, facts, settings, untouched=untouched, token_budget=token_budget, report=report)
    records = []
    for entry in locality:
        metric, answer = Metric(f"free_locality_{entry.kind}"), after[entry.prompt]
        records.append(Record(entry.fact, metric, entry.prompt, float(answer == before[entry.prompt]), answer))
    return records


def locality_answers(
    model: Answerer,
    facts: Sequence[Fact],
    settings: FreeSettings | None = None,
    *,
    untouched: Sequence[tuple[str, Question]] = (),
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> dict[str, str]:
    """A model's answers to the prompts of ``evaluate_free_locality``; see ``answer_freely``."""
    locality = locality_prompts(facts, untouched)
    return answer_freely(
        model,
        [entry.prompt for entry in locality],
        settings,
        names=[entry.fact for entry in locality],
        token_budget=token_budget,
        report=report,
    )


def absent_free_locality(facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]] = ()) -> dict[Metric, str]:
    """The kinds of free-running locality that there are no prompts for, with the reason."""
    return absent_fields(metrics_of("free_locality_"), facts, untouched)


def _verdicts(
    questions: Sequence[FreeQuestion], answers: Sequence[str], settings: FreeSettings, judge: Judge | None
) -> list[Verdict | None]:
    """The judge's verdicts in order; all None without a judge."""
    if judge is None:
        return [None] * len(questions)
    repeated = [
        settings.repeated_is_wrong and is_repeated(answer, question.accepted)
        for question, answer in zip(questions, answers, strict=True)
    ]
    cases = [
        Case(question.prompt, question.accepted, answer)
        for question, answer, wrong in zip(questions, answers, repeated, strict=True)
        if not wrong
    ]
    found = iter(judge.judge(cases))
    return [
        Verdict(False, "it contains the correct answer more than once") if wrong else next(found) for wrong in repeated
    ]


def _unused_measures(settings: FreeSettings, judge: Judge | None) -> dict[str, str]:
    """The measures that these settings leave out, with the reason."""
    reasons: dict[str, str] = {}
    if judge is None:
        reasons["judged"] = "no judge was given"
    elif settings.judge_alone:
        reasons["exact"] = "the judge takes its place in these settings"
    if not settings.contained:
        reasons["contained"] = "these settings leave it out"
    return reasons


def _name(metric: str, context: Context) -> str:
    return str(metric) if context.name == "bare" else f"{metric}:{context.name}"
