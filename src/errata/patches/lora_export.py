"""Patches as LoRA adapters that PEFT reads: exactly, or as near as a smaller rank comes. PEFT itself is not needed.

PEFT adds lora_alpha / r · B A to W. A patch's change is L R, so B = L, A = R and lora_alpha = r say the same; what is
added to the base's output is B (A k), and nothing is rounded into half-precision weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.families import architecture_of, down_projection_weight, is_transposed
from errata.models.language_model import LanguageModel
from errata.models.likelihood import TargetScore, score
from errata.models.loading import check_layers_exist
from errata.models.weights import LowRankTerm, SparseTerm, Term
from errata.patches.factors import Factors, factors_of, needed_rank
from errata.patches.patch import Patch, software_versions
from errata.utils.files import new_directory
from errata.utils.progress import Report, silent

FORMAT = "errata-adapter-1"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """The change of patches that stand on each other, as factors of one rank.

    Attributes:
        patches: in the order in which they go on the base.
        layers: the factors, lowest layer first.
    """

    patches: tuple[Patch, ...]
    layers: tuple[Factors, ...]

    @classmethod
    def of(cls, patches: Sequence[Patch], rank: int | None = None) -> Adapter:
        """Put the patches' changes together; exactly, unless a rank is given.

        Args:
            patches: one or more, in the order in which they go on the base.
            rank: the most that an adapter may have; the best approximation is taken. Without it the rank is the
                number of factors of the layer that has most of them: of facts, where every fact is one.

        Raises:
            InputError: there is nothing to export, patches do not go on each other, a change is sparse (RECT) and no
                rank is given, or the rank is not below what is needed.
        """
        _check_stack(patches)
        terms: dict[int, list[Term]] = {}
        for term in (term for patch in patches for term in patch.terms):
            terms.setdefault(term.layer, []).append(term)
        needed = {layer: needed_rank(found) for layer, found in terms.items()}
        sparse = sorted({term.layer for found in terms.values() for term in found if isinstance(term, SparseTerm)})
        _check_rank(rank, max(needed.values()), sparse)
        return cls(tuple(patches), tuple(factors_of(terms[layer], needed[layer], rank) for layer in sorted(terms)))

    @property
    def rank(self) -> int:
        """r of every layer: some readers know no rank by layer."""
        return max(factors.rank for factors in self.layers)

    @property
    def is_exact(self) -> bool:
        return all(factors.rank == factors.needed for factors in self.layers)

    def terms(self) -> tuple[LowRankTerm, ...]:
        """What PEFT would add, as changes that ``LanguageModel.edits`` takes."""
        return tuple(LowRankTerm(factors.layer, factors.left, factors.right) for factors in self.layers)

    def write(
        self,
        directory: Path,
        model: PreTrainedModel,
        *,
        base: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``adapter_config.json``, ``adapter_model.safetensors`` (float32) and ``errata.json``, whole or not at
        all.

        Args:
            directory: new or empty.
            model: of the base's shape; only names and shapes are read, so it may lie on the meta device.
            base: the base's name for those who load the adapter; by default what the first patch calls it.
            about: more for the record in ``errata.json``.

        Raises:
            InputError: the directory is not new, or the patches were not made for such a model.
            UnsupportedModelError: the architecture is not in the table.
        """
        base = base or self.patches[0].base
        paths = self.modules(model)
        tensors: dict[str, Tensor] = {}
        for factors, path in zip(self.layers, paths, strict=True):
            left, right = factors.padded(self.rank)
            tensors[f"base_model.model.{path}.lora_A.weight"] = right.contiguous().cpu()
            tensors[f"base_model.model.{path}.lora_B.weight"] = left.contiguous().cpu()
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.rank,  # PEFT scales by lora_alpha / r
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
            "bias": "none",
            "fan_in_fan_out": is_transposed(model.get_submodule(paths[0])),
            "modules_to_save": None,
            # Whole paths: PEFT takes every module that ends in one of these.
            "target_modules": paths,
        }
        record = {"format": FORMAT, "about": {**self._about(base, paths), **(about or {})}}
        with new_directory(directory) as partial:
            (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
            text = json.dumps(record, ensure_ascii=False, indent=2)
            (partial / "errata.json").write_text(text + "\n", encoding="utf-8")

    def modules(self, model: PreTrainedModel) -> list[str]:
        """The paths of the written modules from the causal LM, in the order of ``layers``.

        Raises:
            InputError: the model has no such layers, or their weights have another shape.
        """
        row = architecture_of(model)
        blocks = model.get_submodule(row.blocks)
        assert isinstance(blocks, nn.ModuleList)
        check_layers_exist([factors.layer for factors in self.layers], len(blocks), row.title)
        paths = [f"{row.blocks}.{factors.layer}.{row.down_projection}" for factors in self.layers]
        for factors, path in zip(self.layers, paths, strict=True):
            expected = tuple(down_projection_weight(model.get_submodule(path)).shape)
            if factors.shape != expected:
                found = " × ".join(map(str, factors.shape))
                raise InputError(
                    f"the patches change a matrix of {found} in layer {factors.layer}, but {path} of this model has "
                    f"{expected[0]} × {expected[1]}",
                    remedy=f"Give the model that they were made for ({self.patches[0].base!r})",
                    code="PATCH_SHAPE_MISMATCH",
                )
        return paths

    def _about(self, base: str, paths: Sequence[str]) -> dict[str, Any]:
        layers = [
            {"layer": f.layer, "module": path, "rank": f.rank, "needed": f.needed, "kept": f.kept, "error": f.error}
            for f, path in zip(self.layers, paths, strict=True)
        ]
        patches = [
            {
                "base": patch.base,
                "fingerprint": patch.fingerprint,
                "versions": dict(patch.versions),
                "recipe": patch.recipe.model_dump(mode="json"),
                "facts": [fact.to_record() for fact in patch.facts],
            }
            for patch in self.patches
        ]
        return {
            "base": base,
            "fingerprint": self.patches[0].fingerprint,
            "rank": self.rank,
            "exact": self.is_exact,
            "layers": layers,
            "patches": patches,
            "versions": software_versions(),
        }


def write_adapter(
    directory: Path, patches: Sequence[Patch], model: PreTrainedModel, *, rank: int | None = None
) -> Adapter:
    """Write patches as one PEFT adapter: see ``Adapter.of`` and ``Adapter.write``, which raise what this raises."""
    adapter = Adapter.of(patches, rank)
    adapter.write(directory, model)
    return adapter


def _check_stack(patches: Sequence[Patch]) -> None:
    """What can be told without weights: there is a change, and no two patches were made for the same weights."""
    if not any(patch.terms for patch in patches):
        raise InputError(
            "the patches change no weight" if patches else "there is no patch",
            remedy="Give a patch of an edit that wrote something",
            code="PATCH_EMPTY",
        )
    made_for: dict[str, int] = {}
    for number, patch in enumerate(patches, start=1):
        if not patch.terms:
            continue
        first = made_for.setdefault(patch.fingerprint, number)
        if first != number:
            raise InputError(
                f"patches {first} and {number} were both made for the weights {patch.fingerprint[:12]}…, so they are "
                "alternatives: neither can be applied on top of the other",
                remedy="Give patches that were made one after another, oldest first",
                code="PATCHES_ALTERNATIVE",
            )


def _check_rank(rank: int | None, needed: int, sparse: Sequence[int]) -> None:
    layers = ", ".join(map(str, sparse))
    if rank is None and sparse:
        raise InputError(
            f"single entries of W were changed in layers {layers} (rect), which is no change of low rank: an exact "
            f"adapter would have rank {needed}, that of the whole matrix",
            remedy="Give a rank (--rank R) for the nearest adapter of that rank; its error is shown",
            code="LORA_RANK_TOO_HIGH",
        )
    if rank is None:
        return
    if rank < 1:
        raise InputError(f"a rank of {rank} leaves nothing", remedy="Give 1 or more", code="LORA_RANK_INVALID")
    # A sparse change is exact at the full rank and has to be asked for; others are exact when nothing is asked for.
    if rank > needed or (rank == needed and not sparse):
        raise InputError(
            f"rank {rank} cuts nothing off: at rank {needed} the adapter is exact",
            remedy=f"Give {needed} or less" if sparse else f"Leave the rank (--rank) out, or give less than {needed}",
            code="LORA_RANK_INVALID",
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said behind a fact's prompt.

    Attributes:
        fact: what was edited.
        by_patch: with the exact patches in the model.
        by_adapter: with the adapter's factors in their place.
    """

    fact: Fact
    by_patch: TargetScore
    by_adapter: TargetScore

    @property
    def is_lost(self) -> bool:
        return self.by_patch.correct and not self.by_adapter.correct


def ask_both(model: LanguageModel, adapter: Adapter, *, force: bool = False, report: Report = silent) -> list[Answer]:
    """Ask for every fact of the patches, twice; the model is afterwards what it was. A fact counts as said if every
    token of its target is the likeliest (the efficacy accuracy of ``evaluation``).

    Args:
        model: the base.
        force: whether the patches need not have been made for what the ones before them leave.
        report: told the rows read, of how many.

    Raises:
        InputError: the patches were not made for this model, or not in this order.
        NonFiniteError: a logit is not a number.
    """
    facts = [fact for patch in adapter.patches for fact in patch.facts]
    pairs = [fact.pair(fact.target) for fact in facts]
    with applied(model, adapter.patches, force=force):
        by_patch = score(model, pairs, report=report)
    terms = adapter.terms()
    model.edits.add(terms)
    try:
        by_adapter = score(model, pairs, report=report)
    finally:
        model.edits.remove(terms)
    return [Answer(*entry) for entry in zip(facts, by_patch, by_adapter, strict=True)]


@contextmanager
def applied(model: LanguageModel, patches: Sequence[Patch], *, force: bool = False) -> Iterator[None]:
    """Put patches into a model in their order, for a while.

    Raises:
        InputError: one of them was not made for what the ones before it leave; the model is then what it was.
    """
    inside: list[Patch] = []
    try:
        for patch in patches:
            before = [f"patch {number + 1}" for number in range(len(inside))]
            patch.apply(model, force=force, name=f"patch {len(inside) + 1}", before=before)
            inside.append(patch)
        yield
    finally:
        for patch in reversed(inside):
            patch.undo(model)
