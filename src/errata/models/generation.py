"""Greedy and sampled text. What a row is continued with does not depend on the rows that it is batched with."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from errata.errors import InputError, NonFiniteError
from errata.models.language_model import LanguageModel
from errata.models.prompts import encode, length_batches, pad

# ----------------------------------------------------------------------------------------------------
# The choice of the next token among the likeliest, by uniform numbers that belong to a text and not to its batch.


def own_uniforms(keys: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
    """(keys, count) float64 in [0, 1): the numbers of a key follow from the generator's state and the key alone.

    Which other keys there are does not matter, so what is sampled for a prompt before and after an edit, or in a
    smaller set, differs by the model only. The second of two equal keys has numbers of its own.

    Args:
        generator: on the CPU; one number is drawn from it.
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
    """The candidate in whose share of [0, 1) a uniform number lies, the likeliest's share being the first.

    Args:
        values: (rows, k) logits, descending.
        uniform: (rows,) in [0, 1).

    Returns:
        (rows, 1) indices of candidates.
    """
    cumulated = values.double().softmax(-1).cumsum(-1)
    # Rounding may leave the last sum just below 1.
    return (cumulated <= uniform[:, None]).sum(-1, keepdim=True).clamp_max(values.shape[1] - 1)


def likeliest(values: Tensor) -> Tensor:
    """(rows, k) logits, descending -> (rows, 1) index 0: the choice without chance."""
    return torch.zeros(len(values), 1, dtype=torch.long)


# ----------------------------------------------------------------------------------------------------


CACHE_BUDGET = 8192
"""Padded tokens, new ones included, whose keys and values are kept at once."""

Stop = Callable[[str], bool]
"""Whether a text that was generated so far, without its prompt, needs nothing more."""
# (logits of the k likeliest, descending (rows, k); the rows' indices; how many tokens they have) -> (rows, 1) of 0..k-1
_Choose = Callable[[Tensor, Sequence[int], int], Tensor]
_IsOver = Callable[[int, Sequence[int]], bool]


