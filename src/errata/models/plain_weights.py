"""The plain weight of a down-projection, in one orientation whatever the module stores."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import UnsupportedModelError

# The numbers that an update can be added to, rounded to the nearest.
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_plain(module: nn.Module) -> None:
    """Refuse a down-projection that an update cannot be added to.

    Raises:
        UnsupportedModelError: as ``is_transposed``; or a plain module holds what is no plain weight: integers, packed
            bits, or a tensor of a quantisation library's own type.
    """
    is_transposed(module)
    weight = module.get_parameter("weight").data
    if weight.dtype not in _WEIGHT_DTYPES or type(weight) is not Tensor:
        kind = "" if type(weight) is Tensor else f"{type(weight).__module__}.{type(weight).__qualname__} of "
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _WEIGHT_DTYPES)
        raise UnsupportedModelError(
            f"the weight of the down-projection is a {kind}{weight.dtype}, expected a plain tensor of one of {names}",
            remedy="Load the unquantised checkpoint, or dequantise the model before editing",
        )


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores Wᵀ (d_in × d_out). Its type decides that: a square weight's shape says nothing.

    Raises:
        UnsupportedModelError: the module is neither exactly `nn.Linear` nor `Conv1D`. Subclasses are refused too, for
            theirs is not a plain weight: quantised, parametrised and adapter layers all derive from `nn.Linear`.
    """
    if type(module) is Conv1D:
        return True
    if type(module) is nn.Linear:
        return False
    raise UnsupportedModelError(
        f"the down-projection is a {type(module).__module__}.{type(module).__qualname__}, expected a plain nn.Linear "
        "or transformers' Conv1D",
        remedy="Load the model unquantised, and merge or remove adapters and parametrisations",
    )


def down_projection_weight(module: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """W in the one orientation, (d_out, d_in): `module(k) == W @ k + bias`.

    Returns:
        A view, detached: it shares the module's memory, so writing into it in place writes the model.

    Raises:
        UnsupportedModelError: as `is_transposed`.
    """
    transposed = is_transposed(module)
    weight: Tensor = module.get_parameter("weight").detach()
    return weight.T if transposed else weight
