"""MELO: every batch of facts trains a block of LoRA ranks of its own; clusters of queries decide which block acts.

Yu et al. 2024, AAAI, arXiv:2312.11795. The blocks change the down-projections of some consecutive MLPs; the query is
read in the block below. See ``Clusters`` for the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor

from errata.editors.calibration import Calibration, Found
from errata.editors.edit_file import StoredEdit
from errata.editors.elder import mixing
from errata.editors.grace import resolution_of
from errata.editors.hook_editor import (
    ReadMemory,
    RoutedEditor,
    RoutedSettings,
    TrainingRows,
    check_finite,
    consecutive_layers,
    generator_of,
    output_ratios,
    radii,
)
from errata.editors.routed import Prompt, Queries
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.row_hooks import RowPass
from errata.models.tail import Tail
from errata.utils.settings import NotNegative, Positive

_TOP_SHARE: Final = 0.75  # the adapted blocks end at this share of the depth; published: 37 of 48
_SPLIT: Final = 1e-5  # of the initial radius, between the balls of two labels


class MeloSettings(RoutedSettings):
    """MELO's settings. Published for GPT2-XL: c_fc of blocks 36 and 37, radius 0.5 as it is, 4 facts a batch."""

    first_layer: StrictInt | None = Field(
        None, ge=1, description="the lowest adapted block; by default they end at three quarters of the depth"
    )
    modules: StrictInt = Field(2, ge=1, description="adapted blocks; queries are read in the block below")
    batch_size: StrictInt = Field(4, ge=1, description="facts that share a block of ranks")
    rank: StrictInt = Field(2, ge=1, description="ranks of a block")
    alpha: Positive = Field(2.0, description="α: a block's product is scaled by α / rank")
    radius: Positive = Field(0.1, description="of a new cluster")
    relative_radius: StrictBool = Field(
        True, description="it is a share of the median distance between queries of unrelated prompts"
    )
    learning_rate: Positive = Field(0.01, description="Adam's step")
    steps: StrictInt = Field(50, ge=1, description="updates for a batch")
    halve_every: StrictInt = Field(20, ge=1, description="steps after which the learning rate is halved")
    stop_loss: NotNegative = Field(
        0.01, description="a batch is done when −log P per token is below this for all facts"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The LoRAs of one batch, on the CPU: A (M, d, rank) and B (M, rank, d_out), all scales in B."""

    down: Float[Tensor, "modules d rank"]
    up: Float[Tensor, "modules rank d_out"]


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A fact as it was assigned.

    Attributes:
        fact: its id.
        prompt: the tokens of its prompt: a later point with the same ones replaces this one.
        label: the tokens of its target.
        query: (d,) on the CPU.
    """

    fact: str
    prompt: tuple[int, ...]
    label: tuple[int, ...]
    query: Float[Tensor, "d"]
    block: Block


@dataclass(frozen=True, slots=True)
class Cluster:
    """Points of one label, by their number, in a ball of queries."""

    centre: Float[Tensor, "d"]
    radius: float
    label: tuple[int, ...]
    points: tuple[int, ...]


@dataclass(frozen=True)
class Clusters:
    """Clusters of points, as the rules of assignment leave them.

    For a point at distance δ from the nearest centre, whose cluster has radius ρ, and the initial radius ρ₀:

    - no cluster, or δ > ρ₀ + ρ: it becomes a cluster of radius ρ₀;
    - the same label: it joins. The centre moves to the mean of the points, and the radius becomes their largest
      distance from it, at least ρ₀;
    - another label: it becomes a cluster of radius δ/2 + 1e-5 ρ₀, and the other one's becomes δ/2 − 1e-5 ρ₀. The other
      one's points that are then outside are forgotten.

    Distances are Euclidean, in float64. The published code compares the sums of labels' token ids.

    Attributes:
        queries: (points, d) of all points by their number, forgotten ones included.
    """

    radius: float  # ρ₀
    queries: tuple[Float[Tensor, "d"], ...] = ()
    clusters: tuple[Cluster, ...] = ()

    def assigned(self, query: Float[Tensor, "d"], label: tuple[int, ...]) -> Clusters:
        """With one more point."""
        query, number, clusters = query.double(), len(self.queries), list(self.clusters)
        queries = (*self.queries, query)
        new = Cluster(query, self.radius, label, (number,))
        if not clusters:
            return replace(self, queries=queries, clusters=(new,))
        distances = (self._centres - query).norm(dim=1)
        nearest = int(distances.argmin())
        distance, cluster = float(distances[nearest]), clusters[nearest]
        if distance > self.radius + cluster.radius:
            clusters.append(new)
        elif cluster.label == label:
            points = (*cluster.points, number)
            members = torch.stack([queries[point] for point in points])
            centre = members.mean(0)
            largest = float((members - centre).norm(dim=1).max())
            clusters[nearest] = Cluster(centre, max(largest, self.radius), label, points)
        else:
            half = max(0.0, distance / 2 - _SPLIT * self.radius)
            staying = tuple(
                point for point in cluster.points if float((queries[point] - cluster.centre).norm()) <= half
            )
            clusters[nearest] = replace(cluster, radius=half, points=staying)
            clusters.append(replace(new, radius=distance / 2 + _SPLIT * self.radius))
            clusters = [cluster for cluster in clusters if cluster.points]
        return replace(self, queries=queries, clusters=tuple(clusters))

    def nearest(self, queries: Float[Tensor, "rows d"], resolution: float) -> list[int | None]:
        """For each query the nearest point of the cluster with the nearest centre, if the query is in its ball.

        Args:
            resolution: as in ``grace.Codebook.nearest``.
        """
        if not self.clusters:
            return [None] * len(queries)
        queries = queries.double()
        apart = torch.cdist(queries, self._centres, compute_mode="donot_use_mm_for_euclid_dist")
        distances, nearest = apart.min(1)
        radii = torch.tensor([cluster.radius for cluster in self.clusters], dtype=torch.float64)
        inside = distances <= (radii + resolution * self._centres.norm(dim=1))[nearest]
        found: list[int | None] = []
        for query, place, hit in zip(queries, nearest.tolist(), inside.tolist(), strict=True):
            points = self.clusters[place].points
            members = torch.stack([self.queries[point] for point in points])
            found.append(points[int((members - query).norm(dim=1).argmin())] if hit else None)
        return found

    @cached_property
    def _centres(self) -> Float[Tensor, "clusters d"]:
        return torch.stack([cluster.centre for cluster in self.clusters])


@dataclass(frozen=True)
class MeloState:
    """All points in their order without replaced ones, and the clusters that they make."""

    points: tuple[Point, ...] = ()
    clusters: Clusters | None = None  # None without points, unless their radius is calibrated
    calibration: Calibration | None = None

    def extended(self, points: Sequence[Point], radius: float) -> MeloState:
        """The state with more points, the same however they are divided.

        Args:
            radius: the initial one, if this state has none.
        """
        clusters = self.clusters or Clusters(radius)
        last = {point.prompt: point for point in (*self.points, *points)}
        staying = tuple(point for point in (*self.points, *points) if last[point.prompt] is point)
        start = len(self.points)
        if staying[:start] != self.points:  # one is replaced: begin again without it
            clusters, start = Clusters(clusters.radius), 0
        for point in staying[start:]:
            clusters = clusters.assigned(point.query, point.label)
        return replace(self, points=staying, clusters=clusters)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The distinct ones of the points."""
        return tuple({id(point.block): point.block for point in self.points}.values())

    @cached_property
    def block_of(self) -> tuple[int, ...]:
        """For each point the place of its block in ``blocks``."""
        place = {id(block): index for index, block in enumerate(self.blocks)}
        return tuple(place[id(point.block)] for point in self.points)


@dataclass(frozen=True)
class MeloRouter:
    """The blocks at their modules. A route is the number of a point."""

    model: LanguageModel
    queries: Queries
    state: MeloState
    layers: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        return not self.state.points

    def routes(self, queries: Float[Tensor, "rows d"]) -> list[int | None]:
        clusters = self.state.clusters
        if clusters is None:
            return [None] * len(queries)
        return clusters.nearest(queries, resolution_of(self.model))

    def facts_of(self, route: int) -> tuple[str, ...]:
        return (self.state.points[route].fact,)

    def acting(
        self, routes: Callable[[], Sequence[int | None]], rows: RowPass, prompts: Sequence[Prompt]
    ) -> AbstractContextManager[None]:
        def chosen() -> tuple[Tensor, Tensor, Tensor]:
            hits = [(row, self.state.block_of[point]) for row, point in enumerate(routes()) if point is not None]
            return _one_each(
                [row for row, _ in hits], [block for _, block in hits], len(self.layers), self.model.device
            )

        factors = [1.0] * len(self.layers)
        return mixing(self.model, self.layers, lambda: self._on_device, chosen, factors, len(prompts))

    @cached_property
    def _on_device(self) -> Mapping[str, Tensor]:
        blocks, device = self.state.blocks, self.model.device
        return {
            "A": torch.stack([block.down for block in blocks], dim=1).to(device),
            "B": torch.stack([block.up for block in blocks], dim=1).to(device),
        }


def _one_each(
    rows: Sequence[int], blocks: Sequence[int], modules: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with one block each, as ``elder.mixing`` takes experts: with weight 1."""
    experts = torch.tensor(blocks, dtype=torch.long, device=device)[:, None, None].expand(-1, modules, 1)
    return torch.tensor(rows, dtype=torch.long, device=device), experts, torch.ones(experts.shape, device=device)


class Melo(RoutedEditor[MeloState, MeloSettings]):
    """MELO as a ``KnowledgeEditor``. Removing an edit replays the assignment of the other points."""

    method: ClassVar[str] = "melo"

    @property
    def layers(self) -> tuple[int, ...]:
        """The adapted blocks."""
        return consecutive_layers(self.model, self.settings.first_layer, self.settings.modules, _TOP_SHARE)

    @property
    def layer(self) -> int:
        return self.layers[0] - 1

    @property
    def empty(self) -> MeloState:
        return MeloState()

    def router(self, state: MeloState) -> MeloRouter:
        return MeloRouter(self.model, self.queries, state, self.layers)

    def learned(self, state: MeloState, facts: Sequence[Fact]) -> MeloState:
        rows = TrainingRows.of(self.model, facts, from_boundary=False)
        block = self._trained(facts, rows)
        points = [
            Point(fact.id, prompt.ids, target, query, block)
            for fact, prompt, target, query in zip(
                facts, rows.prompts, rows.targets, self.read_alone(rows.prompts), strict=True
            )
        ]
        return state.extended(points, state.clusters.radius if state.clusters else self.settings.radius * self._unit())

    def stored(self, before: MeloState, after: MeloState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert after.clusters is not None
        earlier = {id(point) for point in before.points}
        new = MeloState(tuple(point for point in after.points if id(point) not in earlier))
        calibration = after.calibration and asdict(after.calibration)
        return {"radius": after.clusters.radius, "calibration": calibration, **_record(new)}, _tensors(new)

    def restored(self, before: MeloState, edit: StoredEdit) -> MeloState:
        state, tensors = edit.state, edit.tensors
        blocks = [Block(down, up) for down, up in zip(tensors["down"], tensors["up"], strict=True)]
        points = [
            Point(fact, tuple(prompt), tuple(label), query, blocks[block])
            for fact, prompt, label, query, block in zip(
                state["facts"], state["prompts"], state["labels"], tensors["queries"], state["blocks"], strict=True
            )
        ]
        return replace(before.extended(points, float(state["radius"])), calibration=Calibration.of_state(state))

    def parts(self, state: MeloState) -> tuple[Any, Mapping[str, Tensor]]:
        if state.clusters is None:
            return None, {}
        clusters = [(cluster.radius, cluster.points) for cluster in state.clusters.clusters]
        calibration = state.calibration and asdict(state.calibration)
        return [state.clusters.radius, _record(state), clusters, calibration], _tensors(state)

    def _unit(self) -> float:
        """Of the initial radius."""
        return self.unrelated_distance() if self.settings.relative_radius else 1.0

    def calibrated(self, found: Calibration) -> MeloState:
        return MeloState(clusters=Clusters(found.threshold * self._unit()), calibration=found)

    def trials(self, memories: Sequence[ReadMemory]) -> Iterator[tuple[float, list[Found]]]:
        unit, resolution = self._unit(), resolution_of(self.model)

        def found(memory: ReadMemory, radius: float) -> Found:
            clusters = Clusters(radius)
            for query, label in zip(memory.own, memory.labels, strict=True):
                clusters = clusters.assigned(query, label)
            return [() if point is None else (point,) for point in clusters.nearest(memory.asked, resolution)]

        for radius in radii(memories):
            yield radius / unit, [found(memory, radius) for memory in memories]

    def started(self, facts: Sequence[Fact]) -> tuple[Tensor, Tensor]:
        """A and B of a new block: A is uniform within 1/√d, as torch starts linear layers, and B zero."""
        d_out, d = self.model.weight(self.layer).shape
        shape, dtype = (len(self.layers), d, self.settings.rank), torch.promote_types(self.model.dtype, torch.float32)
        generator = generator_of(self.settings.seed, facts[0].id)
        down = d**-0.5 * (2 * torch.rand(shape, generator=generator) - 1).to(dtype)
        return down, torch.zeros(len(self.layers), self.settings.rank, d_out, dtype=dtype)

    def _trained(self, facts: Sequence[Fact], rows: TrainingRows) -> Block:
        settings, device, layers = self.settings, self.model.device, self.layers
        down, up = (value.to(device).requires_grad_(True) for value in self.started(facts))
        factors = [settings.alpha / settings.rank * ratio for ratio in output_ratios(self.model, layers).tolist()]
        tail = Tail(self.model, rows.rows, layers[0])
        adam = torch.optim.Adam([down, up], lr=settings.learning_rate)
        halving = torch.optim.lr_scheduler.StepLR(adam, settings.halve_every, 0.5)

        def hooks(passed: RowPass) -> AbstractContextManager[None]:
            count = len(passed.rows)
            chosen = _one_each(range(count), [0] * count, len(layers), device)
            present = {"A": down[:, None], "B": up[:, None]}
            return mixing(self.model, layers, lambda: present, lambda: chosen, factors, count)

        for step in range(1, settings.steps + 1):
            losses = rows.losses(tail.logits(hooks), range(len(facts)))
            check_finite("loss of a fact", losses, facts, layers[0])
            self.report("block", step, settings.steps)
            if bool((losses < settings.stop_loss).all()):
                break
            adam.zero_grad()
            losses.mean().backward()
            adam.step()
            halving.step()
        scales = torch.tensor(factors, dtype=up.dtype)[:, None, None]
        return Block(down.detach().cpu(), scales * up.detach().cpu())


def _record(state: MeloState) -> dict[str, Any]:
    return {
        "facts": [point.fact for point in state.points],
        "prompts": [list(point.prompt) for point in state.points],
        "labels": [list(point.label) for point in state.points],
        "blocks": list(state.block_of),
    }


def _tensors(state: MeloState) -> dict[str, Tensor]:
    return {
        "queries": torch.stack([point.query for point in state.points]),
        "down": torch.stack([block.down for block in state.blocks]),
        "up": torch.stack([block.up for block in state.blocks]),
    }
