"""Evaluation sets, recipes, processes and tables for the scripts of this folder, which import it by its bare name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.benchmark.recipe_search import automatic_file, unsearched_recipe
from errata.benchmark.sequence import EvaluationSet
from errata.editing.methods import BOUNDARY_SUFFIX, method_named
from errata.editing.preparation import Prepared, prepare
from errata.editing.recipe import Recipe, parse_recipe
from errata.lab.corpus import held_out_prose
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.models.language_model import LanguageModel
from errata.utils import files


def lab_evaluation_set(count: int, seed: int, *, texts: int = 60) -> EvaluationSet:
    """Facts of the synthetic world, 300 questions about other people, and texts for perplexity."""
    world = lab_world()
    facts = lab_facts(world, count, seed=seed)
    questions = untouched_questions(world, [fact.subject for fact in facts], 300, seed=seed)
    return EvaluationSet(facts, questions, held_out_prose(texts) if texts else ())


def automatic_recipe(
    method: str, name: str, layers: Sequence[int], columns: int, statistics: Mapping[str, Any]
) -> Recipe:
    """The recipe that ``errata recipe auto --minutes 0`` writes for a method.

    Args:
        name: of the model.
        columns: of W.
        statistics: corpus, number of tokens and length of documents for key statistics.
    """
    row = method_named(method.removesuffix(BOUNDARY_SUFFIX))
    found = unsearched_recipe(name, row, layers, columns, statistics)
    return parse_recipe(automatic_file(name, layers, "", {row.name: found}), method, source="automatic")


@dataclass(slots=True)
class LastPrepared:
    """Contexts and factorised statistics of the last recipe, for further ones that need the same."""

    model: LanguageModel
    _last: dict[str, Prepared] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> Prepared:
        needs = json.dumps([recipe.solver.model_dump(), recipe.contexts.model_dump(), recipe.layers])
        if needs not in self._last:
            self._last = {}  # frees memory first
            self._last[needs] = prepare(self.model, recipe, recipe.layers)
        return self._last[needs]


def run_parts(jobs: int) -> None:
    """Run this script in ``jobs`` processes with ``--part 0``, ``--part 1`` …, each with its part of the work."""
    command = [sys.executable, *sys.argv]
    parts = [subprocess.Popen([*command, "--part", str(part)]) for part in range(jobs)]
    statuses = [part.wait() for part in parts]
    if any(statuses):
        sys.exit("a part failed; the same command resumes")


def points(value: float, low: float | None, high: float | None) -> str:
    """A difference of shares in points: ``+1.5 [+0.2, +2.9]``; without the interval where there is none."""
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * value:+.1f}{interval}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A table in Markdown.

    Args:
        align: a letter for each column, ``l`` or ``r``; by default the first column is left-aligned, the others right.
    """
    align = align or "l" + "r" * (len(head) - 1)
    rule = "".join({"l": "---|", "r": "---:|"}[letter] for letter in align)
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}", *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def write_json(path: Path | None, content: object) -> None:
    """Write a file of JSON; nothing without a path."""
    if path is not None:
        files.write_json(path, content, indent=1)
