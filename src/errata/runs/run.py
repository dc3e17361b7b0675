"""A run on disk: all that is needed to resume it after a crash or to repeat it, and nothing else.

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

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from errata.editing.batch import BatchRecord
from errata.editing.recipe import Recipe
from errata.errors import Fault, FaultsError, InputError
from errata.facts.fact import FactSet
from errata.facts.files import read_facts, write_facts
from errata.models.loading import lasting_name
from errata.patches.patch import DtypeName, Patch, read_patch, write_patch
from errata.runs.ledger import Entry, Ledger, new_ledger, read_ledger
from errata.utils.files import file_digest, is_file, leftovers, new_directory, reason_of, remove, write_text
from errata.utils.locks import check_no_links, locked, open_in_place
from errata.utils.provenance import now, software_versions
from errata.utils.yaml import parse_yaml

REMEDY = "Put the file back as it was, or begin a new run (errata edit --run)"


class _BatchLine(BaseModel):
    """What the ledger says of a batch; see ``RunDirectory.add_batch``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    index: int
    facts: list[str]
    left_alone: list[str]
    seconds: float
    weights: str
    patch: str
    said: str | None = None


class Manifest(BaseModel):
    """What a run is; never changes.

    Attributes:
        model: what the user called it.
        fingerprint: of its weights before the run, in ``dtype``.
        lab: whether the model is the embedded one or made from it.
        facts_source: the file that the facts are from, with the SHA-256 of its bytes.
        corpus: SHA-256 of the text for key statistics; empty where none is read.
        seed: of the bootstrap.
        threads: of torch; with another number the last bits may differ.
        digests: copy -> SHA-256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["errata-run-1"] = "errata-run-1"
    created: str
    model: str
    fingerprint: str
    dtype: DtypeName
    lab: bool
    method: str
    batch_size: int = Field(ge=1)
    facts_source: str
    facts_source_sha256: str
    corpus: str
    seed: int = Field(ge=0)
    threads: int
    versions: dict[str, str]
    digests: dict[Literal["facts.jsonl", "recipe.yaml", "examination.json"], str]

    @field_validator("digests")
    @classmethod
    def _of_all_that_it_takes(cls, digests: dict[str, str]) -> dict[str, str]:
        if missing := {"facts.jsonl", "recipe.yaml"} - digests.keys():
            raise ValueError(f"there is none of {', '.join(sorted(missing))}")
        return digests

    def checksum(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def ledger_faults(path: Path, ledger: Ledger) -> list[Fault]:
    """What does not fit together between the ledger and the files of the run at ``path``."""
    remedy = REMEDY
    faults = [
        Fault(str(ledger.path), text, remedy, code="LEDGER_DAMAGED")
        for text in map(_line_fault, ledger.entries)
        if text
    ]
    if faults:
        return faults
    batches = [entry.about for entry in ledger.of("batch")]
    if [about.get("index") for about in batches] != list(range(len(batches))):
        return [Fault(str(ledger.path), "its batches are not numbered from 0 on", remedy, code="LEDGER_DAMAGED")]
    needed = {f"{about['index'] + 1:04}.safetensors": "a batch" for about in batches}
    needed |= {f"{about['index'] + 1:04}.json": "what was said after a batch" for about in batches if "said" in about}
    faults += [
        Fault(str(path / "batches" / name), f"the file of {what} is missing", remedy, code="RUN_FILE_MISSING")
        for name, what in needed.items()
        if not (path / "batches" / name).is_file()
    ]
    for when in ("before", "after"):
        if ledger.of(when) and not (path / f"{when}.json").is_file():
            faults.append(
                Fault(str(path / f"{when}.json"), "what the model said is missing", remedy, code="RUN_FILE_MISSING")
            )
    # A crash leaves at most the next batch without its line; others mean that lines were lost.
    there = {file.name for file in (path / "batches").glob("*.safetensors")}
    if there - needed.keys() - {f"{len(batches) + 1:04}.safetensors"}:
        lost = sorted(there - needed.keys())  # the next one lost its line as well, then
        what = f"it has no lines for {', '.join(lost)}, which are there"
        faults.append(Fault(str(ledger.path), what, remedy, code="LEDGER_DAMAGED"))
    return faults


def _line_fault(entry: Entry) -> str | None:
    """What is wrong with a line whose checksum is right: another version of errata wrote it, or a person."""
    if entry.kind == "batch":
        try:
            _BatchLine.model_validate(entry.about)
        except ValidationError as error:
            return f"its line of {entry.time[:40]} is not that of a batch: {reason_of(error)}"
    elif entry.kind not in ("before", "after"):
        return f"it has a line about {entry.kind[:40]!r}, which this version of errata does not know"
    elif not isinstance(entry.about.get("said"), str):
        return f"its line of {entry.time[:40]} does not say what was said {entry.kind}"
    return None


def read_manifest(path: Path) -> Manifest:
    """Raises InputError if there is none, or it is not what was written."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        checksum = whole.pop("checksum")
        manifest = Manifest.model_validate(whole)
        expected = manifest.checksum()
    except (OSError, ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not the record of a run: {reason_of(error)}",
            remedy="Give a directory that `errata edit --run` made",
            code="RUN_UNREADABLE",
        ) from error
    if checksum != expected:
        raise InputError(f"{path} was changed since the run began", remedy=REMEDY, code="RUN_FILE_CHANGED")
    return manifest


