"""Editing where the model's device has no float64 (Apple's mps): tensors are moved before they are converted.

No such device is needed: float32 tensors count as being on it, float64 tensors as being on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from errata.analysis.alignment import quantities
from errata.analysis.common import LayerTargets, fit_plane
from errata.analysis.hidden_shift import linear_cka
from errata.analysis.steps import summary
from errata.benchmark.sequence import weight_norm_ratio
from errata.editing.target_search import Targets
from errata.editors.locate_then_edit import Editor
from errata.models.weights import DenseTerm, LowRankTerm, SparseTerm
from errata.utils.tensors import float64_device, to_float64

from tests.support.editing import FACTS, tiny_language_model, tiny_recipe, write_corpus

ADDING = (LowRankTerm.add_to, SparseTerm.add_to, DenseTerm.add_to)
MOVING_FIRST = {function.__code__ for function in (to_float64, *ADDING)}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class TwoDevices(TorchDispatchMode):
    """Refuses to convert float32 to float64 where it was not moved before, and to combine the two."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        before, after = floats((args, kwargs)), floats(found)
        if before == {torch.float32} and torch.float64 in after and not MOVING_FIRST & set(codes()):
            raise TypeError("cannot convert a tensor to float64 on its device")
        if len(before) > 1 and func not in COPIES:
            raise RuntimeError(f"tensors on two devices in {func}")
        return found


def floats(values: Any) -> set[torch.dtype]:
    """The dtypes of floating tensors; those without a dimension may be combined with any device's."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.dim()]
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def codes() -> Iterator[Any]:
    """The functions that are being called."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        yield frame.f_code


def test_the_cpu_takes_the_place_of_a_device_without_float64() -> None:
    assert float64_device(torch.device("mps")) == torch.device("cpu")
    assert float64_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    values = torch.tensor([0.1], dtype=torch.bfloat16)
    assert torch.equal(to_float64(values), values.double())


class Copies(TorchDispatchMode):
    """Records the device and the dtype of each copy."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.made.append((found.device.type, found.dtype))
        return found


def test_tensors_are_moved_before_they_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.utils.tensors.float64_device", lambda device: torch.device("meta"))
    in_order = [("meta", torch.float32), ("meta", torch.float64)]
    with Copies() as copies:
        to_float64(torch.zeros(2, dtype=torch.float32))
    assert copies.made == in_order
    term = LowRankTerm(0, torch.zeros(3, 1), torch.zeros(1, 2))
    with Copies() as copies:
        term.add_to(torch.zeros(3, 2, dtype=torch.float64, device="meta"))
    assert sorted(copies.made, key=str) == sorted([*in_order, *in_order], key=str)
    assert copies.made[0] == in_order[0]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("memit_seq", {"schedule": "replay", "shaping": [{"kind": "norm_cap"}]}),
        ("prune", {}),
        ("rect", {}),
        ("r_rome+blue", {}),
        ("nse", {}),
    ],
)
def test_an_edit_needs_no_float64_on_the_models_device(tmp_path: Path, method: str, changes: dict[str, Any]) -> None:
    model = tiny_language_model("llama")
    recipe = tiny_recipe(write_corpus(tmp_path / "corpus.txt"), method, target={"steps": 2}, batch_size=2, **changes)
    with TwoDevices():
        editor = Editor(model, recipe, cache=tmp_path / "cache")
        patch = editor.apply(FACTS[:4])
        assert weight_norm_ratio(editor) > 0
        assert all(norm > 0 for norm in patch.relative_norms(model).values())


def test_studies_need_no_float64_on_the_models_device() -> None:
    def targets() -> Targets:
        losses, evaluations = torch.rand(5), torch.ones(5, dtype=torch.long)
        return Targets(torch.rand(8, 5) + 1, torch.rand(8, 5), losses, evaluations, losses, losses > 0.5)

    found = LayerTargets((1, 2), {1: targets(), 2: targets()})
    states = torch.rand(6, 8)
    with TwoDevices():
        assert len(summary(found.found[1])["norm"]) == 5
        assert len({name for name, *_ in quantities(found, 1)}) > 5
        assert float(linear_cka(states, states)) == pytest.approx(1)
        plane = fit_plane(states)
        assert plane is not None
        assert len(plane.points(states)) == 6
