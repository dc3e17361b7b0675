"""What a measurement of a benchmark is: asked of a model before and after a run, and kept by itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from errata.benchmark.material import Material
from errata.errors import InputError
from errata.evaluation.records import Record
from errata.models.language_model import LanguageModel
from errata.progress import Report

State = Literal["before", "after"]
Dependency = Literal["material", "seed", "prose"]


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What a part is given.

    Attributes:
        model: as it is before or after the run.
        options: the part's own settings.
        seed: of whatever is drawn.
        before: what the part itself kept of the unedited model; None while that is asked.
        unedited: within it the model is the unedited one.
        aside: beside files of this name, with another suffix, what is done so far may be kept; None: nothing is.
    """

    model: LanguageModel
    material: Material
    options: Mapping[str, Any]
    seed: int
    before: Mapping[str, Any] | None
    unedited: Callable[[], AbstractContextManager[None]]
    report: Report
    aside: Path | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a part gives.

    Attributes:
        records: one per prompt.
        kept: what the same part, or whoever sums it up, needs to know later, as JSON holds it.
        absent: metric -> why it cannot be told.
        seconds: wall time that it took.
    """

    records: Sequence[Record]
    kept: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_record(self) -> dict[str, Any]:
        absent = {str(metric): reason for metric, reason in self.absent.items()}
        return {
            "records": [asdict(record) for record in self.records],
            "kept": dict(self.kept),
            "absent": absent,
            "seconds": self.seconds,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Answer:
        """As ``to_record`` wrote it; raises KeyError, TypeError, ValueError if it is not that."""
        return cls(
            [Record(**entry) for entry in record["records"]],
            {**record["kept"]},
            {**record["absent"]},
            float(record["seconds"]),
        )


def _nothing_to_check(options: Mapping[str, Any]) -> None:
    """For parts without settings."""
    if options:
        raise InputError(f"it has no settings, got {', '.join(options)}", remedy="Leave them out")


def _no_files(options: Mapping[str, Any]) -> Sequence[Path]:
    """For parts that read none."""
    return ()


def _something(material: Material) -> str | None:
    """For parts that can always be asked, or cannot know it before."""
    return None


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement.

    Attributes:
        name: as ``--measure`` calls it.
        what: one line of help.
        ask: does it.
        check: raises InputError, before any work, for settings or packages that would stop it.
        files: those that it reads, by its settings.
        depends: what an unedited model's answer depends on, beside the model; cells that share that share the answer.
        nothing: why it can ask nothing at all of a material; None if it can, or if that shows only when it is asked.
    """

    name: str
    what: str
    ask: Callable[[Inquiry], Answer]
    check: Callable[[Mapping[str, Any]], None] = _nothing_to_check
    files: Callable[[Mapping[str, Any]], Sequence[Path]] = _no_files
    depends: frozenset[Dependency] = frozenset({"material", "seed"})
    nothing: Callable[[Material], str | None] = _something

    def answer_name(self, options: Mapping[str, Any]) -> str:
        """What its answer by these settings is called; by others it is another answer."""
        if not options:
            return self.name
        text = json.dumps(options, sort_keys=True, default=str)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
