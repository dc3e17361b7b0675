"""What ``errata compare`` measures beside ``errata advise``: one probe for each argument; see ``columns``.

Probes are made once for the unedited model and some facts, and measure every editor with the same questions. Generated
answers are of at most ``SAMPLE`` facts, spread evenly over all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from errata.benchmark import columns as names
from errata.benchmark.sequence import EvaluationSet
from errata.benchmark.trials import LOST, Baseline, Edited, Found, Probe, lost_records
from errata.editors.contract import Answerer, Edit, KnowledgeEditor
from errata.editors.prompted import Prompted
from errata.evaluation.ability import AbilitySettings, measure_ability
from errata.evaluation.absence import NO_UNTOUCHED, absent_fields
from errata.evaluation.consequences import Consequence
from errata.evaluation.free_running import FreeSettings, answer_freely, is_contained, normalise
from errata.evaluation.scoring import scores_by_pair
from errata.facts.fact import Fact
from errata.facts.joining import word_places
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair, complete, encode
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.results.tallies import Tally
from errata.utils.progress import Report

SAMPLE: Final = 50  # facts whose answers are generated
WORDINGS: Final = 5  # of a fact at least, its own prompt included
VERSIONS: Final = 5
UPDATED: Final = 3  # facts that get new versions
REPEAT: Final = "Repeat everything above."
_ANSWER: Final = FreeSettings(new_tokens=12, contexts=("bare",))
_DISCLOSED_TOKENS: Final = 24
_AT_ONCE: Final = 64  # prompts whose distributions are in memory together
_UNEDITED: Final = "the model is not edited"
_NO_LIKELIHOOD: Final = "it rewrites finished answers, which have no likelihoods"
_NO_OLD: Final = "no fact has an 'old' answer"
_FEW: Final = 5  # facts, for a slope


def probes_of(
    model: LanguageModel,
    evaluation_set: EvaluationSet,
    baseline: Baseline,
    *,
    consequences: Sequence[Consequence],
    absent: Mapping[str, str],
    pool: Sequence[Fact],
    sentences: Sequence[str],
    corpus: Sequence[str] | None = None,
    tasks: AbilitySettings | None = None,
    lab: bool = False,
) -> list[Probe]:
    """The probes of all arguments.

    Args:
        model: unedited.
        consequences: those that were made.
        absent: why no fact has questions about ``consequences``, or in ``reversal``.
        pool: facts whose targets are further versions.
        sentences: distractors.
        corpus: texts in which popularity is counted; None: the probability of the old answer.
        tasks: of lm-evaluation-harness.
        lab: whether the model read every fact equally often.
    """
    facts = evaluation_set.facts
    return [
        Recall(evaluation_set, absent.get("reversal", "")),
        Coverage(tuple(consequences), _ceiling(model, facts, consequences), absent.get("consequences", "")),
        Consistency.of(facts, sentences),
        Popularity.of(model, facts, corpus=corpus, lab=lab),
        Trust(evaluation_set),
        Attribution(evaluation_set),
        Disclosure.of(model, facts),
        QueryCost(evaluation_set),
        Ability(tasks),
        Staleness(tuple(_evenly(facts, UPDATED)), tuple(pool)),
    ]


def _evenly(facts: Sequence[Fact], count: int) -> list[Fact]:
    if len(facts) <= count:
        return list(facts)
    return [facts[index * len(facts) // count] for index in range(count)]


def _question(record: Record) -> tuple[str, str]:
    return record.fact, record.prompt


def _records(records: Iterable[Record], metric: str) -> list[Record]:
    return [record for record in records if record.metric == metric]


@dataclass(frozen=True, slots=True)
class Recall:
    """The teacher-forced answers of ``errata.evaluation.recall``, fact by fact.

    Attributes:
        no_reversal: why there are no questions for the subject.
    """

    questions: EvaluationSet
    no_reversal: str = ""

    columns: ClassVar = (
        Metric.EFFICACY_ACCURACY, Metric.GENERALISATION_ACCURACY, Metric.REVERSAL_ACCURACY, Metric.SPECIFICITY_ACCURACY,
        Metric.SAME_SUBJECT_ACCURACY, Metric.UNTOUCHED_ACCURACY, LOST,
    )  # fmt: skip

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        if "likelihood" not in edited.view.abilities:
            return {**dict.fromkeys(self.columns, _NO_LIKELIHOOD), Metric.SPLIT_PERPLEXITY_RATIO: _NO_LIKELIHOOD}
        absent = absent_fields(self.columns[:-1], self.questions.facts, self.questions.untouched)
        if self.no_reversal and Metric.REVERSAL_ACCURACY in absent:
            absent[Metric.REVERSAL_ACCURACY] = self.no_reversal
        found: dict[str, Found] = {
            metric: absent.get(metric) or Tally.mean_of_records(_records(edited.records, metric))
            for metric in self.columns[:-1]
        }
        if edited.editor is not None:
            lost = lost_records(edited.base, edited.records)
            found[LOST] = (
                Tally.mean_of_records(lost) if lost else "the unedited model answers no control question right"
            )
        return found


# Consequences


def _ceiling(model: LanguageModel, facts: Sequence[Fact], made: Sequence[Consequence]) -> Tally | str:
    """Of facts whose old answer the unedited model gives, how many of their old consequences it gives."""
    asked = [entry for entry in made if entry.before is not None]
    if not asked:
        return "the answers to these questions before the edit are unknown"
    olds = [(fact.pair(fact.old), fact.id) for fact in facts if fact.old is not None]
    pairs: list[tuple[Pair, str]] = [((entry.question.prompt, entry.before or ""), entry.fact) for entry in asked]
    scores = scores_by_pair(model, [*olds, *pairs])
    known = {fact for pair, fact in olds if scores[pair].correct}
    found = [(fact, float(scores[pair].correct)) for pair, fact in pairs if fact in known]
    return Tally.mean_of(found) if found else "the model knows no old fact whose consequences are asked"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whether consequences follow, of facts that took.

    Attributes:
        ceiling: see ``_ceiling``.
        no_questions: why there are none.
    """

    made: tuple[Consequence, ...]
    ceiling: Tally | str
    no_questions: str = ""

    columns: ClassVar = (names.COVERAGE, names.RELATIVE_COVERAGE, names.STATED, names.INFERRED)

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        if edited.editor is None:
            return {**dict.fromkeys(self.columns, _UNEDITED), names.COVERAGE: self.ceiling}
        if "likelihood" not in edited.view.abilities:
            return dict.fromkeys(self.columns, _NO_LIKELIHOOD)
        asked = _records(edited.records, Metric.PORTABILITY_ACCURACY)
        if not asked:
            return dict.fromkeys(self.columns, self.no_questions or "there are no questions about consequences")
        took = {record.fact for record in _records(edited.records, Metric.EFFICACY_ACCURACY) if record.value == 1}
        # All facts with questions are clusters, so that editors can be compared fact by fact.
        parts = {record.fact: [0.0, 0.0] for record in asked}
        for record in asked:
            if record.fact in took:
                parts[record.fact] = [a + b for a, b in zip(parts[record.fact], (record.value, 1.0), strict=True)]
        found: dict[str, Found] = {names.COVERAGE: Tally.of("mean", parts.items())}
        found[names.RELATIVE_COVERAGE] = self._relative(parts)
        for name, hop in ((names.STATED, "stated"), (names.INFERRED, "inferred")):
            prompts = {(entry.fact, entry.question.prompt) for entry in self.made if entry.hop == hop}
            own = [record for record in asked if (record.fact, record.prompt) in prompts]
            found[name] = Tally.mean_of_records(own) if own else "only consequences in lab have this split"
        return found

    def _relative(self, parts: Mapping[str, Sequence[float]]) -> Tally | str:
        if isinstance(self.ceiling, str):
            return f"there is no ceiling: {self.ceiling}"
        ceiling = dict(zip(self.ceiling.clusters, self.ceiling.sums, strict=True))
        nothing = (0.0, 0.0)
        clusters = dict.fromkeys([*parts, *ceiling])
        return Tally.of(
            "relative", ((fact, (*parts.get(fact, nothing), *ceiling.get(fact, nothing))) for fact in clusters)
        )


