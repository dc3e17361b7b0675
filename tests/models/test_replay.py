"""Replaying the later blocks gives the loss and the gradient of whole forward passes, in every family.

Compared with ``tests.reference.target``: one fact at a time, whole sequences, all logits, a hook that adds delta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from errata.editing.target_loss import TargetLoss, TargetSettings
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import pad
from errata.models.replay import Replay, ReplayRow

from tests.reference.attention import compute_attention_exactly
from tests.reference.target import ReferenceLoss, texts_of
from tests.support.tiny_models import BLOCKS, EXPERT_FAMILIES, FAMILIES, WIDTH, WINDOW, tiny_model

LAYERS = (0, 2, BLOCKS - 1)
# Terms large enough that a mistake in any of them shows.
SETTINGS = TargetSettings(learning_rate=0.5, steps=5, kl_factor=0.5, weight_decay=2.0, clamp=2.0, stop_loss=0.0)
PREFIXES = ("The rain", "Therefore the river runs through the city, because", "I")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
FACTS = (
    Fact(
        "at token 0, one token, then more than a window", "The", "{} think that the piano is what she plays in", "Rome"
    ),
    Fact("at token 0, several tokens", "Danielle Darrieux", "{} speaks", "Dutch and English"),
    Fact(
        "behind more than a window", "Big Ben", "The capital of France is Paris, the capital of Italy is {}:", "London"
    ),
    Fact("last in the prompt", "Thomas Stieltjes", "The mother tongue of {}", "is French"),
    Fact("twice in the prompt", "Toyota", "Toyota, I mean {}, of course; Toyota is in", "Nagoya"),
)


@pytest.fixture(autouse=True)
def _subjects_at_token_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search puts a line break before such subjects. Replay does without, as its KL prompts may need it."""
    monkeypatch.setattr("errata.editing.contexts.NEUTRAL", "")
    monkeypatch.setattr("tests.reference.target.NEUTRAL", "")


def loaded(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel(*tiny_model(family, dtype=dtype), name=family)


def site_of(model: LanguageModel) -> Site:
    return Site.MLP if model.architecture.norm_after_mlp else Site.BLOCK


def random_deltas(facts: int, dtype: torch.dtype, seed: int = 5) -> Tensor:
    return torch.randn(facts, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradient(loss_of: Callable[[Tensor], Tensor], delta: Tensor) -> tuple[Tensor, Tensor]:
    delta = delta.clone().requires_grad_(True)
    loss = loss_of(delta)
    (gradient,) = torch.autograd.grad(loss.sum(), delta)
    return loss.detach(), gradient


Values = tuple[Tensor, Tensor, Tensor, Tensor]  # loss and gradient at 0, loss and gradient at a random delta


def reference_values(
    model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, site: Site
) -> Values:
    """One fact at a time, stacked: (facts,), (facts, d), (facts,), (facts, d)."""
    columns: list[list[Tensor]] = []
    deltas = random_deltas(len(facts), torch.promote_types(model.dtype, torch.float32))
    for fact, delta in zip(facts, deltas, strict=True):
        loss_of = ReferenceLoss(model, fact, prefixes, layer, site, SETTINGS)
        columns.append([*with_gradient(loss_of, torch.zeros_like(delta)), *with_gradient(loss_of, delta)])
    loss_0, gradient_0, loss, gradient = (torch.stack(list(values)) for values in zip(*columns, strict=True))
    return loss_0, gradient_0, loss, gradient


def replayed_values(
    model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, site: Site
) -> Values:
    """All facts at once; evaluated twice at the random delta, for an evaluation must leave the next one alone."""
    loss_of = TargetLoss(model, facts, prefixes, layer, site, SETTINGS)
    deltas = random_deltas(len(facts), loss_of.dtype)
    at_zero = with_gradient(loss_of, torch.zeros_like(deltas))
    with_gradient(loss_of, -deltas)
    return (*at_zero, *with_gradient(loss_of, deltas))


def assert_near(ours: Values, expected: Values, tolerance: float) -> None:
    """Fact by fact, relative to the fact's own loss or gradient.

    A target beyond the reach of the windows above has no gradient but rounding: the largest one in the batch, a
    thousand times smaller, stands in for it then.
    """
    for name, mine, other in zip(("loss at 0", "gradient at 0", "loss", "gradient"), ours, expected, strict=True):
        assert bool(torch.isfinite(other).all()), f"the reference's {name} is not finite"
        scale = other.view(len(other), -1).norm(dim=1)
        error = (mine - other).view(len(other), -1).norm(dim=1) / scale.clamp_min(1e-3 * float(scale.max()))
        assert error.nan_to_num(torch.inf).max().item() <= tolerance, f"{name}: relative errors {error.tolist()}"


def check(model: LanguageModel, layer: int, prefixes: Sequence[str], facts: Sequence[Fact] = FACTS) -> None:
    arguments = (model, facts, prefixes, layer, site_of(model))
    assert_near(replayed_values(*arguments), reference_values(*arguments), TOLERANCE[model.dtype])


@pytest.fixture
def exact_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_attention_exactly(monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_cover_the_cases(family: str) -> None:
    """Subjects at token 0, prompts longer than the window on both sides of the subject, all kinds of lengths."""
    model = loaded(family)
    texts = [text for fact in FACTS for text in texts_of(model.tokenizer, fact, PREFIXES)]
    first = 0 if model.tokenizer("x")["input_ids"][0] != model.tokenizer.bos_token_id else 1
    assert min(text.subject for text in texts) == first
    assert any(text.subject > 2 * WINDOW for text in texts)
    assert any(len(text.read) - text.subject > 2 * WINDOW for text in texts)
    assert any(text.subject == text.target_start - 1 for text in texts)
    assert len({text.subject for text in texts}) > 5
    assert len({len(text.ids) - text.target_start for text in texts}) > 2


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERT_FAMILIES])
def test_loss_and_gradient_in_float32(family: str) -> None:
    model = loaded(family)
    check(model, 2, PREFIXES)
    # The second is short: some windows are too narrow for the first, whose gradient at 0 then is nothing but rounding.
    check(model, 2, (), facts=(FACTS[0], Fact("also nothing before the subject", "The", "{} is in", "Rome")))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("exact_attention")
def test_loss_and_gradient_in_float64(family: str, subtests: pytest.Subtests) -> None:
    model = loaded(family, torch.float64)
    for layer in LAYERS:
        for name, prefixes in (("bare", ()), ("prefixes", PREFIXES)):
            with subtests.test(f"layer {layer}, {name}"):
                check(model, layer, prefixes)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "opt"])
