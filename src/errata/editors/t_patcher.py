"""T-Patcher: for every wrongly predicted token of a fact, one more neuron in an MLP, which fires in that context only.

Huang et al. 2023, ICLR, arXiv:2301.09785. The MLP of one block (by default the last) becomes
y + Σ_j v_j · relu(k_j · x + β_j), with x its input. A neuron decides at each token by itself, so no query of the prompt
is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor

from errata.editing.target_search import adam_step
from errata.editors.edit_file import StoredEdit
from errata.editors.hook_editor import HookEditor, TrainingRows, check_finite, generator_of, late_layer
from errata.editors.routed import Hooked, by_row, outputs_changed
from errata.editors.table import EditorSettings
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import TOKEN_BUDGET, LanguageModel, Site
from errata.models.prompts import Encoded, encode, length_batches, pad
from errata.models.row_hooks import RowHooks, RowPass
from errata.models.tail import Tail
from errata.statistics.corpus import open_corpus
from errata.utils.settings import NotNegative, Positive

_MARGIN: Final = 3.0  # γ: pre-activations on other text should be this far below 0, and below the neuron's own
_LARGEST: Final = 1000  # of them, so many count
_TEXT_TOKENS: Final = 64  # of a document of other text


class TPatcherSettings(EditorSettings):
    """T-Patcher's settings.

    Published, for BART and BERT: 40,000 states, keys that are not centred, v random times 10, absolute rates of 0.01,
    decay 0.01, up to 2,000 steps.
    """

    layer: StrictInt | None = Field(None, ge=0, description="the block; the last one by default")
    most: StrictInt = Field(5, ge=1, description="neurons for a fact at most, for its first wrong tokens")
    corpus: str = Field(
        "builtin", description="the other text, on which no neuron should fire: 'builtin', 'lab' or a path"
    )
    tokens: StrictInt = Field(4096, ge=2, description="of that text")
    centred: StrictBool = Field(True, description="keys start at x less the mean of other text, instead of at x")
    start: NotNegative = Field(0.1, description="v's random start, in units of the MLP's own output")
    activation: NotNegative = Field(1.0, description="c_a, weight of the loss for firing in the neuron's own context")
    memory: NotNegative = Field(10.0, description="c_m, weight of the loss for firing on other text")
    key_rate: Positive = Field(0.1, description="Adam's step of k and β, in units of the key's length")
    value_rate: Positive = Field(0.3, description="Adam's step of v, in units of the MLP's own output")
    clip: Positive = Field(5.0, description="the largest norm of a fact's gradient, in the same units")
    steps: StrictInt = Field(500, ge=1, description="the most updates")
    stop_loss: NotNegative = Field(0.1, description="a fact is done when its −log P per token is at most this …")
    stop_memory: Positive = Field(
        1.0, description="… and mean exp(a + 3) over the 1000 largest pre-activations on other text is below this"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """Some neurons beside an MLP with inputs x (d,) and outputs y (d_out,), on one device.

    Attributes:
        keys: k (n, d).
        biases: β (n,).
        values: v (n, d_out).
    """

    keys: Float[Tensor, "n d"]
    biases: Float[Tensor, "n"]
    values: Float[Tensor, "n d_out"]

    def __len__(self) -> int:
        return len(self.biases)

    def before_relu(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b n"]:
        """k · x + β."""
        return x.to(self.keys.dtype) @ self.keys.T + self.biases

    def added(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d_out"]:
        """Σ_j v_j · relu(k_j · x + β_j): 0 where none fires."""
        return self.before_relu(x).relu() @ self.values

    def to(self, device: torch.device) -> Neurons:
        return Neurons(self.keys.to(device), self.biases.to(device), self.values.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Patched:
    """A fact with its neurons, on the CPU; none if the model predicted all of its tokens.

    Attributes:
        fact: its id.
        prompt: the tokens of its prompt: a later fact with the same ones replaces this one.
    """

    fact: str
    prompt: tuple[int, ...]
    neurons: Neurons


@dataclass(frozen=True)
class PatcherState:
    """The facts that are in. They do not depend on each other."""

    facts: tuple[Patched, ...] = ()

    def extended(self, facts: Sequence[Patched]) -> PatcherState:
        """With more facts, which replace those with their prompts."""
        fresh = {fact.prompt for fact in facts}
        return PatcherState((*(fact for fact in self.facts if fact.prompt not in fresh), *facts))

    @cached_property
    def neurons(self) -> Neurons:
        """All of them; there must be a fact."""
        parts = [fact.neurons for fact in self.facts]
        return Neurons(
            torch.cat([part.keys for part in parts]),
            torch.cat([part.biases for part in parts]),
            torch.cat([part.values for part in parts]),
        )

    @cached_property
    def owners(self) -> Int[Tensor, "n"]:
        """For each neuron the place of its fact."""
        counts = torch.tensor([len(fact.neurons) for fact in self.facts])
        return torch.arange(len(self.facts)).repeat_interleave(counts)


@contextmanager
def branching(
    model: LanguageModel, layer: int, branch: Callable[[Float[Tensor, "rows length d"]], Tensor], rows: int
) -> Iterator[None]:
    """While the context is open, an MLP's output (before a norm after it) gets a function of its input added."""
    inputs: list[Tensor] = []

    def read(module: object, args: tuple[Any, ...]) -> None:
        inputs[:] = [by_row(args[0], rows)]

    handle = model.mlp_reader(layer).register_forward_pre_hook(read)
    try:
        with outputs_changed(
            [model.down_projection(layer)], [lambda _, output: output + branch(inputs.pop()).to(output.dtype)], rows
        ):
            yield
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class PatchedView(Hooked):
    """A model with more neurons, each of which acts at every token where it fires, in prompts and answers."""

    state: PatcherState
    layer: int

    @property
    def is_empty(self) -> bool:
        return not any(len(fact.neurons) for fact in self.state.facts)

    def hooks(self, texts: Sequence[str], encoded: Sequence[Encoded]) -> RowHooks:
        neurons = self.state.neurons.to(self.model.device)

        def of_pass(rows: RowPass) -> AbstractContextManager[None]:
            return branching(self.model, self.layer, neurons.added, len(rows.rows))

        return of_pass

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """The facts whose neurons fire at some token of a prompt, not those whose neurons fire in the answer only."""
        if self.is_empty:
            return [()] * len(prompts)
        neurons = self.state.neurons
        found = []
        for states in mlp_inputs(self.model, [row.ids for row in encode(self.tokenizer, prompts)], self.layer):
            fires = (neurons.before_relu(states) > 0).any(0)
            owners = sorted(set(self.state.owners[fires].tolist()))
            found.append(tuple(self.state.facts[owner].fact for owner in owners))
        return found


