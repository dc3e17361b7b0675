"""Entropy of n-grams and TF-IDF cosines from their definitions, with dictionaries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def entropy(words: Sequence[str], n: int) -> float:
    grams = [" ".join(words[index : index + n]) for index in range(len(words) - n + 1)]
    shares = [grams.count(gram) / len(grams) for gram in set(grams)]
    return -sum(share * math.log2(share) for share in shares)


def words_of(text: str) -> list[str]:
    """scikit-learn's default: words of two characters and more, in small letters."""
    return re.findall(r"\b\w\w+\b", text.lower())


def inverse_frequencies(corpus: Sequence[str]) -> dict[str, float]:
    """Smoothed: as if one more document held every word."""
    documents = [set(words_of(text)) for text in corpus]
    return {
        word: math.log((1 + len(corpus)) / (1 + sum(word in document for document in documents))) + 1
        for word in set().union(*documents)
    }


def cosine(first: str, second: str, idf: dict[str, float]) -> float:
    one, two = ({word: words_of(text).count(word) * idf[word] for word in idf} for text in (first, second))
    norms = [math.sqrt(sum(value**2 for value in vector.values())) for vector in (one, two)]
    return sum(one[word] * two[word] for word in idf) / math.prod(norms)
