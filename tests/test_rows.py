"""Every row of the table against its formula written out: dense, one text at a time, one batch and several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import errata.editing.batch
from errata.editing.methods import METHODS
from errata.editing.preparation import target_site
from errata.editing.recipe import Recipe
from errata.editing.target_search import find_targets
from errata.editors.locate_then_edit import Editor
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.weights import EditedWeights, SparseTerm
from errata.patches.patch import Patch
from errata.statistics.store import moments_for

from tests.reference import shaping, solvers
from tests.support.editing import (
    FACTS,
    assert_same_bits,
    editor_maker,
    parameter_bits,
    read_whole,
    subject_ids,
    tiny_language_model,
)

ROWS = [row.name for row in METHODS]
ALL = [*ROWS, *(f"{name}+blue" for name in ROWS)]


def site_of(editor: Editor) -> Site:
    return target_site(editor.model, editor.recipe.site)


@pytest.fixture(scope="module")
def make_editor(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Editor]:
    return editor_maker(tmp_path_factory.mktemp("rows"))


@dataclass
class Written:
    """The editing loop as published, written out; only the target search and C are shared with the package."""

    model: LanguageModel
    recipe: Recipe
    prefixes: Sequence[str]
    site: Site
    cache: Path | None
    history: dict[int, Tensor] = field(default_factory=dict)
    # Text -> every site's states, until a weight changes.
    passes: dict[tuple[int, ...], Any] = field(default_factory=dict)

    # Reading ----------------------------------------------------------------------------------------------------

    def over_contexts(self, fact: Fact, what: tuple[Site, int], average: str) -> Tensor:
        def of(prefix: str) -> Tensor:
            ids = tuple(subject_ids(self.model, fact, prefix))
            if ids not in self.passes:
                self.passes[ids] = read_whole(self.model, list(ids))
            state: Tensor = self.passes[ids][what][-1]
            return state.double()

        bare = of("")
        if average == "bare":
            return bare
        others = [of(prefix) for prefix in self.prefixes]
        if average == "mean":
            return (bare + sum(others)) / (1 + len(others))
        return bare / 2 + sum(others) / len(others) / 2

    def keys(self, facts: Sequence[Fact], layer: int, average: str) -> Tensor:
        return torch.stack([self.over_contexts(fact, (Site.KEY, layer), average) for fact in facts], dim=1)

    def states(self, facts: Sequence[Fact], layer: int, average: str = "bare") -> Tensor:
        return torch.stack([self.over_contexts(fact, (self.site, layer), average) for fact in facts], dim=1)

    # Writing ----------------------------------------------------------------------------------------------------

    def weight(self, layer: int) -> Tensor:
        module = self.model.down_projection(layer)
        stored: Tensor = module.get_parameter("weight").detach()
        return (stored.T if isinstance(module, Conv1D) else stored).clone()

    def set(self, layer: int, weight: Tensor) -> None:
        module: nn.Module = self.model.down_projection(layer)
        self.passes.clear()
        with torch.no_grad():
            module.get_parameter("weight").copy_(weight.T if isinstance(module, Conv1D) else weight)

    # The loop ---------------------------------------------------------------------------------------------------

    def plan(self) -> list[tuple[int, int, float]]:
        """(written layer, target's layer, what the residual is divided by)."""
        layers, ends = self.recipe.layers, sorted({self.recipe.layers[0], self.recipe.layers[-1]})
        left = [len(layers) - index for index in range(len(layers))]
        return {
            "even": [(layer, layers[-1], float(n)) for layer, n in zip(layers, left, strict=True)],
            "sqrt": [(layer, layers[-1], n**0.5) for layer, n in zip(layers, left, strict=True)],
            "boundary": [(layer, layer, 1.0) for layer in ends],
            "single": [(layers[0], layers[0], 1.0)],
        }[self.recipe.schedule]

    def aim(self, facts: Sequence[Fact], layer: int, unedited: dict[int, Tensor]) -> Tensor:
        """z at a layer."""
        now = {other: self.weight(other) for other in unedited}
        if self.recipe.target.weights == "original":
            for other, weight in unedited.items():
                self.set(other, weight)
        found = find_targets(self.model, facts, self.prefixes, layer, self.site, self.recipe.target)
        z = self.states(facts, layer) + found.delta
        for other, weight in now.items():
            self.set(other, weight)
        return z

    def solve(self, facts: Sequence[Fact], layer: int, residuals: Tensor, moment: Tensor) -> Tensor:
        keys = self.keys(facts, layer, self.recipe.contexts.keys)
        settings: Any = self.recipe.solver
        earlier = self.history.get(layer)
        if settings.kind == "least_squares":
            kept = earlier if settings.history else None
            return solvers.least_squares(keys, residuals, moment, ridge=settings.ridge, earlier=kept)
        if settings.kind == "null_space":
            return solvers.null_space(
                keys, residuals, moment, threshold=settings.threshold, l2=settings.l2, earlier=earlier
            )
        if settings.kind == "equality":
            ridge = settings.ridge if len(facts) > 1 else settings.ridge_of_one
            return solvers.equality(keys, residuals, moment, ridge=ridge)
        if settings.kind == "neurons":
            return solvers.neurons(keys, residuals, moment, ridge=settings.ridge, share=settings.share, earlier=earlier)
        other = self.keys(facts, layer, "bare") if settings.denominator == "bare" else keys
        return solvers.rank_one(keys[:, 0], other[:, 0], residuals[:, 0], moment)

    def together(self, facts: Sequence[Fact], moments: Any, unedited: dict[int, Tensor]) -> None:
        """Facts that are solved together."""
        z: dict[int, Tensor] = {}
        rounds = self.recipe.rounds
        for _ in range(rounds.count if rounds else 1):
            opened: dict[int, list[int]] = {}
            for layer, at, divisor in self.plan():
                if at not in z:
                    z[at] = self.aim(facts, at, unedited)
                gap = z[at] - self.states(facts, at, self.recipe.contexts.states)
                if at not in opened:
                    sizes = [float(column.norm()) for column in gap.T]
                    opened[at] = [i for i, s in enumerate(sizes) if not rounds or rounds.least < s < rounds.most]
                if opened[at]:
                    some = [facts[index] for index in opened[at]]
                    change = self.solve(some, layer, gap[:, opened[at]] / divisor, moments[layer].mean)
                    self.set(layer, self.weight(layer) + change)

    def run(self, batches: Sequence[Sequence[Fact]]) -> Iterator[dict[int, Tensor]]:
        """Edits batch after batch; yields the written layers' weights as they are evaluated behind each."""
        layers = sorted({layer for layer, _, _ in self.plan()})
        moments = moments_for(self.model, layers, self.recipe.statistics, cache=self.cache)
        unedited = {layer: self.weight(layer) for layer in layers}
        shapings = [entry.kind for entry in self.recipe.shaping]
        for facts in batches:
            began = {layer: self.weight(layer) for layer in layers}
            one_by_one = self.recipe.solver.kind == "rank_one"
            for group in [[fact] for fact in facts] if one_by_one else [facts]:
                self.together(group, moments, unedited)
            if "rect" in shapings:
                for layer in layers:
                    change = self.weight(layer) - began[layer]
                    self.set(layer, began[layer] + shaping.rectified(change, began[layer], share=0.4))
            for layer in layers:
                keys = self.keys(facts, layer, self.recipe.contexts.keys)
                known = self.history.get(layer)
                self.history[layer] = keys if known is None else torch.cat([known, keys], dim=1)
            weights = {layer: self.weight(layer) for layer in layers}
            if "prune" in shapings:
                weights = {
                    layer: unedited[layer] + shaping.pruned(weights[layer] - unedited[layer], unedited[layer])
                    for layer in layers
                }
            yield weights


def changes_of(method: str) -> dict[str, Any]:
    """Settings under which a row's own part is felt: without them, a row could pass as plain MEMIT."""
    # So large a change that singular values are pressed; the tiny model's own are near 2.
    return {"solver": {"ridge": 0.05}, "target": {"clamp": 4.0, "learning_rate": 1.0}} if "prune" in method else {}


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(("llama", method) for method in ALL),
        # The orientation of W and the norms concern every row alike: each solver, schedule and shaping once.
        *(("gpt2", method) for method in ("memit+blue", "alphaedit", "alphaedit+blue", "rome", "pmet", "emmet+blue")),
        *(("gpt2", method) for method in ("nse", "rect", "prune", "memit_seq+blue")),
        *(("gemma3_text", method) for method in ("memit", "memit_seq+blue", "alphaedit+blue")),
    ],
)
def test_one_batch_and_three_equal_the_formula(make_editor: Callable[..., Editor], family: str, method: str) -> None:
    """ΔW within 1e-6 relative, in float64; GPT-2 stores Wᵀ (Conv1D), Llama W (Linear), Gemma 3 norms W's output."""
    check_against_the_formula(make_editor, family, method, changes_of(method))


