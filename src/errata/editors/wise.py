"""WISE: a side memory beside one down-projection, used for prompts whose outputs it changes as much as its facts' own.

Wang et al. 2024, NeurIPS, arXiv:2405.14768. The memory is a change ΔW of W. A prompt's distance D is the mean length
of ΔW x over the tokens that it changes most. Training pulls D up at the subjects of facts and down in other text. Facts
are written to shards of W's entries; full shards are stored, and merged by TIES (Yadav et al. 2023, NeurIPS,
arXiv:2306.01708).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Final, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor
from transformers.activations import ACT2FN

from errata.editing.contexts import ContextSettings, generate_prefixes, in_context, target_in
from errata.editors.contract import Undo
from errata.editors.edit_file import StoredEdit
from errata.editors.hook_editor import (
    PromptEditor,
    TrainingRows,
    check_finite,
    generator_of,
    late_layer,
    output_ratios,
    unrelated_prompts,
)
from errata.editors.routed import Prompt, Queries, ReadKind, outputs_changed, prompts_of
from errata.editors.table import EditorSettings
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import encode
from errata.models.row_hooks import RowHooks, RowPass
from errata.models.tail import Tail
from errata.statistics.corpus import open_corpus
from errata.utils.settings import NotNegative, Positive

_LAYER_SHARE: Final = 0.15  # of the depth; published: 21 of 28, 27 and 29 of 32 blocks, 8 of 48
_OUTSIDE_WORDS: Final = 10  # of a document, at most, as an outside prompt
_OUTSIDE: Final = 200  # documents
_OPTIMISERS: Final[Mapping[str, Callable[[list[Tensor], float], torch.optim.Optimizer]]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


class WiseSettings(EditorSettings):
    """WISE's settings.

    Published for 7B models: α 5, β 20, γ 10 as they are, D over all tokens, share 0.88, ``sgd`` with rate 1.0, cap 1.0,
    the activation ``model``, ten prefixes, one outside prompt a fact. The others are as published. Where the published
    code replays earlier facts, its limits are 5 and 20.
    """

    layer: StrictInt | None = Field(None, ge=0, description="the block; at 15 % of the depth by default")
    outside: Positive = Field(0.25, description="α: D of other text should be at most this")
    inside: Positive = Field(1.0, description="β: D of a fact's prompt should be at least this")
    margin: Positive = Field(0.5, description="γ: by which the second should exceed the first")
    relative: StrictBool = Field(
        True, description="α, β, γ are shares of the length of the module's own outputs, and the rate suits any model"
    )
    share: Positive = Field(
        0.9, le=1, description="a prompt uses a memory if its D is over this share of that of the most similar fact"
    )
    activation: Literal["identity", "model"] = Field(
        "identity", description="what distances are of: outputs, or the model's activation function of them"
    )
    largest: StrictInt | None = Field(
        3, ge=1, description="D is the mean over so many tokens, those that change most; published: over all (None)"
    )
    subject: StrictBool = Field(
        True, description="D of a fact is of its subject's tokens in training, and the rest of its prompt is other text"
    )
    prefixes: StrictInt = Field(0, ge=0, le=5, description="generated texts before which a fact is trained as well")
    outside_prompts: StrictInt = Field(5, ge=1, description="beginnings of other texts for each fact")
    corpus: str = Field("builtin", description="where these are from: 'builtin', 'lab' or a path")
    mask: Positive = Field(0.2, le=1, description="share of W's entries in a shard")
    save_every: StrictInt = Field(500, ge=1, description="facts after which a shard is stored")
    retrieve: StrictBool = Field(
        True, description="prompts choose among the stored memories; else all of them are merged into one"
    )
    merge_every: StrictInt = Field(1000, ge=1, description="facts in stored shards after which these are merged")
    density: Positive = Field(0.53, le=1, description="share of all entries, the largest ones, that a merge retains")
    replay: StrictBool = Field(
        False,
        description="in training, D of facts of the stored memories is held down and that of earlier facts of the same "
        "shard up; only if prompts retrieve",
    )
    replay_outside: Positive | None = Field(None, description="what D of the first should be at most; α by default")
    replay_inside: Positive | None = Field(None, description="what D of the second should be at least; β by default")
    optimiser: Literal["adam", "sgd"] = Field("adam", description="or plain gradient descent (published)")
    learning_rate: Positive = Field(0.03, description="Adam's step, or the rate of gradient descent")
    cap: Positive | None = Field(None, description="the largest change of an entry of W; none by default")
    steps: StrictInt = Field(70, ge=1, description="the most updates for a batch")
    stop_loss: NotNegative = Field(
        0.02, description="a batch is done when −log P per token and the loss of distances are at most this for all"
    )


# Merging


def ties(deltas: Sequence[Float[Tensor, "d_out d_in"]], density: float) -> Float[Tensor, "d_out d_in"]:
    """TIES: the largest entries of each matrix remain; each gets the sign of their sum, and the mean of those with it.

    Args:
        density: the share of all entries that remains. Shards with fewer entries lose none, and those that have none in
            common are just added.
    """
    trimmed = []
    for delta in deltas:
        sizes = delta.abs().flatten()
        smaller = len(sizes) - int(density * len(sizes))
        least = sizes.kthvalue(smaller).values if smaller else -1.0
        trimmed.append(torch.where(delta.abs() > least, delta, 0))
    stacked = torch.stack(trimmed)
    agree = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    return torch.where(agree, stacked, 0).sum(0) / agree.sum(0).clamp_min(1)


# State


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A fact in a memory: its id, its prompt, the mean (d_in,) of W's input over that, on the CPU, and its D."""

    fact: str
    prompt: Prompt
    query: Float[Tensor, "d_in"]
    distance: float


