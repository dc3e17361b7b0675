"""StoredEdit: the edit of an editor that does not change weights, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.errors import InputError
from errata.facts.fact import Fact
from errata.facts.files import facts_from_records
from errata.utils.files import new_file, reason_of
from errata.utils.tensors import checksum, read_checked

FORMAT: Final = "errata-edit-1"


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    method: str
    settings: dict[str, Any]
    facts: list[dict[str, Any]]
    base: str
    fingerprint: str
    state: dict[str, Any]
    created: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class StoredEdit:
    """The result of one ``apply``.

    Attributes:
        method: the editor's name in the registry.
        settings: of the editor, as JSON.
        facts: the edited facts, in order.
        base: the name of the model; a path is absolute.
        fingerprint: of the weights and the editor's state before the edit, together.
        state: what else is needed to restore it, as JSON.
        tensors: the same, as tensors on the CPU.
        created: the time in UTC, ISO 8601.
        versions: of the software that made it.
    """

    method: str
    settings: Mapping[str, Any]
    facts: tuple[Fact, ...]
    base: str
    fingerprint: str
    created: str
    versions: Mapping[str, str]
    state: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Size of the header and the tensors."""
        return len(self._header().encode()) + sum(tensor.nbytes for tensor in self.tensors.values())

    def save(self, path: Path) -> None:
        """Write the file completely or not at all.

        Raises:
            OutputError: if it cannot be written; an older file remains.
        """
        header = self._header()
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}
        metadata = {"format": FORMAT, "header": header, "sha256": checksum(header, tensors)}
        with new_file(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def _header(self) -> str:
        return _Header(
            method=self.method,
            settings=dict(self.settings),
            facts=[fact.to_record() for fact in self.facts],
            base=self.base,
            fingerprint=self.fingerprint,
            state=dict(self.state),
            created=self.created,
            versions=dict(self.versions),
        ).model_dump_json()

    @classmethod
    def load(cls, path: Path) -> StoredEdit:
        """Read what ``save`` wrote.

        Raises:
            InputError: if the file is not an edit, or is damaged.
        """
        try:
            text, tensors = read_checked(path, FORMAT, "header")
            header = _Header.model_validate_json(text)
            facts = facts_from_records(header.facts, source=str(path)).facts
        except (OSError, SafetensorError, ValidationError, ValueError, KeyError, RuntimeError, RecursionError) as error:
            raise InputError(
                f"{path} is not a readable edit: {reason_of(error)}",
                remedy="Give a complete file written by `errata edit`",
                code="EDIT_UNREADABLE",
            ) from error
        fields = {name: getattr(header, name) for name in _Header.model_fields if name != "facts"}
        return cls(facts=facts, tensors=tensors, **fields)


def edit_format(path: Path) -> str | None:
    """The format that a safetensors file names in its header; None if it names none or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format")
    except (OSError, SafetensorError):
        return None
