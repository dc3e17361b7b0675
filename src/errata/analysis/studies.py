"""All studies, and how one is run: task by task, in a directory, resumed after an interruption.

study.json      model, recipe, facts and settings; never changes
pieces/         the result of each task, with its duration in seconds
result.json     the findings; absent until all tasks are done
rows.csv        the findings as a table
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.analysis import STUDY_TITLES
from errata.analysis.alignment import ALIGNMENT
from errata.analysis.contribution import CONTRIBUTION
from errata.analysis.factorial import FACTORIAL
from errata.analysis.findings import Findings
from errata.analysis.hidden_shift import HIDDEN_SHIFT
from errata.analysis.single_layer import SINGLE_LAYER
from errata.analysis.spectrum import SPECTRUM
from errata.analysis.steps import STEPS
from errata.analysis.study import Study, StudyContext, TaskRecord
from errata.analysis.weight_shift import WEIGHT_SHIFT
from errata.benchmark.campaign import mismatches
from errata.benchmark.data import data_name
from errata.errors import FaultsError, InputError
from errata.facts.files import escaped
from errata.utils.files import is_file, new_directory, reading, write_json, write_text
from errata.utils.locks import check_no_links, exclusive
from errata.utils.provenance import now, software_versions
from errata.utils.text import dtype_name

FORMAT = "errata-analysis-1"
STUDY, RESULT, ROWS = "study.json", "result.json", "rows.csv"

_ALL = (CONTRIBUTION, ALIGNMENT, SINGLE_LAYER, STEPS, WEIGHT_SHIFT, HIDDEN_SHIFT, SPECTRUM, FACTORIAL)
STUDIES: Mapping[str, Study] = {name: study for name in STUDY_TITLES for study in _ALL if study.name == name}


@dataclass(frozen=True, slots=True)
class StudyResult:
    """A finished study.

    Attributes:
        about: study, title, model, recipe, settings, command, seconds, versions …
    """

    findings: Findings
    about: Mapping[str, Any]

    def to_record(self) -> dict[str, Any]:
        return {"findings": self.findings.to_record(), "about": dict(self.about)}


def study_named(name: str) -> Study:
    """Raises InputError if there is no such study."""
    if name not in STUDIES:
        raise InputError(f"there is no study {name!r}", remedy=f"Known: {', '.join(STUDIES)}", code="STUDY_UNKNOWN")
    return STUDIES[name]


def run_study(study: Study, context: StudyContext, out: Path, *, command: str) -> StudyResult:
    """Run the remaining tasks of a study, and write its findings.

    Args:
        out: a directory for this study alone; an existing one is resumed.

    Raises:
        FaultsError: if ``out`` was started with other inputs; names the differences.
        InputError: if ``out`` holds something else, or another process is using it.
        ErrataError: if a task fails; results of earlier tasks remain.
    """
    identity = {
        "study": study.name,
        "model": context.model.name,
        "fingerprint": context.model.fingerprint(),
        "recipe": context.recipe.model_dump(mode="json"),
        "recipes": {name: recipe.model_dump(mode="json") for name, recipe in context.recipes.items()},
        "settings": context.settings.model_dump(mode="json"),
        "materials": {str(seed): data_name(material) for seed, material in context.materials.items()},
    }
    if not is_file(out / STUDY):
        with new_directory(out) as partial:
            (partial / "pieces").mkdir()
            record = {"format": FORMAT, "created": now(), "command": command, "versions": software_versions()}
            write_json(partial / STUDY, {**record, "identity": identity}, indent=1)
    with _reading(out / STUDY):
        record = _read(out / STUDY)
        started_with = record["identity"]
    _check_same(started_with, identity, out)
    check_no_links(out)
    with exclusive(out / "lock", f"the study {out}"):
        tasks = study.tasks(context)
        results: dict[str, TaskRecord] = {}
        seconds = 0.0
        for number, task in enumerate(tasks):
            path = out / "pieces" / f"{task.name}.json"
            if not is_file(path):
                context.report(study.name, number, len(tasks))  # not for finished tasks: they would distort the rate
                started = time.perf_counter()
                found = task.work()
                text = json.dumps({"kept": found, "seconds": time.perf_counter() - started}, allow_nan=False)
                write_text(path, text + "\n")
            with _reading(path):
                saved = _read(path)
                results[task.name] = saved["kept"]
                seconds += saved["seconds"]
        context.report(study.name, len(tasks), len(tasks))
        findings = study.findings(context.settings, results)
        about = {
            "title": study.title,
            "shows": study.shows,
            "units": study.units,
            "source": study.source,
            **{key: value for key, value in record.items() if key != "format"},
            "device": str(context.model.device),
            "dtype": dtype_name(context.model.dtype),
            "seconds": seconds,
        }
        result = StudyResult(findings, about)
        write_text(out / ROWS, csv_of(findings))
        whole = {"format": FORMAT, **result.to_record()}
        write_json(out / RESULT, whole, indent=1, allow_nan=False)
    return result


def read_result(directory: Path) -> StudyResult:
    """Raises InputError if there is no finished study."""
    path = directory / RESULT
    with _reading(path):
        whole = _read(path)
        return StudyResult(Findings.of(whole["findings"]), whole["about"])


def csv_of(findings: Findings) -> str:
    """The findings as a table: quantity, labels, numbers."""
    names = list(dict.fromkeys(name for row in findings.rows for name in row.where))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["quantity", *names, "mean", "low", "high", "n", "unit"])
    for row in findings.rows:
        where = [escaped(str(row.where.get(name, ""))) for name in names]
        numbers = ["" if value is None else value for value in (row.mean, row.low, row.high)]
        table.writerow([escaped(row.quantity), *where, *numbers, row.n, escaped(row.unit)])
    return text.getvalue()


def _reading(path: Path) -> AbstractContextManager[None]:
    remedy = "Remove it, then run the same command again" if path.name != STUDY else "Start over with another --out"
    return reading(path, remedy=remedy, code="STUDY_FILE_DAMAGED")


def _read(path: Path) -> Any:
    """The content of a file; call it within ``_reading``."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    if path.name in (STUDY, RESULT) and whole["format"] != FORMAT:
        raise ValueError(f"its format is {whole['format']!r}, expected {FORMAT!r}")
    return whole


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], out: Path) -> None:
    faults = mismatches(out, old, new, code="STUDY_MISMATCH")
    if any(fault.where.startswith("settings") for fault in faults):  # other settings select other facts
        faults = [fault for fault in faults if not fault.where.startswith("materials")]
    if faults:
        remedy = "Use another --out, or the original inputs"
        raise FaultsError(f"the study in {out}", faults, remedy=remedy)
