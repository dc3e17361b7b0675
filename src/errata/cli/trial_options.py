"""Shared by the commands that try editors on the user's facts: candidates, evaluation data, and the page's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from errata.benchmark.sequence import EvaluationSet
from errata.benchmark.trials import Candidate, with_wordings
from errata.cli.model_options import evaluation_set_for, shipped_sentences
from errata.cli.recipe_options import automatic_recipe, comes_with_recipe, read_recipe_for, read_settings_for
from errata.editing.recipe import Recipe
from errata.editors.contract import KnowledgeEditor
from errata.editors.locate_then_edit import LocateThenEdit
from errata.editors.registry import editor_named
from errata.editors.table import EDITOR_NAMES, editor_row
from errata.errors import InputError
from errata.evaluation.consequences import NONE_MADE, Consequence, lab_consequences, two_hops, with_consequences
from errata.evaluation.controls import facts_to_scan, known_facts, with_automatic_controls
from errata.evaluation.recall import Untouched
from errata.facts.fact import Fact, FactSet, Question
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.utils.files import check_file, is_file
from errata.utils.progress import Report
from errata.utils.text import counted

PageOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR|FILE.html", help="Also write a self-contained HTML page with figures."),
]
_PAGE_MARK = b"<title>errata: "
NO_REVERSAL = "no fact has 'reversal' questions, and none are made: an answer may have several subjects"


def page_file(out: Path | None, stem: str) -> Path | None:
    """The file of a page.

    Raises:
        InputError: if it cannot be written, or another file would be overwritten.
    """
    if out is None:
        return None
    if out.suffix.lower() != ".html" and out.suffix and not out.is_dir():
        raise InputError(
            f"--out: unknown file extension of {str(out)!r}",
            remedy="Give a directory, or a file that ends in .html",
            code="FORMAT_UNKNOWN",
        )
    file = out if out.suffix.lower() == ".html" and not out.is_dir() else out / f"{stem}.html"
    check_file(file)
    if is_file(file) and _PAGE_MARK not in file.read_bytes()[:2000]:
        raise InputError(
            f"{file} exists and is not a page of errata; it would be overwritten",
            remedy="Give another --out, or remove the file first",
            code="OUTPUT_EXISTS",
        )
    return file


def candidate_of(name: str, model: str, outline: Outline, seed: int) -> Candidate:
    """An editor with its shipped or automatic settings for the model."""
    if name in EDITOR_NAMES:
        settings = read_settings_for(name, model, None, seed=seed).model_dump(mode="json")
        kind = editor_named(name)

        def make(loaded: LanguageModel, report: Report) -> KnowledgeEditor:
            return kind.make(loaded, settings, report)

        return Candidate(name, editor_row(name).where, make, settings)
    default = None if comes_with_recipe(model) else automatic_recipe(model, name, outline)
    recipe = read_recipe_for(model, name, None, seed=seed, default=default)
    settings = recipe.model_dump(mode="json")
    return Candidate(name, "weights", partial(_locate_then_edit, recipe=recipe), settings)


def _locate_then_edit(model: LanguageModel, report: Report, recipe: Recipe) -> KnowledgeEditor:
    return LocateThenEdit(model, recipe, report=report)


def extended(model: LanguageModel, facts: FactSet, count: int, *, lab: bool, seed: int) -> FactSet:
    """The facts and further ones of errata's list (of the lab: of its world), up to ``count`` if there are so many."""
    wanted = count - len(facts)
    if wanted <= 0:
        return facts
    subjects = {fact.subject.casefold() for fact in facts}
    further: Sequence[Fact]
    if lab:
        world = lab_world()
        further = lab_facts(world, min(count, len(world.people)), seed=seed)
    else:
        further = facts_to_scan(model, count, seed=seed)
    chosen = [fact for fact in further if fact.subject.casefold() not in subjects][:wanted]
    return FactSet((*facts, *chosen), f"{facts.source} and errata's list") if chosen else facts


@dataclass(frozen=True, slots=True)
class TrialData:
    """The facts of some trials with their questions, generated where they have none.

    Attributes:
        consequences: those that were made.
        absent: name of a metric -> why no fact has questions for it.
        notes: about generated questions.
    """

    evaluation_set: EvaluationSet
    consequences: tuple[Consequence, ...]
    absent: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def trial_data(
    model: LanguageModel,
    facts: FactSet,
    questions: Sequence[Untouched] | None,
    *,
    lab: bool,
    seed: int,
    others: bool = False,
) -> TrialData:
    """The facts with other wordings, consequences and control questions.

    Args:
        questions: the user's own, about subjects that are not edited.
        others: whether to take such questions from errata's list where there are none.
    """
    notes: list[str] = []
    worded, added = with_wordings(facts.facts, shipped_sentences())
    if added:
        notes.append(
            f"{counted(added, 'fact')} without paraphrases: the prompt after an unrelated sentence is used instead, "
            "which is easier than a paraphrase"
        )
    made = lab_consequences(lab_world(), worded) if lab else two_hops(model, worded)
    if made:
        notes.append(
            f"{counted(len(made), 'consequence')} of {counted(len({entry.fact for entry in made}), 'fact')} "
            f"{'was' if len(made) == 1 else 'were'} made, such as {made[0].question.prompt!r}: "
            f"{made[0].question.answer!r}"
        )
    prepared = FactSet(tuple(with_consequences(worded, made)), facts.source)
    automatic = frozenset((entry.fact, "portability") for entry in made)
    if not lab:
        generated = with_automatic_controls(model, prepared)
        prepared, automatic = generated.facts, automatic | generated.automatic
        if generated.count:
            notes.append(f"{counted(generated.count, 'control question')} generated; their answers are the model's own")
        if others and questions is None:
            questions = _other_subjects(model, prepared)
    found = evaluation_set_for(prepared, lab=lab, untouched=questions, seed=seed)
    absent: list[tuple[str, str]] = []
    if not any(fact.portability for fact in prepared):
        absent.append(("consequences", NONE_MADE))
    if not any(fact.reversal for fact in prepared):
        absent.append(("reversal", NO_REVERSAL))
    return TrialData(replace(found, automatic=automatic), tuple(made), tuple(absent), tuple(notes))


def _other_subjects(model: LanguageModel, facts: FactSet) -> list[Untouched]:
    """Facts of errata's list about other subjects, which the model answers correctly."""
    edited = {fact.subject.casefold() for fact in facts}
    others = [fact for fact in known_facts() if fact.subject.casefold() not in edited]
    scores = model.score([fact.pair(fact.old or "") for fact in others])
    return [
        (fact.subject, Question(fact.text, fact.old or ""))
        for fact, found in zip(others, scores, strict=True)
        if found.correct
    ]
