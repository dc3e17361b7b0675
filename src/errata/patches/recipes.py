"""The recipes that patches hold: of locate-then-edit methods, and of editors with settings of their own kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import yaml
from pydantic import Field, StrictInt

from errata.editing.recipe import Recipe
from errata.utils.settings import Settings
from errata.utils.yaml import Dumper


class EditorRecipe(Settings):
    """Everything that decides an edit by an editor of the registry, given model and facts."""

    method: str = Field(description="the editor's name in the registry")
    seed: StrictInt = Field(0, description="seed of everything random")
    batch_size: StrictInt = Field(ge=1, description="facts that are edited together")
    settings: Mapping[str, Any] = Field(description="the editor's settings, as JSON")

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the texts that it refers to: none."""
        return ()

    def without_directories(self) -> EditorRecipe:
        """The recipe with only the last parts of paths, for publication."""
        return self

    def to_yaml(self) -> str:
        return yaml.dump(self.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


AnyRecipe: TypeAlias = Recipe | EditorRecipe
