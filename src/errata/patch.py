"""Patch: what an edit changed, as small factors, with the facts and the recipe that it came from."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from errata.errors import InputError
from errata.facts import Fact
from errata.facts_io import facts_from_records
from errata.models.language_model import LanguageModel
from errata.models.weights import Term
from errata.recipe import Recipe

FORMAT = "errata-patch-1"


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
            left = torch.cat([term.left for term in terms], dim=1).double()
            right = torch.cat([term.right for term in terms], dim=0).double()
            # ‖LR‖² = tr(LᵀL · RRᵀ): nothing of size d_out × d_in is formed.
            result[layer] = float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())
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
        tensors = {}
        for index, term in enumerate(self.terms):
            tensors[f"{index}.left"] = term.left.contiguous().cpu()
            tensors[f"{index}.right"] = term.right.contiguous().cpu()
        record = {
            "layers": [term.layer for term in self.terms],
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
                    Term(layer, file.get_tensor(f"{index}.left"), file.get_tensor(f"{index}.right"))
                    for index, layer in enumerate(record["layers"])
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


def software_versions() -> dict[str, str]:
    """What a record needs to be repeated."""
    from errata import __version__

    return {
        "errata": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
