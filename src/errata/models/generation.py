"""Greedy and sampled text, from a passed generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache

from errata.models.language_model import LanguageModel
from errata.models.prompts import encode, pad


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    top_k: int = 1,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
    on_rows: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Continue texts; returns the continuations only, special tokens left out, ended at EOS.

    Args:
        new_tokens: at most so many tokens are added.
        top_k: sample among the k likeliest tokens; 1 is greedy and needs no generator.
        generator: on the CPU; the same seed gives the same text whatever the device.

    Raises:
        ValueError: if sampling without a generator.
    """
    if top_k > 1 and generator is None:
        raise ValueError("sampling (top_k > 1) needs a torch.Generator")
    rows = [list(row.ids) for row in encode(model.tokenizer, prompts)]
    texts: list[str] = []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        for row, ids in zip(chunk, _continue(model, chunk, new_tokens, top_k, generator), strict=True):
            texts.append(_continuation_text(model, row, ids))
        on_rows(len(chunk))
    return texts


def _continuation_text(model: LanguageModel, row: list[int], ids: list[int]) -> str:
    """What ``ids`` add to the text. Alone, they would lose the space before them where spaces are Metaspace's."""
    given, alone, whole = (
        str(model.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in (row, ids, row + ids)
    )
    return whole.removeprefix(given) if whole.startswith(given) else alone


def _continue(
    model: LanguageModel, rows: list[list[int]], new_tokens: int, top_k: int, generator: torch.Generator | None
) -> list[list[int]]:
    # A row without tokens (an empty prompt and no BOS) starts from EOS, as GPT-2's own scripts do.
    rows = [row or [model.tokenizer.eos_token_id or 0] for row in rows]
    ends = model.model.generation_config.eos_token_id if model.model.generation_config else None
    end_ids = {ends} if isinstance(ends, int) else set(ends or ())
    if model.tokenizer.eos_token_id is not None:
        end_ids.add(model.tokenizer.eos_token_id)
    batch = pad(rows, left=True, device=model.device)
    cache = DynamicCache(config=model.model.config)
    ids, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
    produced: list[list[int]] = [[] for _ in rows]
    done = [False] * len(rows)
    with torch.no_grad():
        for _ in range(new_tokens):
            logits = model.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            values, candidates = logits.float().cpu().topk(top_k, dim=-1)
            choice = (
                torch.multinomial(values.softmax(-1), 1, generator=generator)
                if top_k > 1
                else torch.zeros(len(rows), 1, dtype=torch.long)
            )
            chosen = candidates.gather(1, choice)[:, 0]
            for index, token in enumerate(chosen.tolist()):
                done[index] = done[index] or token in end_ids
                if not done[index]:
                    produced[index].append(token)
            if all(done):
                break
            ids = chosen[:, None].to(model.device)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
    return produced
