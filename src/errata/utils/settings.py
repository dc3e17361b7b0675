"""The base of all sections of recipes, grids and studies."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictFloat

Positive: TypeAlias = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """A frozen section that refuses unknown keys.

    Numbers and choices are strict: true is not 1, 8.0 is not an integer, and text is neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