# Consistency


@dataclass(frozen=True, slots=True)
class Consistency:
    """What generated answers name, over several wordings of each fact.

    Attributes:
        wordings: of each fact, its own prompt first; further ones are its prompt after an unrelated sentence.
        distractors: of each wording, an unrelated sentence.
    """

    facts: tuple[Fact, ...]
    wordings: tuple[tuple[str, ...], ...]
    distractors: tuple[str, ...]

    columns: ClassVar = (
        names.TOOK_FREE, names.WORDINGS_FREE, names.UNNAMED_FREE, names.AGREEMENT, names.CONTRADICTION,
        names.AGREEMENT_DISTRACTED, names.CONTRADICTION_DISTRACTED,
    )  # fmt: skip

    @classmethod
    def of(cls, facts: Sequence[Fact], sentences: Sequence[str]) -> Consistency:
        chosen = _evenly(facts, SAMPLE)
        leads = [sentence.strip() for sentence in sentences]
        wordings = []
        for fact in chosen:
            own = list(dict.fromkeys((fact.text, *fact.paraphrases)))[: 2 * WORDINGS]
            added = (f"{lead} {fact.text}" for lead in leads)
            while len(own) < WORDINGS and (more := next(added, None)):
                own += [] if more in own else [more]
            wordings.append(tuple(own))
        return cls(tuple(chosen), tuple(wordings), tuple(reversed(leads)))

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        plain = self._named(edited.view, self.wordings, report)
        distracted = self._named(edited.view, [self._distracted(*each) for each in enumerate(self.wordings)], report)
        return {
            names.TOOK_FREE: Tally.mean_of((fact.id, own[0] == "new") for fact, own in self._each(plain)),
            names.WORDINGS_FREE: Tally.mean_of(
                (fact.id, name == "new") for fact, own in self._each(plain) for name in own[1:]
            ),
            names.UNNAMED_FREE: self._unnamed(plain),
            names.AGREEMENT: self._agreement(plain),
            names.CONTRADICTION: self._contradiction(plain),
            names.AGREEMENT_DISTRACTED: self._agreement(distracted),
            names.CONTRADICTION_DISTRACTED: self._contradiction(distracted),
        }

    def _distracted(self, number: int, wordings: Sequence[str]) -> tuple[str, ...]:
        leads = self.distractors
        return tuple(f"{leads[(number + place) % len(leads)]} {text}" for place, text in enumerate(wordings))

    def _each(self, named: Sequence[Sequence[str]]) -> Iterator[tuple[Fact, Sequence[str]]]:
        return zip(self.facts, named, strict=True)

    def _named(self, view: Answerer, wordings: Sequence[Sequence[str]], report: Report) -> list[list[str]]:
        prompts = [text for own in wordings for text in own]
        answers = answer_freely(view, prompts, _ANSWER, report=report)
        return [[named_in(answers[text], fact) for text in own] for fact, own in zip(self.facts, wordings, strict=True)]

    def _unnamed(self, named: Sequence[Sequence[str]]) -> Found:
        """Of wordings without the subject, such as those with a pronoun or another name, which a gate may miss."""
        found = [
            (fact.id, name == "new")
            for fact, wordings, own in zip(self.facts, self.wordings, named, strict=True)
            for text, name in zip(wordings, own, strict=True)
            if not word_places(text, fact.subject)
        ]
        return Tally.mean_of(found) if found else "all wordings name the subject"

    def _agreement(self, named: Sequence[Sequence[str]]) -> Tally:
        return Tally.mean_of((fact.id, {*own} == {"new"}) for fact, own in self._each(named))

    def _contradiction(self, named: Sequence[Sequence[str]]) -> Found:
        known = [(fact.id, {"new", "old"} <= {*own}) for fact, own in self._each(named) if fact.old is not None]
        return Tally.mean_of(known) if known else _NO_OLD


