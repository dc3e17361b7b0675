"""Studies prepared for reports: validated, with unique names, drawn figures, and rows as a table."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from errata.analysis.findings import Claim, Figure, Finding, Findings, Label, Panel, Series, Verdict
from errata.analysis.studies import RESULT, ROWS, STUDIES, STUDY, StudyResult, read_result
from errata.errors import Fault, FaultsError, InputError, collect_errors
from errata.report.figures import DARK, LIGHT, Picture, draw, is_level, style_indices
from errata.utils.files import is_file, reason_of
from errata.utils.text import counted

LONG: Final = 20  # rows; longer tables are collapsed
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
_REMEDY: Final = f"Remove its result.json, and compute it again from the saved steps; {ROWS} has its rows"


class StudyAbout(BaseModel):
    """A study's settings and provenance.

    Attributes:
        identity: everything that determines the findings: model, recipe, settings, data.
        seconds: total time of all steps.
    """

    model_config = ConfigDict(frozen=True)

    title: str
    shows: str
    units: str
    source: str
    command: str
    seconds: float
    created: str = ""
    device: str = ""
    dtype: str = ""
    versions: Mapping[str, Any] = {}
    identity: Mapping[str, Any] = {}

    @property
    def model(self) -> str:
        return str(self.identity.get("model", ""))


@dataclass(frozen=True, slots=True)
class RowColumn:
    """A column of the table of rows; ``numeric`` ones sort by value, others as text."""

    name: str
    numeric: bool


@dataclass(frozen=True, slots=True)
class ShownFigure:
    """A drawn figure; ``name`` is the unique name of its files."""

    name: str
    figure: Figure
    light: Picture
    dark: Picture

    @property
    def wide(self) -> bool:
        return len(self.figure.panels) > 1


@dataclass(frozen=True, slots=True)
class ShownStudy:
    """A study prepared for a report.

    Attributes:
        name: unique in the report.
        table: path of its rows as CSV, relative to the report.
    """

    name: str
    about: StudyAbout
    findings: Findings
    figures: tuple[ShownFigure, ...]
    table: str = ROWS

    @property
    def columns(self) -> list[RowColumn]:
        """The columns of the table of rows: quantity, conditions, numbers, unit."""
        names = dict.fromkeys(name for row in self.findings.rows for name in row.where)
        of = [
            RowColumn(name, not any(isinstance(row.where.get(name), str) for row in self.findings.rows))
            for name in names
        ]
        numbers = [RowColumn(name, True) for name in ("mean", "low", "high", "n")]
        return [RowColumn("quantity", False), *of, *numbers, RowColumn("unit", False)]

    @property
    def lines(self) -> list[list[Label | None]]:
        """The cells of each row, by ``columns``; None for conditions that a row does not have."""
        names = [column.name for column in self.columns[1:-5]]
        return [[row.quantity, *map(row.where.get, names), *_numbers(row), row.unit] for row in self.findings.rows]

    @property
    def long(self) -> bool:
        """Whether the table of rows is collapsed."""
        return len(self.findings.rows) > LONG

    @property
    def undefined(self) -> list[tuple[str, str]]:
        """Invalid combinations, grouped by reason: (names, reason)."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.findings.undefined.items():
            by_reason.setdefault(reason, []).append(name)
        return [(", ".join(names), reason) for reason, names in by_reason.items()]

    @property
    def parts(self) -> list[tuple[str, object]]:
        """Named parts of the identity of a study, without empty and unused ones."""
        identity = self.about.identity
        settings = identity.get("settings")
        study = STUDIES.get(str(identity.get("study")))
        if study is not None and isinstance(settings, Mapping):
            settings = {name: value for name, value in settings.items() if name in (*study.uses, "seeds")}
        others = {key: value for key, value in identity.items() if key not in ("settings", "recipe", "recipes")}
        named = [("Settings", settings), ("Recipe", identity.get("recipe")),
                 ("Recipes of the runs", identity.get("recipes")), ("Model and material", others)]  # fmt: skip
        return [(name, value) for name, value in named if value]


