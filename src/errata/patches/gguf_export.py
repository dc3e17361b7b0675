"""Patches for llama.cpp and Ollama: as a LoRA adapter in a GGUF file, or as a copy of a GGUF model with the edit in it.

llama.cpp adds scale · alpha / r · B (A k) to W k, where r is the number of B's columns. The pair of a weight NAME is
stored as `NAME.lora_a`, (r, d_in), and `NAME.lora_b`, (d_out, r). Weights in GGUF are (d_out, d_in) in every family,
also in GPT-2, whose checkpoints store Wᵀ. Source: llama.cpp, `src/llama-adapter.cpp` and `src/llama-graph.cpp`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from errata.errors import InputError, UnsupportedModelError
from errata.models.gguf import reading_gguf
from errata.models.language_model import LanguageModel
from errata.models.weights import Place, Term
from errata.patches.factors import dense
from errata.patches.lora_export import Adapter
from errata.utils.files import new_file
from errata.utils.optional import require

MERGED_TYPES: Final = ("f32", "f16", "bf16", "base")
"""How an edited tensor of a merged model is stored; ``base`` is the type that it has in the base's file."""

# llama.cpp's name of each family of ours that it can run; it has no GPT-J and no OPT.
_ARCHITECTURES: Final = MappingProxyType(
    {
        "gpt2": "gpt2",
        "gpt_neox": "gptneox",
        "llama": "llama",
        "mistral": "llama",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
        "gemma2": "gemma2",
        "gemma3_text": "gemma3",
        "phi": "phi2",
        "phi3": "phi3",
    }
)
_TENSORS: Final = MappingProxyType({"down_proj": "ffn_down", "q_proj": "attn_q", "v_proj": "attn_v"})
_PAIRS_ADJACENT: Final = (
    "llama"  # rotary pairs are neighbouring rows of W_q in GGUF, and rows half a head apart in transformers
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a GGUF file."""

    shape: tuple[int, int]  # (d_out, d_in)
    type: str  # in lower case: f32, q4_1 …


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What an export must know of the GGUF file that will be served.

    Attributes:
        architecture: llama.cpp's name of the family.
        tensors: its matrices, by name.
    """

    path: Path
    architecture: str
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Read a file's header.

        Raises:
            InputError: if it is damaged, one of several parts, or not a model.
            MissingExtraError: without the package ``gguf``.
        """
        require("reading GGUF files", "gguf", "gguf")
        from gguf import GGUFReader

        with reading_gguf(path):
            reader = GGUFReader(path)
            fields = {name: reader.fields[name].contents() for name in _HEADER if name in reader.fields}
            tensors = {
                tensor.name: StoredTensor(_shape(tensor.shape), tensor.tensor_type.name.lower())
                for tensor in reader.tensors
                if len(tensor.shape) == 2
            }
        if int(fields.get("split.count", 1)) > 1 or fields.get("general.type", "model") != "model":
            what = f"{path} is one part of a split model" if "split.count" in fields else f"{path} is not a model"
            raise InputError(what, remedy="Give the GGUF file of the whole base model", code="GGUF_UNSUPPORTED")
        return cls(path, str(fields["general.architecture"]), tensors)

    def check_holds(
        self, places: Sequence[tuple[Place, tuple[int, int]]], architecture: str, made_for: str = ""
    ) -> None:
        """Raises InputError unless the file is of this architecture and has these matrices, as (place, shape).

        Args:
            made_for: the name of the model that the patches were made for, for the message.
        """
        problem = ""
        if self.architecture != architecture:
            problem = f"holds a model of the family {self.architecture!r}, the patches were made for {architecture!r}"
        for place, shape in () if problem else places:
            found = self.tensors.get(tensor_name(place))
            if found is None or found.shape != shape:
                has = "no matrix" if found is None else f"a matrix of {found.shape[0]} × {found.shape[1]}"
                problem = f"has {has} at {place.title}, the patches change one of {shape[0]} × {shape[1]} there"
                break
        if problem:
            named = f", {made_for!r}" if made_for else ""
            remedy = f"Give the GGUF file of the model that the patches were made for{named}"
            raise InputError(f"{self.path} {problem}", remedy=remedy, code="GGUF_OTHER_MODEL")


_HEADER: Final = ("general.architecture", "general.type", "split.count")


def _shape(stored: Any) -> tuple[int, int]:
    """(d_out, d_in): GGUF lists the fastest dimension first."""
    d_in, d_out = (int(size) for size in stored)
    return d_out, d_in


def gguf_architecture(config: PreTrainedConfig) -> str:
    """llama.cpp's name of a model's family.

    Raises:
        UnsupportedModelError: if llama.cpp cannot run it.
    """
    if config.model_type not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"llama.cpp cannot run models of the type {config.model_type!r}",
            remedy="Export a PEFT adapter (--lora), or merge the patches (errata merge) for another server",
            code="GGUF_FAMILY_UNSUPPORTED",
        )
    return _ARCHITECTURES[config.model_type]


def tensor_name(place: Place) -> str:
    """The name of a matrix in GGUF files."""
    return f"blk.{place.layer}.{_TENSORS[place.module]}.weight"


def row_order(place: Place, config: PreTrainedConfig) -> list[int] | None:
    """For each row of a matrix in a GGUF file its row in transformers; None where the order is the same.

    Of the families here, llama.cpp reorders Llama's (and Mistral's) queries and keys only. Source: llama.cpp,
    `convert_hf_to_gguf.py`, `LlamaModel.permute`.
    """
    if gguf_architecture(config) != _PAIRS_ADJACENT or place.module != "q_proj":
        return None
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    half = width // 2
    return [head * width + side * half + pair for head in range(heads) for pair in range(half) for side in range(2)]


def write_gguf_adapter(
    adapter: Adapter, path: Path, config: PreTrainedConfig, *, dtype: torch.dtype, about: Mapping[str, Any]
) -> None:
    """Write a LoRA adapter that llama.cpp and Ollama load beside the base's GGUF file, completely or not at all.

    Every tensor has the rank of the adapter, and alpha equals it, so that scale 1 is the edit.

    Args:
        adapter: its factors must be exact in ``dtype``; see ``Adapter.rounded``.
        config: of the base model.
        dtype: of the stored factors: float32 or float16.
        about: a record, stored as JSON under ``errata.about``.

    Raises:
        MissingExtraError: without the package ``gguf``.
        OutputError: if it cannot be written.
        UnsupportedModelError: if llama.cpp cannot run such models.
    """
    require("writing GGUF files", "gguf", "gguf")
    from gguf import GGUFType, GGUFWriter, Keys

    architecture = gguf_architecture(config)
    with new_file(path) as partial:
        writer = GGUFWriter(partial, architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(adapter.rank))
        writer.add_string("errata.about", json.dumps(about, ensure_ascii=False))
        for factors in adapter.layers:
            left, right = factors.padded(adapter.rank)
            if (order := row_order(factors.place, config)) is not None:
                left = left[order]
            name = tensor_name(factors.place)
            writer.add_tensor(f"{name}.lora_a", right.to(dtype).contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", left.to(dtype).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@dataclass(frozen=True, slots=True, eq=False)
class MergedTensor:
    """An edited matrix as a merged GGUF file stores it."""

    place: Place
    before: str  # its type in the base's file, in lower case
    after: str  # its type in the merged file
    stored: np.ndarray[Any, np.dtype[Any]]  # the bytes, as ``gguf`` packs them
    value: Float[Tensor, "d_out d_in"]  # the values that they encode, in transformers' order of rows, float32
    error: float  # ‖value − (W + ΔW)‖ / ‖ΔW‖, with W as the base's file has it

    @property
    def name(self) -> str:
        return tensor_name(self.place)


def merged_tensors(
    terms: Sequence[Term], base: GgufFile, config: PreTrainedConfig, *, stored_as: str, made_for: str = ""
) -> list[MergedTensor]:
    """W + ΔW of every edited matrix, summed in float64 and stored in a type.

    Args:
        terms: of all patches.
        config: of the base model.
        stored_as: one of ``MERGED_TYPES``.
        made_for: the name of the model that the patches were made for, for messages.

    Raises:
        InputError: if the file has no such matrices, or ``gguf`` cannot quantise to a tensor's type.
        UnsupportedModelError: if llama.cpp cannot run such models.
    """
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize, quantize

    changes: dict[Place, list[Term]] = {}
    for term in terms:
        changes.setdefault(term.place, []).append(term)
    shapes = [(place, found[0].shape) for place, found in sorted(changes.items())]
    base.check_holds(shapes, gguf_architecture(config), made_for)
    written = []
    with reading_gguf(base.path):
        tensors = {tensor.name: tensor for tensor in GGUFReader(base.path).tensors}
    for place, found in sorted(changes.items()):
        tensor = tensors[tensor_name(place)]
        order = row_order(place, config)
        change = dense(found).numpy()
        exact = dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        exact += change if order is None else change[order]
        kind = tensor.tensor_type if stored_as == "base" else GGMLQuantizationType[stored_as.upper()]
        try:
            stored = quantize(exact.astype(np.float32), kind)
        except NotImplementedError as error:
            raise InputError(
                f"{tensor.name} is stored as {kind.name.lower()}, to which the package gguf cannot quantise",
                remedy="Give --type f16 (or f32, bf16); llama.cpp's llama-quantize can then quantise the whole file",
                code="GGUF_QUANTISER_MISSING",
            ) from error
        value = dequantize(stored, kind)
        if not bool(np.isfinite(value).all()):
            what = f"the edited {tensor.name} has values beyond the range of {kind.name.lower()}"
            raise InputError(what, remedy="Give --type f32 or bf16", code="GGUF_OUT_OF_RANGE")
        error_norm = float(np.linalg.norm(value - exact) / np.linalg.norm(change))
        shown = torch.from_numpy(value.astype(np.float32))
        if order is not None:
            shown = torch.empty_like(shown).index_copy_(0, torch.tensor(order), shown)
        before, after = tensor.tensor_type.name.lower(), kind.name.lower()
        written.append(MergedTensor(place, before, after, stored, shown, error_norm))
    return written


def write_gguf_model(base: Path, tensors: Mapping[str, tuple[np.ndarray[Any, np.dtype[Any]], str]], path: Path) -> None:
    """Copy a GGUF file with some tensors replaced; all other tensors and all metadata are copied byte for byte.

    Only the types and offsets of tensors change in the header, so that it keeps its length.

    Args:
        tensors: of some tensors the new data, packed as ``gguf.quants.quantize`` does it, and its type (f32, q4_1 …).
        path: of the copy; not ``base`` itself.

    Raises:
        InputError: if ``base`` is damaged.
        OutputError: if the copy cannot be written.
    """
    from gguf import GGMLQuantizationType, GGUFReader

    with reading_gguf(base):
        reader = GGUFReader(base, "c")  # changes to the header stay in memory
    pieces: list[Any] = []
    offset = 0
    for tensor in sorted(reader.tensors, key=lambda found: found.data_offset):
        if tensor.name in tensors:
            data, kind = tensors[tensor.name]
            piece: Any = np.ascontiguousarray(data).tobytes()
            tensor.field.parts[4][0] = GGMLQuantizationType[kind.upper()]
        else:
            piece = reader.data[tensor.data_offset : tensor.data_offset + tensor.n_bytes]
        tensor.field.parts[5][0] = offset
        padding = -len(piece) % int(reader.alignment)
        pieces += [piece, bytes(padding)]
        offset += len(piece) + padding
    with new_file(path) as partial, partial.open("wb") as out:
        out.write(reader.data[: reader.data_offset].tobytes())
        for piece in pieces:
            out.write(piece)


@contextmanager
def weights_replaced(model: LanguageModel, tensors: Sequence[MergedTensor]) -> Iterator[None]:
    """The model with the weights of a merged file while the context is open; afterwards it is as before."""
    before = {tensor.place: model.weight(*tensor.place).clone() for tensor in tensors}
    try:
        for tensor in tensors:
            model.set_weight(tensor.place.layer, tensor.value, tensor.place.module)
        yield
    finally:
        for place, weight in before.items():
            model.set_weight(place.layer, weight, place.module)
