"""ELDER: a mixture of LoRAs in several blocks behind one query, which decides the experts and whether to use any.

Li et al. 2024, arXiv:2408.11869. In each of M blocks above the gate, E small LoRAs change the down-projection; a linear
router of the block takes the k that the query makes likeliest. The experts of all blocks together are the query's code.
Training ties each fact to an allocation of experts; a query whose code is far from those of all facts is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, StrictInt
from torch import Tensor

from errata.editors.calibration import Calibration, Found
from errata.editors.contract import Edit, Undo
from errata.editors.edit_file import StoredEdit
from errata.editors.hook_editor import (
    ReadMemory,
    RoutedEditor,
    RoutedSettings,
    TrainingRows,
    check_finite,
    consecutive_layers,
    generator_of,
    output_ratios,
    root_mean_square,
    unrelated_prompts,
)
from errata.editors.routed import Prompt, Queries, outputs_changed
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.row_hooks import RowPass
from errata.models.tail import Tail
from errata.utils.settings import NotNegative, Positive

FALSE_SCOPE: Final = 0.05  # the largest accepted chance that a random code is in the scope of some fact
_TOP_SHARE: Final = 0.75  # the adapted blocks end at this share of the depth
_DRAWS: Final = 10_000


class ElderSettings(RoutedSettings):
    """ELDER's settings.

    The authors' code has k = 2, r = α = 8, E = 8. It has no training script, so the others are ours.
    """

    first_layer: StrictInt | None = Field(
        None, ge=1, description="the lowest adapted block; by default they end at three quarters of the depth"
    )
    modules: StrictInt = Field(6, ge=1, description="M, the most adapted blocks; queries are read in the block below")
    experts: StrictInt = Field(8, ge=2, description="E, LoRAs a block")
    chosen: StrictInt = Field(2, ge=1, description="k, LoRAs that act on a row")
    rank: StrictInt = Field(8, ge=1, description="r of each LoRA")
    alpha: Positive = Field(8.0, description="α: their sum is scaled by α / r")
    guidance: NotNegative = Field(1.0, description="λ, weight of the loss that ties facts to allocations")
    mode: Literal["soft", "hard"] = Field(
        "soft", description="experts in training: the router's, or the allocated ones"
    )
    threshold: StrictInt | None = Field(
        None, ge=2, description="θ: codes closer than this are in scope; 4 by default, or 2 if that is too large"
    )
    capacity: StrictInt = Field(1000, ge=1, description="facts that must fit with the default θ of 4")
    cosine: float | None = Field(
        None, ge=-1, le=1, description="the least cosine with a fact's query in scope as well; none by default"
    )
    learning_rate: Positive = Field(0.003, description="Adam's step")
    steps: StrictInt = Field(50, ge=1, description="updates for a batch")
    halve_every: StrictInt = Field(20, ge=1, description="steps after which the learning rate is halved")
    stop_loss: NotNegative = Field(
        0.01,
        description="a batch is done when −log P per token is below this for all facts, and all codes are allocated",
    )


# Codes: for each of M blocks, k of E experts


def code_space(modules: int, experts: int, chosen: int) -> int:
    """The number of codes, C(E, k)^M."""
    return math.comb(experts, chosen) ** modules


def ball(modules: int, experts: int, chosen: int, threshold: int) -> int:
    """The number of codes at a Hamming distance below ``threshold`` from a code.

    In one block, j other experts are 2j bits away, which C(k, j)·C(E − k, j) choices are.
    """
    block = [math.comb(chosen, j) * math.comb(experts - chosen, j) for j in range(chosen + 1)]
    counts = [1]  # of codes, by half their distance
    for _ in range(modules):
        longer = [0] * (len(counts) + chosen)
        for place, count in enumerate(counts):
            for j, choices in enumerate(block):
                longer[place + j] += count * choices
        counts = longer
    return sum(count for half, count in enumerate(counts) if 2 * half < threshold)


def false_scope(modules: int, experts: int, chosen: int, threshold: int, facts: int) -> float:
    """The chance that a random code is in the scope of some of ``facts`` random codes."""
    share = ball(modules, experts, chosen, threshold) / code_space(modules, experts, chosen)
    return 1.0 if share >= 1 else -math.expm1(facts * math.log1p(-share))


def hamming(one: Int[Tensor, "*a modules chosen"], other: Int[Tensor, "*b modules chosen"]) -> Int[Tensor, "..."]:
    """The distance of codes, given as the chosen experts of each block; broadcasts over leading dimensions."""
    common = (one[..., :, None] == other[..., None, :]).sum((-3, -2, -1))
    return 2 * (one.shape[-2] * one.shape[-1] - common)


# State


@dataclass(frozen=True, slots=True, eq=False)
class ElderState:
    """Parameters on the CPU, float32 or wider, and what the facts are recognised by.

    Attributes:
        parameters: A (M, E, d, r), B (M, E, r, d_out), G (M, E, d_query) and c (M, E); none before the first fact.
        centre: (d_query,) mean of the queries of unrelated prompts.
        scales: (1 + M,) the root mean square of their deviation from it; and for each adapted module the ratio of the
            root mean squares of its outputs and inputs there.
        queries: (N, d_query) centred and scaled.
        allocations: (N, M, k) the experts that each fact was tied to.
        facts, prompts: for each fact its id and the tokens of its prompt.
    """

    parameters: Mapping[str, Tensor]
    centre: Tensor
    scales: Tensor
    queries: Tensor
    allocations: Tensor
    facts: tuple[str, ...] = ()
    prompts: tuple[tuple[int, ...], ...] = ()
    calibration: Calibration | None = None

    def without(self, leaves: Callable[[int], bool]) -> ElderState:
        """The state without the facts of some numbers; the parameters stay."""
        staying = [number for number in range(len(self.facts)) if not leaves(number)]
        return replace(
            self,
            facts=tuple(self.facts[number] for number in staying),
            prompts=tuple(self.prompts[number] for number in staying),
            queries=self.queries[staying],
            allocations=self.allocations[staying],
        )


@dataclass(frozen=True, slots=True)
class ElderRoute:
    """A row in scope: the fact whose code is the nearest, the experts (M, k) and their weights π (M, k)."""

    fact: str
    experts: Int[Tensor, "modules chosen"]
    weights: Float[Tensor, "modules chosen"]


def routed(parameters: Mapping[str, Tensor], queries: Float[Tensor, "rows d"]) -> Float[Tensor, "modules rows experts"]:
    """π: the softmax of each block's router over all of its experts, for centred and scaled queries."""
    logits = torch.einsum("meq,rq->mre", parameters["G"], queries) + parameters["c"][:, None]
    return logits.softmax(-1)


