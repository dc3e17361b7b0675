"""What is asked on the way of a run: right after each batch, and every few batches of a sample of all so far."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from errata.benchmark.answers import read_answer
from errata.benchmark.cell_spec import CellSpec
from errata.benchmark.material import Material
from errata.benchmark.sequence import RunStoppedError, weight_norm_ratio
from errata.editing.batch import BatchRecord
from errata.editors.locate_then_edit import Editor
from errata.errors import NonFiniteError
from errata.evaluation.perplexity import Perplexity, perplexity
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.results.metrics import Metric
from errata.results.records import Record


class CollapseError(RunStoppedError):
    """Perplexity went over the limit: the batch is taken out, and the run ends before it."""

    def __init__(self, batch: int, ratio: float | None) -> None:
        told = "no number" if ratio is None else f"{ratio:.3g} times the unedited model's"
        super().__init__(f"perplexity is {told} after batch {batch}")
        self.batch, self.ratio = batch, ratio


@dataclass(frozen=True, slots=True)
class Check:
    """What is asked behind each batch, and, every few batches, of a sample of all facts so far.

    Attributes:
        batches: of the whole run.
        prose_answer: where the unedited model's perplexity is kept.
    """

    spec: CellSpec
    material: Material
    model: LanguageModel
    batches: int
    prose_answer: Path

    def behind(self, record: BatchRecord, editor: Editor) -> dict[str, Any]:
        """As JSON: answers right after the batch, the perplexity, the norm of the change, a check if one is due, and
        how long it took.

        That is every few batches, and behind the last one.

        Raises:
            CollapseError: if perplexity is over the limit.
        """
        started = time.perf_counter()
        spec, model, material = self.spec, self.model, self.material
        number = record.index + 1
        prose, ratio = self._ratio(number)
        if spec.collapse is not None and ratio is not None and ratio > spec.collapse:
            raise CollapseError(number, ratio)
        said: dict[str, Any] = {
            "records": [asdict(entry) for entry in evaluate_facts(model, record.facts, tokens=True)],
            "perplexity": None if prose is None else asdict(prose),
            "weight_norm_ratio": weight_norm_ratio(editor),
            "check": None,
        }
        if spec.eval_every and (number % spec.eval_every == 0 or number == self.batches):
            edited = number * spec.recipe.batch_size
            facts = self._sample(material.facts.facts, edited)
            untouched = material.untouched[: spec.sample]
            found = evaluate_facts(model, facts, untouched=untouched, tokens=True)
            size = spec.recipe.batch_size
            found += _efficacy_only(model, material.facts.facts[:size], "first")
            found += _efficacy_only(model, record.facts, "last")
            said["check"] = [asdict(entry) for entry in found]
        said["seconds"] = time.perf_counter() - started
        return said

    def _sample(self, facts: tuple[Fact, ...], edited: int) -> list[Fact]:
        """The same order of all facts at every check, of which those that have been edited count."""
        order = random.Random(f"check {self.spec.seed}").sample(range(len(facts)), len(facts))
        chosen = [index for index in order if index < edited][: self.spec.sample]
        return [facts[index] for index in sorted(chosen)]

    def _ratio(self, number: int) -> tuple[Perplexity | None, float | None]:
        prose = self.material.prose
        if not prose:
            return None, None
        kept = read_answer(self.prose_answer).kept["perplexity"]
        try:
            now = perplexity(self.model, prose)
        except NonFiniteError as error:
            raise CollapseError(number, None) from error
        return now, now.value / Perplexity(tuple(kept["log_likelihoods"]), tuple(kept["counts"])).value


def _efficacy_only(model: LanguageModel, facts: tuple[Fact, ...], which: Literal["first", "last"]) -> list[Record]:
    bare = [Fact(fact.id, fact.subject, fact.prompt, fact.target) for fact in facts]
    name = Metric.EFFICACY_ACCURACY_FIRST if which == "first" else Metric.EFFICACY_ACCURACY_LAST
    return [replace(record, metric=name) for record in evaluate_facts(model, bare)]