@dataclass(frozen=True, slots=True, eq=False)
class SideMemory:
    """A change of W.

    Attributes:
        delta: (d_out, d_in) on the CPU.
        members: its facts.
        shards: how many were merged into it.
    """

    delta: Float[Tensor, "d_out d_in"]
    members: tuple[Member, ...]
    shards: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class WiseState:
    """The memories.

    Attributes:
        stored: oldest first.
        current: the shard that is being filled.
        begun: the number of shards so far, this one included.
    """

    stored: tuple[SideMemory, ...] = ()
    current: SideMemory | None = None
    begun: int = 0

    @property
    def memories(self) -> tuple[SideMemory, ...]:
        """The current one first."""
        return (*([] if self.current is None else [self.current]), *self.stored)

    def without(self, prompts: frozenset[tuple[int, ...]]) -> WiseState:
        """Without the facts of some prompts; what they wrote stays."""

        def left(memory: SideMemory) -> SideMemory:
            members = tuple(member for member in memory.members if member.prompt.ids not in prompts)
            return memory if len(members) == len(memory.members) else replace(memory, members=members)

        return replace(
            self,
            stored=tuple(left(memory) for memory in self.stored),
            current=None if self.current is None else left(self.current),
        )


@dataclass(frozen=True, slots=True)
class WiseRoute:
    """A row that uses a memory, and the fact in it whose prompt has the most similar inputs."""

    memory: int
    fact: str


Changes = Callable[[Tensor, Tensor], Tensor]
"""From W's inputs (rows, tokens, d_in), NaN where there is no token, and ΔW to the changes' lengths (rows, tokens)."""


def changes(x: Float[Tensor, "rows tokens d_in"], delta: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "rows tokens"]:
    """‖ΔW x‖ of each token, NaN where there is none."""
    return _where_tokens(x, (x.nan_to_num(0.0) @ delta.T).norm(dim=2))


def activated_changes(model: LanguageModel, layer: int) -> Changes:
    """As ``changes``, of φ((W + ΔW) x) − φ(W x) with the model's activation function φ."""
    config = model.model.config.get_text_config(decoder=True)
    names = (getattr(config, name, None) for name in ("hidden_activation", "hidden_act", "activation_function"))
    function, weight = ACT2FN[next(name for name in names if name is not None)], model.weight(layer).detach()
    bias = getattr(model.down_projection(layer), "bias", None)

    def found(x: Tensor, delta: Tensor) -> Tensor:
        filled = x.nan_to_num(0.0).to(delta.device)
        own = filled @ weight.to(delta).T + (0 if bias is None else bias.detach().to(delta))
        return _where_tokens(x, (function(own + filled @ delta.T) - function(own)).norm(dim=2))

    return found


def _where_tokens(x: Tensor, lengths: Tensor) -> Tensor:
    return lengths.masked_fill(x[..., 0].isnan().to(lengths.device), torch.nan)


