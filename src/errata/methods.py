"""One row per published method: its paper and its five choices (where, target, schedule, solver, shaping).

``+blue`` behind any row's name takes the row with the ``boundary`` schedule instead of its own.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from errata.errors import InputError

BOUNDARY_SUFFIX = "+blue"
BOUNDARY_TITLE = "write the first and the last critical layer only, each with a residual computed for itself"
BOUNDARY_PAPER = (
    "Li et al. 2025, Rethinking Residual Distribution in Locate-then-Edit Model Editing (NeurIPS 2025), "
    "arXiv:2502.03748"
)


@dataclass(frozen=True, slots=True)
class Method:
    """A row.

    Attributes:
        name: what ``--method`` takes.
        title: one line for people.
        paper: where it was published.
        site: ``block`` or ``mlp``: where the target vector lives. Families with a norm behind the MLP always use
            ``mlp`` (methods.md, section 1).
        target: how the target is found.
        schedule: which layers are written towards which target.
        solver: how keys and residuals become a weight change.
        history: whether keys of earlier batches of a run are kept from changing.
    """

    name: str
    title: str
    paper: str
    site: str
    target: str
    schedule: str
    solver: str
    history: bool = False


METHODS: tuple[Method, ...] = (
    Method(
        name="memit",
        title="spread the last layer's residual over all critical layers, least squares",
        paper="Meng et al. 2023, Mass-Editing Memory in a Transformer (ICLR 2023), arXiv:2210.07229",
        site="block",
        target="memit",
        schedule="even",
        solver="least_squares",
    ),
    Method(
        name="memit_seq",
        title="memit that also keeps the keys of earlier batches in place",
        paper="Meng et al. 2023, arXiv:2210.07229, with the history term of Fang et al. 2025, arXiv:2410.02355",
        site="block",
        target="memit",
        schedule="even",
        solver="least_squares",
        history=True,
    ),
    Method(
        name="alphaedit",
        title="memit projected into the null space of ordinary keys, with history",
        paper="Fang et al. 2025, AlphaEdit: Null-Space Constrained Knowledge Editing (ICLR 2025), arXiv:2410.02355",
        site="block",
        target="memit",
        schedule="even",
        solver="null_space",
        history=True,
    ),
)


def method_named(name: str) -> Method:
    """The row of ``name``, which may end in ``+blue``.

    Raises:
        InputError: if there is no such row; offers the nearest.
    """
    base = name.removesuffix(BOUNDARY_SUFFIX)
    known = {method.name: method for method in METHODS}
    if base not in known:
        names = [*known, *(f"{key}{BOUNDARY_SUFFIX}" for key in known)]
        parts = name.split("+")
        wanted = "+".join(sorted(parts, key=lambda part: part == "blue"))  # 'blue+memit' has its parts the wrong way
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(f"there is no method {name!r}", remedy=f"{hint}Known: {', '.join(names)}")
    if base == name:
        return known[base]
    row = known[base]
    return replace(row, name=name, title=f"{row.title}; boundary layers only", schedule="boundary")
