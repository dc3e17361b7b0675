"""Concept editing: does the new definition hold, and do instances follow it?

After Wang et al. (2024), "Editing Conceptual Knowledge for Large Language Models", https://arxiv.org/abs/2403.06259,
and the authors' code (zjunlp/EasyEdit, ``easyeditor/evaluate/evaluate_utils.py`` and
``examples/run_concept_editing.py``), from where the question, its two demonstrations, the two new tokens and the 40
tokens of a generated definition are.

- *reliability*, *generalisation*: share of the new definition's tokens that are the likeliest, after the prompt and
  after its paraphrases;
- *locality*: share of the tokens of other concepts' definitions for which edited and unedited model hold the same token
  likeliest; beside it the share that is right, which needs no unedited model;
- *instances*: share of questions "Whether {instance} belongs to category {concept}?" that are answered yes, for
  instances of the old definition (should fall) and for non-instances, which are instances of the new one (should rise);
  both with an answer that is neither yes nor no counted as no, and how many those are beside it;
- *instance change*: the answer before less the answer after. Here, as in the authors' script, an answer that is neither
  yes nor no counts as yes. For non-instances it is the answer after less the answer before, and what is neither yes nor
  no counts as no: an answer that cannot be read is never a change for the better;
- *consistency*: the authors have GPT-4 say whether a generated definition means what the target means. Here it is the
  cosine of the two texts' TF-IDF vectors (scikit-learn's, words of one letter counted), the inverse document
  frequencies being counted on all old and new definitions of the concepts given: words in common, not meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from errata.facts.concept import Concept
from errata.models.generation import generate
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.likelihood import Pair, TargetScore, check_finite, scores_of
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.utils.optional import require
from errata.utils.progress import Report, silent

_DEMONSTRATED = (("FrancoAngeli", "publisher", "Yes"), ("And Other Stories", "people", "No"))
DEMONSTRATIONS: Final = "".join(
    f"Whether {instance} belongs to category {concept}? {answer}\n" for instance, concept, answer in _DEMONSTRATED
)


@dataclass(frozen=True, slots=True)
class ConceptSettings:
    """How concepts are asked.

    Attributes:
        demonstrations: text before the question about an instance.
        answer_tokens: new tokens that yes or no is looked for in.
        definition_tokens: new tokens of a generated definition.
        batch_size: prompts that are continued at once; the answers do not depend on it.
    """

    demonstrations: str = DEMONSTRATIONS
    answer_tokens: int = 2
    definition_tokens: int = 40
    batch_size: int = 64

    def to_record(self) -> dict[str, object]:
        """The settings as a results file holds them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ConceptReading:
    """What a model says about concepts at one moment; ``concept_records`` makes records of one, or of two.

    Attributes:
        scores: of new definitions after prompts and paraphrases, and of answers after unrelated questions.
        answers: text generated after each question about an instance or non-instance.
        definitions: for each concept's id the text generated after the prompt.
    """

    scores: dict[Pair, TargetScore]
    answers: dict[str, str]
    definitions: dict[str, str]


def read_answer(text: str) -> bool | None:
    """Yes if "yes" is in the text, else no if "no" does, else None; as in the authors' code."""
    low = text.lower()
    return True if "yes" in low else False if "no" in low else None


def read_concepts(
    model: LanguageModel,
    concepts: Sequence[Concept],
    *,
    settings: ConceptSettings | None = None,
    token_budget: int = TOKEN_BUDGET,
    report: Report = silent,
) -> ConceptReading:
    """Ask a model everything that the metrics of concepts need.

    Raises:
        InputError: if a prompt is too long for the model.
        NonFiniteError: if a logit is not a number; names the concepts.
    """
    settings = settings or ConceptSettings()
    owners: dict[Pair, str] = {}
    for concept in concepts:
        prompts = (concept.text, *concept.paraphrases)
        pairs: list[Pair] = [(prompt, concept.new_definition) for prompt in prompts]
        for pair in pairs + [entry.pair for entry in concept.unrelated]:
            owners.setdefault(pair, concept.id)
    scores = scores_of(model, list(owners), token_budget=token_budget, report=report)
    check_finite(scores, owners)
    questions = list(
        dict.fromkeys(
            settings.demonstrations + asked
            for concept in concepts
            for asked in (*concept.instance_questions, *concept.non_instance_questions)
        )
    )
    answers = generate(model, questions, new_tokens=settings.answer_tokens, batch_size=settings.batch_size)
    report("instances", len(questions), len(questions))
    texts = generate(
        model,
        [concept.text for concept in concepts],
        new_tokens=settings.definition_tokens,
        batch_size=settings.batch_size,
    )
    report("definitions", len(texts), len(texts))
    said = {concept.id: text for concept, text in zip(concepts, texts, strict=True)}
    return ConceptReading(scores, dict(zip(questions, answers, strict=True)), said)


