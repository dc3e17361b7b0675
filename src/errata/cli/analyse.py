"""``errata analyse``."""

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
from errata.benchmark.grid import DataEntry
from errata.benchmark.material import Material
from errata.benchmark.measurement_names import FURTHER_NAMES
from errata.benchmark.measurements import check_parts
from errata.cli.bench_plan import (
    WholeSet,
    entries_of,
    material_of,
    measures_of,
    names_in,
    prose_of,
    seeds_named,
    whole_set,
)
from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TrustOption,
    check_facts,
    is_lab,
    outline_of,
    placement,
)
from errata.cli.recipe_options import read_numbers, show_notes
from errata.cli.report import write_studies
from errata.cli.terminal import JsonOption, console, progress, tell, write_json
from errata.editing.methods import method_named
from errata.editing.recipe import Recipe
from errata.errors import Fault, FaultsError, InputError, InterruptedRunError, collect_errors
from errata.models.loading import Outline
from errata.report.figures import check_drawing
from errata.runs.loading import load_model
from errata.utils.files import check_new, is_file

HELP = (
    "Run studies that test each step of the argument for boundary-layer updates.\n\n"
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
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help=f"{', '.join(STUDY_TITLES)}, several by commas, or all.")
    ],
    model: ModelOption = "lab",
    facts: Annotated[
        str | None,
        typer.Option("--facts", "-f", help="A data set, NAME or NAME=FILE, or a .jsonl or .csv file; lab: its world."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the studies' directories are; those that are there go on.")
    ] = Path("runs/analysis"),
    method: Annotated[str, typer.Option(help="The row of `errata methods` whose numbers are taken.")] = "memit",
    methods: Annotated[
        str | None, typer.Option(help="hidden-shift, spectrum: whose runs are looked at, by commas.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Facts of a study, or of each of its runs.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts that are solved together.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="How many (3: 0, 1 and 2), or which, by commas: of facts, contexts and all else.")
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="weight-shift: batch sizes, by commas.")] = None,
    earlier: Annotated[str | None, typer.Option(help="weight-shift: numbers of earlier batches, by commas.")] = None,
    ridges: Annotated[str | None, typer.Option(help="factorial: times the recipe's λ or L2, by commas.")] = None,
    measure: Annotated[
        str | None,
        typer.Option(help=f"single-layer: further measurements: {', '.join(FURTHER_NAMES)}."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe; default: the one shipped for the model.")] = None,
    layers: Annotated[str | None, typer.Option(help="Critical layers in place of the recipe's: 4,5,6.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Text for key statistics; default: the recipe's.")] = None,
    untouched: Annotated[
        Path | None, typer.Option(help="JSONL of {prompt, answer} about subjects that nobody edits.")
    ] = None,
    prose: Annotated[
        str | None, typer.Option(help="Texts for perplexity: me-ppl=FILE, or a file with a text a line.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: TrustOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and say what would be done.")] = False,
    json: JsonOption = None,
) -> None:
    """Run studies that test each step of the argument for boundary-layer updates."""
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
    numbers: Recipe | None = None
    whole: WholeSet | None = None
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
            numbers = read_numbers(model, method, recipe, corpus=corpus, layers=layers)
        with part:
            entry = entry_of_facts(facts, untouched, model)
            whole = whole_set(entry)
        with part:
            texts = None if prose is None else prose_of(prose)
        for plan in plans:
            with part:
                check_parts(plan.settings.measures.parts, plan.settings.measures.options)
            for name in plan.settings.methods if "methods" in plan.study.uses else ():
                with part:
                    chosen = read_numbers(model, name, recipe, corpus=corpus, layers=layers)
                    plan.recipes[name] = chosen.model_copy(update={"batch_size": plan.settings.batch_size})
            with part:
                if not is_file(out / plan.study.name / STUDY):
                    check_new(out / plan.study.name)
    if outline is None or numbers is None:
        raise AssertionError("what could not be read was not told of")
    outline.check_layers(numbers.layers)
    with collect_errors("the input") as part:
        for plan in plans:
            with part:
                plan.study.check(numbers, plan.settings)
                for seed in plan.settings.seeds:
                    needed = plan.study.needs(plan.settings)
                    plan.materials[seed] = material_of(model, entry, whole, texts, needed, seed)
                    check_facts(plan.materials[seed].facts, outline)
    show_notes(numbers, model)
    for plan in plans:
        tell(f"{plan.told()}; {out / plan.study.name}: {_state(out / plan.study.name)}")
    if dry_run:
        for plan in plans:
            if plan.study.cost is not None:
                width = (where["dtype"] or outline.dtype).itemsize
                first = next(iter(plan.materials.values())).facts.facts
                tell(f"\n{plan.study.name}, by calculation:")
                tell(plan.study.cost(outline, numbers, plan.settings, first, width))
        tell("Nothing was loaded or written (--dry-run).")
        write_json(json, {"studies": [plan.record(numbers) for plan in plans]})
        return
    results: dict[str, StudyResult] = {}
    command = "errata " + shlex.join(sys.argv[1:])
    with progress(looked_back=900.0) as report:
        loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
        for plan in plans:
            own = numbers.model_copy(update={"batch_size": plan.settings.batch_size})
            context = StudyContext(loaded, own, plan.settings, plan.materials, plan.recipes, report=report)
            try:
                results[plan.study.name] = run_study(plan.study, context, out / plan.study.name, command=command)
            except KeyboardInterrupt as error:
                raise InterruptedRunError(
                    f"the study {plan.study.name!r} is not done; what it has done is kept in {out / plan.study.name}",
                    remedy="The same command goes on",
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
    """What of a study is there."""
    if is_file(directory / RESULT):
        return "there are results"
    kept = len(list((directory / "pieces").glob("*.json")))
    return f"begun, {kept} pieces are kept" if is_file(directory / STUDY) else "not begun"


def _show(name: str, result: StudyResult) -> None:
    """What became of the claims, and where everything is."""
    table = Table(title=f"{name}: {result.about['title']} ({result.about['seconds']:.0f} s)", title_justify="left")
    for head in ("claim", "verdict", "measured"):
        table.add_column(head, overflow="fold")
    for claim in result.findings.claims:
        table.add_row(claim.text, claim.verdict, claim.evidence)
    console().print(table)
    for label, reason in result.findings.undefined.items():
        tell(f"left out, for it means nothing: {label}: {reason}")


ALL: Final = "all"
_LISTS: Final = ("sizes", "earlier", "ridges", "methods")


@dataclass(frozen=True, slots=True)
class Planned:
    """A study with what it goes by."""

    study: Study
    settings: AnalysisSettings
    recipes: dict[str, Recipe]
    materials: dict[int, Material]

    def told(self) -> str:
        """One line of what it will do."""
        values = self.settings.model_dump(mode="json")
        used = ", ".join(
            f"{name} {values[name] if not isinstance(values[name], list) else '/'.join(map(str, values[name]))}"
            for name in ("seeds", *self.study.uses)
            if name != "measures"
        )
        return f"{self.study.name}: {self.study.title.lower()} ({used})"

    def record(self, recipe: Recipe) -> dict[str, Any]:
        """For machines."""
        return {
            "study": self.study.name,
            "settings": self.settings.model_dump(mode="json"),
            "recipe": recipe.model_dump(mode="json"),
            "facts": {str(seed): len(material.facts) for seed, material in self.materials.items()},
        }


def planned(names: str, given: Mapping[str, Any]) -> list[Planned]:
    """Raises FaultsError: for studies that there are not, settings that none of them has, and wrong values."""
    faults: list[Fault] = []
    studies: list[Study] = []
    for name in list(STUDIES) if names == ALL else names_in(names):
        try:
            studies.append(study_named(name))
        except InputError as error:
            faults.append(Fault("STUDY", error.what, error.remedy))
    used = {"seeds", *(name for study in studies for name in study.uses)}
    for name in given:
        if studies and name not in used:
            option = {"measures": "--measure"}.get(name, f"--{name.replace('_', '-')}")
            faults.append(Fault(option, f"{names} does not go by it", f"It goes by {', '.join(sorted(used))}"))
    values = {name: names_in(value) if name in _LISTS else value for name, value in given.items()}
    if "seeds" in given:
        try:
            values["seeds"] = seeds_named(given["seeds"])
        except InputError as error:
            faults.append(Fault("--seeds", error.what, error.remedy))
            del values["seeds"]
    plans = []
    for study in studies:
        own = {name: value for name, value in values.items() if name in ("seeds", *study.uses)}
        try:
            settings = AnalysisSettings.model_validate({**study.defaults, **own})
        except ValidationError as error:
            for item in error.errors():
                where = f"--{str(item['loc'][0]).replace('_', '-')}"
                fault = Fault(where, f"{item['msg'].lower()}, got {item['input']!r:.80}", "See errata analyse --help")
                if fault not in faults:
                    faults.append(fault)
            continue
        plans.append(Planned(study, settings, {}, {}))
    for name in {name for plan in plans for name in plan.settings.methods if "methods" in plan.study.uses}:
        try:
            method_named(name)
        except InputError as error:
            faults.append(Fault("--methods", error.what, error.remedy))
    if faults:
        raise FaultsError("the command line", faults)
    return plans


def entry_of_facts(facts: str | None, untouched: Path | None, model: str) -> DataEntry:
    """The data set that --facts names; the lab's world for the lab.

    Raises:
        InputError: if there is none for another model.
    """
    if facts is None and not is_lab(model):
        raise InputError(f"no --facts given for {model!r}", remedy="Name a data set, or a .jsonl or .csv file")
    shared = {"untouched": None if untouched is None else str(untouched.absolute())}
    found = entries_of(facts or "lab", [], shared) or []
    if len(found) != 1:
        raise InputError(f"--facts {facts!r} names {len(found)} data sets", remedy="Name one")
    return DataEntry.model_validate(found[0])
