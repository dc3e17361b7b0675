"""How well finished answers were rewritten: TE, TR, SE and SR of postEdit (Song et al. 2024, arXiv:2402.08631).

Two texts are compared, the answer before and after; TE and TR need no model. Where the published code differs:

- it looks for substrings; here whole words count, with aliases;
- it lower-cases TR within scope only; here always;
- it counts every neighbour; here those whose answer before was right, with the number over all beside it;
- in scope both count only answers that held the old object; here those that did not have a number of their own.

The semantic scores need local models, and are absent without: SE an entailment model, SR a sentence encoder. SE counts
every answer in scope, and SR the same answers as TR.

Where there are none, a language model gives other numbers in their stead, with names of their own (``StandIns``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from errata.editors.contract import Answerer
from errata.editors.embedders import Hidden, SentenceEmbedder
from errata.editors.substitute import substituted
from errata.errors import InputError
from errata.evaluation.absence import absent_fields
from errata.evaluation.free_running import is_contained
from errata.facts.fact import Fact
from errata.facts.joining import joined
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair
from errata.results.metrics import Metric, metrics_of
from errata.results.records import Record
from errata.utils.files import reading
from errata.utils.progress import Report, silent

QueryKind: TypeAlias = Literal["own", "paraphrase", "neighbour"]
IN_SCOPE: Final[tuple[QueryKind, ...]] = ("own", "paraphrase")
MASK: Final = "mask"
STAND_INS: Final = (Metric.SEMANTIC_EDIT_LM, Metric.SEMANTIC_RETENTION_LM, Metric.SEMANTIC_RETENTION_HIDDEN)


@dataclass(frozen=True, slots=True)
class EditedAnswer:
    """An answer before and after a rewrite.

    Attributes:
        kind: of the query: the fact's own prompt, a paraphrase, or a neighbour's.
        query: the prompt; only SE and the stand-ins read it, and ``prompt``, ``new_statement`` and ``old_statement``.
        new: the fact's target and its aliases.
        old: the fact's old object.
        right: of a neighbour its right answer; without meaning in scope.
    """

    kind: QueryKind
    before: str
    after: str
    new: tuple[str, ...]
    old: str
    right: str = ""
    query: str = ""
    new_statement: str = ""
    old_statement: str = ""
    prompt: str = ""


def textual_edit(answer: EditedAnswer) -> float:
    """TE: 1 if the answer after holds what it should and not what it should not; 0.5 if both; else 0.

    In scope it should hold the new object and not the old one; elsewhere its own right answer and not the new object.
    """
    wanted, unwanted = (answer.new, (answer.old,)) if answer.kind in IN_SCOPE else ((answer.right,), answer.new)
    if not is_contained(answer.after, wanted):
        return 0.0
    return 0.5 if is_contained(answer.after, unwanted) else 1.0


def textual_retention(answer: EditedAnswer) -> float:
    """TR: how much of the answer's other words stayed: ROUGE-1's F of both texts.

    In scope the old object (before) and the new one (after) count as the same word.
    """
    return unigram_f1(*_masked(answer))


def _masked(answer: EditedAnswer) -> tuple[str, str]:
    """The answers after and before as they are compared."""
    if answer.kind not in IN_SCOPE:
        return answer.after, answer.before
    after = substituted(answer.after, [(text, MASK) for text in answer.new])
    return after, substituted(answer.before, [(answer.old, MASK)])


def unigram_f1(text: str, reference: str) -> float:
    """ROUGE-1's F: twice the words in common, over the words of both; 1 for two texts without words.

    Words are runs of letters, digits and underscores, case-folded, without stemming.
    """
    one, other = (Counter(re.findall(r"\w+", each.casefold())) for each in (text, reference))
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


# Semantic scores


class AnswerSettings(BaseModel):
    """How answers are generated and compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_tokens: StrictInt = Field(40, ge=1, description="tokens of an answer at most, greedily chosen")
    entailment: str = Field("", description="a local directory of an entailment model, for SE")
    encoder: str = Field("", description="a local directory of sentence-transformers, for SR")
    stand_in: str = Field("", description="a language model, such as the unedited one, for the stand-ins of SE and SR")


