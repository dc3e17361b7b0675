"""Hard facts: those of which a single edit with one recipe breaks a model, found by trying them.

Perplexity of prose is the sign of collapse (Yang et al. 2024, The Butterfly Effect of Model Editing, arXiv:2402.09656).
Which facts are hard depends on the model, the method and the layer. Facts are tried in the order of a prediction that
takes no editing; facts at random from the others show what the prediction misses.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from errata.benchmark.single_edits import Outcome, Prediction, SingleEdits, TextLosses, losses_of
from errata.editing.recipe import Recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import EditError, InputError
from errata.facts.fact import PLACEHOLDER, Fact
from errata.facts.files import HEADER
from errata.models.prompts import encode, subject_tokens
from errata.utils.files import write_text
from errata.utils.progress import Report, counter, silent

FORMAT: Final = "errata-hard-facts-1"
BORDERLINE: Final = 1.5
UNCHANGED: Final = 1.1  # a smaller ratio on the first texts is not followed up
_SHORTEST_NAME: Final = 3  # letters of a new subject

Verdict: TypeAlias = Literal["hard", "borderline", "fine", "unknown"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a fact is hard.

    Attributes:
        ratio: perplexity after the edit over that before; the mean of the texts' own perplexities counts.
        absolute: the perplexity itself; either suffices.
        first: number of texts that decide the clear cases.
    """

    ratio: float = 10.0
    absolute: float = 1000.0
    first: int = 10

    def factor(self, before: TextLosses) -> float:
        """The smallest ratio that makes a fact hard, on all texts.

        Raises:
            InputError: if the unedited model is at the limit already.
        """
        value = before.mean_of_exp
        if not value < self.absolute:
            raise InputError(
                f"the unedited model's perplexity is {value:.4g}, not below the limit of {self.absolute:g}",
                remedy="Give other texts (--prose), or a higher --absolute",
                code="PERPLEXITY_TOO_HIGH",
            )
        return min(self.ratio, self.absolute / value)


@dataclass(frozen=True, slots=True)
class Finding:
    """A fact, and what is known about its edit.

    Attributes:
        decided_by: ``all_texts``, ``first_texts``, ``not_finite`` (broken weights or a diverged search), ``refused``
            (the update has no direction); empty if it was not tried.
        ratio: of the perplexities of the texts that were evaluated; None if there is none.
        at_random: whether it was tried as one of those that the prediction had not selected.
    """

    fact: Fact
    prediction: Prediction
    verdict: Verdict = "unknown"
    decided_by: str = ""
    after: TextLosses | None = None
    ratio: float | None = None
    change: float | None = None
    at_random: bool = False


@dataclass(frozen=True, slots=True)
class Mined:
    """The result of ``mine``.

    Attributes:
        findings: of all facts, in the order of prediction.
    """

    findings: tuple[Finding, ...]

    @property
    def hard(self) -> list[Finding]:
        """Those that break the model, the worst first."""
        hard = [finding for finding in self.findings if finding.verdict == "hard"]
        return sorted(hard, key=lambda finding: -math.inf if finding.ratio is None else -finding.ratio)

    @property
    def missed(self) -> tuple[int, int]:
        """How many of the facts tried at random are hard, and how many there were."""
        tried = [finding for finding in self.findings if finding.at_random]
        return sum(finding.verdict == "hard" for finding in tried), len(tried)

    def count(self, verdict: Verdict) -> int:
        return sum(finding.verdict == verdict for finding in self.findings)


def mine(
    edits: SingleEdits,
    facts: Sequence[Fact],
    limits: Limits,
    *,
    budget: int | None = None,
    check: int = 100,
    seed: int = 0,
    report: Report = silent,
) -> Mined:
    """Try facts, those with the largest predicted change first.

    Args:
        budget: number of facts to try; all by default.
        check: number of further facts to try, at random from those that the budget leaves out.
        seed: of their choice.

    Raises:
        InputError: see ``Limits.factor`` and ``SingleEdits.predict``.
    """
    limits.factor(edits.losses)
    predictions = edits.predict(facts)
    order = sorted(range(len(facts)), key=lambda index: -predictions[index].strength)
    selected, rest = order[:budget], [] if budget is None else order[budget:]
    sample = random.Random(f"hard facts {seed}").sample(rest, min(check, len(rest)))
    findings = {index: Finding(facts[index], predictions[index]) for index in order}
    tried = [*selected, *sample]
    done = counter(report, "facts tried", len(tried))
    outcomes = _outcomes(edits, [facts[index] for index in tried], limits)
    chosen = set(sample)
    for index, outcome in zip(tried, outcomes, strict=True):
        findings[index] = replace(_judged(findings[index], outcome, edits.losses, limits), at_random=index in chosen)
        done(1)
    return Mined(tuple(findings.values()))


