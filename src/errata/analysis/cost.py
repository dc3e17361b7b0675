"""What study ``weight-shift`` costs by calculation, of a model of which only the configuration is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from errata.analysis.search_cost import read_flops, search_flops, search_memory
from errata.analysis.search_rows import SearchRows
from errata.analysis.study import AnalysisSettings
from errata.facts import Fact
from errata.models.outline import Outline
from errata.models.size import ModelSize
from errata.recipe import Recipe
from errata.schedules import SCHEDULES

_DOUBLE = 8  # bytes of a float64
DOCUMENT_TOKENS: Final = 700  # of a Wikipedia article on average: some 3,000 characters

# Solver -> (what is kept of a layer, what making it takes beside C of every layer), in matrices of d_in × d_in float64,
# and the operations of making it, in d_in³: a Cholesky factor takes a third; eigenvectors are reckoned as nine.
_PREPARED: Final[Mapping[str, tuple[int, int, float]]] = {
    "least_squares": (2, 1, 1 / 3),  # λC and its factor
    "null_space": (1, 3, 9.0),  # at most all eigenvectors
    "equality": (1, 1, 1 / 3),
    "neurons": (2, 1, 1 / 3),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Operations a second that are really reached: in the model's dtype, and in float64."""

    flops: float
    double_flops: float


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the work: its operations in the model's dtype, and those in float64."""

    name: str
    flops: float
    double_flops: float = 0.0

    def seconds(self, machine: Machine) -> float:
        return self.flops / machine.flops + self.double_flops / machine.double_flops


@dataclass(frozen=True, slots=True)
class Cost:
    """By calculation.

    Attributes:
        memory: what lies on the device -> bytes; not all of it at the same time.
        statistics: bytes at once while the key statistics are read, ``preparing`` while they are factorised,
            ``searching`` while targets are searched, which is nearly all of the time.
        host: bytes beside it in the machine's own memory, while statistics are handed over.
        stages: the work.
        assumptions: what was assumed.
    """

    memory: Mapping[str, float]
    statistics: float
    preparing: float
    searching: float
    host: float
    stages: tuple[Stage, ...]
    assumptions: tuple[str, ...]

    @property
    def peak(self) -> float:
        """Bytes on the device that are needed at least."""
        return max(self.statistics, self.preparing, self.searching)

    def seconds(self, machine: Machine) -> float:
        return sum(stage.seconds(machine) for stage in self.stages)

    def table(self, machine: Machine) -> str:
        """As text: memory in GiB, operations, hours, and what was assumed."""
        lines = ["memory on the device, GiB"]
        lines += [f"  {name:<58}{_gib(size):>10.2f}" for name, size in self.memory.items()]
        phases = {"statistics are read": self.statistics, "they are factorised": self.preparing}
        phases |= {"targets are searched": self.searching}
        lines += [f"  at once, while {name:<43}{_gib(size):>10.2f}" for name, size in phases.items()]
        lines.append(f"memory of the host, GiB{_gib(self.host):>47.2f}")
        lines.append(f"work{'operations':>42}{'in float64':>14}{'hours':>10}")
        for stage in (*self.stages, self._whole):
            hours = stage.seconds(machine) / 3600
            lines.append(f"  {stage.name:<32}{stage.flops:>12.3g}{stage.double_flops:>14.3g}{hours:>10.3f}")
        lines.append(f"assumed: {machine.flops:.3g} operations a second, {machine.double_flops:.3g} in float64")
        return "\n".join([*lines, *(f"assumed: {text}" for text in self.assumptions)])

    @property
    def _whole(self) -> Stage:
        parts = self.stages
        return Stage("all", sum(part.flops for part in parts), sum(part.double_flops for part in parts))


# An H100-class GPU: 300 · 10¹² operations a second in bfloat16, of which 40 % are reached; 20 · 10¹² in float64.
LARGE_GPU: Final = Machine(0.4 * 300e12, 20e12)


def cost_text(outline: Outline, recipe: Recipe, settings: AnalysisSettings, facts: Sequence[Fact], width: int) -> str:
    """``weight_shift_cost`` as a table, for these facts on ``LARGE_GPU``.

    Args:
        facts: those that are looked at, then those of the earlier batches.
        width: bytes of a number in the model's dtype.
    """
    probe, earlier = facts[: settings.count], facts[settings.count :] or facts[:1]
    rows = [SearchRows.of(outline.tokenizer, part, recipe.contexts) for part in (probe, earlier[: settings.batch_size])]
    return weight_shift_cost(outline.size, recipe, settings, *rows, width=width).table(LARGE_GPU)