def distances(lengths: Float[Tensor, "rows tokens"], largest: int | None) -> Float[Tensor, "rows"]:
    """D: the mean of the changes of a row's tokens, or of that many of them; 0 without tokens."""
    present = ~lengths.isnan()
    values, counts = lengths.masked_fill(~present, 0.0), present.sum(1)
    if largest is not None:
        values, counts = values.topk(min(largest, values.shape[1]), dim=1).values, counts.clamp_max(largest)
    return values.sum(1) / counts.clamp_min(1)


@dataclass(frozen=True)
class WiseRouter:
    """The memories at one module."""

    model: LanguageModel
    queries: Queries
    state: WiseState
    layer: int
    share: float
    changes: Changes
    largest: int | None

    @property
    def is_empty(self) -> bool:
        return not any(memory.members for memory in self.state.memories)

    def routes(self, queries: Float[Tensor, "rows tokens d_in"]) -> list[WiseRoute | None]:
        found: list[WiseRoute | None] = [None] * len(queries)
        best = [0.0] * len(queries)
        means = queries.nanmean(1)
        for place, memory in enumerate(self.state.memories):
            if not memory.members:
                continue
            members = torch.stack([member.query for member in memory.members])
            nearest = torch.cdist(means.double(), members.double()).argmin(1).tolist()
            # In another batch a prompt is rounded differently.
            share = self.share * (1 - 1e3 * torch.finfo(memory.delta.dtype).eps)
            lengths = self.changes(queries.to(memory.delta.dtype), memory.delta)
            for row, distance in enumerate(distances(lengths, self.largest).tolist()):
                member = memory.members[nearest[row]]
                if distance >= share * member.distance and distance > best[row]:
                    best[row] = distance
                    found[row] = WiseRoute(place, member.fact)
        return found

    def facts_of(self, route: WiseRoute) -> tuple[str, ...]:
        return (route.fact,)

    def acting(
        self, routes: Callable[[], Sequence[WiseRoute | None]], rows: RowPass, prompts: Sequence[Prompt]
    ) -> AbstractContextManager[None]:
        def change(x: Tensor, output: Tensor) -> Tensor:
            used: dict[int, list[int]] = {}
            for row, route in enumerate(routes()):
                if route is not None:
                    used.setdefault(route.memory, []).append(row)
            for memory, own in used.items():
                delta = self.state.memories[memory].delta.to(x.device)
                places = torch.tensor(own, device=x.device)
                output = output.index_add(0, places, (x[places].to(delta.dtype) @ delta.T).to(output.dtype))
            return output

        return outputs_changed([self.model.down_projection(self.layer)], [change], len(prompts))


@dataclass(frozen=True, slots=True, eq=False)
class Earlier:
    """W's inputs (facts, tokens, d_in) in the prompts of earlier facts, NaN where there is no token.

    Attributes:
        stored: of each stored memory.
        current: of the shard that is being filled; None at its beginning.
        generator: draws from it.
    """

    stored: tuple[Float[Tensor, "_ _ d_in"], ...]
    current: Float[Tensor, "_ _ d_in"] | None
    generator: torch.Generator


def shard_of(shape: Sequence[int], share: float, number: int, seed: int) -> Bool[Tensor, "d_out d_in"]:
    """The entries of one shard. Of ⌊1/share⌋ shards after one another, no two have an entry in common."""
    together = int(1 / share)
    order = torch.rand(*shape, generator=generator_of(seed, f"shards {number // together}"))
    place = number % together
    return (order >= place * share) & (order < (place + 1) * share)