def _outcomes(edits: SingleEdits, facts: Sequence[Fact], limits: Limits) -> Iterator[Outcome]:
    most = 2 * limits.factor(edits.losses)

    def needs_all(losses: TextLosses) -> bool:
        ratio = losses.mean_of_exp / edits.losses.first(len(losses)).mean_of_exp
        return losses.is_finite and UNCHANGED <= ratio <= most

    for part in edits.try_out(facts, first=limits.first, needs_all=needs_all):
        yield from part


def _judged(finding: Finding, outcome: Outcome, before: TextLosses, limits: Limits) -> Finding:
    losses = outcome.losses
    if losses is None:
        why = "not_finite" if outcome.refusal == "NOT_FINITE" else "refused"
        return replace(finding, verdict="hard", decided_by=why)
    if not losses.is_finite:
        return replace(finding, verdict="hard", decided_by="not_finite", change=outcome.change)
    ratio = losses.mean_of_exp / before.first(len(losses)).mean_of_exp
    verdict: Verdict = "hard" if ratio >= limits.factor(before) else "borderline" if ratio >= BORDERLINE else "fine"
    decided_by = "all_texts" if len(losses) == len(before) else "first_texts"
    return replace(finding, verdict=verdict, decided_by=decided_by, after=losses, ratio=ratio, change=outcome.change)


def grown_candidates(
    tokenizer: PreTrainedTokenizerBase, hard: Sequence[Fact], facts: Sequence[Fact], count: int, *, seed: int = 0
) -> list[Fact]:
    """New facts of the pattern of hard ones: their prompts, with other subjects of one token, and other targets.

    Subjects are words of the tokenizer's vocabulary with a capital whose form in small letters is no token: mostly
    names. Targets are objects of the relation in ``facts`` (of the prompt, if facts have no relation).

    Args:
        hard: those whose subject comes first are used.
        count: the most candidates.

    Returns:
        none if no hard fact begins with its subject.
    """
    patterns = list({fact.prompt: fact for fact in hard if fact.prompt.startswith(PLACEHOLDER)}.values())
    taken = {(fact.subject, fact.prompt) for fact in facts}
    names = _names(tokenizer) if patterns else []
    pairs = [(name, fact) for name in names for fact in patterns if (name, fact.prompt) not in taken]
    generator = random.Random(f"grown {seed}")
    objects: dict[str, list[str]] = {}
    for fact in facts:
        objects.setdefault(_relation(fact), []).extend(filter(None, (fact.target, fact.old)))
    return [
        Fact(
            f"grown-{number}",
            name,
            fact.prompt,
            generator.choice(sorted(set(objects.get(_relation(fact), [fact.target])))),
            relation=fact.relation,
            joiner=fact.joiner,
        )
        for number, (name, fact) in enumerate(generator.sample(pairs, min(count, len(pairs))))
    ]


def _relation(fact: Fact) -> str:
    return fact.relation or fact.prompt


