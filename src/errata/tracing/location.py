"""The layers that store a model's facts: causal tracing over known facts, and a rule that selects layers from it.

Meng et al. (2022), "Locating and Editing Factual Associations in GPT", section 2, for the tracing; the rule is ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
import torch

from errata.errors import ErrataError, InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.results.records import interval_of, resampled_sums
from errata.tracing.causal_tracing import (
    Array,
    Component,
    KnownFacts,
    Position,
    Trace,
    choose_facts,
    trace,
    window_around,
)
from errata.utils.progress import Report, silent
from errata.utils.provenance import software_versions
from errata.utils.text import dtype_name

FORMAT = "errata-tracing-1"
ENOUGH_FACTS = 10  # with fewer, a mean over facts says little
SHARE = 0.5  # of the largest effect: the threshold for a critical layer
MOST_LAYERS = 6
RULE = (
    "the last critical layer is the last one whose block output, restored at the subject's last token, has at least "
    "half of the largest average indirect effect; the first is the first one whose MLP outputs, restored there over "
    "the window around it, have at least half of the largest of theirs, never after the last; of more than "
    f"{MOST_LAYERS} the last {MOST_LAYERS} are taken; the boundaries are the first and the last"
)
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Settings of causal tracing.

    Attributes:
        count: the most facts to trace.
        samples: noise samples per fact.
        window: blocks whose MLP, or attention, outputs are restored together.
        noise: in standard deviations of the embedding entries of the subjects' tokens.
        seed: random seed for the noise, the order of facts, and the bootstrap.
        positions: the restored tokens; the subject's last selects the layers.
    """

    count: int = 100
    samples: int = 10
    window: int = 2
    noise: float = 3.0
    seed: int = 0
    positions: tuple[Position, ...] = tuple(Position)

    def __post_init__(self) -> None:
        if Position.SUBJECT_LAST not in self.positions:
            raise ValueError("the subject's last token must be restored, since it selects the critical layers")


def default_window(layers: int) -> int:
    """About 20 % of the depth, and at least 2: 2 for 8 blocks, 10 for 48 as in the paper."""
    return min(layers, max(2, round(layers / 5)))


def check_window(window: int, layers: int) -> None:
    """Raises InputError if a window is larger than the model."""
    if not 1 <= window <= layers:
        raise InputError(
            f"a window of {window} blocks does not fit a model of {layers}",
            remedy=f"Give 1 to {layers} blocks",
            code="WINDOW_TOO_LARGE",
        )


class Estimate(TypedDict):
    """A mean over facts with its 95 % bootstrap interval; a single fact has no interval."""

    mean: float
    low: float | None
    high: float | None


class EffectEstimate(Estimate):
    """An average indirect effect: component, token position, layer, and (first, last) block of the window."""

    part: str
    position: str
    layer: int
    window: tuple[int, int]
    n: int


