"""Greedy and sampled generation. The continuation of a row does not depend on the other rows of its batch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import DynamicCache

from errata.errors import InputError, NonFiniteError
from errata.models.language_model import CACHE_BUDGET, LanguageModel
from errata.models.prompts import encode, length_batches, pad
from errata.models.replay import prefix_cache
from errata.models.row_hooks import RowHooks, RowPass, around

Stop = Callable[[str], bool]
"""Whether a continuation so far, without its prompt, is complete."""
# (top-k logits, descending (rows, k); row indices; number of tokens so far) -> (rows, 1) in 0..k-1
_Choose = Callable[[Tensor, Sequence[int], int], Tensor]
_IsComplete = Callable[[int, Sequence[int]], bool]


def continue_rows(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    new_tokens: int | Sequence[int],
    top_k: int = 1,
    uniforms: Tensor | None = None,
    stop: Stop | None = None,
    end_at_eos: bool = True,
    stems: Sequence[int] = (),
    token_budget: int = CACHE_BUDGET,
    names: Sequence[str] = (),
    on_rows: Callable[[int], None] = lambda count: None,
    hooks: RowHooks | None = None,
) -> list[str]:
    """Continue rows of tokens independently: batches are of similar length, and a finished row leaves its batch.

    Args:
        new_tokens: the most tokens to add, per row or for all.
        top_k: sample among the k most probable tokens; 1 is greedy and needs no uniform numbers.
        uniforms: (rows, at least new_tokens) float64 in [0, 1): the n-th number of a row decides its n-th token, by
            inverting the cumulative probabilities of its k candidates. See ``own_uniforms``.
        stop: a row is finished when this is true of its continuation, including the last token.
        end_at_eos: whether an end-of-text token ends a row; it is not part of the text.
        stems: for each row, the number of its first tokens, at least 1, that other rows may share: rows that do are in
            one batch, as far as the budget allows, and a batch runs each distinct stem once. The texts do not depend on
            it, up to the order of floating-point sums.
        token_budget: the most padded tokens of a batch, new ones included (a longer row is continued alone).
        names: names of the rows for errors.
        on_rows: called with the number of rows after each batch.
        hooks: for each forward pass; not with stems, which are run for several rows at once.

    Raises:
        InputError: if a row with its new tokens is too long for the model.
        NonFiniteError: naming the rows, if a logit is not finite.
        ValueError: when sampling without enough uniform numbers, or if there are both stems and hooks.
    """
    limits = [new_tokens] * len(rows) if isinstance(new_tokens, int) else list(new_tokens)
    numbers = uniforms if uniforms is not None else torch.zeros(len(rows), 0, dtype=torch.float64)
    if top_k > 1 and (len(numbers) != len(rows) or numbers.shape[1] < max(limits, default=0)):
        raise ValueError("sampling (top_k > 1) needs a uniform number for each new token of each row")
    if hooks is not None and any(stems):
        raise ValueError("stems are run for several rows at once, so hooks cannot treat these rows differently")
    _check_lengths(model, rows, limits)

    texts = [""] * len(rows)
    lengths = [len(row) + limit for row, limit in zip(rows, limits, strict=True)]
    groups = [tuple(row[:stem]) for row, stem in zip(rows, stems, strict=True)] if stems else []
    for indices in length_batches(lengths, groups, token_budget=token_budget):
        chunk = [list(rows[index]) for index in indices]
        uniform = numbers[indices]
        readers = [_Reader(model, row) for row in chunk]

        def choose(values: Tensor, live: Sequence[int], step: int, uniform: Tensor = uniform) -> Tensor:
            return inverse_cdf(values, uniform[list(live), step]) if top_k > 1 else _first(values)

        def is_complete(row: int, ids: Sequence[int], readers: Sequence[_Reader] = readers) -> bool:
            return stop is not None and stop(readers[row].text(ids))

        def chunk_hooks(rows: RowPass, indices: Sequence[int] = indices) -> AbstractContextManager[None]:
            return around(hooks, [indices[row] for row in rows.rows], rows.positions)

        produced = _continue(
            model,
            chunk,
            [limits[index] for index in indices],
            top_k,
            choose,
            is_complete,
            end_ids=_end_ids(model) if end_at_eos else set(),
            hooks=None if hooks is None else chunk_hooks,
            names=[names[index] for index in indices] if names else [],
            stems=[stems[index] for index in indices] if stems else [],
        )
        for index, reader, ids in zip(indices, readers, produced, strict=True):
            texts[index] = reader.text(ids)
        on_rows(len(indices))
    return texts


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
    """Continue texts up to EOS with one random stream for all rows; for the contexts of edits only.

    A sampled text depends on its index and on ``batch_size``. Recorded runs depend on this stream; use
    ``LanguageModel.continue_texts`` for everything else.

    Args:
        new_tokens: the most tokens to add.
        top_k: sample among the k most probable tokens; 1 is greedy and needs no generator.
        generator: on the CPU; the same seed gives the same text on any device.

    Returns:
        the continuations only, without special tokens.

    Raises:
        NonFiniteError: naming the prompts, if a logit is not finite.
        ValueError: when sampling without a generator.
    """
    if top_k > 1 and generator is None:
        raise ValueError("sampling (top_k > 1) needs a torch.Generator")

    def choose(values: Tensor, live: Sequence[int], step: int) -> Tensor:
        return torch.multinomial(values.softmax(-1), 1, generator=generator) if top_k > 1 else _first(values)

    rows = [list(row.ids) for row in encode(model.tokenizer, prompts)]
    texts: list[str] = []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        produced = _continue(
            model,
            chunk,
            [new_tokens] * len(chunk),
            top_k,
            choose,
            lambda row, ids: False,
            end_ids=_end_ids(model),
            names=prompts[start : start + batch_size],
            leaving=top_k == 1,  # if a row left early, the others would get its random numbers
        )
        texts += [_Reader(model, row).text(ids) for row, ids in zip(chunk, produced, strict=True)]
        on_rows(len(chunk))
    return texts


class _Reader:
    """Decodes new tokens after a row: alone they would lose the leading space of Metaspace tokenizers."""

    def __init__(self, model: LanguageModel, row: Sequence[int]) -> None:
        self._tokenizer = model.tokenizer
        self._row = list(row)
        self._prefix = self._decode(self._row)

    def text(self, ids: Sequence[int]) -> str:
        whole = self._decode(self._row + list(ids))
        return whole.removeprefix(self._prefix) if whole.startswith(self._prefix) else self._decode(list(ids))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _continue(
    model: LanguageModel,
    rows: Sequence[list[int]],
    limits: Sequence[int],
    top_k: int,
    choose: _Choose,
    is_complete: _IsComplete,
    *,
    end_ids: set[int],
    names: Sequence[str],
    stems: Sequence[int] = (),
    leaving: bool = True,
    hooks: RowHooks | None = None,
) -> list[list[int]]:
    """The new tokens of one batch's rows."""
    produced: list[list[int]] = [[] for _ in rows]
    live = [index for index, limit in enumerate(limits) if limit > 0]
    if not live:
        return produced
    # A row without tokens (an empty prompt and no BOS) starts from EOS, as in GPT-2's own scripts.
    begun = [rows[index] or [model.tokenizer.eos_token_id or 0] for index in live]
    if stems and any(len(row) > 1 for row in begun):  # all but each row's last token are read with their stems
        before = [row[:-1] for row in begun]
        shared = [min(stems[index], len(head)) for index, head in zip(live, before, strict=True)]
        cache, heads = prefix_cache(model, before, shared)
        ids = torch.tensor([row[-1:] for row in begun], device=model.device)
        mask = torch.cat([heads, torch.ones_like(ids)], dim=1)
        positions = heads.sum(1, keepdim=True)
    else:
        batch = pad(begun, left=True, device=model.device)
        cache = DynamicCache(config=model.model.config)
        ids, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
    done: set[int] = set()
    step = 0
    while True:
        read = positions if step or hooks is None else positions.masked_fill(mask == 0, -1)
        with torch.no_grad(), around(hooks, live, read):
            logits = model.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        values, candidates = (found.cpu() for found in logits.float().topk(top_k, dim=-1))
        _check_finite(values, [names[index] for index in live] if names else [])
        chosen = candidates.gather(1, choose(values, live, step))[:, 0]
        for index, token in zip(live, chosen.tolist(), strict=True):
            if index not in done and token not in end_ids:
                produced[index].append(token)
            if token in end_ids or len(produced[index]) >= limits[index] or is_complete(index, produced[index]):
                done.add(index)
        step += 1
        staying = [place for place, index in enumerate(live) if index not in done]
        if not staying:
            return produced
        ids, positions = chosen[:, None].to(model.device), positions[:, -1:] + 1
        if leaving and len(staying) < len(live):
            remaining = torch.tensor(staying, device=model.device)
            cache.batch_select_indices(remaining)
            ids, positions, mask = ids[remaining], positions[remaining], mask[remaining]
            live = [live[place] for place in staying]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)