class Entailment:
    """A sequence classifier with a label that begins with "entail".

    Raises:
        InputError: if the directory is no such model.
    """

    def __init__(self, directory: str) -> None:
        remedy = "Give a local directory of a sequence classifier with a label 'entailment'"
        with reading(f"the entailment model {directory!r}", remedy=remedy, code="ENTAILMENT_MODEL_UNREADABLE"):
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            self._model = AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True).eval()
            labels = self._model.config.id2label
            self._label = next((key for key, label in labels.items() if label.casefold().startswith("entail")), None)
            if self._label is None:
                raise ValueError(f"its labels are {', '.join(labels.values())}")

    def entails(self, premise: str, hypothesis: str) -> bool:
        """Whether entailment is the likeliest label. A longer premise than the model takes is cut at its end."""
        inputs = self._tokenizer(premise, hypothesis, truncation="only_first", return_tensors="pt")
        with torch.no_grad():
            return int(self._model(**inputs).logits[0].argmax()) == self._label


def semantic_edit(answer: EditedAnswer, entailment: Entailment) -> float:
    """SE: as TE, with what query and answer entail for what the answer contains."""
    premise = answer.query + answer.after
    wanted, unwanted = answer.new_statement, answer.old_statement
    if answer.kind not in IN_SCOPE:
        wanted, unwanted = joined(answer.query, answer.right), answer.new_statement
    if not entailment.entails(premise, wanted):
        return 0.0
    return 0.5 if entailment.entails(premise, unwanted) else 1.0


def semantic_retention(answer: EditedAnswer, encoder: SentenceEmbedder) -> float:
    """SR: the cosine of both texts, lower-cased; in scope with old and new object masked, as for TR."""
    after, before = encoder.vectors([text.lower() for text in _masked(answer)])
    return float(after @ before)


class StandIns:
    """Numbers by a language model where there is neither an entailment model nor a sentence encoder.

    Raises:
        InputError: if the model cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self._model = LanguageModel.load(name)
        self._embedder = Hidden().embedder(self._model)

    def semantic_edits(self, answers: Sequence[EditedAnswer]) -> list[float]:
        """For each answer 1 if, after query and answer, its object is likelier than the unwanted one, else 0.

        In scope log P(new) > log P(old), each the mean over its tokens, after "{query}{answer} In short: {prompt}" with
        the fact's prompt; elsewhere the same of the right answer and the new object, with the query for the prompt.
        """
        pairs: list[Pair] = []
        for answer in answers:
            own = answer.kind in IN_SCOPE
            prompt = f"{answer.query}{answer.after} In short: {answer.prompt if own else answer.query}"
            wanted, unwanted = (answer.new[0], answer.old) if own else (answer.right, answer.new[0])
            pairs += [(prompt, wanted), (prompt, unwanted)]
        scores = [score.log_probability for score in self._model.score(pairs)]
        return [float(one > other) for one, other in zip(scores[::2], scores[1::2], strict=True)]

    def retentions_by_likelihood(self, answers: Sequence[EditedAnswer]) -> list[float]:
        """For each answer log P(after) − log P(before), each the mean over its tokens, after "Rewrite: {before}"."""
        pairs: list[Pair] = []
        for answer in answers:
            prompt = f"Rewrite: {answer.before.strip()}"
            pairs += [(prompt, answer.after.strip()), (prompt, answer.before.strip())]
        scores = [score.log_probability for score in self._model.score(pairs)]
        return [after - before for after, before in zip(scores[::2], scores[1::2], strict=True)]

    def retentions_by_hidden_states(self, answers: Sequence[EditedAnswer]) -> list[float]:
        """For each answer the cosine of the texts that SR compares, as means of the model's hidden states."""
        masked = [_masked(answer) for answer in answers]
        index = self._embedder.index([before for _, before in masked])
        return index.cosines([after for after, _ in masked]).diagonal().tolist()


# Measuring


def answers_to_compare(
    model: Answerer, facts: Sequence[Fact], settings: AnswerSettings, *, report: Report = silent
) -> dict[str, str]:
    """The model's greedy answers to the facts' own prompts, their paraphrases and their neighbours, without context."""
    prompts = list(dict.fromkeys(prompt for fact in facts for _, prompt, _ in _queries(fact)))
    texts = model.continue_texts(prompts, new_tokens=settings.new_tokens, report=report)
    return dict(zip(prompts, texts, strict=True))


