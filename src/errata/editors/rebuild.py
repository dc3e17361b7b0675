"""Rebuild a stack without some facts, as if they had never been edited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from errata.editing.recipe import Recipe
from errata.editors.contract import KnowledgeEditor
from errata.editors.locate_then_edit import Editor, as_patch
from errata.editors.registry import editor_named
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.patches.patch import AnyRecipe, EditorRecipe, Patch
from errata.patches.stack import Stack, Stacked
from errata.utils.progress import Report, silent
from errata.utils.provenance import now


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The result of ``rebuild``.

    Attributes:
        stack: the new one, which is in the model.
        removed: (name of the patch, fact).
        edited_again: names of the patches whose facts were solved again.
    """

    stack: Stack
    removed: Sequence[tuple[str, Fact]]
    edited_again: Sequence[str]


def named_facts(stack: Stack, names: Collection[str]) -> list[tuple[str, Fact]]:
    """The facts of names: of a patch's name all of its facts, of ``PATCH/ID`` or ``ID`` one fact.

    Raises:
        InputError: for unknown names, and for ids that several patches have.
    """
    found: list[tuple[str, Fact]] = []
    unknown: list[str] = []
    for name in names:
        of_patch = [entry for entry in stack.facts if entry[0] == name]
        exactly = [entry for entry in stack.facts if f"{entry[0]}/{entry[1].id}" == name]
        by_id = [entry for entry in stack.facts if entry[1].id == name]
        chosen = of_patch or exactly or by_id
        if chosen is by_id and len(by_id) > 1:
            raise InputError(
                f"{len(by_id)} patches have a fact {name!r}",
                remedy=f"Name one of {', '.join(f'{patch}/{fact.id}' for patch, fact in by_id)}",
                code="FACT_AMBIGUOUS",
            )
        if not chosen:
            unknown.append(name)
        found += [entry for entry in chosen if entry not in found]
    if unknown:
        raise InputError(
            f"there is neither a patch nor a fact {', '.join(map(repr, unknown))}",
            remedy="`errata show` lists both; name a patch, a fact's id, or PATCH/ID",
            code="FACT_OR_PATCH_UNKNOWN",
        )
    return found


def rebuild(
    model: LanguageModel, stack: Stack, names: Collection[str], *, cache: Path | None = None, report: Report = silent
) -> Rebuilt:
    """Solve a stack again without some facts, from the first patch that has one of them on.

    Patches below that one stay as they are. From there on each patch is edited again, with its own recipe and the
    remaining facts, on top of the new patches below it.

    Args:
        model: the base, without the patches; has the new ones afterwards.

    Raises:
        InputError: if the model is not the base, a name is unknown, or there is none.
        EditError: the model is then the base as it was.
    """
    removed = named_facts(stack, names)
    if not removed:
        raise InputError("there are no facts to remove", remedy="Name at least one", code="FACTS_MISSING")
    leaving = {(patch, fact.id) for patch, fact in removed}
    affected = {patch for patch, _ in removed}
    first = next(index for index, stacked in enumerate(stack.patches) if stacked.name in affected)
    below = replace(stack, patches=stack.patches[:first])
    rebuilt: list[Stacked] = []
    editors = _Editors(model, cache, report)
    with model.edits.transaction():
        replace(below, patches=()).put_into(model)  # checks that it is the base
        for stacked in below.patches:
            editors.put_in(stacked)
        for stacked in stack.patches[first:]:
            facts = [fact for fact in stacked.patch.facts if (stacked.name, fact.id) not in leaving]
            if facts:
                patch = editors.edit(stacked.patch.recipe, facts)
                rebuilt.append(Stacked(stacked.name, patch, now()))
    new = replace(stack, patches=(*below.patches, *rebuilt))
    return Rebuilt(new, removed, [stacked.name for stacked in rebuilt])


class _Editors:
    """Edits facts by the recipes of patches; one editor continues the patches that have its recipe."""

    def __init__(self, model: LanguageModel, cache: Path | None, report: Report) -> None:
        self._model, self._cache, self._report = model, cache, report
        self._editors: list[tuple[EditorRecipe, KnowledgeEditor]] = []

    def put_in(self, stacked: Stacked) -> None:
        """Apply a patch as it is."""
        recipe = stacked.patch.recipe
        if isinstance(recipe, Recipe) or stacked.forced or stacked.missing:
            stacked.patch.apply(self._model, force=True)  # checked when it was added
        else:
            self._editor(recipe).restore(stacked.patch)

    def edit(self, recipe: AnyRecipe, facts: Sequence[Fact]) -> Patch:
        if isinstance(recipe, Recipe):
            return Editor(self._model, recipe, cache=self._cache, report=self._report).apply(facts)
        return as_patch(self._editor(recipe).apply(facts))

    def _editor(self, recipe: EditorRecipe) -> KnowledgeEditor:
        for known, editor in self._editors:
            if known == recipe:
                return editor
        editor = editor_named(recipe.method).make(self._model, recipe.settings, self._report)
        self._editors.append((recipe, editor))
        return editor
