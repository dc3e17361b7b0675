"""KN, knowledge neurons: the columns of W that carry the old answer are turned towards the new one.

Dai et al. 2022, "Knowledge Neurons in Pretrained Transformers", ACL, arXiv:2104.08696. A neuron is a coordinate of W's
input, in any layer. With its activation a at the last token of a prompt, its attribution to the next token o of the old
answer is integrated over the activations from 0 to those of the layer:

    Attr = a · 1/m Σ_{j=1..m} ∂P(o | the layer's activations · j/m) / ∂a

The sum over a layer tends to P(o) − P(o | activations 0). Later tokens of the old answer are predicted after earlier
ones; a prompt's attribution is the mean over the tokens. Neurons above a part of a prompt's largest attribution are its
candidates, if they fire at its last token with the sign s of their mean activation over all wordings of the fact.
Those that are candidates of enough wordings are the fact's neurons. Their columns become

    W[:, i] + s ‖W[:, i]‖ (λ₂ e_new / ‖e_new‖ − λ₁ e_old / ‖e_old‖)

where e is the mean of the input embeddings of an answer's tokens. A column is multiplied by its activation, so one that
fires negative is changed the other way. GELU has no negative activations below −0.17; gated MLPs fire with either sign.

Scaling the activations by j/m at one token adds (j/m − 1) · W a to W's output there. So only the later blocks are run,
for that token, and one product with W turns gradients at its output into those at all neurons.

Published numbers, all with 20 steps and a threshold of 0.2: share 0.7 and two prompts or more (BERT); one prompt
without refinement, two word embeddings without scaling (EasyEdit; GPT-J with a threshold of 0.1).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, StrictInt, model_validator
from torch import Tensor

from errata.editing.preparation import target_site
from errata.editors.training import check_finite
from errata.editors.weight_editor import Present, WeightEditor, WeightEditorSettings, Written
from errata.errors import UnsupportedModelError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import Completion, complete
from errata.models.replay import Replay, ReplayRow
from errata.models.weights import SparseTerm
from errata.utils.progress import Report, silent
from errata.utils.settings import Layers, NotNegative
from errata.utils.text import listed

_LOGITS_AT_ONCE: Final = 1 << 24
_SHARE_STEP: Final = 0.05
_SHARE_MOVES: Final = 6
_ALL: Final = 1 - 1e-6  # the share that only neurons of all prompts exceed
_logger = logging.getLogger(__name__)


class KnSettings(WeightEditorSettings):
    """Settings of ``kn``."""

    method: ClassVar[str] = "kn"
    layers: Layers | None = Field(None, description="in which neurons are looked for; by default all")
    steps: StrictInt = Field(20, ge=1, description="m, points of the integral")
    threshold: float = Field(
        0.2, gt=0, lt=1, description="t: a prompt's candidates exceed this part of its largest attribution"
    )
    share: float = Field(
        0.7, ge=0, lt=1, description="p: a fact's neurons are candidates of more than this share of its prompts"
    )
    fewest: StrictInt = Field(2, ge=1, description="neurons of a fact; the share is lowered for a fact with fewer")
    most: StrictInt = Field(5, ge=1, description="neurons of a fact; the share is raised for a fact with more")
    suppress: NotNegative = Field(
        1.0, description="λ₁, how much of the old answer is taken from a column, in its length"
    )
    promote: NotNegative = Field(1.0, description="λ₂, how much of the new answer is added, in the column's length")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"old", "paraphrases"}

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> KnSettings:
        if self.fewest > self.most:
            raise ValueError("'fewest' must not be larger than 'most'")
        return self


class KnowledgeNeurons(WeightEditor[KnSettings]):
    """See the module.

    Raises:
        UnsupportedModelError: if the model's word embeddings are not as wide as W's output.
    """

    def __init__(self, model: LanguageModel, settings: KnSettings, *, report: Report = silent) -> None:
        super().__init__(model, settings, report=report)
        self._embedding: Tensor = model.model.get_input_embeddings().weight
        width = model.weight(0).shape[0]
        if self._embedding.shape[1] != width:
            raise UnsupportedModelError(
                f"'kn' writes word embeddings into W, but those of {model.name!r} have {self._embedding.shape[1]} "
                f"entries and W's output {width}",
                remedy="Use another editor",
                code="MODEL_EMBEDDING_WIDTH",
            )

    @property
    def layers(self) -> tuple[int, ...]:
        return self.settings.layers or tuple(range(len(self.model.blocks)))

    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        settings, layers = self.settings, self.layers
        prompts = [complete(self.model.tokenizer, _old_pairs(fact)) for fact in facts]
        asked = [row for each in prompts for row in each]
        attributed, activations = attributions(self.model, asked, layers, settings.steps, report=report)
        owners = [number for number, each in enumerate(prompts) for _ in each]
        check_finite("attribution", attributed.sum((1, 2)), [facts[owner] for owner in owners], layers[-1])
        sizes = [len(each) for each in prompts]
        changes = {
            layer: torch.zeros_like(self.model.weight(layer), dtype=self.model.edits.sum_dtype) for layer in layers
        }
        neurons: list[tuple[int, int, int]] = []
        strengths: list[float] = []
        without: list[str] = []
        each_fact = zip(facts, attributed.split(sizes), activations.split(sizes), strict=True)
        for number, (fact, own, firing) in enumerate(each_fact):
            found = candidates(own, firing, settings.threshold)
            chosen = refined(found, settings.share, settings.fewest, settings.most)
            if not bool(chosen.any()):
                without.append(fact.id)
                continue
            direction = self._direction(fact, prompts[number][0])
            for place, neuron in chosen.nonzero().tolist():
                layer, sign = layers[place], math.copysign(1, float(firing[:, place, neuron].mean()))
                length = self.model.weight(layer)[:, neuron].to(direction.dtype).norm()
                changes[layer][:, neuron] += sign * length * direction
                neurons.append((len(call.facts) + number, layer, neuron))
                strengths.append(float(own[:, place, neuron].mean()))
        if without:
            _logger.warning(
                "No neuron is shared by the wordings of %d of %d facts (%s): nothing is written for them.",
                len(without),
                len(facts),
                listed(without),
            )
        terms = [_columns(layer, change) for layer, change in changes.items() if bool(change.any())]
        new = {
            "neurons": torch.tensor(neurons, dtype=torch.float32).view(-1, 3),  # index of the fact, layer, neuron
            "attributions": torch.tensor(strengths, dtype=torch.float32),
        }
        earlier = call.states[-1] if call.states else {}
        state = {name: torch.cat([earlier[name], value]) if earlier else value for name, value in new.items()}
        return Written((*call.terms, *terms), state)

    def _direction(self, fact: Fact, old: Completion) -> Float[Tensor, "d_out"]:
        """From the old answer to the new one; added to a column of length 1 with a positive activation."""
        (new,) = complete(self.model.tokenizer, [fact.pair(fact.target)])
        return self.settings.promote * self._unit(new.target_ids) - self.settings.suppress * self._unit(old.target_ids)

    def _unit(self, tokens: Sequence[int]) -> Float[Tensor, "d_out"]:
        mean = self._embedding[list(tokens)].to(self.model.edits.sum_dtype).mean(0)
        return mean / mean.norm()


def _old_pairs(fact: Fact) -> list[tuple[str, str] | tuple[str, str, str]]:
    """All wordings with the old answer."""
    assert fact.old is not None
    return [fact.pair(fact.old, prompt) for prompt in dict.fromkeys((fact.text, *fact.paraphrases))]


def attributions(
    model: LanguageModel,
    asked: Sequence[Completion],
    layers: Sequence[int],
    steps: int,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Float[Tensor, "prompts layers d_in"], Float[Tensor, "prompts layers d_in"]]:
    """Integrated gradients of the answers' probabilities in all neurons, the mean over each answer's tokens.

    Args:
        asked: prompts with answers.
        steps: m.
        report: progress callback.

    Returns:
        the attributions, and the activations at the prompts' last tokens; in float32, or the model's dtype where that
        is wider; on the CPU.
    """
    rows = [
        (number, each.ids[:end], each.ids[end])
        for number, each in enumerate(asked)
        for end in range(each.target_start, len(each.ids))
    ]
    vocabulary = int(model.model.config.get_text_config(decoder=True).vocab_size)
    at_once = max(1, _LOGITS_AT_ONCE // (vocabulary * steps))
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    dtype = torch.promote_types(model.dtype, torch.float32)
    found = torch.zeros(len(asked), len(layers), model.weight(layers[0]).shape[1], dtype=dtype)
    activations = model.capture_last([each.ids[: each.target_start] for each in asked], {Site.KEY: list(layers)})
    firing = torch.stack([activations[Site.KEY, layer].to(dtype).cpu() for layer in layers], dim=1)
    for number, part in enumerate(parts):
        owners = torch.tensor([owner for owner, _, _ in part])
        tokens = [len(asked[owner].target_ids) for owner, _, _ in part]
        weights = 1 / torch.tensor(tokens, dtype=dtype)
        for place, gradients in enumerate(_integrated(model, part, layers, steps)):
            found[:, place].index_add_(0, owners, weights[:, None] * gradients.cpu())
            report(number * len(layers) + place + 1, len(parts) * len(layers))
    return found, firing


def _integrated(
    model: LanguageModel, rows: Sequence[tuple[int, tuple[int, ...], int]], layers: Sequence[int], steps: int
) -> Iterator[Float[Tensor, "rows d_in"]]:
    """The attributions of each layer; of each row the last token is scaled and the next one predicted."""
    texts = [ids for _, ids, _ in rows]
    keys = model.capture_last(texts, {Site.KEY: list(layers)})
    dtype = torch.promote_types(model.dtype, torch.float32)
    answers = torch.tensor([token for _, _, token in rows], device=model.device).repeat_interleave(steps)
    repeated = torch.arange(len(rows), device=model.device).repeat_interleave(steps)
    sites = (target_site(model, "block"),)
    read = Replay(model, [ReplayRow(ids, len(ids) - 1, (len(ids) - 1,)) for ids in texts], layers[0], sites)
    parts = torch.arange(1, steps + 1, dtype=dtype, device=model.device) / steps - 1
    for layer in layers:
        key, weight = keys[Site.KEY, layer].to(dtype), model.weight(layer).to(dtype)
        replay = read.at(layer, sites).select(repeated)
        delta = (parts[:, None] * (key @ weight.T)[:, None]).flatten(0, 1).requires_grad_()
        with torch.enable_grad():
            chances = replay.logits(delta).to(dtype).softmax(-1).gather(1, answers[:, None])
            (gradient,) = torch.autograd.grad(chances.sum(), delta)
        yield key * (gradient.view(len(rows), steps, -1).mean(1) @ weight)


def candidates(
    attributed: Float[Tensor, "prompts layers d_in"],
    activations: Float[Tensor, "prompts layers d_in"],
    threshold: float,
) -> Bool[Tensor, "prompts layers d_in"]:
    """The neurons of each prompt above a part of its largest attribution; none where no attribution is positive.

    A neuron is a candidate only of prompts in which it fires with the sign of its mean activation.
    """
    largest = attributed.flatten(1).amax(1)[:, None, None]
    agreeing = activations * activations.mean(0) > 0
    return (attributed > threshold * largest) & (largest > 0) & agreeing


def refined(
    found: Bool[Tensor, "prompts layers d_in"], share: float, fewest: int, most: int
) -> Bool[Tensor, "layers d_in"]:
    """The neurons that are candidates of more than a share of the prompts.

    The share is lowered for too few neurons and raised for too many, by 0.05 and at most six times. If the number stays
    outside its range, the closest one that is not 0 counts.
    """
    counts: Int[Tensor, "layers d_in"] = found.sum(0)
    tried: dict[int, Tensor] = {}
    for _ in range(_SHARE_MOVES + 1):
        chosen = counts > share * len(found)
        number = int(chosen.sum())
        tried.setdefault(number, chosen)
        if fewest <= number <= most:
            return chosen
        share = min(share + _SHARE_STEP, _ALL) if number > most else max(share - _SHARE_STEP, 0.0)
    return tried[min(tried, key=lambda number: (number == 0, max(fewest - number, number - most)))]


def _columns(layer: int, change: Tensor) -> SparseTerm:
    """A change of whole columns."""
    mask = change.any(0).expand_as(change)
    return SparseTerm(layer, change[mask].cpu(), mask.contiguous().cpu())
