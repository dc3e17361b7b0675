"""A cell that is done, read back from its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errata.benchmark.answers import answer_path, answered, before_of, read_answer
from errata.benchmark.campaign import Campaign
from errata.benchmark.cell_notes import notes_of
from errata.benchmark.cell_spec import CellSpec, damaged, result_of
from errata.benchmark.material import Material, read_material
from errata.benchmark.measurements import ALWAYS
from errata.benchmark.parts import Answer
from errata.evaluation.perplexity import Perplexity
from errata.evaluation.records import Record, When
from errata.run_directory import open_run
from errata.run_manifest import sound_json


@dataclass(frozen=True, slots=True)
class Batch:
    """What was asked behind one batch.

    Attributes:
        edits: facts that had been edited by then.
        records: right after it, of its own facts.
        check: of a sample of all facts so far; None where none was due.
        perplexity: on the prose; None without prose.
    """

    edits: int
    size: int
    seconds: float
    records: Sequence[Record]
    check: Sequence[Record] | None
    perplexity: Perplexity | None
    weight_norm_ratio: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell that is done, read back.

    Attributes:
        before: part -> what the unedited model said; ``after`` likewise. Further measurements that have not been made,
            or failed, are in neither.
        notes: on how it was worked on.
        versions: of the software that the editing was begun with.
    """

    directory: Path
    spec: CellSpec
    material: Material
    result: Mapping[str, Any]
    before: Mapping[str, Answer]
    after: Mapping[str, Answer]
    batches: Sequence[Batch]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def records(self, when: When) -> list[Record]:
        """All records of a moment, of all parts."""
        if when == "right_after":
            return [record for batch in self.batches for record in batch.records]
        if when == "during":
            return [record for batch in self.batches for record in batch.check or ()]
        parts = self.before if when == "before" else self.after
        return [record for part in parts.values() for record in part.records]

    def labels(self, when: When) -> dict[str, dict[str, tuple[int, int]]]:
        """For each weighted F1 sample -> (right label, label that was answered)."""
        parts = self.before if when == "before" else self.after
        return {
            metric: {sample: (right, answered) for sample, (right, answered) in labels.items()}
            for part in parts.values()
            for metric, labels in part.kept.get("labels", {}).items()
        }

    def values(self, when: When) -> dict[str, tuple[float, int]]:
        """Numbers that are no means over samples, by their metrics -> (value, samples)."""
        parts = self.before if when == "before" else self.after
        return {
            metric: (float(value), int(count))
            for part in parts.values()
            for metric, (value, count) in part.kept.get("values", {}).items()
        }

    def perplexity(self, when: When) -> Perplexity | None:
        return _perplexity((self.before if when == "before" else self.after)["perplexity"].kept["perplexity"])


def read_finished(campaign: Campaign, cell: Path) -> Finished:
    """A cell that has been edited, with those of the further measurements that have been made.

    Raises:
        InputError, FaultsError: if a file of it is missing or changed.
    """
    spec = campaign.spec(cell)
    measures = campaign.grid.measures
    parts = [*ALWAYS, *(part for part in answered(cell, measures) if part not in ALWAYS)]
    run = open_run(cell / "run")
    batches = []
    edits = 0
    for entry in run.ledger.of("batch"):
        about = entry.about
        said = sound_json(run.batch_path(about["index"]).with_suffix(".json"), about["said"])
        edits += len(about["facts"])
        batches.append(
            Batch(
                edits,
                len(about["facts"]),
                float(about["seconds"]),
                [Record(**record) for record in said["records"]],
                None if said["check"] is None else [Record(**record) for record in said["check"]],
                _perplexity(said["perplexity"]),
                said["weight_norm_ratio"],
            )
        )
    return Finished(
        cell,
        spec,
        read_material(campaign.directory / "material" / spec.material),
        _result(cell),
        {part.name: read_answer(before_of(cell, part, measures)) for part in parts},
        {part.name: read_answer(answer_path(cell / "after", part, measures)) for part in parts},
        batches,
        notes_of(cell),
        run.manifest.versions,
    )


def _result(cell: Path) -> Mapping[str, Any]:
    found = result_of(cell)
    if found is None:
        raise damaged(cell / "result.json", FileNotFoundError("it is missing"))
    return asdict(found)


def _perplexity(saved: Mapping[str, Any] | None) -> Perplexity | None:
    return None if saved is None else Perplexity(tuple(saved["log_likelihoods"]), tuple(saved["counts"]))
