"""Saving an edited model: its base's files, in which only the edited tensors differ.

Weights are copied shard by shard as bytes, and the edited tensors are overwritten in place: names, order, dtypes,
metadata and ties stay as they are. `config.json`, tokenizer and chat-template files are copied as bytes too: another
version of transformers would rewrite them in a form that older versions silently misread.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from errata.errors import InputError
from errata.models.families import Architecture, experts_of, is_transposed
from errata.models.weights import EditedWeights, Place
from errata.utils.files import write_json
from errata.utils.tensors import tensor_bytes
from errata.utils.text import dtype_name

_CONFIG = "config.json"
_GENERATION_CONFIG = "generation_config.json"
# Configuration, tokenizer, chat template and licence, under their names in any version of transformers. Not the README,
# which describes other weights, and no weights in other formats.
_COPIED = (
    _CONFIG,
    _GENERATION_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "tokenizer*.json",
    "*.model",
    "*.tiktoken",
    "vocab*.json",
    "vocab*.txt",
    "merges*.txt",
    "LICENSE*",
    "NOTICE*",
)
_WITH_AUTO_MAP = (_CONFIG, "tokenizer_config.json")  # `auto_map` names a class in a Python file beside them


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The files that a model was loaded from."""

    directory: Path  # a local directory; for a model of the hub its snapshot in the cache
    shards: tuple[str, ...]  # names of its safetensors files; none where the weights are in another format
    index: bool  # whether an index file maps tensors to shards

    @classmethod
    def of(cls, directory: Path) -> BaseFiles:
        """Find the weights of a model's directory, choosing between formats as transformers does.

        Raises:
            ValueError: if the index is malformed.
        """
        if (directory / SAFE_WEIGHTS_NAME).is_file():
            return cls(directory, (SAFE_WEIGHTS_NAME,), index=False)
        path = directory / SAFE_WEIGHTS_INDEX_NAME
        if not path.is_file():
            return cls(directory, (), index=False)
        index = json.loads(path.read_text(encoding="utf-8"))
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} has no map from tensors to files")
        shards = sorted(set(files.values()))
        for name in shards:
            if Path(name).name != name:  # it would also be written there
                raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} names a file in another directory: {name!r}")
        return cls(directory, tuple(shards), index=True)

    def copied(self) -> list[str]:
        """The files other than weights that are copied, as paths within the directory."""
        found = {path for pattern in _COPIED for path in self.directory.glob(pattern)}
        if any("auto_map" in _json_object(self.directory / name) for name in _WITH_AUTO_MAP):
            found |= {path for path in self.directory.rglob("*.py") if path.is_file()}
        names = {path.relative_to(self.directory).as_posix() for path in found if path.is_file()}
        return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))

    def linked(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those files that are links to somewhere else. The hub's cache links its files within itself."""
        root = self.directory.resolve()
        if root.parent.name == "snapshots":
            root = root.parent.parent
        return tuple(name for name in names if not (self.directory / name).resolve().is_relative_to(root))


@dataclass(frozen=True, slots=True)
class Written:
    """Notes on what ``write_edited`` did beyond copying."""

    # (stored, written) dtypes where the base was loaded in another dtype than its own; else None
    converted: tuple[str, str] | None = None
    # files that are links to somewhere outside the base's directory, and were copied from there
    linked: tuple[str, ...] = ()


def write_edited(
    model: PreTrainedModel, base: BaseFiles, architecture: Architecture, edits: EditedWeights, directory: Path
) -> Written:
    """Write an edited model in the form of its base's files: only the edited tensors differ.

    A model loaded in another dtype than its configuration names is written in the dtype it was edited in, and
    ``config.json`` names that dtype. A base without safetensors files gets some.

    Args:
        directory: an empty directory.

    Raises:
        InputError: if the base's files have changed since the model was loaded.
    """
    names = base.copied()
    linked = base.linked([*names, *base.shards])
    converted = None
    if base.shards:
        converted = _write_shards(model, base, architecture, edits, directory)
    else:
        model.save_pretrained(directory)
        for file in (_CONFIG, _GENERATION_CONFIG):  # rewritten by transformers; the base's own are copied below
            (directory / file).unlink(missing_ok=True)
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base.directory / name, directory / name)
    stored = _config_dtype(_json_object(directory / _CONFIG))
    written = dtype_name(model.dtype)
    if converted is None and not base.shards and stored not in (None, written):
        converted = stored
    if converted is not None:
        _set_config_dtype(directory / _CONFIG, written)
    return Written(None if converted is None else (converted, written), linked)


