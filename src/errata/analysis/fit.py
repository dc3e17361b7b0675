"""What an edit of a model needs in memory, by calculation from its configuration, and on which devices that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from errata.analysis.cost import Bucket, SearchRows, search_memory
from errata.models.families import check_config
from errata.models.loading import loading, source_of
from errata.models.size import ModelSize

# A search of the default recipe: the bare prompt, five contexts of ten tokens, and the KL prompt.
ROWS_A_FACT = 7
_SLOTS, _REPLAYED, _WANTED = 16, 8, 3  # tokens before the injection, from there on, and of the target
_DOUBLE, _SINGLE = 8, 4


@dataclass(frozen=True, slots=True)
class EditNeeds:
    """Bytes that an edit needs.

    Attributes:
        weights: of the whole model.
        block: of the weights of one block.
        outside: of the weights outside the blocks: embedding and head.
        blocks: number of blocks.
        parts: what -> bytes that must be on the device besides weights.
    """

    weights: int
    block: int
    outside: int
    blocks: int
    parts: Mapping[str, int]

    @property
    def besides(self) -> int:
        return sum(self.parts.values())

    def verdict(self, free: float, *, is_cpu: bool) -> str:
        """How the model can be edited with this many bytes free on a device, in words.

        Args:
            is_cpu: whether the device is main memory, from which weights can only go to disk.
        """
        left = free - self.besides
        if self.weights <= left:
            return "fits"
        # accelerate keeps room for one block that it loads when it is needed.
        resident = int((left - self.outside - self.block) // self.block)
        if resident < 0:
            return "no"
        rest = "on disk" if is_cpu else "in main memory or on disk"
        return f"--device-map auto: {min(resident, self.blocks)} of {self.blocks} blocks stay, the others {rest}"


def size_of_model(name: str, *, trust_remote_code: bool = False) -> ModelSize:
    """The size of a model from its configuration alone: no weights and no tokenizer are needed.

    Raises:
        InputError: if there is no configuration.
        UnsupportedModelError: if such a model cannot be edited.
    """
    with loading(name):
        config = AutoConfig.from_pretrained(source_of(name), trust_remote_code=trust_remote_code)
        check_config(config)
        with torch.device("meta"):
            return ModelSize.of(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))


def edit_needs(size: ModelSize, dtype: torch.dtype, *, layers: int = 5, facts: int = 1) -> EditNeeds:
    """What ``memit`` needs for a batch. More facts are searched together where there is room.

    Args:
        dtype: of the weights.
        layers: number of written layers; the first is a quarter up the model.
        facts: that are searched together.
    """
    layers = min(layers, size.blocks)
    outside = 2 * size.vocabulary * size.width
    moment = layers * size.mlp_width**2 * _DOUBLE // size.experts
    rows = Bucket(ROWS_A_FACT * facts, _SLOTS, _REPLAYED, _WANTED * ROWS_A_FACT * facts, 0, _SLOTS)
    search = search_memory(size, SearchRows(facts, ((rows,),)), size.blocks // 4, dtype.itemsize)
    parts = {
        f"key statistics of {layers} layers, float64": moment,
        "their factors, float64": moment,
        "originals and sums of the written weights": layers
        * size.width
        * size.mlp_width
        * (dtype.itemsize + max(_SINGLE, dtype.itemsize)),
        f"search of {facts} fact{'s' if facts > 1 else ''}, {ROWS_A_FACT} rows each": search.total,
    }
    weights = size.parameters * dtype.itemsize
    block = max(size.parameters - outside, 0) * dtype.itemsize // size.blocks
    return EditNeeds(weights, block, weights - block * size.blocks, size.blocks, parts)