def mlp_inputs(model: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> list[Float[Tensor, "length d"]]:
    """The inputs of a block's MLP at all tokens of each row, on the CPU, float32 or wider."""
    found = [torch.empty(0)] * len(rows)
    for indices in length_batches([len(row) for row in rows], token_budget=TOKEN_BUDGET):
        batch = pad([rows[index] for index in indices], left=False, device=model.device)
        with model.capture({Site.MLP_INPUT: [layer]}) as read, torch.no_grad():
            model.run_captured(batch.inputs())
        states = read[Site.MLP_INPUT, layer]
        states = states.to(torch.promote_types(states.dtype, torch.float32)).cpu()
        for place, index in enumerate(indices):
            found[index] = states[place, : len(rows[index])].clone()
    return found


@dataclass(frozen=True, slots=True)
class Wrong:
    """A wrongly predicted token: its fact's place, and the position that predicts it."""

    fact: int
    position: int


# In units: u = k · length, b = β + k · centre, w = v / scale, for each neuron, (n, d), (n,) and (n, d_out).
_Parameters: TypeAlias = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """Where new neurons should fire and where not, and the units of their parameters.

    Attributes:
        owners: (n,) the place of each neuron's fact.
        own: (n, d) x of the token where it should fire.
        centre: (d,) the mean of ``memory``, or 0.
        scales: (n, 1) the root mean square of the MLP's output at that token.
        memory: (m, d) the states of other text, then those of all tokens of the facts.
        counted: (n, m) whether a neuron should not fire there: all but the state of the same tokens.
    """

    owners: Int[Tensor, "n"]
    own: Float[Tensor, "n d"]
    centre: Float[Tensor, "d"]
    scales: Float[Tensor, "n 1"]
    memory: Float[Tensor, "m d"]
    counted: Bool[Tensor, "n m"]

    @property
    def lengths(self) -> Float[Tensor, "n 1"]:
        return (self.own - self.centre).norm(dim=1, keepdim=True)

    def start(self, values: Float[Tensor, "n d_out"]) -> _Parameters:
        """k = z / ‖z‖² with z = x − centre, so that the neuron's own pre-activation is 1; and v in units."""
        return (self.own - self.centre) / self.lengths, torch.zeros_like(self.scales[:, 0]), values

    def neurons(self, u: Tensor, b: Tensor, w: Tensor) -> Neurons:
        keys = u / self.lengths
        return Neurons(keys, b - keys @ self.centre, self.scales * w)

    def gate_losses(self, neurons: Neurons) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
        """exp(−a) at the own token; T · (1 + exp(−a)); and T, the mean of exp(a + 3) over the 1000 largest a of memory.

        In the paper T and T · exp(−a) are two terms, and all neurons of a fact share the 1000.
        """
        own = ((self.own * neurons.keys).sum(1) + neurons.biases).neg().exp()
        elsewhere = neurons.before_relu(self.memory).T.masked_fill(~self.counted, -torch.inf)
        largest = elsewhere.topk(min(_LARGEST, elsewhere.shape[1]), dim=1).values
        excess = (largest + _MARGIN).exp().mean(1)
        return own, excess * (1 + own), excess

    def clipped(self, gradients: Sequence[Tensor], most: float) -> list[Tensor]:
        """The gradients of each fact scaled to a norm of at most ``most``."""
        squares = torch.stack([gradient.reshape(len(self.owners), -1).square().sum(1) for gradient in gradients]).sum(0)
        facts = squares.new_zeros(int(self.owners.max()) + 1).index_add(0, self.owners, squares)
        shrunk = (most / facts.sqrt().clamp_min(1e-30)).clamp_max(1.0)[self.owners]
        return [gradient * shrunk.reshape(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]


class TPatcher(HookEditor[PatcherState, TPatcherSettings]):
    """T-Patcher as a ``KnowledgeEditor``."""

    method: ClassVar[str] = "t_patcher"

    @property
    def layer(self) -> int:
        return late_layer(self.model, self.settings.layer, 1.0)

    @property
    def empty(self) -> PatcherState:
        return PatcherState()

    def view(self) -> PatchedView:
        return PatchedView(self.model, self.state, self.layer)

    def learned(self, state: PatcherState, facts: Sequence[Fact]) -> PatcherState:
        # In the last block a neuron changes nothing at later tokens, so those before the boundary need not be run.
        rows = TrainingRows.of(self.model, facts, from_boundary=self.layer == len(self.model.blocks) - 1)
        wrong = self._wrong(rows)
        neurons = self._trained(facts, rows, wrong) if wrong else self._none()
        own: list[list[int]] = [[] for _ in facts]
        for number, place in enumerate(wrong):
            own[place.fact].append(number)
        return state.extended(
            [
                Patched(fact.id, prompt.ids, Neurons(neurons.keys[of], neurons.biases[of], neurons.values[of]))
                for fact, prompt, of in zip(facts, rows.prompts, own, strict=True)
            ]
        )

    def stored(self, before: PatcherState, after: PatcherState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        earlier = {id(fact) for fact in before.facts}
        new = PatcherState(tuple(fact for fact in after.facts if id(fact) not in earlier))
        return self._record(new), _tensors(new)

    def restored(self, before: PatcherState, edit: StoredEdit) -> PatcherState:
        state, tensors = edit.state, edit.tensors
        parts = zip(*(tensors[name].split(state["neurons"]) for name in ("keys", "biases", "values")), strict=True)
        return before.extended(
            [
                Patched(fact, tuple(prompt), Neurons(*part))
                for fact, prompt, part in zip(state["facts"], state["prompts"], parts, strict=True)
            ]
        )

    def parts(self, state: PatcherState) -> tuple[Any, Mapping[str, Tensor]]:
        return self._record(state), _tensors(state)

    def _none(self) -> Neurons:
        (states,) = mlp_inputs(self.model, [(0,)], self.layer)
        d_out = self.model.weight(self.layer).shape[0]
        return Neurons(states[:0], states.new_zeros(0), states.new_zeros(0, d_out))

    def _record(self, state: PatcherState) -> dict[str, Any]:
        return {
            "facts": [fact.fact for fact in state.facts],
            "prompts": [list(fact.prompt) for fact in state.facts],
            "neurons": [len(fact.neurons) for fact in state.facts],
        }

    def _wrong(self, rows: TrainingRows) -> list[Wrong]:
        """The first tokens of each target that the unedited model does not predict, teacher-forced."""
        tail = Tail(self.model, rows.rows, self.layer)
        with torch.no_grad():
            likeliest = tail.logits(None).argmax(1).tolist()
        found: list[Wrong] = []
        predicted = iter(likeliest)
        for fact, (row, target) in enumerate(zip(rows.rows, rows.targets, strict=True)):
            places = [place for place, token in zip(row.wanted, target, strict=True) if next(predicted) != token]
            found += [Wrong(fact, place) for place in places[: self.settings.most]]
        return found

    def _text(self) -> list[tuple[int, ...]]:
        """The beginnings of documents, first tokens included: neurons see those as well."""
        settings, count = self.settings, 0
        rows: list[tuple[int, ...]] = []
        for text in open_corpus(settings.corpus).documents():
            if count >= settings.tokens:
                break
            (row,) = encode(self.model.tokenizer, [text])
            rows += [row.ids[: min(_TEXT_TOKENS, settings.tokens - count)]] if row.ids else []
            count += len(rows[-1]) if row.ids else 0
        if not rows:
            what = f"the corpus {settings.corpus!r} has no text on which neurons should not fire"
            raise InputError(what, remedy="Give a text file", code="CORPUS_TOO_SHORT")
        return rows

    def contexts(self, rows: TrainingRows, wrong: Sequence[Wrong]) -> Contexts:
        """Where the neurons of some wrong tokens should fire and where not."""
        model, layer = self.model, self.layer
        ids = [row.ids for row in rows.rows]
        text, states = (torch.cat(mlp_inputs(model, part, layer)) for part in (self._text(), ids))
        places = [(fact, position) for fact, row in enumerate(ids) for position in range(len(row))]
        number = {place: index for index, place in enumerate(places)}
        own = [number[place.fact, place.position] for place in wrong]
        seen = [ids[fact][: position + 1] for fact, position in places]
        others = torch.tensor([[seen[index] != prefix for prefix in seen] for index in own])
        outputs = model.capture_last([seen[index] for index in own], {Site.MLP: [layer]})[Site.MLP, layer]
        device = model.device
        return Contexts(
            torch.tensor([place.fact for place in wrong], device=device),
            states[own].to(device),
            (text.mean(0) if self.settings.centred else torch.zeros_like(text[0])).to(device),
            outputs.to(states).to(device).square().mean(1, keepdim=True).sqrt(),
            torch.cat([text, states]).to(device),
            torch.cat([torch.ones(len(own), len(text), dtype=torch.bool), others], dim=1).to(device),
        )

    def started(self, facts: Sequence[Fact], contexts: Contexts) -> _Parameters:
        """The parameters before training; v is random, from a generator of the seed and the fact."""
        d_out = self.model.weight(self.layer).shape[0]
        generators = {owner: generator_of(self.settings.seed, facts[owner].id) for owner in contexts.owners.tolist()}
        values = [torch.randn(d_out, generator=generators[owner]) for owner in contexts.owners.tolist()]
        return contexts.start(self.settings.start * torch.stack(values).to(contexts.own))

    def _trained(self, facts: Sequence[Fact], rows: TrainingRows, wrong: Sequence[Wrong]) -> Neurons:
        """Train the neurons of all facts at once: in training, each row has those of its fact only."""
        settings = self.settings
        contexts = self.contexts(rows, wrong)
        owners = contexts.owners
        parameters: Sequence[Tensor] = self.started(facts, contexts)
        # A step of 1 in u is one of the entries of a unit vector.
        key_rate = settings.key_rate * torch.tensor(contexts.own.shape[1] ** -0.5)
        rates = (key_rate, torch.tensor(settings.key_rate), torch.tensor(settings.value_rate))
        moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in parameters]
        left = sorted(set(owners.tolist()))
        tail = Tail(self.model, rows.rows, self.layer).select(left)
        for step in range(1, settings.steps + 1):
            parameters = [value.detach().requires_grad_(True) for value in parameters]
            neurons = contexts.neurons(*parameters)
            losses = rows.losses(tail.logits(self._own_neurons(neurons, owners)), left)
            check_finite("loss of a fact", losses, [facts[index] for index in left], self.layer)
            own, memory, excess = contexts.gate_losses(neurons)
            self.report("neurons", step, settings.steps)
            wide = owners[excess >= settings.stop_memory].tolist()
            undone = [
                index
                for index, loss in zip(left, losses.tolist(), strict=True)
                if loss > settings.stop_loss or index in wide
            ]
            if not undone:
                break
            counts = owners.bincount()[owners]
            gate = ((settings.activation * own + settings.memory * memory) / counts).sum()
            gradients = contexts.clipped(torch.autograd.grad(losses.sum() + gate, parameters), settings.clip)
            moving = torch.isin(owners, torch.tensor(undone, device=owners.device))
            stepped: list[Tensor] = []
            for index, (value, gradient, rate) in enumerate(zip(parameters, gradients, rates, strict=True)):
                first, second, moved = adam_step(*moments[index], value.detach(), gradient, step, rate)
                moments[index] = (first, second)
                stepped.append(torch.where(moving.reshape(-1, *[1] * (value.dim() - 1)), moved, value.detach()))
            parameters = stepped
            if len(undone) < len(left):
                left, tail = undone, tail.select(undone)
        return contexts.neurons(*(value.detach() for value in parameters)).to(torch.device("cpu"))

    def _own_neurons(self, neurons: Neurons, owners: Int[Tensor, "n"]) -> RowHooks:
        def hooks(passed: RowPass) -> AbstractContextManager[None]:
            own = torch.tensor(passed.rows, device=owners.device)[:, None] == owners

            def branch(x: Tensor) -> Tensor:
                return (neurons.before_relu(x).relu() * own[:, None]) @ neurons.values

            return branching(self.model, self.layer, branch, len(passed.rows))

        return hooks


def _tensors(state: PatcherState) -> dict[str, Tensor]:
    if not state.facts:
        return {}
    neurons = state.neurons
    return {"keys": neurons.keys, "biases": neurons.biases, "values": neurons.values}