def _numbers(row: Finding) -> tuple[Label | None, ...]:
    return row.mean, row.low, row.high, row.n


def shown(results: Iterable[StudyResult], tables: Sequence[str] = ()) -> list[ShownStudy]:
    """Validate studies and draw their figures; equal names have the same colour and marker in all of them.

    Args:
        tables: for each study the path of its rows as CSV, relative to the report; by default only the file name.

    Raises:
        MissingExtraError: if a study has figures and matplotlib is not installed.
        FaultsError: for all damaged results.
    """
    checked, faults = [], []
    for place, result in enumerate(results):
        try:
            checked.append(_checked(result))
        except InputError as error:
            where = str(result.about.get("title", f"study {place + 1}"))
            command = result.about.get("command")
            remedy = f"{_REMEDY}: {command}" if isinstance(command, str) else _REMEDY
            faults.append(Fault(f"{where!r:.80}", error.what, remedy, code=error.code))
    if faults:
        raise FaultsError("the input", faults)
    names = _distinct([str(about.identity.get("study", "study")) for about, _ in checked])
    files = iter(_file_names([(name, each.name) for name, (_, found) in zip(names, checked, strict=True)
                              for each in found.figures]))  # fmt: skip
    styles = style_indices(*(found.figures for _, found in checked))
    return [
        ShownStudy(name, about, found, tuple(_drawn(found.figures, files, styles)), table)
        for name, (about, found), table in zip(names, checked, tables or [ROWS] * len(names), strict=True)
    ]


def _drawn(figures: Sequence[Figure], names: Iterable[str], styles: Mapping[str, int]) -> Iterable[ShownFigure]:
    for figure, name in zip(figures, names, strict=False):
        light, dark = (draw(figure, scheme, name=name, styles=styles) for scheme in (LIGHT, DARK))
        yield ShownFigure(name, figure, light, dark)


def verdicts(claims: Iterable[Claim]) -> str:
    """``5 claims: 3 hold, 1 does not hold, 1 is undecided``."""
    counts = Counter(claim.verdict for claim in claims)
    total = sum(counts.values())
    words = {"holds": ("holds", "hold"), "does not hold": ("does not hold", "do not hold"),
             "undecided": ("is undecided", "are undecided")}  # fmt: skip
    parts = [f"{counts[each]} {words[each][counts[each] != 1]}" for each in VERDICTS if counts[each]]
    return counted(total, "claim") + (f": {', '.join(parts)}" if parts else "")


def format_value(value: Label | None) -> str:
    """A value of a table; numbers have four significant digits."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _checked(result: StudyResult) -> tuple[StudyAbout, Findings]:
    """Raises InputError if results do not match the classes."""
    try:
        about = StudyAbout.model_validate(result.about)
        found = TypeAdapter(Findings).validate_python(result.findings.to_record())
        json.dumps([result.about, found.to_record()], ensure_ascii=False, allow_nan=False).encode()
    except ValidationError as error:
        raise InputError(reason_of(error), code="STUDY_DAMAGED") from error
    except (TypeError, ValueError) as error:  # values that JSON or UTF-8 cannot represent
        raise InputError(f"it has unreadable content: {reason_of(error)}", code="STUDY_DAMAGED") from error
    for figure in found.figures:
        for panel in figure.panels:
            for series in panel.series:
                if fault := _fault_of(series, panel):
                    raise InputError(f"figure {figure.name!r:.80}, {series.label!r:.80}: {fault}", code="STUDY_DAMAGED")
    return about, found


def _fault_of(series: Series, panel: Panel) -> str:
    """Why a series cannot be drawn; empty if it can."""
    if is_level(series, panel) and not series.low and not series.high:
        return ""
    across = len(series.x)
    if {len(series.y), len(series.low) or across, len(series.high) or across} != {across}:
        return "the numbers of x, y and interval ends differ"
    if panel.kind == "points" and any(isinstance(x, str) for x in series.x):
        return "points need numeric x values"
    return ""


def _distinct(names: Sequence[str]) -> list[str]:
    """The same names, made unique by numbers."""
    found: list[str] = []
    for name in map(_file_name, names):
        number = 1
        while (tried := name if number == 1 else f"{name}-{number}") in found:
            number += 1
        found.append(tried)
    return found


def _file_names(figures: Sequence[tuple[str, str]]) -> list[str]:
    """For each (study, figure) the name of the figure, prefixed by that of the study if several figures share it."""
    often = Counter(_file_name(figure) for _, figure in figures)
    return _distinct([figure if often[_file_name(figure)] == 1 else f"{study}-{figure}" for study, figure in figures])


def _file_name(name: str) -> str:
    """A name for files and ids, with letters, digits and ``-`` only."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:80].strip("-").lower() or "figure"


