"""A run on disk: everything that it takes to go on with it after a crash, or to repeat it, and nothing else.

run.json                   what the run is: model, weights, recipe, digests of the files below
facts.jsonl, recipe.yaml   copies, so that a file changed elsewhere does not change the run
examination.json           what the model is asked; absent where nothing is measured
ledger.jsonl               one line a batch, and one for each measurement; see ``ledger``
batches/0001.safetensors   the patch of the first batch, with the keys that later ones keep in place
batches/0001.json          what the model said right after it
before.json, after.json    what it said before the first batch and after the last
log.txt                    when what was done, for people
lock                       held while a process works here
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errata.batch_record import BatchRecord
from errata.errors import Fault, FaultsError, InputError
from errata.facts import FactSet
from errata.facts_io import read_facts
from errata.in_place import check_no_links, open_in_place
from errata.ledger import Ledger, read_ledger
from errata.locking import held
from errata.output import file_digest, is_file, leftovers, remove, write_text
from errata.patch import Patch, now
from errata.patch_file import read_patch, write_patch
from errata.recipe import Recipe
from errata.run_manifest import (
    REMEDY,
    Manifest,
    check_file,
    ledger_faults,
    read_manifest,
    read_recipe_copy,
    sound_json,
)

COPIES = ("facts.jsonl", "recipe.yaml", "examination.json")


@dataclass(frozen=True, slots=True)
class SavedBatch:
    """A batch as it was kept.

    Attributes:
        said: what the model said right after it, as JSON; None if it was not asked.
    """

    record: BatchRecord
    patch: Patch
    said: Any


@dataclass(slots=True)
class RunDirectory:
    """A run that has been opened; ``ledger`` grows as the run goes on."""

    path: Path
    manifest: Manifest
    recipe: Recipe
    facts: FactSet
    examination: Mapping[str, Any] | None
    ledger: Ledger

    @property
    def batches_done(self) -> int:
        return len(self.ledger.of("batch"))

    @property
    def batches(self) -> int:
        return -(-len(self.facts) // self.recipe.batch_size)

    @property
    def facts_done(self) -> int:
        return min(self.batches_done * self.recipe.batch_size, len(self.facts))

    def batch_path(self, index: int) -> Path:
        """Of the patch of batch ``index`` (from 0)."""
        return self.path / "batches" / f"{index + 1:04}.safetensors"

    def begin_batch_over(self) -> list[str]:
        """Remove what a crash left of a batch that has no line in the ledger; says what that was."""
        found = [f"{self.ledger.path.name} ends in a part of a line"] if self.ledger.torn else []
        partial = leftovers(self.path)
        found += [f"{leftover.relative_to(self.path)} is a part of a file" for leftover in partial]
        patch = self.batch_path(self.batches_done)
        if patch.exists():
            found.append(f"{patch.relative_to(self.path)} has no line in the ledger")
        for leftover in (*partial, patch):
            remove(leftover)
        return [f"the run was stopped in the middle: {text}; what it belongs to is done again" for text in found]

    def add_batch(self, record: BatchRecord, patch: Patch, said: Any, weights: str) -> None:
        """Keep a batch: first its files, then its line, so that a line never speaks of what is not there.

        Args:
            patch: what the batch added, unshaped.
            said: what the model said right after it, as JSON; None if it was not asked.
            weights: SHA-256 of the edited weights as they are now.

        Raises:
            OutputError, OSError: if it cannot be written; the run is then what it was.
        """
        path = self.batch_path(record.index)
        write_patch(patch, path, keys=record.keys)
        digests = {"patch": file_digest(path)}
        if said is not None:
            write_text(path.with_suffix(".json"), json.dumps(said, ensure_ascii=False) + "\n")
            digests["said"] = file_digest(path.with_suffix(".json"))
        self.ledger = self.ledger.add(
            "batch",
            index=record.index,
            facts=[fact.id for fact in record.facts],
            left_alone=[fact.id for fact in record.left_alone],
            seconds=record.seconds,
            weights=weights,
            **digests,
        )

    def add_measurement(self, when: Literal["before", "after"], said: Any) -> None:
        path = self.path / f"{when}.json"
        write_text(path, json.dumps(said, ensure_ascii=False) + "\n")
        self.ledger = self.ledger.add(when, said=file_digest(path))

    def measurement(self, when: Literal["before", "after"]) -> Any | None:
        """What ``add_measurement`` kept; None if there is none yet."""
        entries = self.ledger.of(when)
        return sound_json(self.path / f"{when}.json", entries[-1].about["said"]) if entries else None

    def saved_batches(self) -> list[SavedBatch]:
        """All batches that were kept.

        Raises:
            FaultsError: for every file that is missing or is not the one that was written.
        """
        faults: list[Fault] = []
        found = []
        for entry in self.ledger.of("batch"):
            about = entry.about
            path = self.batch_path(about["index"])
            try:
                check_file(path, about["patch"])
                said = sound_json(path.with_suffix(".json"), about["said"]) if "said" in about else None
                file = read_patch(path)
                alone = {*about["left_alone"]}
                record = BatchRecord(
                    about["index"],
                    file.patch.facts,
                    file.patch.terms,
                    {},
                    float(about["seconds"]),
                    tuple(fact for fact in file.patch.facts if fact.id in alone),
                    file.keys,
                )
            except InputError as error:
                faults.append(Fault(str(path), error.what, self._way_out(about["index"], first=not faults)))
            else:
                found.append(SavedBatch(record, file.patch, said))
        if faults:
            raise FaultsError(f"the run {self.path}", faults)
        return found

    def _way_out(self, index: int, *, first: bool) -> str:
        """What can be done about a damaged file of batch ``index`` without a copy of it; once for all of them."""
        if index == 0 or not first:
            return REMEDY
        sound = str(self.batch_path(0))
        force = ""
        if index > 1:
            sound = sound.replace("0001.safe", f"{{0001..{index:04}}}.safe")  # as shells expand it
            force = "--force "  # each was made for the weights that the whole run began with
        return (
            f"{REMEDY}. Batches before number {index + 1} are sound patches: errata apply {force}{sound} --model "
            f"{self.manifest.model} --out STACK"
        )

    def log(self, text: str) -> None:
        with open_in_place(self.path / "log.txt", "a") as file:
            file.write(f"{now()} {text}\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works here meanwhile; the operating system lets go also of a process that was killed.

        Raises:
            InputError: if another process does, nothing can be written here, or the run holds links.
        """
        check_no_links(self.path)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(held(self.path / "lock"))
                file.truncate(0)
                file.write(f"process {os.getpid()}")
                file.flush()
            except BlockingIOError as error:
                raise InputError(
                    f"another process ({error.strerror}) works on the run {self.path}",
                    remedy="Wait until it ends, or end it",
                ) from error
            except OSError as error:
                raise InputError(
                    f"the run {self.path} cannot be written: {error}", remedy="Make it a directory that can be"
                ) from error
            # Since this one was opened, another process may have gone on with it, and ended.
            self.ledger = open_run(self.path).ledger
            yield


def is_run(path: str | Path) -> bool:
    return is_file(Path(path) / "run.json")


def open_run(path: Path) -> RunDirectory:
    """Read a run and check that nothing of it was changed.

    Raises:
        InputError, FaultsError: everything that was changed or is missing, by name; nothing is written or removed.
    """
    manifest = read_manifest(path / "run.json")
    faults = []
    for name, digest in manifest.digests.items():
        try:
            check_file(path / name, digest)
        except InputError as error:
            faults.append(Fault(str(path / name), error.what, error.remedy))
    ledger = read_ledger(path / "ledger.jsonl")
    faults += ledger_faults(path, ledger)
    if faults:
        raise FaultsError(f"the run {path}", faults)
    examination = path / "examination.json"
    return RunDirectory(
        path,
        manifest,
        read_recipe_copy(path / "recipe.yaml"),
        read_facts(path / "facts.jsonl"),
        json.loads(examination.read_text(encoding="utf-8")) if "examination.json" in manifest.digests else None,
        ledger,
    )
