"""A stack: patches on a base model, in order.

It is saved as a small directory, or in the directory of a full model that contains the patches already::

    errata-stack.json              the base with its fingerprint; of each patch the name, file, digest, and time added
    patches/0001-NAME.safetensors  one file for each patch
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.loading import lasting_name
from errata.patches.patch import DtypeName, Patch, read_patch, supported_dtype_name, write_patch
from errata.utils.files import file_digest, is_file, reading, write_text
from errata.utils.provenance import now

FILE = "errata-stack.json"


@dataclass(frozen=True, slots=True)
class Stacked:
    """One patch of a stack.

    Attributes:
        name: unique in the stack.
        added: when it was added, in UTC, ISO 8601.
        forced: whether it was made for other weights than those it was applied to.
        missing: names of patches that it was solved on top of and that have been removed since.
    """

    name: str
    patch: Patch
    added: str
    forced: bool = False
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stack:
    """Patches on a base.

    Attributes:
        base: the name of the base model: a hub name, ``lab``, or an absolute path.
        fingerprint: of its weights in ``dtype``.

    Raises:
        InputError: if two patches have the same name.
    """

    base: str
    fingerprint: str
    dtype: DtypeName
    patches: tuple[Stacked, ...] = ()

    def __post_init__(self) -> None:
        names = [stacked.name for stacked in self.patches]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            what = f"the stack has more than one patch called {', '.join(map(repr, twice))}"
            remedy = "Give each its own name, which `errata revert` needs"
            raise InputError(what, remedy=remedy, code="PATCH_NAME_TWICE")

    @property
    def facts(self) -> list[tuple[str, Fact]]:
        """(name of the patch, fact), oldest first."""
        return [(stacked.name, fact) for stacked in self.patches for fact in stacked.patch.facts]

    def with_patch(self, name: str, patch: Patch, *, forced: bool = False) -> Stack:
        """The stack with a patch on top; a number is appended to ``name`` if it is taken."""
        taken = {stacked.name for stacked in self.patches}
        unique = next(new for number in range(1, len(taken) + 2) if (new := _numbered(name, number)) not in taken)
        return replace(self, patches=(*self.patches, Stacked(unique, patch, now(), forced)))

    def without(self, names: Collection[str]) -> Stack:
        """The stack without some patches. Those above them are unchanged, and list the removed ones as missing.

        Raises:
            InputError: if there is no patch with one of the names.
        """
        self.check_names(names)
        gone: list[str] = []
        left: list[Stacked] = []
        for stacked in self.patches:
            if stacked.name in names:
                gone.append(stacked.name)
            else:
                left.append(replace(stacked, missing=(*stacked.missing, *gone)))
        return replace(self, patches=tuple(left))

    def check_names(self, names: Collection[str]) -> None:
        """Raises InputError if there is no patch with one of the names."""
        known = [stacked.name for stacked in self.patches]
        if unknown := [name for name in names if name not in known]:
            what = f"there is no patch {', '.join(map(repr, unknown))}"
            remedy = f"Available: {', '.join(known)}" if known else "There are no patches"
            raise InputError(what, remedy=remedy, code="PATCH_UNKNOWN")

    def put_into(self, model: LanguageModel) -> None:
        """Apply all patches to their base, in order.

        Raises:
            InputError: if ``model`` is not the base that they were made for; it is then unchanged.
        """
        if (found := model.fingerprint()) != self.fingerprint:
            what = (
                f"these patches were made for {self.base!r} in {self.dtype} ({self.fingerprint[:12]}…), but the model "
                f"has other weights ({found[:12]}…, in {supported_dtype_name(model.dtype)})"
            )
            raise InputError(what, remedy=f"Give {self.base!r} as it was, in {self.dtype}", code="STACK_OTHER_BASE")
        with model.edits.transaction():
            for stacked in self.patches:
                stacked.patch.apply(model, force=True)  # the base was checked, and each patch when it was added

    def take_out(self, model: LanguageModel) -> None:
        """Remove all patches from a model.

        Raises:
            InputError: if one of them is not applied to it.
        """
        with model.edits.transaction():
            for stacked in reversed(self.patches):
                stacked.patch.undo(model)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    file: str
    sha256: str
    added: str
    forced: bool
    missing: tuple[str, ...]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["errata-stack-1"] = "errata-stack-1"
    base: str
    fingerprint: str
    dtype: DtypeName
    patches: tuple[_Entry, ...]


def write_stack(stack: Stack, directory: Path) -> None:
    """Write a stack into a directory that does not have one; see ``utils.files.new_directory``."""
    entries = []
    for number, stacked in enumerate(stack.patches, start=1):
        name, file = stacked.name, f"patches/{number:04}-{_file_name(stacked.name)}.safetensors"
        write_patch(stacked.patch, directory / file)
        digest, added, forced, missing = file_digest(directory / file), stacked.added, stacked.forced, stacked.missing
        entries.append(_Entry(name=name, file=file, sha256=digest, added=added, forced=forced, missing=missing))
    record = _Record(base=stack.base, fingerprint=stack.fingerprint, dtype=stack.dtype, patches=tuple(entries))
    write_text(directory / FILE, record.model_dump_json(indent=1) + "\n")


def read_stack(directory: Path) -> Stack:
    """Read what ``write_stack`` wrote.

    Raises:
        InputError: if there is none, or a file of it is missing, changed or damaged.
    """
    record = _read_record(directory)
    patches = []
    for entry in record.patches:
        path = directory / entry.file
        if not _is_inside(path, directory):
            what = f"{directory / FILE} names a file outside of {directory}: {entry.file!r}"
            raise InputError(what, remedy=_REMEDY, code="STACK_DAMAGED")
        if not is_file(path):
            raise InputError(f"the patch {path} is missing", remedy=_REMEDY, code="STACK_DAMAGED")
        if file_digest(path) != entry.sha256:
            raise InputError(f"the patch {path} was changed or damaged", remedy=_REMEDY, code="STACK_DAMAGED")
        patches.append(Stacked(entry.name, read_patch(path).patch, entry.added, entry.forced, entry.missing))
    try:
        return Stack(record.base, record.fingerprint, record.dtype, tuple(patches))
    except InputError as error:
        raise InputError(f"{directory / FILE}: {error.what}", remedy=_REMEDY, code="STACK_DAMAGED") from error


def has_stack(name: str | Path) -> bool:
    """Whether a directory contains a stack, with or without the weights of a full model."""
    return is_file(Path(name) / FILE)


def is_stack(name: str | Path) -> bool:
    """Whether a directory is a stack without weights."""
    return has_stack(name) and not (Path(name) / "config.json").is_file()


def stack_base(directory: str | Path) -> tuple[str, torch.dtype]:
    """The base of a stack and the precision in which to load it, without reading the patches.

    Raises:
        InputError: if the record cannot be read.
    """
    record = _read_record(Path(directory))
    dtype: torch.dtype = getattr(torch, record.dtype)
    return record.base, dtype


def new_stack(model: LanguageModel, fingerprint: str) -> Stack:
    """A stack without patches on a model; its base is the model's name, or its absolute path."""
    return Stack(lasting_name(model.name), fingerprint, supported_dtype_name(model.dtype))


def solved_on_top(stack: Stack, names: Collection[str]) -> list[tuple[str, Sequence[Fact]]]:
    """(patch, facts) of the other patches above the lowest named one: they were solved while it was applied."""
    above = False
    found: list[tuple[str, Sequence[Fact]]] = []
    for stacked in stack.patches:
        if stacked.name in names:
            above = True
        elif above:
            found.append((stacked.name, stacked.patch.facts))
    return found


_REMEDY = "Restore the file, or make the stack again with `errata apply`"


def _read_record(directory: Path) -> _Record:
    path = directory / FILE
    with reading(path, remedy=_REMEDY, code="STACK_DAMAGED"):
        return _Record.model_validate_json(path.read_text(encoding="utf-8"))


def _is_inside(path: Path, directory: Path) -> bool:
    try:
        return path.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError, ValueError):  # a name that is too long, a link cycle, a NUL
        return False


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _file_name(name: str) -> str:
    """The name with characters that are unsafe in file names replaced."""
    return "".join(sign if sign.isalnum() or sign in "+-_." else "-" for sign in name)[:60]
