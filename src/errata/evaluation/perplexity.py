"""Perplexity on prose, whole or of second halves, and its ratio to the unedited model's, which detects collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from errata.editors.contract import Answerer
from errata.errors import InputError, NonFiniteError
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.likelihood import NextToken, predict
from errata.models.prompts import encode
from errata.results.metrics import Metric
from errata.results.records import Summary, When, interval_of, resampled_sums
from errata.utils.progress import Report, counter, silent

_LARGEST_EXPONENT = 700.0  # exp() of more is no float


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The likelihood of some texts under a model.

    Attributes:
        log_likelihoods: for each text, the sum of the natural log-probabilities of its predicted tokens.
        counts: for each text, the number of predicted tokens.
    """

    log_likelihoods: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Perplexity | None:
        """The inverse of ``asdict``; None for None."""
        return None if record is None else cls(tuple(record["log_likelihoods"]), tuple(record["counts"]))

    @property
    def tokens(self) -> int:
        """The number of predicted tokens."""
        return sum(self.counts)

    @property
    def value(self) -> float:
        """exp of the mean negative log-likelihood over all predicted tokens."""
        return math.exp(-math.fsum(self.log_likelihoods) / self.tokens)


def perplexity(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    token_budget: int = TOKEN_BUDGET,
    max_length: int = 512,
    report: Report = silent,
) -> Perplexity:
    """Perplexity of whole texts, each on its own. A text's first token (BOS, if the tokenizer adds it) is given.

    Args:
        token_budget: most padded tokens of one forward pass; the result does not depend on it.
        max_length: tokens of a text, BOS included; the rest is left out. At most the model's own length.

    Raises:
        InputError: if there is no token to predict.
        NonFiniteError: if a logit is not a number, or the perplexity too large for one.
    """
    length = min(max_length, model.context_length)
    rows = [row.ids[:length] for row in encode(model.tokenizer, texts)]
    expected = [[NextToken(index, token) for index, token in enumerate(row[1:])] for row in rows]
    if not any(expected):
        what = "the texts for the perplexity have no token to predict"
        raise InputError(what, remedy="Give longer texts", code="TEXTS_TOO_SHORT")
    # Texts of fewer than two tokens have no prediction; the model cannot read an empty row.
    longer = [index for index, entries in enumerate(expected) if entries]
    predictions = predict(
        model,
        [rows[index][:-1] for index in longer],
        [expected[index] for index in longer],
        token_budget=token_budget,
        on_rows=counter(report, "perplexity", len(longer)),
    )
    sums = [0.0] * len(rows)
    for index, found in zip(longer, predictions, strict=True):
        sums[index] = math.fsum(found.log_probabilities)
    counts = [len(entries) for entries in expected]
    return _finite(sums, counts)


def split_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int = 512
) -> list[tuple[str, str] | None]:
    """Each text cut before its middle token; None for a text with fewer than two tokens.

    White space at the cut belongs to the second half, as tokenizers join it to the word that follows.

    Args:
        max_length: tokens of a text, BOS included; the rest of the text is left out.
    """
    halves: list[tuple[str, str] | None] = []
    for text, row in zip(texts, encode(tokenizer, texts), strict=True):
        spans = [span for span in row.offsets[:max_length] if span != (0, 0)]  # without BOS
        first = text[: spans[len(spans) // 2][0]].rstrip() if len(spans) > 1 else ""
        halves.append((first, text[len(first) : spans[-1][1]]) if first else None)
    return halves


def split_perplexity(
    answerer: Answerer,
    halves: Sequence[tuple[str, str] | None],
    *,
    token_budget: int = TOKEN_BUDGET,
    report: Report = silent,
) -> Perplexity:
    """Perplexity of the second half of each text given the first (see ``split_texts``).

    In this form, prose has a prompt: editors that decide by the prompt whether to act can be compared with those that
    change weights.

    Raises:
        InputError: if no text has two halves.
        NonFiniteError: see ``perplexity``.
    """
    chosen = [index for index, pair in enumerate(halves) if pair is not None]
    if not chosen:
        what = "the texts for the split perplexity have fewer than two tokens"
        raise InputError(what, remedy="Give longer texts", code="TEXTS_TOO_SHORT")
    pairs = [pair for pair in halves if pair is not None]
    scores = answerer.score(pairs, joiner="", token_budget=token_budget, report=report)
    sums, counts = [0.0] * len(halves), [0] * len(halves)
    for index, scored in zip(chosen, scores, strict=True):
        counts[index] = len(scored.likeliest)
        sums[index] = scored.log_probability * counts[index]
    return _finite(sums, counts)


def _finite(sums: Sequence[float], counts: Sequence[int]) -> Perplexity:
    mean = math.fsum(sums) / sum(counts)
    if not -_LARGEST_EXPONENT < mean < _LARGEST_EXPONENT:  # also if it is NaN
        raise NonFiniteError("perplexity", facts=(), layer=None)
    return Perplexity(tuple(sums), tuple(counts))


def perplexity_ratio(
    before: Perplexity,
    now: Perplexity,
    when: When,
    *,
    metric: Metric = Metric.PERPLEXITY_RATIO,
    seed: int = 0,
    resamples: int = 1000,
) -> Summary:
    """``now`` over ``before`` on the same texts, with a 95 % interval by bootstrap over texts.

    Raises:
        ValueError: if the two are not of the same texts in the same cut.
    """
    if before.counts != now.counts:
        raise ValueError("the two perplexities are of different texts")
    counts = np.array(now.counts, dtype=float)
    losses = np.array(before.log_likelihoods) - np.array(now.log_likelihoods)  # log of the ratio, times tokens
    clusters = np.stack([losses, counts])[:, counts > 0]
    resampled = resampled_sums(clusters, seed=seed, resamples=resamples)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        low, high = interval_of(np.exp(resampled[:, 0] / resampled[:, 1]), clusters.shape[1])
    texts = clusters.shape[1]
    return Summary(metric, when, now.value / before.value, low, high, texts, texts)


def pooled(parts: Sequence[Perplexity | None]) -> Perplexity | None:
    """Perplexities of several models on the same texts, pooled so that each text stays one cluster.

    Returns:
        None if none is known, or the texts differ.
    """
    known = [part for part in parts if part is not None]
    if not known or len({part.counts for part in known}) > 1:
        return None
    sums = zip(*(part.log_likelihoods for part in known), strict=True)
    return Perplexity(tuple(map(sum, sums)), tuple(len(known) * count for count in known[0].counts))
