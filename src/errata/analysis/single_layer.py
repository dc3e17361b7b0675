"""Study ``single-layer``: what an edit is worth when one critical layer is written alone, with which residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from errata.analysis.edited import edited
from errata.analysis.residuals import COMPUTED, SPREADS
from errata.analysis.single_layer_findings import KINDS, UNDIVIDED, findings_of
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.benchmark.measurements import check_parts, parts_of
from errata.benchmark.parts import Inquiry, State
from errata.edit import Editor
from errata.methods import BOUNDARY_PAPER
from errata.recipe import Recipe
from errata.schedules import Step


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
