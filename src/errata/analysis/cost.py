"""Estimated cost of study ``weight-shift``, and of target searches, from a model's configuration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from transformers import PreTrainedTokenizerBase

from errata.analysis.study import AnalysisSettings
from errata.editing.contexts import ContextSettings, in_context, neutral_leads
from errata.editing.recipe import Recipe
from errata.editing.search_groups import ROWS_AT_ONCE, FactLength, GroupLimits, SearchMemory, groups_of, memory_of_rows
from errata.editing.search_prompts import KL_PROMPT, common_prefix
from errata.facts.fact import Fact
from errata.models.loading import Outline
from errata.models.prompts import complete, encode, subject_token
from errata.models.replay import PASS_COST, length_cuts
from errata.models.size import ModelSize
from errata.statistics.moments import products_flops

ACCELERATOR_LIMITS: Final = GroupLimits(ROWS_AT_ONCE)
_LEAD = 1  # tokens that join a prefix and a prompt: "." mostly, for the space belongs to the next word


@dataclass(frozen=True, slots=True)
class SearchRow:
    """One text: token counts before the injection, replayed, and with logits read.

    Attributes:
        stem: tokens before the injection that are the same for all rows of its kind.
        kind: the number of its context; the KL prompt's number comes last.
    """

    before: int
    replayed: int
    wanted: int
    stem: int
    kind: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows that are replayed together, padded to the longest of them.

    Attributes:
        slots: tokens of the longest row before the injection.
        replayed: tokens from there on.
        wanted: logits that are read, of all rows together.
        stems: tokens of the stems, each stem once, padded.
        tail: tokens of a row between its stem and the injection.
    """

    rows: int
    slots: int
    replayed: int
    wanted: int
    stems: int
    tail: int

    @classmethod
    def of(cls, rows: Sequence[SearchRow]) -> Bucket:
        return cls(
            rows=len(rows),
            slots=max(row.before for row in rows),
            replayed=max(row.replayed for row in rows),
            wanted=sum(row.wanted for row in rows),
            stems=len({row.kind for row in rows if row.stem}) * max(row.stem for row in rows),
            tail=max(row.before - row.stem for row in rows),
        )


@dataclass(frozen=True, slots=True)
class SearchRows:
    """All rows of a search.

    Attributes:
        facts: number of facts.
        searched_together: the buckets of the facts that are searched together, group after group.
    """

    facts: int
    searched_together: tuple[tuple[Bucket, ...], ...]

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        contexts: ContextSettings,
        prefixes: Sequence[str] = (),
        pass_cost: int = PASS_COST,
        limits: GroupLimits = ACCELERATOR_LIMITS,
    ) -> SearchRows:
        """The rows of facts.

        Args:
            pass_cost: the overhead of one more pass, in tokens (``models.replay.pass_cost``).
            limits: of what is searched together; by default those of an accelerator with enough memory.
            prefixes: the contexts; if they have not been generated yet, their lengths are the recipe's.

        Raises:
            InputError: if a target or a subject has no token.
        """
        neutral = neutral_leads(tokenizer, facts)
        with_leads = list(zip(facts, neutral, strict=True))
        completions = complete(tokenizer, [fact.pair(fact.target, lead + fact.text) for fact, lead in with_leads])
        kl_prompts = encode(tokenizer, [lead + KL_PROMPT.replace("{}", fact.subject, 1) for fact, lead in with_leads])
        texts = []
        for fact, lead, completion, kl_prompt in zip(facts, neutral, completions, kl_prompts, strict=True):
            start, end = (place + len(lead) for place in fact.subject_span)
            subject = subject_token(completion.encoded, start, end, fact)
            about = kl_prompt.ids[: subject_token(kl_prompt, len(lead), len(lead) + len(fact.subject), fact)]
            replayed = len(completion.ids) - 1 - subject
            before = completion.ids[:subject]
            # Before a subject that begins its text there is only the lead, which texts with a prefix do not have.
            texts.append((before, () if lead else before, replayed, len(completion.target_ids), about))
        lengths = [tokens + _LEAD for tokens in contexts.tokens for _ in contexts.openers * contexts.per_opener]
        if prefixes:
            bare, *in_contexts = encode(tokenizer, [in_context(prefix, facts[0].text)[0] for prefix in ("", *prefixes)])
            lengths = [len(text.ids) - len(bare.ids) for text in in_contexts]
        leads = [0, *lengths] if contexts.targets == "all" else [0]
        of_facts = [
            FactLength(
                len(leads) + 1,
                len(leads) + 1,
                max(len(alone), len(before) + max(leads), len(asking)),
                replayed,
                len(leads) * wanted + 1,
            )
            for alone, before, replayed, wanted, asking in texts
        ]
        groups = []
        for group in groups_of(of_facts, limits):
            chosen = [texts[index] for index in group]
            bare_stem, stem = common_prefix([text[0] for text in chosen]), common_prefix([text[1] for text in chosen])
            about_stem = common_prefix([text[4] for text in chosen])
            rows = []
            for alone, before, replayed, wanted, asking in chosen:
                rows.append(SearchRow(len(alone), replayed, wanted, bare_stem, 0))
                for kind, more in enumerate(leads[1:], start=1):
                    rows.append(SearchRow(len(before) + more, replayed, wanted, stem + more, kind))
                same = asking[:about_stem] == alone[:bare_stem]  # such a stem is run once for both kinds
                rows.append(SearchRow(len(asking), 1, 1, about_stem, 0 if same else len(leads)))
            groups.append(buckets_of(rows, pass_cost))
        return cls(len(facts), tuple(groups))

    @property
    def largest(self) -> tuple[Bucket, ...]:
        """The group with the most rows."""
        return max(self.searched_together, key=lambda group: sum(bucket.rows for bucket in group))

    @property
    def buckets(self) -> list[Bucket]:
        return [bucket for group in self.searched_together for bucket in group]


