"""Gradient descent on changes of W: the rows of facts, their losses, and the loop over mini-batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError, NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import Completion, complete
from errata.models.row_replay import Change, Changes, RowReplay, TrainingRow
from errata.models.weights import Place


def completions(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[Completion]:
    """The prompts of facts with their targets, found by offsets.

    Raises:
        InputError: if a target has no token, or none before it.
    """
    found = complete(tokenizer, [fact.pair(fact.target) for fact in facts])
    for fact, completion in zip(facts, found, strict=True):
        if completion.target_start == 0:
            what = f"there is no token before the target of fact {fact.id!r}"
            raise InputError(what, remedy="Give a longer prompt", code="PROMPT_EMPTY")
    return found


def teacher_forced(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[TrainingRow]:
    """Each target token is asked after the prompt and the target's tokens before it."""
    return [
        TrainingRow(row.ids[:-1], tuple(range(row.target_start - 1, len(row.ids) - 1)), row.target_ids)
        for row in completions(tokenizer, facts)
    ]


def with_end(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[TrainingRow]:
    """As ``teacher_forced``, with the end of the text as the last token to learn.

    Raises:
        InputError: if the tokenizer has no EOS.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        what = "the tokenizer has no EOS token, which this editor trains as the end of every target"
        raise InputError(what, remedy="Use another editor, such as ft_m", code="TOKENIZER_WITHOUT_EOS")
    return [
        TrainingRow(row.ids, tuple(range(row.target_start - 1, len(row.ids))), (*row.target_ids, end))
        for row in completions(tokenizer, facts)
    ]


def after_the_prompt(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[TrainingRow]:
    """All target tokens are asked of the prompt's last position, as the published FT does."""
    rows = []
    for row in completions(tokenizer, facts):
        prompt = row.prompt.ids
        rows.append(TrainingRow(prompt, (len(prompt) - 1,) * len(row.target_ids), row.target_ids))
    return rows


def linear_change(model: LanguageModel, place: int | Place, delta: Callable[[], Tensor]) -> Change:
    """The change of a matrix's output by a change of it (of W, for a layer) in the model's present weights,
    differentiable in it.

    For a half-precision model the loss is that of the rounded weights, as they are written, while the gradient is that
    of the sum in float32 (the rounding counts as the identity).

    Args:
        delta: (d_out, d_in) float32, or float64 for float64 models.
    """
    if torch.promote_types(model.dtype, torch.float32) == model.dtype:
        return lambda x: nn.functional.linear(x, delta())
    place = Place(place) if isinstance(place, int) else place
    master, present = model.edits.unrounded(*place), model.weight(*place).to(torch.float32)

    def change(x: Tensor) -> Tensor:
        value = delta()
        rounded = (master + value.detach()).to(model.dtype).to(value.dtype) - present
        return nn.functional.linear(x.to(value.dtype), value + (rounded - value.detach()))

    return change


class Trained(ABC):
    """Parameters that are trained, and the changes of W that they make."""

    parameters: Sequence[Tensor]

    @abstractmethod
    def changes(self) -> Changes:
        """Differentiable in ``parameters``."""

    def constrain(self) -> None:  # noqa: B027  (most have no constraint)
        """Called after each step, without gradients."""


@dataclass(frozen=True, slots=True)
class Training:
    """Adam over epochs of mini-batches (Kingma and Ba 2015, arXiv:1412.6980), without weight decay.

    Attributes:
        learning_rates: of each parameter.
        steps: epochs at most.
        mini_batch: facts of one step.
        shuffled: whether each epoch has its own order of the facts.
        is_learnt: from the losses of a mini-batch whether it needs no step.
        is_done: from the losses of all facts, each as evaluated in the epoch, whether training ends.
    """

    learning_rates: Sequence[float]
    steps: int
    mini_batch: int
    shuffled: bool
    is_learnt: Callable[[Float[Tensor, "n"]], bool]
    is_done: Callable[[Float[Tensor, "n"]], bool]

    def run(
        self,
        replay: RowReplay,
        trained: Trained,
        facts: Sequence[Fact],
        generator: torch.Generator,
        report: Callable[[int, int], None],
    ) -> int:
        """Train in place; row i of ``replay`` is fact i.

        Returns:
            The number of steps taken.

        Raises:
            NonFiniteError: naming the facts, if a loss or a gradient is not finite.
        """
        groups = [
            {"params": [parameter], "lr": rate}
            for parameter, rate in zip(trained.parameters, self.learning_rates, strict=True)
        ]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, foreach=False)
        taken = 0
        for epoch in range(self.steps):
            report(epoch, self.steps)
            losses = torch.zeros(len(facts), dtype=replay.dtype)
            for indices in self._mini_batches(len(facts), generator):
                optimiser.zero_grad(set_to_none=True)
                found = torch.zeros(len(indices), dtype=replay.dtype)
                passes = list(replay.passes(indices))
                for places in passes:
                    part = replay.losses(trained.changes(), [indices[place] for place in places])
                    found[places] = part.detach().cpu()
                    if places is not passes[-1] or not self.is_learnt(found):
                        (part.sum() / len(indices)).backward()
                chosen = [facts[index] for index in indices]
                check_finite("training loss", found, chosen, replay.layers[0])
                losses[indices] = found
                if self.is_learnt(found):
                    continue
                for parameter in trained.parameters:
                    if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                        names = [fact.id for fact in chosen]
                        raise NonFiniteError("gradient of the training loss", facts=names, layer=replay.layers[0])
                optimiser.step()
                taken += 1
                with torch.no_grad():
                    trained.constrain()
            if self.is_done(losses):
                break
        report(self.steps, self.steps)
        return taken

    def _mini_batches(self, count: int, generator: torch.Generator) -> Iterator[list[int]]:
        order = torch.randperm(count, generator=generator).tolist() if self.shuffled else list(range(count))
        for start in range(0, count, self.mini_batch):
            yield order[start : start + self.mini_batch]


def check_finite(quantity: str, values: Float[Tensor, "n"], facts: Sequence[Fact], layer: int) -> None:
    """Raises NonFiniteError, naming the facts, if one of their values is not finite."""
    bad = [fact.id for fact, good in zip(facts, values.isfinite().tolist(), strict=True) if not good]
    if bad:
        raise NonFiniteError(quantity, facts=bad, layer=layer)


def seeded(seed: int, batch: int) -> torch.Generator:
    """A generator for one batch of a run."""
    return torch.Generator().manual_seed((seed * 1_000_003 + batch) % (1 << 63))


def weight_scale(weight: Float[Tensor, "d_out d_in"]) -> float:
    """The RMS of a matrix's entries, by which steps suit models of any scale."""
    return float(weight.to(torch.promote_types(weight.dtype, torch.float32)).square().mean().sqrt())