@pytest.mark.parametrize("method", ["rome", "r_rome", "memit_seq", "nse"])
def test_original_weights_are_those_before_the_run(make_editor: Callable[..., Editor], method: str) -> None:
    """Also those before facts of the same batch that have been written already (ROME's)."""
    check_against_the_formula(make_editor, "llama", method, {"target": {"weights": "original"}})


def check_against_the_formula(
    make_editor: Callable[..., Editor], family: str, method: str, changes: dict[str, Any]
) -> None:
    edited, plain_model = (tiny_language_model(family, dtype=torch.float64) for _ in range(2))
    editor = make_editor(edited, method, **changes)
    editor.prepare()
    assert site_of(editor) is (Site.MLP if family == "gemma3_text" else Site(editor.recipe.site))
    layers = sorted({step.layer for step in editor.steps})
    unedited = {layer: edited.weight(layer).clone() for layer in layers}
    all_before = parameter_bits(edited)
    expected = list(
        Written(plain_model, editor.recipe, editor.prefixes, site_of(editor), editor.cache).run(
            [FACTS[:2], FACTS[2:4], FACTS[4:]]
        )
    )
    found: list[dict[int, Tensor]] = []
    editor.apply(FACTS, on_batch=lambda record: found.append({at: edited.weight(at).clone() for at in layers}))
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        for layer in layers:
            mine, other = ours[layer] - unedited[layer], theirs[layer] - unedited[layer]
            assert float(other.norm()) > 0
            assert float((mine - other).norm() / other.norm()) < 1e-6
    changed = {name for name, bits in parameter_bits(edited).items() if not torch.equal(bits, all_before[name])}
    assert len(changed) == len(layers)  # nothing beside the written W


