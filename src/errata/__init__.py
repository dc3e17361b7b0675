"""errata corrects what a language model knows: facts are edited into its weights, and what else changed is shown."""

from __future__ import annotations

from errata.edit import BatchRecord, Editor
from errata.errors import EditError, ErrataError, FaultsError, InputError, NonFiniteError, UnsupportedModelError
from errata.facts import Fact, FactSet, Question
from errata.facts_io import facts_from_records, read_facts, write_facts
from errata.methods import METHODS, Method, method_named
from errata.models.generation import generate
from errata.models.language_model import LanguageModel
from errata.patch import Patch
from errata.recipe import Recipe, read_recipe, shipped_recipe

__version__ = "0.1.0"

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
    "UnsupportedModelError",
    "__version__",
    "facts_from_records",
    "generate",
    "method_named",
    "read_facts",
    "read_recipe",
    "shipped_recipe",
    "write_facts",
]
