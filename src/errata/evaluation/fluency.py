"""Fluency: whether a text repeats itself, told by the entropy of its n-grams.

After Zhang et al. (2018), "Generating Informative and Diverse Conversational Responses via Adversarial Information
Maximization", as weighted by Meng et al. (2022), "Locating and Editing Factual Associations in GPT". NLTK is imported
here only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from errata.evaluation.metrics import Metric
from errata.evaluation.records import Record
from errata.evaluation.texts import WrittenText
from errata.extras import require
from errata.facts import Fact

_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def check_fluency() -> None:
    """Raises MissingExtraError if texts cannot be split into words here."""
    require("fluency", "eval", "nltk")


def evaluate_fluency(texts: Sequence[WrittenText]) -> list[Record]:
    """One record a text, prompt and continuation together; ``said`` is the whole text.

    Raises:
        MissingExtraError: if NLTK is not installed.
    """
    check_fluency()
    from nltk.tokenize import TreebankWordTokenizer

    tokenizer = TreebankWordTokenizer()
    return [
        Record(text.fact, Metric.FLUENCY, text.prompt, weighted_entropy(tokenizer.tokenize(text.text)), text.text)
        for text in texts
    ]


def absent_fluency(facts: Sequence[Fact]) -> dict[Metric, str]:
    """The reason, if there is nothing to write texts from."""
    return {} if any(fact.generation for fact in facts) else {Metric.FLUENCY: "no fact has 'generation' prompts"}


def weighted_entropy(words: Sequence[str]) -> float:
    """(⅔ H₂ + ⁴⁄₃ H₃) / 2 · 100, with H_n = ``ngram_entropy`` in bits."""
    return 100 * math.fsum(weight * ngram_entropy(words, n) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Entropy in bits of the relative frequencies of the n-grams; 0 where there is at most one."""
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    total = counts.total()
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())