# A row is not another row ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "other"),
    [
        ("rome", "r_rome"),
        ("memit", "memit_seq"),
        ("memit", "rect"),
        ("memit", "prune"),
        ("memit", "emmet"),
        ("pmet", "pmet_seq"),
        ("pmet", "memit"),
        ("nse", "memit_seq"),
        ("alphaedit", "memit_seq"),
        ("nse+blue", "memit_seq+blue"),
    ],
)
def test_rows_differ(make_editor: Callable[..., Editor], method: str, other: str) -> None:
    weights = []
    for name in (method, other):
        model = tiny_language_model("llama", dtype=torch.float64)
        make_editor(model, name, layers=(2, 3), **changes_of(other)).apply(FACTS[:4])
        weights.append(model.weight(3).clone())
    unedited = tiny_language_model("llama", dtype=torch.float64).weight(3)
    assert float((weights[0] - weights[1]).norm()) > 1e-3 * float((weights[0] - unedited).norm())


# What must hold -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_facts_that_are_known_already_leave_the_weights_alone(make_editor: Callable[..., Editor], method: str) -> None:
    model = tiny_language_model("gpt2")
    before = parameter_bits(model)
    patch = make_editor(model, method, target={"stop_loss": 1e6}).apply(FACTS[:4])
    assert_same_bits(parameter_bits(model), before)
    assert set(patch.norms().values()) <= {0.0}


@pytest.mark.parametrize("method", ROWS)
def test_boundary_with_one_layer_is_single(make_editor: Callable[..., Editor], method: str) -> None:
    bits = []
    for schedule in ("boundary", "single"):
        model = tiny_language_model("llama")
        make_editor(model, method, layers=(2,), schedule=schedule).apply(FACTS[:4])
        bits.append(parameter_bits(model))
    assert_same_bits(*bits)


