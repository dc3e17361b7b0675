"""One row per published method: its paper and its five choices (where, target, schedule, solver, shaping).

``+blue`` after a method's name replaces its schedule by ``boundary``. A row has the choices that define the method; the
settings that depend on the model are in recipes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from errata.errors import InputError
from errata.utils.text import did_you_mean

BOUNDARY_SUFFIX = "+blue"
BOUNDARY_TITLE = "write the first and the last critical layer only, each with a residual computed for itself"
BOUNDARY_PAPER = (
    "Li et al. 2025, Rethinking Residual Distribution in Locate-then-Edit Model Editing (NeurIPS 2025), "
    "arXiv:2502.03748"
)
_NO_TARGET_CACHE = "Targets are never read from a cache that a run on other weights has filled."
_FIRST_TOKEN = (
    "Where a subject would be the very first token of its prompt (no BOS, a subject of one token), a line break is put "
    "before the bare prompt: the key of a first token is shared by all texts."
)
_EVERYWHERE = (_NO_TARGET_CACHE, _FIRST_TOKEN)
_SECOND_TARGET = (
    "The second boundary target is found after the first layer was written, on the weights as they are then; the "
    "authors' runs with a target cache take it from whichever run filled the cache (--as-published: from the unedited "
    "weights)."
)
_UNWEIGHTED_DIVERGENCE = (
    "The search stops on the KL divergence itself, as in the BLUE paper's code; PMET's compares it times its factor."
)


@dataclass(frozen=True, slots=True)
class Method:
    """A row. Mappings are sections of a recipe, with the fields that belong to the method.

    Attributes:
        name: the value of ``--method``.
        title: its description in one line.
        paper: where it was published.
        site: ``block`` or ``mlp``: where the target vector lives. Families with a norm after the MLP always use
            ``mlp`` (methods.md, section 1).
        schedule: which layers are written towards which target.
        solver: how keys and residuals become a weight change.
        target: how the target is found.
        contexts: in which contexts keys, targets and states are taken.
        shaping: of targets, of each batch's change, or of the run's.
        rounds: several passes over a batch.
        deviations: where this differs from the paper or its published code, and why.
        boundary_deviations: the same, of ``+blue`` only.
        with_boundary: the changes that ``+blue`` makes besides the schedule.
    """

    name: str
    title: str
    paper: str
    site: str
    schedule: str
    solver: Mapping[str, Any]
    target: Mapping[str, Any] = field(default_factory=lambda: {"kind": "memit"})
    contexts: Mapping[str, Any] = field(default_factory=dict)
    shaping: tuple[Mapping[str, Any], ...] = ()
    rounds: Mapping[str, Any] | None = None
    deviations: tuple[str, ...] = _EVERYWHERE
    boundary_deviations: tuple[str, ...] = ()
    with_boundary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def choices(self) -> dict[str, Any]:
        """The sections of a recipe that the row decides."""
        sections = {
            "site": self.site,
            "schedule": self.schedule,
            "target": self.target,
            "contexts": self.contexts,
            "solver": self.solver,
            "shaping": self.shaping,
            "rounds": self.rounds,
        }
        return copy.deepcopy({name: value for name, value in sections.items() if value})

    def with_blue(self) -> Method:
        """The row with the boundary schedule."""
        changed = {name: {**getattr(self, name), **value} for name, value in self.with_boundary.items()}
        return replace(
            self,
            name=f"{self.name}{BOUNDARY_SUFFIX}",
            title=f"{self.title}; boundary layers only",
            schedule="boundary",
            deviations=(*self.deviations, *self.boundary_deviations, _SECOND_TARGET),
            **changed,  # type: ignore[arg-type]
        )


_MEMIT = Method(
    name="memit",
    title="spread the last layer's residual over all critical layers, least squares",
    paper="Meng et al. 2023, Mass-Editing Memory in a Transformer (ICLR 2023), arXiv:2210.07229",
    site="block",
    schedule="even",
    solver={"kind": "least_squares", "history": False},
)
_WITH_HISTORY = {"kind": "least_squares", "history": True}
_ROME_CONTEXTS = {"per_opener": 2, "tokens": [5, 10], "keys": "mean"}  # bare + 10 of 5 + 10 of 10 tokens

_PMET = Method(
    name="pmet",
    title="targets found jointly at attention and MLP, the MLP's written, square-root spread, least squares",
    paper="Li et al. 2024, PMET: Precise Model Editing in a Transformer (AAAI 2024), arXiv:2308.08742",
    site="mlp",
    target={"kind": "joint"},
    schedule="sqrt",
    solver={"kind": "least_squares", "history": False},
    deviations=(*_EVERYWHERE, _UNWEIGHTED_DIVERGENCE),
)
METHODS: tuple[Method, ...] = (
    Method(
        name="rome",
        title="one fact after another as a rank-one change of one layer",
        paper="Meng et al. 2022, Locating and Editing Factual Associations in GPT (NeurIPS 2022), arXiv:2202.05262",
        site="mlp",
        schedule="single",
        solver={"kind": "rank_one", "denominator": "bare"},
        contexts=_ROME_CONTEXTS,
    ),
    Method(
        name="r_rome",
        title="rome with the averaged key in all places",
        paper="Gupta et al. 2024, Rebuilding ROME: Resolving Model Collapse during Sequential Model Editing, "
        "arXiv:2403.07175",
        site="mlp",
        schedule="single",
        solver={"kind": "rank_one", "denominator": "averaged"},
        contexts={**_ROME_CONTEXTS, "states": "mean"},
        deviations=(
            *_EVERYWHERE,
            "A fact whose δ is zero leaves the weights alone; the formula would move the averaged state to the bare "
            "prompt's.",
        ),
    ),
    _MEMIT,
    replace(
        _MEMIT,
        name="memit_seq",
        title="memit that also keeps the keys of earlier batches in place",
        paper="Meng et al. 2023, arXiv:2210.07229, with the history term of Fang et al. 2025, arXiv:2410.02355",
        solver=_WITH_HISTORY,
    ),
    _PMET,
    replace(
        _PMET,
        name="pmet_seq",
        title="pmet that also keeps the keys of earlier batches in place",
        paper="Li et al. 2024, arXiv:2308.08742, with the history term of Fang et al. 2025, arXiv:2410.02355",
        solver=_WITH_HISTORY,
    ),
    Method(
        name="emmet",
        title="all facts of a batch met exactly in one layer, with the least change to ordinary keys",
        paper="Gupta et al. 2024, A Unified Framework for Model Editing (Findings of EMNLP 2024), arXiv:2403.14236",
        site="block",
        schedule="single",
        solver={"kind": "equality", "ridge": 0.1, "ridge_of_one": 0.0},
        deviations=(
            *_EVERYWHERE,
            "The authors multiply C by a weight w, which cancels but for ε: their ε = 0.1 is a ridge of 0.1 · w here.",
        ),
    ),
    replace(
        _MEMIT,
        name="rect",
        title="memit; of each change only the relatively largest entries stay",
        paper="Gu et al. 2024, Model Editing Harms General Abilities of Large Language Models: Regularization to the "
        "Rescue (EMNLP 2024), arXiv:2401.04700",
        shaping=({"kind": "rect", "share": 0.4},),
        deviations=(
            *_EVERYWHERE,
            "The authors rectify ROME and keep 20 % of the entries; with MEMIT, 40 % is what the AlphaEdit and BLUE "
            "papers' tables were made with. All layers are solved on unrectified writes, then each is masked.",
        ),
    ),
    replace(
        _MEMIT,
        name="prune",
        title="memit; the largest singular values of the total change are reduced",
        paper="Ma et al. 2025, Perturbation-Restrained Sequential Model Editing (ICLR 2025), arXiv:2405.16821",
        shaping=({"kind": "prune"},),
        deviations=(
            *_EVERYWHERE,
            "The pruned change replaces the change, as in the authors' code; the code of the AlphaEdit and BLUE "
            "papers' tables adds it to the edited weights (--as-published).",
            "A pruned copy is evaluated and saved (optionally after every batch); editing continues from the unpruned "
            "weights.",
        ),
    ),
    Method(
        name="nse",
        title="memit with history on the neurons that matter, in rounds over the facts still open",
        paper="Jiang et al. 2024, Neuron-Level Sequential Editing for Large Language Models (ACL 2025), "
        "arXiv:2410.04045",
        site="block",
        target={"kind": "memit", "weights": "original"},
        schedule="even",
        solver={"kind": "neurons", "history": True},
        rounds={"count": 2},
        deviations=(_FIRST_TOKEN,),
        boundary_deviations=("Targets are found on the weights as they are now, not on the unedited ones as in nse.",),
        with_boundary={"target": {"weights": "current"}},
    ),
    Method(
        name="alphaedit",
        title="memit projected into the null space of ordinary keys, with history",
        paper="Fang et al. 2025, AlphaEdit: Null-Space Constrained Knowledge Editing (ICLR 2025), arXiv:2410.02355",
        site="block",
        schedule="even",
        solver={"kind": "null_space", "history": True},
    ),
)


def published_faults(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The changes made by ``--as-published``, which reproduces known bugs of published code that published numbers
    depend on.

    They depend on the sections and not on a row's name: a schedule or a shaping may be chosen for any row.

    Args:
        sections: of a recipe, or those of ``Method.choices``.

    Returns:
        The changes, section by section; empty if the sections reproduce no such bug.
    """
    changes: dict[str, Any] = {}
    if sections["schedule"] == "boundary":  # a cache of targets that a run on other weights has filled
        changes["target"] = {"weights": "original"}
    shaping = sections.get("shaping", ())
    if any(entry["kind"] == "prune" for entry in shaping):  # the pruned change added to the edited weights
        changes["shaping"] = tuple(
            {**entry, "on_top": True} if entry["kind"] == "prune" else entry for entry in shaping
        )
    return changes


METHOD_NAMES: tuple[str, ...] = (
    *(method.name for method in METHODS),
    *(f"{method.name}{BOUNDARY_SUFFIX}" for method in METHODS),
)


def method_named(name: str) -> Method:
    """The row of ``name``, which may end in ``+blue``.

    Raises:
        InputError: if there is no such row; offers the nearest.
    """
    if name not in METHOD_NAMES:
        wanted = "+".join(sorted(name.split("+"), key=lambda part: part == "blue"))  # 'blue+memit' is the wrong order
        remedy = f"{did_you_mean(wanted, METHOD_NAMES)}`errata methods` lists all"
        raise InputError(f"there is no method {name!r}", remedy=remedy, code="METHOD_UNKNOWN")
    row = next(method for method in METHODS if method.name == name.removesuffix(BOUNDARY_SUFFIX))
    return row if name == row.name else row.with_blue()
