"""Patches as LoRA adapters for PEFT and vLLM: exactly, or as the best approximation of a lower rank. Neither is needed.

PEFT adds lora_alpha / r · B A to W. A patch's change is L R, so B = L, A = R and lora_alpha = r are the same change.
B (A k) is added to the base's output, so nothing is rounded into half-precision weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from errata.errors import InputError, UnsupportedModelError
from errata.facts.fact import Fact
from errata.models.families import (
    architecture_of,
    down_projection_weight,
    expert_weight,
    experts_of,
    is_transposed,
)
from errata.models.language_model import LanguageModel
from errata.models.likelihood import score
from errata.models.loading import check_layers_exist, transformers_name
from errata.models.prompts import TargetScore
from errata.models.weights import LowRankTerm, Place, Term
from errata.patches.factors import Factors, exact_rank, factors_of
from errata.patches.patch import Patch
from errata.utils.files import new_directory, write_json
from errata.utils.progress import Report, silent
from errata.utils.provenance import software_versions
from errata.utils.text import dtype_name

FORMAT = "errata-adapter-1"
WEIGHTS = "adapter_model.safetensors"
VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for. Source: vLLM, `vllm/config/lora.py`, `MaxLoRARanks`."""
_NOT_IN_VLLM: Final = ("gpt2", "gptj", "gpt_neox")  # vLLM runs them, but without adapters (no `SupportsLoRA`)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """The sum of the changes of consecutive patches, as factors of one rank."""

    patches: tuple[Patch, ...]  # in the order in which they are applied to the base
    layers: tuple[Factors, ...]  # the factors of each matrix, lowest layer first

    @classmethod
    def of(cls, patches: Sequence[Patch], rank: int | None = None) -> Adapter:
        """Combine the patches' changes; exactly, unless a rank is given.

        Args:
            patches: one or more, in the order in which they are applied to the base.
            rank: of the best approximation. By default the rank at which the adapter is exact: the largest number of
                factors of a layer, which is the number of facts for methods with one factor per fact.

        Raises:
            InputError: if there is nothing to export, two patches are alternatives, a change has no factors (RECT, FT)
                and no rank is given, or the adapter is exact at a lower rank than the one given.
        """
        _check_stack(patches)
        terms: dict[Place, list[Term]] = {}
        for term in (term for patch in patches for term in patch.terms):
            terms.setdefault(term.place, []).append(term)
        exact = {place: exact_rank(found) for place, found in terms.items()}
        full = sorted({term.layer for found in terms.values() for term in found if not isinstance(term, LowRankTerm)})
        _check_rank(rank, max(exact.values()), full)
        return cls(tuple(patches), tuple(factors_of(terms[place], exact[place], rank) for place in sorted(terms)))

    @property
    def rank(self) -> int:
        """r of every layer, since some readers support no rank per layer."""
        return max(factors.rank for factors in self.layers)

    @property
    def is_exact(self) -> bool:
        return all(factors.rank == factors.exact_rank for factors in self.layers)

    def rounded(self, dtype: torch.dtype) -> Adapter:
        """The adapter with its factors rounded to a dtype, in which a server holds them; they are still float32.

        Raises:
            InputError: if a factor is beyond the range of the dtype.
        """
        layers = tuple(
            replace(factors, left=factors.left.to(dtype).float(), right=factors.right.to(dtype).float())
            for factors in self.layers
        )
        if not all(bool(factors.left.isfinite().all() and factors.right.isfinite().all()) for factors in layers):
            what = f"the change has factors beyond the range of {dtype_name(dtype)}"
            raise InputError(what, remedy="Export and serve it in float32 or bfloat16", code="LORA_OUT_OF_RANGE")
        return replace(self, layers=layers)

    @contextmanager
    def attached(self, model: LanguageModel) -> Iterator[None]:
        """W k + B (A k) while the context is open, as servers compute it that keep an adapter beside the weights.

        B (A k) is computed in float32 (float64 for such a model), and the sum is rounded to the dtype of W k. Changes
        of experts are added to their weights instead, as PEFT does.

        Args:
            model: the base; its weights do not change.
        """
        handles = [
            model.linear(*factors.place).register_forward_hook(_adding(factors, model))
            for factors in self.layers
            if factors.expert is None
        ]
        of_experts = [
            LowRankTerm(factors.layer, factors.left, factors.right, expert=factors.expert)
            for factors in self.layers
            if factors.expert is not None
        ]
        model.edits.add(of_experts)
        try:
            yield
        finally:
            model.edits.remove(of_experts)
            for handle in handles:
                handle.remove()

    def write(
        self,
        directory: Path,
        model: PreTrainedModel,
        *,
        base: str | None = None,
        rank: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``adapter_config.json``, ``adapter_model.safetensors`` (float32) and ``errata.json``, or nothing.

        Args:
            directory: new or empty.
            model: of the base's shape; only names and shapes are read, so it may be on the meta device.
            base: errata's name of the base model; by default that in the first patch. The adapter's configuration
                names it as transformers does (``transformers_name``), so that PEFT can load it.
            rank: to which the factors are padded with zeros; by default the adapter's own.
            about: further entries of the record in ``errata.json``.

        Raises:
            InputError: if the directory is not new, the patches were not made for such a model, or PEFT cannot express
                them (dense blocks of a mixture of experts).
            UnsupportedModelError: if the architecture is not supported.
        """
        base = base or self.patches[0].base
        rank = self.rank if rank is None else rank
        paths = self.modules(model)
        tensors: dict[str, Tensor] = {}
        of_experts: dict[str, list[Factors]] = {}
        for factors, path in zip(self.layers, paths, strict=True):
            if factors.expert is not None:
                of_experts.setdefault(path, []).append(factors)
                continue
            left, right = factors.padded(rank)
            tensors[f"base_model.model.{path}.lora_A.weight"] = right.contiguous().cpu()
            tensors[f"base_model.model.{path}.lora_B.weight"] = left.contiguous().cpu()
        for path, several in of_experts.items():
            count = len(model.get_submodule(path).get_parameter("down_proj"))
            tensors |= _expert_tensors(f"base_model.model.{path}", several, count, rank)
        linear = [path for path in paths if path not in of_experts]
        if linear and architecture_of(model).experts is not None:
            raise InputError(
                f"the patches change {linear[0]}, a dense block of a mixture of experts; PEFT takes every "
                "down-projection of such a model for one of all experts, in all blocks",
                remedy="Merge the patches into the model (errata merge), or edit layers with experts only",
                code="LORA_DENSE_BLOCK_OF_EXPERTS",
            )
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": transformers_name(base),
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,  # PEFT scales by lora_alpha / r
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
            "bias": "none",
            "fan_in_fan_out": bool(linear) and is_transposed(model.get_submodule(linear[0])),
            "modules_to_save": None,
            # Whole paths: PEFT takes every module that ends in one of these.
            "target_modules": linear,
        }
        if of_experts:  # down-projections of all experts are one parameter
            config["target_parameters"] = [f"{path}.down_proj" for path in of_experts]
        record = {"format": FORMAT, "about": {**self.about(base, paths), "rank": rank, **(about or {})}}
        with new_directory(directory) as partial:
            (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
            write_json(partial / "errata.json", record, indent=2)

    def modules(self, model: PreTrainedModel) -> list[str]:
        """The paths of the written modules from the causal LM, in the order of ``layers``.

        Raises:
            InputError: if the model has no such layers, or their weights have another shape.
            UnsupportedModelError: if the architecture is not supported, or has no such matrices.
        """
        row = architecture_of(model)
        blocks = model.get_submodule(row.blocks)
        assert isinstance(blocks, nn.ModuleList)
        check_layers_exist([factors.layer for factors in self.layers], len(blocks), row.title)
        paths = []
        for factors in self.layers:
            experts = experts_of(blocks[factors.layer], row)
            if (factors.expert is None) != (experts is None):
                raise InputError(
                    f"the patches change {factors.place.title}, which this model does not have as one matrix",
                    remedy=f"Give the model that they were made for ({self.patches[0].base!r})",
                    code="PATCH_SHAPE_MISMATCH",
                )
            inside = row.path_of(factors.module) if experts is None else row.experts
            path = f"{row.blocks}.{factors.layer}.{inside}"
            paths.append(path)
            if experts is None:
                expected = tuple(down_projection_weight(model.get_submodule(path)).shape)
            else:
                expected = tuple(expert_weight(experts, factors.expert or 0).shape)
            if factors.shape != expected:
                found = " × ".join(map(str, factors.shape))
                raise InputError(
                    f"the patches change a matrix of {found} in {factors.place.title}, but {path} of this model has "
                    f"{expected[0]} × {expected[1]}",
                    remedy=f"Give the model that they were made for ({self.patches[0].base!r})",
                    code="PATCH_SHAPE_MISMATCH",
                )
        return paths

    def layer_records(self, modules: Sequence[str]) -> list[dict[str, Any]]:
        """For each layer its rank, the rank needed to be exact, the share of singular values kept, and the error.

        Args:
            modules: their paths.
        """
        return [
            {
                "layer": factors.layer,
                "module": path,
                "rank": factors.rank,
                "needed": factors.exact_rank,
                "kept": factors.retained_share,
                "error": factors.error,
            }
            for factors, path in zip(self.layers, modules, strict=True)
        ]

    def about(self, base: str, modules: Sequence[str]) -> dict[str, Any]:
        """The record of an export: the base, the facts and recipes of the patches, and what was approximated.

        Args:
            base: errata's name of the base model.
            modules: the paths of the written modules.
        """
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
            "layers": self.layer_records(modules),
            "patches": patches,
            "versions": software_versions(),
        }


def _adding(factors: Factors, model: LanguageModel) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that adds B (A k) to a linear module's output."""
    exact = torch.promote_types(model.dtype, torch.float32)
    left, right = (factor.to(model.device, exact) for factor in (factors.left, factors.right))

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output.to(exact) + inputs[0].to(exact) @ right.T @ left.T).to(output.dtype)

    return add