class Wise(PromptEditor[WiseState, WiseSettings]):
    """WISE as a ``KnowledgeEditor``. All facts of a shard share its entries: only the last edit can be removed."""

    method: ClassVar[str] = "wise"
    undo: ClassVar[Undo] = "last"

    @property
    def layer(self) -> int:
        return late_layer(self.model, self.settings.layer, _LAYER_SHARE)

    @property
    def kind(self) -> ReadKind:
        return "prompt_tokens"

    @property
    def empty(self) -> WiseState:
        return WiseState()

    def router(self, state: WiseState) -> WiseRouter:
        settings = self.settings
        return WiseRouter(self.model, self.queries, state, self.layer, settings.share, self.changes, settings.largest)

    def learned(self, state: WiseState, facts: Sequence[Fact]) -> WiseState:
        settings, shape = self.settings, self.model.weight(self.layer).shape
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        rows = TrainingRows.of(self.model, facts, from_boundary=False)
        state = state.without(frozenset(prompt.ids for prompt in rows.prompts))
        begun = state.begun if state.current else state.begun + 1
        current = state.current or SideMemory(torch.zeros(shape, dtype=dtype), ())
        mask = shard_of(shape, settings.mask, begun - 1, settings.seed)
        delta = self._trained(facts, current.delta, mask, self._earlier(state.stored, current, begun))
        means = self.read_alone(rows.prompts).nanmean(1)
        new = [Member(fact.id, *of, 0.0) for fact, of in zip(facts, zip(rows.prompts, means, strict=True), strict=True)]
        current = self._memory(delta, (*current.members, *new))
        if len(current.members) < settings.save_every:
            return WiseState(state.stored, current, begun)
        stored = (*state.stored, current)
        together = [memory for memory in stored if memory.shards == 1 or not settings.retrieve]
        members = [member for memory in together for member in memory.members]
        if len(together) > 1 and (len(members) >= settings.merge_every or not settings.retrieve):
            merged = self._memory(ties([memory.delta for memory in together], settings.density), members)
            merged = replace(merged, shards=sum(memory.shards for memory in together))
            stored = (*(memory for memory in stored if memory not in together), merged)
        return WiseState(stored, None, begun)

    def stored(self, before: WiseState, after: WiseState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        earlier = {id(memory): place for place, memory in enumerate(before.memories)}
        state: dict[str, Any] = {"begun": after.begun, "current": after.current is not None, "memories": []}
        tensors: dict[str, Tensor] = {}
        for place, memory in enumerate(after.memories):
            if id(memory) in earlier:
                state["memories"].append(earlier[id(memory)])
                continue
            state["memories"].append(_record(memory))
            entries = memory.delta.flatten().nonzero()[:, 0]
            tensors[f"{place}.entries"] = entries
            tensors[f"{place}.values"] = memory.delta.flatten()[entries]
            tensors[f"{place}.queries"] = _queries(memory)
        return state, tensors

    def restored(self, before: WiseState, edit: StoredEdit) -> WiseState:
        tensors, shape, memories = edit.tensors, self.model.weight(self.layer).shape, []
        for place, record in enumerate(edit.state["memories"]):
            if isinstance(record, int):
                memories.append(before.memories[record])
                continue
            values = tensors[f"{place}.values"]
            delta = torch.zeros(shape, dtype=values.dtype)
            delta.view(-1)[tensors[f"{place}.entries"]] = values
            members = [
                Member(fact, Prompt(tuple(ids), start, stop), query, distance)
                for (fact, ids, start, stop, distance), query in zip(
                    record["members"], tensors[f"{place}.queries"], strict=True
                )
            ]
            memories.append(SideMemory(delta, tuple(members), record["shards"]))
        current = memories.pop(0) if edit.state["current"] else None
        return WiseState(tuple(memories), current, edit.state["begun"])

    def parts(self, state: WiseState) -> tuple[Any, Mapping[str, Tensor]]:
        record = [state.begun, state.current is not None, [_record(memory) for memory in state.memories]]
        tensors: dict[str, Tensor] = {}
        for place, memory in enumerate(state.memories):
            tensors |= {f"{place}.delta": memory.delta, f"{place}.queries": _queries(memory)}
        return record, tensors

    @property
    def changes(self) -> Changes:
        return changes if self.settings.activation == "identity" else activated_changes(self.model, self.layer)

    def distances(
        self, x: Float[Tensor, "rows tokens d_in"], delta: Float[Tensor, "d_out d_in"]
    ) -> Float[Tensor, "rows"]:
        """D of rows by W's inputs in their prompts, NaN where there is no token."""
        return distances(self.changes(x, delta), self.settings.largest)

    def _memory(self, delta: Float[Tensor, "d_out d_in"], members: Sequence[Member]) -> SideMemory:
        """With the distances of all facts as they are now: later ones have changed ΔW."""
        own = self.distances(self.read_alone([member.prompt for member in members]), delta).tolist()
        return SideMemory(delta, tuple(replace(member, distance=d) for member, d in zip(members, own, strict=True)))

    def outside_prompts(self, facts: Sequence[Fact]) -> list[Prompt]:
        """Outside prompts, fact by fact: beginnings of documents, drawn by the seed and the fact."""
        texts = [
            " ".join(text.split()[:_OUTSIDE_WORDS])
            for text in islice(open_corpus(self.settings.corpus).documents(), _OUTSIDE)
        ]
        if not texts:
            what = f"the corpus {self.settings.corpus!r} has no text for outside prompts"
            raise InputError(what, remedy="Give a text file", code="CORPUS_TOO_SHORT")
        drawn = [
            torch.randint(
                len(texts), (self.settings.outside_prompts,), generator=generator_of(self.settings.seed, fact.id)
            )
            for fact in facts
        ]
        chosen = [texts[place] for place in torch.cat(drawn).tolist()]
        return prompts_of(self.model.tokenizer, chosen, encode(self.model.tokenizer, chosen))

    def _prefixes(self) -> tuple[str, ...]:
        openers = ContextSettings().openers[: self.settings.prefixes]
        if not openers:
            return ("",)
        settings = ContextSettings(openers=openers, seed=self.settings.seed)
        return ("", *generate_prefixes(self.model, settings))

    def activation_loss(
        self,
        x: Float[Tensor, "rows tokens d_in"],
        inside: Bool[Tensor, "rows tokens"],
        outside: Float[Tensor, "prompts length d_in"],
        facts: int,
        delta: Float[Tensor, "d_out d_in"],
        scale: float,
    ) -> Float[Tensor, "facts"]:
        """[β − D_in]₊ + [D_out − D_in + γ]₊ + [D_out − α]₊ of each fact. D_in is the mean over its rows, of the tokens
        inside. The other two are means over its outside prompts, plus means over the other tokens of its rows if these
        are outside as well.

        Args:
            x, outside: W's inputs in the prompts of the facts' rows, and in their outside prompts, fact by fact.
            facts: their number; each has as many rows, and as many outside prompts.
            scale: the unit of distances.
        """
        settings, largest = self.settings, self.settings.largest
        lengths = self.changes(x, delta) / scale
        own = distances(lengths.masked_fill(~inside, torch.nan), largest).view(facts, -1).mean(1, keepdim=True)
        others = [self.distances(outside, delta) / scale]
        if settings.subject:
            others.append(distances(lengths.masked_fill(inside, torch.nan), largest))
        loss = (settings.inside - own).relu()[:, 0]
        for other in (each.view(facts, -1) for each in others):
            loss = loss + ((other - own + settings.margin).relu() + (other - settings.outside).relu()).mean(1)
        return loss

    def _earlier(self, stored: Sequence[SideMemory], current: SideMemory, begun: int) -> Earlier | None:
        """What is replayed; None for nothing."""
        settings = self.settings
        groups = [memory.members for memory in stored if memory.members]
        if not (settings.replay and settings.retrieve) or not (groups or current.members):
            return None
        *read, own = (
            self.read_alone([member.prompt for member in members]) if members else None
            for members in (*groups, current.members)
        )
        name = f"replay {begun} {len(current.members)}"
        return Earlier(tuple(x for x in read if x is not None), own, generator_of(settings.seed, name))

    def replay_loss(
        self, earlier: Earlier, step: int, facts: int, delta: Float[Tensor, "d_out d_in"], scale: float
    ) -> Float[Tensor, "facts"]:
        """For each fact of a batch, [D − α]₊ of one fact of each stored memory, all of them in turn, mean over the
        memories; plus [β − D]₊ of an earlier fact of the current shard at random.

        Args:
            step: from 1 on.
            scale: the unit of distances.
        """
        settings, loss = self.settings, delta.new_zeros(facts)
        most, least = settings.replay_outside or settings.outside, settings.replay_inside or settings.inside
        for x in earlier.stored:
            turn = (torch.arange(facts) + (step - 1) * facts) % len(x)
            found = self.distances(x[turn].to(delta.device), delta) / scale
            loss = loss + (found - most).relu() / len(earlier.stored)
        if earlier.current is not None:
            drawn = torch.randint(len(earlier.current), (facts,), generator=earlier.generator)
            loss = loss + (least - self.distances(earlier.current[drawn].to(delta.device), delta) / scale).relu()
        return loss

    def units(self) -> tuple[float, float]:
        """Of ΔW, so that entries of that size, at random in a shard, change outputs by about their own length; and of
        distances, the median length of outputs.
        """
        if not self.settings.relative:
            return 1.0, 1.0
        prompts = [prompt.ids for prompt in unrelated_prompts(self.model)]
        outputs = self.model.capture_last(prompts, {Site.MLP: [self.layer]})[Site.MLP, self.layer]
        (ratio,) = output_ratios(self.model, [self.layer]).tolist()
        width = self.model.weight(self.layer).shape[1]
        return ratio / math.sqrt(self.settings.mask * width), float(outputs.float().norm(dim=1).median())

    def _trained(
        self,
        facts: Sequence[Fact],
        delta: Float[Tensor, "d_out d_in"],
        mask: Bool[Tensor, "d_out d_in"],
        earlier: Earlier | None,
    ) -> Float[Tensor, "d_out d_in"]:
        """Gradient descent of all facts at once on a shard's entries. Without weight decay, so that nothing fades."""
        settings, device = self.settings, self.model.device
        texts = [(fact, prefix) for fact in facts for prefix in self._prefixes()]
        rows = TrainingRows.of_pairs(
            self.model, [fact for fact, _ in texts], [target_in(prefix, fact) for fact, prefix in texts],
            from_boundary=False,
        )  # fmt: skip
        x = self.read_alone(rows.prompts).to(device)
        inside = self._inside(texts, rows.prompts, x.shape[1]).to(device)
        outside = self.read_alone(self.outside_prompts(facts)).to(device)
        unit, scale = self.units()
        tail = Tail(self.model, rows.rows, self.layer)
        mask = mask.to(device)
        present = (delta / unit).to(device).requires_grad_(True)
        optimiser = _OPTIMISERS[settings.optimiser]([present], settings.learning_rate)
        for step in range(1, settings.steps + 1):
            change = unit * present
            losses = rows.losses(tail.logits(self._adding(change)), range(len(rows.rows))).view(len(facts), -1).mean(1)
            check_finite("loss of a fact", losses, facts, self.layer)
            gates = self.activation_loss(x, inside, outside, len(facts), change, scale)
            if earlier is not None:
                gates = gates + self.replay_loss(earlier, step, len(facts), change, scale)
            self.report("side memory", step, settings.steps)
            if bool((losses <= settings.stop_loss).all()) and bool((gates <= settings.stop_loss).all()):
                break
            (gradient,) = torch.autograd.grad((losses + gates).sum(), present)
            present.grad = torch.where(mask, gradient, 0)
            optimiser.step()
            if settings.cap is not None:
                with torch.no_grad():
                    present.clamp_(-settings.cap / unit, settings.cap / unit)
        return unit * present.detach().cpu()

    def _inside(
        self, texts: Sequence[tuple[Fact, str]], prompts: Sequence[Prompt], length: int
    ) -> Bool[Tensor, "rows length"]:
        """The tokens of a prompt's own text that are the fact's subject, or all of them."""
        inside = torch.ones(len(texts), length, dtype=torch.bool)
        if not self.settings.subject:
            return inside
        placed = [in_context(prefix, fact.text) for fact, prefix in texts]
        encoded = encode(self.model.tokenizer, [text for text, _ in placed])
        for row, ((fact, _), (_, before), found, prompt) in enumerate(
            zip(texts, placed, encoded, prompts, strict=True)
        ):
            first, last = fact.subject_span
            own = found.tokens_of(before + first, before + last)
            inside[row] = False
            inside[row, max(own.start - prompt.start, 0) : own.stop - prompt.start] = True
        return inside

    def _adding(self, change: Tensor) -> RowHooks:
        def hooks(passed: RowPass) -> AbstractContextManager[None]:
            def add(x: Tensor, output: Tensor) -> Tensor:
                return output + (x.to(change.dtype) @ change.T).to(output.dtype)

            return outputs_changed([self.model.down_projection(self.layer)], [add], len(passed.rows))

        return hooks


def _record(memory: SideMemory) -> dict[str, Any]:
    members = [[m.fact, list(m.prompt.ids), m.prompt.start, m.prompt.stop, m.distance] for m in memory.members]
    return {"members": members, "shards": memory.shards}


def _queries(memory: SideMemory) -> Tensor:
    found = [member.query for member in memory.members]
    return torch.stack(found) if found else memory.delta.new_zeros(0, memory.delta.shape[1])
