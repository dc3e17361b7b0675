"""What `errata train-editor` writes, one safetensors file bound to a model and a split of its data, and what makes it.

An editor with a trained part has its ``Trainer`` beside it; ``trainers.TRAINERS`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from errata.editors.training_data import EditorData
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.utils.files import new_file, reason_of
from errata.utils.progress import Report
from errata.utils.settings import Positive, Settings
from errata.utils.tensors import checksum, read_checked

FORMAT: Final = "errata-trained-editor-1"


class TrainerSettings(Settings):
    """What all trainers have; each adds its own."""

    seed: StrictInt = Field(0, ge=0, description="of everything random in training")


class Descent(Settings):
    """How a language model is trained; each user has defaults of its own."""

    steps: StrictInt = Field(400, ge=1, description="of AdamW; the rate rises for a tenth of them, then falls to 0")
    batch_size: StrictInt = Field(32, ge=1, description="texts of one step")
    learning_rate: Positive = Field(5e-4, description="the highest")
    clip: Positive = Field(1.0, description="the largest norm of a gradient")


@dataclass(frozen=True, slots=True)
class Learnt:
    """The result of a training.

    Attributes:
        tensors: on the CPU.
        record: what was measured, as JSON: at least on the split ``calibration``.
        state: what else the editor needs, as JSON.
    """

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trainer:
    """How a part of an editor is trained.

    Attributes:
        settings: their class, whose defaults suit any model.
        learn: (model, training records, calibration records, settings as JSON, progress callback) -> result. The model
            is not changed. Deterministic: the same input gives the same tensors.
    """

    settings: type[TrainerSettings]
    learn: Callable[[LanguageModel, EditorData, EditorData, Mapping[str, Any], Report], Learnt]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    settings: dict[str, Any]
    source: str
    split_seed: int
    data_digest: str
    base: str
    base_fingerprint: str
    record: dict[str, Any]
    state: dict[str, Any]
    created: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class TrainedEditor:
    """The trained part of an editor.

    Attributes:
        name: of the trainer, which is the editor's.
        settings: of the training, as JSON.
        source: of the training data: a data set's name, or a file.
        split_seed: see ``training_data.EditorData``; facts of the split ``test`` were not seen.
        data_digest: of the records of the splits ``train`` and ``calibration``.
        base: the name of the model that it was trained with; a path is absolute.
        base_fingerprint: of the same; it serves no other model.
        record: what training measured, as JSON.
        state: what else the editor needs, as JSON.
        tensors: on the CPU, contiguous.
        created: the time in UTC, ISO 8601.
        versions: of the software that made it.
    """

    name: str
    settings: Mapping[str, Any]
    source: str
    split_seed: int
    data_digest: str
    base: str
    base_fingerprint: str
    record: Mapping[str, Any]
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    created: str
    versions: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of header and tensors, which edits name."""
        return checksum(self._header(), self.tensors)

    def save(self, path: Path) -> None:
        """Write the file completely or not at all.

        Raises:
            OutputError: if it cannot be written; an older file remains.
        """
        metadata = {"format": FORMAT, "header": self._header(), "sha256": self.digest}
        with new_file(path) as temporary:
            save_file(
                {name: tensor.contiguous() for name, tensor in self.tensors.items()}, temporary, metadata=metadata
            )

    def _header(self) -> str:
        return _Header(
            **{name: getattr(self, name) for name in _Header.model_fields if name not in _MAPPINGS},
            **{name: dict(getattr(self, name)) for name in _MAPPINGS},
        ).model_dump_json()

    @classmethod
    def load(cls, path: Path, name: str, model: LanguageModel) -> TrainedEditor:
        """Read what ``save`` wrote.

        Args:
            name: the trainer whose file is needed.
            model: the model that it is to be used with.

        Raises:
            InputError: if the file is damaged, or was made by another trainer or for another model.
        """
        trained = cls.read(path, name)
        trained.check_model(model, str(path))
        return trained

    def check_model(self, model: LanguageModel, source: str = "the trained part") -> None:
        """Raises InputError if it was trained for other weights than the model's."""
        if self.base_fingerprint != model.fingerprint():
            raise InputError(
                f"{source} was trained for other weights, those of {self.base!r}",
                remedy=f"Train it for this model: errata train-editor {self.name} --model …",
                code="TRAINED_EDITOR_FOR_OTHER_WEIGHTS",
            )

    @classmethod
    def read(cls, path: Path, name: str) -> TrainedEditor:
        """As ``load``, for a part that brings its own model along."""
        try:
            text, tensors = read_checked(path, FORMAT, "header")
            header = _Header.model_validate_json(text)
        except (OSError, SafetensorError, ValidationError, ValueError, KeyError, RuntimeError, RecursionError) as error:
            raise InputError(
                f"{path} is not a readable trained editor: {reason_of(error)}",
                remedy="Give a complete file written by `errata train-editor`",
                code="TRAINED_EDITOR_UNREADABLE",
            ) from error
        if header.name != name:
            raise InputError(
                f"{path} was trained for {header.name!r}, not for {name!r}",
                remedy=f"Give a file written by `errata train-editor {name}`",
                code="TRAINED_EDITOR_OF_ANOTHER_KIND",
            )
        return cls(tensors=tensors, **{name: getattr(header, name) for name in _Header.model_fields})


_MAPPINGS: Final = ("settings", "record", "state", "versions")
