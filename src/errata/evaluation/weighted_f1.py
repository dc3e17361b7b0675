"""Weighted F1: each label's F1, weighted by how often the label is right; for many resamplings at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Cell = tuple[int, int]


def weighted_f1(labels: Sequence[Cell]) -> float:
    """Weighted F1 of (right label, answered label) pairs, by scikit-learn. An answer that is no label is wrong.

    Such an answer is given as a label that is never right (-1): it takes from the recall of the right one, and its own
    F1 has no weight.
    """
    from sklearn.metrics import f1_score

    right, answered = zip(*labels, strict=True)
    return float(f1_score(right, answered, average="weighted", zero_division=0))


def confusion_cells(labels: Sequence[Cell]) -> tuple[NDArray[np.float64], list[Cell]]:
    """(cells, samples) 1 where a sample falls into a cell of the confusion matrix; and the cells that occur."""
    places = sorted(set(labels))
    cells = np.zeros((len(places), len(labels)))
    for column, label in enumerate(labels):
        cells[places.index(label), column] = 1
    return cells, places


def weighted_f1_of_sums(sums: NDArray[np.float64], places: Sequence[Cell]) -> NDArray[np.float64]:
    """(draws, cells) counts of the confusion matrix's cells -> (draws,) weighted F1 of each draw."""
    right, answered = (np.array(side) for side in zip(*places, strict=True))
    weighted = np.zeros(len(sums))
    for label in np.unique(right):
        hits = sums[:, (right == label) & (answered == label)].sum(1)
        support, claimed = sums[:, right == label].sum(1), sums[:, answered == label].sum(1)
        both = support + claimed
        weighted += support * np.divide(2 * hits, both, out=np.zeros(len(sums)), where=both > 0)
    result: NDArray[np.float64] = weighted / sums.sum(1)
    return result
