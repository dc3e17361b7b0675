"""GGUF files as plain transformers directories: converted once, cached, and loaded from there like any model.

The conversion is transformers' own. Properties that it drops are restored from the file's metadata; files with
properties that cannot be restored are rejected, because the model would silently answer differently.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from errata.errors import InputError, MissingExtraError
from errata.models.families import check_config
from errata.models.hub import first_line
from errata.models.size import check_fits
from errata.utils.files import cache_directory, file_digest, new_directory, write_json
from errata.utils.locks import in_turn

SUFFIX: Final = ".gguf"
CONVERSION: Final = 1  # part of the cache's keys: increase it when the result of a conversion changes

_MAGIC: Final = b"GGUF"
_WEIGHTS: Final = ("*.safetensors", "*.bin")  # a directory with one of these is a plain model
_COPIES: Final = 2  # of the weights, and of the largest tensor, in memory at the peak of a conversion

# How llama.cpp splits text before it merges bytes, by the name in `tokenizer.ggml.pre`. Source: llama-vocab.cpp.
# transformers treats every unknown name as GPT-2's.
_AS_GPT2: Final = frozenset(
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling roberta-bpe exaone4 gigachat mellum a.x-4.0 "
    "jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code".split()
)
_DIGITS_FIRST: Final = frozenset("smollm starcoder refact command-r codeshell exaone minerva-7b".split())
_STOPS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")  # each of them ends a reply
_ORIGINAL: Final = "Use the model in its original form (safetensors)"


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic bytes, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def gguf_in(directory: Path) -> Path | None:
    """The only GGUF file of a directory without other weights, else None.

    Raises:
        InputError: if there are several.
    """
    found = sorted(path for path in directory.glob(f"*{SUFFIX}") if path.is_file())
    if not found or any(path for pattern in _WEIGHTS for path in directory.glob(pattern)):
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        what = f"{directory} holds {len(found)} GGUF files: {names}"
        raise InputError(what, remedy="Choose one with --gguf NAME", code="GGUF_AMBIGUOUS")
    return found[0]


def check_is_model(path: Path) -> None:
    """Raises InputError for a file that was given as a model and is not one, naming what it is."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                format_ = str((file.metadata() or {}).get("format", ""))
        except (OSError, SafetensorError):
            problem = "named like a .safetensors file but is not one"
            remedy = "It may be damaged; write or download it again"
        else:
            if format_.startswith("errata-patch"):
                raise InputError(
                    f"{path} is a patch, not a model",
                    remedy=f"Apply it to its base first: errata apply {path} --out STACK; then use --model STACK",
                    code="MODEL_IS_A_PATCH",
                )
            if format_.startswith("errata-trained-editor"):
                problem = "the trained part of an editor, not a model"
                remedy = "Name it in a recipe file for `errata edit --recipe`"
            else:
                problem = "a file of weights, not a model"
                remedy = "Give the directory that holds it with its config.json and tokenizer"
    elif path.suffix == SUFFIX:
        problem = "named like a GGUF file but is not one"
        remedy = "It may be damaged; download the file again"
    else:
        problem, remedy = "a file, not a model", "Give a GGUF file or a model's directory"
    raise InputError(f"{path} is {problem}", remedy=remedy, code="MODEL_IS_FILE")


def converted_directory(file: Path, digest: str | None = None) -> Path:
    """The cache directory of a GGUF file's conversion, which may not exist yet.

    Args:
        digest: the file's SHA-256, if known.
    """
    return cache_directory("converted") / f"{(digest or file_digest(file))[:32]}-{CONVERSION}"


def as_directory(file: Path) -> Path:
    """A plain transformers directory with a GGUF file's weights in float32, converted unless cached.

    Raises:
        InputError: if the file cannot be converted without loss, or its weights do not fit in memory.
        MissingExtraError: without the package ``gguf``.
        OutputError: if the cache cannot be written.
    """
    target = converted_directory(file)
    if not target.is_dir():
        with in_turn(target.with_name(f"{target.name}.lock"), f"the conversion of {file.name}"):
            if not target.is_dir():  # another process may have converted it meanwhile
                _convert(file, target)
    return target


