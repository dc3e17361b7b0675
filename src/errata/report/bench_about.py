"""What stands beside the rows of a benchmark's ``summary.json``: its cells, how it was made, what is absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator


class CellRecord(BaseModel):
    """One cell of the grid: a model, a data set, a method and a seed.

    Attributes:
        seconds: wall time; None where it is not known.
        failure: why it failed; None if it did not.
        edits: facts that are in the model at the end; None where it is not known.
        collapsed_at: the batch, from 1, before which the run was stopped because perplexity was over its limit behind
            it; None if it never was.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    model: str
    data: str
    method: str
    seed: int
    status: Literal["done", "failed", "not done"]
    seconds: float | None = None
    failure: str | None = None
    edits: int | None = None
    collapsed_at: int | None = None


class AbsentRecord(BaseModel):
    """What could not be measured somewhere.

    Attributes:
        model: None in older results, where ``data`` is a data set of any model, or ``MODEL | DATA``.
        metrics: metric -> the reason.
    """

    model_config = ConfigDict(frozen=True)

    model: str | None
    data: str
    metrics: Mapping[str, str]


class About(BaseModel):
    """What stands beside the rows of ``summary.json``.

    Attributes:
        command: what made the run; the same command goes on with it.
        commands: it, and those that measured more later, in order; empty in older results.
        versions: of the software, once for each set of versions that cells were worked on with.
        absent: the metrics that could not be measured, with the reason.
    """

    model_config = ConfigDict(frozen=True)

    command: str
    commands: tuple[str, ...] = ()
    cells: tuple[CellRecord, ...]
    created: str = ""
    versions: tuple[Mapping[str, Any], ...] = ()
    grid: Mapping[str, Any] = {}
    recipes: Mapping[str, Any] = {}
    absent: tuple[AbsentRecord, ...] = ()
    notes: tuple[str, ...] = ()

    @field_validator("versions", mode="before")
    @classmethod
    def _of_one_or_several(cls, value: object) -> object:
        return ([value] if value else []) if isinstance(value, Mapping) else value

    @field_validator("absent", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return [{"model": None, "data": name, "metrics": metrics} for name, metrics in value.items()]

    @property
    def all_commands(self) -> list[str]:
        """Each command once, the one that began it first."""
        return list(dict.fromkeys((self.command, *self.commands)))

    @property
    def all_versions(self) -> list[str]:
        """``errata 0.1.0, torch 2.13.0``, for each set of versions."""
        return [", ".join(f"{name} {_joined(version)}" for name, version in one.items()) for one in self.versions]


def by_cause(failures: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """Cause -> the cells that failed by it, so that each cause is said once.

    Args:
        failures: (a cell's id, why it failed); those without a cause are left out.
    """
    found: dict[str, list[str]] = {}
    for cell, cause in failures:
        if cause:
            found.setdefault(cause, []).append(cell)
    return found


def _joined(version: object) -> str:
    return " and ".join(map(str, version)) if isinstance(version, list | tuple) else str(version)
