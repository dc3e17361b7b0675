"""The targets of a batch: searched by Adam, carried to later layers by forward replay, shaped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.editing.keys import SubjectTexts
from errata.editing.preparation import EditContext
from errata.editing.schedules import Step
from errata.editing.search_groups import GroupLimits, groups_of, halved
from errata.editing.search_prompts import fact_lengths
from errata.editing.shaping import TargetShaper
from errata.editing.target_loss import SearchSettings
from errata.errors import NonFiniteError
from errata.facts.fact import Fact
from errata.models.copies import checked, receive, send
from errata.models.language_model import LanguageModel, Site
from errata.models.replay import Replay, ReplayRow
from errata.models.size import ModelSize
from errata.models.weights import Term
from errata.utils.memory import is_out_of_memory
from errata.utils.progress import SearchStep
from errata.utils.tensors import from_float64, to_float64

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Targets:
    """The result of a search for each fact.

    Attributes:
        z: (d, facts), float32 or the model's dtype where that is wider.
        delta: (d, facts), z minus the state at delta = 0.
        loss: (facts,) the last evaluated loss.
        evaluations: (facts,) number of evaluated losses.
        first_loss: (facts,) the loss at delta = 0.
        done: (facts,) whether a stopping rule ended the search of the fact; the others ran out of steps.
    """

    z: Float[Tensor, "d u"]
    delta: Float[Tensor, "d u"]
    loss: Float[Tensor, "u"]
    evaluations: Int[Tensor, "u"]
    first_loss: Float[Tensor, "u"]
    done: Bool[Tensor, "u"]


@dataclass(frozen=True, slots=True)
class LayerTarget:
    """The target of each fact at one layer, z = states + delta.

    Attributes:
        search: the result of the search; for a layer that follows another one, with its own z and delta.
        delta: (d, facts) float64.
        states: (d, facts) float64, h when the target was found.
    """

    search: Targets
    delta: Float[Tensor, "d u"]
    states: Float[Tensor, "d u"]

    def of(self, index: int) -> LayerTarget:
        """The target of one of the facts."""
        chosen = slice(index, index + 1)
        search = Targets(**{each.name: getattr(self.search, each.name)[..., chosen] for each in fields(Targets)})
        return LayerTarget(search, self.delta[:, chosen], self.states[:, chosen])


def layer_targets(
    context: EditContext, texts: SubjectTexts, step: Step, written: Sequence[Term]
) -> dict[int, LayerTarget]:
    """The target at the layer that ``step`` needs, and at all layers that follow it, on the current weights.

    Args:
        written: the run's changes so far, without which the weights are the original ones.
    """
    layer = step.target_layer
    original = context.recipe.target.weights == "original"
    with context.model.edits.without(written) if original else nullcontext():
        search = _search(context, texts.facts, layer)
        target, delta = _shaped_target(context, texts, layer, search, to_float64(search.delta), written)
    targets = {layer: target}
    followers = [other.target_layer for other in context.steps if other.follows == layer]
    if followers:
        replayed = replayed_deltas(context.model, texts, delta, layer, followers, context.site)
        for follower, moved in replayed.items():
            targets[follower], _ = _shaped_target(context, texts, follower, search, moved, written)
    return targets


def read_states(context: EditContext, texts: SubjectTexts, layer: int) -> Float[Tensor, "d u"]:
    """h at the target's site on the current weights, averaged as the recipe says."""
    return texts.read(context.site, [layer], context.recipe.contexts.states)[layer][0]


def replayed_deltas(
    model: LanguageModel,
    texts: SubjectTexts,
    delta: Float[Tensor, "d u"],
    source: int,
    layers: Sequence[int],
    site: Site,
) -> dict[int, Float[Tensor, "d u"]]:
    """Forward replay: the change of the bare prompts' states at later layers when ``delta`` is added at ``source``.

    Args:
        delta: (d, facts) added at the subject's last token.
        layers: later layers.

    Returns:
        layer -> (d, facts) float64; exactly zero for a fact whose delta is zero.
    """
    bare = [rows[0] for rows in texts.rows]
    rows = [ReplayRow(ids, len(ids) - 1, (len(ids) - 1,)) for ids in bare]
    replay = Replay(model, rows, source, (site,))
    # Both in the same way, so that the states of an unchanged fact are equal.
    injected = from_float64(delta.T, model.dtype, model.device)
    moved = replay.states(injected, site, layers)
    still = replay.states(torch.zeros_like(injected), site, layers)
    return {layer: (to_float64(moved[layer]) - to_float64(still[layer])).T for layer in layers}