@pytest.mark.parametrize("method", [name for name in ALL if "rome" not in name])
def test_the_order_of_facts_within_a_batch_does_not_matter(make_editor: Callable[..., Editor], method: str) -> None:
    weights = []
    for facts in (FACTS[:4], FACTS[3::-1]):
        model = tiny_language_model("llama", dtype=torch.float64)
        make_editor(model, method, batch_size=4).apply(facts)
        weights.append(model.weight(3).clone())
    unedited = tiny_language_model("llama", dtype=torch.float64).weight(3)
    assert float((weights[0] - weights[1]).norm()) < 1e-6 * float((weights[0] - unedited).norm())


@pytest.mark.parametrize("method", ["rome", "r_rome"])
def test_rome_writes_one_fact_after_another(make_editor: Callable[..., Editor], method: str) -> None:
    weights = []
    for facts, size in ((FACTS[:3], 3), (FACTS[:3], 1), (FACTS[2::-1], 3)):
        model = tiny_language_model("llama", dtype=torch.float64)
        editor = make_editor(model, method, batch_size=size)
        editor.apply(facts)
        assert [len(record.terms) for record in editor.records] == [3] if size == 3 else [1, 1, 1]
        weights.append(model.weight(3).clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], rtol=1e-4)


def test_rome_with_the_identity_reads_no_text(make_editor: Callable[..., Editor]) -> None:
    """ΔW = r k̄ᵀ / (kᵀ k̄): nothing of the corpus is in it, so there need not be one."""
    model = tiny_language_model("gpt2", dtype=torch.float64)
    changes = {"solver": {"moment": "identity"}, "statistics": {"corpus": "nowhere.txt"}}
    editor = make_editor(model, "rome", batch_size=1, **changes)
    editor.prepare()
    plain = Written(model, editor.recipe, editor.prefixes, site_of(editor), editor.cache)
    averaged, bare = (plain.keys(FACTS[:1], 3, how) for how in ("mean", "bare"))
    unedited = plain.weight(3)
    editor.apply(FACTS[:1])
    change = editor.records[0].targets[3].delta @ averaged.T / float(bare.T @ averaged)
    torch.testing.assert_close(plain.weight(3) - unedited, change, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_equality_without_a_ridge_meets_all_facts_exactly(make_editor: Callable[..., Editor], family: str) -> None:
    """ΔW·K̄ = R: the averaged states move by the whole residual."""
    model = tiny_language_model(family, dtype=torch.float64)
    editor = make_editor(model, "emmet", batch_size=4, solver={"ridge": 0.0})
    editor.prepare()
    plain = Written(model, editor.recipe, editor.prefixes, site_of(editor), editor.cache)
    keys, unedited = plain.keys(FACTS[:4], 3, "halves"), plain.weight(3)
    editor.apply(FACTS[:4])
    moved = (plain.weight(3) - unedited) @ keys
    delta = editor.records[0].targets[3].delta
    assert float(delta.norm()) > 0.1
    torch.testing.assert_close(moved, delta, rtol=1e-6, atol=1e-8)


def test_null_space_changes_move_ordinary_keys_by_little(make_editor: Callable[..., Editor]) -> None:
    """tr(ΔW C ΔWᵀ) ≤ threshold · ‖ΔW‖²."""
    model = tiny_language_model("llama", dtype=torch.float64)
    editor = make_editor(model, "alphaedit+blue")
    editor.apply(FACTS)
    unedited = tiny_language_model("llama", dtype=torch.float64)
    moments = moments_for(unedited, [1, 3], editor.recipe.statistics, cache=editor.cache)
    for layer in (1, 3):
        change = model.weight(layer) - unedited.weight(layer)
        spent = float(torch.trace(change @ moments[layer].mean @ change.T))
        assert 0 < spent <= 0.5 * float(change.norm()) ** 2 * (1 + 1e-9)


def test_nse_blue_finds_its_second_target_after_the_first_write(make_editor: Callable[..., Editor]) -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    editor = make_editor(model, "nse+blue")
    editor.apply(FACTS[:2])
    (record,) = editor.records
    assert [term.layer for term in record.terms] == [1, 3, 1, 3]  # two rounds
    fresh = tiny_language_model("llama", dtype=torch.float64)
    fresh.edits.add([record.terms[0]])
    expected = find_targets(fresh, FACTS[:2], editor.prefixes, 3, Site.BLOCK, editor.recipe.target)
    torch.testing.assert_close(record.targets[3].delta, expected.delta)
    assert any("not on the unedited ones" in text for text in METHODS[9].with_blue().deviations)


def test_nse_finds_targets_on_the_unedited_weights(make_editor: Callable[..., Editor]) -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    editor = make_editor(model, "nse")
    editor.apply(FACTS[:4])
    fresh = tiny_language_model("llama", dtype=torch.float64)
    expected = find_targets(fresh, FACTS[2:4], editor.prefixes, 3, Site.BLOCK, editor.recipe.target)
    torch.testing.assert_close(editor.records[1].targets[3].delta, expected.delta)
    again = find_targets(model, FACTS[2:4], editor.prefixes, 3, Site.BLOCK, editor.recipe.target)
    assert not torch.allclose(again.delta, expected.delta, rtol=1e-3)


def test_rounds_leave_closed_facts_alone(make_editor: Callable[..., Editor]) -> None:
    """Only facts whose distance to their target lies between the bounds are written, and none leaves no term."""
    model = tiny_language_model("llama", dtype=torch.float64)
    before = parameter_bits(model)
    editor = make_editor(model, "nse", rounds={"least": 1e5, "most": 1e6})
    editor.apply(FACTS[:2])
    assert editor.records[0].terms == ()
    assert_same_bits(parameter_bits(model), before)


def test_of_several_facts_only_those_between_the_bounds_are_written(make_editor: Callable[..., Editor]) -> None:
    """One too near its target, one too far, one between; and M gets the keys of all three."""
    fresh = tiny_language_model("llama", dtype=torch.float64)
    editor = make_editor(fresh, "nse", batch_size=3)
    editor.prepare()
    delta = find_targets(fresh, FACTS[:3], editor.prefixes, 3, Site.BLOCK, editor.recipe.target).delta
    sizes = delta.norm(dim=0)
    near, middle, far = sizes.argsort().tolist()
    bounds = {
        "count": 1,
        "least": float(sizes[near] + sizes[middle]) / 2,
        "most": float(sizes[middle] + sizes[far]) / 2,
    }
    edited, plain_model = (tiny_language_model("llama", dtype=torch.float64) for _ in range(2))
    editor = make_editor(edited, "nse", batch_size=3, rounds=bounds)
    editor.prepare()
    expected = list(
        Written(plain_model, editor.recipe, editor.prefixes, site_of(editor), editor.cache).run([FACTS[:3], FACTS[3:]])
    )
    found: list[Tensor] = []
    editor.apply(FACTS, on_batch=lambda record: found.append(edited.weight(3).clone()))
    assert {fact.id for fact in editor.records[0].unwritten} == {FACTS[near].id, FACTS[far].id}
    assert all(term.left.shape[1] == 1 for term in editor.records[0].terms)  # type: ignore[attr-defined]
    unedited = fresh.weight(3)
    for ours, theirs in zip(found, expected, strict=True):
        change = theirs[3] - unedited
        assert float(change.norm()) > 0
        assert float((ours - theirs[3]).norm() / change.norm()) < 1e-6


# Forward replay, norm cap, other schedules ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "opt", "gptj"])
def test_replay_reads_later_targets_off_one_forward_pass(make_editor: Callable[..., Editor], family: str) -> None:
    # OPT's ReLU leaves units dead in so small a model.
    overrides = {"activation_function": "gelu"} if family == "opt" else {}
    model = tiny_language_model(family, dtype=torch.float64, **overrides)
    editor = make_editor(model, "memit", schedule="replay", layers=(1, 2, 4))
    editor.apply(FACTS[:2])
    (record,) = editor.records
    assert [term.layer for term in record.terms] == [1, 2, 4]
    fresh = tiny_language_model(family, dtype=torch.float64, **overrides)
    searched = find_targets(fresh, FACTS[:2], editor.prefixes, 1, site_of(editor), editor.recipe.target)
    torch.testing.assert_close(record.targets[1].delta, searched.delta)
    for index, fact in enumerate(FACTS[:2]):
        ids = subject_ids(fresh, fact)
        before = read_whole(fresh, ids)

        def push(module: Any, args: Any, output: Any, delta: Tensor = searched.delta[:, index]) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            flat = hidden.reshape(-1, hidden.shape[-1]).clone()
            flat[-1] += delta
            return (flat.view_as(hidden), *output[1:]) if isinstance(output, tuple) else flat.view_as(hidden)

        module = fresh.blocks[1] if site_of(editor) is Site.BLOCK else fresh.down_projection(1)
        handle = module.register_forward_hook(push)
        after = read_whole(fresh, ids)
        handle.remove()
        for layer in (2, 4):
            moved = (after[site_of(editor), layer] - before[site_of(editor), layer])[-1]
            assert float(moved.norm()) > 1e-3
            # GPT-J computes attention in float32 whatever its dtype.
            tolerance = 1e-5 if family == "gptj" else 1e-8
            torch.testing.assert_close(record.targets[layer].delta[:, index], moved, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["memit", "r_rome"])
def test_replay_residuals_are_undivided_and_see_the_earlier_writes(
    make_editor: Callable[..., Editor], method: str
) -> None:
    """The second layer is written towards h + the carried move, less what the first write has moved it by already."""
    model = tiny_language_model("llama", dtype=torch.float64)
    editor = make_editor(model, method, schedule="replay", layers=(1, 3), batch_size=1)
    fact = FACTS[0]
    editor.prepare()
    fresh = tiny_language_model("llama", dtype=torch.float64)
    plain = Written(fresh, editor.recipe, editor.prefixes, site_of(editor), editor.cache)
    bare, averaged = plain.states([fact], 3), plain.states([fact], 3, editor.recipe.contexts.states)
    editor.apply([fact])
    (record,) = editor.records
    first, second = record.terms
    fresh.edits.add([first])
    plain.passes.clear()
    moved = plain.states([fact], 3, editor.recipe.contexts.states)
    assert float((moved - averaged).norm()) > 1e-3
    residual = bare + record.targets[3].delta - moved
    # What a solver returns as its left factor is the residual.
    torch.testing.assert_close(second.left, residual, rtol=1e-6, atol=1e-9)  # type: ignore[attr-defined]


def test_norm_cap_shapes_targets_by_the_unedited_models_states(make_editor: Callable[..., Editor]) -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    free = {"target": {"clamp": 20.0, "learning_rate": 3.0}, "solver": {"ridge": 0.01}}
    editor = make_editor(model, "memit", layers=(1, 2, 3), shaping=({"kind": "norm_cap"},), **free)
    fresh = tiny_language_model("llama", dtype=torch.float64)
    editor.apply(FACTS[:2])
    current = tiny_language_model("llama", dtype=torch.float64)
    current.edits.add(editor.records[0].terms)
    editor.apply(FACTS[2:4])
    for facts, now, record in ((FACTS[:2], fresh, editor.records[0]), (FACTS[2:4], current, editor.records[1])):

        def states(of: LanguageModel, some: Sequence[Fact] = facts) -> Tensor:
            return torch.stack([read_whole(of, subject_ids(of, f))[Site.BLOCK, 3][-1] for f in some], dim=1)

        origin, mean = states(now), float(states(fresh).norm(dim=0).mean())
        searched = find_targets(now, facts, editor.prefixes, 3, Site.BLOCK, editor.recipe.target).delta
        for index in range(2):
            expected = shaping.capped(origin[:, index], searched[:, index], mean)
            torch.testing.assert_close(record.targets[3].delta[:, index], expected, rtol=1e-6, atol=1e-8)
            assert not torch.allclose(searched[:, index], expected)
    assert abs(float(states(current).norm(dim=0).mean()) - mean) > 1e-3  # else the weights would not matter


# Shaped runs and sparse patches ---------------------------------------------------------------------------------------


def test_prune_edits_on_from_the_unpruned_weights_and_undoes(make_editor: Callable[..., Editor]) -> None:
    pruned, plain = (tiny_language_model("llama") for _ in range(2))
    before = parameter_bits(pruned)
    editor = make_editor(pruned, "prune", **changes_of("prune"))
    other = make_editor(plain, "memit", **changes_of("prune"))
    first = editor.apply(FACTS[:2])
    other.apply(FACTS[:2])
    shown = parameter_bits(pruned)
    second = editor.apply(FACTS[2:4])
    other.apply(FACTS[2:4])
    # The batches are MEMIT's, whatever was shown between them.
    for mine, theirs in zip(editor.records, other.records, strict=True):
        for term, memits in zip(mine.terms, theirs.terms, strict=True):
            torch.testing.assert_close(term.left, memits.left)  # type: ignore[attr-defined]
    assert [fact.id for fact in second.facts] == [fact.id for fact in FACTS[:4]]
    assert all(term.replaces for term in second.terms)  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="not applied"):
        first.undo(pruned)
    second.undo(pruned)
    assert_same_bits(parameter_bits(pruned), before)
    second.apply(pruned)
    first_again = tiny_language_model("llama")
    first.apply(first_again)
    assert_same_bits(parameter_bits(first_again), shown)


