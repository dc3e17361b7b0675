"""The embedded model as a package: its files, its world and its corpus."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from errata.errors import InputError
from errata.lab.corpus import running_text
from errata.lab.world import World
from errata.utils.files import new_directory, write_json

_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
# Key statistics use documents that training has not seen in this order and wording.
_STATISTICS_SEED = 7


def lab_directory() -> Path:
    """The embedded model as a plain transformers directory.

    Raises:
        InputError: if this installation has none.
    """
    directory = Path(str(resources.files("errata"))) / "lab" / "weights"
    if not (directory / "model.safetensors").is_file():
        what = "the embedded model is not part of this installation"
        raise InputError(what, remedy="Train it: errata lab train --out DIR", code="LAB_MISSING")
    return directory


def lab_world(directory: Path | None = None) -> World:
    """The world that the embedded model was trained on."""
    record = json.loads(((directory or lab_directory()) / "world.json").read_text(encoding="utf-8"))
    return World(seed=record["seed"], people=record["people"])


def lab_documents() -> Iterator[str]:
    """The text for key statistics of the embedded model."""
    return running_text(lab_world(), seed=_STATISTICS_SEED)


def lab_corpus_digest() -> str:
    """A digest of the world and the first 50 documents, which changes with ``lab_documents``."""
    digest = hashlib.sha256(json.dumps(lab_world().people, sort_keys=True).encode())
    digest.update("\n".join(text for text, _ in zip(lab_documents(), range(50), strict=False)).encode())
    return digest.hexdigest()


def write_lab(directory: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World) -> None:
    """Write the trained model in float16 with tokenizer and world, as ``lab_directory`` holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    nn.Module.to(half, torch.float16)
    half.load_state_dict(model.state_dict())
    half.config.dtype = torch.float16
    # "eager" was for training only.
    half.config._attn_implementation = "sdpa"
    half.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    # A class name that both transformers 4 and 5 know.
    config = {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(path, config, indent=2)
    record = {"seed": world.seed, "people": world.people}
    (directory / "world.json").write_text(json.dumps(record, ensure_ascii=False, indent=0), encoding="utf-8")


def save_lab(target: Path) -> None:
    """Copy the embedded model to a new directory, which plain transformers can load.

    Raises:
        InputError: if the directory exists and is not empty.
    """
    source = lab_directory()
    with new_directory(target) as partial:
        for name in (*_FILES, "world.json", "training.json"):
            if (source / name).exists():
                shutil.copyfile(source / name, partial / name)