def _write_shards(
    model: PreTrainedModel, base: BaseFiles, architecture: Architecture, edits: EditedWeights, directory: Path
) -> str | None:
    """Write the weights. Returns the base's own dtype if all of them were converted to the model's, else None."""
    edited = _edited_tensors(model, base, architecture, edits)
    stored = next((dtype for dtype, _ in edited.values()), None)
    own = _config_dtype(_json_object(base.directory / _CONFIG)) or dtype_name(stored or model.dtype)
    converts = own != dtype_name(model.dtype)
    before = after = 0
    for shard in base.shards:
        source, target = base.directory / shard, directory / shard
        inside = {name: value for (file, name), (_, value) in edited.items() if file == shard}
        if converts or any(dtype != value.dtype for (file, _), (dtype, value) in edited.items() if file == shard):
            with safe_open(source, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            before += sum(tensor.nbytes for tensor in tensors.values())
            if converts:
                tensors = {
                    name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor
                    for name, tensor in tensors.items()
                }
            tensors |= inside
            after += sum(tensor.nbytes for tensor in tensors.values())
            save_file(tensors, target, metadata=metadata)
        else:
            shutil.copyfile(source, target)
            _overwrite(target, inside)
    if base.index:
        shutil.copyfile(base.directory / SAFE_WEIGHTS_INDEX_NAME, directory / SAFE_WEIGHTS_INDEX_NAME)
        if before != after:
            _correct_total_size(directory / SAFE_WEIGHTS_INDEX_NAME, after - before)
    return own if converts else None


def _edited_tensors(
    model: PreTrainedModel, base: BaseFiles, architecture: Architecture, edits: EditedWeights
) -> dict[tuple[str, str], tuple[torch.dtype, Tensor]]:
    """(shard, name) -> stored dtype, and the tensor with its edits in the orientation of the file.

    Its dtype is the stored one where that can hold every number of the model's dtype, else the model's.

    Raises:
        InputError: if the files do not hold the weights that the model had before it was edited.
    """
    shards = {name: shard for shard in base.shards for name in _tensor_names(base.directory / shard)}
    found: dict[tuple[str, str], tuple[torch.dtype, Tensor]] = {}
    for place in edits.places:
        path = _tensor_path(architecture, place)
        name = _stored_name(architecture, path, list(shards), base.directory)
        with safe_open(base.directory / shards[name], framework="pt") as file:
            whole: Tensor = file.get_tensor(name)
        together = place.expert is not None and whole.dim() == 3  # one tensor for all experts
        stored = whole[place.expert] if together else whole
        before, now = edits.base_weight(*place), edits.model.weight(*place)
        if _is_stored_transposed(model, architecture, place, together=together):
            before, now = before.T, now.T
        if not torch.equal(stored.to(before.dtype), before.cpu()):
            what = f"{name!r} in {base.directory} has changed since the model was loaded"
            raise InputError(what, remedy="Restore the files and edit again", code="MODEL_FILES_CHANGED")
        exact = torch.promote_types(stored.dtype, now.dtype) == stored.dtype
        value = now.detach().cpu().to(stored.dtype if exact else now.dtype)
        if together:
            others = found[shards[name], name][1] if (shards[name], name) in found else whole.to(value.dtype)
            others[place.expert] = value
            value = others
        found[shards[name], name] = (stored.dtype, value.contiguous())
    return found


def _tensor_path(architecture: Architecture, place: Place) -> str:
    """A matrix's name in a checkpoint, from the list of blocks on."""
    if place.expert is None:
        return f"{place.layer}.{architecture.path_of(place.module)}.weight"
    return f"{place.layer}.{architecture.stored_expert.format(place.expert)}"


def _is_stored_transposed(model: PreTrainedModel, architecture: Architecture, place: Place, *, together: bool) -> bool:
    """Whether a checkpoint has (d_in, d_out) for a matrix. Experts of their own are stored as linear layers."""
    block = model.get_submodule(f"{architecture.blocks}.{place.layer}")
    experts = experts_of(block, architecture)
    if place.expert is not None and experts is not None:
        return together and bool(experts.is_transposed)
    return is_transposed(block.get_submodule(architecture.path_of(place.module)))


def _stored_name(architecture: Architecture, path: str, names: list[str], directory: Path) -> str:
    """The name of a matrix in a checkpoint: some leave out the model's own prefix, or put another one before it.

    Args:
        path: its name from the list of blocks on.
    """
    whole = f"{architecture.blocks}.{path}"
    if whole in names:
        return whole
    end = f"{architecture.blocks.rpartition('.')[2]}.{path}"
    matching = [name for name in names if name == end or name.endswith(f".{end}")]
    if len(matching) != 1:
        what = f"{len(matching)} tensors in {directory} could be {whole!r}, expected one"
        remedy = "Save the base with transformers' save_pretrained first, and edit that"
        raise InputError(what, remedy=remedy, code="MODEL_TENSOR_AMBIGUOUS")
    return matching[0]


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _overwrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite tensors of a safetensors file with others of the same dtype and shape.

    The format: eight bytes (little-endian) with the length of a JSON header, the header, and then the data, which a
    tensor's ``data_offsets`` index.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, tensor in tensors.items():
            start, stop = header[name]["data_offsets"]
            data = tensor_bytes(tensor).tobytes()
            assert len(data) == stop - start
            file.seek(8 + length + start)
            file.write(data)


def _correct_total_size(path: Path, difference: int) -> None:
    """Adjust the index's total number of bytes after a change of dtype."""
    index = json.loads(path.read_text(encoding="utf-8"))
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int | float):
        metadata["total_size"] = int(metadata["total_size"]) + difference
        write_json(path, index, indent=2)


def _config_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a configuration names: transformers 4 calls it ``torch_dtype``, 5 ``dtype``."""
    found = config.get("dtype") or config.get("torch_dtype")
    return found.removeprefix("torch.") if isinstance(found, str) and found != "auto" else None


def _set_config_dtype(path: Path, dtype: str) -> None:
    """Change the dtype in a configuration file; everything else stays as it is, in its order."""
    config = _json_object(path)
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["torch_dtype"]  # both versions read it
    write_json(path, config | dict.fromkeys(names, dtype), indent=2)


def _json_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
