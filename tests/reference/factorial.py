"""A factorial, slowly: every run by an editor of its own, sums of squares by means of levels, effects by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editors.locate_then_edit import Editor
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel


def answers_of(
    model: LanguageModel,
    recipe: Recipe,
    facts: Sequence[Fact],
    untouched: Sequence[tuple[str, Question]],
    cache: Path,
    plan: Sequence[Step] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """metric -> fact -> values of its prompts, behind a run that shares nothing with any other."""
    patch = Editor(model, recipe, cache=cache, plan=plan).apply(facts)
    found: dict[str, dict[str, list[float]]] = {}
    for record in evaluate_facts(model, facts, untouched=untouched):
        found.setdefault(str(record.metric), {}).setdefault(record.fact, []).append(record.value)
    patch.undo(model)
    return found


def sums_of_squares(
    observations: Sequence[Mapping[str, str]], values: Sequence[float], block: str
) -> dict[str, tuple[float, int, float, float]]:
    """term -> (sum of squares, degrees of freedom, F, p) of a balanced design; the residual has no F and no p (NaN)."""
    from scipy.stats import f as f_distribution  # slow, so not while tests are collected

    grand = float(np.mean(values))

    def mean(**levels: str) -> float:
        rows = zip(observations, values, strict=True)
        return float(np.mean([value for entry, value in rows if all(entry[key] == levels[key] for key in levels)]))

    levels = {name: sorted({entry[name] for entry in observations}) for name in observations[0]}
    found: dict[str, tuple[float, int]] = {}
    for name, own in levels.items():
        squares = sum((mean(**{name: entry[name]}) - grand) ** 2 for entry in observations)
        found[name] = (squares, len(own) - 1)
    for one, other in combinations([name for name in levels if name != block], 2):
        squares = 0.0
        for entry in observations:
            apart = mean(**{one: entry[one]}) + mean(**{other: entry[other]})
            squares += (mean(**{one: entry[one], other: entry[other]}) - apart + grand) ** 2
        found[f"{one} × {other}"] = (squares, (len(levels[one]) - 1) * (len(levels[other]) - 1))
    total = sum((value - grand) ** 2 for value in values)
    left = total - sum(squares for squares, _ in found.values())
    free = len(values) - 1 - sum(degrees for _, degrees in found.values())
    table = {}
    for name, (squares, degrees) in found.items():
        ratio = (squares / degrees) / (left / free)
        table[name] = (squares, degrees, ratio, float(f_distribution.sf(ratio, degrees, free)))
    return table | {"residual": (left, free, float("nan"), float("nan"))}
