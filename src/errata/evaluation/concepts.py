"""Concept editing: does the new definition hold, and do instances follow it?

After Wang et al. (2024), "Editing Conceptual Knowledge for Large Language Models", https://arxiv.org/abs/2403.06259,
and the authors' code (zjunlp/EasyEdit, ``easyeditor/evaluate/evaluate_utils.py`` and
``examples/run_concept_editing.py``), from where the question, its two demonstrations, the two new tokens and the 40
tokens of a generated definition are.

- *reliability*, *generalisation*: share of the new definition's tokens that are the likeliest, after the prompt and
  after its paraphrases;
- *locality*: share of the tokens of other concepts' definitions for which edited and unedited model have the same most
  likely token; next to it the share that is correct, which needs no unedited model;
- *instances*: share of questions "Whether {instance} belongs to category {concept}?" that are answered yes, for
  instances of the old definition (should fall) and for non-instances, which are instances of the new one (should rise);
  both with an answer that is neither yes nor no counted as no, and next to it their number;
- *instance change*: the answer before less the answer after. Here, as in the authors' script, an answer that is neither
  yes nor no counts as yes. For non-instances it is the answer after less the answer before, and what is neither yes nor
  no counts as no: an answer that cannot be read is never a change for the better;
- *strict*: the same two shares where the answer is its first word, so that "not" and "know" are no longer a no; and the
  share of instances *turned* from yes to no, which is not a difference of means: a change back does not offset it;
- *consistency*: the authors have GPT-4 say whether a generated definition means what the target means. Here it is the
  cosine of the two texts' TF-IDF vectors (scikit-learn's, words of one letter counted), the inverse document
  frequencies being counted on all old and new definitions of the concepts given: words in common, not meaning;
- *contrast*: that cosine less the one with the old definition, from -1 to 1, as the authors' rating is: a text that
  shares as many words with both is no evidence for either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from errata.editors.contract import Answerer
from errata.evaluation.absence import absent_abilities
from errata.evaluation.scoring import agreement_share, naming_facts, scores_by_pair
from errata.facts.concept import Concept
from errata.models.language_model import TOKEN_BUDGET
from errata.models.prompts import Pair, TargetScore, encode
from errata.results.metrics import Metric, metrics_of
from errata.results.records import Record
from errata.utils.optional import require
from errata.utils.progress import Report, silent

_DEMONSTRATED = (("FrancoAngeli", "publisher", "Yes"), ("And Other Stories", "people", "No"))
DEMONSTRATIONS: Final = "".join(
    f"Whether {instance} belongs to category {concept}? {answer}\n" for instance, concept, answer in _DEMONSTRATED
)


@dataclass(frozen=True, slots=True)
class ConceptSettings:
    """Settings of concept questions.

    Attributes:
        demonstrations: text before the question about an instance.
        answer_tokens: new tokens in which yes or no is searched for.
        definition_tokens: new tokens of a generated definition.
        batch_size: prompts continued at once where all are as long as the longest; the answers do not depend on it.
    """

    demonstrations: str = DEMONSTRATIONS
    answer_tokens: int = 2
    definition_tokens: int = 40
    batch_size: int = 64

    def to_record(self) -> dict[str, object]:
        """The settings for results files."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ConceptReading:
    """A model's answers about concepts, before or after an edit; see ``concept_records``.

    Attributes:
        scores: of new definitions after prompts and paraphrases, and of answers after unrelated questions; empty for a
            model without likelihoods.
        answers: text generated after each question about an instance or non-instance.
        definitions: for each concept's id the text generated after the prompt; empty, as ``answers``, for a model that
            generates no text.
    """

    scores: dict[Pair, TargetScore] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)


def read_answer(text: str) -> bool | None:
    """Yes if "yes" is in the text, else no if "no" does, else None; as in the authors' code."""
    low = text.lower()
    return True if "yes" in low else False if "no" in low else None


def read_strictly(text: str) -> bool | None:
    """Yes or no if that is the first word of the text, else None."""
    word = re.match(r"\W*([^\W\d_]+)", text)
    return None if word is None else {"yes": True, "no": False}.get(word[1].lower())