@dataclass(frozen=True, slots=True)
class _Header:
    """A file's metadata without arrays, and the number of entries of each tensor."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, int]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def of_model(self, key: str) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}")

    def of_tokenizer(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")


def _read_header(file: Path) -> _Header:
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError as error:
        raise MissingExtraError("reading GGUF files", "gguf") from error
    with reading_gguf(file):
        reader = GGUFReader(file)
        metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if field.types and field.types[0] != GGUFValueType.ARRAY
        }
        return _Header(metadata, {tensor.name: int(np.prod(tensor.shape)) for tensor in reader.tensors})


@contextmanager
def reading_gguf(file: Path) -> Iterator[None]:
    """Turn any error from reading a damaged file into an InputError."""
    try:
        yield
    except (ArithmeticError, AttributeError, ImportError, LookupError, OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} cannot be converted: {first_line(error)}",
            remedy="The file may be damaged, or of a kind that transformers cannot read; compare its checksum with "
            "the publisher's, or use the model in its original form",
            code="GGUF_UNREADABLE",
        ) from error


def _convert(file: Path, target: Path) -> None:
    header = _read_header(file)
    _check(file, header)
    numbers = sum(header.tensors.values())
    peak = _COPIES * (numbers + max(header.tensors.values(), default=0)) * 4
    check_fits(file.name, peak, torch.device("cpu"), purpose="to be converted to float32")
    with new_directory(target) as partial, tempfile.TemporaryDirectory() as empty:
        # An empty directory and the file's absolute path, so that nothing but the file is read.
        where = {"pretrained_model_name_or_path": empty, "gguf_file": str(file.resolve())}
        with reading_gguf(file):
            config = AutoConfig.from_pretrained(**where)
            check_config(config)
            model = _plain_model(where, config, numbers)
            tokenizer = AutoTokenizer.from_pretrained(**where)
            _set_split_rules(tokenizer, header)
        tokenizer.model_max_length = int(header.of_model("context_length") or tokenizer.model_max_length)
        _set_stops(model, header)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _rewrite(partial / "config.json", _portable_config)
        _rewrite(partial / "tokenizer_config.json", _portable_tokenizer)


def _check(file: Path, header: _Header) -> None:
    """Raises InputError for properties that transformers would drop."""
    problem = ""
    scaling = header.of_model("rope.scaling.type")
    if int(header.metadata.get("split.count") or 1) > 1:
        problem = "is one part of a model that is split over several files"
    elif "rope_freqs.weight" in header.tensors:
        problem = "scales its rotary positions by a tensor that cannot be converted"
    elif scaling not in (None, "none") and float(header.of_model("rope.scaling.factor") or 1) != 1:
        problem = f"scales its rotary positions ({scaling}), which cannot be converted"
    if problem:
        raise InputError(f"{file} {problem}", remedy=_ORIGINAL, code="GGUF_UNSUPPORTED")


def _plain_model(where: Mapping[str, str], config: PreTrainedConfig, numbers: int) -> PreTrainedModel:
    """The model in float32, without traces of its source.

    Raises:
        ValueError: if some of the file's numbers are unused, or some of the model's weights are not in the file.
    """
    both: Any = AutoModelForCausalLM.from_pretrained(
        **where,
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    loaded, found = both
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{len(missing)} of its weights are not in the file, such as {missing[0]!r}")
    plain_config = AutoConfig.for_model(
        **{
            name: _shortest(value)
            for name, value in config.to_dict().items()
            if name not in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")
        }
    )
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(plain_config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    taken = sum(parameter.numel() for parameter in model.parameters())
    if taken != numbers:
        raise ValueError(f"its tensors hold {numbers:,} numbers, and the model would take {taken:,} of them")
    return model


def _shortest(value: Any) -> Any:
    """The file stores float32: the shortest decimal with the same float32 value is the intended one (1e-05)."""
    if isinstance(value, dict):
        return {key: _shortest(item) for key, item in value.items()}
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _set_split_rules(tokenizer: PreTrainedTokenizerBase, header: _Header) -> None:
    """Pre-tokenise as the vocabulary was trained.

    Raises:
        ValueError: if the file's rules are unknown: the model would get other tokens than in training.
    """
    if header.of_tokenizer("model") != "gpt2":
        return
    rules = header.of_tokenizer("pre")
    backend = tokenizer.backend_tokenizer
    if rules in _DIGITS_FIRST:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif rules not in _AS_GPT2 and not isinstance(backend.pre_tokenizer, pre_tokenizers.Sequence):
        raise ValueError(f"its rules for splitting text are unknown ({rules or 'none are named'})")


def _set_stops(model: PreTrainedModel, header: _Header) -> None:
    """Generation ends at each of the file's tokens for the end of a text or turn."""
    stops = [int(token) for name in _STOPS if (token := header.of_tokenizer(name)) is not None]
    stops = list(dict.fromkeys(stops))
    if stops and model.generation_config is not None:
        model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_json(path, content, indent=2)


def _portable_config(config: dict[str, Any]) -> None:
    """Rotary bases in the form that transformers 4 reads too: it ignores that of version 5 and uses its defaults."""
    ropes = config.pop("rope_parameters", None) or {}
    whole = ropes.get("full_attention", ropes)
    if "rope_theta" in whole:
        config["rope_theta"] = whole["rope_theta"]
        config["rope_scaling"] = None
    if "rope_theta" in (local := ropes.get("sliding_attention", {})):
        config["rope_local_base_freq"] = local["rope_theta"]


def _portable_tokenizer(config: dict[str, Any]) -> None:
    """A tokenizer class that transformers 4 has too, and no local paths."""
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("name_or_path", "is_local", "local_files_only"):
        config.pop(name, None)
