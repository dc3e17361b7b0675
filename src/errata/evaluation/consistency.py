"""Consistency: whether what a model writes about a subject is like true texts about others of which the same holds.

After Meng et al. (2022), "Locating and Editing Factual Associations in GPT".
"""

from __future__ import annotations

from collections.abc import Sequence

from errata.errors import Fault, FaultsError
from errata.evaluation.metrics import Metric
from errata.evaluation.records import Record
from errata.evaluation.references import References, references_of
from errata.evaluation.term_weights import TermWeights
from errata.evaluation.texts import WrittenText
from errata.facts import Fact


def evaluate_consistency(
    texts: Sequence[WrittenText], facts: Sequence[Fact], references: References, weights: TermWeights
) -> list[Record]:
    """One record for each fact with texts and references: 100 · the cosine of its texts, joined by spaces, and of the
    references with its relation and its target, joined as well.

    ``prompt`` is the first generation prompt, ``said`` all texts. Texts without any word of the vocabulary have 0.

    Raises:
        InputError: if references have no word of the vocabulary; names them.
        MissingExtraError: if scikit-learn is not installed.
    """
    written: dict[str, list[WrittenText]] = {}
    for text in texts:
        written.setdefault(text.fact, []).append(text)
    found: list[Record] = []
    faults: list[Fault] = []
    for fact in facts:
        wanted = references_of(fact, references)
        if fact.id not in written or not wanted:
            continue
        said = " ".join(text.text for text in written[fact.id])
        ours, theirs = weights.vectors([said, " ".join(wanted)])
        if not theirs.any():
            place = f"relation {fact.relation!r}, target {fact.target!r}"
            what = "no word of the vocabulary is in these texts"
            faults.append(Fault(place, what, "Fit the weights on a corpus of such texts"))
        found.append(Record(fact.id, Metric.CONSISTENCY, written[fact.id][0].prompt, 100 * float(ours @ theirs), said))
    if faults:
        raise FaultsError("the references", list(dict.fromkeys(faults)))
    return found


def absent_consistency(facts: Sequence[Fact], references: References | None) -> dict[Metric, str]:
    """The reason, if there is no fact with all that it takes."""
    if not any(fact.generation for fact in facts):
        reason = "no fact has 'generation' prompts"
    elif references is None:
        reason = "no reference texts were given"
    elif not any(fact.generation and fact.relation for fact in facts):
        reason = "no fact with 'generation' prompts has a 'relation'"
    elif not any(fact.generation and references_of(fact, references) for fact in facts):
        reason = "there are no reference texts for any fact's relation and target"
    else:
        return {}
    return {Metric.CONSISTENCY: reason}
