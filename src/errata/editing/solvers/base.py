"""The base of solvers: C (once per layer), keys and residuals (per batch) give a weight change in two factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import EditError
from errata.utils.settings import Settings


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = left · right, never multiplied out here.

    Attributes:
        left: (d_out, u).
        right: (u, d_in).
    """

    left: Float[Tensor, "d_out u"]
    right: Float[Tensor, "u d_in"]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        return self.left @ self.right

    @property
    def parts(self) -> Mapping[int | None, LowRank]:
        """Expert -> the change of its columns; None -> the whole change of a layer without experts."""
        return {None: self}


@runtime_checkable
class LayerSolver(Protocol):
    """The state of one layer: its factorisations, and the keys of earlier batches where they count."""

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> LowRank:
        """ΔW for one batch. float64 in, float64 out; the state does not change.

        Args:
            keys: K, averaged over contexts as the recipe says.
            residuals: R.
            bare: (d_in, u) the keys of the bare prompts, for solvers with ``uses_bare_keys``; None: as ``keys``.
        """
        ...

    def remember(self, keys: Float[Tensor, "d_in u"]) -> LayerSolver:
        """A new state with the keys of a written batch; this one does not change, so a run can be rolled back."""
        ...


@dataclass(frozen=True, slots=True)
class SolverCost:
    """Memory and operations of one layer, in leading terms.

    Attributes:
        held: d_in × d_in float64 matrices held for each layer.
        temporary: the same, needed while a layer is prepared, in addition to C of every layer.
        prepare: operations of preparing a layer, in d_in³; a Cholesky factor takes a third.
        products: multiplications by a held matrix in each direction, of d_in² operations a column.
        history_solved: whether the keys of earlier batches are solved again with each batch.
        refactors: whether each batch needs a new factor.
    """

    held: int
    temporary: int = 1
    prepare: float = 1 / 3
    products: int = 1
    history_solved: bool = True
    refactors: bool = False

    def solve_flops(self, width: int, facts: int, earlier: int) -> float:
        """Operations of solving one batch for Q (see ``analysis.weight_shift``) in one layer.

        Args:
            width: d_in.
            earlier: facts of earlier batches whose keys count.
        """
        if self.refactors:  # of all columns at most
            return width**3 / 3 + 2.0 * width**2 * facts
        known = earlier + facts
        columns = known if self.history_solved else facts
        small = 2.0 * width * known**2 + known**3 / 3 + 2.0 * known**2 * facts + 2.0 * width * known * facts
        return self.products * width**2 * (columns + facts) + small


@dataclass(frozen=True, slots=True)
class Candidate:
    """Values of some of a solver's settings, for ``errata recipe auto``.

    Attributes:
        description: for comments and reports; empty if there is nothing to say.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""


def ridge_candidate(symbol: str, ridge: float, columns: int) -> Candidate:
    """A ridge of so much per column of W, for ``Solver.start``."""
    return Candidate({"ridge": ridge * columns}, f"{symbol} = {ridge:g} · columns")


def ridge_candidates(symbol: str, ridges: Sequence[float], columns: int) -> list[Candidate]:
    """Ridges per column of W and their values, for ``Solver.candidates``."""
    found = [ridge_candidate(symbol, ridge, columns) for ridge in ridges]
    return [replace(one, description=f"{one.description} = {one.values['ridge']:g}") for one in found]


class Solver(Settings, ABC):
    """The ``solver`` section of a recipe and the rule that it selects, the same for all layers; one subclass a solver.

    A subclass has a field ``kind`` with its name as the only value and as the default.

    Attributes:
        ridge_field: the field of the ridge of solvers that have a history; empty for others.
        facts_at_once: the most facts it solves together; None for any number. With 1, facts are written one after
            another, and their order matters.
    """

    ridge_field: ClassVar[str] = ""
    facts_at_once: ClassVar[int | None] = None

    @abstractmethod
    def prepare(self, moment: Float[Tensor, "d_in d_in"]) -> LayerSolver:
        """Compute the factorisations that depend only on the second moment C. float64."""

    def state_of(self, moment: Float[Tensor, "*experts d d"]) -> LayerSolver:
        """The state of a layer from its C, which has one matrix for each expert in a mixture of experts."""
        return self.prepare(moment) if moment.dim() == 2 else self.prepare_experts(moment)

    def prepare_experts(self, moments: Float[Tensor, "experts f f"]) -> LayerSolver:
        """The same for a mixture of experts, whose keys are those of its experts side by side and whose C is taken to
        be block-diagonal.

        Args:
            moments: of the gated keys of each expert; the mean over all tokens, for an expert mostly of zeros.

        Raises:
            EditError: if the solver does not know experts.
        """
        raise EditError(
            f"the solver {getattr(self, 'kind', type(self).__name__)!r} does not know mixtures of experts",
            remedy="Use a method with the solver least_squares or null_space: memit, memit_seq, alphaedit",
            code="SOLVER_WITHOUT_EXPERTS",
        )

    @property
    def uses_history(self) -> bool:
        """Whether the keys of earlier batches count: solvers that can use them have a field ``history``."""
        return bool(getattr(self, "history", False))

    @property
    def uses_bare_keys(self) -> bool:
        """Whether it needs the keys of bare prompts in addition to the averaged ones."""
        return False

    @property
    def needs_moment(self) -> bool:
        """Whether C is used at all."""
        return True

    @property
    def cost(self) -> SolverCost:
        return SolverCost(held=1)

    def contradictions(self, *, rounds: bool) -> Iterator[str]:
        """Why these settings make no sense.

        Args:
            rounds: whether the recipe goes over a batch in rounds.
        """
        yield from ()

    @classmethod
    def start(cls, choices: Mapping[str, Any], columns: int) -> Candidate:
        """The values with which ``errata recipe auto`` starts, which are also the defaults without a search.

        Args:
            choices: the settings that the method decides.
            columns: of W.
        """
        return Candidate()

    @classmethod
    def candidates(cls, columns: int) -> Sequence[Candidate]:
        """The values that ``errata recipe auto`` tries, those that change the model least first."""
        return (Candidate({}, "the solver has no parameter"),)

    @property
    def unsearched(self) -> Mapping[str, str]:
        """field -> its value and why, for settings that ``errata recipe auto`` sets without a search."""
        return {}


def cholesky(matrix: Float[Tensor, "n n"], what: str) -> Float[Tensor, "n n"]:
    """Lower factor of a positive definite matrix.

    Raises:
        EditError: if the matrix is not positive definite in float64.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0 or not bool(torch.isfinite(factor).all()):
        raise EditError(
            f"{what} is not positive definite ({matrix.shape[0]} × {matrix.shape[0]})",
            remedy="Compute the key statistics from more text, so that they cover all directions, or raise the ridge",
            code="MATRIX_NOT_POSITIVE_DEFINITE",
        )
    return factor
