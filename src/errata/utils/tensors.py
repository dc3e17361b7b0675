"""Helpers for tensors: float64, their bytes and checksums, and the singular values of products."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from errata.utils.files import open_file


def float64_device(device: torch.device) -> torch.device:
    """The device for float64: the same one, except for Apple's GPUs (mps), which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64 on ``float64_device``; moved first, since the conversion would fail on mps."""
    return tensor.to(float64_device(tensor.device)).double()


def from_float64(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The opposite of ``to_float64``; converted first, since mps has no float64."""
    return tensor.to(dtype).to(device)


def svd_of_product(
    left: Float[Tensor, "d_out n"], right: Float[Tensor, "n d_in"]
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, "k"], Float[Tensor, "k d_in"]]:
    """U, σ (largest first) and Vᵀ of left · right in float64, with k = min(d_out, n, d_in), without forming it.

    The singular values of L·R are those of the small matrix between the orthogonal factors of L and Rᵀ.
    """
    outer, upper = torch.linalg.qr(to_float64(left))
    inner, lower = torch.linalg.qr(to_float64(right).T)
    u, values, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return outer @ u, values, vh @ inner.T


def tensor_bytes(tensor: Tensor) -> Any:
    """The values of a tensor as a buffer of bytes in row-major order, which ``hashlib`` takes; on the CPU."""
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()


@contextmanager
def opened(path: Path, form: str) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """A safetensors file of ours while the context is open, and its metadata.

    Args:
        form: the expected format.

    Raises:
        OSError, SafetensorError, ValueError: if it cannot be read or is of another format.
    """
    with open_file(path):  # gives clearer errors than safetensors
        pass
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != form:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {form!r}")
        yield file, metadata


def read_checked(path: Path, form: str, key: str) -> tuple[str, dict[str, Tensor]]:
    """The header and the tensors of a safetensors file whose metadata have its format, its header and their checksum.

    Args:
        form: the expected format.
        key: under which the metadata have the header.

    Raises:
        OSError, SafetensorError, KeyError, ValueError: if it cannot be read, is of another format, or is damaged.
    """
    with opened(path, form) as (file, metadata):
        # Copies, since these tensors are mapped from the file, which might change after the check.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    if checksum(metadata[key], tensors) != metadata["sha256"]:
        raise ValueError("its checksum does not match its content")
    return metadata[key], tensors


def checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a file's header and its tensors: their names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