def mixed(
    x: Float[Tensor, "rows length d"],
    lora_a: Float[Tensor, "experts d r"],
    lora_b: Float[Tensor, "experts r d_out"],
    experts: Int[Tensor, "rows chosen"],
    weights: Float[Tensor, "rows chosen"],
) -> Float[Tensor, "rows length d_out"]:
    """Σ_e π_e (x A_e) B_e over the experts of each row; no other expert is computed."""
    inner = torch.einsum("rld,rkdi->rlki", x, lora_a[experts])
    return torch.einsum("rlki,rk,rkio->rlo", inner, weights, lora_b[experts])


@dataclass(frozen=True)
class ElderRouter:
    """The mixture at its modules."""

    model: LanguageModel
    queries: Queries
    state: ElderState
    layers: tuple[int, ...]
    settings: ElderSettings
    threshold: int

    @property
    def is_empty(self) -> bool:
        return not self.state.facts

    @cached_property
    def codes(self) -> Int[Tensor, "facts modules chosen"]:
        """The code of each fact, as the routers are now: later batches have moved them."""
        return self._experts(routed(self.state.parameters, self.state.queries))

    def routes(self, queries: Float[Tensor, "rows d"]) -> list[ElderRoute | None]:
        if self.is_empty:
            return [None] * len(queries)
        own = scaled(queries, self.state)
        shares = routed(self.state.parameters, own)
        experts = self._experts(shares)
        weights = torch.take_along_dim(shares.transpose(0, 1), experts, 2)
        distances = hamming(experts[:, None], self.codes[None])
        alike = torch.nn.functional.cosine_similarity(own[:, None], self.state.queries[None], dim=2)
        nearest = (alike - 4 * distances).argmax(1)  # the nearest code, and of equal ones the most similar query
        inside = distances.min(1).values < self.threshold
        if self.settings.cosine is not None:
            inside &= alike.max(1).values >= self.settings.cosine
        return [
            ElderRoute(self.state.facts[fact], experts[row], weights[row]) if hit else None
            for row, (fact, hit) in enumerate(zip(nearest.tolist(), inside.tolist(), strict=True))
        ]

    def facts_of(self, route: ElderRoute) -> tuple[str, ...]:
        return (route.fact,)

    def acting(
        self, routes: Callable[[], Sequence[ElderRoute | None]], rows: RowPass, prompts: Sequence[Prompt]
    ) -> AbstractContextManager[None]:
        def chosen() -> tuple[Tensor, Tensor, Tensor]:
            found = [(row, route) for row, route in enumerate(routes()) if route is not None]
            modules, count = len(self.layers), self.settings.chosen
            experts = [route.experts for _, route in found] or [torch.zeros(modules, count, dtype=torch.long)]
            weights = [route.weights for _, route in found] or [torch.zeros(modules, count)]
            places = torch.tensor([row for row, _ in found], dtype=torch.long)
            device = self.model.device
            return places.to(device), torch.stack(experts).to(device), torch.stack(weights).to(device)

        return mixing(self.model, self.layers, lambda: self._on_device, chosen, self._factors, len(prompts))

    def _experts(self, shares: Float[Tensor, "modules rows experts"]) -> Int[Tensor, "rows modules chosen"]:
        return most_likely(shares, self.settings.chosen)

    @cached_property
    def _on_device(self) -> Mapping[str, Tensor]:
        return {name: self.state.parameters[name].to(self.model.device) for name in ("A", "B")}

    @cached_property
    def _factors(self) -> list[float]:
        return factors_of(self.settings, self.state)


