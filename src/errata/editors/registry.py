"""The editors by name: their settings, how to make them, and how to load their edits. ``table`` describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from errata.editing.recipe import Recipe
from errata.editors.contract import Edit, KnowledgeEditor
from errata.editors.locate_then_edit import LocateThenEdit
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.utils.progress import Report
from errata.utils.settings import Settings
from errata.utils.text import did_you_mean

LOCATE_THEN_EDIT: Final = "locate_then_edit"


@dataclass(frozen=True, slots=True)
class EditorKind:
    """An editor's entry.

    Attributes:
        make: the editor of a model, from its settings (for locate-then-edit a recipe) as JSON; raises a ValidationError
            or an InputError for invalid ones.
        load: the inverse of ``Edit.save``.
        settings: their class, whose defaults suit any model; ``Recipe`` for locate-then-edit.
    """

    make: Callable[[LanguageModel, Mapping[str, Any], Report], KnowledgeEditor]
    load: Callable[[Path], Edit]
    settings: type[Settings] = Settings


def _locate_then_edit(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> LocateThenEdit:
    return LocateThenEdit(model, Recipe.model_validate(settings), report=report)


EDITORS: Final[Mapping[str, EditorKind]] = {
    LOCATE_THEN_EDIT: EditorKind(_locate_then_edit, Patch.load, Recipe),
}


def editor_named(name: str, editors: Mapping[str, EditorKind] = EDITORS) -> EditorKind:
    """The editor of ``name``.

    Raises:
        InputError: if there is no such editor; offers the nearest.
    """
    if name not in editors:
        remedy = f"{did_you_mean(name, editors)}Known: {', '.join(editors)}"
        raise InputError(f"there is no editor {name!r}", remedy=remedy, code="EDITOR_UNKNOWN")
    return editors[name]
