"""A study on disk: done piece by piece, continued where it was stopped.

study.json      what it is of: model, recipe, facts, settings; never changes
pieces/         what each piece of the work kept, with the seconds that it took
result.json     the findings; absent until all pieces are there
rows.csv        its rows, for whoever likes tables
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.analysis.findings import Findings
from errata.analysis.study import Kept, Study, Workbench
from errata.benchmark.material import material_name
from errata.errors import Fault, FaultsError, InputError
from errata.facts.files import escaped
from errata.patches.patch import now, software_versions
from errata.utils.files import is_file, new_directory, reason_of, write_text
from errata.utils.locks import alone, check_no_links
from errata.utils.text import dtype_name

FORMAT = "errata-analysis-1"
STUDY, RESULT, ROWS = "study.json", "result.json", "rows.csv"


@dataclass(frozen=True, slots=True)
class Result:
    """A study that is done.

    Attributes:
        about: what it is of: study, title, model, recipe, settings, command, seconds, versions …
    """

    findings: Findings
    about: Mapping[str, Any]

    def to_record(self) -> dict[str, Any]:
        return {"findings": self.findings.to_record(), "about": dict(self.about)}


def identity_of(study: Study, bench: Workbench) -> dict[str, Any]:
    """Everything that decides what a study finds; as JSON."""
    return {
        "study": study.name,
        "model": bench.model.name,
        "fingerprint": bench.model.fingerprint(),
        "recipe": bench.recipe.model_dump(mode="json"),
        "recipes": {name: recipe.model_dump(mode="json") for name, recipe in bench.recipes.items()},
        "settings": bench.settings.model_dump(mode="json"),
        "materials": {str(seed): material_name(material) for seed, material in bench.materials.items()},
    }


def run_study(study: Study, bench: Workbench, out: Path, *, command: str) -> Result:
    """Do what is left of a study, and write its findings.

    Args:
        out: a directory of its own; one that was begun goes on.

    Raises:
        FaultsError: if ``out`` was begun with something else; names what differs.
        InputError: if something else is there, or another process works on it.
        ErrataError: if the work fails; what was done is kept.
    """
    identity = identity_of(study, bench)
    if not is_file(out / STUDY):
        with new_directory(out) as partial:
            (partial / "pieces").mkdir()
            record = {"format": FORMAT, "created": now(), "command": command, "versions": software_versions()}
            write_text(
                partial / STUDY, json.dumps({**record, "identity": identity}, ensure_ascii=False, indent=1) + "\n"
            )
    record = _read(out / STUDY)
    _check_same(record["identity"], identity, out)
    check_no_links(out)
    with alone(out / "lock", f"the study {out}"):
        pieces = study.pieces(bench)
        kept: dict[str, Kept] = {}
        seconds = 0.0
        for number, piece in enumerate(pieces):
            path = out / "pieces" / f"{piece.name}.json"
            if not is_file(path):
                bench.report(study.name, number, len(pieces))  # not for what is there: it would seem to be fast work
                started = time.perf_counter()
                found = piece.work()
                text = json.dumps({"kept": found, "seconds": time.perf_counter() - started}, allow_nan=False)
                write_text(path, text + "\n")
            saved = _read(path)
            kept[piece.name] = saved["kept"]
            seconds += saved["seconds"]
        bench.report(study.name, len(pieces), len(pieces))
        findings = study.findings(bench.settings, kept)
        about = {
            "title": study.title,
            "shows": study.shows,
            "units": study.units,
            "source": study.source,
            **{key: value for key, value in record.items() if key != "format"},
            "device": str(bench.model.device),
            "dtype": dtype_name(bench.model.dtype),
            "seconds": seconds,
        }
        result = Result(findings, about)
        write_text(out / ROWS, csv_of(findings))
        whole = {"format": FORMAT, **result.to_record()}
        write_text(out / RESULT, json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return result


def read_result(directory: Path) -> Result:
    """Raises InputError if there is no finished study."""
    path = directory / RESULT
    whole = _read(path)
    try:
        return Result(Findings.of(whole["findings"]), whole["about"])
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def csv_of(findings: Findings) -> str:
    """The rows as a table: what they are of, then the numbers."""
    names = list(dict.fromkeys(name for row in findings.rows for name in row.where))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["quantity", *names, "mean", "low", "high", "n", "unit"])
    for row in findings.rows:
        where = [escaped(str(row.where.get(name, ""))) for name in names]
        numbers = ["" if value is None else value for value in (row.mean, row.low, row.high)]
        table.writerow([escaped(row.quantity), *where, *numbers, row.n, escaped(row.unit)])
    return text.getvalue()


def _read(path: Path) -> Any:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if path.name in (STUDY, RESULT) and whole["format"] != FORMAT:
            raise ValueError(f"its format is {whole['format']!r}, expected {FORMAT!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    return whole


def _damaged(path: Path, error: Exception) -> InputError:
    remedy = "Remove it, and give the same command again" if path.name != STUDY else "Begin anew with another --out"
    return InputError(f"{path} cannot be used: {reason_of(error)}", remedy=remedy)


def _check_same(there: Mapping[str, Any], given: Mapping[str, Any], out: Path) -> None:
    faults = [
        Fault(name, f"{out} was begun with {_short(old)}, given now: {_short(new)}", "")
        for name, old, new in _differences(there, given)
    ]
    if any(fault.where.startswith("settings") for fault in faults):  # other numbers draw other facts
        faults = [fault for fault in faults if not fault.where.startswith("materials")]
    if faults:
        remedy = "Give another --out, or what it was begun with"
        raise FaultsError(f"the study in {out}, which is of something else,", faults, remedy=remedy)


def _differences(there: Any, given: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old, new) of whatever is not the same."""
    if isinstance(there, dict) and isinstance(given, dict):
        for key in dict.fromkeys((*there, *given)):
            yield from _differences(there.get(key), given.get(key), f"{name}.{key}" if name else str(key))
    elif there != given:
        yield name, there, given


def _short(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.80}"
