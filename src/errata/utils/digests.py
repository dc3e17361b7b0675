"""The bytes of tensors, for digests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tensor_bytes(tensor: Tensor) -> Any:
    """The values of a tensor as a buffer of bytes in row-major order, which ``hashlib`` takes; on the CPU."""
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()
