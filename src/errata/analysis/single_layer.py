"""Study ``single-layer``: the quality of an edit that writes one critical layer alone, by residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from errata.analysis.common import COMPUTED, SPREADS, temporarily_edited
from errata.analysis.findings import (
    RESAMPLES,
    Claim,
    Figure,
    Finding,
    Findings,
    Label,
    Panel,
    Series,
    Sign,
    line_of,
    with_n,
)
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.benchmark.measurements import (
    MeasurementInputs,
    MeasurementResult,
    State,
    check_measurements,
    measurements_of,
)
from errata.editing.methods import BOUNDARY_PAPER
from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editors.locate_then_edit import Editor
from errata.evaluation.ability import summarise_others
from errata.evaluation.perplexity import Perplexity, perplexity_ratio, pooled
from errata.results.metrics import ACCURACIES, Unit, entry_of
from errata.results.records import Record, Summary, When, paired_difference, summarise

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
            computed = _records(after[layer, COMPUTED], metric)
            found_by = {other: _records(after[layer, other], metric) for other in (*SPREADS, UNDIVIDED)}
            differences = [
                row
                for other, records in found_by.items()
                if (
                    row := difference_row(
                        metric, {"layer": layer, "residual": f"{COMPUTED} minus {other}"}, computed, records
                    )
                )
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


def difference_row(
    metric: str, where: Mapping[str, Label], ones: Sequence[Record], others: Sequence[Record]
) -> Finding | None:
    """See ``paired_difference``."""
    found = paired_difference(metric, ones, others, resamples=RESAMPLES)
    if found is None:
        return None
    return Finding(f"{metric}, difference", "share", dict(where), found.mean, found.low, found.high, found.n)


def _claims(layer: int, name: str, differences: Sequence[Finding]) -> list[Claim]:
    """Claims about a layer before the last one."""
    by = {str(row.where["residual"]): row for row in differences}
    texts: list[tuple[str, str]] = []
    if name == "efficacy":
        texts = [
            ("spread", f"At layer {layer} alone, the computed residual gives higher efficacy than the spread one."),
            (
                UNDIVIDED,
                f"At layer {layer} alone, the computed residual gives higher efficacy than the last layer's undivided "
                "one: what spreading loses is more than length.",
            ),
        ]
    elif name in ("specificity", "untouched"):
        texts = [
            ("spread", f"At layer {layer} alone, the computed residual costs {name} compared with the spread one.")
        ]
    found = []
    for other, text in texts:
        row = by.get(f"{COMPUTED} minus {other}")
        if row is not None:
            claimed: Sign = "positive" if name == "efficacy" else "negative"
            evidence = f"difference {with_n(row)} (accuracy, paired over facts)"
            found.append(Claim.on(row, text, evidence, claimed=claimed))
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
        "at the layer; with 95 % intervals over facts. At the last layer all are the same run as computed. "
        "Horizontal line: the unedited model.",
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
    made = [MeasurementResult([], answer["kept"]) for record in results for answer in record["answers"].values()]
    labels, values = [result.labels for result in made], [result.values for result in made]
    found += summarise_others(when, labels, values, {summary.metric for summary in found})
    earlier, now = _perplexity(before), _perplexity(results)
    if earlier is not None and now is not None:
        found.append(perplexity_ratio(earlier, now, when))
    return found


def _perplexity(results: Sequence[TaskRecord]) -> Perplexity | None:
    return pooled([Perplexity.of(record["answers"]["perplexity"]["kept"]["perplexity"]) for record in results])


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


def single_layer_runs(layers: Sequence[int]) -> list[tuple[int, str]]:
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

        with temporarily_edited(editor, context.materials[seed].facts.facts):
            return {"layer": layer, "residual": kind, **self._ask(seed, "after", unedited)}

    def _ask(self, seed: int, state: State, unedited: Callable[[], AbstractContextManager[None]]) -> TaskRecord:
        measures, answers = self.context.settings.measures, {}
        for measurement in measurements_of(measures.parts):
            before = None if state == "before" else self.known[seed]["answers"][measurement.name]["kept"]
            options = measures.options.get(measurement.name, {})
            inputs = MeasurementInputs(
                model=self.context.model,
                data=self.context.materials[seed],
                options=options,
                seed=seed,
                before=before,
                unedited=unedited,
                report=self.context.report,
            )
            answers[measurement.name] = measurement.run(inputs).to_record()
        return {"seed": seed, "answers": answers}


def _tasks(context: StudyContext) -> list[StudyTask]:
    questions = _Questions(context)
    found = []
    for seed in context.settings.seeds:
        found.append(StudyTask(f"seed-{seed}-before", partial(questions.before, seed)))
        for layer, kind in single_layer_runs(context.layers):
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
