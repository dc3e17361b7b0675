"""The forms of ``errata export``: how each answers when it is served, how it is written, and how to serve it."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from errata.cli.terminal import console, echo, warn
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline, gguf_of, source_of, transformers_name
from errata.models.small_models import is_small_model, small_model
from errata.patches.gguf_export import (
    GgufFile,
    gguf_architecture,
    merged_tensors,
    weights_replaced,
    write_gguf_adapter,
    write_gguf_model,
)
from errata.patches.lora_export import WEIGHTS, Adapter, vllm_rank
from errata.patches.patch import Patch
from errata.utils.text import counted, dtype_name, size_text

ADAPTER_TYPES = {"f32": torch.float32, "f16": torch.float16}
"""How the factors of an adapter in GGUF can be stored."""


class Form(ABC):
    """One form of export.

    Attributes:
        host: the name of the model that will serve it, and its dtype; None: the base, in the dtype of the edit.
        served: the precision in which it answers, for texts.
    """

    host: tuple[str, torch.dtype] | None = None
    served: str

    @abstractmethod
    def serving(self, model: LanguageModel) -> AbstractContextManager[None]:
        """The model as it will be served, while the context is open."""

    @abstractmethod
    def write(self, asked: Mapping[str, Any] | None) -> None:
        """Write it, completely or not at all.

        Args:
            asked: the record of the facts that were asked again.
        """

    @abstractmethod
    def table(self) -> Table:
        """The edited matrices and what the export loses of their changes."""

    @abstractmethod
    def close(self) -> None:
        """Print what was written, and how to serve it."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """For ``--json``."""


class LoraForm(Form):
    """A directory for PEFT or vLLM."""

    def __init__(
        self, directory: Path, adapter: Adapter, outline: Outline, base: str, *, vllm: bool, dtype: torch.dtype | None
    ) -> None:
        """As ``errata export --lora``.

        Args:
            base: errata's name of the base model.
            dtype: in which the base will be served; None: with PEFT as it was edited, with vLLM as it is stored.
        """
        self._directory, self._adapter, self._base, self._vllm = directory, adapter, base, vllm
        self._empty = outline.empty_model()
        self._modules = adapter.modules(self._empty)
        self._rank = vllm_rank(adapter, outline.config) if vllm else adapter.rank
        if vllm and dtype is None:
            dtype = outline.dtype
        self.host = None if dtype is None else (base, dtype)
        self.served = "the dtype of the edit" if dtype is None else dtype_name(dtype)
        self._dtype = dtype
        # vLLM rounds adapters to the base's dtype; PEFT keeps them in float32.
        self._held = adapter.rounded(dtype) if vllm and dtype is not None else adapter

    def serving(self, model: LanguageModel) -> AbstractContextManager[None]:
        return self._held.attached(model)

    def write(self, asked: Mapping[str, Any] | None) -> None:
        self._adapter.write(self._directory, self._empty, base=self._base, rank=self._rank, about={"asked": asked})

    def table(self) -> Table:
        return _adapter_table(self._adapter, self._modules)

    def close(self) -> None:
        size = (self._directory / WEIGHTS).stat().st_size
        echo(f"Wrote {self._directory} ({_kind(self._adapter, self._rank)}, {size / 1e6:.2f} MB in float32).")
        _note_base(self._base, "vLLM" if self._vllm else "PEFT")
        if self._vllm:
            assert self._dtype is not None
            place = str(self._directory)
            base = "ORIGINAL" if _is_gguf_file(self._base) else transformers_name(self._base)
            name = self._directory.absolute().name
            _show_command(
                "Serve it; requests choose the edit by the model name " + repr(name),
                f"vllm serve {shlex.quote(base)} --dtype {dtype_name(self._dtype)} --enable-lora "
                f"--max-lora-rank {self._rank} --lora-modules {shlex.quote(f'{name}={place}')}",
            )

    def record(self) -> dict[str, Any]:
        return {
            "base_model_name_or_path": transformers_name(self._base),
            "rank": self._rank,
            "exact": self._adapter.is_exact,
            "layers": self._adapter.layer_records(self._modules),
            "bytes": (self._directory / WEIGHTS).stat().st_size,
        }


class GgufAdapterForm(Form):
    """A LoRA adapter for llama.cpp and Ollama."""

    def __init__(
        self, path: Path, adapter: Adapter, outline: Outline, base: str, file: GgufFile | None, stored_as: str
    ) -> None:
        """As ``errata export --gguf``.

        Args:
            file: the base's, if it is known.
            stored_as: f32 or f16.
        """
        self._dtype = ADAPTER_TYPES[stored_as]
        self._path, self._base, self._file, self._type = path, base, file, stored_as
        self._exact, self._adapter = adapter, adapter.rounded(self._dtype)
        self._config = outline.config
        self._modules = adapter.modules(outline.empty_model())
        architecture = gguf_architecture(outline.config)
        if file is None:
            self.served = f"the dtype of the edit, adapter in {stored_as}"
        else:
            file.check_holds([(factors.place, factors.shape) for factors in adapter.layers], architecture, base)
            self.host = (_name_of(file, base), torch.float32)
            self.served = f"the weights of {file.path.name}, adapter in {stored_as}"

    def serving(self, model: LanguageModel) -> AbstractContextManager[None]:
        return self._adapter.attached(model)

    def write(self, asked: Mapping[str, Any] | None) -> None:
        about = {**self._exact.about(self._base, self._modules), "asked": asked}
        write_gguf_adapter(self._adapter, self._path, self._config, dtype=self._dtype, about=about)

    def table(self) -> Table:
        return _adapter_table(self._exact, self._modules)

    def close(self) -> None:
        kind, size = _kind(self._exact, self._exact.rank), size_text(self._path.stat().st_size)
        echo(f"Wrote {self._path} ({kind}, {size} in {self._type}).")
        if self._file is None:
            warn(
                f"note: the base {self._base!r} is not a GGUF file, so the quantisation that will be served is not "
                "known; to ask the facts in it, give the file as --gguf-base"
            )
        base = "BASE.gguf" if self._file is None else str(self._file.path)
        scaled = f"{self._path}:1.0"
        _show_command(
            "llama.cpp, with the scale given; 0 is the unedited model",
            f"llama-server -m {shlex.quote(base)} --lora-scaled {shlex.quote(scaled)}",
        )
        base = base if self._file is None else str(self._file.path.absolute())
        _show_command(
            "Ollama, whose scale is 1; write this as Modelfile", f"FROM {base}\nADAPTER {self._path.absolute()}"
        )

    def record(self) -> dict[str, Any]:
        return {
            "gguf_base": None if self._file is None else str(self._file.path),
            "rank": self._exact.rank,
            "exact": self._exact.is_exact,
            "type": self._type,
            "layers": self._exact.layer_records(self._modules),
            "bytes": self._path.stat().st_size,
        }


class GgufModelForm(Form):
    """A copy of the base's GGUF file in which the edited tensors are replaced."""

    def __init__(
        self, path: Path, patches: Sequence[Patch], outline: Outline, base: str, file: GgufFile, stored_as: str
    ) -> None:
        """As ``errata export --gguf-model``.

        Args:
            stored_as: one of ``MERGED_TYPES``.
        """
        self._path, self._file = path, file
        terms = [term for patch in patches for term in patch.terms]
        self._tensors = merged_tensors(terms, file, outline.config, stored_as=stored_as, made_for=base)
        self.host = (_name_of(file, base), torch.float32)
        types = ", ".join(dict.fromkeys(tensor.after for tensor in self._tensors))
        self.served = f"the weights of {file.path.name}, edited tensors in {types}"

    def serving(self, model: LanguageModel) -> AbstractContextManager[None]:
        return weights_replaced(model, self._tensors)

    def write(self, asked: Mapping[str, Any] | None) -> None:
        new = {tensor.name: (tensor.stored, tensor.after) for tensor in self._tensors}
        write_gguf_model(self._file.path, new, self._path)

    def table(self) -> Table:
        table = Table(
            caption="error: ‖stored − (W + ΔW)‖ / ‖ΔW‖ (Frobenius norm), i.e. the share of the change that rounding\n"
            "to the type disturbs",
            caption_justify="left",
        )
        table.add_column("tensor", overflow="fold")
        for head in ("before", "after", "error"):
            table.add_column(head, justify="right")
        for tensor in self._tensors:
            table.add_row(tensor.name, tensor.before, tensor.after, f"{tensor.error:.2g}")
        return table

    def close(self) -> None:
        count = counted(len(self._tensors), "tensor")
        echo(f"Wrote {self._path} ({count} replaced, {size_text(self._path.stat().st_size)}).")
        echo(f"All other tensors and all metadata are those of {self._file.path}, byte for byte.")
        _show_command("llama.cpp", f"llama-server -m {shlex.quote(str(self._path))}")
        _show_command("Ollama; write this as Modelfile", f"FROM {self._path.absolute()}")

    def record(self) -> dict[str, Any]:
        tensors = [
            {"name": tensor.name, "before": tensor.before, "after": tensor.after, "error": tensor.error}
            for tensor in self._tensors
        ]
        return {"gguf_base": str(self._file.path), "tensors": tensors, "bytes": self._path.stat().st_size}


