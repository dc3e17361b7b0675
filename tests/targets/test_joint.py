"""PMET's joint search, all facts together, equals the plain search of one fact at a time, in every family."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from errata.editing.target_loss import JointLoss, JointTargetSettings
from errata.editing.target_search import Targets, find_targets
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site

from tests.reference.attention import compute_attention_exactly
from tests.reference.joint import ReferenceJointLoss, search_jointly
from tests.support.tiny_models import BLOCKS, FAMILIES, tiny_model
from tests.targets.test_residual import FACTS, PREFIXES

SETTINGS = JointTargetSettings(
    learning_rate=0.6, steps=12, kl_factor=0.3, weight_decay=0.5, clamp=1.5, stop_loss=0.0, stop_divergence=0.0
)


@pytest.fixture(autouse=True)
def _exact_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_attention_exactly(monkeypatch)


def loaded(family: str) -> LanguageModel:
    return LanguageModel(*tiny_model(family, dtype=torch.float64), name=family)


def searched(model: LanguageModel, settings: JointTargetSettings = SETTINGS, layer: int = 2) -> Targets:
    return find_targets(model, FACTS, PREFIXES, layer, Site.MLP, settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_equal_those_of_whole_sequences(family: str, subtests: pytest.Subtests) -> None:
    """At zero and at random deltas; in layer 0 no block lies below."""
    model = loaded(family)
    for layer, facts in ((0, FACTS[:2]), (2, FACTS), (BLOCKS - 1, FACTS[:2])):
        with subtests.test(f"layer {layer}"):
            check_loss(model, layer, facts)


def check_loss(model: LanguageModel, layer: int, facts: Sequence[Fact]) -> None:
    loss_of = JointLoss(model, facts, PREFIXES, layer, Site.MLP, SETTINGS)
    generator = torch.Generator().manual_seed(1)
    random = 0.3 * torch.randn(loss_of.origin.shape, generator=generator, dtype=torch.float64)
    references = [ReferenceJointLoss(model, fact, PREFIXES, layer, SETTINGS) for fact in facts]
    for deltas in (torch.zeros_like(random), random):
        mine, my_gradient = with_gradient(lambda value: loss_of(value).sum(), deltas)
        theirs = [
            with_gradient(lambda value, loss=reference: loss(value.chunk(2)), delta)
            for reference, delta in zip(references, deltas, strict=True)
        ]
        torch.testing.assert_close(mine, torch.stack([loss for loss, _ in theirs]).sum(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(my_gradient, torch.stack([gradient for _, gradient in theirs]), rtol=1e-7, atol=1e-9)
    origins = torch.stack([torch.cat(reference.origins) for reference in references])
    torch.testing.assert_close(loss_of.origin, origins, rtol=1e-9, atol=1e-9)


def with_gradient(loss_of: object, value: Tensor) -> tuple[Tensor, Tensor]:
    leaf = value.clone().requires_grad_(True)
    loss = loss_of(leaf)  # type: ignore[operator]
    # At δ = 0 a norm has the subgradient 0.
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


@pytest.mark.parametrize(
    ("family", "relative"),
    [*((family, False) for family in ("gpt2", "gptj", "llama", "gemma2", "opt")), ("gpt2", True), ("llama", True)],
)
def test_the_search_equals_one_fact_at_a_time(family: str, relative: bool, subtests: pytest.Subtests) -> None:
    model = loaded(family)
    settings = SETTINGS.model_copy(update={"relative_rate": relative})
    ours = searched(model, settings)
    for column, fact in enumerate(FACTS):
        with subtests.test(fact.id):
            expected = search_jointly(model, fact, PREFIXES, 2, settings)
            assert int(ours.evaluations[column]) == expected.evaluations
            torch.testing.assert_close(ours.delta[:, column], expected.delta, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(ours.z[:, column], expected.z, rtol=1e-6, atol=1e-6)
            assert ours.loss[column].item() == pytest.approx(expected.loss, rel=1e-6)


# Targets that even a random model can be brought to say: one token, right behind the subject.
ENDS = [
    Fact("Darrieux", "Danielle Darrieux", "The mother tongue of {}", "is"),
    Fact("Big Ben", "Big Ben", "The capital of France is {}", "and"),
    Fact("Toyota", "Toyota", "It is {}", "in"),
    Fact("Watanabe", "Kenji Watanabe", "{}", "works"),
]


@pytest.mark.parametrize("layer", [3, BLOCKS - 1])
def test_the_likelihood_is_eased_while_the_target_holds_and_facts_leave_when_done(
    layer: int, subtests: pytest.Subtests
) -> None:
    """A search in which targets are reached, so that weights change and facts leave at different steps."""
    model = loaded("llama")
    settings = SETTINGS.model_copy(
        update={"clamp": 20.0, "learning_rate": 0.3, "steps": 16, "kl_factor": 0.0625, "stop_divergence": 0.5}
    )
    ours = find_targets(model, ENDS, PREFIXES, layer, Site.MLP, settings)
    expected = [search_jointly(model, fact, PREFIXES, layer, settings) for fact in ENDS]
    assert ours.evaluations.tolist() == [target.evaluations for target in expected]
    assert len(set(ours.evaluations.tolist())) > 1
    assert min(ours.evaluations.tolist()) < 16
    assert bool(ours.done[ours.evaluations < 16].all())
    for column, target in enumerate(expected):
        with subtests.test(ENDS[column].id):
            torch.testing.assert_close(ours.delta[:, column], target.delta, rtol=1e-5, atol=1e-5)
    # Without the easing the search is another one.
    eased = settings.model_copy(update={"stop_divergence": 0.0})
    never = eased.model_copy(update={"eased_likelihood": 1.0})
    deltas = [find_targets(model, ENDS, PREFIXES, layer, Site.MLP, each).delta for each in (eased, never)]
    assert not torch.allclose(*deltas, rtol=1e-3)


def test_each_delta_is_clamped_to_its_own_state() -> None:
    model = loaded("gpt2")
    loss_of = JointLoss(model, FACTS, PREFIXES, 2, Site.MLP, SETTINGS)
    long = torch.full_like(loss_of.origin, 1e3)
    for part, origin in zip(loss_of.clamped(long).chunk(2, dim=1), loss_of.origin.chunk(2, dim=1), strict=True):
        torch.testing.assert_close(part.norm(dim=1), SETTINGS.clamp * origin.norm(dim=1))
    short = torch.full_like(loss_of.origin, 1e-6)
    assert torch.equal(loss_of.clamped(short), short)
