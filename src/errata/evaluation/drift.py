"""Drift of the next token's distribution after prompts that should not change, which yes/no metrics miss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from errata.editors.contract import Answerer
from errata.errors import NonFiniteError
from errata.evaluation.absence import absent_fields
from errata.facts.fact import Fact, Question
from errata.models.language_model import TOKEN_BUDGET
from errata.results.metrics import Metric, metrics_of
from errata.results.records import Record
from errata.utils.progress import Report, silent
from errata.utils.tensors import to_float64


class LocalityKind(StrEnum):
    """Whose prompt it is: of a subject with the same true object, of a fact's unrelated questions, of the untouched."""

    NEIGHBOURS = "neighbours"
    UNRELATED = "unrelated"
    UNTOUCHED = "untouched"


@dataclass(frozen=True, slots=True)
class LocalityPrompt:
    """A locality prompt and the fact (or the cluster of an untouched question) that it belongs to."""

    fact: str
    kind: LocalityKind
    prompt: str


def locality_prompts(facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]] = ()) -> list[LocalityPrompt]:
    """All locality prompts in the order of the facts. Their answers are not used.

    Args:
        untouched: for each question about another subject its cluster, as in ``recall.evaluate_facts``.
    """
    found: list[LocalityPrompt] = []
    for fact in facts:
        found += [LocalityPrompt(fact.id, LocalityKind.NEIGHBOURS, near.prompt) for near in fact.neighbours]
        found += [LocalityPrompt(fact.id, LocalityKind.UNRELATED, other.prompt) for other in fact.unrelated]
    return found + [LocalityPrompt(cluster, LocalityKind.UNTOUCHED, question.prompt) for cluster, question in untouched]


BYTE_BUDGET = 1 << 30
"""Bytes that the log-probabilities of one chunk of prompts, before the edit, may take."""
_TOP = 5

Unedited = Callable[[], AbstractContextManager[None]]
"""Returns a context manager that disables all edits."""


def evaluate_drift(
    model: Answerer,
    facts: Sequence[Fact],
    unedited: Unedited,
    *,
    untouched: Sequence[tuple[str, Question]] = (),
    token_budget: int = TOKEN_BUDGET,
    byte_budget: int = BYTE_BUDGET,
    report: Report = silent,
) -> list[Record]:
    """For each neighbouring, unrelated and untouched prompt, of the distribution P of the next token:

    - ``drift_kl_…``: KL(P_before ‖ P_after) in nats, over the whole vocabulary;
    - ``drift_top5_…``: which share of the five likeliest tokens before are among the five likeliest after.

    ``said`` is the likeliest token after. No distribution outlives its chunk of prompts.

    Args:
        unedited: entered once for each chunk.
        untouched: questions about other subjects with their clusters.
        token_budget: most padded tokens of one forward pass; the values do not depend on it.
        byte_budget: of a chunk's log-probabilities before the edit; a chunk has at least one prompt.
        report: progress callback.

    Raises:
        InputError: if a prompt is too long for the model.
        NonFiniteError: if a logit, before or after, is not a number; names the facts.
    """
    locality = locality_prompts(facts, untouched)
    owners: dict[str, str] = {}
    for entry in locality:
        owners.setdefault(entry.prompt, entry.fact)
    prompts = list(owners)
    if not prompts:
        return []
    at_once = max(1, byte_budget // model.next_token_log_probabilities(prompts[:1]).nbytes)
    found: dict[str, tuple[float, float, str]] = {}
    bad: list[str] = []
    for start in range(0, len(prompts), at_once):
        chunk = slice(start, start + at_once)
        with unedited():
            before = model.next_token_log_probabilities(prompts[chunk], token_budget=token_budget)
        after = model.next_token_log_probabilities(prompts[chunk], token_budget=token_budget)
        for index, prompt in enumerate(prompts[chunk]):
            divergence = kl_divergence(before[index], after[index])
            overlap = top_overlap(before[index], after[index])
            said = str(model.tokenizer.decode([int(after[index].argmax())])).strip()
            found[prompt] = (divergence, overlap, said)
            if not math.isfinite(divergence):
                bad.append(owners[prompt])
        report("drift", min(start + at_once, len(prompts)), len(prompts))
    if bad:
        raise NonFiniteError("drift", facts=list(dict.fromkeys(bad)), layer=None)
    records: list[Record] = []
    for entry in locality:
        divergence, overlap, said = found[entry.prompt]
        kl_metric, top_metric = Metric(f"drift_kl_{entry.kind}"), Metric(f"drift_top5_{entry.kind}")
        records.append(Record(entry.fact, kl_metric, entry.prompt, divergence, said))
        records.append(Record(entry.fact, top_metric, entry.prompt, overlap, said))
    return records


def absent_drift(facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]] = ()) -> dict[Metric, str]:
    """The metrics that cannot be computed, with the reason."""
    return absent_fields(metrics_of("drift_"), facts, untouched)


def kl_divergence(before: Tensor, after: Tensor) -> float:
    """KL(P_before ‖ P_after) in nats, of (vocabulary,) natural logarithms of probabilities."""
    before, after = to_float64(before), to_float64(after)
    # What is impossible before adds nothing, also where it is impossible after.
    total = float(torch.where(before == -math.inf, 0.0, before.exp() * (before - after)).sum())
    return max(total, 0.0) if math.isfinite(total) else total  # rounding may leave it just below 0


def top_overlap(before: Tensor, after: Tensor, k: int = _TOP) -> float:
    """The share of the k likeliest tokens before that are among the k likeliest after."""
    k = min(k, len(before))
    return len(set(before.topk(k).indices.tolist()) & set(after.topk(k).indices.tolist())) / k
