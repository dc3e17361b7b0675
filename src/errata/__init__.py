"""errata corrects what a language model knows: facts are edited into its weights, and what else changed is shown.

The public names are imported when they are first used, for torch takes seconds: `errata --help` and Ctrl-C do not wait
for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from errata._version import __version__

if TYPE_CHECKING:
    from errata.editing.batch import BatchRecord
    from errata.editing.methods import METHODS, Method, method_named
    from errata.editing.recipe import Recipe, read_recipe, shipped_recipe
    from errata.editors.locate_then_edit import Editor
    from errata.errors import EditError, ErrataError, FaultsError, InputError, NonFiniteError, UnsupportedModelError
    from errata.facts.fact import Fact, FactSet, Question
    from errata.facts.files import facts_from_records, read_facts, write_facts
    from errata.models.generation import generate
    from errata.models.language_model import LanguageModel
    from errata.patches.patch import Patch
    from errata.patches.stack import Stack, read_stack
    from errata.runs.loading import load_model

_HOME = {
    "BatchRecord": "errata.editing.batch",
    "EditError": "errata.errors",
    "Editor": "errata.editors.locate_then_edit",
    "ErrataError": "errata.errors",
    "Fact": "errata.facts.fact",
    "FactSet": "errata.facts.fact",
    "FaultsError": "errata.errors",
    "InputError": "errata.errors",
    "LanguageModel": "errata.models.language_model",
    "METHODS": "errata.editing.methods",
    "Method": "errata.editing.methods",
    "NonFiniteError": "errata.errors",
    "Patch": "errata.patches.patch",
    "Question": "errata.facts.fact",
    "Recipe": "errata.editing.recipe",
    "Stack": "errata.patches.stack",
    "UnsupportedModelError": "errata.errors",
    "facts_from_records": "errata.facts.files",
    "generate": "errata.models.generation",
    "load_model": "errata.runs.loading",
    "method_named": "errata.editing.methods",
    "read_facts": "errata.facts.files",
    "read_recipe": "errata.editing.recipe",
    "read_stack": "errata.patches.stack",
    "shipped_recipe": "errata.editing.recipe",
    "write_facts": "errata.facts.files",
}

__all__ = [
    "METHODS",
    "BatchRecord",
    "EditError",
    "Editor",
    "ErrataError",
    "Fact",
    "FactSet",
    "FaultsError",
    "InputError",
    "LanguageModel",
    "Method",
    "NonFiniteError",
    "Patch",
    "Question",
    "Recipe",
    "Stack",
    "UnsupportedModelError",
    "__version__",
    "facts_from_records",
    "generate",
    "load_model",
    "method_named",
    "read_facts",
    "read_recipe",
    "read_stack",
    "shipped_recipe",
    "write_facts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'errata' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
