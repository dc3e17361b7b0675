"""Settings of key statistics: the text and its amount."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool, StrictInt, field_validator
from pydantic_core import PydanticCustomError

from errata.errors import InputError
from errata.utils.settings import Settings

# Texts that come with errata, by their names in recipes; anything else is a path.
BUILTIN = "builtin"
NAMED_CORPORA = frozenset({"lab", BUILTIN})


class StatisticsSettings(Settings):
    """The text over which the second moment of keys is taken."""

    corpus: str = Field(
        description="'builtin' (a small text that comes with errata), 'lab' (the embedded model's), or the path, "
        "relative to the recipe's file, of a plain text file with blank lines between documents"
    )
    documents: StrictInt | None = Field(None, ge=1, description="number of documents to read, instead of tokens")
    tokens: StrictInt | None = Field(None, ge=1, validate_default=True, description="number of tokens to read")
    length: StrictInt = Field(ge=1, description="documents are cut at this many tokens")
    special_tokens: StrictBool = Field(True, description="whether keys of BOS and other special tokens count")

    @field_validator("tokens")
    @classmethod
    def _one_amount(cls, tokens: int | None, info: Any) -> int | None:
        if "documents" not in info.data:  # which is reported on its own
            return tokens
        if tokens is None and info.data["documents"] is None:
            raise PydanticCustomError("missing", "field required, or 'documents' instead")
        if tokens is not None and info.data["documents"] is not None:
            raise ValueError("'documents' is given too: give one of the two")
        return tokens

    @property
    def amount(self) -> int:
        """The amount of text, in the given unit."""
        return self.tokens or self.documents or 0


def corpus_too_short(settings: StatisticsSettings, found: int) -> InputError:
    """The error for a corpus with fewer tokens, or documents, than the settings."""
    unit = "documents" if settings.tokens is None else "tokens"
    return InputError(
        f"the corpus {settings.corpus!r} has {found} {unit}, but {settings.amount} are needed",
        remedy=f"Give more text (a blank line ends a document), or a --recipe with fewer statistics.{unit}; "
        "`errata recipe show --method …` prints one to change",
        code="CORPUS_TOO_SHORT",
    )


def corpus_without_text(settings: StatisticsSettings) -> InputError:
    """The error for an empty corpus, where any amount of text would do."""
    what = f"the corpus {settings.corpus!r} has no text"
    return InputError(what, remedy="Give a text file", code="CORPUS_TOO_SHORT")
