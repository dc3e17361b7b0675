"""What a study consists of: settings, tasks to run, and findings computed from the results of the tasks.

The result of each task is saved, so that an interrupted study resumes after its last finished task (``studies``).
Findings depend on these results only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from errata.analysis import STUDY_TITLES
from errata.analysis.findings import Findings
from errata.benchmark.data import BenchmarkData
from errata.benchmark.grid import Measures, Seeds
from errata.editing.contexts import generate_prefixes
from errata.editing.preparation import Prepared, prepare, target_site
from errata.editing.recipe import Recipe
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.loading import Outline
from errata.utils.progress import Report, silent
from errata.utils.settings import Settings

TaskRecord = Mapping[str, Any]
"""The result of a task, as JSON."""

_Count = Annotated[int, Field(ge=1)]
_Number = Annotated[int, Field(ge=0)]
_Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AnalysisSettings(Settings):
    """Settings of all studies; ``Study.uses`` names those that a study reads."""

    count: int = Field(100, ge=1, description="facts of a study, or of each of its runs")
    batch_size: int = Field(25, ge=1, description="facts solved together")
    sizes: tuple[_Count, ...] = Field((1, 10, 100), description="weight-shift: batch sizes to compare")
    earlier: tuple[_Number, ...] = Field((0, 1, 2, 4, 8), description="weight-shift: numbers of earlier batches")
    seeds: Seeds = Field((0,), min_length=1, description="random seeds: of facts, contexts and everything else")
    ridges: tuple[_Factor, ...] = Field((1.0, 4.0), description="factorial: factors of the recipe's λ or L2")
    methods: tuple[str, ...] = Field(
        ("memit", "memit+blue"), min_length=1, description="hidden-shift, spectrum: methods to run"
    )
    measures: Measures = Measures()


@dataclass(slots=True)
class StudyContext:
    """Model, recipe, settings and data of a study.

    Attributes:
        recipe: its layers are the critical ones; studies choose schedules themselves.
        materials: seed -> facts to edit and evaluation prompts.
        recipes: method -> recipe, for studies that compare runs.
        cache: directory of key statistics; the user's cache directory if None.
    """

    model: LanguageModel
    recipe: Recipe
    settings: AnalysisSettings
    materials: Mapping[int, BenchmarkData]
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
        """Where residuals are measured."""
        return target_site(self.model, self.recipe.site)

    def recipe_for(self, seed: int, recipe: Recipe | None = None) -> Recipe:
        """A recipe (by default the study's) with the contexts of a seed."""
        chosen = recipe or self.recipe
        return chosen.model_copy(update={"contexts": chosen.contexts.model_copy(update={"seed": seed})})

    def prepared(self, recipe: Recipe) -> Prepared:
        """Contexts, and solvers with statistics for all critical layers; cached.

        The model must be unedited at the first call for a recipe.
        """
        solving = "|".join([recipe.solver.model_dump_json(), recipe.statistics.model_dump_json(), str(recipe.layers)])
        key = f"{recipe.contexts.model_dump_json()}|{solving}"
        if key not in self._prepared:
            # Factors need the square of the MLP's width: seeds, which differ only in their contexts, share them.
            shared = [found for name, found in self._prepared.items() if name.endswith(f"|{solving}")]
            if shared:
                prefixes = generate_prefixes(self.model, recipe.contexts)
                self._prepared[key] = replace(shared[0], prefixes=prefixes)
            else:
                self._prepared[key] = prepare(self.model, recipe, recipe.layers, cache=self.cache, report=self.report)
        return self._prepared[key]


@dataclass(frozen=True, slots=True)
class StudyTask:
    """A unit of work whose result is saved; it must leave the model as it found it.

    Attributes:
        name: of its file; letters, digits, ``-``, ``_``, ``+`` and ``.``.
    """

    name: str
    work: Callable[[], TaskRecord]


@dataclass(frozen=True, slots=True)
class Study:
    """A study of ``errata analyse``.

    Attributes:
        shows: description of the quantities.
        units: of the quantities.
        source: of the question.
        uses: names of the settings that it reads, besides the seeds.
        tasks: the work, in order.
        findings: computed from task name -> result.
        check: raises InputError, before any work, for recipes and settings that do not fit.
        defaults: settings with other defaults in this study.
        needs: number of facts per seed.
        cost: estimated cost, as text; None if there is no estimate.
    """

    name: str
    shows: str
    units: str
    source: str
    uses: Sequence[str]
    tasks: Callable[[StudyContext], Sequence[StudyTask]]
    findings: Callable[[AnalysisSettings, Mapping[str, TaskRecord]], Findings]
    check: Callable[[Recipe, AnalysisSettings], None] = lambda recipe, settings: None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs: Callable[[AnalysisSettings], int] = lambda settings: settings.count
    cost: Callable[[Outline, Recipe, AnalysisSettings, Sequence[Fact], int], str] | None = None

    @property
    def title(self) -> str:
        return STUDY_TITLES.get(self.name, self.name)
