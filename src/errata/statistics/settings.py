"""Settings of key statistics: which text, and how much of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator
from pydantic_core import PydanticCustomError

# Texts for key statistics that come with errata, by the names that recipes give them; anything else is a path.
BUILTIN = "builtin"
NAMED_CORPORA = frozenset({"lab", BUILTIN})


class Settings(BaseModel):
    """A section: nothing in it changes, and nothing in it is unknown.

    Numbers and choices are strict: true is not 1, 8.0 is no whole number, and text is neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class StatisticsSettings(Settings):
    """The text over which the second moment of keys is taken."""

    corpus: str = Field(
        description="'builtin' (a small text that comes with errata), 'lab' (the embedded model's), or the path, "
        "relative to the recipe's file, of a plain text file with blank lines between documents"
    )
    documents: StrictInt | None = Field(None, ge=1, description="how many documents to read, in place of tokens")
    tokens: StrictInt | None = Field(None, ge=1, validate_default=True, description="how many tokens to read")
    length: StrictInt = Field(ge=1, description="documents are cut at this many tokens")
    special_tokens: StrictBool = Field(True, description="whether keys of BOS and other special tokens count")

    @field_validator("tokens")
    @classmethod
    def _one_amount(cls, tokens: int | None, info: Any) -> int | None:
        if "documents" not in info.data:  # it is wrong itself
            return tokens
        if tokens is None and info.data["documents"] is None:
            raise PydanticCustomError("missing", "field required, or 'documents' in its place")
        if tokens is not None and info.data["documents"] is not None:
            raise ValueError("'documents' stands there too: give one of the two")
        return tokens

    @property
    def amount(self) -> int:
        """How much is read, in the unit that was given."""
        return self.tokens or self.documents or 0
