"""An edited model's files: its base's, with nothing changed but the edited tensors.

Weights are copied shard by shard as bytes, and the edited tensors are overwritten in place: names, order, dtypes,
metadata and what is tied stay as they are. `config.json`, tokenizer and chat-template files are copied as bytes too,
since another version of transformers would write them in its own words, which older versions misread in silence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from errata.errors import InputError
from errata.models.base_files import CONFIG, BaseFiles, object_in
from errata.models.families import is_transposed
from errata.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Written:
    """What ``write_edited`` did beyond copying.

    Attributes:
        converted: (stored, written) dtypes where the base was loaded in another dtype than its own; else None.
        linked: files that are links to somewhere outside the base's directory, and were copied from there.
    """

    converted: tuple[str, str] | None = None
    linked: tuple[str, ...] = ()


def write_edited(model: LanguageModel, directory: Path) -> Written:
    """Write an edited model as its base is written: only the edited tensors differ.

    A model that was loaded in another dtype than its configuration says is written in the dtype it was edited in, and
    only the dtype in ``config.json`` differs. A base without safetensors files gets some.

    Args:
        directory: is empty, and new; see ``output.new_directory``.

    Raises:
        InputError: if the model was not loaded from files, or these are no longer what was loaded.
    """
    base = model.files
    if base is None:
        raise InputError(
            f"{model.name!r} was not loaded from files, so there is nothing that the rest could be copied from",
            remedy="Load it with LanguageModel.load, or save its patch instead",
        )
    names = base.kept()
    linked = base.linked([*names, *base.shards])
    converted = None
    if base.shards:
        converted = _write_shards(model, base, directory)
    else:
        model.model.save_pretrained(directory)
        for file in (CONFIG, "generation_config.json"):  # transformers' own wording of them
            (directory / file).unlink(missing_ok=True)
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base.directory / name, directory / name)
    stored = _config_dtype(object_in(directory / CONFIG))
    written = str(model.dtype).removeprefix("torch.")
    if converted is None and not base.shards and stored not in (None, written):
        converted = stored
    if converted is not None:
        _set_dtype(directory / CONFIG, written)
    return Written(None if converted is None else (converted, written), linked)


def _write_shards(model: LanguageModel, base: BaseFiles, directory: Path) -> str | None:
    """Write the weights. Returns the base's own dtype if all of them were converted from it to the model's."""
    edited = _edited_tensors(model, base)
    stored = next((dtype for dtype, _ in edited.values()), None)
    own = _config_dtype(object_in(base.directory / CONFIG)) or str(stored or model.dtype).removeprefix("torch.")
    converts = own != str(model.dtype).removeprefix("torch.")
    before = after = 0
    for shard in base.shards:
        source, target = base.directory / shard, directory / shard
        inside = {name: value for (file, name), (_, value) in edited.items() if file == shard}
        if converts or any(dtype != value.dtype for (file, _), (dtype, value) in edited.items() if file == shard):
            metadata, tensors = _read(source)
            before += sum(tensor.nbytes for tensor in tensors.values())
            if converts:
                tensors = {name: _in(tensor, model.dtype) for name, tensor in tensors.items()}
            tensors |= inside
            after += sum(tensor.nbytes for tensor in tensors.values())
            save_file(tensors, target, metadata=metadata)
        else:
            shutil.copyfile(source, target)
            _overwrite(target, inside)
    if base.index:
        shutil.copyfile(base.directory / SAFE_WEIGHTS_INDEX_NAME, directory / SAFE_WEIGHTS_INDEX_NAME)
        if before != after:
            _correct_size(directory / SAFE_WEIGHTS_INDEX_NAME, after - before)
    return own if converts else None


def _edited_tensors(model: LanguageModel, base: BaseFiles) -> dict[tuple[str, str], tuple[torch.dtype, Tensor]]:
    """(shard, name) -> stored dtype, and what the tensor is now, as the file has it.

    Its dtype is the stored one where that can hold every number of the model's dtype, else the model's.

    Raises:
        InputError: if the files do not hold what the model was before it was edited.
    """
    places = {name: shard for shard in base.shards for name in _names(base.directory / shard)}
    found = {}
    for layer in model.edits.layers:
        module = model.down_projection(layer)
        name = _stored_name(model, layer, list(places))
        with safe_open(base.directory / places[name], framework="pt") as file:
            stored: Tensor = file.get_tensor(name)
        before, now = model.edits.base_weight(layer), model.weight(layer)
        if is_transposed(module):
            before, now = before.T, now.T
        if not torch.equal(stored.to(before.dtype), before.cpu()):
            raise InputError(
                f"{name!r} in {base.directory} is not what was loaded from there: the files have changed since",
                remedy="Put them back as they were and edit again",
            )
        exact = torch.promote_types(stored.dtype, now.dtype) == stored.dtype
        value = now.detach().cpu().to(stored.dtype if exact else now.dtype)
        found[places[name], name] = (stored.dtype, value.contiguous())
    return found


def _stored_name(model: LanguageModel, layer: int, names: list[str]) -> str:
    """What a checkpoint calls W of a layer: some leave the model's own prefix out, or put one more before it."""
    row = model.architecture
    whole = f"{row.blocks}.{layer}.{row.down_projection}.weight"
    if whole in names:
        return whole
    end = f"{row.blocks.rpartition('.')[2]}.{layer}.{row.down_projection}.weight"
    matching = [name for name in names if name == end or name.endswith(f".{end}")]
    if len(matching) != 1:
        raise InputError(
            f"the files of {model.name!r} have {len(matching)} tensors that may be {whole!r}",
            remedy="Save the base with transformers' save_pretrained first, and edit that",
        )
    return matching[0]


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def _in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _overwrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of the same dtype and shape in the place of those in a safetensors file.

    The format: eight bytes (little-endian) with the length of a JSON header, the header, and behind it the data, in
    which ``data_offsets`` of a tensor are counted.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, tensor in tensors.items():
            start, stop = header[name]["data_offsets"]
            data = tensor.flatten().view(torch.uint8).numpy().tobytes()
            assert len(data) == stop - start
            file.seek(8 + length + start)
            file.write(data)


def _correct_size(path: Path, more: int) -> None:
    """Bytes of all tensors, which the index tells, after a change of dtype."""
    index = json.loads(path.read_text(encoding="utf-8"))
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int | float):
        metadata["total_size"] = int(metadata["total_size"]) + more
        path.write_text(json.dumps(index, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _config_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a configuration names: transformers 4 calls it ``torch_dtype``, 5 ``dtype``."""
    found = config.get("dtype") or config.get("torch_dtype")
    return found.removeprefix("torch.") if isinstance(found, str) and found != "auto" else None


def _set_dtype(path: Path, dtype: str) -> None:
    """Let a configuration name another dtype, and leave all else in it as it is, in its order."""
    config = object_in(path)
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["torch_dtype"]  # which both versions read
    config |= dict.fromkeys(names, dtype)
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
