"""errata corrects what a language model knows: facts are edited into its weights, and what else changed is shown.

The public names are imported when they are first used, for torch takes seconds: `errata --help` and Ctrl-C do not wait
for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.batch_record import BatchRecord
    from errata.edit import Editor
    from errata.errors import EditError, ErrataError, FaultsError, InputError, NonFiniteError, UnsupportedModelError
    from errata.facts import Fact, FactSet, Question
    from errata.facts_io import facts_from_records, read_facts, write_facts
    from errata.loading import load_model
    from errata.methods import METHODS, Method, method_named
    from errata.models.generation import generate
    from errata.models.language_model import LanguageModel
    from errata.patch import Patch
    from errata.recipe import Recipe, read_recipe, shipped_recipe
    from errata.stack import Stack, read_stack

__version__ = "0.1.0"

_HOME = {
    "BatchRecord": "errata.batch_record",
    "EditError": "errata.errors",
    "Editor": "errata.edit",
    "ErrataError": "errata.errors",
    "Fact": "errata.facts",
    "FactSet": "errata.facts",
    "FaultsError": "errata.errors",
    "InputError": "errata.errors",
    "LanguageModel": "errata.models.language_model",
    "METHODS": "errata.methods",
    "Method": "errata.methods",
    "NonFiniteError": "errata.errors",
    "Patch": "errata.patch",
    "Question": "errata.facts",
    "Recipe": "errata.recipe",
    "Stack": "errata.stack",
    "UnsupportedModelError": "errata.errors",
    "facts_from_records": "errata.facts_io",
    "generate": "errata.models.generation",
    "load_model": "errata.loading",
    "method_named": "errata.methods",
    "read_facts": "errata.facts_io",
    "read_recipe": "errata.recipe",
    "read_stack": "errata.stack",
    "shipped_recipe": "errata.recipe",
    "write_facts": "errata.facts_io",
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