def check_file(path: Path, digest: str) -> None:
    """Raises InputError if a file is missing, or is not the one that was written."""
    remedy = REMEDY
    if not path.is_file():
        raise InputError(f"{path.name} is missing", remedy=remedy, code="RUN_FILE_MISSING")
    if file_digest(path) != digest:
        raise InputError(
            f"{path.name} is not what was written: it was changed or damaged", remedy=remedy, code="RUN_FILE_CHANGED"
        )


def sound_json(path: Path, digest: str) -> Any:
    """What a file of JSON holds, if it is the one that was written."""
    check_file(path, digest)
    return json.loads(path.read_text(encoding="utf-8"))


def read_recipe_copy(path: Path) -> Recipe:
    """A whole recipe as ``Recipe.to_yaml`` wrote it; unlike a recipe file's, its corpus path is absolute already."""
    try:
        return Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8"), str(path)).data)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a recipe: {reason_of(error)}", remedy=REMEDY, code="RUN_FILE_CHANGED"
        ) from error


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
    """A run that has been opened; ``ledger`` grows as the run proceeds."""

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
                faults.append(
                    Fault(str(path), error.what, self._way_out(about["index"], first=not faults), code=error.code)
                )
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
                file = stack.enter_context(locked(self.path / "lock"))
                file.truncate(0)
                file.write(f"process {os.getpid()}")
                file.flush()
            except BlockingIOError as error:
                raise InputError(
                    f"another process ({error.strerror}) works on the run {self.path}",
                    remedy="Wait until it ends, or end it",
                    code="RUN_LOCKED",
                ) from error
            except OSError as error:
                raise InputError(
                    f"the run {self.path} cannot be written: {error}",
                    remedy="Make it a directory that can be",
                    code="OUTPUT_NOT_WRITABLE",
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
            faults.append(Fault(str(path / name), error.what, error.remedy, code=error.code))
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


def create_run(
    path: Path,
    *,
    model: str,
    fingerprint: str,
    dtype: DtypeName,
    lab: bool,
    recipe: Recipe,
    facts: FactSet,
    corpus: str,
    seed: int,
    examination: Mapping[str, Any] | None,
) -> RunDirectory:
    """A new run, in which nothing has been done.

    Raises:
        InputError: if ``path`` exists and is not an empty directory, or cannot be made.
    """
    source = Path(facts.source)
    with new_directory(path) as partial:
        write_facts(facts, partial / "facts.jsonl")
        write_text(partial / "recipe.yaml", recipe.to_yaml())
        if examination is not None:
            write_text(partial / "examination.json", json.dumps(examination, ensure_ascii=False) + "\n")
        (partial / "batches").mkdir()
        new_ledger(partial / "ledger.jsonl")
        manifest = Manifest(
            created=now(),
            model=lasting_name(model),
            fingerprint=fingerprint,
            dtype=dtype,
            lab=lab,
            method=recipe.method,
            batch_size=recipe.batch_size,
            facts_source=str(source.absolute()) if source.is_file() else facts.source,
            facts_source_sha256=file_digest(source) if source.is_file() else "",
            corpus=corpus,
            seed=seed,
            threads=torch.get_num_threads(),
            versions=software_versions(),
            digests={name: file_digest(partial / name) for name in COPIES if (partial / name).is_file()},
        )
        whole = {**manifest.model_dump(), "checksum": manifest.checksum()}
        write_text(partial / "run.json", json.dumps(whole, ensure_ascii=False, indent=1) + "\n")
    return open_run(path)
