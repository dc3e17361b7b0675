"""The error family: each says what was wrong, what was expected and got, and what to do about it."""

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
        code: a stable name of this kind of error, in capitals; by default that of the class.

    Attributes:
        code: as given. Messages may be reworded, codes are not.
    """

    exit_status = 1
    code = "FAILED"

    def __init__(self, what: str, *, remedy: str = "", code: str = "") -> None:
        self.what = what
        self.remedy = remedy
        if code:
            self.code = code
        super().__init__(f"{what}. {remedy}" if remedy else f"{what}.")


class InputError(ErrataError):
    """What the user gave is wrong: a file, an option, a model that cannot be edited. Exit status 2."""

    exit_status = 2
    code = "INPUT"


class OutputError(ErrataError):
    """What was to be written could not be: the disk is full, or refuses it. Of the output nothing is left behind."""

    code = "OUTPUT"


class InterruptedRunError(ErrataError):
    """Somebody stopped a run that is kept on disk; it can go on. Exit status 130."""

    exit_status = 130
    code = "INTERRUPTED"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in an input: where it is, what is wrong, what to do; its line, unless ``where`` tells it."""

    where: str
    what: str
    remedy: str
    line: int | None = None
    code: str = "INPUT"

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        place = f"{self.where}{line}: " if self.where else ""  # what an InputError says names its place itself
        return f"{place}{self.what}. {self.remedy}" if self.remedy else f"{place}{self.what}"


class FaultsError(InputError):
    """Several things are wrong with an input; all of them are told at once.

    Args:
        shown: how many of them the message names; all if None. ``faults`` holds them all.
        remedy: what to do about all of them together.

    Its code is that of its faults where they have the same, else ``SEVERAL``.
    """

    def __init__(self, subject: str, faults: Sequence[Fault], *, shown: int | None = None, remedy: str = "") -> None:
        self.faults = tuple(faults)
        self.subject = subject
        count = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
        named = [f"  {fault}" for fault in self.faults[:shown]]
        if left := len(self.faults) - len(named):
            named.append(f"  … and {left:,} more")
        codes = {fault.code for fault in self.faults}
        code = codes.pop() if len(codes) == 1 else "SEVERAL"
        super().__init__("\n".join([f"{subject} has {count}:", *named]), code=code)
        if remedy:
            self.remedy = remedy
            self.args = (f"{self.what}\n{remedy}",)


class Part:
    """A block whose InputError is kept for later, so that the next input is looked at too; see ``told_together``."""

    def __init__(self) -> None:
        self._errors: dict[str, InputError] = {}

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, InputError):
            return False
        self._errors.setdefault(str(error), error)  # what two parts suffer from is told once
        return True

    def check(self, subject: str) -> None:
        """Raises what one part raised, or a FaultsError of all that several raised."""
        errors = list(self._errors.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise FaultsError(subject, [fault for error in errors for fault in _faults_of(error)])


def _faults_of(error: InputError) -> Sequence[Fault]:
    return error.faults if isinstance(error, FaultsError) else (Fault("", error.what, error.remedy, code=error.code),)


@contextmanager
def told_together(subject: str) -> Iterator[Part]:
    """Look at several inputs, and tell at the end what is wrong with any of them::

        with told_together("what was given") as part:
            with part:
                recipe = read_recipe(path, method)
            with part:
                facts = read_facts(file)
        # here there are both

    Args:
        subject: what all inputs together are called.

    Raises:
        InputError: the one that the one wrong part raised.
        FaultsError: if several parts are wrong.
    """
    part = Part()
    with part:
        yield part
    part.check(subject)


class UnsupportedModelError(InputError):
    """The model's architecture is not one that errata can edit."""

    code = "MODEL_UNSUPPORTED"


class EditError(ErrataError):
    """An edit could not be made; the model is bit for bit what it was before."""

    code = "EDIT_FAILED"


class NonFiniteError(EditError):
    """A NaN or an infinity appeared; names the fact and the layer where it did."""

    code = "NOT_FINITE"

    def __init__(self, quantity: str, *, facts: Sequence[str], layer: int | None) -> None:
        self.quantity, self.facts, self.layer = quantity, tuple(facts), layer
        place = "" if layer is None else f" at layer {layer}"
        shown = ", ".join(repr(fact) for fact in self.facts[:5]) + (" …" if len(self.facts) > 5 else "")
        named = f" of fact{'s' if len(self.facts) > 1 else ''} {shown}" if self.facts else ""
        super().__init__(
            f"the {quantity}{named}{place} is not finite",
            remedy="The model was left as it was; lower the learning rate or the clamp, raise the ridge, or leave the "
            "fact out",
        )


class MissingExtraError(InputError):
    """A feature needs packages that only an extra installs."""

    code = "EXTRA_MISSING"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"packages are not installed that are needed for {feature}", remedy=f"pip install 'errata[{extra}]'"
        )