def read_concepts(
    model: Answerer,
    concepts: Sequence[Concept],
    *,
    settings: ConceptSettings | None = None,
    token_budget: int = TOKEN_BUDGET,
    report: Report = silent,
) -> ConceptReading:
    """Query a model for all metrics of concepts that its abilities allow.

    Raises:
        InputError: if a prompt is too long for the model.
        NonFiniteError: if a logit is not a number; names the concepts.
    """
    settings = settings or ConceptSettings()
    reading = ConceptReading()
    if "likelihood" in model.abilities:
        owned: list[tuple[Pair, str]] = []
        for concept in concepts:
            owned += [((prompt, concept.new_definition), concept.id) for prompt in (concept.text, *concept.paraphrases)]
            owned += [(entry.pair, concept.id) for entry in concept.unrelated]
        reading.scores.update(scores_by_pair(model, owned, token_budget=token_budget, report=report))
    if "generation" not in model.abilities:
        return reading

    def generate(kind: str, owned: Sequence[tuple[str, str]], new_tokens: int) -> list[str]:
        prompts = [prompt for prompt, _ in owned]
        longest = max((len(row.ids) for row in encode(model.tokenizer, prompts)), default=0) + new_tokens
        with naming_facts(owned):
            return model.continue_texts(
                prompts,
                new_tokens=new_tokens,
                token_budget=settings.batch_size * longest,
                report=lambda _, done, total: report(kind, done, total),
            )

    questions: dict[str, str] = {}
    for concept in concepts:
        for question in (*concept.instance_questions, *concept.non_instance_questions):
            questions.setdefault(settings.demonstrations + question, concept.id)
    answers = generate("instances", list(questions.items()), settings.answer_tokens)
    reading.answers.update(zip(questions, answers, strict=True))
    named = [(concept.text, concept.id) for concept in concepts]
    definitions = generate("definitions", named, settings.definition_tokens)
    reading.definitions.update(zip((name for _, name in named), definitions, strict=True))
    return reading


def concept_records(
    concepts: Sequence[Concept],
    reading: ConceptReading,
    *,
    before: ConceptReading | None = None,
    settings: ConceptSettings | None = None,
) -> list[Record]:
    """One record per prompt and metric; ``fact`` is the concept's id.

    Args:
        reading: the model's answers, read with the same settings and concepts.
        before: the unedited model's; without it there is no locality and no change of instances.

    Raises:
        MissingExtraError: if scikit-learn is not installed, which consistency needs.
    """
    settings = settings or ConceptSettings()
    generated = bool(reading.definitions)
    texts = [reading.definitions[concept.id] for concept in concepts] if generated else []
    similarities = iter(similarity(concepts, texts) if generated else ())
    olds = iter(similarity(concepts, texts, old=True) if generated else ())
    found: list[Record] = []
    for concept in concepts:
        if reading.scores:
            found += _definition_records(concept, reading, before)
        if not generated:
            continue
        for question in concept.instance_questions:
            found += _instance_records(concept, settings.demonstrations + question, reading, before, belongs=True)
        for question in concept.non_instance_questions:
            found += _instance_records(concept, settings.demonstrations + question, reading, before, belongs=False)
        said = reading.definitions[concept.id].strip()
        new, old = next(similarities), next(olds)
        found.append(Record(concept.id, Metric.CONCEPT_CONSISTENCY, concept.text, new, said))
        if concept.definition:
            found.append(Record(concept.id, Metric.CONCEPT_CONTRAST, concept.text, new - old, said))
    return found