def vllm_rank(adapter: Adapter, config: PreTrainedConfig) -> int:
    """The rank to which an adapter is padded for vLLM: the lowest that vLLM makes room for.

    Args:
        config: of the base model.

    Raises:
        InputError: if the adapter's rank is too high.
        UnsupportedModelError: if vLLM takes no adapters for such models.
    """
    if config.model_type in _NOT_IN_VLLM:
        raise UnsupportedModelError(
            f"vLLM takes no adapters for models of the type {config.model_type!r}",
            remedy="Merge the patches into a full model (errata merge) and serve that",
            code="VLLM_FAMILY_UNSUPPORTED",
        )
    if any(factors.expert is not None for factors in adapter.layers):
        raise UnsupportedModelError(
            "the adapter changes experts, as one parameter of PEFT's, which vLLM does not read",
            remedy="Merge the patches into a full model (errata merge) and serve that",
            code="VLLM_FAMILY_UNSUPPORTED",
        )
    if adapter.rank > VLLM_RANKS[-1]:
        raise InputError(
            f"vLLM takes adapters up to rank {VLLM_RANKS[-1]}, and this one has rank {adapter.rank}",
            remedy=f"Give --rank {VLLM_RANKS[-1]} for the best approximation of that rank, whose error is shown; or "
            "merge the patches into a full model (errata merge)",
            code="VLLM_RANK_TOO_HIGH",
        )
    return next(rank for rank in VLLM_RANKS if rank >= adapter.rank)


