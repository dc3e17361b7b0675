"""A run on disk: all that is needed to resume it after a crash or to repeat it, and nothing else.

run.json                   the manifest: model, weights, recipe, digests of the files below
facts.jsonl, recipe.yaml   copies, so that a file changed elsewhere does not change the run
examination.json           the evaluation questions; absent if nothing is measured
ledger.jsonl               one line per batch and measurement; see ``ledger``
batches/0001.safetensors   the patch of the first batch, with the keys whose values later ones preserve
batches/0001.json          the model's answers right after it
before.json, after.json    its answers before the first batch and after the last
log.txt                    a log with times, for people
lock                       locked while a process is working on the run
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from errata.editing.batch import BatchRecord
from errata.editing.recipe import Recipe
from errata.errors import Fault, FaultsError, InputError
from errata.facts.fact import FactSet
from errata.facts.files import read_facts, write_facts
from errata.models.copies import process_count
from errata.models.loading import lasting_name
from errata.patches.patch import DtypeName, Patch, read_patch, write_patch
from errata.runs.ledger import Entry, Ledger, new_ledger, read_ledger
from errata.utils.files import (
    file_digest,
    is_file,
    leftovers,
    new_directory,
    reading,
    reason_of,
    remove,
    write_json,
    write_text,
)
from errata.utils.locks import check_no_links, locked, open_in_place
from errata.utils.provenance import now, software_versions
from errata.utils.yaml import parse_yaml

REMEDY = "Restore the file, or begin a new run (errata edit --run)"


class _BatchLine(BaseModel):
    """A batch's line of the ledger; see ``RunDirectory.add_batch``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["batch"]
    index: int
    facts: list[str]
    left_alone: list[str]
    seconds: float
    weights: str
    patch: str
    said: str | None = None


class _MeasurementLine(BaseModel):
    kind: Literal["before", "after"]
    said: str


_LINE: TypeAdapter[_BatchLine | _MeasurementLine] = TypeAdapter(
    Annotated[_BatchLine | _MeasurementLine, Field(discriminator="kind")]
)