def _name_of(file: GgufFile, base: str) -> str:
    """The name of the model in a GGUF file: the base's own name where it is that file."""
    return base if gguf_of(base) == file.path else str(file.path)


def _kind(adapter: Adapter, rank: int) -> str:
    exact = "exact" if adapter.is_exact else "approximate"
    padded = "" if rank == adapter.rank else f" padded from {adapter.rank}"
    layers = counted(len({factors.layer for factors in adapter.layers}), "layer")
    return f"{exact}, rank {rank}{padded}, {layers}"


def _show_command(title: str, command: str) -> None:
    """Print a command or a file for copying: never broken into lines."""
    echo(f"{title}:")
    for line in command.splitlines():
        console().print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _is_gguf_file(base: str) -> bool:
    """Whether the base is a GGUF file that has no known original."""
    return not is_small_model(base) and gguf_of(base) is not None


def _note_base(base: str, server: str) -> None:
    """Note which base model adapter_config.json names, where the server cannot load it by errata's name."""
    written = transformers_name(base)
    start = f"note: adapter_config.json names the base model {written}, because {server} cannot load {base!r}"
    if is_small_model(base):
        model = small_model(base)
        copied = (
            f". The adapter was made for a copy with {model.note}, so its answers may differ from those measured. For "
            f"exactly that copy, attach the adapter to {source_of(base)} (printed by `errata models path {base}`)"
        )
        warn(start + ("" if model.here == model.original else copied))
    elif base == "lab":
        warn(f"{start}; to serve it on another machine, copy that directory there")
    elif _is_gguf_file(base):
        warn(
            f"{start}. That directory is errata's copy on this machine. On another machine, give {server} the original "
            "model that the file was made from (ORIGINAL), by its name on the hub or its directory there; its weights "
            "differ from the file's by rounding, so answers may differ from those measured"
        )


def _adapter_table(adapter: Adapter, modules: Sequence[str]) -> Table:
    table = Table(
        caption="rank: adapter rank of required rank; retained: share of the sum of ΔW's singular values;\n"
        "error: ‖ΔW − BA‖ / ‖ΔW‖ (Frobenius norm)",
        caption_justify="left",
    )
    table.add_column("layer", justify="right")
    table.add_column("module", overflow="fold")
    for head in ("rank", "retained", "error"):
        table.add_column(head, justify="right")
    for factors, path in zip(adapter.layers, modules, strict=True):
        rank = f"{factors.rank} of {factors.exact_rank}"
        error = "0" if factors.rank == factors.exact_rank else f"{factors.error:.2g}"
        table.add_row(str(factors.layer), path, rank, f"{factors.retained_share:.1%}", error)
    return table
