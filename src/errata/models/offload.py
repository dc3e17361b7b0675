"""Models that accelerate spreads over several devices, main memory and disk.

Weights that do not fit on a device are on the ``meta`` device between uses: accelerate's hooks load a module's weights
before its forward pass and drop them afterwards. Here these weights are read and written in the store that the hooks
load from. A changed weight stays in main memory; the files on disk, which may be those of the model, are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.errors import InputError

PLANS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, slots=True)
class Spread:
    """Where accelerate puts the parts of a model.

    Attributes:
        plan: one of ``PLANS``, by which accelerate chooses; or module -> device number, ``cpu`` or ``disk``.
        max_memory: device number or ``cpu`` -> the most memory, such as ``20GiB``; what does not fit goes to disk.
    """

    plan: str | Mapping[str, int | str] = "auto"
    max_memory: Mapping[int | str, str] = field(default_factory=dict)

    def options(self, folder: str) -> dict[str, Any]:
        """Arguments of transformers' ``from_pretrained``.

        Args:
            folder: for weights whose form on disk is not that of the model.
        """
        plan = self.plan if isinstance(self.plan, str) else dict(self.plan)
        limits = {"max_memory": dict(self.max_memory)} if self.max_memory else {}
        return {"device_map": plan, "offload_folder": folder, **limits}


Device: TypeAlias = str | torch.device | Spread
"""Where a model is: on one device, or spread over several."""


def device_of(text: str) -> torch.device | Spread:
    """Read a device's name, or one of ``PLANS``, after which limits may follow: ``auto,0=20GiB,cpu=60GiB``.

    Raises:
        InputError: if the limits cannot be read.
        RuntimeError: if there is no such device.
    """
    plan, _, limits = text.partition(",")
    if plan not in PLANS:
        return torch.device(text)
    return Spread(plan, memory_limits(limits) if limits else {})


def memory_limits(text: str) -> dict[int | str, str]:
    """Read ``0=20GiB,cpu=60GiB``.

    Raises:
        InputError: if it is not a list of DEVICE=SIZE.
    """
    from accelerate.utils import convert_file_size_to_int

    limits: dict[int | str, str] = {}
    for part in text.split(","):
        device, _, size = (piece.strip() for piece in part.partition("="))
        try:
            if not (device.isdigit() or device == "cpu") or convert_file_size_to_int(size) <= 0:
                raise ValueError(part)
        except ValueError as error:
            what = f"--max-memory takes DEVICE=SIZE, got {part!r}"
            remedy = "Give numbers of GPUs and cpu with sizes, such as 0=20GiB,cpu=60GiB"
            raise InputError(what, remedy=remedy, code="MAX_MEMORY_INVALID") from error
        limits[int(device) if device.isdigit() else device] = size
    return limits


def execution_device(module: nn.Module) -> torch.device:
    """The device on which a module computes, wherever its weights are kept."""
    weight = module.get_parameter("weight")
    if not weight.is_meta:
        return weight.device
    found = getattr(getattr(module, "_hf_hook", None), "execution_device", "cpu")
    return torch.device("cpu" if found is None else found)


def read_parameter(model: PreTrainedModel, name: str) -> Tensor:
    """A parameter by its name from the model on; one that is kept in main memory or on disk is read from there."""
    parameter = model.get_parameter(name)
    if not parameter.is_meta:
        return parameter.detach()
    store, key = _store_of(model, name)
    found: Tensor = store[key]
    return found.detach()


def write_parameter(model: PreTrainedModel, name: str, value: Tensor) -> None:
    """Overwrite a parameter that is not on its device between uses.

    Args:
        value: of its shape and dtype.
    """
    store, key = _store_of(model, name)
    holder: Any = store
    if hasattr(holder, "dataset"):  # accelerate's PrefixedDataset
        holder, key = holder.dataset, f"{holder.prefix}{key}"
    tensors = getattr(holder, "state_dict", holder)  # its OffloadedWeightsLoader, which prefers them to files
    tensors[key] = value.detach().cpu().contiguous()


def stored_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The model's state by name, sorted; what is kept in main memory or on disk is read one tensor at a time."""
    for name, tensor in sorted(model.state_dict().items()):
        yield name, read_parameter(model, name) if tensor.is_meta else tensor


def _store_of(model: PreTrainedModel, name: str) -> tuple[Mapping[str, Tensor], str]:
    """The mapping that accelerate's hook of the nearest module loads a parameter from, and its key there."""
    parts = name.split(".")
    for count in range(len(parts) - 1, -1, -1):
        hook = getattr(model.get_submodule(".".join(parts[:count])), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if (store := getattr(one, "weights_map", None)) is not None:
                return store, ".".join(parts[count:])
    what = f"the weight {name!r} is on the meta device, and no hook of accelerate says where it is kept"
    raise InputError(what, remedy="Load the model with LanguageModel.load", code="WEIGHT_NOT_STORED")