class Manifest(BaseModel):
    """The description of a run, which never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["errata-run-1"] = "errata-run-1"
    created: str
    model: str  # as the user named it
    fingerprint: str  # SHA-256 of its weights before the run, in ``dtype``
    dtype: DtypeName
    lab: bool  # whether the model is the embedded one or made from it
    method: str
    batch_size: int = Field(ge=1)
    facts_source: str  # the file of the facts, with the SHA-256 of its bytes
    facts_source_sha256: str
    corpus: str  # SHA-256 of the text for key statistics; empty if none is read
    seed: int = Field(ge=0)  # of the bootstrap
    threads: int  # of torch; with another number the last bits may differ
    # that shared the work; left out for one, so that records are those of earlier versions
    processes: int = Field(1, ge=1, exclude_if=lambda count: count == 1)
    versions: dict[str, str]
    digests: dict[Literal["facts.jsonl", "recipe.yaml", "examination.json"], str]  # copy -> SHA-256

    @field_validator("digests")
    @classmethod
    def _check_complete(cls, digests: dict[str, str]) -> dict[str, str]:
        if missing := {"facts.jsonl", "recipe.yaml"} - digests.keys():
            raise ValueError(f"digests are missing for {', '.join(sorted(missing))}")
        return digests

    def checksum(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def ledger_faults(path: Path, ledger: Ledger) -> list[Fault]:
    """The contradictions between the ledger and the files of the run at ``path``."""

    def damaged(what: str) -> Fault:
        return Fault(str(ledger.path), what, REMEDY, code="LEDGER_DAMAGED")

    if invalid := [damaged(what) for what in map(_line_fault, ledger.entries) if what]:
        return invalid
    batches = [entry.fields for entry in ledger.of("batch")]
    if [fields["index"] for fields in batches] != list(range(len(batches))):
        return [damaged("its batches are not numbered from 0 on")]
    patches = [f"{index + 1:04}.safetensors" for index in range(len(batches))]
    needed = {path / "batches" / name: "the patch of a batch" for name in patches}
    for fields in batches:
        if "said" in fields:
            needed[path / "batches" / f"{fields['index'] + 1:04}.json"] = "the model's answers after a batch"
    needed |= {path / f"{when}.json": "the model's answers" for when in ("before", "after") if ledger.of(when)}
    faults = [
        Fault(str(file), f"the file of {what} is missing", REMEDY, code="RUN_FILE_MISSING")
        for file, what in needed.items()
        if not file.is_file()
    ]
    # A crash leaves at most the next batch without its line; others mean that lines were lost.
    others = sorted({file.name for file in (path / "batches").glob("*.safetensors")} - {*patches})
    if others not in ([], [f"{len(batches) + 1:04}.safetensors"]):
        faults.append(damaged(f"it has no lines for {', '.join(others)}, which exist"))
    return faults


def _line_fault(entry: Entry) -> str | None:
    """A line with a valid checksum may still be from another version of errata."""
    try:
        _LINE.validate_python({"kind": entry.kind, **entry.fields})
    except ValidationError as error:
        return f"its line of {entry.time[:40]} is not valid: {reason_of(error)}"
    return None


def read_manifest(path: Path) -> Manifest:
    """Raises InputError if there is none, or it was changed."""
    with reading(path, remedy="Give a directory created by `errata edit --run`", code="RUN_UNREADABLE"):
        whole = json.loads(path.read_text(encoding="utf-8"))
        checksum = whole.pop("checksum")
        manifest = Manifest.model_validate(whole)
        expected = manifest.checksum()
    if checksum != expected:
        raise InputError(f"{path} was changed since the run began", remedy=REMEDY, code="RUN_FILE_CHANGED")
    return manifest


def check_file(path: Path, digest: str) -> None:
    """Raises InputError if a file is missing, or its SHA-256 differs."""
    if not path.is_file():
        raise InputError(f"{path.name} is missing", remedy=REMEDY, code="RUN_FILE_MISSING")
    if file_digest(path) != digest:
        raise InputError(f"{path.name} was changed or damaged", remedy=REMEDY, code="RUN_FILE_CHANGED")


def verified_json(path: Path, digest: str) -> Any:
    """The value of a JSON file; raises as ``check_file``."""
    check_file(path, digest)
    return json.loads(path.read_text(encoding="utf-8"))


def read_recipe_copy(path: Path) -> Recipe:
    """A complete recipe written by ``Recipe.to_yaml``; unlike in a recipe file, its corpus path is absolute."""
    with reading(path, remedy=REMEDY, code="RUN_FILE_CHANGED"):
        return Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8"), str(path)).data)


COPIES = ("facts.jsonl", "recipe.yaml", "examination.json")


@dataclass(frozen=True, slots=True)
class SavedBatch:
    """A batch read back from disk."""

    record: BatchRecord
    patch: Patch
    answers: Any  # the model's answers right after it, as JSON; None if it was not evaluated


@dataclass(slots=True)
class RunDirectory:
    """An open run; ``ledger`` grows as the run proceeds."""

    path: Path
    manifest: Manifest
    recipe: Recipe
    facts: FactSet
    examination: Mapping[str, Any] | None  # the evaluation questions, as JSON; None if nothing is measured
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
        """The file of the patch of batch ``index`` (from 0)."""
        return self.path / "batches" / f"{index + 1:04}.safetensors"

    def discard_unfinished_batch(self) -> list[str]:
        """Remove what a crash left of a batch that has no line in the ledger, and describe it."""
        found = [f"{self.ledger.path.name} ends in an incomplete line"] if self.ledger.truncated else []
        partial = leftovers(self.path)
        found += [f"{leftover.relative_to(self.path)} is incomplete" for leftover in partial]
        patch = self.batch_path(self.batches_done)
        if patch.exists():
            found.append(f"{patch.relative_to(self.path)} has no line in the ledger")
        for leftover in (*partial, patch):
            remove(leftover)
        return [f"the run was interrupted: {text}; its batch is done again" for text in found]

    def add_batch(self, record: BatchRecord, patch: Patch, answers: Any, weights: str) -> None:
        """Write a batch: first its files, then its line, so that the files of every line exist.

        Args:
            patch: the change of the batch, before any shaping of the whole run.
            answers: the model's answers right after it, as JSON; None if it was not evaluated.
            weights: SHA-256 of the edited weights after it.

        Raises:
            OutputError, OSError: if it cannot be written; the run is then unchanged.
        """
        path = self.batch_path(record.index)
        write_patch(patch, path, keys=record.keys)
        digests = {"patch": file_digest(path)}
        if answers is not None:
            write_json(path.with_suffix(".json"), answers)
            digests["said"] = file_digest(path.with_suffix(".json"))
        self.ledger = self.ledger.add(
            "batch",
            index=record.index,
            facts=[fact.id for fact in record.facts],
            left_alone=[fact.id for fact in record.unwritten],
            seconds=record.seconds,
            weights=weights,
            **digests,
        )

    def add_measurement(self, when: Literal["before", "after"], answers: Any) -> None:
        path = self.path / f"{when}.json"
        write_json(path, answers)
        self.ledger = self.ledger.add(when, said=file_digest(path))

    def measurement(self, when: Literal["before", "after"]) -> Any | None:
        """The answers that ``add_measurement`` wrote; None if there are none yet."""
        entries = self.ledger.of(when)
        return verified_json(self.path / f"{when}.json", entries[-1].fields["said"]) if entries else None

    def saved_batches(self) -> list[SavedBatch]:
        """All finished batches.

        Raises:
            FaultsError: for every file that is missing or was changed.
        """
        faults: list[Fault] = []
        found = []
        for entry in self.ledger.of("batch"):
            fields = entry.fields
            index, unwritten = fields["index"], {*fields["left_alone"]}
            path = self.batch_path(index)
            try:
                check_file(path, fields["patch"])
                answers = verified_json(path.with_suffix(".json"), fields["said"]) if "said" in fields else None
                file = read_patch(path)
            except InputError as error:
                hint = self._recovery_hint(index, first=not faults)
                faults.append(Fault(str(path), error.what, hint, code=error.code))
            else:
                facts, seconds = file.patch.facts, float(fields["seconds"])
                skipped = tuple(fact for fact in facts if fact.id in unwritten)
                record = BatchRecord(index, facts, file.patch.terms, {}, seconds, skipped, file.keys)
                found.append(SavedBatch(record, file.patch, answers))
        if faults:
            raise FaultsError(f"the run {self.path}", faults)
        return found

    def _recovery_hint(self, index: int, *, first: bool) -> str:
        """The remedy for a damaged file of batch ``index``, which mentions the intact batches once."""
        if index == 0 or not first:
            return REMEDY
        intact = str(self.batch_path(0))
        force = ""
        if index > 1:
            intact = intact.replace("0001.safe", f"{{0001..{index:04}}}.safe")  # as shells expand it
            force = "--force "  # each was made for the weights that the whole run began with
        return (
            f"{REMEDY}. Batches before number {index + 1} are intact patches: errata apply {force}{intact} --model "
            f"{self.manifest.model} --out STACK"
        )

    def log(self, text: str) -> None:
        with open_in_place(self.path / "log.txt", "a") as file:
            file.write(f"{now()} {text}\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other processes. The operating system releases the lock of a process that was killed.

        Raises:
            InputError: if another process has the lock, the run cannot be written, or it contains links.
        """
        check_no_links(self.path)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(locked(self.path / "lock"))
                file.truncate(0)
                file.write(f"process {os.getpid()}")
                file.flush()
            except BlockingIOError as error:
                what = f"another process ({error.strerror}) is working on the run {self.path}"
                raise InputError(what, remedy="Wait until it finishes, or stop it", code="RUN_LOCKED") from error
            except OSError as error:
                what = f"the run {self.path} cannot be written: {error}"
                raise InputError(what, remedy="Make the directory writable", code="OUTPUT_NOT_WRITABLE") from error
            # Another process may have continued the run since it was opened.
            self.ledger = open_run(self.path).ledger
            yield


def is_run(path: str | Path) -> bool:
    return is_file(Path(path) / "run.json")


def open_run(path: Path) -> RunDirectory:
    """Read a run and check that nothing of it was changed; nothing is written or removed.

    Raises:
        InputError, FaultsError: naming everything that was changed or is missing.
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
    """Create a run without any batch.

    Args:
        examination: the evaluation questions, as JSON.

    Raises:
        InputError: if ``path`` exists and is not an empty directory, or cannot be created.
    """
    source = Path(facts.source)
    with new_directory(path) as partial:
        write_facts(facts, partial / "facts.jsonl")
        write_text(partial / "recipe.yaml", recipe.to_yaml())
        if examination is not None:
            write_json(partial / "examination.json", examination)
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
            processes=process_count(),
            versions=software_versions(),
            digests={name: file_digest(partial / name) for name in COPIES if (partial / name).is_file()},
        )
        whole = {**manifest.model_dump(), "checksum": manifest.checksum()}
        write_json(partial / "run.json", whole, indent=1)
    return open_run(path)
