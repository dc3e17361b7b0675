"""W = round(W₀ + Σ left · right): exact sums, exact undoing, and transactions on any layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from errata.models.weights import DenseTerm, EditedWeights, LowRankTerm, ModuleName, Place, Term

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALVES = (torch.bfloat16, torch.float16)


class Holder:
    """Two layers' weights, (3, 4), and v_proj (2, 4) of layer 0; everything that ``EditedWeights`` needs of a model."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        generator = torch.Generator().manual_seed(0)
        self.layers = {layer: torch.randn(3, 4, generator=generator).to(dtype) for layer in (0, 1)}
        self.values = torch.randn(2, 4, generator=generator).to(dtype)

    def weight(self, layer: int, module: ModuleName = "down_proj", expert: int | None = None) -> Tensor:
        return self.values if Place(layer, module, expert) == Place(0, "v_proj") else self.layers[layer]

    def set_weight(
        self, layer: int, value: Tensor, module: ModuleName = "down_proj", expert: int | None = None
    ) -> None:
        self.weight(layer, module, expert).copy_(value)


def term(
    seed: int, *, layer: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32, values: bool = False
) -> Term:
    """``values``: of v_proj of layer 0 instead."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(3, 2, generator=generator) * scale, torch.randn(2, 4, generator=generator)
    if values:
        return LowRankTerm(0, left[:2].to(dtype), right.to(dtype), module="v_proj")
    return LowRankTerm(layer, left.to(dtype), right.to(dtype))


def bits(holder: Holder) -> dict[int | str, bytes]:
    found = {**holder.layers, "values": holder.values}
    return {name: value.view(torch.uint8).numpy().tobytes() for name, value in found.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_adding_and_removing_is_exact(dtype: torch.dtype) -> None:
    holder = Holder(dtype)
    edits = EditedWeights(holder)
    before = bits(holder)
    terms = [term(seed, layer=seed % 2) for seed in range(5)] + [DenseTerm(1, torch.full((3, 4), 0.3))]
    terms += [term(5, values=True), DenseTerm(0, torch.full((2, 4), 0.3), module="v_proj")]
    edits.add(terms[:4])
    edits.add(terms[4:])
    assert edits.terms == terms
    assert all(now != before[name] for name, now in bits(holder).items())
    assert edits.places == (Place(0), Place(0, "v_proj"), Place(1))
    assert torch.equal(edits.weight_without(0, terms, "v_proj"), edits.base_weight(0, "v_proj"))
    edits.remove(terms)
    assert bits(holder) == before
    assert edits.terms == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_the_rounded_sum(dtype: torch.dtype) -> None:
    holder = Holder(dtype)
    base = holder.weight(0).clone()
    edits = EditedWeights(holder)
    terms = [term(seed) for seed in range(5)]
    edits.add(terms)
    exact = base.double() + sum(one.left.double() @ one.right.double() for one in terms)
    unit = torch.finfo(dtype).eps if dtype in HALVES else 1e-6 if dtype is torch.float32 else 1e-14
    assert torch.allclose(holder.weight(0).double(), exact, rtol=unit, atol=unit)
    assert edits.sum_dtype == (torch.float64 if dtype is torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", HALVES)
def test_many_small_changes_add_up_that_vanish_one_by_one(dtype: torch.dtype) -> None:
    holder = Holder(dtype)
    holder.layers[0].fill_(1.0)
    small = torch.finfo(dtype).eps / 8  # 1 + small rounds to 1 again; all numbers here are powers of two, sums exact
    edits = EditedWeights(holder)
    one = torch.ones(3, 1)
    for _ in range(16):
        edits.add([LowRankTerm(0, one, torch.full((1, 4), small))])
    assert torch.equal(holder.weight(0), torch.full((3, 4), 1 + 16 * small, dtype=dtype))
    assert float(torch.ones((), dtype=dtype) + torch.tensor(small, dtype=dtype)) == 1.0


@given(order=st.permutations(range(4)), dtype=st.sampled_from(DTYPES))
def test_what_remains_is_as_if_the_removed_had_never_been(order: list[int], dtype: torch.dtype) -> None:
    terms = [term(seed, layer=seed % 2, values=seed == 2) for seed in range(4)]
    holder = Holder(dtype)
    edits = EditedWeights(holder)
    edits.add(terms)
    for count in range(1, 5):
        edits.remove([terms[order[count - 1]]])
        remaining = [one for one in terms if id(one) not in {id(terms[index]) for index in order[:count]}]
        fresh = Holder(dtype)
        EditedWeights(fresh).add(remaining)
        assert bits(holder) == bits(fresh)


def test_what_is_not_in_cannot_be_removed_and_nothing_happens() -> None:
    holder = Holder(torch.float32)
    edits = EditedWeights(holder)
    inside, outside = term(1), term(1)  # equal numbers, another change
    edits.add([inside])
    before = bits(holder)
    with pytest.raises(ValueError, match="not in the model"):
        edits.remove([inside, outside])
    assert bits(holder) == before
    assert edits.terms == [inside]


@pytest.fixture(params=DTYPES, ids=str)
def edited(request: pytest.FixtureRequest) -> tuple[Holder, EditedWeights]:
    """One change in layer 0, none in layer 1."""
    holder = Holder(request.param)
    edits = EditedWeights(holder)
    edits.add([term(1)])
    return holder, edits


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()], ids=repr)
def test_a_transaction_goes_back_whatever_ends_it(edited: tuple[Holder, EditedWeights], error: BaseException) -> None:
    holder, edits = edited
    before, terms = bits(holder), list(edits.terms)
    with pytest.raises(type(error)), edits.transaction():
        edits.add([term(2), term(3, layer=1), term(6, values=True)])
        assert bits(holder) != before
        raise error
    assert bits(holder) == before
    assert edits.terms == terms
    later = [term(4), term(5, layer=1)]
    edits.add(later)
    fresh = Holder(holder.dtype)
    EditedWeights(fresh).add([*terms, *later])
    assert bits(holder) == bits(fresh)


def test_an_inner_transaction_may_fail_alone(edited: tuple[Holder, EditedWeights]) -> None:
    holder, edits = edited
    with edits.transaction():
        edits.add([term(2)])
        kept = bits(holder)
        with pytest.raises(RuntimeError), edits.transaction():
            edits.add([term(3), term(4, layer=1)])
            raise RuntimeError
        assert bits(holder) == kept
    assert bits(holder) == kept
    assert len(edits.terms) == 2


def test_an_outer_transaction_takes_the_inner_one_along(edited: tuple[Holder, EditedWeights]) -> None:
    holder, edits = edited
    before = bits(holder)
    with pytest.raises(RuntimeError), edits.transaction():
        with edits.transaction():
            edits.add([term(2), term(3, layer=1)])
        raise RuntimeError
    assert bits(holder) == before
    assert len(edits.terms) == 1


def test_removing_inside_a_failed_transaction_is_taken_back(edited: tuple[Holder, EditedWeights]) -> None:
    holder, edits = edited
    before, terms = bits(holder), list(edits.terms)
    with pytest.raises(RuntimeError), edits.transaction():
        edits.add([term(2)])
        edits.remove(terms)
        raise RuntimeError
    assert bits(holder) == before
    assert edits.terms == terms


@pytest.mark.parametrize("kept_count", [0, 1], ids=["all", "the later"])
def test_changes_that_are_left_out_for_a_while_are_out_for_whatever_is_added_too(
    edited: tuple[Holder, EditedWeights], kept_count: int
) -> None:
    holder, edits = edited
    edits.add([term(2), term(3, layer=1)])
    before, terms = bits(holder), list(edits.terms)
    kept, more = terms[:kept_count], [term(4), term(5, layer=1)]
    fresh = Holder(holder.dtype)
    others = EditedWeights(fresh)
    others.add(kept)
    with edits.without(terms[len(kept) :]):
        assert bits(holder) == bits(fresh)
        mark = edits.savepoint([0, 1])
        edits.add(more)
        others.add(more)
        assert bits(holder) == bits(fresh)
        edits.rollback(mark)
        others.remove(more)
        assert bits(holder) == bits(fresh)
    assert bits(holder) == before
    assert edits.terms == terms
    edits.remove(terms)
    assert bits(holder) == bits(Holder(holder.dtype))


def test_a_rollback_leaves_changes_of_other_layers() -> None:
    holder = Holder(torch.float32)
    edits = EditedWeights(holder)
    before, first, second = bits(holder), term(0, layer=0), term(1, layer=1)
    savepoint = edits.savepoint([0])
    edits.add([first, second])
    edits.rollback(savepoint)
    assert edits.terms == [second]
    assert bits(holder)[0] == before[0]
    assert bits(holder)[1] != before[1]
    edits.remove([second])
    assert bits(holder) == before