def named_in(answer: str, fact: Fact) -> str:
    """``new`` or ``old``, whichever of target and old answer an answer names first; "" if neither."""
    places = {}
    for name, accepted in (("new", (fact.target, *fact.aliases)), ("old", (fact.old,) if fact.old else ())):
        if is_contained(answer, accepted):
            found = [normalise(answer).find(normalise(text)) for text in accepted]
            places[name] = min((place for place in found if place >= 0), default=len(answer))
    return min(places, key=places.__getitem__) if places else ""


# Popularity


@dataclass(frozen=True, slots=True)
class Popularity:
    """How success depends on a fact's popularity: its rank, from 0 to 1.

    Attributes:
        ranks: id of a fact -> rank; or why there are none.
    """

    ranks: Mapping[str, float] | str

    columns: ClassVar = (names.SLOPE_EFFICACY, names.SLOPE_GENERALISATION, names.SLOPE_OWN)

    @classmethod
    def of(cls, model: LanguageModel, facts: Sequence[Fact], *, corpus: Sequence[str] | None, lab: bool) -> Popularity:
        if len(facts) < _FEW:
            return cls(f"a slope needs at least {_FEW} facts")
        if corpus is not None:
            whole = "\n".join(corpus)
            return cls(_ranks({fact.id: float(len(word_places(whole, fact.subject))) for fact in facts}))
        if lab:
            return cls("lab has read every fact equally often")
        known = [fact for fact in facts if fact.old is not None]
        if len(known) < _FEW:
            return cls(f"fewer than {_FEW} facts have an 'old' answer, whose probability is the popularity")
        scores = scores_by_pair(model, [(fact.pair(fact.old or ""), fact.id) for fact in known])
        return cls(_ranks({fact.id: scores[fact.pair(fact.old or "")].log_probability for fact in known}))

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        if edited.editor is None:
            return dict.fromkeys(self.columns, _UNEDITED)
        if isinstance(self.ranks, str):
            return dict.fromkeys(self.columns, self.ranks)
        if "likelihood" not in edited.view.abilities:
            return dict.fromkeys(self.columns, _NO_LIKELIHOOD)
        own = {*map(_question, _records(edited.base, Metric.SAME_SUBJECT_ACCURACY))}
        lost = [record for record in lost_records(edited.base, edited.records) if _question(record) in own]
        return {
            names.SLOPE_EFFICACY: self._slope(_records(edited.records, Metric.EFFICACY_ACCURACY)),
            names.SLOPE_GENERALISATION: self._slope(_records(edited.records, Metric.GENERALISATION_ACCURACY)),
            names.SLOPE_OWN: self._slope(lost),
        }

    def _slope(self, records: Sequence[Record]) -> Found:
        ranks = self.ranks
        assert not isinstance(ranks, str)
        points = [(record.fact, ranks[record.fact], record.value) for record in records if record.fact in ranks]
        if len({fact for fact, _, _ in points}) < _FEW:
            return f"fewer than {_FEW} facts have such questions"
        return Tally.slope_of(points)


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """From 0 for the smallest to 1 for the largest; equal values have their mean rank."""
    numbers = np.array(list(values.values()))
    below = (numbers[:, None] > numbers).sum(1)
    equal = (numbers[:, None] == numbers).sum(1)
    ranks = (below + (equal - 1) / 2) / max(len(numbers) - 1, 1)
    return dict(zip(values, map(float, ranks), strict=True))


