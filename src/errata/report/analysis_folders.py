"""Where finished studies lie: a directory of one, or a folder with several of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from errata.analysis.running import RESULT, STUDY, Result, read_result
from errata.analysis.studies import STUDIES
from errata.errors import Fault, FaultsError, InputError
from errata.output import is_file

_REMEDY: Final = "Give the directory of an `errata analyse`, or a folder with such directories"


def is_of_studies(directory: Path) -> bool:
    """Whether a directory is a study, or a folder with studies directly in it; finished or not."""
    return bool(_studies(directory))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A study without findings yet; ``command`` goes on with it, empty where that cannot be read."""

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

    finished: Mapping[Path, Result] = field(default_factory=dict)
    unfinished: Mapping[Path, Unfinished] = field(default_factory=dict)

    def __or__(self, other: Studies) -> Studies:
        return Studies({**self.finished, **other.finished}, {**self.unfinished, **other.unfinished})


def read_studies(directory: Path) -> Studies:
    """Read a study, or all studies that lie directly in a folder, in the order of their argument.

    Raises:
        InputError: if there is none, if none is finished, or if one is damaged.
        FaultsError: if there are several reasons; tells all of them.
    """
    if not directory.is_dir():
        raise InputError(f"there is no directory {str(directory)!r}", remedy=_REMEDY)
    places = _studies(directory)
    if not places:
        raise InputError(
            f"{directory} is no study, nor a folder of studies: neither it nor a directory in it has {STUDY}",
            remedy=_REMEDY,
        )
    found: dict[Path, Result] = {}
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
                errors.append(InputError(error.what, remedy=remedy))
    if not found and not errors:
        errors = [_not_finished(one) for one in unfinished.values()]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise FaultsError(str(directory), [Fault("", error.what, error.remedy) for error in errors])
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
    return InputError(f"the study in {study.place} is not finished: it has no {RESULT} yet", remedy=f"{remedy}{told}")


def _command(place: Path) -> str:
    """What began a study; nothing where that cannot be read, as it is a hint and no result."""
    try:
        return str(json.loads((place / STUDY).read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