def estimates(values: Array, *, seed: int = 0) -> list[Estimate]:
    """(facts, quantities) -> each quantity's mean with its interval."""
    facts = len(values)
    resampled = resampled_sums(np.ascontiguousarray(values.T), seed=seed, resamples=_RESAMPLES) / facts
    intervals = [interval_of(column, facts) for column in resampled.T]
    return [
        Estimate(mean=float(mean), low=low, high=high)
        for mean, (low, high) in zip(values.mean(0), intervals, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Proposal:
    """The critical layers, ascending, by ``RULE``."""

    layers: tuple[int, ...]

    @property
    def boundaries(self) -> tuple[int, int]:
        return self.layers[0], self.layers[-1]


def propose_layers(block: Sequence[float], mlp: Sequence[float]) -> Proposal:
    """The critical layers by ``RULE``.

    Args:
        block: by layer, the average indirect effect of the block's output at the subject's last token.
        mlp: the same of the MLP outputs over a window around the layer.

    Raises:
        ErrataError: if one of the two has no positive effect, or a NaN.
    """
    for name, curve in (("block", block), ("MLP", mlp)):
        if not all(np.isfinite(curve)) or max(curve) <= 0:
            raise ErrataError(
                f"no layers can be proposed: restoring {name} outputs at the subject's last token restores nothing of "
                f"the answer (largest average indirect effect {max(curve):.3g})",
                remedy="Trace more facts, or other ones; or choose layers by a scan (--scan)",
                code="NO_LAYERS_FOUND",
            )
    last = max(layer for layer, effect in enumerate(block) if effect >= SHARE * max(block))
    first = min(layer for layer, effect in enumerate(mlp) if effect >= SHARE * max(mlp))
    return Proposal(tuple(range(min(first, last), last + 1))[-MOST_LAYERS:])


@dataclass(frozen=True, slots=True)
class Location:
    """The result of causal tracing.

    Attributes:
        layers: the number of blocks.
        seconds: the duration of the tracing.
    """

    settings: TracingSettings
    chosen: KnownFacts
    traced: Trace
    layers: int
    seconds: float

    def curve(self, component: Component) -> list[float]:
        """By layer, the average indirect effect at the subject's last token."""
        return [float(mean) for mean in self.traced.effects(component, Position.SUBJECT_LAST).mean(0)]

    def propose(self) -> Proposal:
        """Raises ErrataError: see ``propose_layers``."""
        return propose_layers(self.curve(Component.BLOCK), self.curve(Component.MLP))

    def totals(self) -> dict[str, Estimate]:
        """The answers' probability clean and corrupted, and the difference: the total effect."""
        clean, corrupted = self.traced.clean, self.traced.corrupted
        columns = np.stack([clean, corrupted, clean - corrupted], axis=1)
        found = estimates(columns, seed=self.settings.seed)
        return dict(zip(("clean", "corrupted", "total_effect"), found, strict=True))

    def cells(self) -> list[EffectEstimate]:
        """Every average indirect effect in long form, without positions that no fact has."""
        found: list[EffectEstimate] = []
        for component in Component:
            for position in self.settings.positions:
                effects = self.traced.effects(component, position)
                if not len(effects):
                    continue
                for layer, estimate in enumerate(estimates(effects, seed=self.settings.seed)):
                    blocks = window_around(
                        layer, 1 if component is Component.BLOCK else self.settings.window, self.layers
                    )
                    found.append(
                        EffectEstimate(
                            part=str(component),
                            position=str(position),
                            layer=layer,
                            window=(blocks[0], blocks[-1]),
                            n=len(effects),
                            **estimate,
                        )
                    )
        return found

    def record(self, model: LanguageModel) -> dict[str, Any]:
        """The result as JSON, with everything needed to reproduce it; without a proposal if the rule gives none."""
        try:
            proposal = self.propose()
        except ErrataError as error:
            proposed: dict[str, Any] = {"layers": None, "boundaries": None, "refused": error.what}
        else:
            proposed = {"layers": list(proposal.layers), "boundaries": list(proposal.boundaries)}
        settings = asdict(self.settings)
        found = zip(self.chosen.facts, self.traced.clean, self.traced.corrupted, strict=True)
        return {
            "format": FORMAT,
            "rows": self.cells(),
            "proposal": proposed | {"rule": RULE},
            "about": {
                "model": model.name,
                "fingerprint": model.fingerprint(),
                "layers": self.layers,
                "dtype": dtype_name(model.dtype),
                "device": str(model.device),
                "versions": software_versions(),
                "settings": settings | {"positions": [str(position) for position in self.settings.positions]},
                "sigma": self.traced.sigma,
                "asked": self.chosen.queried,
                "known": self.chosen.known,
                "nothing_behind": self.chosen.untraceable,
                "traced": len(self.chosen.facts),
                "seconds": self.seconds,
                **self.totals(),
                "facts": [
                    fact.to_record() | {"clean": float(clean), "corrupted": float(corrupted)}
                    for fact, clean, corrupted in found
                ],
            },
        }


def locate(
    model: LanguageModel, facts: Sequence[Fact], settings: TracingSettings, *, report: Report = silent
) -> Location:
    """Trace the facts that a model knows.

    Args:
        facts: with their old answers.
        report: progress callback, in known facts and in traced layers.

    Raises:
        InputError: if a fact has no old answer, or the window does not fit the model.
        ErrataError: if no fact is known, or a probability is not finite.
    """
    layers = len(model.blocks)
    check_window(settings.window, layers)
    chosen = choose_facts(model, facts, settings.count, seed=settings.seed, report=report)
    started = time.perf_counter()
    traced = trace(
        model,
        chosen.prompts,
        samples=settings.samples,
        window=settings.window,
        noise=settings.noise,
        positions=settings.positions,
        generator=torch.Generator().manual_seed(settings.seed),
        report=report,
    )
    return Location(settings, chosen, traced, layers, time.perf_counter() - started)
