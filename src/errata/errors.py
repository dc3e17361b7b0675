"""Errors of errata: each says what is wrong, what was expected, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType


class ErrataError(Exception):
    """The work failed. The command line exits with status 1.

    Args:
        what: what went wrong, one sentence without a full stop.
        remedy: what the user can do about it.
        code: stable name of this kind of error, in capitals; by default that of the class.

    Attributes:
        code: as given. Messages may be reworded, codes may not.
    """

    exit_status = 1
    code = "FAILED"

    def __init__(self, what: str, *, remedy: str = "", code: str = "") -> None:
        self.what = what
        self.remedy = remedy
        if code:
            self.code = code
        sentence = what if what.endswith(("?", "!")) else f"{what}."
        super().__init__(f"{sentence} {remedy}" if remedy else sentence)


class InputError(ErrataError):
    """Invalid input: a file, an option, a model that cannot be edited. Exit status 2."""

    exit_status = 2
    code = "INPUT"


class OutputError(ErrataError):
    """Output could not be written, for example because the disk is full. No partial output remains."""

    code = "OUTPUT"


class InterruptedRunError(ErrataError):
    """The user interrupted a run that is stored on disk and can be resumed. Exit status 130."""

    exit_status = 130
    code = "INTERRUPTED"


@dataclass(frozen=True, slots=True)
class Fault:
    """One error in an input.

    Attributes:
        where: the place in the input, such as ``facts.jsonl:3``.
        what: what is wrong, without a full stop.
        remedy: what to do about it.
        line: the line number, if ``where`` does not include it.
        code: stable name of this kind of error.
    """

    where: str
    what: str
    remedy: str
    line: int | None = None
    code: str = "INPUT"

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        place = f"{self.where}{line}: " if self.where else ""
        return f"{place}{self.what}. {self.remedy}" if self.remedy else f"{place}{self.what}"


class FaultsError(InputError):
    """All errors found in an input, reported together.

    Args:
        subject: name of the input.
        shown: number of faults that the message lists; all if None. ``faults`` always holds all of them.
        remedy: what to do about all of them.
        before: the beginning of the message, such as ``"the base model is needed: "``.

    The code is the common code of the faults. If they differ, it is ``SEVERAL`` and the message shows each code.
    """

    def __init__(
        self, subject: str, faults: Sequence[Fault], *, shown: int | None = None, remedy: str = "", before: str = ""
    ) -> None:
        self.faults = tuple(faults)
        self.subject = subject
        count = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
        codes = {fault.code for fault in self.faults}
        code = codes.pop() if len(codes) == 1 else "SEVERAL"
        listed = self.faults[:shown]
        lines = [f"  [{fault.code}] {fault}" if code == "SEVERAL" else f"  {fault}" for fault in listed]
        if left := len(self.faults) - len(lines):
            lines.append(f"  … and {left:,} more")
        super().__init__("\n".join([f"{before}{count} in {subject}:", *lines]), code=code)
        if remedy:
            self.remedy = remedy
            self.args = (f"{self.what}\n{remedy}",)


class ErrorCollector:
    """A context manager that stores an InputError of its block for later; see ``collect_errors``."""

    def __init__(self) -> None:
        self._errors: dict[str, InputError] = {}

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, InputError):
            return False
        self._errors.setdefault(str(error), error)  # the same error of two blocks is reported once
        return True

    def check(self, subject: str) -> None:
        """Raise the only stored error, or a FaultsError of all stored errors."""
        errors = list(self._errors.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise FaultsError(subject, [fault for error in errors for fault in faults_of(error)])


def faults_of(error: InputError, where: str = "") -> Sequence[Fault]:
    """The faults of an error; ``where`` is the place of one that names none."""
    if isinstance(error, FaultsError):
        return error.faults
    return (Fault(where, error.what, error.remedy, code=error.code),)


@contextmanager
def collect_errors(subject: str) -> Iterator[ErrorCollector]:
    """Check several inputs and report the errors of all of them together::

        with collect_errors("the input") as part:
            with part:
                recipe = read_recipe(path, method)
            with part:
                facts = read_facts(file)
        # here both are valid

    Args:
        subject: name of all inputs together.

    Raises:
        InputError: the only error that was raised.
        FaultsError: if there were several.
    """
    part = ErrorCollector()
    with part:
        yield part
    part.check(subject)


class UnsupportedModelError(InputError):
    """errata cannot edit this model's architecture."""

    code = "MODEL_UNSUPPORTED"


class EditError(ErrataError):
    """An edit failed; the model's weights are unchanged, bit for bit."""

    code = "EDIT_FAILED"


class NonFiniteError(EditError):
    """A quantity became NaN or infinite.

    Args:
        quantity: its name.
        facts: ids of the facts concerned.
        layer: index of the layer, if one is concerned.
    """

    code = "NOT_FINITE"

    def __init__(self, quantity: str, *, facts: Sequence[str], layer: int | None) -> None:
        self.quantity, self.facts, self.layer = quantity, tuple(facts), layer
        place = "" if layer is None else f" at layer {layer}"
        names = ", ".join(repr(fact) for fact in self.facts[:5]) + (", …" if len(self.facts) > 5 else "")
        of_facts = f" of fact{'s' if len(self.facts) > 1 else ''} {names}" if self.facts else ""
        super().__init__(
            f"the {quantity}{of_facts}{place} is not finite",
            remedy="The model is unchanged. Lower the learning rate or the clamp, raise the ridge, or remove the fact",
        )


class MissingExtraError(InputError):
    """A feature needs optional dependencies that are not installed."""

    code = "EXTRA_MISSING"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs optional dependencies", remedy=f"pip install 'errata[{extra}]'")