def _end_ids(model: LanguageModel) -> set[int]:
    ends = model.model.generation_config.eos_token_id if model.model.generation_config else None
    end_ids = {ends} if isinstance(ends, int) else set(ends or ())
    if model.tokenizer.eos_token_id is not None:
        end_ids.add(model.tokenizer.eos_token_id)
    return end_ids


def _check_lengths(model: LanguageModel, rows: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
    # The last new token is not read.
    lengths = [len(row) + max(limit - 1, 0) for row, limit in zip(rows, limits, strict=True)]
    too_long = [index for index, length in enumerate(lengths) if length > model.context_length]
    if too_long:
        first = too_long[0]
        more = f", and {len(too_long) - 1} more texts are too long" if len(too_long) > 1 else ""
        raise InputError(
            f"a text of {len(rows[first])} tokens cannot get {limits[first]} new ones, since {model.name!r} takes "
            f"{model.context_length}{more}",
            remedy="Shorten the texts, remove them, or generate fewer new tokens",
            code="TEXT_TOO_LONG",
        )


def _check_finite(values: Tensor, names: Sequence[str]) -> None:
    # A NaN counts as the largest of all.
    finite = values[:, 0].isfinite()
    if not bool(finite.all()):
        bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine] if names else []
        raise NonFiniteError("logits", facts=list(dict.fromkeys(bad)), layer=None)


