"""Studies as reports show them: checked, each with a name that no other has, its figures drawn, its rows as a table."""

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
from errata.errors import Fault, FaultsError, InputError
from errata.report.figures import DARK, LIGHT, Picture, draw, is_level, places_of
from errata.utils.files import is_file, reason_of

LONG: Final = 20  # rows; a table of more is folded away
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
_REMEDY: Final = f"Remove its result.json, and make it again from what is kept; {ROWS} has its rows"


class StudyAbout(BaseModel):
    """A study's settings and provenance.

    Attributes:
        identity: all that decides what a study finds: model, recipe, settings, materials.
        seconds: of all pieces of its work together.
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
class Column:
    """Of the table of rows; ``numeric`` columns sort by value, all others as text."""

    name: str
    numeric: bool


@dataclass(frozen=True, slots=True)
class ShownFigure:
    """A figure, drawn; ``name`` is that of its files, and of no other figure's."""

    name: str
    figure: Figure
    light: Picture
    dark: Picture

    @property
    def wide(self) -> bool:
        return len(self.figure.panels) > 1


@dataclass(frozen=True, slots=True)
class ShownStudy:
    """A study, ready to be shown.

    Attributes:
        name: that of no other one in the same report.
        table: where its rows are as CSV, from the report on.
    """

    name: str
    about: StudyAbout
    findings: Findings
    figures: tuple[ShownFigure, ...]
    table: str = ROWS

    @property
    def columns(self) -> list[Column]:
        """Of the rows: what they are, what they are of, the numbers."""
        names = dict.fromkeys(name for row in self.findings.rows for name in row.where)
        of = [
            Column(name, not any(isinstance(row.where.get(name), str) for row in self.findings.rows)) for name in names
        ]
        numbers = [Column(name, True) for name in ("mean", "low", "high", "n")]
        return [Column("quantity", False), *of, *numbers, Column("unit", False)]

    @property
    def lines(self) -> list[list[Label | None]]:
        """The rows, as ``columns`` has them; None for what a row is not of."""
        names = [column.name for column in self.columns[1:-5]]
        return [[row.quantity, *map(row.where.get, names), *_numbers(row), row.unit] for row in self.findings.rows]

    @property
    def long(self) -> int:
        """Rows of a table above which it is folded away."""
        return LONG

    @property
    def undefined(self) -> list[tuple[str, str]]:
        """Combinations and why they mean nothing; those of the same reason together."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.findings.undefined.items():
            by_reason.setdefault(reason, []).append(name)
        return [(", ".join(names), reason) for reason, names in by_reason.items()]

    @property
    def parts(self) -> list[tuple[str, object]]:
        """What decides what a study finds, by parts with names; without what is empty or not used."""
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
    """Check studies, and draw their figures: what is called the same looks the same in all of them.

    Args:
        tables: of each study where its rows are as CSV, from the report on; by default only the file's name is shown.

    Raises:
        MissingExtraError: if a study has figures and matplotlib is not installed.
        FaultsError: if results are damaged; names all of them.
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
    places = places_of(*(found.figures for _, found in checked))
    return [
        ShownStudy(name, about, found, tuple(_drawn(found.figures, files, places)), table)
        for name, (about, found), table in zip(names, checked, tables or [ROWS] * len(names), strict=True)
    ]


def _drawn(figures: Sequence[Figure], names: Iterable[str], places: Mapping[str, int]) -> Iterable[ShownFigure]:
    for figure, name in zip(figures, names, strict=False):
        light, dark = (draw(figure, scheme, name=name, places=places) for scheme in (LIGHT, DARK))
        yield ShownFigure(name, figure, light, dark)


def verdicts(claims: Iterable[Claim]) -> str:
    """``5 claims: 3 hold, 1 does not hold, 1 is undecided``."""
    counts = Counter(claim.verdict for claim in claims)
    total = sum(counts.values())
    words = {"holds": ("holds", "hold"), "does not hold": ("does not hold", "do not hold"),
             "undecided": ("is undecided", "are undecided")}  # fmt: skip
    parts = [f"{counts[each]} {words[each][counts[each] != 1]}" for each in VERDICTS if counts[each]]
    return f"{total} claim{'' if total == 1 else 's'}" + (f": {', '.join(parts)}" if parts else "")