def guidance(
    shares: Float[Tensor, "modules rows experts"], allocations: Int[Tensor, "rows modules chosen"]
) -> Float[Tensor, ""]:
    """−log π of the allocated experts, summed over those of a block, mean over blocks and rows."""
    return -torch.take_along_dim(shares.transpose(0, 1), allocations, 2).log().sum(2).mean()


def most_likely(shares: Float[Tensor, "modules rows experts"], chosen: int) -> Int[Tensor, "rows modules chosen"]:
    """The k largest of each block, in order of their numbers."""
    return shares.topk(chosen, dim=-1).indices.sort(-1).values.transpose(0, 1)


def scaled(queries: Float[Tensor, "rows d"], state: ElderState) -> Float[Tensor, "rows d"]:
    """The routers' input. A linear router of it is one of the query, with a start and a rate that suit its scale."""
    return (queries.to(state.centre.dtype) - state.centre) / state.scales[0]


def factors_of(settings: ElderSettings, state: ElderState) -> list[float]:
    """α / r in units of each module's outputs and inputs."""
    return [settings.alpha / settings.rank * ratio for ratio in state.scales[1:].tolist()]


def mixing(
    model: LanguageModel,
    layers: Sequence[int],
    parameters: Callable[[], Mapping[str, Tensor]],
    chosen: Callable[[], tuple[Tensor, Tensor, Tensor]],
    factors: Sequence[float],
    rows: int,
) -> AbstractContextManager[None]:
    """Add the mixture of chosen rows to the outputs of the adapted modules, differentiable in the parameters.

    Args:
        parameters: A and B.
        chosen: the places (n,) of the rows in scope, their experts (n, M, k) and weights (n, M, k).
        rows: the number of rows of the pass.
    """

    def change_of(module: int) -> Callable[[Tensor, Tensor], Tensor]:
        def change(x: Tensor, output: Tensor) -> Tensor:
            places, experts, weights = chosen()
            if not len(places):
                return output
            known = parameters()
            wide = x[places].to(known["A"].dtype)
            added = mixed(wide, known["A"][module], known["B"][module], experts[:, module], weights[:, module])
            return output.index_add(0, places, (factors[module] * added).to(output.dtype))

        return change

    modules = [model.down_projection(layer) for layer in layers]
    return outputs_changed(modules, [change_of(module) for module in range(len(layers))], rows)