def weight_shift_cost(
    size: ModelSize,
    recipe: Recipe,
    settings: AnalysisSettings,
    probe: SearchRows,
    batch: SearchRows,
    *,
    width: int,
    tokens: int | None = None,
) -> Cost:
    """What a study takes on one GPU. The study's ``check`` must have let recipe and settings pass.

    Args:
        probe: the rows of the facts that are looked at.
        batch: those of an earlier batch.
        width: bytes of a number in the model's dtype.
        tokens: that the key statistics are read over; by default the recipe's, or its documents of
            ``DOCUMENT_TOKENS`` each.
    """
    statistics = recipe.statistics
    document = min(statistics.length, DOCUMENT_TOKENS)
    read = tokens or statistics.tokens or (statistics.documents or 0) * document
    layers, checkpoints = recipe.layers, sorted(set(settings.earlier))
    last, seeds = layers[-1], len(settings.seeds)
    square = float(size.mlp_width**2 * _DOUBLE)
    kept, made, products = _PREPARED[recipe.solver.kind]
    weights, moments = float(size.parameters * width), len(layers) * square
    factors = kept * len(layers) * square
    search = max((search_memory(size, rows, layers[0], width) for rows in (probe, batch)), key=lambda one: one.total)
    steps_of_run = SCHEDULES[recipe.schedule](layers)
    written = {step.layer for step in steps_of_run} if max(checkpoints) else set()
    # W₀ and the sum of changes of each written layer; and twice what a failure goes back to: of the run, of a batch.
    copies = float(3 * len(written) * size.width * size.mlp_width * (width + max(width, 4)))
    memory = {
        "weights": weights,
        f"key statistics C of {len(layers)} layers, float64": moments,
        f"what the solver keeps of {len(layers)} layers, float64": factors,
        f"originals and sums of {len(written)} edited layers, and copies of them": copies,
        f"search, layer {layers[0]}: keys and values of what stands before": float(search.cache),
        f"search, layer {layers[0]}: activations kept for the gradient": float(search.activations),
        f"search, layer {layers[0]}: logits and their gradients": float(search.logits),
    }
    steps, joint = recipe.target.steps, recipe.target.kind == "joint"
    targets = [step.target_layer for step in steps_of_run if step.follows is None]
    searched = list(dict.fromkeys(targets))
    reading = sum(bucket.rows * (bucket.slots + 1) for bucket in probe.buckets)
    batch_reading = sum(bucket.rows * (bucket.slots + 1) for bucket in batch.buckets)
    seen = max(bucket.slots + 1 for bucket in (*probe.buckets, *batch.buckets))
    once_read = read_flops(size, read, last + 1, document) - 2 * read * size.width * size.mlp_width
    solves = sum(
        settings.count // one * len(layers) * _solve_flops(recipe, size, one, number * settings.batch_size)
        for number in checkpoints
        for one in set(settings.sizes)
    )
    per_probe = sum(search_flops(size, probe, layer, steps) for layer in layers)
    per_batch = sum(search_flops(size, batch, layer, steps) for layer in searched)
    # Every layer of a batch reads keys and states anew; the probe's keys are read once.
    per_batch += 3 * len(layers) * read_flops(size, batch_reading, last + 1, seen)
    per_probe += read_flops(size, reading, last + 1, seen)
    stages = (
        Stage("key statistics", float(once_read), 2.0 * size.mlp_width**2 * read * len(layers)),
        Stage("factorisations", 0.0, products * size.mlp_width**3 * len(layers)),
        Stage("targets of the probe facts", float(seeds * len(checkpoints) * per_probe)),
        Stage("earlier batches", float(seeds * max(checkpoints) * per_batch)),
        Stage("solves of all groups", 0.0, seeds * solves),
    )
    assumptions = (
        f"{read:,} tokens of text for the key statistics, {document} a document",
        f"{settings.count} facts looked at after each of {checkpoints} batches of {settings.batch_size}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; targets at layers {list(layers)}, in earlier batches at {searched}",
        f"{steps} steps each: no fact is done early, no run is stopped and taken up again",
        "matrix products alone, at the speed named; one GPU; loading, tokenising and generating contexts take no time",
        "the search keeps what a gated MLP keeps; what passes without gradients hold for a moment (1 GiB or so), and "
        "what the allocator keeps in reserve, is not counted",
        "key statistics that a cache holds already cost nothing",
        *(["the block that a joint target is injected into runs once more, which is not counted"] * joint),
    )
    return Cost(
        memory,
        statistics=weights + moments,
        preparing=weights + moments + factors + made * square,
        searching=weights + factors + copies + search.total,
        host=3 * moments,
        stages=stages,
        assumptions=assumptions,
    )


def _solve_flops(recipe: Recipe, size: ModelSize, facts: int, earlier: int) -> float:
    """Q of one group at one layer; the leading terms."""
    wide, history = size.mlp_width, earlier if getattr(recipe.solver, "history", False) else 0
    if recipe.solver.kind == "neurons" and recipe.solver.share < 1:  # a factor for every group, of all columns at most
        return wide**3 / 3 + 2.0 * wide**2 * facts
    known = history + facts
    onto, back = (2, 2) if recipe.solver.kind == "null_space" else (1, 1)
    columns = facts if recipe.solver.kind in ("null_space", "equality") else known
    small = 2.0 * wide * known**2 + known**3 / 3 + 2.0 * known**2 * facts + 2.0 * wide * known * facts
    return onto * wide**2 * columns + back * wide**2 * facts + small


def _gib(size: float) -> float:
    return size / 2**30