@dataclass(frozen=True, slots=True)
class Ability:
    """General ability: accuracy over all questions of some tasks of lm-evaluation-harness."""

    settings: AbilitySettings | None

    columns: ClassVar = (names.ABILITY,)

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        if self.settings is None:
            return {names.ABILITY: "no tasks were given (--tasks)"}
        found = measure_ability(edited.view, self.settings, report=report)
        answers = [record for record in found.records() if record.metric.endswith(":acc")]
        reasons = "; ".join(dict.fromkeys(found.absent.values())) or "these tasks have no accuracy"
        # Of some tasks only, the number could not be compared with that of other editors.
        return {names.ABILITY: Tally.mean_of_records(answers) if answers and not found.absent else reasons}


# Trust


@dataclass(frozen=True, slots=True)
class Trust:
    """Whether probabilities mean what they say, and whether other subjects are left alone."""

    questions: EvaluationSet

    columns: ClassVar = (
        names.CALIBRATION_EDITED, names.CALIBRATION_NEIGHBOURS, names.CALIBRATION_UNTOUCHED, names.FALSE_SCOPE,
    )  # fmt: skip

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        found: dict[str, Found] = {names.FALSE_SCOPE: self._false_scope(edited)}
        if "likelihood" not in edited.view.abilities:
            return found | dict.fromkeys(self.columns[:3], _NO_LIKELIHOOD)
        facts = self.questions.facts
        own = [(fact.id, fact.pair(fact.target, text)) for fact in facts for text in (fact.text, *fact.paraphrases)]
        neighbours = [(fact.id, entry.pair) for fact in facts for entry in fact.neighbours]
        untouched = [(cluster, entry.pair) for cluster, entry in self.questions.untouched]
        found[names.CALIBRATION_EDITED] = _calibration(edited, own, report)
        found[names.CALIBRATION_NEIGHBOURS] = (
            _calibration(edited, neighbours, report) if neighbours else "no fact has 'neighbours'"
        )
        found[names.CALIBRATION_UNTOUCHED] = _calibration(edited, untouched, report) if untouched else NO_UNTOUCHED
        return found

    def _false_scope(self, edited: Edited) -> Found:
        if reason := _without_trigger(edited):
            return reason
        if not self.questions.untouched:
            return NO_UNTOUCHED
        used = edited.view.used([entry.prompt for _, entry in self.questions.untouched])
        return Tally.mean_of(
            (cluster, bool(ids)) for (cluster, _), ids in zip(self.questions.untouched, used, strict=True)
        )