def _names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Words with a capital that are one token at the start of a text, and of which no spelling in small letters is."""
    words = [str(tokenizer.decode([token])) for token in sorted(tokenizer.get_vocab().values())]
    small = {word.strip() for word in words if word.strip().islower()}
    names = [
        word
        for word in words
        if len(word) >= _SHORTEST_NAME and word.isalpha() and word.istitle() and word.lower() not in small
    ]
    ids = tokenizer(names, add_special_tokens=False)["input_ids"] if names else []
    return [name for name, row in zip(names, ids, strict=True) if len(row) == 1]


@dataclass(frozen=True, slots=True)
class Sequences:
    """How many hard facts, edited one after another, break a model.

    Attributes:
        edits: for each order, the number of edits at which the limit was reached; None if it was not.
        facts: the number of facts of each order.
    """

    method: str
    edits: tuple[int | None, ...]
    facts: int

    @property
    def median(self) -> float | None:
        """None if most orders did not reach the limit."""
        found = median(math.inf if count is None else count for count in self.edits)
        return found if math.isfinite(found) else None

    @property
    def range(self) -> tuple[int | None, int | None]:
        """The smallest and the largest number; None for more than all facts."""
        counts = sorted(self.edits, key=lambda count: math.inf if count is None else count)
        return counts[0], counts[-1]

    def to_record(self) -> dict[str, Any]:
        low, high = self.range
        return {
            "method": self.method,
            "facts": self.facts,
            "edits": list(self.edits),
            "median": self.median,
            "range": [low, high],
        }


def edits_to_collapse(
    edits: SingleEdits,
    facts: Sequence[Fact],
    limits: Limits,
    *,
    orders: int = 5,
    seed: int = 0,
    report: Report = silent,
) -> Sequences:
    """Edit facts one after another until the perplexity of all texts reaches the limit, in several seeded orders.

    A fact that the editor refuses breaks the model at that edit, as in ``mine``. The model is bit for bit as it was
    afterwards.

    Args:
        edits: has the recipe.
    """
    model, recipe = edits.model, edits.recipe.model_copy(update={"batch_size": 1})
    factor = limits.factor(edits.losses)
    done = counter(report, f"sequences of {recipe.method}", orders * len(facts))
    found: list[int | None] = []
    layers = {step.layer for step in recipe.steps}
    for order in range(orders):
        shuffled = random.Random(f"sequence {seed} {order}").sample(list(facts), len(facts))
        count: int | None = None
        with model.edits.transaction():
            start = model.edits.savepoint(layers)
            editor = Editor(model, recipe, prepared=edits.prepared)
            for number, fact in enumerate(shuffled, start=1):
                if _collapses(editor, fact, edits, factor):
                    count = number
                    break
                done(1)
            model.edits.rollback(start)
        done(0 if count is None else len(facts) - count + 1)
        found.append(count)
    return Sequences(recipe.method, tuple(found), len(facts))


def _collapses(editor: Editor, fact: Fact, edits: SingleEdits, factor: float) -> bool:
    try:
        editor.apply_batch([fact])
    except EditError:
        return True
    editor.show()
    after = losses_of(edits.model, edits.rows)
    return not after.mean_of_exp / edits.losses.mean_of_exp < factor  # also if it is NaN


@dataclass(frozen=True, slots=True)
class Source:
    """How facts were mined, for the file.

    Attributes:
        model: its name.
        texts: the prose.
    """

    model: str
    recipe: Recipe
    texts: Sequence[str]
    limits: Limits
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def header_of(source: Source, edits: SingleEdits, mined: Mined) -> dict[str, Any]:
    """What all facts of a file share."""
    missed, checked = mined.missed
    return {
        "format": FORMAT,
        "model": source.model,
        "fingerprint": edits.prepared.fingerprint,
        "method": source.recipe.method,
        "recipe_digest": recipe_digest(source.recipe),
        "layers": [step.layer for step in source.recipe.steps],
        "texts": len(edits.rows),
        "texts_digest": texts_digest(source.texts),
        "before": readings(edits.losses),
        "ratio": source.limits.ratio,
        "absolute": source.limits.absolute,
        "first_texts": source.limits.first,
        "seed": source.seed,
        **source.settings,
        "facts": len(mined.findings),
        "hard": mined.count("hard"),
        "borderline": mined.count("borderline"),
        "fine": mined.count("fine"),
        "unknown": mined.count("unknown"),
        "checked_at_random": checked,
        "missed": missed,
    }


def annotation(finding: Finding, source: Source, edits: SingleEdits) -> dict[str, Any]:
    """The measurements of a fact, as its field ``hard`` in a file of facts."""
    fact, prediction = finding.fact, finding.prediction
    texts = 0 if finding.after is None else len(finding.after)
    start, end = fact.subject_span
    tokens = subject_tokens(encode(edits.model.tokenizer, [fact.text])[0], start, end, fact)
    return {
        "verdict": finding.verdict,
        "decided_by": finding.decided_by,
        "ratio": _number(finding.ratio),
        "before": readings(edits.losses.first(texts)) if texts else readings(edits.losses),
        "after": None if finding.after is None else readings(finding.after),
        "gap": _number(prediction.agreement),
        "amplification": _number(prediction.amplification),
        "residual": _number(prediction.residual),
        "change": _number(finding.change),
        "subject_first": fact.prompt.startswith(PLACEHOLDER),
        "subject_tokens": len(tokens),
        "at_random": finding.at_random,
        "model": source.model,
        "fingerprint": edits.prepared.fingerprint,
        "method": source.recipe.method,
        "recipe_digest": recipe_digest(source.recipe),
        "layers": [step.layer for step in source.recipe.steps],
        "texts_digest": texts_digest(source.texts),
        "seed": source.seed,
    }


def readings(losses: TextLosses) -> dict[str, float | int | None]:
    """A perplexity in all readings; None where it is no finite number."""
    return {
        "mean_of_exp": _number(losses.mean_of_exp),
        "exp_of_mean": _number(losses.exp_of_mean),
        "median": _number(losses.median),
        "texts": len(losses),
    }


def write_hard_facts(path: Path, header: Mapping[str, Any], facts: Sequence[tuple[Fact, Mapping[str, Any]]]) -> None:
    """Write facts with their annotations as JSON Lines after a header, completely or not at all; see ``read_facts``."""
    lines: list[Mapping[str, Any]] = [{HEADER: header}, *({**fact.to_entry(), "hard": each} for fact, each in facts)]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 (hex) of the recipe without directories."""
    return hashlib.sha256(recipe.without_directories().to_yaml().encode()).hexdigest()


def texts_digest(texts: Sequence[str]) -> str:
    """SHA-256 (hex) of the texts."""
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode()).hexdigest()


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, which also holds for no hits.

    Raises:
        ValueError: if ``count`` is 0.
    """
    if count < 1:
        raise ValueError("there is no share of nothing")
    z = 1.959963984540054
    share, width = hits / count, z * z / count
    middle = (share + width / 2) / (1 + width)
    half = z / (1 + width) * math.sqrt(share * (1 - share) / count + width / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