_FOLDER_REMEDY: Final = "Give a directory written by `errata analyse`, or a directory of such directories"


def is_of_studies(directory: Path) -> bool:
    """Whether a directory is a study or directly contains studies, finished or not."""
    return bool(_studies(directory))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A study without findings; ``command`` resumes it, and is empty if it cannot be read."""

    place: Path
    command: str

    def __str__(self) -> str:
        how = f"; resume it, with the same --out: {self.command}" if self.command else ""
        return f"the study in {self.place} is not finished{how}"


@dataclass(frozen=True, slots=True)
class Studies:
    """The studies in some directories, each once.

    Attributes:
        finished: resolved directory -> result.
        unfinished: resolved directory -> study without result.
    """

    finished: Mapping[Path, StudyResult] = field(default_factory=dict)
    unfinished: Mapping[Path, Unfinished] = field(default_factory=dict)

    def __or__(self, other: Studies) -> Studies:
        return Studies({**self.finished, **other.finished}, {**self.unfinished, **other.unfinished})


def read_studies(directory: Path) -> Studies:
    """Read a study, or all studies directly in a directory, in the order of the argument.

    Raises:
        InputError: if there is none, none is finished, or one is damaged.
        FaultsError: if there are several such errors.
    """
    if not directory.is_dir():
        raise InputError(f"no directory {str(directory)!r}", remedy=_FOLDER_REMEDY, code="DIRECTORY_NOT_FOUND")
    places = _studies(directory)
    if not places:
        raise InputError(
            f"{directory} is neither a study nor a directory of studies: there is no {STUDY} in it or one level below",
            remedy=_FOLDER_REMEDY,
            code="STUDY_NOT_FOUND",
        )
    found: dict[Path, StudyResult] = {}
    distinct = {place.resolve(): place for place in places}
    unfinished = {
        resolved: Unfinished(place, _command(place))
        for resolved, place in distinct.items()
        if not is_file(place / RESULT)
    }
    with collect_errors(str(directory)) as part:
        for resolved, place in distinct.items():
            with part:
                if resolved not in unfinished:
                    found[resolved] = _read_result(place)
                elif len(unfinished) == len(distinct):
                    study, remedy = str(unfinished[resolved]), "Create the report when it is finished"
                    raise InputError(study, remedy=remedy, code="STUDY_NOT_FINISHED")
    return Studies(found, unfinished)


def _read_result(place: Path) -> StudyResult:
    """The result of a study; errors name the command that computes it again."""
    try:
        return read_result(place)
    except InputError as error:
        command = _command(place)
        remedy = f"Remove {RESULT}, and compute it again from its steps: {command}" if command else error.remedy
        raise InputError(error.what, remedy=remedy, code=error.code) from error


def _studies(directory: Path) -> Sequence[Path]:
    if _is_study(directory):
        return [directory]
    names = list(STUDIES)
    places = [place for place in directory.iterdir() if _is_study(place)] if directory.is_dir() else []
    return sorted(places, key=lambda one: (names.index(one.name) if one.name in names else len(names), one.name))


def _is_study(place: Path) -> bool:
    # Cells of a benchmark also have a result.json, of another format.
    return is_file(place / STUDY)


def _command(place: Path) -> str:
    """The command that started a study; empty if it cannot be read, since it is only a hint."""
    try:
        return str(json.loads((place / STUDY).read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
