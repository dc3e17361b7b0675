"""Patch: what an edit changed, as small factors, with the facts and the recipe that it came from."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import torch
import transformers

from errata.errors import InputError
from errata.evaluation.results_file import Row
from errata.factors import norm, rank, shape_of
from errata.facts import Fact
from errata.models.language_model import LanguageModel
from errata.models.weights import LowRankTerm, Term
from errata.recipe import Recipe

DtypeName = Literal["float32", "bfloat16", "float16", "float64"]  # that models are edited in, as records tell them


@dataclass(frozen=True, slots=True)
class PatchResults:
    """What was measured of an edit: right before it, and with it in.

    Attributes:
        rows: the long form, see ``errata.evaluation.results_file``.
        left_alone: ids of facts for which nothing was written.
        absent: metric -> why there is none.
    """

    rows: tuple[Row, ...]
    left_alone: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The change of a run.

    Attributes:
        terms: the factors, in the order in which they were added; one per batch and written layer.
        facts: what was edited, in order.
        recipe: with which numbers.
        prefixes: the contexts that keys and targets were found in.
        base: the name of the model that was edited; an absolute path where it is one.
        fingerprint: of its weights before the edit.
        dtype: in which they were, such as ``float32``.
        created: when, in UTC, as ISO 8601.
        versions: of the software that made it.
        results: what was measured of the edit, as a model card takes it; None where nothing was.
    """

    terms: tuple[Term, ...]
    facts: tuple[Fact, ...]
    recipe: Recipe
    prefixes: tuple[str, ...]
    base: str
    fingerprint: str
    dtype: DtypeName
    created: str
    versions: Mapping[str, str]
    results: PatchResults | None = None

    @property
    def seed(self) -> int:
        """Of the contexts, the only thing in an edit that is drawn."""
        return self.recipe.contexts.seed

    @property
    def replaces(self) -> bool:
        """Whether it stands for everything that its run changed, and not for what was added: a pruned copy."""
        return any(isinstance(term, LowRankTerm) and term.replaces for term in self.terms)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({term.layer for term in self.terms}))

    def of_layer(self, layer: int) -> list[Term]:
        return [term for term in self.terms if term.layer == layer]

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the whole ΔW of every written layer."""
        return {layer: norm(self.of_layer(layer)) for layer in self.layers}

    def relative_norms(self, model: LanguageModel) -> dict[int, float]:
        """How large the change of every written layer is beside the weights: ‖ΔW‖ / ‖W‖, both Frobenius norms.

        Args:
            model: the model that was edited. The patch may be in it or not; W is the weight without the patch.
        """
        changes = self.norms()
        return {
            layer: change / float(model.edits.weight_without(layer, self.terms).double().norm())
            for layer, change in changes.items()
        }

    def ranks(self) -> dict[int, int]:
        """Numerical rank of the whole ΔW of every written layer."""
        return {layer: rank(self.of_layer(layer)) for layer in self.layers}

    def apply(self, model: LanguageModel, *, force: bool = False, name: str = "", before: Sequence[str] = ()) -> None:
        """Put the change into ``model``.

        Args:
            name: what the patch is called, for messages.
            before: the same of the patches that were put into the model before, which its name does not tell.
            force: also into other weights than those that it was made for. It may then change other things than it
                was made to change, and its facts may not be said.

        Raises:
            InputError: if the model's weights are not those that the patch was made for, or not of its shapes, or would
                not be finite; the model is then what it was.
        """
        if not force and (found := model.fingerprint()) != self.fingerprint:
            raise self._other_weights(model, found, name, before)
        model.check_layers(self.layers)
        for term in self.terms:
            if (shape := tuple(model.weight(term.layer).shape)) != (own := tuple(shape_of(term))):
                raise InputError(
                    f"this patch changes a {own[0]} × {own[1]} matrix at layer {term.layer}, but that of "
                    f"{model.name!r} is {shape[0]} × {shape[1]}",
                    remedy="Give the model that it was made for",
                )
        with model.edits.transaction():
            model.edits.add(self.terms)
            for layer in self.layers:  # finite factors may have a product, or a sum with W, that is not
                if not bool(torch.isfinite(model.weight(layer)).all()):
                    raise InputError(
                        f"with this patch the weights of layer {layer} of {model.name!r} are not finite in "
                        f"{dtype_name(model.dtype)}",
                        remedy=f"Give the model that it was made for, in {self.dtype}",
                    )

    def _other_weights(self, model: LanguageModel, found: str, name: str, before: Sequence[str]) -> InputError:
        dtype = dtype_name(model.dtype)
        there = f"{model.name!r} with {', '.join(before)} on it" if before else repr(model.name)
        if dtype != self.dtype:
            remedy = f"Load {self.base!r} in {self.dtype}, without other edits"
        elif name in before:
            remedy = f"{name} is in already: name each patch once"
        elif before:
            remedy = "Give patches in the order in which they were made, each on top of those before it"
        else:
            remedy = "Load the model that it was made for, with the edits that it was made on top of and no others"
        return InputError(
            f"{name or 'this patch'} was made for other weights (those of {self.base!r} in {self.dtype}, "
            f"{self.fingerprint[:12]}…; {there} in {dtype} has {found[:12]}…)",
            remedy=remedy,
        )

    def undo(self, model: LanguageModel) -> None:
        """Take the change out again: the weights are computed anew from the base, so nothing of it is left.

        Raises:
            InputError: if the patch is not in the model.
        """
        try:
            with model.edits.transaction():
                model.edits.remove(self.terms)
        except ValueError as error:
            raise InputError(
                f"this patch is not applied to {model.name!r} in this process",
                remedy="Undo on the LanguageModel that it was applied to, or load the base again",
            ) from error

    def save(self, path: str | Path) -> None:
        """Write factors and record to one safetensors file, whole or not at all; see ``patch_file``."""
        from errata.patch_file import write_patch  # a patch can do without its file, not the file without the patch

        write_patch(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read what ``save`` wrote.

        Raises:
            InputError: if the file is not a patch, or is damaged.
        """
        from errata.patch_file import read_patch

        return read_patch(Path(path)).patch


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """``float32`` of ``torch.float32``.

    Raises:
        InputError: for a dtype that models are not edited in.
    """
    names: dict[str, DtypeName] = {f"torch.{name}": name for name in get_args(DtypeName)}
    if str(dtype) not in names:
        raise InputError(f"no model is edited in {dtype}", remedy=f"Take one of {', '.join(get_args(DtypeName))}")
    return names[str(dtype)]


def now() -> str:
    """The time as records tell it: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def software_versions() -> dict[str, str]:
    """What a record needs to be repeated."""
    from errata import __version__

    return {
        "errata": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