def _without_trigger(edited: Edited) -> str:
    """Why an editor cannot say which facts a prompt triggers; empty if it can."""
    if edited.editor is None:
        return _UNEDITED
    return "changed weights act on every prompt" if edited.where == "weights" else ""


def _calibration(edited: Edited, questions: Sequence[tuple[str, Pair]], report: Report) -> Tally:
    """Of the likeliest first token, over (cluster, prompt with its right answer)."""
    first = [entry.target_ids[0] for entry in complete(edited.view.tokenizer, [pair for _, pair in questions])]
    answers: list[tuple[str, float, bool]] = []
    for start in range(0, len(questions), _AT_ONCE):
        chunk = questions[start : start + _AT_ONCE]
        chances = edited.view.next_token_log_probabilities([pair[0] for _, pair in chunk]).exp()
        confidence, likeliest = chances.max(1)
        for (cluster, _), token, chance, said in zip(
            chunk, first[start : start + _AT_ONCE], confidence.tolist(), likeliest.tolist(), strict=True
        ):
            answers.append((cluster, min(chance, 1.0), said == token))
        report("calibration", start + len(chunk), len(questions))
    return Tally.calibration_of(answers)


# Attribution


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whether the facts that an editor names as used are those that were asked for."""

    questions: EvaluationSet

    columns: ClassVar = (names.PRECISION, names.RECALL)

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        if reason := _without_trigger(edited):
            return dict.fromkeys(self.columns, reason)
        facts = self.questions.facts
        asked = [(fact.id, text, True) for fact in facts for text in (fact.text, *fact.paraphrases)]
        others = [
            (fact.id, entry.prompt, False) for fact in facts for entry in (*fact.neighbours, *fact.own, *fact.unrelated)
        ]
        others += [(cluster, entry.prompt, False) for cluster, entry in self.questions.untouched]
        used = edited.view.used([prompt for _, prompt, _ in asked + others])
        named = list(zip(asked + others, used, strict=True))
        precise = [(cluster, (float(own and cluster in ids), float(len(ids)))) for (cluster, _, own), ids in named]
        return {
            names.PRECISION: Tally.of("mean", precise),
            names.RECALL: Tally.mean_of((fact, fact in ids) for (fact, _, own), ids in named if own),
        }


# Disclosure


@dataclass(frozen=True, slots=True)
class Disclosure:
    """Whether stored facts leave when they are not asked for.

    Attributes:
        before: prompt -> answer of the unedited model.
    """

    facts: tuple[Fact, ...]
    before: Mapping[str, str]

    columns: ClassVar = (names.REPEATED, names.CONTINUED)

    @classmethod
    def of(cls, model: LanguageModel, facts: Sequence[Fact]) -> Disclosure:
        chosen = tuple(_evenly(facts, SAMPLE))
        prompts = [prompt for fact in chosen for prompt in (*_repeating(fact), fact.subject)]
        return cls(chosen, _continued(model, prompts))

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        bare = {fact.id: (fact.subject,) for fact in self.facts}
        found: dict[str, Found] = {names.CONTINUED: self._disclosed(edited.view, bare)}
        if edited.where == "prompt":
            found[names.REPEATED] = self._disclosed(edited.view, {fact.id: _repeating(fact) for fact in self.facts})
        else:
            found[names.REPEATED] = "nothing is put before prompts"
        return found

    def _disclosed(self, view: Answerer, prompts: Mapping[str, Sequence[str]]) -> Tally:
        answers = _continued(view, [prompt for each in prompts.values() for prompt in each])
        return Tally.mean_of(
            (fact.id, any(self._new(fact, answers, p) for p in prompts[fact.id])) for fact in self.facts
        )

    def _new(self, fact: Fact, answers: Mapping[str, str], prompt: str) -> bool:
        """Whether an answer names the target, and the unedited model's does not."""
        now, before = (is_contained(each[prompt], (fact.target,)) for each in (answers, self.before))
        return now and not before