def _expert_tensors(path: str, several: Sequence[Factors], count: int, rank: int) -> dict[str, Tensor]:
    """The factors of all experts of a layer as PEFT has them for a parameter of three dimensions: the rows of A expert
    by expert, the columns of B rank by rank. They are zero for experts that are not changed.

    Source: PEFT, ``ParamWrapper.get_delta_weight``.
    """
    d_out, d_in = several[0].shape
    a, b = torch.zeros(count, rank, d_in), torch.zeros(d_out, rank, count)
    for factors in several:
        left, right = factors.padded(rank)
        a[factors.expert or 0], b[:, :, factors.expert or 0] = right, left
    return {f"{path}.lora_A.weight": a.flatten(0, 1), f"{path}.lora_B.weight": b.flatten(1)}


def _check_stack(patches: Sequence[Patch]) -> None:
    """The checks that need no weights: there is a change, and no two patches were made for the same weights."""
    if not any(patch.terms for patch in patches):
        what = "the patches change no weight" if patches else "there is no patch"
        raise InputError(what, remedy="Give a patch that contains a change", code="PATCH_EMPTY")
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


def _check_rank(rank: int | None, exact: int, full: Sequence[int]) -> None:
    layers = f"layer{'s' * (len(full) > 1)} {', '.join(map(str, full))}"
    if rank is None and full:
        raise InputError(
            f"the changes of {layers} are sparse (rect) or dense (ft), not of low rank: an exact adapter would have "
            f"rank {exact}, that of the whole matrix",
            remedy="Give a rank (--rank R) for the best approximation of that rank; its error is shown",
            code="LORA_RANK_TOO_HIGH",
        )
    if rank is None:
        return
    if rank < 1:
        raise InputError(f"the rank {rank} is not positive", remedy="Give 1 or more", code="LORA_RANK_INVALID")
    # Without a rank the adapter is exact, except for changes without factors, for which the full rank must be given.
    if rank > exact or (rank == exact and not full):
        what = f"rank {rank} is not an approximation: at rank {exact} the adapter is exact"
        remedy = f"Give {exact} or less" if full else f"Leave the rank (--rank) out, or give less than {exact}"
        raise InputError(what, remedy=remedy, code="LORA_RANK_INVALID")


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """The model's answer to a fact's prompt with the patches, and with what was exported instead."""

    fact: Fact
    by_patch: TargetScore
    by_export: TargetScore

    @property
    def is_lost(self) -> bool:
        return self.by_patch.correct and not self.by_export.correct