def _queries(fact: Fact) -> list[tuple[QueryKind, str, str]]:
    """(kind, prompt, a neighbour's right answer)."""
    found: list[tuple[QueryKind, str, str]] = [("own", fact.text, "")]
    found += [("paraphrase", text, "") for text in fact.paraphrases]
    return found + [("neighbour", question.prompt, question.answer) for question in fact.neighbours]


def answer_edit_records(
    facts: Sequence[Fact], before: Mapping[str, str], after: Mapping[str, str], settings: AnswerSettings
) -> list[Record]:
    """One record for each query and metric, ``{metric}:{kind of query}``; facts without an old object are left out.

    Args:
        before, after: of ``answers_to_compare``.

    Raises:
        InputError: if ``before`` lacks answers, or a local model cannot be read.
    """
    entailment = Entailment(settings.entailment) if settings.entailment else None
    encoder = SentenceEmbedder(Path(settings.encoder)) if settings.encoder else None
    stand_ins = StandIns(settings.stand_in) if settings.stand_in else None
    records: list[Record] = []
    compared: list[tuple[Fact, EditedAnswer, bool]] = []
    for fact in facts:
        if not fact.old:
            continue
        stated = joined(fact.text, fact.target, fact.joiner), joined(fact.text, fact.old, fact.joiner)
        for kind, prompt, right in _queries(fact):
            if prompt not in before or prompt not in after:
                what = f"the answers to {prompt!r} are missing"
                remedy = "Ask both models the same prompts first"
                raise InputError(what, remedy=remedy, code="ANSWERS_BEFORE_MISSING")
            answer = EditedAnswer(
                kind, before[prompt], after[prompt], (fact.target, *fact.aliases), fact.old, right, prompt, *stated,
                fact.text,
            )  # fmt: skip
            expected = fact.old if kind in IN_SCOPE else right
            counts = is_contained(answer.before, (expected,))
            compared.append((fact, answer, counts))
            edit = textual_edit(answer)
            values = {Metric.TEXTUAL_EDIT if counts else Metric.TEXTUAL_EDIT_OTHERS: edit}
            values[Metric.TEXTUAL_EDIT_ALL] = edit
            if counts:
                values[Metric.TEXTUAL_RETENTION] = textual_retention(answer)
                if encoder is not None:
                    values[Metric.SEMANTIC_RETENTION] = semantic_retention(answer, encoder)
            if entailment is not None and (counts or kind in IN_SCOPE):
                values[Metric.SEMANTIC_EDIT] = semantic_edit(answer, entailment)
            records += [_record(fact, answer, metric, value) for metric, value in values.items()]
    return records if stand_ins is None else records + _stand_in_records(compared, stand_ins)


def _record(fact: Fact, answer: EditedAnswer, metric: Metric, value: float) -> Record:
    return Record(fact.id, f"{metric}:{answer.kind}", answer.query, value, answer.after)


def _stand_in_records(compared: Sequence[tuple[Fact, EditedAnswer, bool]], stand_ins: StandIns) -> list[Record]:
    """Of the answers that SE and SR count; an answer without text has no retention."""
    edits = [(fact, answer) for fact, answer, counts in compared if counts or answer.kind in IN_SCOPE]
    kept = [(fact, answer) for fact, answer, counts in compared if counts and answer.after.strip()]
    values = {
        Metric.SEMANTIC_EDIT_LM: (edits, stand_ins.semantic_edits),
        Metric.SEMANTIC_RETENTION_LM: (kept, stand_ins.retentions_by_likelihood),
        Metric.SEMANTIC_RETENTION_HIDDEN: (kept, stand_ins.retentions_by_hidden_states),
    }
    return [
        _record(fact, answer, metric, value)
        for metric, (chosen, measure) in values.items()
        for (fact, answer), value in zip(chosen, measure([answer for _, answer in chosen]), strict=True)
    ]


def absent_answer_edits(facts: Sequence[Fact], settings: AnswerSettings) -> dict[Metric, str]:
    """The metrics that cannot be computed, with the reason."""
    missing = absent_fields((*metrics_of("textual_"), *metrics_of("semantic_")), facts)
    for metric, given, what in (
        (Metric.SEMANTIC_EDIT, settings.entailment, "no entailment model was given"),
        (Metric.SEMANTIC_RETENTION, settings.encoder, "no sentence encoder was given"),
        *((metric, settings.stand_in, "no language model was given as 'stand_in'") for metric in STAND_INS),
    ):
        if not given:
            missing.setdefault(metric, what)
    return missing
