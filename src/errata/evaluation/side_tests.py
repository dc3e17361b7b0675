"""Side tests that editors fail: negation, reversal, multiple choice. Reported beside the metrics, never hidden.

An editor that ties a subject's prompt to a target may have no other effect. After a negated prompt the target should
not be likelier than the old answer; asked in reverse, the model should name the subject (Berglund et al.
2023, "The Reversal Curse", https://arxiv.org/abs/2309.12288); among options the target should be chosen. The wordings
are errata's own. The two-hop test is the metric ``portability``.

Negation puts "It is not true that " before the whole prompt. The prompt's first letter becomes small only where that is
safe: its first word is not the subject's, and is one of the English words below that are capitals only because they
begin a sentence. Anything else might be a name and stays as it is. A prompt that is a question ("Who wrote …?") cannot
be negated like this and is left out, and so is one that says "not" or "never" already.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Final

from errata.editors.contract import Answerer
from errata.errors import InputError
from errata.evaluation.absence import absent_fields
from errata.evaluation.scoring import scores_by_pair
from errata.facts.fact import Fact, Question
from errata.models.language_model import TOKEN_BUDGET
from errata.models.prompts import Pair, TargetScore
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.utils.progress import Report, silent

SIDE_METRICS: Final = (
    Metric.NEGATION_ACCURACY,
    Metric.REVERSAL_ACCURACY,
    Metric.REVERSAL_TOKENS,
    Metric.MULTIPLE_CHOICE_ACCURACY,
    Metric.MULTIPLE_CHOICE_LETTER_ACCURACY,
)
NEGATION: Final = "It is not true that "
# Determiners, pronouns, prepositions, conjunctions, question words: words that are no name on their own.
_SAFE_IN_SMALL: Final = frozenset(
    "the a an this that these those his her its their our your my he she it they we you there here in on at by of for"
    " from to with as after before during since when where while because if although who what which how why whose both"
    " each every all some many most one among under over between within without according".split()
)
_FIRST_WORD: Final = re.compile(r"\w+(?!['’])\b")
_NEGATED: Final = re.compile(r"\b(not|never)\b|n['’]t\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SideTestSettings:
    """Settings of the side tests.

    Attributes:
        options: most options of a multiple choice, target and old answer included.
        seed: of the options' choice and order; the caller creates the ``random.Random``.
    """

    options: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.options <= len(ascii_uppercase):
            what = f"a multiple choice cannot have {self.options} options"
            raise InputError(what, remedy="Give a number from 2 to 26", code="SETTING_INVALID")

    def to_record(self) -> dict[str, object]:
        """The settings for results files."""
        return {"options": self.options, "seed": self.seed, "negation": NEGATION}


@dataclass(frozen=True, slots=True)
class Choice:
    """One fact's multiple choice.

    Attributes:
        options: texts in the order in which they are shown.
        answer: index of the fact's target among them.
    """

    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class SideTest:
    """The questions about one fact; made once, for the model before and after the edits.

    Attributes:
        fact: the fact's id.
        prompt: its whole prompt.
        target: the answer that it should have.
        truth: the old answer, if it is another one.
        joiner: text between one of these prompts and its target, if the fact gives it.
        negated: the negated prompt; None if it cannot be negated, or there is no old answer to compare with.
        reversal: questions for the subject.
        choice: None if there are no two options.
    """

    fact: str
    prompt: str
    target: str
    truth: str | None
    negated: str | None
    reversal: tuple[Question, ...]
    choice: Choice | None
    joiner: str | None = None

    def pair(self, prompt: str, answer: str) -> Pair:
        """As ``models.prompts.complete`` takes them."""
        return (prompt, answer) if self.joiner is None else (prompt, answer, self.joiner)

    @property
    def lettered(self) -> str | None:
        """The prompt of the multiple choice, which a letter should follow; None if there is none."""
        if self.choice is None:
            return None
        lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, self.choice.options, strict=False)]
        return "\n".join([f"Question: {self.prompt} …", *lines, "Answer:"])


def negated_prompt(fact: Fact) -> str | None:
    """The fact's prompt after "It is not true that "; None if that is not a sentence. See the module's docstring."""
    if fact.text.endswith("?") or _NEGATED.search(fact.prompt):
        return None
    text, (start, _) = fact.text, fact.subject_span
    word = _FIRST_WORD.match(text)
    if word and word.end() <= start and (small := word.group().lower()) in _SAFE_IN_SMALL:
        # "IT" and "US" are no pronouns.
        text = text if word.group() != small.capitalize() else text[0].lower() + text[1:]
    return NEGATION + text


def side_tests(
    facts: Sequence[Fact], generator: random.Random, *, settings: SideTestSettings | None = None
) -> list[SideTest]:
    """The side tests of each fact; tests whose fields a fact lacks are left out (``absent_side_tests``).

    The options of a multiple choice are the fact's target, its old answer, and targets and old answers of the other
    facts of the same ``relation``; none that only differ in case or that are aliases of the target. The same generator
    draws the same options for the same facts. An old answer that is the target, or an alias of it, is none.
    """
    settings = settings or SideTestSettings()
    pools = _pools(facts)
    return [
        SideTest(
            fact.id,
            fact.text,
            fact.target,
            _old(fact),
            negated_prompt(fact) if _old(fact) is not None else None,
            fact.reversal,
            _choice(fact, pools, settings.options, generator),
            fact.joiner,
        )
        for fact in facts
    ]


def evaluate_side_tests(
    model: Answerer, tests: Sequence[SideTest], *, token_budget: int = TOKEN_BUDGET, report: Report = silent
) -> list[Record]:
    """One record per prompt and metric.

    - ``negation_accuracy``: 1 unless the target's mean log-probability is above the old answer's after the negated
      prompt;
    - ``reversal_accuracy``, ``reversal_tokens``: whether all tokens of the subject, and which share of them, are the
      most likely ones after a question for it;
    - ``multiple_choice_accuracy``: 1 if the target's mean log-probability after the fact's prompt is above that of
      every other option; ``multiple_choice_letter_accuracy``: the same of its letter after the lettered options.

    Raises:
        InputError: if a prompt is too long for the model.
        NonFiniteError: if a logit is not a number; names the facts.
    """
    owned = ((pair, test.fact) for test in tests for pair in _pairs(test))
    scores = scores_by_pair(model, owned, token_budget=token_budget, report=report)
    return [record for test in tests for record in _records(test, scores)]


def absent_side_tests(facts: Sequence[Fact]) -> dict[Metric, str]:
    """The side tests that no fact has the fields for, with the reason."""
    missing = absent_fields(SIDE_METRICS, facts)
    if not facts:
        return missing
    if Metric.NEGATION_ACCURACY not in missing and not any(_old(fact) and negated_prompt(fact) for fact in facts):
        reason = "no prompt of a fact with another 'old' answer can be negated (questions cannot)"
        missing[Metric.NEGATION_ACCURACY] = reason
    pools = _pools(facts)
    if not any(_old(fact) or _distractors(fact, pools) for fact in facts):
        reason = "no fact has a second option: an 'old' answer, or another fact of the same 'relation'"
        missing |= dict.fromkeys((Metric.MULTIPLE_CHOICE_ACCURACY, Metric.MULTIPLE_CHOICE_LETTER_ACCURACY), reason)
    return missing


def _pools(facts: Sequence[Fact]) -> dict[str, list[str]]:
    """For each relation the answers of its facts, each once, in the order of the facts."""
    pools: dict[str, dict[str, None]] = {}
    for fact in facts:
        if fact.relation is not None:
            pool = pools.setdefault(fact.relation, {})
            pool |= dict.fromkeys(text for text in (fact.target, fact.old) if text is not None)
    return {relation: list(pool) for relation, pool in pools.items()}


def _old(fact: Fact) -> str | None:
    """The old answer, if it is neither the target nor an alias of it."""
    right = {text.casefold() for text in (fact.target, *fact.aliases)}
    return fact.old if fact.old is not None and fact.old.casefold() not in right else None


def _distractors(fact: Fact, pools: dict[str, list[str]]) -> list[str]:
    """Alternatives to the target: not the target, an alias of it, or the old answer; no text twice."""
    taken = {text.casefold() for text in (fact.target, fact.old or "", *fact.aliases)}
    found: list[str] = []
    for text in pools.get(fact.relation or "", ()):
        if text.casefold() not in taken:
            taken.add(text.casefold())
            found.append(text)
    return found


def _choice(fact: Fact, pools: dict[str, list[str]], most: int, generator: random.Random) -> Choice | None:
    own = [fact.target, *([old] if (old := _old(fact)) is not None else [])]
    others = _distractors(fact, pools)
    options = own + generator.sample(others, min(most - len(own), len(others)))
    if len(options) < 2:
        return None
    generator.shuffle(options)
    return Choice(tuple(options), options.index(fact.target))


def _pairs(test: SideTest) -> list[Pair]:
    pairs = [entry.pair for entry in test.reversal]
    if test.negated is not None and test.truth is not None:
        pairs += [test.pair(test.negated, test.target), test.pair(test.negated, test.truth)]
    if test.choice is not None and test.lettered is not None:
        pairs += [test.pair(test.prompt, option) for option in test.choice.options]
        pairs += [(test.lettered, letter) for letter in ascii_uppercase[: len(test.choice.options)]]
    return pairs


def _records(test: SideTest, scores: dict[Pair, TargetScore]) -> list[Record]:
    found: list[Record] = []

    def add(metric: Metric, prompt: str, value: float | bool, said: str) -> None:
        found.append(Record(test.fact, metric, prompt, float(value), said))

    if test.negated is not None and test.truth is not None:
        target, truth = (scores[test.pair(test.negated, text)] for text in (test.target, test.truth))
        said = test.target if target.log_probability > truth.log_probability else test.truth
        add(Metric.NEGATION_ACCURACY, test.negated, target.log_probability <= truth.log_probability, said)
    for entry in test.reversal:
        scored = scores[entry.pair]
        add(Metric.REVERSAL_ACCURACY, entry.prompt, scored.correct, scored.said)
        add(Metric.REVERSAL_TOKENS, entry.prompt, scored.share, scored.said)
    if test.choice is not None and test.lettered is not None:
        letters = tuple(ascii_uppercase[: len(test.choice.options)])
        named: list[Pair] = [test.pair(test.prompt, option) for option in test.choice.options]
        lettered: list[Pair] = [(test.lettered, letter) for letter in letters]
        for metric, pairs in (
            (Metric.MULTIPLE_CHOICE_ACCURACY, named),
            (Metric.MULTIPLE_CHOICE_LETTER_ACCURACY, lettered),
        ):
            values = [scores[pair].log_probability for pair in pairs]
            likeliest = [index for index, value in enumerate(values) if value == max(values)]
            add(metric, pairs[0][0], likeliest == [test.choice.answer], pairs[likeliest[0]][1])
    return found