def told_value(value: Label | None) -> str:
    """A value of a table: numbers with four digits."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _checked(result: StudyResult) -> tuple[StudyAbout, Findings]:
    """Raises InputError if anything is not as the classes say."""
    try:
        about = StudyAbout.model_validate(result.about)
        found = TypeAdapter(Findings).validate_python(result.findings.to_record())
        json.dumps([result.about, found.to_record()], ensure_ascii=False, allow_nan=False).encode()
    except ValidationError as error:
        raise InputError(reason_of(error), code="STUDY_DAMAGED") from error
    except (TypeError, ValueError) as error:  # what JSON has no words for; \ud800 is no text in a file
        raise InputError(f"it has unreadable content: {reason_of(error)}", code="STUDY_DAMAGED") from error
    for figure in found.figures:
        for panel in figure.panels:
            for series in panel.series:
                if fault := _fault_of(series, panel):
                    raise InputError(f"figure {figure.name!r:.80}, {series.label!r:.80}: {fault}", code="STUDY_DAMAGED")
    return about, found


def _fault_of(series: Series, panel: Panel) -> str:
    """Why a series cannot be drawn; nothing if it can."""
    if is_level(series, panel) and not series.low and not series.high:
        return ""
    across = len(series.x)
    if {len(series.y), len(series.low) or across, len(series.high) or across} != {across}:
        return "it has not as many y, or ends of intervals, as x"
    if panel.kind == "points" and any(isinstance(x, str) for x in series.x):
        return "points have numbers as x"
    return ""


def _distinct(names: Sequence[str]) -> list[str]:
    """The same names; of those that are given more than once the later ones with a number."""
    found: list[str] = []
    for name in map(_file_name, names):
        number = 1
        while (tried := name if number == 1 else f"{name}-{number}") in found:
            number += 1
        found.append(tried)
    return found


def _file_names(figures: Sequence[tuple[str, str]]) -> list[str]:
    """Of (study, figure) each: the figure's own name; after the study's where several figures have that name."""
    often = Counter(_file_name(figure) for _, figure in figures)
    return _distinct([figure if often[_file_name(figure)] == 1 else f"{study}-{figure}" for study, figure in figures])


def _file_name(name: str) -> str:
    """A name for a file and for an id: letters, digits and ``-``, whatever was given."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:80].strip("-").lower() or "figure"


_FOLDER_REMEDY: Final = "Give the directory of an `errata analyse`, or a folder with such directories"


def is_of_studies(directory: Path) -> bool:
    """Whether a directory is a study, or a folder with studies directly in it; finished or not."""
    return bool(_studies(directory))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A study without findings yet; ``command`` resumes it, empty where that cannot be read."""

    place: Path
    command: str

    def __str__(self) -> str:
        how = f"; go on with it, with the same --out: {self.command}" if self.command else ""
        return f"the study in {self.place} is not finished{how}"


@dataclass(frozen=True, slots=True)
class Studies:
    """What lies in some directories, each study once.

    Attributes:
        finished: directory, resolved -> what was found.
        unfinished: those that have to be left out, likewise.
    """

    finished: Mapping[Path, StudyResult] = field(default_factory=dict)
    unfinished: Mapping[Path, Unfinished] = field(default_factory=dict)

    def __or__(self, other: Studies) -> Studies:
        return Studies({**self.finished, **other.finished}, {**self.unfinished, **other.unfinished})


def read_studies(directory: Path) -> Studies:
    """Read a study, or all studies that lie directly in a folder, in the order of their argument.

    Raises:
        InputError: if there is none, if none is finished, or if one is damaged.
        FaultsError: if there are several reasons; names all of them.
    """
    if not directory.is_dir():
        raise InputError(f"there is no directory {str(directory)!r}", remedy=_FOLDER_REMEDY, code="DIRECTORY_NOT_FOUND")
    places = _studies(directory)
    if not places:
        raise InputError(
            f"{directory} is no study, nor a folder of studies: neither it nor a directory in it has {STUDY}",
            remedy=_FOLDER_REMEDY,
            code="STUDY_NOT_FOUND",
        )
    found: dict[Path, StudyResult] = {}
    unfinished = {
        place.resolve(): Unfinished(place, _command(place)) for place in places if not is_file(place / RESULT)
    }
    errors = []
    for place in places:
        if place.resolve() not in unfinished:
            try:
                found[place.resolve()] = read_result(place)
            except InputError as error:
                command = _command(place)
                remedy = f"Remove {RESULT}, and make it again from what is kept: {command}" if command else error.remedy
                errors.append(InputError(error.what, remedy=remedy, code=error.code))
    if not found and not errors:
        errors = [_not_finished(one) for one in unfinished.values()]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise FaultsError(str(directory), [Fault("", error.what, error.remedy, code=error.code) for error in errors])
    return Studies(found, unfinished)


def _studies(directory: Path) -> Sequence[Path]:
    if _is_study(directory):
        return [directory]
    names = list(STUDIES)
    places = [place for place in directory.iterdir() if _is_study(place)] if directory.is_dir() else []
    return sorted(places, key=lambda one: (names.index(one.name) if one.name in names else len(names), one.name))


def _is_study(place: Path) -> bool:
    # What a benchmark keeps of a cell is called result.json too, and is of another format.
    return is_file(place / STUDY)


def _not_finished(study: Unfinished) -> InputError:
    remedy = "Go on with it by the command that began it, with the same --out, then ask for the report"
    told = f": {study.command}" if study.command else ""
    return InputError(
        f"the study in {study.place} is not finished: it has no {RESULT} yet",
        remedy=f"{remedy}{told}",
        code="STUDY_NOT_FINISHED",
    )


def _command(place: Path) -> str:
    """What began a study; nothing where that cannot be read, as it is a hint and no result."""
    try:
        return str(json.loads((place / STUDY).read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
