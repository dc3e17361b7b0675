"""Settings of key statistics: the text and its amount, or a file that holds statistics already."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool, StrictInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from errata.errors import InputError
from errata.utils.settings import Settings

# Texts that come with errata, by their names in recipes; anything else is a path.
BUILTIN = "builtin"
NAMED_CORPORA = frozenset({"lab", BUILTIN})


class StatisticsSettings(Settings):
    """The text over which the second moment of keys is taken, or a file of such moments."""

    file: str | None = Field(
        None,
        description="a file of `errata statistics make` or `import`, relative to the recipe's file, instead of all "
        "other settings here",
    )
    corpus: str = Field(
        "",
        validate_default=True,
        description="'builtin' (a small text that comes with errata), 'lab' (the embedded model's), or the path, "
        "relative to the recipe's file, of a plain text file with blank lines between documents",
    )
    documents: StrictInt | None = Field(None, ge=1, description="number of documents to read, instead of tokens")
    tokens: StrictInt | None = Field(None, ge=1, validate_default=True, description="number of tokens to read")
    length: StrictInt = Field(0, ge=0, validate_default=True, description="documents are cut at this many tokens")
    special_tokens: StrictBool = Field(True, description="whether keys of BOS and other special tokens count")

    @field_validator("corpus")
    @classmethod
    def _text_or_file(cls, corpus: str, info: ValidationInfo) -> str:
        return str(_beside_file("corpus", corpus, info))

    @field_validator("length")
    @classmethod
    def _length_of_text(cls, length: int, info: ValidationInfo) -> int:
        return int(_beside_file("length", length, info))

    @field_validator("tokens")
    @classmethod
    def _one_amount(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        if "documents" not in info.data:  # which is reported on its own
            return tokens
        if info.data.get("file") is not None:
            if tokens is not None or info.data["documents"] is not None:
                raise ValueError("'file' is given too, whose amount of text is fixed: give one of the two")
            return None
        if tokens is None and info.data["documents"] is None:
            raise PydanticCustomError("missing", "field required, or 'documents' instead")
        if tokens is not None and info.data["documents"] is not None:
            raise ValueError("'documents' is given too: give one of the two")
        return tokens

    @property
    def amount(self) -> int:
        """The amount of text, in the given unit; 0 for a file."""
        return self.tokens or self.documents or 0

    @property
    def source(self) -> str:
        """The name or the path of the text, or the path of the file."""
        return self.corpus if self.file is None else self.file

    @property
    def summary(self) -> str:
        """The text and its amount, or the file, in words."""
        if self.file is not None:
            return f"from {self.file}"
        return f"over {self.amount} {'documents' if self.tokens is None else 'tokens'} of {self.corpus}"


def _beside_file(name: str, value: Any, info: ValidationInfo) -> Any:
    """A setting that a text needs and a file has already."""
    if "file" not in info.data:  # which is reported on its own
        return value
    if info.data["file"] is None and not value:
        raise PydanticCustomError("missing", "field required, or 'file' instead")
    if info.data["file"] is not None and value:
        raise ValueError(f"'file' is given too, which has its own {name}: give one of the two")
    return value


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