def own_uniforms(keys: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
    """(keys, count) float64 in [0, 1), where a key's numbers depend on the generator's state and the key only.

    They do not depend on the other keys, so the text sampled for a prompt before and after an edit, or in a smaller
    set, differs by the model only. A repeated key gets other numbers.

    Args:
        generator: on the CPU; it is advanced by one number.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    seen: Counter[str] = Counter()
    numbers = torch.empty(len(keys), count, dtype=torch.float64)
    for index, key in enumerate(keys):
        digest = hashlib.sha256(f"{seed} {seen[key]} {key}".encode()).digest()
        seen[key] += 1
        own = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        numbers[index] = torch.rand(count, generator=own, dtype=torch.float64)
    return numbers


def inverse_cdf(values: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution over the candidates.

    Args:
        values: (rows, k) logits, descending.
        uniform: (rows,) in [0, 1).

    Returns:
        (rows, 1) indices of candidates.
    """
    cumulated = values.double().softmax(-1).cumsum(-1)
    # Rounding may leave the last sum slightly below 1.
    return (cumulated <= uniform[:, None]).sum(-1, keepdim=True).clamp_max(values.shape[1] - 1)


def _first(values: Tensor) -> Tensor:
    """(rows, 1) zeros: the greedy choice."""
    return torch.zeros(len(values), 1, dtype=torch.long)
