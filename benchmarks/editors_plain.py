"""The plain loops that ``editors_speed.py`` compares errata's editors with: what the published code does.

One fact a forward pass, the whole model in each pass, the head at every position, nothing remembered between steps;
weights that are not trained are frozen, as in the published code. Settings, start, order of facts and rules for
stopping are the editor's, so the results must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from errata.editors.elder import Elder, ElderState, factors_of, scaled
from errata.editors.ft import FineTuning
from errata.editors.grace import Grace
from errata.editors.hook_editor import TrainingRows
from errata.editors.lora import Lora
from errata.editors.routed import Prompt
from errata.editors.training import seeded, weight_scale
from errata.editors.ultra import GradientWrite
from errata.editors.wise import Wise, shard_of
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import pad

from tests.reference import gradient_write
from tests.reference.grace import trained_vector
from tests.reference.training import teacher_forced_loss, token_rows

LossOf: TypeAlias = Callable[[Fact], Tensor]
"""−log P of a fact's target per token in the edited model."""


def grace(editor: Grace, facts: Sequence[Fact]) -> LossOf:
    """Published: facts one after another, up to ``steps`` whole passes each."""
    model, settings = editor.model, editor.settings
    vectors = {
        fact.id: trained_vector(
            model,
            fact,
            editor.layer,
            settings.steps,
            settings.learning_rate,
            settings.stop_loss,
            lambda position, last: position >= last,
        )
        for fact in facts
    }

    def loss_of(fact: Fact) -> Tensor:
        last = len(token_rows(model, fact)[0]) - 1

        def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return torch.cat([output[:, :last], vectors[fact.id].expand(1, output.shape[1] - last, -1)], dim=1)

        with hooked(model, {editor.layer: put}):
            return teacher_forced_loss(model, fact, {})

    return loss_of


def ft_bf(editor: FineTuning, facts: Sequence[Fact]) -> LossOf:
    """Published: epochs over all facts, in batches of 100; here a batch's gradients are added fact by fact."""
    model, settings, (layer,) = editor.model, editor.settings, editor.layers
    weight = model.weight(layer).clone().requires_grad_(True)
    rate = settings.learning_rate * weight_scale(weight.detach())

    def is_learnt(losses: Tensor) -> bool:
        return float(losses.mean()) < settings.stop_loss

    def loss_of(fact: Fact) -> Tensor:
        return teacher_forced_loss(model, fact, {layer: weight}, end=True)

    _descend([weight], rate, loss_of, facts, settings.steps, settings.mini_batch, seeded(settings.seed, 0), is_learnt)
    return lambda fact: teacher_forced_loss(model, fact, {layer: weight})


def lora(editor: Lora, facts: Sequence[Fact]) -> LossOf:
    """Published: adapters beside the modules of all layers, one fact a pass."""
    model, settings = editor.model, editor.settings
    generator = seeded(settings.seed, 0)
    scales = {place.layer: editor._scale(place) for place in editor.places}
    factors = {place.layer: editor._fresh(place, generator) for place in editor.places}
    parameters = [part.requires_grad_(True) for pair in factors.values() for part in (pair.up, pair.down)]

    def beside(layer: int) -> Hook:
        pair = factors[layer]
        return lambda module, args, output: output + scales[layer] * (args[0] @ pair.down.T @ pair.up.T)

    def is_learnt(losses: Tensor) -> bool:
        return bool((losses < settings.stop_loss).all())

    def loss_of(fact: Fact) -> Tensor:
        with hooked(model, {layer: beside(layer) for layer in factors}):
            return teacher_forced_loss(model, fact, {})

    _descend(
        parameters, settings.learning_rate, loss_of, facts, settings.steps, settings.mini_batch, generator, is_learnt
    )
    return loss_of


def elder(editor: Elder, facts: Sequence[Fact]) -> LossOf:
    """Published: every expert of every module is computed in every pass, and those not chosen are multiplied by 0."""
    model, settings = editor.model, editor.settings
    state = editor._begun()
    factors, layers = factors_of(settings, state), editor.layers
    for start in range(0, len(facts), settings.batch_size):
        state = _elder_batch(editor, state, facts[start : start + settings.batch_size])
    number = {fact: place for place, fact in enumerate(state.facts)}

    def loss_of(fact: Fact) -> Tensor:
        hooks = {
            layer: _mixture(state.parameters, module, state.queries[number[fact.id]], settings.chosen, factors[module])
            for module, layer in enumerate(layers)
        }
        with hooked(model, hooks):
            return teacher_forced_loss(model, fact, {})

    return loss_of


