"""The base of all sections of recipes, grids and studies."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictFloat

Positive: TypeAlias = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """A frozen section that refuses unknown keys.

    Numbers and choices are strict: true is not 1, 8.0 is not an integer, and text is neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


def by_kind(union: Any) -> dict[str, Any]:
    """Kind -> class, of an annotated union of sections that differ in the default of their field ``kind``."""
    sections = get_args(get_args(union)[0])
    return {section.model_fields["kind"].default: section for section in sections}