def buckets_of(rows: Sequence[SearchRow], pass_cost: int = PASS_COST) -> tuple[Bucket, ...]:
    """The buckets in which rows are replayed together."""
    ordered = sorted(rows, key=lambda row: row.replayed)
    cuts = [0, *length_cuts([row.replayed for row in ordered], pass_cost), len(ordered)]
    return tuple(Bucket.of(ordered[start:stop]) for start, stop in pairwise(cuts))


def read_flops(size: ModelSize, tokens: int, blocks: int, seen: int) -> int:
    """A forward pass of some blocks.

    Args:
        seen: tokens that one attends to, masked ones included.
    """
    return tokens * blocks * (2 * size.block_products + 4 * size.query_width * seen)


def search_flops(size: ModelSize, rows: SearchRows, layer: int, steps: int) -> int:
    """A whole search at one layer in which no fact finishes early: ``steps`` losses, one gradient less.

    Gradients are taken with respect to activations and not weights, so that the backward pass costs as many products as
    the forward pass (twice as many in attention, both factors of which depend on the injected vectors).
    """
    return sum(_bucket_flops(size, bucket, layer, steps) for bucket in rows.buckets)


def _bucket_flops(size: ModelSize, bucket: Bucket, layer: int, steps: int) -> int:
    # Once: stems and each row's tokens after them, through all blocks but the last MLP; replayed tokens, to the layer.
    own, stem_slots = bucket.rows * bucket.tail, bucket.slots - bucket.tail
    once = read_flops(size, own, size.blocks, bucket.slots) + read_flops(size, bucket.stems, size.blocks, stem_slots)
    once -= 2 * size.mlp_products * (own + bucket.stems)
    replayed, seen = bucket.rows * bucket.replayed, bucket.slots + bucket.replayed
    once += read_flops(size, replayed, layer + 1, seen)
    above = size.blocks - 1 - layer
    products = 2 * above * size.block_products * replayed + 2 * size.head_products * bucket.wanted
    if above:  # the last MLP runs only where logits are wanted
        products -= 2 * size.mlp_products * (replayed - bucket.wanted)
    attention = 4 * above * size.query_width * seen * replayed
    return once + steps * (products + attention) + (steps - 1) * (products + 2 * attention)


def search_memory(size: ModelSize, rows: SearchRows, layer: int, width: int) -> SearchMemory:
    """The memory of the largest group of facts that are searched together; see ``memory_of_rows``.

    Args:
        width: bytes of a number in the model's dtype.
    """
    parts = [
        memory_of_rows(
            size,
            layer,
            width,
            rows=bucket.rows,
            slots=bucket.slots,
            replayed=bucket.replayed,
            wanted=bucket.wanted,
        )
        for bucket in rows.largest
    ]
    return sum(parts, SearchMemory(0, 0, 0))


_DOUBLE = 8  # bytes of a float64
DOCUMENT_TOKENS: Final = 700  # of a Wikipedia article on average: some 3,000 characters


