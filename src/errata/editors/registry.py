"""The editors by name: their settings, how to make them, and how to load their edits. ``table`` describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from errata.editing.recipe import Recipe, fault_at
from errata.editing.recipe_files import RecipeFile, place_of
from errata.editors.contract import Base, Edit, KnowledgeEditor, with_weights
from errata.editors.edit_file import StoredEdit
from errata.editors.elder import Elder, ElderSettings
from errata.editors.ft import FineTuning, FtBfSettings, FtLSettings, FtMSettings, FtSettings
from errata.editors.grace import Grace, GraceSettings
from errata.editors.kn import KnowledgeNeurons, KnSettings
from errata.editors.locate_then_edit import LocateThenEdit
from errata.editors.lora import Lora, LoraSettings
from errata.editors.melo import Melo, MeloSettings
from errata.editors.memoir import Memoir, MemoirSettings
from errata.editors.mend import MEND, Mend, MendSettings
from errata.editors.post_edit import PostEdit, PostEditSettings
from errata.editors.retrieval import RETRIEVAL, Retrieval, RetrievalSettings
from errata.editors.rewriting import POST_EDIT
from errata.editors.rledit import RLEDIT, Rledit, RleditSettings
from errata.editors.serac import Serac, SeracSettings
from errata.editors.simie import Simie, SimieSettings
from errata.editors.substitute import SUBSTITUTE, Substitute, SubstituteSettings
from errata.editors.t_patcher import TPatcher, TPatcherSettings
from errata.editors.table import EDITOR_NAMES, EditorSettings
from errata.editors.ultra import GradientWrite, StableSettings, UltraSettings
from errata.editors.weight_editor import WeightEditor, WeightEditorSettings
from errata.editors.wise import Wise, WiseSettings
from errata.errors import Fault, FaultsError, InputError
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.utils.progress import Report
from errata.utils.settings import Settings
from errata.utils.text import did_you_mean
from errata.utils.yaml import KeyPath, line_of

LOCATE_THEN_EDIT: Final = "locate_then_edit"


@dataclass(frozen=True, slots=True)
class EditorKind:
    """An editor's entry.

    Attributes:
        make: the editor of a model, from its settings (for locate-then-edit a recipe) as JSON; raises a ValidationError
            or an InputError for invalid ones.
        load: the inverse of ``Edit.save``.
        settings: their class, whose defaults suit any model; ``Recipe`` for locate-then-edit.
        black_box: as ``make``, on a model whose weights need not be at hand; None: the editor needs them.
    """

    make: Callable[[LanguageModel, Mapping[str, Any], Report], KnowledgeEditor]
    load: Callable[[Path], Edit]
    settings: type[Settings] = Settings
    black_box: Callable[[Base, Mapping[str, Any], Report], KnowledgeEditor] | None = None


def _locate_then_edit(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> LocateThenEdit:
    return LocateThenEdit(model, Recipe.model_validate(settings), report=report)


def _elder(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> Elder:
    return Elder(model, ElderSettings.model_validate(settings), report)


def _memoir(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> Memoir:
    return Memoir(model, MemoirSettings.model_validate(settings), report)


def _grace(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> Grace:
    return Grace(model, GraceSettings.model_validate(settings), report)


def _wise(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> Wise:
    return Wise(model, WiseSettings.model_validate(settings), report)


def _melo(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> Melo:
    return Melo(model, MeloSettings.model_validate(settings), report)


def _t_patcher(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> TPatcher:
    return TPatcher(model, TPatcherSettings.model_validate(settings), report)


_AnySettings = TypeVar("_AnySettings", bound=WeightEditorSettings)


def _weights(editor: type[WeightEditor[_AnySettings]], settings: type[_AnySettings]) -> EditorKind:
    """The entry of an editor whose edits are patches."""

    def make(model: LanguageModel, values: Mapping[str, Any], report: Report) -> WeightEditor[_AnySettings]:
        return editor(model, settings.model_validate(values), report=report)

    return EditorKind(make, Patch.load, settings)


def _retrieval(model: Base, settings: Mapping[str, Any], report: Report) -> Retrieval:
    return Retrieval(model, RetrievalSettings.model_validate(settings), report)


def _substitute(model: Base, settings: Mapping[str, Any], report: Report) -> Substitute:
    return Substitute(model, SubstituteSettings.model_validate(settings), report)


def _post_edit(model: Base, settings: Mapping[str, Any], report: Report) -> PostEdit:
    return PostEdit(model, PostEditSettings.model_validate(settings), report)


def _serac(model: LanguageModel, settings: Mapping[str, Any], report: Report) -> Serac:
    return Serac(model, SeracSettings.model_validate(settings), report)


EDITORS: Final[Mapping[str, EditorKind]] = {
    LOCATE_THEN_EDIT: EditorKind(_locate_then_edit, Patch.load, Recipe),
    "elder": EditorKind(_elder, StoredEdit.load, ElderSettings),
    "memoir": EditorKind(_memoir, StoredEdit.load, MemoirSettings),
    "grace": EditorKind(_grace, StoredEdit.load, GraceSettings),
    "wise": EditorKind(_wise, StoredEdit.load, WiseSettings),
    "melo": EditorKind(_melo, StoredEdit.load, MeloSettings),
    "t_patcher": EditorKind(_t_patcher, StoredEdit.load, TPatcherSettings),
    "ft": _weights(FineTuning, FtSettings),
    "ft_l": _weights(FineTuning, FtLSettings),
    "ft_m": _weights(FineTuning, FtMSettings),
    "ft_bf": _weights(FineTuning, FtBfSettings),
    "lora": _weights(Lora, LoraSettings),
    RETRIEVAL: EditorKind(_retrieval, StoredEdit.load, RetrievalSettings, _retrieval),
    SUBSTITUTE: EditorKind(_substitute, StoredEdit.load, SubstituteSettings, _substitute),
    POST_EDIT: EditorKind(_post_edit, StoredEdit.load, PostEditSettings, _post_edit),
    "serac": EditorKind(_serac, StoredEdit.load, SeracSettings),
    MEND: _weights(Mend, MendSettings),
    RLEDIT: _weights(Rledit, RleditSettings),
    "simie": _weights(Simie, SimieSettings),
    "ultra": _weights(GradientWrite, UltraSettings),
    "stable": _weights(GradientWrite, StableSettings),
    "kn": _weights(KnowledgeNeurons, KnSettings),
}


def editor_settings(name: str, file: RecipeFile | None, changes: Mapping[str, Any]) -> EditorSettings:
    """The settings of an editor: its defaults, a recipe file's ``editors`` section over them, and changes over that.

    Args:
        file: None for the defaults.
        changes: field -> value.

    Raises:
        InputError: if there is no such editor.
        FaultsError: for every invalid key, with its line.
    """
    kind = editor_named(name).settings
    assert issubclass(kind, EditorSettings)
    section = {} if file is None else file.editors.get(name) or {}
    if file is not None and not isinstance(section, Mapping):
        raise FaultsError(f"the recipe {file.source}", file.faults())
    faults: list[Fault] = []
    try:
        return kind.model_validate({**section, **changes})
    except ValidationError as error:
        for path, fault in _faults(error, kind):
            place: KeyPath = ("editors", name, *path)
            line = None if file is None else line_of(file.lines, place)
            where = name if file is None else place_of(file.source, place)
            faults.append(replace(fault, where=where, line=line))
    raise FaultsError(f"the settings of {name}", faults)


def editor_faults(file: RecipeFile) -> list[Fault]:
    """The faults of a recipe file's section ``editors``, except entries that are not mappings: see ``file.faults``."""
    faults: list[Fault] = []
    for name, entry in file.editors.items():
        place: KeyPath = ("editors", name)
        if name not in EDITOR_NAMES:
            remedy = f"{did_you_mean(str(name), EDITOR_NAMES)}`errata methods` lists all"
            where, line = place_of(file.source, place), line_of(file.lines, place)
            faults.append(Fault(where, f"there is no editor {str(name)!r}", remedy, line, code="EDITOR_UNKNOWN"))
        elif entry is None or isinstance(entry, Mapping):
            try:
                editor_settings(name, file, {})
            except FaultsError as error:
                faults += error.faults
    return faults