def concept_records(
    concepts: Sequence[Concept],
    reading: ConceptReading,
    *,
    before: ConceptReading | None = None,
    settings: ConceptSettings | None = None,
) -> list[Record]:
    """One record per prompt and metric; ``fact`` is the concept's id.

    Args:
        reading: what the model says, read with the same settings and concepts.
        before: what it said before the edits; without it there is no locality and no change of instances.

    Raises:
        MissingExtraError: if scikit-learn is not installed, which consistency needs.
    """
    settings = settings or ConceptSettings()
    similarities = similarity(concepts, [reading.definitions[concept.id] for concept in concepts])
    found: list[Record] = []
    for concept, cosine in zip(concepts, similarities, strict=True):
        found += _definition_records(concept, reading, before)
        for asked in concept.instance_questions:
            found += _instance_records(concept, settings.demonstrations + asked, reading, before, belongs=True)
        for asked in concept.non_instance_questions:
            found += _instance_records(concept, settings.demonstrations + asked, reading, before, belongs=False)
        said = reading.definitions[concept.id]
        found.append(Record(concept.id, Metric.CONCEPT_CONSISTENCY, concept.text, cosine, said.strip()))
    return found


def absent_concepts(concepts: Sequence[Concept], *, before: bool = True) -> dict[Metric, str]:
    """The metrics of concepts that cannot be computed, with the reason."""
    metrics = [metric for metric in Metric if metric.value.startswith("concept_")]
    if not concepts:
        return dict.fromkeys(metrics, "there are no concepts")
    missing: dict[Metric, str] = {}
    if not before:
        changes = (Metric.CONCEPT_LOCALITY, Metric.CONCEPT_INSTANCE_CHANGE, Metric.CONCEPT_NON_INSTANCE_CHANGE)
        missing |= dict.fromkeys(changes, "there is no unedited model to compare with")
    if not any(concept.paraphrases for concept in concepts):
        missing[Metric.CONCEPT_GENERALISATION] = "no concept has 'paraphrases'"
    if not any(concept.unrelated for concept in concepts):
        locality = (Metric.CONCEPT_LOCALITY, Metric.CONCEPT_LOCALITY_TOKENS)
        missing |= dict.fromkeys(locality, "no concept has 'unrelated' definitions")
    if not any(concept.instance_questions for concept in concepts):
        of_instances = (Metric.CONCEPT_INSTANCES, Metric.CONCEPT_INSTANCE_CHANGE)
        missing |= dict.fromkeys(of_instances, "no concept has 'instances' or 'instance_prompts'")
    if not any(concept.non_instances for concept in concepts):
        of_others = (Metric.CONCEPT_NON_INSTANCES, Metric.CONCEPT_NON_INSTANCE_CHANGE)
        missing |= dict.fromkeys(of_others, "no concept has 'non_instances'")
    if not any(concept.instance_questions or concept.non_instance_questions for concept in concepts):
        missing[Metric.CONCEPT_UNREADABLE] = "no concept has 'instances' or 'non_instances'"
    return missing


def similarity(concepts: Sequence[Concept], texts: Sequence[str]) -> list[float]:
    """Cosine of each text's TF-IDF vector and that of the concept's new definition; 0 of a text without known words.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    require("the similarity of definitions", "eval", "sklearn")
    if not concepts:
        return []
    from sklearn.feature_extraction.text import TfidfVectorizer

    # One-letter words count too, or a definition of such words would have no vector at all.
    vectoriser = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    vectoriser.fit([text for concept in concepts for text in (concept.definition, concept.new_definition) if text])
    targets = vectoriser.transform([concept.new_definition for concept in concepts])
    rows = vectoriser.transform(list(texts))  # rows of length 1, so that their products are cosines
    return [float(value) for value in rows.multiply(targets).sum(axis=1).A1]


def _definition_records(concept: Concept, reading: ConceptReading, before: ConceptReading | None) -> list[Record]:
    found: list[Record] = []

    def add(metric: Metric, pair: Pair, value: float) -> None:
        found.append(Record(concept.id, metric, pair[0], value, reading.scores[pair].said))

    own: Pair = (concept.text, concept.new_definition)
    add(Metric.CONCEPT_RELIABILITY, own, reading.scores[own].share)
    for prompt in concept.paraphrases:
        pair: Pair = (prompt, concept.new_definition)
        add(Metric.CONCEPT_GENERALISATION, pair, reading.scores[pair].share)
    for entry in concept.unrelated:
        pair = entry.pair
        add(Metric.CONCEPT_LOCALITY_TOKENS, pair, reading.scores[pair].share)
        if before is not None:
            now, then = reading.scores[pair].likeliest, before.scores[pair].likeliest
            same = sum(left == right for left, right in zip(now, then, strict=True))
            add(Metric.CONCEPT_LOCALITY, pair, same / len(now))
    return found


def _instance_records(
    concept: Concept, question: str, reading: ConceptReading, before: ConceptReading | None, *, belongs: bool
) -> list[Record]:
    """``belongs``: whether it is asked of an instance of the old definition, and not of the new one."""
    text = reading.answers[question]
    answer = read_answer(text)
    share = Metric.CONCEPT_INSTANCES if belongs else Metric.CONCEPT_NON_INSTANCES
    values = {share: float(answer is True), Metric.CONCEPT_UNREADABLE: float(answer is None)}
    if before is not None:
        then = read_answer(before.answers[question])
        if belongs:
            values[Metric.CONCEPT_INSTANCE_CHANGE] = float(then is not False) - float(answer is not False)
        else:
            values[Metric.CONCEPT_NON_INSTANCE_CHANGE] = float(answer is True) - float(then is True)
    return [Record(concept.id, metric, question, value, text.strip()) for metric, value in values.items()]
