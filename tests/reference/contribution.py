"""P(o | h_l += r), one text at a time: the whole sequence with a hook that adds r, and the tokens' probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel

from tests.reference.target import texts_of


def chance(model: LanguageModel, fact: Fact, prefixes: Sequence[str], layer: int, added: Tensor) -> float:
    """exp of the mean log-probability of the target's tokens, mean over contexts; ``added`` (d,) enters behind the
    block at the subject's last token."""
    found = []
    for text in texts_of(model.tokenizer, fact, prefixes)[:-1]:  # the last one is the KL prompt

        def add(module: Any, args: Any, output: Any, at: int = text.subject) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[:, at] += added.to(hidden.dtype)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = model.blocks[layer].register_forward_hook(add)
        try:
            logits = model.model(torch.tensor([text.ids])).logits[0].double()
        finally:
            handle.remove()
        logs = [logits[place - 1].log_softmax(-1)[text.ids[place]] for place in range(text.target_start, len(text.ids))]
        found.append(float(torch.stack(logs).mean().exp()))
    return sum(found) / len(found)