def changed_settings(name: str, settings: EditorSettings, changes: Mapping[str, Any]) -> EditorSettings:
    """An editor's settings with other values of some fields.

    Raises:
        FaultsError: if they are then invalid.
    """
    kind = type(settings)
    try:
        return kind.model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        faults = [fault for _, fault in _faults(error, kind)]
        raise FaultsError(f"{name} with {', '.join(changes)} of your choice", faults) from error


def _faults(error: ValidationError, kind: type[Settings]) -> Iterator[tuple[KeyPath, Fault]]:
    for item in error.errors():
        yield fault_at("the settings", item, known=kind.model_fields)


def make_editor(name: str, base: Base, settings: Mapping[str, Any], report: Report) -> KnowledgeEditor:
    """The editor of ``name`` on any base.

    Raises:
        InputError: if there is none, or if it needs weights that are not at hand.
    """
    kind = editor_named(name)
    if kind.black_box is not None:
        return kind.black_box(base, settings, report)
    return kind.make(with_weights(base, f"{name!r}"), settings, report)


def editor_named(name: str, editors: Mapping[str, EditorKind] = EDITORS) -> EditorKind:
    """The editor of ``name``.

    Raises:
        InputError: if there is no such editor; offers the nearest.
    """
    if name not in editors:
        remedy = f"{did_you_mean(name, editors)}Known: {', '.join(editors)}"
        raise InputError(f"there is no editor {name!r}", remedy=remedy, code="EDITOR_UNKNOWN")
    return editors[name]
