"""Study ``steps``: optimisation steps of a target by layer, before and after earlier layers are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from errata.analysis.common import search_at
from errata.analysis.findings import Claim, Figure, Finding, Findings, Panel, line_of, mean_row, with_n
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.editing.batch import BatchRecord
from errata.editing.methods import BOUNDARY_PAPER
from errata.editing.recipe import Recipe
from errata.editing.schedules import SCHEDULES, Step
from errata.editing.shaping import TargetShaper
from errata.editing.target_search import Targets
from errata.editors.locate_then_edit import Editor
from errata.errors import InputError, collect_errors
from errata.facts.fact import Fact
from errata.utils.tensors import to_float64

UNEDITED: Final = "unedited"
EVEN: Final = "even"

# Quantity -> what tasks call it, unit.
_QUANTITIES: Final[Mapping[str, tuple[str, str]]] = {
    "evaluations": ("evaluations", "evaluations"),
    "converged facts": ("converged", "share"),
    "facts that need no change": ("known", "share"),
    "first loss": ("first loss", "nats"),
    "final loss": ("final loss", "nats"),
    "norm of δ, relative": ("norm", "‖h⁰‖"),
}


@dataclass(slots=True)
class _Searches:
    """The values of all facts, and rows computed from them.

    Attributes:
        values: (quantity, weights, layer) -> one per fact.
    """

    values: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    rows: list[Finding] = field(default_factory=list)

    @classmethod
    def of(cls, saved: Mapping[str, TaskRecord]) -> _Searches:
        searches = cls()
        for record in saved.values():
            for weights, layers in record["steps"].items():
                for layer, summary in layers.items():
                    for quantity, (key, _) in _QUANTITIES.items():
                        values = searches.values.setdefault((quantity, weights, int(layer)), [])
                        values.extend(float(value) for value in summary[key])
        for (quantity, weights, at), values in searches.values.items():
            unit = _QUANTITIES[quantity][1]
            searches.rows.append(mean_row(quantity, unit, {"weights": weights, "layer": at}, values))
        return searches

    def row(self, quantity: str, weights: str, layer: int) -> Finding:
        where = {"weights": weights, "layer": layer}
        (found,) = [row for row in self.rows if row.quantity == quantity and row.where == where]
        return found

    def less(self, quantity: str, weights: str, than: str, layer: int) -> Finding:
        """How much larger a quantity is with the weights ``than``, paired over facts."""
        pairs = zip(self.values[quantity, than, layer], self.values[quantity, weights, layer], strict=True)
        name, unit = f"{quantity}, {than} minus {weights}", _QUANTITIES[quantity][1]
        found = mean_row(name, unit, {"layer": layer}, [a - b for a, b in pairs])
        self.rows.append(found)
        return found

    def claim(self, text: str, quantity: str, weights: str, than: str, layer: int) -> Claim:
        """The claim that a quantity is smaller with ``weights`` than with ``than``."""
        difference = self.less(quantity, weights, than, layer)
        return Claim.on(
            difference,
            text,
            f"{quantity}: {than} {with_n(self.row(quantity, than, layer))}, {weights} "
            f"{with_n(self.row(quantity, weights, layer))}; {than} minus {weights} {with_n(difference)} "
            "(paired over facts)",
        )


def findings_of(settings: AnalysisSettings, saved: Mapping[str, TaskRecord]) -> Findings:
    """Evaluations, first losses and facts that are done, by schedule and layer, with paired claims."""
    searches = _Searches.of(saved)
    layers = sorted({layer for _, weights, layer in searches.values if weights == UNEDITED})
    first, last = layers[0], layers[-1]
    claims = [
        searches.claim(
            f"At the second boundary, layer {last}, fewer steps are needed once layer {first} is written with its own "
            "residual than on unedited weights.",
            "evaluations", "boundary", UNEDITED, last,
        ),
        searches.claim(
            f"At layer {last}, less is left to do (the loss at δ = 0) once layer {first} is written with its own "
            "residual than on unedited weights.",
            "first loss", "boundary", UNEDITED, last,
        ),
        _needless(searches, first, last),
        searches.claim(
            f"At layer {last}, less is left to do once layer {first} alone is written with its own residual than once "
            "all earlier layers are written with their shares of the last layer's.",
            "first loss", "boundary", EVEN, last,
        ),
    ]  # fmt: skip
    for layer in layers[1:-1]:
        claims.append(
            searches.claim(
                f"At layer {layer}, between the boundaries, fewer steps are needed once the earlier layers are written "
                "with residuals of their own than on unedited weights.",
                "evaluations", "own", UNEDITED, layer,
            )
        )  # fmt: skip
    return Findings(searches.rows, claims, [_figure(searches)])


def _needless(searches: _Searches, first: int, last: int) -> Claim:
    quantity = "facts that need no change"
    known = searches.values[quantity, "boundary", last]
    more = searches.less(quantity, UNEDITED, "boundary", last)
    return Claim.on(
        more,
        f"At layer {last}, some facts no longer need a change once layer {first} is written with its own residual: "
        "more of them than on unedited weights are done at δ = 0.",
        f"share of facts: unedited {with_n(searches.row(quantity, UNEDITED, last))}, boundary "
        f"{with_n(searches.row(quantity, 'boundary', last))} ({int(sum(known))} of {len(known)} facts); boundary minus "
        f"unedited {with_n(more)} (paired over facts); with all layers before it written, each with its own residual, "
        f"{with_n(searches.row(quantity, 'own', last))}",
    )


def _figure(searches: _Searches) -> Figure:
    def panel(title: str, quantity: str, label: str) -> Panel:
        by_weights: dict[str, list[Finding]] = {}
        for row in searches.rows:
            if row.quantity == quantity:
                by_weights.setdefault(str(row.where["weights"]), []).append(row)
        return Panel(title, "layer", label, [line_of(rows, name, "layer") for name, rows in by_weights.items()])

    return Figure(
        "steps",
        "Searches of targets by layer, on unedited weights, and by schedule when the earlier layers of the batch are "
        "written ('even' is a fresh search at the last layer); means over facts with 95 % intervals.",
        [
            panel("Steps", "evaluations", "evaluations of the loss"),
            panel("Left to do", "first loss", "loss at δ = 0 (nats)"),
            panel("Nothing to do", "facts that need no change", "share of facts done at δ = 0"),
            panel("Length", "norm of δ, relative", "‖δ‖ / ‖h⁰‖ (1)"),
        ],
    )


_OWN_TARGETS: Final = ("boundary", "own")  # schedules in which each layer that is written has its own target


def summary(targets: Targets) -> dict[str, list[Any]]:
    """The search's outcome for each fact, as JSON.

    ``known``: done at δ = 0 (the first loss is below the stopping loss); ``converged``: done within the given steps.
    """
    state = (to_float64(targets.z) - to_float64(targets.delta)).norm(dim=0)
    return {
        "evaluations": targets.evaluations.tolist(),
        "converged": targets.done.tolist(),
        "known": (targets.done & (targets.evaluations == 1)).tolist(),
        "first loss": targets.first_loss.tolist(),
        "final loss": targets.loss.tolist(),
        "norm": (to_float64(targets.delta).norm(dim=0) / state).tolist(),
    }


@contextmanager
def written(
    context: StudyContext, recipe: Recipe, plan: Sequence[Step], facts: Sequence[Fact]
) -> Iterator[BatchRecord]:
    """Write facts as one batch by these steps; on exit the model is restored bit for bit."""
    editor = Editor(
        context.model, recipe, cache=context.cache, report=context.report, prepared=context.prepared(recipe), plan=plan
    )
    record = editor.apply_batch(facts)
    try:
        yield record
    finally:
        context.model.edits.remove(record.terms)


def _measure(context: StudyContext, seed: int, start: int) -> TaskRecord:
    facts = context.materials[seed].facts.facts[start : start + context.settings.batch_size]
    recipe = context.recipe_for(seed)
    # The question, for every method, is how much is left to do on the current weights.
    recipe = recipe.model_copy(update={"target": recipe.target.model_copy(update={"weights": "current"})})
    prefixes = context.prepared(recipe).prefixes
    first, last = context.layers[0], context.layers[-1]
    unedited: dict[int, Targets] = {}
    found: dict[str, dict[str, Any]] = {UNEDITED: {}}
    for schedule in _OWN_TARGETS:
        with written(context, recipe, SCHEDULES[schedule](context.layers), facts) as record:
            found[schedule] = {str(layer): summary(targets) for layer, targets in record.targets.items()}
            unedited[first] = record.targets[first]
    with written(context, recipe, SCHEDULES[EVEN](context.layers)[:-1], facts) as record:
        found[EVEN] = {str(last): summary(search_at(context, facts, prefixes, last))}
        unedited[last] = record.targets[last]
    if recipe.solver.facts_at_once is not None:
        unedited = {}  # this solver writes between searches, so that only the first search saw unedited weights
    for layer in context.layers:
        targets = unedited.get(layer)
        found[UNEDITED][str(layer)] = summary(targets or search_at(context, facts, prefixes, layer))
    return {"steps": found}


def _tasks(context: StudyContext) -> list[StudyTask]:
    return [
        StudyTask(f"seed-{seed}-batch-{number}", partial(_measure, context, seed, start))
        for seed in context.settings.seeds
        for number, start in enumerate(range(0, len(context.materials[seed].facts.facts), context.settings.batch_size))
    ]


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    with collect_errors("the recipe") as part:
        with part:
            if len(recipe.layers) < 2:
                raise InputError(
                    f"with one critical layer ({recipe.layers[0]}) there is no earlier layer to write",
                    remedy="Use a recipe with two layers or more",
                    code="STUDY_NEEDS_LAYERS",
                )
        with part:
            if shapers := [shaper.kind for shaper in recipe.shaping if isinstance(shaper, TargetShaper)]:
                raise InputError(
                    f"{shapers[0]!r} changes the result of a search, which this study measures",
                    remedy="Leave it out of shaping",
                    code="STUDY_RECIPE_UNSUITABLE",
                )


STEPS = Study(
    name="steps",
    shows="The target search at each critical layer: how many evaluations of the loss a fact needs, which facts "
    "converge within the recipe's steps, which need no change at all, the initial (δ = 0) and final loss, "
    "and the norm of δ. All are measured on unedited weights. With the schedules 'boundary' and 'own' they are also "
    "measured on the weights at the time of the search, when earlier layers of the same batch have been written with "
    "their own residuals; with 'even', in a new search at the last layer, after the earlier layers have received their "
    "shares of its first residual. Every batch is written into the unedited model.",
    units="Evaluations of the loss; facts that do not converge count with the recipe's number of steps. Shares of "
    "facts. Losses in nats (the mean over contexts and target tokens of −log P, plus the recipe's KL and "
    "decay terms). ‖δ‖ in units of the fact's ‖h⁰‖.",
    source=f"optimisation steps per layer in {BOUNDARY_PAPER}; the comparison with spreading is ours",
    uses=("count", "batch_size"),
    tasks=_tasks,
    findings=findings_of,
    check=_check,
)