def compare_answers(
    model: LanguageModel, adapter: Adapter, *, force: bool = False, report: Report = silent
) -> list[AnswerComparison]:
    """Score the targets of all facts with the patches, and with the adapter; afterwards the model is unchanged.

    Args:
        model: the base, which also serves the adapter.
        force: whether the patches may be applied to other weights than those that they were made for.
        report: progress callback, in rows.

    Raises:
        InputError: if the patches were not made for this model, or not in this order.
        NonFiniteError: if a logit is not finite.
    """
    facts = [fact for patch in adapter.patches for fact in patch.facts]
    with patches_applied(model, adapter.patches, force=force):
        by_patch = answers_to(model, facts, report=report)
    with adapter.attached(model):
        by_export = answers_to(model, facts, report=report)
    return [AnswerComparison(*entry) for entry in zip(facts, by_patch, by_export, strict=True)]


def answers_to(model: LanguageModel, facts: Sequence[Fact], *, report: Report = silent) -> list[TargetScore]:
    """Scores of the facts' targets after their prompts.

    Raises:
        NonFiniteError: if a logit is not finite.
    """
    return score(model, [fact.pair(fact.target) for fact in facts], report=report)


@contextmanager
def patches_applied(model: LanguageModel, patches: Sequence[Patch], *, force: bool = False) -> Iterator[None]:
    """Apply patches in their order while the context is open.

    Raises:
        InputError: if one was not made for the weights that the ones before it result in; the model is then unchanged.
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
