"""One row per editor besides locate-then-edit: its paper, what it changes, and where it differs from the paper.

Light to import, for the command line: ``registry`` has what makes the editors. ``--method`` takes their names as it
takes those of ``editing.methods``, whose rows all belong to one editor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pydantic import Field, StrictInt

from errata.editing.methods import METHOD_NAMES, method_named
from errata.errors import InputError
from errata.results.metrics import Ability
from errata.utils.settings import Settings
from errata.utils.text import did_you_mean

Where: TypeAlias = Literal["weights", "hooks", "prompt", "answer"]
"""What an editor changes: weights, activations during a forward pass, the prompt, or the finished answer."""


ABILITIES: Final[Mapping[Where, frozenset[Ability]]] = {
    "weights": frozenset(("likelihood", "generation", "rolling")),
    "hooks": frozenset(("likelihood", "generation")),
    "prompt": frozenset(("likelihood", "generation")),
    "answer": frozenset(("generation",)),
}
"""What a model edited in such a place can be asked for; see ``editors.contract.Answerer``."""


class EditorSettings(Settings):
    """What all editors of the table have; each adds its own."""

    seed: StrictInt = Field(0, ge=0, description="of everything random")
    batch_size: StrictInt = Field(25, ge=1, description="facts that are edited together")


@dataclass(frozen=True, slots=True)
class EditorRow:
    """An editor.

    Attributes:
        name: the value of ``--method``.
        title: its description in one line.
        paper: where it was published.
        where: what it changes.
        deviations: where this differs from the paper or its published code, and why.
        undo: which edits can be removed: ``any``, or only the ``last``.
    """

    name: str
    title: str
    paper: str
    where: Where
    deviations: tuple[str, ...] = ()
    undo: Literal["any", "last"] = "any"


EDITOR_ROWS: Final[tuple[EditorRow, ...]] = (
    EditorRow(
        "grace",
        "a codebook of activations: a query close to a stored key gets its trained vector as a module's output",
        "Hartvigsen et al. 2023, Aging with GRACE, NeurIPS, arXiv:2211.11031",
        "hooks",
        deviations=(
            "The query is read at the prompt's last token in every case; the published code takes its position from "
            "the evaluation's labels.",
            "Labels are compared as token sequences; the published code compares the means of their ids.",
            "The radius is a share of the distance between unrelated prompts, and the learning rate one of the "
            "module's own output, since both scale with the model (published: 1 and 1, as they are).",
            "The vector holds from the prompt's last token on; published forms replace that token or those before it.",
            "The new vectors of a batch are trained together until their loss is small; a vector that a later fact "
            "joins is not trained again.",
            "A fact replaces an earlier one with the same prompt.",
            "Removing an edit replays the assignment of the others.",
        ),
    ),
)
EDITOR_NAMES: Final[tuple[str, ...]] = tuple(row.name for row in EDITOR_ROWS)


def check_method(name: str) -> None:
    """Raises InputError if there is neither a method nor an editor of this name; offers the nearest."""
    if name in EDITOR_NAMES:
        return
    try:
        method_named(name)
    except InputError as error:
        if not EDITOR_NAMES:
            raise
        hint = did_you_mean(name, (*METHOD_NAMES, *EDITOR_NAMES))
        remedy = f"{hint}Known: {', '.join((*METHOD_NAMES, *EDITOR_NAMES))}"
        raise InputError(error.what, remedy=remedy, code=error.code) from error


def editor_row(name: str) -> EditorRow:
    """The row of an editor; raises KeyError if there is none."""
    return next(row for row in EDITOR_ROWS if row.name == name)
