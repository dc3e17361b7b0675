"""The base of all sections of recipes, grids and studies."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictInt

Positive: TypeAlias = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
        raise ValueError("layers must be ascending, distinct and not negative")
    return layers


Layers: TypeAlias = Annotated[tuple[StrictInt, ...], Field(min_length=1), AfterValidator(_ascending)]
"""Numbers of blocks, ascending; at least one."""


class Settings(BaseModel):
    """A frozen section that refuses unknown keys.

    Numbers and choices are strict: true is not 1, 8.0 is not an integer, and text is neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


def by_kind(union: Any) -> dict[str, Any]:
    """Kind -> class, of an annotated union of sections that differ in the default of their field ``kind``."""
    sections = get_args(get_args(union)[0])
    return {section.model_fields["kind"].default: section for section in sections}