def find_targets(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    site: Site,
    settings: SearchSettings,
    *,
    row_budget: int | None = None,
    on_step: Callable[[SearchStep], None] = lambda step: None,
) -> Targets:
    """Search the targets of many facts together: Adam is elementwise, so this equals one fact at a time.

    A fact whose loss is below the stop leaves the batch; each delta is clamped on its own. Facts of similar length are
    searched together, as many as memory allows (``search_groups``), and the groups in turn. A group for which memory
    runs out is searched again in halves, with a warning.

    Args:
        row_budget: the most facts × contexts that are replayed together, if less than memory allows.
        on_step: called after each evaluation of the loss.

    Raises:
        NonFiniteError: naming facts and layer, if a loss or a gradient is NaN or infinite.
        MemoryError, torch.OutOfMemoryError: if memory runs out for a single fact.
    """
    lengths, limits = fact_lengths(model, facts, prefixes, settings.sampled), GroupLimits.of(model, row_budget)
    waiting = groups_of(lengths, limits, ModelSize.of(model.model), layer, model.dtype.itemsize)
    shared: list[tuple[int, list[list[int]]]] = []
    if model.copies is not None:
        waiting, shared = _shared(model, facts, prefixes, layer, site, settings, list(waiting))
    order: list[int] = []
    parts: list[Targets] = []

    def search(group: Sequence[int], groups: int) -> Targets:
        chosen = [facts[index] for index in group]
        return _find(model, chosen, prefixes, layer, site, settings, on_step, before=len(parts), groups=groups)

    with settings.computing(model, layer):
        while waiting:
            group = waiting[0]
            found = _unless_out_of_memory(partial(search, group, len(parts) + len(waiting)), may_fail=len(group) > 1)
            if found is None:
                waiting = list(halved(waiting))
                what = "out of memory while %d targets were searched together: searching %d at once"
                _logger.warning(what, len(group), len(waiting[0]))
                continue
            waiting = waiting[1:]
            order += group
            parts.append(found)
    for rank, groups in shared:
        parts += _received(rank, len(groups), model.device)
        order += [index for group in groups for index in group]
    place = torch.tensor(order, device=parts[0].loss.device).argsort()
    joined = join_targets(parts)
    return Targets(**{each.name: getattr(joined, each.name)[..., place] for each in fields(Targets)})


