"""What tests of studies share: a context with a tiny model, and a study done in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from errata.analysis.studies import StudyResult, run_study
from errata.analysis.study import AnalysisSettings, Study, StudyContext
from errata.benchmark.data import BenchmarkData
from errata.facts.fact import Fact, FactSet, Question
from errata.models.language_model import LanguageModel

from tests.support.bench import ASKED, PROSE, UNTOUCHED
from tests.support.editing import tiny_language_model, tiny_recipe, write_corpus


def tiny_context(
    folder: Path,
    family: str = "gpt2",
    method: str = "memit",
    *,
    facts: Sequence[Fact] = ASKED,
    model: LanguageModel | None = None,
    seeds: Sequence[int] = (0,),
    recipe: dict[str, Any] | None = None,
    **settings: Any,
) -> StudyContext:
    """A context in which every seed has the same facts."""
    numbers = tiny_recipe(write_corpus(folder / "corpus.txt"), method, **(recipe or {}))
    chosen = AnalysisSettings.model_validate({"count": len(facts), "batch_size": 2, "seeds": tuple(seeds), **settings})
    material = BenchmarkData(FactSet(tuple(facts), "tiny facts"), UNTOUCHED, PROSE)
    found = model or tiny_language_model(family)
    return StudyContext(found, numbers, chosen, dict.fromkeys(seeds, material), cache=folder / "cache")


def done(study: Study, context: StudyContext, out: Path) -> StudyResult:
    """The study, finished."""
    return run_study(study, context, out, command="errata analyse (a test)")


def runs_context(
    folder: Path,
    family: str = "gpt2",
    methods: Sequence[str] = ("memit", "memit+blue"),
    *,
    untouched: Sequence[tuple[str, str]] = (),
    **settings: Any,
) -> StudyContext:
    """A context with recipes of methods, and beside the tiny benches' untouched prompts some of the caller's, as
    (cluster, prompt).
    """
    context = tiny_context(folder, family, methods=tuple(methods), **settings)
    context.recipes = {method: tiny_recipe(folder / "corpus.txt", method) for method in methods}
    more = tuple((cluster, Question(prompt, "Paris")) for cluster, prompt in untouched)
    context.materials = {
        seed: replace(material, untouched=(*material.untouched, *more)) for seed, material in context.materials.items()
    }
    return context
