"""Products with bfloat16 copies of weights, for work whose result bears their rounding.

Activations, norms, attention and residual streams remain in float32: only the inputs of a matrix product and its output
are rounded. ``torch.autocast`` would round more, and would cast every weight at every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from errata.models.language_model import LanguageModel
from errata.models.replay import forward_replaced

_CPU_INSTRUCTIONS: Final = ("avx512_bf16", "amx_bf16", "arm_bf16")
_FIRST_GPU: Final = (8, 0)  # NVIDIA's compute capability since Ampere


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16; without them these are slower than in float32."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _FIRST_GPU
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name)) for name in _CPU_INSTRUCTIONS)
    return False


@contextmanager
def bfloat16_products(model: LanguageModel, first: int) -> Iterator[None]:
    """While the context is open, linear layers from a block on, and the head, multiply by bfloat16 copies of weights.

    The model's own weights are not touched; they must not change meanwhile. No gradient with respect to weights flows.

    Args:
        first: the first block.
    """
    parts = [module for block in model.blocks[first:] for module in block.modules()]
    with ExitStack() as stack:
        for module in (*parts, model.head):
            if isinstance(module, nn.Linear | Conv1D) and module.weight.dtype == torch.float32:
                stack.enter_context(forward_replaced(module, _Rounded(module)))
        yield


class _Rounded:
    """The forward pass of a linear layer with a bfloat16 copy of its weight."""

    def __init__(self, module: nn.Linear | Conv1D) -> None:
        weight = module.weight.detach()
        # Conv1D stores the transpose.
        self._weight = (weight.T if isinstance(module, Conv1D) else weight).to(torch.bfloat16).contiguous()
        self._bias = module.bias

    def __call__(self, given: Tensor) -> Tensor:
        product: Tensor = _Product.apply(given, self._weight)
        return product if self._bias is None else product + self._bias


class _Product(torch.autograd.Function):
    """x Wᵀ for x (..., d_in) and W (d_out, d_in) in bfloat16, in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(given.to(weight.dtype), weight).to(given.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight: Tensor = ctx.weight
        return (gradient.to(weight.dtype) @ weight).to(gradient.dtype), None