def _elder_batch(editor: Elder, state: ElderState, facts: Sequence[Fact]) -> ElderState:
    model, settings, layers = editor.model, editor.settings, editor.layers
    prompts = TrainingRows.of(model, facts, from_boundary=False).prompts
    queries = torch.cat([scaled(editor.read_alone([prompt]), state) for prompt in prompts])
    allocations = editor._allocated(state, [fact.id for fact in facts], editor.threshold)
    factors = factors_of(settings, state)
    parameters = {name: value.clone().requires_grad_(True) for name, value in state.parameters.items()}
    adam = torch.optim.Adam(parameters.values(), lr=settings.learning_rate)
    halving = torch.optim.lr_scheduler.StepLR(adam, settings.halve_every, 0.5)
    for _ in range(settings.steps):
        adam.zero_grad()
        learnt = True
        for fact, query, allocation in zip(facts, queries, allocations, strict=True):
            shares = [_shares(parameters, module, query) for module in range(len(layers))]
            hooks = {
                layer: _mixture(parameters, module, query, settings.chosen, factors[module])
                for module, layer in enumerate(layers)
            }
            with hooked(model, hooks):
                loss = teacher_forced_loss(model, fact, {})
            guided = -sum(share[own].log().sum() for share, own in zip(shares, allocation, strict=True)) / len(layers)
            ((loss + settings.guidance * guided) / len(facts)).backward()
            chosen = torch.stack([share.topk(settings.chosen).indices.sort().values for share in shares])
            learnt &= float(loss.detach()) < settings.stop_loss and torch.equal(chosen, allocation)
        if learnt:
            break
        adam.step()
        halving.step()
    return ElderState(
        {name: value.detach() for name, value in parameters.items()},
        state.centre,
        state.scales,
        torch.cat([state.queries, queries]),
        torch.cat([state.allocations, allocations]),
        (*state.facts, *(fact.id for fact in facts)),
        (*state.prompts, *(prompt.ids for prompt in prompts)),
    )


def _shares(parameters: Mapping[str, Tensor], module: int, query: Tensor) -> Tensor:
    return (parameters["G"][module] @ query + parameters["c"][module]).softmax(0)