@dataclass(frozen=True, slots=True)
class Machine:
    """Achieved operations per second: in the model's dtype, and in float64."""

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
    """Calculated cost of a study.

    Attributes:
        memory: use of device memory -> bytes; not all of it at the same time.
        statistics: peak bytes while the key statistics are read, ``preparing`` while they are factorised,
            ``searching`` while targets are searched, which is nearly all of the time.
        host: bytes of host memory, while statistics are transferred.
        stages: the work.
        assumptions: of the calculation.
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
        """Peak bytes on the device."""
        return max(self.statistics, self.preparing, self.searching)

    def seconds(self, machine: Machine) -> float:
        return sum(stage.seconds(machine) for stage in self.stages)

    def table(self, machine: Machine) -> str:
        """As text: memory in GiB, operations, hours, and the assumptions."""
        lines = ["memory on the device, GiB"]
        lines += [f"  {name:<58}{_gib(size):>10.2f}" for name, size in self.memory.items()]
        phases = {"statistics are read": self.statistics, "they are factorised": self.preparing}
        phases |= {"targets are searched": self.searching}
        lines += [f"  peak while {name:<47}{_gib(size):>10.2f}" for name, size in phases.items()]
        lines.append(f"memory of the host, GiB{_gib(self.host):>47.2f}")
        lines.append(f"work{'operations':>42}{'in float64':>14}{'hours':>10}")
        for stage in (*self.stages, self._whole):
            hours = stage.seconds(machine) / 3600
            lines.append(f"  {stage.name:<32}{stage.flops:>12.3g}{stage.double_flops:>14.3g}{hours:>10.3f}")
        lines.append(f"assumed: {machine.flops:.3g} operations per second, {machine.double_flops:.3g} in float64")
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
        facts: the probe facts, then those of the earlier batches.
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
    """Cost of the study on one GPU, for a recipe and settings that passed its check.

    Args:
        probe: the rows of the probe facts.
        batch: the rows of an earlier batch.
        width: bytes of a number in the model's dtype.
        tokens: that the key statistics are read over; by default the recipe's, or its documents of
            ``DOCUMENT_TOKENS`` each.
    """
    statistics = recipe.statistics
    document = min(statistics.length, DOCUMENT_TOKENS)
    read = tokens or statistics.tokens or (statistics.documents or 0) * document
    layers, checkpoints = recipe.layers, sorted(set(settings.earlier))
    last, seeds = layers[-1], len(settings.seeds)
    square = float(size.mlp_width**2 * _DOUBLE) / size.experts  # a block for each expert
    solver = recipe.solver.cost
    weights, moments = float(size.parameters * width), len(layers) * square
    factors = solver.held * len(layers) * square
    search = max((search_memory(size, rows, layers[0], width) for rows in (probe, batch)), key=lambda one: one.total)
    written = {step.layer for step in recipe.steps} if max(checkpoints) else set()
    # W₀ and the sum of changes of each written layer; and copies of both to roll back to, of the run and of a batch.
    copies = float(3 * len(written) * size.width * size.mlp_width * (width + max(width, 4)))
    memory = {
        "weights": weights,
        f"key statistics C of {len(layers)} layers, float64": moments,
        f"state of the solver for {len(layers)} layers, float64": factors,
        f"originals and sums of {len(written)} edited layers, and copies of them": copies,
        f"search, layer {layers[0]}: keys and values before the injection": float(search.cache),
        f"search, layer {layers[0]}: activations kept for the gradient": float(search.activations),
        f"search, layer {layers[0]}: logits and their gradients": float(search.logits),
    }
    steps = recipe.target.steps
    targets = [step.target_layer for step in recipe.steps if step.follows is None]
    searched = list(dict.fromkeys(targets))
    reading = sum(bucket.rows * (bucket.slots + 1) for bucket in probe.buckets)
    batch_reading = sum(bucket.rows * (bucket.slots + 1) for bucket in batch.buckets)
    seen = max(bucket.slots + 1 for bucket in (*probe.buckets, *batch.buckets))
    products = products_flops(size.mlp_width // size.experts, read)  # in float32, of each expert
    once_read = read_flops(size, read, last + 1, document) - 2 * read * size.width * size.mlp_width
    solves = sum(
        settings.count
        // facts
        * len(layers)
        * solver.solve_flops(size.mlp_width, facts, number * settings.batch_size if recipe.solver.uses_history else 0)
        for number in checkpoints
        for facts in set(settings.sizes)
    )
    per_probe = sum(search_flops(size, probe, layer, steps) for layer in layers)
    per_batch = sum(search_flops(size, batch, layer, steps) for layer in searched)
    # Every layer of a batch reads keys and states again; the keys of the probe facts are read once.
    per_batch += 3 * len(layers) * read_flops(size, batch_reading, last + 1, seen)
    per_probe += read_flops(size, reading, last + 1, seen)
    stages = (
        Stage("key statistics", once_read + size.experts * products * len(layers)),
        Stage("factorisations", 0.0, solver.prepare * size.mlp_width**3 / size.experts**2 * len(layers)),
        Stage("targets of the probe facts", float(seeds * len(checkpoints) * per_probe)),
        Stage("earlier batches", float(seeds * max(checkpoints) * per_batch)),
        Stage("solves of all groups", 0.0, seeds * solves),
    )
    assumptions = (
        f"{read:,} tokens of text for the key statistics, {document} a document",
        f"{settings.count} probe facts after each of {checkpoints} batches of {settings.batch_size}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; targets at layers {list(layers)}, in earlier batches at {searched}",
        f"{steps} steps each: no fact finishes early, no run is interrupted and resumed",
        "matrix products only, at these speeds; one GPU; loading, tokenising and generating contexts take no time",
        "the search keeps the activations of a gated MLP; the temporary memory of passes without gradients (about "
        "1 GiB) and the allocator's reserve are not counted",
        "cached key statistics cost nothing",
        *filter(None, [recipe.target.not_in_cost]),
    )
    return Cost(
        memory,
        statistics=weights + moments,
        preparing=weights + moments + factors + solver.temporary * square,
        searching=weights + factors + copies + search.total,
        host=3 * moments,
        stages=stages,
        assumptions=assumptions,
    )


def _gib(size: float) -> float:
    return size / 2**30