@pytest.mark.usefixtures("exact_attention")
def test_injection_at_the_mlp_output_without_a_norm_after_it(family: str) -> None:
    model = loaded(family, torch.float64)
    arguments = (model, FACTS, PREFIXES, 2, Site.MLP)
    assert_near(replayed_values(*arguments), reference_values(*arguments), 1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "gemma3_text", "phi3", "opt"])
def test_scaled_dot_product_attention(family: str) -> None:
    """The attention that models are loaded with by default; the tiny ones are eager."""
    model = loaded(family)
    model.model.set_attn_implementation("sdpa")
    check(model, 2, PREFIXES)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near_float32(family: str) -> None:
    """The same weights but for rounding: losses agree to a few per cent."""
    narrow, wide = loaded(family, torch.bfloat16), loaded(family)
    for parameter, rounded in zip(wide.model.parameters(), narrow.model.parameters(), strict=True):
        parameter.data = rounded.data.float()
    ours = replayed_values(narrow, FACTS, PREFIXES, 2, site_of(narrow))
    expected = replayed_values(wide, FACTS, PREFIXES, 2, site_of(wide))
    assert all(value.dtype == torch.float32 for value in ours)
    torch.testing.assert_close(ours[0], expected[0], rtol=0.02, atol=0)
    assert_near(ours, expected, 0.2)


# Facts that leave --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("exact_attention")
def test_facts_that_leave_change_nothing_for_the_others(family: str) -> None:
    model = loaded(family, torch.float64)
    for prefixes in ((), PREFIXES):
        check_leaving(model, prefixes)


def check_leaving(model: LanguageModel, prefixes: Sequence[str]) -> None:
    loss_of = TargetLoss(model, FACTS, prefixes, 2, site_of(model), SETTINGS)
    delta = random_deltas(len(FACTS), torch.float64)
    loss_of(torch.zeros_like(delta))
    left = torch.arange(len(FACTS))
    loss, gradient = with_gradient(loss_of, delta)
    for leaving in (0, 1, 1):  # the fact with the longest suffix first, then from the middle
        kept = torch.tensor([index for index in range(len(left)) if index != leaving])
        loss_of.select(kept)
        left = left[kept]
        mine, my_gradient = with_gradient(loss_of, delta[left])
        torch.testing.assert_close(mine, loss[left], rtol=1e-9, atol=0)
        torch.testing.assert_close(my_gradient, gradient[left], rtol=1e-9, atol=1e-9)
        clamped = loss_of.clamped(1e3 * delta[left]).norm(dim=1)
        torch.testing.assert_close(clamped, SETTINGS.clamp * loss_of.origin.norm(dim=1))


