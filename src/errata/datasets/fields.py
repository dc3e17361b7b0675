"""The fields of one record of a published file: each is asked for by name, and what is wrong is gathered.

Texts are stripped of whitespace at both ends, everywhere and always: errata joins prompt and continuation with exactly
one space, so the space that some files put before a target (`" English"`) or behind a prompt carries nothing. Nothing
else of a text is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from errata.errors import Fault
from errata.facts_rules import placed_in_clear_text, shown

_NOTHING: Final[Mapping[str, Any]] = {}


class Fields:
    """A record, or an object within one.

    Attributes:
        index: the record's position in its file, from 0.
        faults: what was found wrong so far, shared with the objects inside.
    """

    def __init__(self, value: object, place: str, index: int = 0, *, path: str = "", faults: list[Fault] | None = None):
        self.place = place
        self.index = index
        self.faults: list[Fault] = [] if faults is None else faults
        self._path = path
        self._silent = False
        self._values: Mapping[str, Any] = _NOTHING
        if isinstance(value, Mapping):
            self._values = value
        else:
            what = f"'{path}'" if path else "the record"
            self.fault(f"{what} is {_kind(value)}, not an object", "Get the file again, or correct it")
            self._silent = True  # what such a record lacks is all told by that

    def fault(self, what: str, remedy: str) -> None:
        """Note what is wrong with the record."""
        if not self._silent:
            self.faults.append(Fault(self.place, what, remedy))

    def has(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return self._values.get(key) is not None

    def has_list(self, key: str) -> bool:
        """Whether the value is a list."""
        return isinstance(self._values.get(key), list)

    def text(self, key: str) -> str:
        """A text, stripped; a fault, and an empty text, if it is missing, empty or no text."""
        value = self._value(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fault(f"'{self._name(key)}' is {_kind(value)}, not text", "Correct the file")
            return ""
        if not value.strip():
            self.fault(f"'{self._name(key)}' is empty", "Fill it in")
        return value.strip()

    def text_or_none(self, key: str) -> str | None:
        """A text, stripped; None if it is absent, null or empty."""
        value = self._values.get(key)
        return None if value is None or (isinstance(value, str) and not value.strip()) else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, each stripped; an absent one is a fault, an empty one is not."""
        return tuple(
            self._inside(str(number), entry, key).text_itself() for number, entry in enumerate(self._list(key))
        )

    def texts_if_any(self, key: str) -> tuple[str, ...]:
        """The same; an absent list is an empty one."""
        return self.texts(key) if self.has(key) else ()

    def part(self, key: str) -> Fields:
        """An object inside."""
        value = self._value(key)
        if value is None:
            nothing = Fields(_NOTHING, self.place, self.index, faults=self.faults)
            nothing._silent = True
            return nothing
        return Fields(value, self.place, self.index, path=self._name(key), faults=self.faults)

    def parts(self, key: str) -> tuple[Fields, ...]:
        """A list of objects; an absent one is a fault, an empty one is not."""
        name = self._name(key)
        return tuple(
            Fields(entry, self.place, self.index, path=f"{name}[{number}]", faults=self.faults)
            for number, entry in enumerate(self._list(key))
        )

    def parts_if_any(self, key: str) -> tuple[Fields, ...]:
        """The same; an absent list is an empty one."""
        return self.parts(key) if self.has(key) else ()

    def name(self, key: str) -> str:
        """A whole number or a text, as text: an id."""
        value = self._value(key)
        if type(value) is int and abs(value) < 2**63:
            return str(value)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.fault(f"'{self._name(key)}' is {shown(value)}, not a number or a name", "Correct the file")
            return ""
        return "" if value is None else str(value).strip()

    def prompt_around(self, prompt: str, subject: str, key: str = "prompt") -> str | None:
        """The prompt with ``{}`` where the subject stands in clear text; None if that is not certain.

        See ``facts_rules.placed_in_clear_text``. Where the subject stands several times and none of them is certain,
        the record is well-formed but ambiguous: None without a fault. A subject that does not occur is a fault.
        """
        if not prompt or not subject:
            return None
        if subject not in prompt:
            self.fault(f"'{self._name(key)}' {shown(prompt)} does not hold the subject {shown(subject)}", "Correct it")
            return None
        return placed_in_clear_text(prompt, subject)

    def text_itself(self) -> str:
        """What ``texts`` asks of an entry."""
        return self.text("")

    def _value(self, key: str) -> Any:
        value = self._values.get(key)
        if value is None:
            self.fault(f"'{self._name(key)}' is missing", "Get the file again, or correct it")
        return value

    def _list(self, key: str) -> list[object]:
        value = self._value(key)
        if value is not None and not isinstance(value, list):
            self.fault(f"'{self._name(key)}' is {_kind(value)}, not a list", "Correct the file")
            return []
        return value or []

    def _inside(self, number: str, entry: object, key: str) -> Fields:
        """An entry of a list as the value of the empty key, so that its faults name its position."""
        path = f"{self._name(key)}[{number}]"
        return Fields({"": entry}, self.place, self.index, path=path, faults=self.faults)

    def _name(self, key: str) -> str:
        return ".".join(part for part in (self._path, key) if part)


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)