def _repeating(fact: Fact) -> tuple[str, str]:
    """With and without the subject, which gates may look for."""
    return REPEAT, f"{fact.subject}. {REPEAT}"


def _continued(answerer: Answerer, prompts: Sequence[str]) -> dict[str, str]:
    distinct = list(dict.fromkeys(prompts))
    return dict(zip(distinct, answerer.continue_texts(distinct, new_tokens=_DISCLOSED_TOKENS), strict=True))


# Cost


@dataclass(frozen=True, slots=True)
class QueryCost:
    """Tokens that are added to prompts."""

    questions: EvaluationSet

    columns: ClassVar = (names.TOKENS_HIT, names.TOKENS_MISS)

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        if edited.editor is None:
            return dict.fromkeys(self.columns, _UNEDITED)
        hits = [(fact.id, fact.text) for fact in self.questions.facts]
        misses = [(cluster, entry.prompt) for cluster, entry in self.questions.untouched]
        misses += [(fact.id, entry.prompt) for fact in self.questions.facts for entry in fact.neighbours]
        return {
            names.TOKENS_HIT: _added_tokens(edited, hits),
            names.TOKENS_MISS: _added_tokens(edited, misses) if misses else NO_UNTOUCHED,
        }


def _added_tokens(edited: Edited, prompts: Sequence[tuple[str, str]]) -> Found:
    view = edited.view
    if isinstance(view, Prompted):
        texts = [text for _, text in prompts]
        whole = [
            text if found is None else found.text for text, found in zip(texts, view.rewritten(texts), strict=True)
        ]
        added = [
            len(one.ids) - len(other.ids)
            for one, other in zip(encode(view.tokenizer, whole), encode(view.tokenizer, texts), strict=True)
        ]
        return Tally.mean_of((cluster, count) for (cluster, _), count in zip(prompts, added, strict=True))
    return "its prompts cannot be read" if edited.where == "prompt" else 0.0


# Staleness