def test_select_leaves_the_replay_it_came_from_alone() -> None:
    model = loaded("mistral")
    replay, delta = replay_of(model), random_deltas(len(FACTS), torch.float32)
    before = replay.logits(delta)
    chosen = replay.select(torch.tensor([1, 3]))
    assert len(chosen) == 2
    part = chosen.logits(delta[[1, 3]])
    assert torch.equal(replay.logits(delta), before)
    wanted = (replay.wanted_row == 1) | (replay.wanted_row == 3)
    torch.testing.assert_close(part, before[wanted])


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_rows_may_repeat_and_move_to_another_block(family: str) -> None:
    model = loaded(family)
    replay, delta = replay_of(model, 1), random_deltas(len(FACTS), torch.float32)
    moved, expected = replay.at(2, (site_of(model),)), replay_of(model, 2)
    torch.testing.assert_close(moved.origin, expected.origin)
    torch.testing.assert_close(moved.logits(delta), expected.logits(delta))
    rows = torch.tensor([0, 1, 1, 3])
    both = moved.select(rows).logits(delta[[0, 1, 2, 3]])
    assert moved.select(rows).wanted_row.tolist() == sorted(moved.select(rows).wanted_row.tolist())
    alone = [expected.logits(delta[[other] * len(FACTS)])[expected.wanted_row == row] for other, row in enumerate(rows)]
    torch.testing.assert_close(both, torch.cat(alone))


# The model is left as it was ---------------------------------------------------------------------------------------


def replay_of(model: LanguageModel, layer: int = 2) -> Replay:
    rows = []
    for fact in FACTS:
        text = texts_of(model.tokenizer, fact, ())[0]
        rows.append(ReplayRow(tuple(text.read), text.subject, tuple(range(text.target_start - 1, len(text.read)))))
    return Replay(model, rows, layer, (site_of(model),))


def overrides(model: LanguageModel) -> dict[str, Any]:
    """Everything that was put on a module instance in place of its class's, and every hook."""
    return {
        f"{name}.{key}": value if key == "forward" else dict(value)
        for name, module in model.model.named_modules()
        for key, value in vars(module).items()
        if key == "forward" or (key.endswith("_hooks") and value)
    }


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2"])
def test_the_model_is_as_it_was(family: str) -> None:
    model = loaded(family)
    fingerprint, before = model.fingerprint(), overrides(model)
    replay_of(model).logits(random_deltas(len(FACTS), torch.float32))
    assert model.fingerprint() == fingerprint
    assert overrides(model) == before
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_the_model_is_as_it_was_after_an_exception() -> None:
    model = loaded("llama")
    replay, delta = replay_of(model), random_deltas(len(FACTS), torch.float32)
    expected, before = replay.logits(delta), overrides(model)
    for module in (model.blocks[3], model.head):
        for raised in (RuntimeError, KeyboardInterrupt):

            def fail(*_: object, raised: type[BaseException] = raised) -> None:
                raise raised("on purpose")

            with module.register_forward_pre_hook(fail), pytest.raises(raised, match="on purpose"):
                replay.logits(delta)
            assert overrides(model) == before
            assert torch.equal(replay.logits(delta), expected)