def test_prune_as_published_adds_on_top(make_editor: Callable[..., Editor]) -> None:
    weights = {}
    for name, entries in (
        ("ours", [{"kind": "prune"}]),
        ("published", [{"kind": "prune", "on_top": True}]),
        ("memit", []),
    ):
        model = tiny_language_model("llama", dtype=torch.float64)
        make_editor(model, "prune", shaping=entries, **changes_of("prune")).apply(FACTS[:4])
        weights[name] = model.weight(3).clone()
    unedited = tiny_language_model("llama", dtype=torch.float64).weight(3)
    torch.testing.assert_close(weights["published"] - unedited, weights["memit"] + weights["ours"] - 2 * unedited)
    assert float((weights["ours"] - unedited).norm()) < 0.9 * float((weights["memit"] - unedited).norm())


def test_a_target_found_on_unedited_weights_is_another_one(make_editor: Callable[..., Editor]) -> None:
    """What --as-published does for +blue: the second boundary target as a cache filled elsewhere would have it."""
    weights = []
    for source in ("current", "original"):
        model = tiny_language_model("llama", dtype=torch.float64)
        make_editor(model, "memit+blue", target={"weights": source}).apply(FACTS[:2])
        weights.append(model.weight(3).clone())
    unedited = tiny_language_model("llama", dtype=torch.float64).weight(3)
    assert float((weights[0] - weights[1]).norm()) > 1e-3 * float((weights[0] - unedited).norm())


