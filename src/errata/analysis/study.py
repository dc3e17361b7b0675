"""What a study is: what it shows, the pieces of work that it takes, and what is made of them.

A piece is kept by itself, so that a study which was stopped goes on behind its last whole piece (``running``). The
numbers of a study follow from what its pieces kept and from nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from errata.analysis.findings import Findings
from errata.benchmark.grid import Measures
from errata.benchmark.material import Material
from errata.editing.contexts import generate_prefixes
from errata.editing.preparation import Prepared, prepare
from errata.editing.recipe import Recipe
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.loading import Outline
from errata.statistics.settings import Settings
from errata.utils.progress import Report, silent

Kept = Mapping[str, Any]
"""What a piece keeps, as JSON holds it."""


_Count = Annotated[int, Field(ge=1)]
_Number = Annotated[int, Field(ge=0)]
_Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AnalysisSettings(Settings):
    """The numbers of a study; each study uses those that its description names."""

    count: int = Field(100, ge=1, description="facts of a study, or of each of its runs")
    batch_size: int = Field(25, ge=1, description="facts that are solved together")
    sizes: tuple[_Count, ...] = Field((1, 10, 100), description="weight-shift: batch sizes that are compared")
    earlier: tuple[_Number, ...] = Field((0, 1, 2, 4, 8), description="weight-shift: numbers of earlier batches")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="of the facts, the contexts and all else")
    ridges: tuple[_Factor, ...] = Field((1.0, 4.0), description="factorial: times the recipe's λ or L2")
    methods: tuple[str, ...] = Field(
        ("memit", "memit+blue"), min_length=1, description="hidden-shift, spectrum: whose runs are looked at"
    )
    measures: Measures = Measures()

    @field_validator("seeds", mode="before")
    @classmethod
    def _a_number_is_so_many(cls, value: Any) -> Any:
        return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(slots=True)
class Workbench:
    """What a study works with.

    Attributes:
        recipe: the numbers; its layers are the critical ones, its schedule is each study's own business.
        materials: seed -> facts, questions about other subjects, prose.
        recipes: method -> its recipe, for studies that compare runs.
        cache: where key statistics are kept; the user's cache directory if None.
    """

    model: LanguageModel
    recipe: Recipe
    settings: AnalysisSettings
    materials: Mapping[int, Material]
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    cache: Path | None = None
    report: Report = silent
    _prepared: dict[str, Prepared] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """The critical layers, ascending."""
        return self.recipe.layers

    @property
    def site(self) -> Site:
        """Where residuals live: see ``Editor.site``."""
        return Site.MLP if self.model.architecture.norm_after_mlp else Site(self.recipe.site)

    def recipe_for(self, seed: int, recipe: Recipe | None = None) -> Recipe:
        """A recipe (by default the study's) with the contexts of a seed."""
        chosen = recipe or self.recipe
        return chosen.model_copy(update={"contexts": chosen.contexts.model_copy(update={"seed": seed})})

    def prepared(self, recipe: Recipe) -> Prepared:
        """Contexts, and the solver with its statistics at all critical layers; once for each combination of them. The
        model must be the unedited one when it is first asked for.
        """
        solving = "|".join([recipe.solver.model_dump_json(), recipe.statistics.model_dump_json(), str(recipe.layers)])
        key = f"{recipe.contexts.model_dump_json()}|{solving}"
        if key not in self._prepared:
            # Factors are as large as the MLP's width squared: seeds, which differ in their contexts only, share them.
            shared = [found for name, found in self._prepared.items() if name.endswith(f"|{solving}")]
            if shared:
                prefixes = generate_prefixes(self.model, recipe.contexts)
                self._prepared[key] = replace(shared[0], prefixes=prefixes)
            else:
                self._prepared[key] = prepare(self.model, recipe, recipe.layers, cache=self.cache, report=self.report)
        return self._prepared[key]


@dataclass(frozen=True, slots=True)
class Piece:
    """Work that is kept by itself; the model must be afterwards what it was before.

    Attributes:
        name: of its file; letters, digits, ``-``, ``_``, ``+`` and ``.``.
    """

    name: str
    work: Callable[[], Kept]


@dataclass(frozen=True, slots=True)
class Study:
    """A row of ``errata analyse``.

    Attributes:
        shows: what it tells, in sentences.
        units: of its quantities.
        source: where the question is from.
        uses: the settings that it goes by, beside the seeds.
        pieces: the work; in the order in which it is done.
        findings: what follows from what the pieces kept, by their names.
        check: raises InputError, before any work, for recipes and settings that it cannot be made with.
        defaults: settings that are other than usual for this study.
        needs: how many facts each seed has to have.
        cost: what it takes by calculation, as text; None where nobody has calculated it.
    """

    name: str
    title: str
    shows: str
    units: str
    source: str
    uses: Sequence[str]
    pieces: Callable[[Workbench], Sequence[Piece]]
    findings: Callable[[AnalysisSettings, Mapping[str, Kept]], Findings]
    check: Callable[[Recipe, AnalysisSettings], None] = lambda recipe, settings: None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs: Callable[[AnalysisSettings], int] = lambda settings: settings.count
    cost: Callable[[Outline, Recipe, AnalysisSettings, Sequence[Fact], int], str] | None = None