@contextmanager
def forward_overridden(model: LanguageModel) -> Iterator[list[int]]:
    """Instance attributes ``forward`` on all blocks, as accelerate puts its hooks; yields which of them ran."""
    ran: list[int] = []
    own = [block.forward for block in model.blocks]

    def override(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            ran.append(index)
            return own[index](*args, **kwargs)

        return forward

    for index, block in enumerate(model.blocks):
        block.forward = override(index)
    yield ran
    for block in model.blocks:
        del block.forward


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_forward_overrides_of_instances_survive(family: str) -> None:
    model = loaded(family)
    delta = random_deltas(len(FACTS), torch.float32)
    expected = replay_of(model).logits(delta)
    with forward_overridden(model) as ran:
        before = overrides(model)
        replay = replay_of(model)
        ran.clear()
        assert torch.equal(replay.logits(delta), expected)
        assert overrides(model) == before
        assert ran == [3, 4], "the later blocks run as overridden, the lower ones not at all"


def test_rows_whose_wanted_logits_lie_before_the_injection_are_refused() -> None:
    with pytest.raises(ValueError, match="before the injection"):
        Replay(loaded("gpt2"), [ReplayRow((9, 10, 11), 2, (1,))], 2, (Site.BLOCK,))


# The checks above fail when positions, mask or cache are broken ---------------------------------------------------

Inputs = dict[str, Any]
_inputs, _fresh_cache = Replay._inputs, Replay._fresh_cache


def positions_without_the_prefix(self: Replay) -> Inputs:
    return {**_inputs(self), "position_ids": self._position_ids - self._prefix_lengths[:, None]}


def positions_counted_over_padding(self: Replay) -> Inputs:
    start = self._prefix_mask.shape[1]
    positions = torch.arange(start, start + self._suffix_ids.shape[1]).expand_as(self._suffix_ids)
    return {**_inputs(self), "position_ids": positions}


def mask_of_ones(self: Replay) -> Inputs:
    inputs = _inputs(self)
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def no_cache(self: Replay) -> Inputs:
    return {**_inputs(self), "attention_mask": self._suffix_mask, "past_key_values": None}


def shared_cache(self: Replay) -> DynamicCache:
    assert self._cache is not None
    return self._cache


def shared_cache_layers(self: Replay) -> DynamicCache:
    """What ``copy.copy(cache)`` gives."""
    fresh = _fresh_cache(self)
    fresh.layers = list(shared_cache(self).layers)
    return fresh


def prefixes_left_where_they_were_run(
    model: LanguageModel, prefixes: Sequence[Sequence[int]], stems: Sequence[int]
) -> tuple[DynamicCache, Tensor]:
    """The cache as the model fills it, padded on the right."""
    batch, cache = pad(prefixes, left=False, device=model.device), DynamicCache()
    with torch.no_grad():
        model.model.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, past_key_values=cache, use_cache=True
        )
    return cache, batch.attention_mask


MUTATIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "positions without the prefix": ("_inputs", positions_without_the_prefix),
    "positions counted over padding": ("_inputs", positions_counted_over_padding),
    "a mask of ones": ("_inputs", mask_of_ones),
    "no cache": ("_inputs", no_cache),
    "one cache for all evaluations": ("_fresh_cache", shared_cache),
    "copied cache with the same layers": ("_fresh_cache", shared_cache_layers),
}


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "mistral", "gemma2", "opt"])
def test_the_check_fails_when_replay_is_broken(
    family: str, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken replay gives wrong numbers or, where shapes no longer fit, an error from inside the model."""
    model = loaded(family)
    arguments = (model, FACTS, PREFIXES, 2, site_of(model))
    expected = reference_values(*arguments)
    assert_near(replayed_values(*arguments), expected, TOLERANCE[model.dtype])
    for mutation, (name, broken) in MUTATIONS.items():
        with subtests.test(mutation), monkeypatch.context() as patched:
            patched.setattr(Replay, name, broken)
            with pytest.raises((AssertionError, RuntimeError, IndexError)):
                assert_near(replayed_values(*arguments), expected, TOLERANCE[model.dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_stems_change_nothing(family: str) -> None:
    """Whatever is run once for all rows that share it: nothing, one token, as much as there is, different amounts."""
    model = loaded(family)
    rows = shared_rows()
    delta = random_deltas(len(rows), torch.float32)
    expected = Replay(model, rows, 2, (site_of(model),)).logits(delta)
    for stems in ([1] * 6, [4] * 6, [9] * 6, [4, 4, 4, 0, 0, 2], [0, 3, 4, 0, 1, 0]):
        with_stems = [replace(row, stem=stem) for row, stem in zip(rows, stems, strict=True)]
        torch.testing.assert_close(Replay(model, with_stems, 2, (site_of(model),)).logits(delta), expected)


def shared_rows() -> list[ReplayRow]:
    """Six rows, three of which begin alike; one has nothing before the injection."""
    shared = (7, 8, 9, 10)
    prefixes = [(*shared, 20, 21, 22, 23, 24, 25), (*shared, 30), shared, (), (12, 13), (12, 13, 14, 15, 16)]
    return [ReplayRow((*prefix, 40, 41, 42), len(prefix), (len(prefix) + 1,)) for prefix in prefixes]


def test_shared_stems_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama")
    seen: list[tuple[int, ...]] = []
    model.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    Replay(model, [replace(row, stem=4) for row in shared_rows()[:3]], 2, (Site.BLOCK,))
    assert seen == [(1, 4), (3, 6), (3, 3)], (
        "the stem, what the rows have of their own, the tokens from the injection on"
    )


@pytest.mark.parametrize("family", ["mistral", "gemma2", "phi3"])
def test_sliding_windows_need_left_padded_prefixes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(family)
    monkeypatch.setattr("errata.models.replay.prefix_cache", prefixes_left_where_they_were_run)
    with pytest.raises(AssertionError, match="relative errors"):
        check(model, 2, PREFIXES)
