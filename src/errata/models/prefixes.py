"""The keys and values of what lies before an injection, for many texts that begin alike.

Every fact is read in the same few contexts, so most of what lies before its subject is the same for all facts. A stem
that texts share is run once, and what a text has of its own is run behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from errata.models.language_model import LanguageModel
from errata.models.overriding import forward_replaced
from errata.models.prompts import pad


def run_prefixes(
    model: LanguageModel, prefixes: Sequence[Sequence[int]], stems: Sequence[int]
) -> tuple[DynamicCache, Tensor]:
    """Keys and values of each prefix, left-padded, so that what is read next lies directly behind it.

    That the tokens are contiguous matters: sliding windows count slots, padding included. The layers of the cache keep
    all tokens, for the same reason also in models with sliding windows, whose masks see to it.

    Args:
        prefixes: token ids, not all of them empty.
        stems: for each prefix, how many of its first tokens are to be run once for all prefixes that share them.

    Returns:
        the cache, and its mask (prefixes, slots): 1 for a token, 0 for padding.
    """
    device = model.device
    heads = [tuple(prefix[:stem]) for prefix, stem in zip(prefixes, stems, strict=True)]
    tails = [tuple(prefix[stem:]) for prefix, stem in zip(prefixes, stems, strict=True)]
    distinct = [head for head in dict.fromkeys(heads) if head]
    cache = DynamicCache()
    mask = torch.zeros(len(prefixes), 0, dtype=torch.long, device=device)
    if distinct:
        batch = pad(distinct, left=True, device=device)
        _extend(model, cache, batch.input_ids, batch.attention_mask, batch.position_ids)
        # A text without a stem gets some other's slots, and none of them may be seen.
        number = {head: index for index, head in enumerate(distinct)}
        row = torch.tensor([number.get(head, 0) for head in heads], device=device)
        has_stem = torch.tensor([bool(head) for head in heads], device=device)
        mask = batch.attention_mask[row] * has_stem[:, None]
        _rearrange(cache, lambda state: state[row])
    stem_slots = mask.shape[1]
    tail_lengths = torch.tensor([len(tail) for tail in tails], device=device)
    if any(tails):
        # Right-padded: nothing that is read here lies behind the padding, so causality hides it.
        batch = pad(tails, left=False, device=device)
        positions = batch.position_ids + mask.sum(1, keepdim=True)
        _extend(model, cache, batch.input_ids, torch.cat([mask, torch.ones_like(batch.input_ids)], 1), positions)
    # Shift each row so that its last token stands in the last slot.
    lengths = mask.sum(1) + tail_lengths
    slots = int(lengths.max())
    slot = torch.arange(slots, device=device)
    source = (stem_slots + tail_lengths[:, None] - slots + slot).clamp_min(0)
    if any(tails):
        _rearrange(cache, lambda state: torch.take_along_dim(state, source[:, None, :, None], dim=2))
    return cache, (slot >= slots - lengths[:, None]).long()


def _extend(model: LanguageModel, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
    # Of the last block only the keys and values are wanted, and its MLP comes behind them.
    last = len(model.blocks) - 1
    skipped = forward_replaced(model.mlp(last), lambda hidden: hidden) if model.mlp_is_module else nullcontext()
    with torch.no_grad(), skipped:
        model.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )


def _rearrange(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> None:
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys, layer.values = change(layer.keys), change(layer.values)
