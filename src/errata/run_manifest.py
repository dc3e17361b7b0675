"""What a run on disk is, and whether its files are the ones that were written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from errata.errors import Fault, InputError
from errata.ledger import Entry, Ledger
from errata.output import file_digest
from errata.patch import DtypeName
from errata.reading import reason_of
from errata.recipe import Recipe
from errata.recipe_yaml import parse_yaml

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
    faults = [Fault(str(ledger.path), text, remedy) for text in map(_line_fault, ledger.entries) if text]
    if faults:
        return faults
    batches = [entry.about for entry in ledger.of("batch")]
    if [about.get("index") for about in batches] != list(range(len(batches))):
        return [Fault(str(ledger.path), "its batches are not numbered from 0 on", remedy)]
    needed = {f"{about['index'] + 1:04}.safetensors": "a batch" for about in batches}
    needed |= {f"{about['index'] + 1:04}.json": "what was said after a batch" for about in batches if "said" in about}
    faults += [
        Fault(str(path / "batches" / name), f"the file of {what} is missing", remedy)
        for name, what in needed.items()
        if not (path / "batches" / name).is_file()
    ]
    for when in ("before", "after"):
        if ledger.of(when) and not (path / f"{when}.json").is_file():
            faults.append(Fault(str(path / f"{when}.json"), "what the model said is missing", remedy))
    # A crash leaves at most the next batch without its line; others mean that lines were lost.
    there = {file.name for file in (path / "batches").glob("*.safetensors")}
    if there - needed.keys() - {f"{len(batches) + 1:04}.safetensors"}:
        lost = sorted(there - needed.keys())  # the next one lost its line as well, then
        what = f"it has no lines for {', '.join(lost)}, which are there"
        faults.append(Fault(str(ledger.path), what, remedy))
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
        ) from error
    if checksum != expected:
        raise InputError(f"{path} was changed since the run began", remedy=REMEDY)
    return manifest


def check_file(path: Path, digest: str) -> None:
    """Raises InputError if a file is missing, or is not the one that was written."""
    remedy = REMEDY
    if not path.is_file():
        raise InputError(f"{path.name} is missing", remedy=remedy)
    if file_digest(path) != digest:
        raise InputError(f"{path.name} is not what was written: it was changed or damaged", remedy=remedy)


def sound_json(path: Path, digest: str) -> Any:
    """What a file of JSON holds, if it is the one that was written."""
    check_file(path, digest)
    return json.loads(path.read_text(encoding="utf-8"))


def read_recipe_copy(path: Path) -> Recipe:
    """A whole recipe as ``Recipe.to_yaml`` wrote it; unlike a recipe file's, its corpus path is absolute already."""
    try:
        return Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8"), str(path)).data)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a recipe: {reason_of(error)}", remedy=REMEDY) from error