def _mixture(parameters: Mapping[str, Tensor], module: int, query: Tensor, chosen: int, factor: float) -> Hook:
    shares = _shares(parameters, module, query)
    weights = torch.zeros_like(shares).index_fill(0, shares.topk(chosen).indices, 1.0) * shares

    def add(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        for expert, weight in enumerate(weights):
            inner = args[0] @ parameters["A"][module, expert]
            output = output + factor * weight * (inner @ parameters["B"][module, expert])
        return output

    return add


def ultra(editor: GradientWrite, facts: Sequence[Fact]) -> LossOf:
    """Published: one pass a fact with its gradients at all edited modules, then a d_in × d_in system for each."""
    model, settings = editor.model, editor.settings
    rows: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in editor.layers}
    for fact in facts:
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def recorder(layer: int, seen: dict[int, tuple[Tensor, Tensor]] = seen) -> Hook:
            def record(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                seen[layer] = args[0], output if output.requires_grad else output.requires_grad_(True)
                return seen[layer][1]

            return record

        with hooked(model, {layer: recorder(layer) for layer in editor.layers}):
            loss = teacher_forced_loss(model, fact, {})
        gradients = torch.autograd.grad(loss, [seen[layer][1] for layer in editor.layers])
        prompt, target = token_rows(model, fact)
        places = slice(len(prompt) - 1, len(prompt) - 1 + len(target))
        for layer, gradient in zip(editor.layers, gradients, strict=True):
            rows[layer].append((seen[layer][0][0, places].detach(), gradient[0, places]))
    weights = {}
    for layer, found in rows.items():
        h, g = (torch.cat(parts) for parts in zip(*found, strict=True))
        weight = model.weight(layer)
        rate, ridge = settings.learning_rate, settings.ridge
        if settings.relative:
            rate *= float((h @ weight.T).square().mean().sqrt()) / h.shape[1]
            ridge *= float(h.square().sum(1).mean())
        inputs, pulls = (gradient_write.deviations(part, part, whitened=False) for part in (h, g))
        targets = -rate * inputs.square().sum(1, keepdim=True) * pulls
        inner = h.T @ h + ridge * torch.eye(h.shape[1])
        weights[layer] = weight + torch.linalg.solve(inner, h.T @ targets).T
    return lambda fact: teacher_forced_loss(model, fact, weights)


def wise(editor: Wise, facts: Sequence[Fact]) -> LossOf:
    """Published: in each step a fact's texts and its outside prompts, whole, through the whole model."""
    model, settings, layer = editor.model, editor.settings, editor.layer
    unit, scale = editor.units()
    mask = shard_of(model.weight(layer).shape, settings.mask, 0, settings.seed)
    present = torch.zeros(mask.shape, requires_grad=True)
    for start in range(0, len(facts), settings.batch_size):
        batch = facts[start : start + settings.batch_size]
        prompts = TrainingRows.of(model, batch, from_boundary=False).prompts
        outside = editor.outside_prompts(batch)
        each = len(outside) // len(batch)
        adam = torch.optim.Adam([present], lr=settings.learning_rate)
        for _ in range(settings.steps):
            adam.zero_grad()
            learnt = True
            for number, (fact, prompt) in enumerate(zip(batch, prompts, strict=True)):
                others = outside[number * each : (number + 1) * each]
                loss, gate = _wise_losses(editor, fact, prompt, others, unit * present, scale)
                (loss + gate).backward()
                learnt &= float(loss.detach()) <= settings.stop_loss and float(gate.detach()) <= settings.stop_loss
            if learnt:
                break
            assert present.grad is not None
            present.grad *= mask
            adam.step()

    def loss_of(fact: Fact) -> Tensor:
        with hooked(model, {layer: lambda module, args, output: output + args[0] @ (unit * present).T}):
            return teacher_forced_loss(model, fact, {})

    return loss_of


def _wise_losses(
    editor: Wise, fact: Fact, prompt: Prompt, others: Sequence[Prompt], change: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """−log P of a fact per token, and its loss of distances."""
    prompt_ids, target = token_rows(editor.model, fact)
    rows = [[*prompt_ids, *target[:-1]], *(list(other.ids) for other in others)]
    batch = pad(rows, left=False, device=editor.model.device)
    seen: list[Tensor] = []

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(args[0].detach())
        return output + args[0] @ change.T

    with hooked(editor.model, {editor.layer: add}):
        logits = editor.model.model(**batch.inputs(), use_cache=False).logits
    places = range(len(prompt_ids) - 1, len(prompt_ids) - 1 + len(target))
    loss = nn.functional.cross_entropy(logits[0, places], torch.tensor(target))
    x = [seen[0][row, own.start : own.stop] for row, own in enumerate([prompt, *others])]
    inside = editor._inside([(fact, "")], [prompt], len(x[0]))
    apart = nn.utils.rnn.pad_sequence(x[1:], batch_first=True, padding_value=torch.nan)
    return loss, editor.activation_loss(x[0][None], inside, apart, 1, change, scale)[0]


Hook: TypeAlias = Callable[[nn.Module, Any, Tensor], Tensor]


@contextmanager
def hooked(model: LanguageModel, hooks: Mapping[int, Hook]) -> Iterator[None]:
    """While the context is open, hooks change the outputs of down-projections."""
    with ExitStack() as stack:
        for layer, hook in hooks.items():
            stack.callback(model.down_projection(layer).register_forward_hook(hook).remove)
        yield


def _descend(
    parameters: Sequence[Tensor],
    rate: float,
    loss_of: LossOf,
    facts: Sequence[Fact],
    steps: int,
    mini_batch: int,
    generator: torch.Generator,
    is_learnt: Callable[[Tensor], bool],
) -> None:
    """Epochs of mini-batches in shuffled order; a mini-batch that is learnt takes no step, and all of them end it."""
    adam = torch.optim.Adam(parameters, lr=rate)
    for _ in range(steps):
        order = torch.randperm(len(facts), generator=generator).tolist()
        losses = torch.zeros(len(facts))
        for start in range(0, len(facts), mini_batch):
            chosen = order[start : start + mini_batch]
            adam.zero_grad()
            for index in chosen:
                loss = loss_of(facts[index])
                (loss / len(chosen)).backward()
                losses[index] = loss.detach()
            if not is_learnt(losses[chosen]):
                adam.step()
        if is_learnt(losses):
            return
