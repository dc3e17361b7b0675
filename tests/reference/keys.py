"""The key of one fact: the input of W at the subject's last token, one whole forward pass for each context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site

from tests.reference.target import bare_lead, tokenise


def key(model: LanguageModel, fact: Fact, prefixes: Sequence[str], layer: int) -> Tensor:
    """k = ½ k(bare) + ½ mean over the prefixes of k(prefix); (d_in,) float64."""
    bare = _read(model, fact, "", model.down_projection(layer), reads_input=True)
    if not prefixes:
        return bare
    others = [_read(model, fact, f"{prefix}. ", model.down_projection(layer), reads_input=True) for prefix in prefixes]
    return 0.5 * bare + 0.5 * sum(others, torch.zeros_like(bare)) / len(others)


def state(model: LanguageModel, fact: Fact, layer: int, site: Site) -> Tensor:
    """h of the bare prompt at the block's output or at W's; (d_out,) float64."""
    module = model.blocks[layer] if site is Site.BLOCK else model.down_projection(layer)
    return _read(model, fact, "", module, reads_input=False)


@torch.no_grad()
def _read(model: LanguageModel, fact: Fact, lead: str, module: nn.Module, *, reads_input: bool) -> Tensor:
    before, after = fact.prompt.split("{}")
    lead = lead or bare_lead(model.tokenizer, fact)
    text = tokenise(model.tokenizer, lead + before, fact.subject, after)
    read: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        read.append(args[0] if reads_input else output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(hook)
    try:
        model.model(input_ids=torch.tensor([text.ids], device=model.device), use_cache=False)
    finally:
        handle.remove()
    (values,) = read
    return values.reshape(len(text.ids), -1)[text.subject].double()
