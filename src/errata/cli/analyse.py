"""``errata analyse``: run studies of boundary updates."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError
from rich.table import Table

from errata.analysis import STUDY_TITLES
from errata.analysis.studies import RESULT, STUDIES, STUDY, StudyResult, read_result, run_study, study_named
from errata.analysis.study import AnalysisSettings, Study, StudyContext
from errata.benchmark import OPTIONAL_MEASUREMENTS
from errata.benchmark.data import BenchmarkData
from errata.benchmark.grid import DataEntry
from errata.benchmark.measurements import check_measurements
from errata.cli.bench_plan import (
    WholeSet,
    absolute_if_given,
    entries_of,
    material_of,
    measures_of,
    named_data,
    names_in,
    prose_of,
    seeds_named,
    whole_set,
)
from errata.cli.model_options import (
    CorpusOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    LayersOption,
    ModelOption,
    ProseOption,
    StatisticsOption,
    TrustOption,
    UntouchedOption,
    check_facts,
    is_lab,
    outline_of,
    placement,
)
from errata.cli.recipe_options import read_recipe_for, show_notes
from errata.cli.report import write_studies
from errata.cli.terminal import JsonOption, console, echo, progress, write_json
from errata.editing.methods import method_named
from errata.editing.recipe import Recipe
from errata.errors import Fault, FaultsError, InputError, InterruptedRunError, collect_errors, faults_of
from errata.models.loading import Outline
from errata.report.figures import check_drawing
from errata.runs.loading import load_model
from errata.utils.files import check_new, is_file
from errata.utils.text import counted

HELP = (
    "Run studies that test each step of the argument for boundary updates.\n\n"
    + "\n\n".join(f"[bold]{name}[/]  {title}." for name, title in STUDY_TITLES.items())
    + "\n\nEach study is saved step by step in its own directory OUT/STUDY; running the same command again resumes an "
    "interrupted study. The results are result.json, rows.csv, figures and a report. docs/analysis.md describes each "
    "study, its units, and the source of its question."
)
EXAMPLE = (
    "Example: errata analyse contribution --model lab --out runs/analysis\n\n"
    "All of them: errata analyse all --model lab --out runs/analysis\n\n"
    "On a large model: errata analyse weight-shift --model meta-llama/Meta-Llama-3-8B-Instruct --facts counterfact "
    "--method memit_seq --corpus wikipedia.txt --out runs/llama3"
)
app = typer.Typer()


@app.command("analyse", help=HELP, epilog=EXAMPLE)
def analyse(
    study: Annotated[str, typer.Argument(metavar="STUDY", help=f"{', '.join(STUDY_TITLES)}, comma-separated, or all.")],
    model: ModelOption = "lab",
    facts: Annotated[
        str | None,
        typer.Option(
            "--facts",
            "-f",
            help="Data set, as NAME or NAME=FILE, or a .jsonl or .csv file; default for lab: its world.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Parent directory of the studies; existing studies are resumed.")
    ] = Path("runs/analysis"),
    method: Annotated[str, typer.Option(help="Method whose recipe is used (see `errata methods`).")] = "memit",
    methods: Annotated[str | None, typer.Option(help="hidden-shift, spectrum: comma-separated methods to run.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Facts per study, or per run of a study.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts solved jointly.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Number of seeds (3 means 0, 1 and 2) or a comma-separated list; they "
            "determine facts, contexts and all other random choices."
        ),
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="weight-shift: comma-separated batch sizes.")] = None,
    earlier: Annotated[
        str | None, typer.Option(help="weight-shift: comma-separated numbers of earlier batches.")
    ] = None,
    ridges: Annotated[
        str | None, typer.Option(help="factorial: comma-separated multiples of the recipe's λ or L2.")
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(help=f"single-layer: comma-separated further measurements: {', '.join(OPTIONAL_MEASUREMENTS)}."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe; default: the one shipped for the model.")] = None,
    layers: LayersOption = None,
    corpus: CorpusOption = None,
    statistics: StatisticsOption = None,
    untouched: UntouchedOption = None,
    prose: ProseOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: TrustOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = None,
) -> None:
    """Run studies that test each step of the argument for boundary updates."""
    given = {
        "count": count,
        "batch_size": batch_size,
        "seeds": seeds,
        "sizes": sizes,
        "earlier": earlier,
        "ridges": ridges,
        "methods": methods,
        "measures": measures_of(names_in(measure)),
    }
    plans: list[Planned] = []
    outline: Outline | None = None
    base_recipe: Recipe | None = None
    data_set: WholeSet | None = None
    entry = DataEntry(name="lab")
    with collect_errors("the input") as part:
        with part:
            plans = planned(study, {name: value for name, value in given.items() if value is not None})
        with part:
            check_drawing()
        with part:
            where = placement(device, dtype)
            outline = outline_of(model, trust_remote_code=trust_remote_code)
        with part:
            base_recipe = read_recipe_for(model, method, recipe, corpus=corpus, statistics=statistics, layers=layers)
        with part:
            entry = entry_of_facts(facts, untouched, model)
            data_set = whole_set(entry)
        with part:
            texts = None if prose is None else prose_of(prose)
        for plan in plans:
            with part:
                check_measurements(plan.settings.measures.parts, plan.settings.measures.options)
            for name in plan.settings.methods if "methods" in plan.study.uses else ():
                with part:
                    chosen = read_recipe_for(model, name, recipe, corpus=corpus, statistics=statistics, layers=layers)
                    plan.recipes[name] = chosen.model_copy(update={"batch_size": plan.settings.batch_size})
            with part:
                if not is_file(out / plan.study.name / STUDY):
                    check_new(out / plan.study.name)
    if outline is None or base_recipe is None:
        raise AssertionError("an unreadable input was not reported")
    outline.check_layers(base_recipe.layers)
    with collect_errors("the input") as part:
        for plan in plans:
            with part:
                plan.study.check(base_recipe, plan.settings)
                for seed in plan.settings.seeds:
                    needed = plan.study.needs(plan.settings)
                    plan.materials[seed] = material_of(model, entry, data_set, texts, needed, seed)
                    check_facts(plan.materials[seed].facts, outline)
    show_notes(base_recipe, model)
    for plan in plans:
        echo(f"{plan.description()}; {out / plan.study.name}: {_state(out / plan.study.name)}")
    if dry_run:
        for plan in plans:
            if plan.study.cost is not None:
                width = (where["dtype"] or outline.dtype).itemsize
                first = next(iter(plan.materials.values())).facts.facts
                echo(f"\n{plan.study.name}, estimated cost:")
                echo(plan.study.cost(outline, base_recipe, plan.settings, first, width))
        echo("Dry run: no weights were loaded and nothing was written.")
        write_json(json, {"studies": [plan.record(base_recipe) for plan in plans]})
        return
    results: dict[str, StudyResult] = {}
    command = "errata " + shlex.join(sys.argv[1:])
    with progress(speed_window=900.0) as report:
        loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
        for plan in plans:
            recipe_of_study = base_recipe.model_copy(update={"batch_size": plan.settings.batch_size})
            context = StudyContext(loaded, recipe_of_study, plan.settings, plan.materials, plan.recipes, report=report)
            try:
                results[plan.study.name] = run_study(plan.study, context, out / plan.study.name, command=command)
            except KeyboardInterrupt as error:
                raise InterruptedRunError(
                    f"the study {plan.study.name!r} is unfinished; its progress is saved in {out / plan.study.name}",
                    remedy="Run the same command again to resume it",
                ) from error
    for name, result in results.items():
        _show(name, result)
    places = [out / name for name in STUDY_TITLES if is_file(out / name / RESULT)]
    targets = {kind: out / f"report.{kind}" for kind in ("html", "md")}
    write_studies([read_result(place) for place in places], targets, places=places)
    write_json(
        json, {"studies": {name: {"findings": r.findings.to_record(), "about": r.about} for name, r in results.items()}}
    )


def _state(directory: Path) -> str:
    """The progress of a study."""
    if is_file(directory / RESULT):
        return "finished"
    steps = len(list((directory / "pieces").glob("*.json")))
    return f"started, {counted(steps, 'step')} saved" if is_file(directory / STUDY) else "not started"


def _show(name: str, result: StudyResult) -> None:
    """Print the verdicts on the claims of a study."""
    table = Table(title=f"{name}: {result.about['title']} ({result.about['seconds']:.0f} s)", title_justify="left")
    for head in ("claim", "verdict", "measured"):
        table.add_column(head, overflow="fold")
    for claim in result.findings.claims:
        table.add_row(claim.text, claim.verdict, claim.evidence)
    console().print(table)
    for label, reason in result.findings.undefined.items():
        echo(f"skipped, invalid combination: {label}: {reason}")


ALL: Final = "all"
_LISTS: Final = ("sizes", "earlier", "ridges", "methods")


@dataclass(frozen=True, slots=True)
class Planned:
    """A study with its settings and inputs."""

    study: Study
    settings: AnalysisSettings
    recipes: dict[str, Recipe]
    materials: dict[int, BenchmarkData]

    def description(self) -> str:
        """One line about the study and its settings."""
        values = self.settings.model_dump(mode="json")
        used = ", ".join(
            f"{name} {values[name] if not isinstance(values[name], list) else '/'.join(map(str, values[name]))}"
            for name in ("seeds", *self.study.uses)
            if name != "measures"
        )
        return f"{self.study.name}: {self.study.title.lower()} ({used})"

    def record(self, recipe: Recipe) -> dict[str, Any]:
        """The JSON record of the plan."""
        return {
            "study": self.study.name,
            "settings": self.settings.model_dump(mode="json"),
            "recipe": recipe.model_dump(mode="json"),
            "facts": {str(seed): len(material.facts) for seed, material in self.materials.items()},
        }


def planned(names: str, given: Mapping[str, Any]) -> list[Planned]:
    """Plan the named studies; raises FaultsError for unknown studies, inapplicable options and invalid values."""
    faults: list[Fault] = []
    studies: list[Study] = []
    chosen = list(STUDIES) if names == ALL else names_in(names)
    if not chosen:
        faults.append(Fault("STUDY", "no study is named", f"Known: {', '.join(STUDIES)}, {ALL}", code="STUDY_UNKNOWN"))
    for name in chosen:
        try:
            studies.append(study_named(name))
        except InputError as error:
            faults += faults_of(error, "STUDY")
    used = {"seeds", *(name for study in studies for name in study.uses)}
    for name in given:
        if studies and name not in used:
            option = {"measures": "--measure"}.get(name, f"--{name.replace('_', '-')}")
            what = f"does not apply to {names}"
            faults.append(Fault(option, what, f"Applicable: {', '.join(sorted(used))}", code="OPTION_NOT_APPLICABLE"))
    values = {name: names_in(value) if name in _LISTS else value for name, value in given.items()}
    if "seeds" in given:
        try:
            values["seeds"] = seeds_named(given["seeds"])
        except InputError as error:
            faults += faults_of(error, "--seeds")
            del values["seeds"]
    plans = []
    for study in studies:
        used_values = {name: value for name, value in values.items() if name in ("seeds", *study.uses)}
        try:
            settings = AnalysisSettings.model_validate({**study.defaults, **used_values})
        except ValidationError as error:
            for item in error.errors():
                where = f"--{str(item['loc'][0]).replace('_', '-')}"
                what = f"{item['msg'].lower()}, got {item['input']!r:.80}"
                fault = Fault(where, what, "See errata analyse --help", code="OPTION_INVALID")
                if fault not in faults:
                    faults.append(fault)
            continue
        plans.append(Planned(study, settings, {}, {}))
    for name in {name for plan in plans for name in plan.settings.methods if "methods" in plan.study.uses}:
        try:
            method_named(name)
        except InputError as error:
            faults += faults_of(error, "--methods")
    if faults:
        raise FaultsError("the command line", faults)
    return plans


def entry_of_facts(facts: str | None, untouched: Path | None, model: str) -> DataEntry:
    """The data set named by --facts; by default the lab's world for the lab.

    Raises:
        InputError: if --facts is missing for another model.
    """
    if facts is None and not is_lab(model):
        raise InputError(
            f"missing option --facts for {model!r}",
            remedy="Give a data set, or a .jsonl or .csv file",
            code="OPTION_MISSING",
        )
    shared = {"untouched": absolute_if_given(untouched)}
    found = entries_of(facts or "lab", named_data, [], shared) or []
    if len(found) != 1:
        raise InputError(f"--facts {facts!r} names {len(found)} data sets", remedy="Give one", code="OPTION_INVALID")
    return DataEntry.model_validate(found[0])
