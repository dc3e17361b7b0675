"""What stands beside the rows of a benchmark's ``summary.json``: how it came about, how each cell ended, what is
absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from errata.benchmark.campaign import Campaign, failure_of
from errata.benchmark.cell_spec import CellSpec
from errata.benchmark.finished import Finished
from errata.evaluation.changes import absent_changes
from errata.evaluation.results_file import Row

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Ended:
    """Of a cell that is edited, what is told beside the rows.

    Attributes:
        seconds: of its batches, what was asked behind each, and the answers at the end, of all sittings.
        parts: the measurements that have been made.
        absent: metric -> why it could not be told.
        material_notes: on its facts and questions.
        notes: on how it was worked on.
        versions: of the software that its editing was begun with.
    """

    spec: CellSpec
    result: Mapping[str, Any]
    seconds: float
    parts: tuple[str, ...]
    absent: Mapping[str, str]
    material_notes: tuple[str, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, cell: Finished) -> Ended:
        absent = {metric: why for answer in cell.after.values() for metric, why in answer.absent.items()}
        absent |= absent_changes(cell.records("before"), absent)
        seconds = cell.result["seconds"] + sum(answer.seconds for answer in cell.after.values())
        return cls(
            cell.spec,
            cell.result,
            seconds,
            tuple(cell.after),
            absent,
            cell.material.notes,
            cell.notes,
            cell.versions,
        )


def about_of(
    campaign: Campaign, rows: Sequence[Row], done: Mapping[Path, Ended], damaged: Mapping[Path, str]
) -> dict[str, Any]:
    """What belongs to the rows: the grid, how to repeat it, how each cell ended, what is absent and why.

    Args:
        done: cells that have results.
        damaged: cells of which a file is not what was written, with the reason.
    """
    cells = []
    for directory in campaign.cells:
        spec = campaign.spec(directory)
        ended = done.get(directory)
        failure = damaged.get(directory) or (None if campaign.is_done(directory) else failure_of(directory))
        cells.append(
            {
                "id": directory.name,
                "model": spec.model.name,
                "data": spec.data.label,
                "method": spec.label,
                "seed": spec.seed,
                "status": "done" if ended else "failed" if failure else "not done",
                "failure": failure,
                "seconds": ended.seconds if ended else None,
                "edits": ended.result["edits"] if ended else None,
                "collapsed_at": ended.result["collapsed_at"] if ended else None,
                "ratio": ended.result["ratio"] if ended else None,
                "notes": list(ended.notes) if ended else [],
            }
        )
    return {
        "command": campaign.record["commands"][0],
        "commands": campaign.record["commands"],
        "created": campaign.record["created"],
        "grid": campaign.record["grid"],
        "undefined": campaign.record["undefined"],
        "recipes": _recipes([cell.spec for cell in done.values()]),
        "cells": cells,
        "absent": _absent(campaign, rows, done),
        "notes": _notes(campaign, done),
        "versions": _distinct([cell.versions for cell in done.values()]),
    }


def _absent(campaign: Campaign, rows: Sequence[Row], done: Mapping[Path, Ended]) -> list[dict[str, Any]]:
    """Of each model and data set the metrics that no cell of them has, with the reason; a measurement that none has
    made stands there by its own name."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for directory, cell in done.items():
        reasons = found.setdefault((cell.spec.model.name, cell.spec.data.label), {})
        reasons |= {metric: why for metric, why in cell.absent.items() if metric not in reasons}
        for part in campaign.grid.measures.parts:
            if part not in cell.parts:
                reasons.setdefault(part, _why_not(directory))
    for (model, data), reasons in found.items():
        there = {row["metric"] for row in rows if (row.get("model"), row.get("data")) == (model, data)}
        there |= {part for cell in _of(done, model, data) for part in cell.parts}
        for metric in there & reasons.keys():
            del reasons[metric]
    return [{"model": model, "data": data, "metrics": reasons} for (model, data), reasons in found.items() if reasons]


def _notes(campaign: Campaign, done: Mapping[Path, Ended]) -> list[str]:
    """What a reader should know of the facts, of runs that went on otherwise than they began, and of measurements that
    only some of the cells have made."""
    notes = [note for cell in done.values() for note in cell.material_notes]
    for text in dict.fromkeys(text for cell in done.values() for text in cell.notes):
        runs = [cell.spec.called for cell in done.values() if text in cell.notes]
        notes.append(f"{'; '.join(runs)}: {text}")
    for directory, cell in done.items():
        spec = cell.spec
        others = {part for other in _of(done, spec.model.name, spec.data.label) for part in other.parts}
        for part in campaign.grid.measures.parts:
            if part not in cell.parts and part in others:
                notes.append(f"{spec.called}: {part} is not measured: {_why_not(directory)}")
    return _distinct(notes)


def _of(done: Mapping[Path, Ended], model: str, data: str) -> list[Ended]:
    return [cell for cell in done.values() if (cell.spec.model.name, cell.spec.data.label) == (model, data)]


def _why_not(directory: Path) -> str:
    """Why a measurement of a cell that is edited has not been made, in one line."""
    failure = failure_of(directory)
    return "it has not been asked yet" if failure is None else " ".join(failure.split())


def _recipes(specs: Sequence[CellSpec]) -> dict[str, Any]:
    """By the method's label, and by the model's name too where there are several models; of the first seed."""
    several = len({spec.model.name for spec in specs}) > 1
    found: dict[str, Any] = {}
    for spec in specs:
        prefix = f"{spec.model.name}, " if several else ""
        found.setdefault(f"{prefix}{spec.label}", spec.recipe.model_dump(mode="json"))
    return found


def _distinct(items: Sequence[_Item]) -> list[_Item]:
    """In the order in which they first appear."""
    found: list[_Item] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found