def _shared(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    site: Site,
    settings: SearchSettings,
    groups: list[list[int]],
) -> tuple[list[list[int]], list[tuple[int, list[list[int]]]]]:
    """Send groups to the other processes; returns those of this one, and what each of the others works on.

    With fewer groups than processes, groups are halved: the same targets but for rounding.
    """
    copies = model.copies
    assert copies is not None
    while len(groups) < copies.count and any(len(group) > 1 for group in groups):
        largest = max(range(len(groups)), key=lambda index: len(groups[index]))
        group = groups.pop(largest)
        groups[largest:largest] = [group[: len(group) // 2], group[len(group) // 2 :]]
    copies.update(model)
    shares = [(rank, groups[rank :: copies.count]) for rank in copies.others]
    shares = [(rank, share) for rank, share in shares if share]
    for rank, share in shares:
        message = {
            "do": "targets",
            "groups": [[facts[index].to_record() for index in group] for group in share],
            "prefixes": list(prefixes),
            "layer": layer,
            "site": str(site),
            "settings": settings.model_dump(mode="json"),
        }
        send(rank, message)
    return groups[:: copies.count], shares


def _received(rank: int, groups: int, device: torch.device) -> list[Targets]:
    """The targets of a process's groups, in their order.

    Raises:
        ErrataError: that of the process.
    """
    reply, tensors = receive(rank)
    checked(reply)
    return [
        Targets(**{each.name: tensors[f"{number}.{each.name}"].to(device) for each in fields(Targets)})
        for number in range(groups)
    ]


def _unless_out_of_memory(search: Callable[[], Targets], *, may_fail: bool) -> Targets | None:
    """The result of a search; None if memory ran out, which is then free again when this returns."""
    try:
        return search()
    except (RuntimeError, MemoryError) as error:
        if not (may_fail and is_out_of_memory(error)):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def join_targets(parts: Sequence[Targets]) -> Targets:
    """The targets of several groups of facts as those of one."""
    names = [field.name for field in fields(Targets)]  # the facts are the last dimension of each
    return Targets(**{name: torch.cat([getattr(part, name) for part in parts], dim=-1) for name in names})


def _search(context: EditContext, facts: Sequence[Fact], layer: int) -> Targets:
    settings = context.recipe.target

    def on_step(step: SearchStep) -> None:
        context.report(f"targets at layer {layer}", step.done, step.total)
        context.on_search(step)

    prefixes = context.prefixes if context.recipe.contexts.targets == "all" else ()
    return find_targets(context.model, facts, prefixes, layer, context.site, settings, on_step=on_step)


def _shaped_target(
    context: EditContext, texts: SubjectTexts, layer: int, search: Targets, delta: Tensor, written: Sequence[Term]
) -> tuple[LayerTarget, Tensor]:
    """The target z = h⁰ + δ after shaping, as seen from the averaged states; and δ as seen from the bare states h⁰."""
    states = read_states(context, texts, layer)
    averaged = context.recipe.contexts.states != "bare"
    bare = texts.read(context.site, [layer])[layer][0] if averaged else states
    for shaper in context.recipe.shaping:
        if isinstance(shaper, TargetShaper):
            with context.model.edits.without(written):
                unedited = texts.read(context.site, [layer])[layer][0]
            delta = shaper.target(bare, delta, float(unedited.norm(dim=0).mean()))
    if not torch.equal(delta, to_float64(search.delta)):
        z, moved = (from_float64(each, search.z.dtype, search.z.device) for each in (bare + delta, delta))
        search = replace(search, z=z, delta=moved)
    if not averaged:
        return LayerTarget(search, delta, states), delta
    # A fact that the model already knows (δ = 0) changes nothing, though its averaged state is not its bare one.
    return LayerTarget(search, torch.where(delta.any(0), delta + (bare - states), 0.0), states), delta


def _find(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    site: Site,
    settings: SearchSettings,
    on_step: Callable[[SearchStep], None],
    *,
    before: int,
    groups: int,
) -> Targets:
    """One group of facts; ``before`` of ``groups`` were searched before it."""
    loss_of = settings.loss(model, facts, prefixes, layer, site)
    origin = loss_of.origin
    final_delta = torch.zeros_like(origin)
    final_loss = torch.zeros(len(facts), dtype=loss_of.dtype, device=origin.device)
    evaluations = torch.zeros(len(facts), dtype=torch.long, device=origin.device)
    done = torch.zeros(len(facts), dtype=torch.bool, device=origin.device)
    active = torch.arange(len(facts), device=origin.device)
    delta, loss = loss_of.zero, loss_of.at_zero
    first_loss = loss.detach().clone()
    first, second = torch.zeros_like(origin), torch.zeros_like(origin)
    for step in range(1, settings.steps + 1):
        whole = True
        if step > 1:
            loss, whole = loss_of.in_step(delta.requires_grad_(True), step)
        final_delta[active], final_loss[active] = delta.detach(), loss.detach()
        evaluations[active] = step
        _check_finite("target loss", loss, facts, active, layer)
        unfinished = loss_of.unfinished(loss.detach())
        if not whole:
            # An estimate of the loss does not end a search: the whole loss decides.
            asked = (
                torch.arange(len(active), device=origin.device)
                if step == settings.steps
                else (~unfinished).nonzero()[:, 0]
            )
            if len(asked):
                final_loss[active[asked]] = loss_of.whole(delta.detach(), asked)
                _check_finite("target loss", final_loss[active[asked]], facts, active[asked], layer)
                unfinished[asked] = loss_of.unfinished(final_loss[active])[asked]
        done[active] = ~unfinished
        last = step == settings.steps or not bool(unfinished.any())
        steps_done = settings.steps * (before + 1) if last else settings.steps * before + step
        facts_left = 0 if last else int(unfinished.sum())
        on_step(SearchStep(layer, steps_done, settings.steps * groups, float(final_loss.mean()), facts_left))
        if last:
            break
        if not loss.requires_grad:
            loss = loss_of.in_step(delta, step)[0]
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        _check_finite("gradient of the target loss", gradient[unfinished], facts, active[unfinished], layer)
        delta = delta.detach()
        if not bool(unfinished.all()):
            chosen = unfinished.nonzero()[:, 0]
            loss_of.select(chosen)
            active, delta, gradient, first, second = (x[chosen] for x in (active, delta, gradient, first, second))
        first, second, delta = adam_step(first, second, delta, gradient, step, loss_of.rates())
        delta = loss_of.clamped(delta)
    z, found = loss_of.written(origin + final_delta).T, loss_of.written(final_delta).T
    return Targets(z=z, delta=found, loss=final_loss, evaluations=evaluations, first_loss=first_loss, done=done)


def adam_step(
    first: Tensor, second: Tensor, value: Tensor, gradient: Tensor, step: int, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam with the usual constants (Kingma & Ba 2015, algorithm 1); all rows are at the same step."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    denominator = (second / (1 - beta2**step)).sqrt() + epsilon
    return first, second, value - rate * (first / (1 - beta1**step)) / denominator


def _check_finite(quantity: str, values: Tensor, facts: Sequence[Fact], index: Tensor, layer: int) -> None:
    finite = torch.isfinite(values.detach()).view(len(index), -1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(quantity, facts=[facts[i].id for i in index[~finite].tolist()], layer=layer)