def continue_texts(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    new_tokens: int | Sequence[int],
    top_k: int = 1,
    uniforms: Tensor | None = None,
    stop: Stop | None = None,
    end_at_eos: bool = True,
    token_budget: int = CACHE_BUDGET,
    names: Sequence[str] | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Continue texts; see ``continue_rows``. Returns the continuations only, special tokens left out."""
    rows = [row.ids for row in encode(model.tokenizer, prompts)]
    return continue_rows(
        model,
        rows,
        new_tokens=new_tokens,
        top_k=top_k,
        uniforms=uniforms,
        stop=stop,
        end_at_eos=end_at_eos,
        token_budget=token_budget,
        names=prompts if names is None else names,
        on_rows=on_rows,
    )


def continue_rows(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    new_tokens: int | Sequence[int],
    top_k: int = 1,
    uniforms: Tensor | None = None,
    stop: Stop | None = None,
    end_at_eos: bool = True,
    token_budget: int = CACHE_BUDGET,
    names: Sequence[str] = (),
    on_rows: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Continue rows of tokens, each by itself: batches are of similar length, and a row that is done leaves its batch.

    Args:
        new_tokens: at most so many are added, to each row or to all.
        top_k: sample among the k likeliest tokens; 1 is greedy and needs no uniform numbers.
        uniforms: (rows, at least new_tokens) float64 in [0, 1): the n-th number of a row decides its n-th token, by
            the inverse of the cumulated probabilities of its k candidates. See ``own_uniforms``.
        stop: a row is done when this holds of its continuation so far, whose last token is kept.
        end_at_eos: whether an end-of-text token ends a row; it is not part of the text.
        token_budget: most padded tokens of a batch, those to come included (a longer row is continued alone).
        names: what the rows are called in an error.
        on_rows: called with the number of rows after each batch.

    Raises:
        InputError: if a row with its new tokens is longer than the model takes.
        NonFiniteError: if a logit is not a number; names the rows.
        ValueError: if sampling without enough uniform numbers.
    """
    limits = [new_tokens] * len(rows) if isinstance(new_tokens, int) else list(new_tokens)
    numbers = uniforms if uniforms is not None else torch.zeros(len(rows), 0, dtype=torch.float64)
    if top_k > 1 and (len(numbers) != len(rows) or numbers.shape[1] < max(limits, default=0)):
        raise ValueError("sampling (top_k > 1) needs a uniform number for each new token of each row")
    _check_room(model, rows, limits)

    texts = [""] * len(rows)
    for indices in length_batches(
        [len(row) + limit for row, limit in zip(rows, limits, strict=True)], token_budget=token_budget
    ):
        chunk = [list(rows[index]) for index in indices]
        drawn = numbers[indices]
        readers = [_Reader(model, row) for row in chunk]

        def choose(values: Tensor, live: Sequence[int], step: int, drawn: Tensor = drawn) -> Tensor:
            return inverse_cdf(values, drawn[list(live), step]) if top_k > 1 else likeliest(values)

        def is_over(row: int, ids: Sequence[int], readers: Sequence[_Reader] = readers) -> bool:
            return stop is not None and stop(readers[row].text(ids))

        produced = _continue(
            model,
            chunk,
            [limits[index] for index in indices],
            top_k,
            choose,
            is_over,
            end_ids=_end_ids(model) if end_at_eos else set(),
            names=[names[index] for index in indices] if names else [],
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
    """Continue texts; returns the continuations only, special tokens left out, ended at EOS.

    All rows sample from one stream of random numbers, so a sampled text depends on its place and on ``batch_size``.
    The contexts of edits, and with them recorded runs, rest on that stream; ``continue_texts`` is for all else.

    Args:
        new_tokens: at most so many tokens are added.
        top_k: sample among the k likeliest tokens; 1 is greedy and needs no generator.
        generator: on the CPU; the same seed gives the same text whatever the device.

    Raises:
        NonFiniteError: if a logit is not a number; names the prompts.
        ValueError: if sampling without a generator.
    """
    if top_k > 1 and generator is None:
        raise ValueError("sampling (top_k > 1) needs a torch.Generator")

    def choose(values: Tensor, live: Sequence[int], step: int) -> Tensor:
        return torch.multinomial(values.softmax(-1), 1, generator=generator) if top_k > 1 else likeliest(values)

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
            leaving=top_k == 1,  # a row that left would draw no more, and all others would draw its numbers
        )
        texts += [_Reader(model, row).text(ids) for row, ids in zip(chunk, produced, strict=True)]
        on_rows(len(chunk))
    return texts


class _Reader:
    """What tokens add to the text of a row. Alone, they would lose the space before them where Metaspace makes it."""

    def __init__(self, model: LanguageModel, row: Sequence[int]) -> None:
        self._tokenizer = model.tokenizer
        self._row = list(row)
        self._given = self._decode(self._row)

    def text(self, ids: Sequence[int]) -> str:
        whole = self._decode(self._row + list(ids))
        return whole.removeprefix(self._given) if whole.startswith(self._given) else self._decode(list(ids))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _continue(
    model: LanguageModel,
    rows: Sequence[list[int]],
    limits: Sequence[int],
    top_k: int,
    choose: _Choose,
    is_over: _IsOver,
    *,
    end_ids: set[int],
    names: Sequence[str],
    leaving: bool = True,
) -> list[list[int]]:
    """The new tokens of one batch's rows."""
    produced: list[list[int]] = [[] for _ in rows]
    live = [index for index, limit in enumerate(limits) if limit > 0]
    if not live:
        return produced
    # A row without tokens (an empty prompt and no BOS) starts from EOS, as GPT-2's own scripts do.
    batch = pad([rows[index] or [model.tokenizer.eos_token_id or 0] for index in live], left=True, device=model.device)
    cache = DynamicCache(config=model.model.config)
    ids, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
    done: set[int] = set()
    step = 0
    while True:
        with torch.no_grad():
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
            if token in end_ids or len(produced[index]) >= limits[index] or is_over(index, produced[index]):
                done.add(index)
        step += 1
        staying = [place for place, index in enumerate(live) if index not in done]
        if not staying:
            return produced
        ids, positions = chosen[:, None].to(model.device), positions[:, -1:] + 1
        if leaving and len(staying) < len(live):
            kept = torch.tensor(staying, device=model.device)
            cache.batch_select_indices(kept)
            ids, positions, mask = ids[kept], positions[kept], mask[kept]
            live = [live[place] for place in staying]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)


def _end_ids(model: LanguageModel) -> set[int]:
    ends = model.model.generation_config.eos_token_id if model.model.generation_config else None
    end_ids = {ends} if isinstance(ends, int) else set(ends or ())
    if model.tokenizer.eos_token_id is not None:
        end_ids.add(model.tokenizer.eos_token_id)
    return end_ids


def _check_room(model: LanguageModel, rows: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
    # The last new token is not read.
    lengths = [len(row) + max(limit - 1, 0) for row, limit in zip(rows, limits, strict=True)]
    too_long = [index for index, length in enumerate(lengths) if length > model.context_length]
    if too_long:
        first = too_long[0]
        more = f", and {len(too_long) - 1} more texts are too long" if len(too_long) > 1 else ""
        raise InputError(
            f"a text of {len(rows[first])} tokens cannot get {limits[first]} new ones, since {model.name!r} takes "
            f"{model.context_length}{more}",
            remedy="Shorten the texts, leave them out, or ask for fewer new tokens",
        )


def _check_finite(values: Tensor, names: Sequence[str]) -> None:
    # A NaN counts as the largest of all.
    finite = values[:, 0].isfinite()
    if not bool(finite.all()):
        bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine] if names else []
        raise NonFiniteError("logits", facts=list(dict.fromkeys(bad)), layer=None)