@dataclass(frozen=True, slots=True)
class Staleness:
    """The same facts updated several times, on top of all others; then the last version is removed again.

    The first version is the edit of the trial, and version 2 of the first fact is edited alone. In the end that edit is
    removed from below the others.

    Attributes:
        facts: that are updated.
        pool: facts whose targets are further versions, those of the same relation or prompt first.
    """

    facts: tuple[Fact, ...]
    pool: tuple[Fact, ...]

    columns: ClassVar = (names.LATEST, names.LATEST_MARGIN, names.EXACT_REMOVAL, names.LAG, names.REMOVAL)

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        if edited.editor is None:
            return dict.fromkeys(self.columns, _UNEDITED)
        versions = {fact.id: found for fact in self.facts if len(found := self._targets(fact)) >= VERSIONS}
        if not versions:
            return dict.fromkeys(self.columns, f"there are fewer than {VERSIONS} different targets for one fact")
        editor: KnowledgeEditor = edited.editor
        edits: list[Edit] = []
        try:
            return self._measured(editor, edits, versions, report)
        finally:
            for edit in reversed(edits):
                editor.remove(edit)

    def _measured(
        self, editor: KnowledgeEditor, edits: list[Edit], versions: Mapping[str, Sequence[str]], report: Report
    ) -> Mapping[str, Found]:
        chosen = [fact for fact in self.facts if fact.id in versions]

        def update(facts: Sequence[Fact], version: int) -> None:
            edits.append(editor.apply([_version(fact, versions[fact.id][version], version) for fact in facts]))

        started = time.perf_counter()
        update(chosen[:1], 1)
        editor.view().continue_texts([chosen[0].text], new_tokens=1)
        lag = time.perf_counter() - started
        if chosen[1:]:
            update(chosen[1:], 1)
        for version in range(2, VERSIONS - 1):
            report("updates", version, VERSIONS)
            update(chosen, version)
        before, answers_before = editor.fingerprint(), self._distributions(editor.view(), chosen)
        update(chosen, VERSIONS - 1)
        found = self._latest(editor.view(), chosen, versions)
        report("updates", VERSIONS, VERSIONS)
        editor.remove(edits.pop())
        exact = before == editor.fingerprint() and answers_before == self._distributions(editor.view(), chosen)
        found |= {names.EXACT_REMOVAL: float(exact), names.LAG: lag}
        if editor.undo == "any":
            started = time.perf_counter()
            editor.remove(edits.pop(0))
            found[names.REMOVAL] = time.perf_counter() - started
        else:
            found[names.REMOVAL] = "only the last edit can be removed; for an earlier one all later ones are made again"
        return found

    def _latest(
        self, view: Answerer, chosen: Sequence[Fact], versions: Mapping[str, Sequence[str]]
    ) -> dict[str, Found]:
        if "likelihood" not in view.abilities:
            answers = answer_freely(view, [fact.text for fact in chosen], _ANSWER)
            named = [(fact.id, is_contained(answers[fact.text], (versions[fact.id][VERSIONS - 1],))) for fact in chosen]
            return {names.LATEST: Tally.mean_of(named), names.LATEST_MARGIN: _NO_LIKELIHOOD}
        asked = {fact.id: [fact.pair(target) for target in versions[fact.id][:VERSIONS]] for fact in chosen}
        scores = scores_by_pair(view, [(pair, fact) for fact, pairs in asked.items() for pair in pairs])
        margins = [
            (fact, scores[pairs[-1]].log_probability - max(scores[pair].log_probability for pair in pairs[:-1]))
            for fact, pairs in asked.items()
        ]
        return {
            names.LATEST: Tally.mean_of((fact, scores[pairs[-1]].correct) for fact, pairs in asked.items()),
            names.LATEST_MARGIN: Tally.mean_of(margins),
        }

    def _distributions(self, view: Answerer, chosen: Sequence[Fact]) -> list[object]:
        """What the model says, to be compared bit for bit."""
        prompts = [fact.text for fact in chosen]
        if "likelihood" in view.abilities:
            return list(view.next_token_log_probabilities(prompts).tolist())
        return list(view.continue_texts(prompts, new_tokens=_ANSWER.new_tokens))

    def _targets(self, fact: Fact) -> list[str]:
        """The fact's own target, then other ones."""
        near = [other for other in self.pool if (other.relation or other.prompt) == (fact.relation or fact.prompt)]
        texts = [text for other in (*near, *self.pool) for text in (other.target, other.old) if text]
        taken = {text.casefold() for text in (fact.target, *fact.aliases)}
        found = [fact.target]
        for text in texts:
            if text.casefold() not in taken:
                taken.add(text.casefold())
                found.append(text)
        return found


def _version(fact: Fact, target: str, version: int) -> Fact:
    return replace(fact, id=f"{fact.id}, version {version + 1}", target=target, aliases=())
