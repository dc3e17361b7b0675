"""Study ``single-layer``: what an edit is worth when one critical layer is written alone, with which residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from errata.analysis.findings import RESAMPLES, Claim, Figure, Findings, Panel, Row, Series, compared, line_of, told
from errata.analysis.residuals import COMPUTED, SPREADS
from errata.analysis.runs import temporarily_edited as edited
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.benchmark.measurements import Inquiry, State, check_parts, parts_of
from errata.editing.methods import BOUNDARY_PAPER
from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editors.locate_then_edit import Editor
from errata.evaluation.ability import summarise_others
from errata.evaluation.perplexity import Perplexity, perplexity_ratio, pooled
from errata.results.metrics import ACCURACIES, Metric
from errata.results.records import Record, Summary, When, interval_of, resampled_sums, summarise

# ----------------------------------------------------------------------------------------------------
# What study ``single-layer`` found: rows, claims and the figure.


UNDIVIDED: Final = "undivided"


KINDS: Final = (*SPREADS, UNDIVIDED, COMPUTED)


UNITS: Mapping[str, str] = {
    Metric.PERPLEXITY_RATIO: "1",
    Metric.FLUENCY: "bits · 100",
    Metric.CONSISTENCY: "cosine · 100",
    Metric.DRIFT_KL_NEIGHBOURS: "nats",
    Metric.DRIFT_KL_UNRELATED: "nats",
    Metric.DRIFT_KL_UNTOUCHED: "nats",
}


def findings_of(settings: AnalysisSettings, kept: Mapping[str, Kept]) -> Findings:
    """Every metric by layer and residual, paired differences, claims and the curves."""
    before = [piece for piece in kept.values() if "layer" not in piece]
    after: dict[tuple[int, str], list[Kept]] = {}
    for piece in kept.values():
        if "layer" in piece:
            after.setdefault((piece["layer"], piece["residual"]), []).append(piece)
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
        for piece in kept.values()
        for answer in piece["answers"].values()
        for metric, reason in answer["absent"].items()
    }
    return Findings(rows, claims, [_figure(rows)], undefined=absent)


def difference_row(metric: str, where: Mapping[str, Any], ones: Sequence[Record], others: Sequence[Record]) -> Row:
    """The mean of a metric over some records minus that over others of the same prompts; whole facts are drawn, in both
    at once.

    Raises:
        ValueError: if they are not of the same prompts.
    """
    if [(one.fact, one.prompt) for one in ones] != [(other.fact, other.prompt) for other in others]:
        raise ValueError(f"the two runs were not asked the same of {metric!r}")
    places = {fact: place for place, fact in enumerate(dict.fromkeys(one.fact for one in ones))}
    sums = np.zeros((2, len(places)))
    for one, other in zip(ones, others, strict=True):
        sums[:, places[one.fact]] += (one.value - other.value, 1)
    drawn = resampled_sums(sums, seed=0, resamples=RESAMPLES)
    low, high = interval_of(drawn[:, 0] / drawn[:, 1], len(places))
    mean = float(sums[0].sum() / sums[1].sum())
    return Row(f"{metric}, difference", "share", dict(where), mean, low, high, len(places))


def _claims(layer: int, name: str, differences: Sequence[Row]) -> list[Claim]:
    """What is claimed of a layer before the last one."""
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
            verdict = compared(row, claimed="positive" if name == "efficacy" else "negative")
            found.append(Claim(text, verdict, f"difference {told(row)} (accuracy, paired over facts)"))
    return found


def _figure(rows: Sequence[Row]) -> Figure:
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


def _records(pieces: Sequence[Kept], metric: str | None = None) -> list[Record]:
    return [
        Record(**entry)
        for piece in pieces
        for answer in piece["answers"].values()
        for entry in answer["records"]
        if metric is None or entry["metric"] == metric
    ]


def _summaries(when: When, pieces: Sequence[Kept], before: Sequence[Kept]) -> list[Summary]:
    """Of all metrics of one run in all seeds."""
    found = summarise(_records(pieces), when)
    kept = [answer["kept"] for piece in pieces for answer in piece["answers"].values()]
    labels = [
        {metric: {item: tuple(pair) for item, pair in run.items()} for metric, run in each.get("labels", {}).items()}
        for each in kept
    ]
    values = [{metric: tuple(pair) for metric, pair in each.get("values", {}).items()} for each in kept]
    found += summarise_others(when, labels, values, {summary.metric for summary in found})
    earlier, now = _perplexity(before), _perplexity(pieces)
    if earlier is not None and now is not None:
        found.append(perplexity_ratio(earlier, now, when))
    return found


def _perplexity(pieces: Sequence[Kept]) -> Perplexity | None:
    kept = [piece["answers"]["perplexity"]["kept"]["perplexity"] for piece in pieces]
    parts = [entry and Perplexity(tuple(entry["log_likelihoods"]), tuple(entry["counts"])) for entry in kept]
    return pooled(parts)


def _row(summary: Summary, where: Mapping[str, Any]) -> Row:
    metric = summary.metric.partition(":")[0]
    known = metric in set(Metric)  # a task of lm-evaluation-harness says itself what it counts
    unit = UNITS.get(metric, "share") if known else "1"
    return Row(str(summary.metric), unit, dict(where), summary.mean, summary.low, summary.high, summary.n)


# ----------------------------------------------------------------------------------------------------


def step_of(kind: str, layer: int, layers: Sequence[int]) -> Step:
    """The one step of a run: a layer, and the residual that it is given."""
    if kind == COMPUTED:
        return Step(layer, layer, 1.0)
    left = len(layers) - list(layers).index(layer)
    return Step(layer, layers[-1], 1.0 if kind == UNDIVIDED else SPREADS[kind](left))


def runs_of(layers: Sequence[int]) -> list[tuple[int, str]]:
    """(layer, residual); at the last layer all residuals are the computed one, and it is written once."""
    return [(layer, kind) for layer in layers[:-1] for kind in KINDS] + [(layers[-1], COMPUTED)]


@dataclass(slots=True)
class _Questions:
    """The measurements, and what each kept of the unedited model, once a process and seed."""

    bench: Workbench
    known: dict[int, Kept] = field(default_factory=dict)

    def before(self, seed: int) -> Kept:
        if seed not in self.known:
            self.known[seed] = self._ask(seed, "before", nullcontext)
        return self.known[seed]

    def after(self, seed: int, layer: int, kind: str) -> Kept:
        bench = self.bench
        recipe = bench.recipe_for(seed).model_copy(update={"batch_size": bench.settings.batch_size})
        plan = [step_of(kind, layer, bench.layers)]
        editor = Editor(
            bench.model, recipe, cache=bench.cache, report=bench.report, prepared=bench.prepared(recipe), plan=plan
        )
        self.before(seed)

        def unedited() -> AbstractContextManager[None]:
            return bench.model.edits.without(editor.patch().terms)

        with edited(editor, bench.materials[seed].facts.facts):
            return {"layer": layer, "residual": kind, **self._ask(seed, "after", unedited)}

    def _ask(self, seed: int, state: State, unedited: Callable[[], AbstractContextManager[None]]) -> Kept:
        measures, answers = self.bench.settings.measures, {}
        for part in parts_of(measures.parts):
            before = None if state == "before" else self.known[seed]["answers"][part.name]["kept"]
            options = measures.options.get(part.name, {})
            inquiry = Inquiry(
                self.bench.model, self.bench.materials[seed], options, seed, before, unedited, self.bench.report
            )
            answers[part.name] = part.ask(inquiry).to_record()
        return {"seed": seed, "answers": answers}


def _pieces(bench: Workbench) -> list[Piece]:
    questions = _Questions(bench)
    found = []
    for seed in bench.settings.seeds:
        found.append(Piece(f"seed-{seed}-before", partial(questions.before, seed)))
        for layer, kind in runs_of(bench.layers):
            found.append(Piece(f"seed-{seed}-layer-{layer}-{kind}", partial(questions.after, seed, layer, kind)))
    return found


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    check_parts(settings.measures.parts, settings.measures.options)


SINGLE_LAYER = Study(
    name="single-layer",
    title=TITLES["single-layer"],
    shows="What an edit is worth (everything that a benchmark asks) when one critical layer is written and no other: "
    "with the residual that spreading gives the layer, with the last layer's undivided, and with the one computed at "
    "the layer; and the unedited model beside them.",
    units="Shares of 1 for accuracies and successes; perplexity as a ratio to the unedited model's; KL in nats.",
    source=f"single-layer editing in {BOUNDARY_PAPER}; the undivided residual is ours",
    uses=("count", "batch_size", "measures"),
    pieces=_pieces,
    findings=findings_of,
    check=_check,
)
