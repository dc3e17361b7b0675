"""The files that a model was loaded from: which of them are its weights, and which say what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

CONFIG = "config.json"
# Everything that says what the model is, how it tokenises and how it is asked, in any version of transformers; and the
# licence. Not the README (it describes other weights), and no weights in other formats.
_KEPT = (
    CONFIG,
    "generation_config.json",
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
_WITH_CODE = (CONFIG, "tokenizer_config.json")  # where `auto_map` names a class in a Python file beside them


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """Where a model was loaded from.

    Attributes:
        directory: a local directory; of a model of the hub its snapshot in the cache.
        shards: names of its safetensors files; none where the weights are in another format.
        index: whether an index file says which tensor is in which of them.
    """

    directory: Path
    shards: tuple[str, ...]
    index: bool

    @classmethod
    def of(cls, directory: Path) -> BaseFiles:
        """Look at a model's directory; which weights are taken is decided as transformers does.

        Raises:
            ValueError: if the index cannot be used.
        """
        if (directory / SAFE_WEIGHTS_NAME).is_file():
            return cls(directory, (SAFE_WEIGHTS_NAME,), index=False)
        path = directory / SAFE_WEIGHTS_INDEX_NAME
        if not path.is_file():
            return cls(directory, (), index=False)
        shards = sorted(set(_weight_map(json.loads(path.read_text(encoding="utf-8")))))
        for name in shards:
            if Path(name).name != name:  # it would be written there, too
                raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} names a file that is not beside it: {name!r}")
        return cls(directory, tuple(shards), index=True)

    def kept(self) -> list[str]:
        """The files that are copied, weights left out, as paths within the directory."""
        found = {path for pattern in _KEPT for path in self.directory.glob(pattern)}
        if any("auto_map" in object_in(self.directory / name) for name in _WITH_CODE):
            found |= {path for path in self.directory.rglob("*.py") if path.is_file()}
        names = {path.relative_to(self.directory).as_posix() for path in found if path.is_file()}
        return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))

    def linked(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of its files that are links to somewhere else. The hub's cache keeps its files as links within it."""
        root = self.directory.resolve()
        if root.parent.name == "snapshots":
            root = root.parent.parent
        return tuple(name for name in names if not (self.directory / name).resolve().is_relative_to(root))


def object_in(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _weight_map(index: Any) -> list[str]:
    """The file of each tensor, as an index says.

    Raises:
        ValueError: if it says nothing of the kind.
    """
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} has no map from tensors to files")
    return list(files.values())
