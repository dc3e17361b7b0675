"""From a model's name to what transformers loads, the model's outline without its weights, and readable load errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from errata.errors import ErrataError, InputError
from errata.lab.package import lab_directory
from errata.models.families import check_config
from errata.models.gguf import as_directory, check_is_model, gguf_in, is_gguf
from errata.models.hub import check_reachable
from errata.models.prompts import probe_row, unembedded
from errata.models.size import ModelSize, stored_dtype
from errata.models.small_models import SMALL_MODELS, fetched, is_small_model
from errata.utils.text import similar


@dataclass(frozen=True, slots=True)
class Outline:
    """A model without its weights: configuration and tokenizer, which are quick to read."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    context_length: int  # the most tokens that it takes
    layers: int  # the number of blocks
    config: PreTrainedConfig
    trust_remote_code: bool = False  # whether code that comes with it may run
    # tokens, by id, that the tokenizer knows and the model has no embedding for
    unembedded: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, *, trust_remote_code: bool = False) -> Outline:
        """Read configuration and tokenizer.

        Raises:
            InputError: if nothing can be loaded.
            UnsupportedModelError: if such a model cannot be edited.
        """
        with loading(name):
            source = source_of(name)
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            check_config(config)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            text = config.get_text_config(decoder=True)
            layers = int(text.num_hidden_layers)
            beyond = unembedded(tokenizer, int(text.vocab_size))
            probe_row(tokenizer)
            return cls(name, tokenizer, context_length_of(config), layers, config, trust_remote_code, beyond)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the configuration names for the weights, else float32."""
        return stored_dtype(self.config)

    @property
    def size(self) -> ModelSize:
        return ModelSize.of(self.empty_model())

    def empty_model(self) -> PreTrainedModel:
        """The model without weights: its modules and their shapes, on the meta device."""
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                self.config, trust_remote_code=self.trust_remote_code
            )
        return model

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises InputError if a layer does not exist."""
        check_layers_exist(layers, self.layers, self.name)


def check_layers_exist(layers: Sequence[int], count: int, name: str) -> None:
    """Raises InputError if a layer does not exist in a model of ``count`` blocks."""
    if bad := [layer for layer in layers if not 0 <= layer < count]:
        numbers = ", ".join(map(str, bad))
        missing = f"layer {numbers} does" if len(bad) == 1 else f"layers {numbers} do"
        what = f"{missing} not exist in {name!r}, which has {count} blocks"
        raise InputError(what, remedy=f"Give layers from 0 to {count - 1}", code="LAYER_UNKNOWN")


def context_length_of(config: PreTrainedConfig) -> int:
    """The most tokens that a model takes; a very large number where its configuration names no limit."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 1 << 30)


def source_of(name: str) -> str:
    """The directory or hub name that transformers loads for a model's name. A GGUF file is converted first.

    Raises:
        InputError: if it is a file that is not a model, or a small model that has not been downloaded.
        OSError: if the path does not exist, or the hub is needed and cannot be reached.
    """
    if name == "lab":
        return str(lab_directory())
    if is_hub_name(name):
        try:
            check_reachable(name)
        except OSError as error:
            close = similar(name.lower(), SMALL_MODELS)
            raise OSError(f"{error}. Did you mean {close[0]!r}?" if close else str(error)) from error
        return name
    file = gguf_of(name)
    if file is not None:
        return str(as_directory(file))
    path = local_path(name)
    if path.is_file():
        check_is_model(path)
    if not path.is_dir():
        raise OSError("there is no such directory or file")
    return str(path)


def gguf_of(name: str) -> Path | None:
    """The GGUF file that a model's name refers to; None if it refers to something else, or nothing.

    Raises:
        InputError: for a directory with several of them, and a small model that has not been downloaded.
    """
    if name == "lab" or is_hub_name(name):
        return None
    path = local_path(name)
    if path.is_dir():
        return gguf_in(path)
    return path if is_gguf(path) else None


def local_path(name: str) -> Path:
    """The path of a model that is neither ``lab`` nor on the hub.

    Raises:
        InputError: for a small model that has not been downloaded.
    """
    return fetched(name) if is_small_model(name) else Path(name)


def lasting_name(name: str) -> str:
    """A model's name that is valid in every working directory: local paths become absolute."""
    path = Path(name)
    return str(path.resolve()) if name != "lab" and (path.is_dir() or path.is_file()) else name


def transformers_name(name: str) -> str:
    """The name by which transformers and PEFT can load a model that errata knows by ``name``.

    For a small model this is its original on the hub, from which a downloaded GGUF file differs by rounding; for
    ``lab`` and a GGUF file the directory that errata loads; otherwise ``lasting_name``.

    Raises:
        InputError: for a directory with several GGUF files.
    """
    if is_small_model(name):
        return SMALL_MODELS[name].repository
    return source_of(name) if name == "lab" or gguf_of(name) is not None else lasting_name(name)


def local_directory(source: str, config: PreTrainedConfig) -> Path:
    """The directory of the files that transformers reads for ``source``: itself, or the hub's snapshot.

    Args:
        source: from ``source_of``.
        config: the configuration loaded from there.
    """
    if Path(source).is_dir():
        return Path(source)
    commit = getattr(config, "_commit_hash", None)  # names the snapshot that the configuration came from
    found = cached_file(source, "config.json", _commit_hash=commit)
    if found is None:
        raise OSError("its files are not in the hub's cache")
    return Path(found).parent


def is_hub_name(name: str) -> bool:
    """Whether a name can only be a model on the hub: not ``lab``, no small model, nothing local, not like a path."""
    is_path = name.endswith(("/", ".gguf")) or name.startswith((".", "/", "~")) or name.count("/") > 1
    return not (name == "lab" or is_path or is_small_model(name) or Path(name).is_dir() or Path(name).is_file())


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn any error from reading a missing, damaged or hostile model into an InputError of one line.

    transformers, huggingface_hub and torch raise dozens of types for malformed files, and tokenizers raises plain
    Exceptions or a Rust panic, which is not an Exception at all.
    """
    try:
        yield
    except (ErrataError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt and the like
        raise InputError(
            f"no model could be loaded from {name!r}: {_in_one_line(error)}",
            remedy="Give 'lab', a directory with config.json, weights and tokenizer, a GGUF file, a name of "
            "`errata models list`, or a reachable hub name",
            code="MODEL_NOT_LOADED",
        ) from error


def _in_one_line(error: BaseException) -> str:
    """The first line of an error, with its type where the text alone says too little."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    if not isinstance(error, OSError | ValueError | SafetensorError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:300].rstrip(".")