class Elder(RoutedEditor[ElderState, ElderSettings]):
    """ELDER as a ``KnowledgeEditor``. All facts share the parameters, so only the last edit can be removed exactly."""

    method: ClassVar[str] = "elder"
    undo: ClassVar[Undo] = "last"

    @property
    def layers(self) -> tuple[int, ...]:
        """The adapted blocks.

        Raises:
            InputError: if one of them does not exist.
        """
        return consecutive_layers(self.model, self.settings.first_layer, self.settings.modules, _TOP_SHARE)

    @property
    def layer(self) -> int:
        return self.layers[0] - 1

    @property
    def threshold(self) -> int:
        """θ where it is not calibrated. Codes of real prompts are not random: measured, a larger one includes more of
        what it should not.
        """
        settings = self.settings
        if settings.threshold is not None:
            return settings.threshold
        return 4 if self._rate(len(self.layers), 4, settings.capacity) <= FALSE_SCOPE else 2

    def threshold_of(self, state: ElderState) -> int:
        """θ."""
        return self.threshold if state.calibration is None else int(state.calibration.threshold)

    @property
    def empty(self) -> ElderState:
        none = torch.zeros(0)
        return ElderState({}, none, none, none, none)

    def router(self, state: ElderState) -> ElderRouter:
        return self._router(state, self.threshold_of(state))

    def _router(self, state: ElderState, threshold: int) -> ElderRouter:
        return ElderRouter(self.model, self.queries, state, self.layers, self.settings, threshold)

    def check(self, state: ElderState, count: int) -> None:
        """Raises InputError if the codes are too few for so many facts."""
        settings, facts, threshold = self.settings, len(state.facts) + count, self.threshold_of(state)
        if settings.calibration and state.calibration is None:
            threshold = 2  # the least that a calibration can choose
        if settings.chosen >= settings.experts:
            raise InputError(
                f"{settings.chosen} of {settings.experts} experts make one code, so all prompts are in scope",
                remedy="Set experts above chosen",
                code="ELDER_CODES_TOO_FEW",
            )
        rate = self._rate(len(self.layers), threshold, facts)
        if rate <= FALSE_SCOPE:
            return
        enough = next(m for m in range(len(self.layers), 10_000) if self._rate(m, threshold, facts) <= FALSE_SCOPE)
        raise InputError(
            f"with {len(self.layers)} modules, {settings.experts} experts and threshold {threshold}, {rate:.0%} of "
            f"random codes are in the scope of one of {facts} facts; at most {FALSE_SCOPE:.0%} are accepted",
            remedy=f"Set modules to {enough} (the model has {len(self.model.blocks)} blocks), or more experts, or a "
            "lower threshold",
            code="ELDER_CODES_TOO_FEW",
        )

    def learned(self, state: ElderState, facts: Sequence[Fact]) -> ElderState:
        rows = TrainingRows.of(self.model, facts, from_boundary=False)
        if not state.parameters:
            state = replace(self._begun(), calibration=state.calibration)
        fresh = {prompt.ids for prompt in rows.prompts}
        state = state.without(lambda number: state.prompts[number] in fresh)
        queries = scaled(self.read_alone(rows.prompts), state)
        allocations = self._allocated(state, [fact.id for fact in facts], self.threshold_of(state))
        parameters = self._trained(state.parameters, state, facts, rows, queries, allocations)
        return replace(
            state,
            parameters=parameters,
            facts=(*state.facts, *(fact.id for fact in facts)),
            prompts=(*state.prompts, *(prompt.ids for prompt in rows.prompts)),
            queries=torch.cat([state.queries, queries]),
            allocations=torch.cat([state.allocations, allocations]),
        )

    def stored(self, before: ElderState, after: ElderState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        earlier = {id(prompt) for prompt in before.prompts}
        new = [number for number, prompt in enumerate(after.prompts) if id(prompt) not in earlier]
        state = {
            "facts": [after.facts[number] for number in new],
            "prompts": [list(after.prompts[number]) for number in new],
            "threshold": (threshold := self.threshold_of(after)),
            "false_scope": self._rate(len(self.layers), threshold, len(after.facts)),
            "calibration": after.calibration and asdict(after.calibration),
        }
        tensors = dict(after.parameters) | {"centre": after.centre, "scales": after.scales}
        tensors |= {"queries": after.queries[new], "allocations": after.allocations[new]}
        return state, tensors | {"codes": self.router(after).codes[new]}

    def restored(self, before: ElderState, edit: StoredEdit) -> ElderState:
        tensors = edit.tensors
        prompts = [tuple(prompt) for prompt in edit.state["prompts"]]
        others = before.without(lambda number: before.prompts[number] in prompts)
        queries, allocations = tensors["queries"], tensors["allocations"]
        return ElderState(
            {name: tensors[name] for name in ("A", "B", "G", "c")},
            tensors["centre"],
            tensors["scales"],
            torch.cat([others.queries, queries]) if others.facts else queries,
            torch.cat([others.allocations, allocations]) if others.facts else allocations,
            (*others.facts, *edit.state["facts"]),
            (*others.prompts, *prompts),
            Calibration.of_state(edit.state),
        )

    def parts(self, state: ElderState) -> tuple[Any, Mapping[str, Tensor]]:
        tensors = {"centre": state.centre, "scales": state.scales, "queries": state.queries}
        tensors["allocations"] = state.allocations
        record = [state.facts, state.prompts, state.calibration and asdict(state.calibration)]
        return record, tensors | dict(state.parameters)

    def forget(self, edit: Edit) -> None:
        """Delete the queries of an edit's facts, whatever came later: their prompts leave the scope, unless the code of
        another fact is close. What they have done to the shared parameters stays, so this is no ``remove``.

        Raises:
            InputError: if the edit is not in.
        """
        self._forget(edit, lambda state, facts: state.without(lambda number: state.facts[number] in facts))

    def _rate(self, modules: int, threshold: int, facts: int) -> float:
        return false_scope(modules, self.settings.experts, self.settings.chosen, threshold, facts)

    def calibrated(self, found: Calibration) -> ElderState:
        return replace(self.empty, calibration=found)

    def trials(self, memories: Sequence[ReadMemory]) -> Iterator[tuple[float, list[Found]]]:
        """Codes need routers that are trained: here by the guidance alone, which needs the queries only."""
        modules, count = len(self.layers), len(memories[0].facts)
        start = self._begun()
        for threshold in range(2, 2 * modules * self.settings.chosen + 1, 2):
            if threshold > 2 and self._rate(modules, threshold, count) > FALSE_SCOPE:
                return
            found: list[Found] = []
            for memory in memories:
                routes = self._router(self._tied(start, memory, threshold), threshold).routes(memory.asked)
                found.append([() if route is None else (int(route.fact),) for route in routes])
            yield threshold, found

    def _tied(self, start: ElderState, memory: ReadMemory, threshold: int) -> ElderState:
        """The state with a memory's facts, named by their place, and with routers that only the guidance has trained,
        batch by batch.
        """
        settings, state = self.settings, start
        for first in range(0, len(memory.facts), settings.batch_size):
            queries = scaled(memory.own[first : first + settings.batch_size], state)
            names = tuple(str(first + place) for place in range(len(queries)))
            allocations = self._allocated(state, [memory.facts[int(name)].id for name in names], threshold)
            routers = {name: state.parameters[name].clone().requires_grad_(True) for name in ("G", "c")}
            adam, halving = self._optimiser(routers.values())
            for _ in range(settings.steps):
                adam.zero_grad()
                (settings.guidance * guidance(routed(routers, queries), allocations)).backward()
                adam.step()
                halving.step()
            state = replace(
                state,
                parameters={**state.parameters, **{name: value.detach() for name, value in routers.items()}},
                facts=(*state.facts, *names),
                queries=torch.cat([state.queries, queries]),
                allocations=torch.cat([state.allocations, allocations]),
            )
        return state

    def _optimiser(self, parameters: Iterable[Tensor]) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.StepLR]:
        adam = torch.optim.Adam(parameters, lr=self.settings.learning_rate)
        return adam, torch.optim.lr_scheduler.StepLR(adam, self.settings.halve_every, 0.5)

    def _begun(self) -> ElderState:
        """New parameters, and the scale of the model's activations on unrelated prompts."""
        settings, model, layers = self.settings, self.model, self.layers
        prompts = unrelated_prompts(model)
        queries = self.read_alone(prompts)
        centre = queries.mean(0)
        scales = torch.cat([root_mean_square(queries - centre)[None], output_ratios(model, layers).to(centre.dtype)])
        generator = generator_of(settings.seed, "parameters")

        def uniform(*shape: int, bound: float) -> Tensor:
            return bound * (2 * torch.rand(*shape, generator=generator) - 1).to(centre.dtype)

        shape, d_query = (len(layers), settings.experts), queries.shape[1]
        d_out, d = model.weight(layers[0]).shape
        parameters = {
            # As torch starts LoRAs (Kaiming with √5) and linear layers: within 1/√(inputs).
            "A": uniform(*shape, d, settings.rank, bound=d**-0.5),
            "B": torch.zeros(*shape, settings.rank, d_out, dtype=centre.dtype),
            "G": uniform(*shape, d_query, bound=d_query**-0.5),
            "c": uniform(*shape, bound=d_query**-0.5),
        }
        none = torch.zeros(0, len(layers), settings.chosen, dtype=torch.long)
        return ElderState(
            parameters, centre, scales, queries=torch.zeros(0, d_query, dtype=centre.dtype), allocations=none
        )

    def _allocated(
        self, state: ElderState, facts: Sequence[str], threshold: int
    ) -> Int[Tensor, "facts modules chosen"]:
        """S*: random experts for each fact, drawn again until they are at least θ + 2 from all other facts'.

        Raises:
            InputError: if none are found.
        """
        settings = self.settings
        taken = list(state.allocations)
        if state.facts:
            taken += list(self._router(state, threshold).codes)
        found: list[Tensor] = []
        for fact in facts:
            generator = generator_of(settings.seed, fact)
            for _ in range(_DRAWS):
                order = torch.rand(len(self.layers), settings.experts, generator=generator).argsort(1)
                code = order[:, : settings.chosen].sort(1).values
                others = [*taken, *found]
                if not others or int(hamming(code, torch.stack(others)).min()) >= threshold + 2:
                    found.append(code)
                    break
            else:
                raise InputError(
                    f"no allocation of experts for fact {fact!r} is {threshold + 2} from those of "
                    f"{len(taken) + len(found)} others",
                    remedy="Set more modules or experts, or a lower threshold",
                    code="ELDER_CODES_TOO_FEW",
                )
        return torch.stack(found)

    def _trained(
        self,
        start: Mapping[str, Tensor],
        state: ElderState,
        facts: Sequence[Fact],
        rows: TrainingRows,
        queries: Float[Tensor, "facts d"],
        allocations: Int[Tensor, "facts modules chosen"],
    ) -> dict[str, Tensor]:
        settings, device = self.settings, self.model.device
        parameters = {name: value.to(device).clone().requires_grad_(True) for name, value in start.items()}
        queries, allocations = queries.to(device), allocations.to(device)
        factors = factors_of(settings, state)
        tail = Tail(self.model, rows.rows, self.layers[0])
        adam, halving = self._optimiser(parameters.values())
        for step in range(1, settings.steps + 1):
            shares = routed(parameters, queries)
            experts = most_likely(shares, settings.chosen)
            codes_fit = torch.equal(experts, allocations)
            if settings.mode == "hard":
                experts = allocations
            weights = torch.take_along_dim(shares.transpose(0, 1), experts, 2)

            def hooks(passed: RowPass, experts: Tensor = experts, weights: Tensor = weights) -> Any:
                own = torch.tensor(passed.rows, device=device)
                places = torch.arange(len(own), device=device)
                chosen = (places, experts[own], weights[own])
                return mixing(self.model, self.layers, lambda: parameters, lambda: chosen, factors, len(own))

            losses = rows.losses(tail.logits(hooks), range(len(facts)))
            check_finite("loss of a fact", losses, facts, self.layers[0])
            self.report("training", step, settings.steps)
            if codes_fit and bool((losses < settings.stop_loss).all()):
                break
            adam.zero_grad()
            (losses.mean() + settings.guidance * guidance(shares, allocations)).backward()
            adam.step()
            halving.step()
        return {name: value.detach().cpu() for name, value in parameters.items()}