def absent_concepts(
    concepts: Sequence[Concept], *, before: bool = True, model: Answerer | None = None
) -> dict[Metric, str]:
    """The metrics of concepts that cannot be computed, with the reason.

    Args:
        before: whether there are answers of the unedited model.
        model: the edited model; None: one with all abilities.
    """
    metrics = metrics_of("concept_")
    if not concepts:
        return dict.fromkeys(metrics, "there are no concepts")
    missing = {} if model is None else absent_abilities(metrics, model.abilities, model.name)
    if not before:
        changes = (
            Metric.CONCEPT_LOCALITY, Metric.CONCEPT_INSTANCE_CHANGE, Metric.CONCEPT_NON_INSTANCE_CHANGE,
            Metric.CONCEPT_INSTANCES_TURNED,
        )  # fmt: skip
        missing |= dict.fromkeys(changes, "there is no unedited model to compare with")
    if not any(concept.paraphrases for concept in concepts):
        missing[Metric.CONCEPT_GENERALISATION] = "no concept has 'paraphrases'"
    if not any(concept.unrelated for concept in concepts):
        locality = (Metric.CONCEPT_LOCALITY, Metric.CONCEPT_LOCALITY_TOKENS)
        missing |= dict.fromkeys(locality, "no concept has 'unrelated' definitions")
    if not any(concept.instance_questions for concept in concepts):
        of_instances = (
            Metric.CONCEPT_INSTANCES, Metric.CONCEPT_INSTANCE_CHANGE, Metric.CONCEPT_INSTANCES_STRICT,
            Metric.CONCEPT_INSTANCES_TURNED,
        )  # fmt: skip
        missing |= dict.fromkeys(of_instances, "no concept has 'instances' or 'instance_prompts'")
    if not any(concept.non_instances for concept in concepts):
        of_others = (
            Metric.CONCEPT_NON_INSTANCES, Metric.CONCEPT_NON_INSTANCE_CHANGE, Metric.CONCEPT_NON_INSTANCES_STRICT,
        )  # fmt: skip
        missing |= dict.fromkeys(of_others, "no concept has 'non_instances'")
    if not any(concept.instance_questions or concept.non_instance_questions for concept in concepts):
        missing[Metric.CONCEPT_UNREADABLE] = "no concept has 'instances' or 'non_instances'"
    if not any(concept.definition for concept in concepts):
        missing[Metric.CONCEPT_CONTRAST] = "no concept has an old 'definition'"
    return missing


def similarity(concepts: Sequence[Concept], texts: Sequence[str], *, old: bool = False) -> list[float]:
    """Cosine of each text's TF-IDF vector and that of the concept's new definition; 0 of a text without known words.

    Args:
        old: compare with the old definition instead; 0 of a concept without one.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    require("the similarity of definitions", "eval", "sklearn")
    if not concepts:
        return []
    from sklearn.feature_extraction.text import TfidfVectorizer

    # One-letter words count too, or a definition of such words would have no vector at all.
    vectoriser = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    known = [text for concept in concepts for text in (concept.definition, concept.new_definition) if text]
    if not any(map(vectoriser.build_analyzer(), known)):
        return [0.0] * len(texts)
    vectoriser.fit(known)
    definitions = [(concept.definition or "") if old else concept.new_definition for concept in concepts]
    targets = vectoriser.transform(definitions)
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
            add(Metric.CONCEPT_LOCALITY, pair, agreement_share(before.scores[pair], reading.scores[pair]))
    return found


def _instance_records(
    concept: Concept, question: str, reading: ConceptReading, before: ConceptReading | None, *, belongs: bool
) -> list[Record]:
    """Args: belongs: whether it is an instance of the old definition, and not of the new one."""
    text = reading.answers[question]
    answer = read_answer(text)
    share = Metric.CONCEPT_INSTANCES if belongs else Metric.CONCEPT_NON_INSTANCES
    values = {share: float(answer is True), Metric.CONCEPT_UNREADABLE: float(answer is None)}
    strict = Metric.CONCEPT_INSTANCES_STRICT if belongs else Metric.CONCEPT_NON_INSTANCES_STRICT
    values[strict] = float(read_strictly(text) is True)
    if before is not None:
        then = read_answer(before.answers[question])
        if belongs:
            turned = read_strictly(before.answers[question]) is True and read_strictly(text) is False
            values[Metric.CONCEPT_INSTANCES_TURNED] = float(turned)
            values[Metric.CONCEPT_INSTANCE_CHANGE] = float(then is not False) - float(answer is not False)
        else:
            values[Metric.CONCEPT_NON_INSTANCE_CHANGE] = float(answer is True) - float(then is True)
    return [Record(concept.id, metric, question, value, text.strip()) for metric, value in values.items()]