@pytest.mark.parametrize("method", ["rect+blue", "prune", "nse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_of_every_form_are_saved_read_applied_and_undone(
    make_editor: Callable[..., Editor], tmp_path: Path, method: str, dtype: torch.dtype
) -> None:
    model = tiny_language_model("gpt2", dtype=dtype)
    before = parameter_bits(model)
    patch = make_editor(model, method).apply(FACTS[:4])
    edited = parameter_bits(model)
    patch.save(tmp_path / "patch.safetensors")
    read = Patch.load(tmp_path / "patch.safetensors")
    assert read.norms() == pytest.approx(patch.norms())
    fresh = tiny_language_model("gpt2", dtype=dtype)
    read.apply(fresh)
    assert_same_bits(parameter_bits(fresh), edited)
    read.undo(fresh)
    assert_same_bits(parameter_bits(fresh), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rectified_writes_are_kept_off_the_gpu(make_editor: Callable[..., Editor]) -> None:
    model = tiny_language_model("llama")
    model.model.cuda()
    before = parameter_bits(model)
    patch = make_editor(model, "rect").apply(FACTS[:4])
    terms = [term for term in patch.terms if isinstance(term, SparseTerm)]
    assert terms
    assert {tensor.device.type for term in terms for tensor in (term.values, term.mask)} == {"cpu"}
    patch.undo(model)
    assert_same_bits(parameter_bits(model), before)


def test_rectified_writes_are_sparse(make_editor: Callable[..., Editor]) -> None:
    model = tiny_language_model("llama")
    unedited = {layer: model.weight(layer).clone() for layer in (1, 2, 3)}
    make_editor(model, "rect").apply(FACTS[:2])
    for layer in (1, 2, 3):
        changed = (model.weight(layer) != unedited[layer]).float().mean()
        assert 0.3 < float(changed) <= 0.4 + 1e-3


def test_what_another_run_wrote_is_not_taken_out_for_the_original_weights(make_editor: Callable[..., Editor]) -> None:
    """Original is as this run found the model, not as it was before everything."""
    model = tiny_language_model("llama", dtype=torch.float64)
    earlier = make_editor(model, "memit", **changes_of("prune")).apply(FACTS[4:])
    editor = make_editor(model, "nse")
    editor.apply(FACTS[:4])
    fresh = tiny_language_model("llama", dtype=torch.float64)
    fresh.edits.add(earlier.terms)
    expected = find_targets(fresh, FACTS[2:4], editor.prefixes, 3, Site.BLOCK, editor.recipe.target)
    torch.testing.assert_close(editor.records[1].targets[3].delta, expected.delta)


def test_an_editor_whose_work_was_undone_edits_no_more(make_editor: Callable[..., Editor]) -> None:
    for method in ("memit_seq", "prune"):
        model = tiny_language_model("llama")
        editor = make_editor(model, method)
        editor.apply(FACTS[:2]).undo(model)
        before = parameter_bits(model)
        with pytest.raises(InputError, match="Make a new Editor"):
            editor.apply(FACTS[2:4])
        assert_same_bits(parameter_bits(model), before)


def test_no_facts_are_refused(make_editor: Callable[..., Editor]) -> None:
    with pytest.raises(InputError, match="no facts"):
        make_editor(tiny_language_model("gpt2"), "memit").apply_batch([])


# All or nothing, also where runs are shaped, masked or searched on other weights --------------------------------------


PLACES_OF_FAILURE = [
    ("prune", Editor, "show", 1, True),
    ("prune", Editor, "show", 2, True),
    ("prune", Editor, "_hide_shaped", 2, True),
    ("rect", errata.editing.batch, "_masked", 1, False),
    ("rect", errata.editing.batch, "_masked", 2, True),
    ("rect", EditedWeights, "rollback", 2, True),
    ("nse", EditedWeights, "weight_without", 2, False),
    ("nse", LanguageModel, "set_weight", 4, True),
    ("rome", errata.editing.batch, "_solve", 2, True),
]


@pytest.fixture(scope="module")
def undisturbed(make_editor: Callable[..., Editor]) -> Callable[[str], dict[str, Tensor]]:
    """The weights after two batches that nothing disturbs, by method."""

    @cache
    def bits_of(method: str) -> dict[str, Tensor]:
        model = tiny_language_model("llama")
        editor = make_editor(model, method)
        editor.apply(FACTS[:2])
        editor.apply(FACTS[2:])
        return parameter_bits(model)

    return bits_of


@pytest.mark.parametrize(("method", "owner", "name", "nth", "afterwards"), PLACES_OF_FAILURE)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_anywhere_leaves_everything_as_it_was(
    make_editor: Callable[..., Editor],
    undisturbed: Callable[[str], dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    owner: type,
    name: str,
    nth: int,
    afterwards: bool,
    error: type[BaseException],
) -> None:
    model = tiny_language_model("llama")
    editor = make_editor(model, method)
    editor.apply(FACTS[:2])
    before, run, terms = parameter_bits(model), editor._run, list(model.edits.terms)
    original, calls = getattr(owner, name), []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) != nth:
            return original(*arguments, **options)
        if afterwards:
            original(*arguments, **options)
        raise error("injected")

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing)
        with pytest.raises(error):
            editor.apply(FACTS[2:], on_batch=lambda record: None)
        assert len(calls) >= nth
    assert_same_bits(parameter_bits(model), before)
    assert editor._run is run
    assert len(editor.records) == 1
    assert [id(term) for term in model.edits.terms] == [id(term) for term in terms]
    # The next batch then equals that of an undisturbed run.
    editor.apply(FACTS[2:])
    assert_same_bits(parameter_bits(model), undisturbed(method))
