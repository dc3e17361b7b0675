"""Patch: what an edit changed, as small factors, with the facts and the recipe that it came from."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.errors import InputError
from errata.facts import Fact
from errata.facts_io import facts_from_records
from errata.models.language_model import LanguageModel
from errata.models.weights import LowRankTerm, SparseTerm, Term
from errata.recipe import Recipe

FORMAT = "errata-patch-2"
_TENSORS = {"low_rank": ("left", "right"), "sparse": ("values", "mask")}


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The change of a run.

    Attributes:
        terms: the factors, in the order in which they were added; one per batch and written layer.
        facts: what was edited, in order.
        recipe: with which numbers.
        prefixes: the contexts that keys and targets were found in.
        base: the name of the model that was edited.
        fingerprint: of its weights before the edit.
        versions: of the software that made it.
    """

    terms: tuple[Term, ...]
    facts: tuple[Fact, ...]
    recipe: Recipe
    prefixes: tuple[str, ...]
    base: str
    fingerprint: str
    versions: Mapping[str, str]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({term.layer for term in self.terms}))

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the whole ΔW of every written layer."""
        result: dict[int, float] = {}
        for layer in self.layers:
            terms = [term for term in self.terms if term.layer == layer]
            factors = [term for term in terms if isinstance(term, LowRankTerm)]
            if len(factors) == len(terms):
                left = torch.cat([term.left for term in factors], dim=1).double()
                right = torch.cat([term.right for term in factors], dim=0).double()
                # ‖LR‖² = tr(LᵀL · RRᵀ): nothing of size d_out × d_in is formed.
                result[layer] = float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())
            else:
                result[layer] = float(_sum(terms).norm())
        return result

    def apply(self, model: LanguageModel) -> None:
        """Put the change into ``model``.

        Raises:
            InputError: if the model's weights are not those that the patch was made for.
        """
        found = model.fingerprint()
        if found != self.fingerprint:
            raise InputError(
                f"this patch was made for other weights (those of {self.base!r}, {self.fingerprint[:12]}…; "
                f"{model.name!r} has {found[:12]}…)",
                remedy="Load the model that it was made for, in the same dtype and without other edits",
            )
        with model.edits.transaction():
            model.edits.add(self.terms)

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
        """Write factors and record to one safetensors file, whole or not at all."""
        target = Path(path)
        tensors: dict[str, Tensor] = {}
        for index, term in enumerate(self.terms):
            tensors |= {f"{index}.{name}": tensor for name, tensor in _tensors_of(term).items()}
        record = {
            "terms": [_record_of(term) for term in self.terms],
            "facts": [fact.to_record() for fact in self.facts],
            "recipe": self.recipe.model_dump(mode="json"),
            "prefixes": self.prefixes,
            "base": self.base,
            "fingerprint": self.fingerprint,
            "versions": dict(self.versions),
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".partial")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata={"format": FORMAT, "record": json.dumps(record, ensure_ascii=False)})
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        finally:
            Path(temporary).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read what ``save`` wrote.

        Raises:
            InputError: if the file is not a patch, or is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
                record = json.loads(metadata["record"])
                terms = tuple(
                    _term_from(entry, {name: file.get_tensor(f"{index}.{name}") for name in _TENSORS[entry["kind"]]})
                    for index, entry in enumerate(record["terms"])
                )
            return cls(
                terms=terms,
                facts=facts_from_records(record["facts"], source=str(path)).facts,
                recipe=Recipe.model_validate(record["recipe"]),
                prefixes=tuple(record["prefixes"]),
                base=record["base"],
                fingerprint=record["fingerprint"],
                versions=record["versions"],
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not a patch that can be read: {error}", remedy="Give a file that Patch.save wrote"
            ) from error


def _sum(terms: Sequence[Term]) -> Tensor:
    """ΔW of several terms of one layer, float64."""
    shapes = [term.mask.shape if isinstance(term, SparseTerm) else _shape(term) for term in terms]
    total = torch.zeros(shapes[0], dtype=torch.float64)
    for term in terms:
        term.add_to(total)
    return total


def _shape(term: Term) -> torch.Size:
    assert isinstance(term, LowRankTerm)
    return torch.Size((term.left.shape[0], term.right.shape[1]))


def _tensors_of(term: Term) -> dict[str, Tensor]:
    if isinstance(term, SparseTerm):
        # One bit an entry.
        bits = numpy.packbits(term.mask.cpu().numpy().ravel())
        return {"values": term.values.contiguous().cpu(), "mask": torch.from_numpy(bits)}
    assert isinstance(term, LowRankTerm)
    return {"left": term.left.contiguous().cpu(), "right": term.right.contiguous().cpu()}


def _record_of(term: Term) -> dict[str, Any]:
    if isinstance(term, SparseTerm):
        return {"layer": term.layer, "kind": "sparse", "shape": list(term.mask.shape)}
    assert isinstance(term, LowRankTerm)
    return {"layer": term.layer, "kind": "low_rank", "replaces": term.replaces}


def _term_from(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Term:
    """The inverse of the two above.

    Raises:
        ValueError, KeyError, TypeError: if they do not belong together.
    """
    layer = int(record["layer"])
    if record["kind"] == "low_rank":
        return LowRankTerm(layer, tensors["left"], tensors["right"], replaces=bool(record["replaces"]))
    rows, columns = (int(size) for size in record["shape"])
    flat = numpy.unpackbits(tensors["mask"].numpy(), count=rows * columns).astype(bool)
    if len(flat) != rows * columns or int(flat.sum()) != len(tensors["values"]):
        raise ValueError("the number of values is not that of the mask's entries")
    return SparseTerm(layer, tensors["values"], torch.from_numpy(flat).view(rows, columns))


def software_versions() -> dict[str, str]:
    """What a record needs to be repeated."""
    from errata import __version__

    return {
        "errata": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
