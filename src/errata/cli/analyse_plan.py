"""What ``errata analyse`` is to do: studies with their settings, everything wrong told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from errata.analysis.studies import STUDIES, study_named
from errata.analysis.study import AnalysisSettings, Study
from errata.benchmark.grid import DataEntry
from errata.benchmark.material import Material
from errata.cli.bench_options import entries_of, names_in, seeds_named
from errata.cli.model_options import is_lab
from errata.editing.methods import method_named
from errata.editing.recipe import Recipe
from errata.errors import Fault, FaultsError, InputError

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
