"""Study ``single-layer``: the quality of an edit that writes one critical layer alone, by residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from errata.analysis.common import COMPUTED, SPREADS
from errata.analysis.common import temporarily_edited as edited
from errata.analysis.findings import (
    RESAMPLES,
    Claim,
    Figure,
    Finding,
    Findings,
    Panel,
    Series,
    line_of,
    verdict_on,
    with_n,
)
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.benchmark.measurements import MeasurementInputs, State, check_measurements, measurements_of
from errata.editing.methods import BOUNDARY_PAPER
from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editors.locate_then_edit import Editor
from errata.evaluation.ability import summarise_others
from errata.evaluation.perplexity import Perplexity, perplexity_ratio, pooled
from errata.results.metrics import ACCURACIES, Unit, entry_of
from errata.results.records import Record, Summary, When, interval_of, resampled_sums, summarise

UNDIVIDED: Final = "undivided"


KINDS: Final = (*SPREADS, UNDIVIDED, COMPUTED)


def findings_of(settings: AnalysisSettings, saved: Mapping[str, TaskRecord]) -> Findings:
    """Every metric by layer and residual, paired differences, claims and the curves."""
    before = [record for record in saved.values() if "layer" not in record]
    after: dict[tuple[int, str], list[TaskRecord]] = {}
    for record in saved.values():
        if "layer" in record:
            after.setdefault((record["layer"], record["residual"]), []).append(record)
    layers = sorted({layer for layer, _ in after})
    last = layers[-1]
    after |= {(last, kind): after[last, COMPUTED] for kind in KINDS}  # the same run as computed
    rows = [_row(summary, {"residual": "none, unedited"}) for summary in _summaries("before", before, before)]
    for kind in KINDS:
        for layer in layers:
            found = _summaries("after", after[layer, kind], before)
            rows += [_row(summary, {"residual": kind, "layer": layer}) for summary in found]
    claims: list[Claim] = []
    for layer in layers[:-1]:
        for metric, name in ACCURACIES.items():
            differences = [
                difference_row(metric, {"layer": layer, "residual": f"{COMPUTED} minus {other}"}, one, two)
                for other in (*SPREADS, UNDIVIDED)
                if (one := _records(after[layer, COMPUTED], metric)) and (two := _records(after[layer, other], metric))
            ]
            rows += differences
            claims += _claims(layer, name, differences)
    absent = {
        str(metric): reason
        for record in saved.values()
        for answer in record["answers"].values()
        for metric, reason in answer["absent"].items()
    }
    return Findings(rows, claims, [_figure(rows)], undefined=absent)


def difference_row(metric: str, where: Mapping[str, Any], ones: Sequence[Record], others: Sequence[Record]) -> Finding:
    """Difference of a metric's means over records of the same prompts, with a bootstrap interval over facts.

    Raises:
        ValueError: if they are not of the same prompts.
    """
    if [(one.fact, one.prompt) for one in ones] != [(other.fact, other.prompt) for other in others]:
        raise ValueError(f"the two runs have different prompts for {metric!r}")
    places = {fact: place for place, fact in enumerate(dict.fromkeys(one.fact for one in ones))}
    sums = np.zeros((2, len(places)))
    for one, other in zip(ones, others, strict=True):
        sums[:, places[one.fact]] += (one.value - other.value, 1)
    drawn = resampled_sums(sums, seed=0, resamples=RESAMPLES)
    low, high = interval_of(drawn[:, 0] / drawn[:, 1], len(places))
    mean = float(sums[0].sum() / sums[1].sum())
    return Finding(f"{metric}, difference", "share", dict(where), mean, low, high, len(places))


def _claims(layer: int, name: str, differences: Sequence[Finding]) -> list[Claim]:
    """Claims about a layer before the last one."""
    by = {str(row.where["residual"]): row for row in differences}
    said: list[tuple[str, str]] = []
    if name == "efficacy":
        said = [
            ("spread", f"At layer {layer} alone, the computed residual gives higher efficacy than the spread one."),
            (
                UNDIVIDED,
                f"At layer {layer} alone, the computed residual gives higher efficacy than the last layer's undivided "
                "one: what spreading loses is more than length.",
            ),
        ]
    elif name in ("specificity", "untouched"):
        said = [("spread", f"At layer {layer} alone, the computed residual costs {name} beside the spread one.")]
    found = []
    for other, text in said:
        row = by.get(f"{COMPUTED} minus {other}")
        if row is not None:
            verdict = verdict_on(row, claimed="positive" if name == "efficacy" else "negative")
            found.append(Claim(text, verdict, f"difference {with_n(row)} (accuracy, paired over facts)"))
    return found


def _figure(rows: Sequence[Finding]) -> Figure:
    panels = []
    for metric, name in ACCURACIES.items():
        of_metric = [row for row in rows if row.quantity == metric]
        series = [
            line_of([row for row in of_metric if row.where.get("residual") == kind], kind, "layer")
            for kind in KINDS
            if of_metric
        ]
        for row in of_metric:
            if "layer" not in row.where:
                series.append(Series("unedited", (), [row.mean]))
        if series:
            panels.append(Panel(name.capitalize(), "layer that is written", f"{name} (share)", series))
    return Figure(
        "single-layer",
        "Accuracy of an edit that writes one layer alone, by layer and residual: the last layer's residual divided by "
        "the number of critical layers left (spread) or by its root (√-spread), undivided, and the residual computed "
        "at the layer; with 95 % intervals over facts. At the last layer all are the same run as computed. Across: the "
        "unedited model.",
        panels,
    )


def _records(results: Sequence[TaskRecord], metric: str | None = None) -> list[Record]:
    return [
        Record(**entry)
        for record in results
        for answer in record["answers"].values()
        for entry in answer["records"]
        if metric is None or entry["metric"] == metric
    ]


def _summaries(when: When, results: Sequence[TaskRecord], before: Sequence[TaskRecord]) -> list[Summary]:
    """All metrics of one run, over all seeds."""
    found = summarise(_records(results), when)
    saved = [answer["kept"] for record in results for answer in record["answers"].values()]
    labels = [
        {metric: {item: tuple(pair) for item, pair in run.items()} for metric, run in each.get("labels", {}).items()}
        for each in saved
    ]
    values = [{metric: tuple(pair) for metric, pair in each.get("values", {}).items()} for each in saved]
    found += summarise_others(when, labels, values, {summary.metric for summary in found})
    earlier, now = _perplexity(before), _perplexity(results)
    if earlier is not None and now is not None:
        found.append(perplexity_ratio(earlier, now, when))
    return found


def _perplexity(results: Sequence[TaskRecord]) -> Perplexity | None:
    saved = [record["answers"]["perplexity"]["kept"]["perplexity"] for record in results]
    parts = [entry and Perplexity(tuple(entry["log_likelihoods"]), tuple(entry["counts"])) for entry in saved]
    return pooled(parts)


def _row(summary: Summary, where: Mapping[str, Any]) -> Finding:
    metric = summary.metric.partition(":")[0]
    unit = entry_of(metric).unit
    named = {Unit.PERCENT: "share", Unit.RATIO: "1", Unit.RAW: "1"}.get(unit, str(unit))
    return Finding(str(summary.metric), named, dict(where), summary.mean, summary.low, summary.high, summary.n)


def step_of(kind: str, layer: int, layers: Sequence[int]) -> Step:
    """The one step of a run: a layer and its residual."""
    if kind == COMPUTED:
        return Step(layer, layer, 1.0)
    left = len(layers) - list(layers).index(layer)
    return Step(layer, layers[-1], 1.0 if kind == UNDIVIDED else SPREADS[kind](left))


def runs_of(layers: Sequence[int]) -> list[tuple[int, str]]:
    """(layer, residual); at the last layer all residuals are equal, and it is written once."""
    return [(layer, kind) for layer in layers[:-1] for kind in KINDS] + [(layers[-1], COMPUTED)]


@dataclass(slots=True)
class _Questions:
    """The measurements; those of the unedited model are made once per process and seed."""

    context: StudyContext
    known: dict[int, TaskRecord] = field(default_factory=dict)

    def before(self, seed: int) -> TaskRecord:
        if seed not in self.known:
            self.known[seed] = self._ask(seed, "before", nullcontext)
        return self.known[seed]

    def after(self, seed: int, layer: int, kind: str) -> TaskRecord:
        context = self.context
        recipe = context.recipe_for(seed).model_copy(update={"batch_size": context.settings.batch_size})
        plan = [step_of(kind, layer, context.layers)]
        editor = Editor(
            context.model,
            recipe,
            cache=context.cache,
            report=context.report,
            prepared=context.prepared(recipe),
            plan=plan,
        )
        self.before(seed)

        def unedited() -> AbstractContextManager[None]:
            return context.model.edits.without(editor.patch().terms)

        with edited(editor, context.materials[seed].facts.facts):
            return {"layer": layer, "residual": kind, **self._ask(seed, "after", unedited)}

    def _ask(self, seed: int, state: State, unedited: Callable[[], AbstractContextManager[None]]) -> TaskRecord:
        measures, answers = self.context.settings.measures, {}
        for measurement in measurements_of(measures.parts):
            before = None if state == "before" else self.known[seed]["answers"][measurement.name]["kept"]
            options = measures.options.get(measurement.name, {})
            inputs = MeasurementInputs(
                self.context.model, self.context.materials[seed], options, seed, before, unedited, self.context.report
            )
            answers[measurement.name] = measurement.ask(inputs).to_record()
        return {"seed": seed, "answers": answers}


def _tasks(context: StudyContext) -> list[StudyTask]:
    questions = _Questions(context)
    found = []
    for seed in context.settings.seeds:
        found.append(StudyTask(f"seed-{seed}-before", partial(questions.before, seed)))
        for layer, kind in runs_of(context.layers):
            found.append(StudyTask(f"seed-{seed}-layer-{layer}-{kind}", partial(questions.after, seed, layer, kind)))
    return found


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    check_measurements(settings.measures.parts, settings.measures.options)


SINGLE_LAYER = Study(
    name="single-layer",
    shows="The effect of an edit (all metrics of a benchmark) when a single critical layer is written: with the "
    "residual that spreading assigns to the layer, with the last layer's undivided residual, and with the "
    "residual computed at the layer. The unedited model is the baseline.",
    units="Accuracies and successes are shares of 1; perplexity is a ratio to the unedited model's; KL is in nats.",
    source=f"single-layer editing in {BOUNDARY_PAPER}; the undivided residual is ours",
    uses=("count", "batch_size", "measures"),
    tasks=_tasks,
    findings=findings_of,
    check=_check,
)
