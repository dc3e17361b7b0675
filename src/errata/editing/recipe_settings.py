"""The sections of a recipe, each frozen and validated: target, contexts, solver, shaping, rounds, statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator

from errata.editing.solvers import SETTINGS as SOLVER_SETTINGS
from errata.errors import Fault
from errata.statistics.settings import StatisticsSettings
from errata.utils.settings import NotNegative, Positive, Settings
from errata.utils.text import did_you_mean


class _SearchSettings(Settings):
    learning_rate: Positive = Field(description="Adam's step")
    relative_rate: StrictBool = Field(False, description="the learning rate is in units of ‖h⁰‖ / √d, for each fact")
    steps: StrictInt = Field(ge=1, description="evaluations of the loss; there is one update less")
    kl_factor: NotNegative = Field(0.0625, description="weight of the KL term on '{subject} is a'")
    weight_decay: NotNegative = Field(0.5, description="weight of ‖δ‖ / ‖h⁰‖²")
    clamp: Positive = Field(0.75, description="‖δ‖ is kept within clamp · ‖h⁰‖")
    stop_loss: NotNegative = Field(0.05, description="a fact whose whole loss is below this is done")
    weights: Literal["current", "original"] = Field(
        "current", description="on which weights: as they are now, or as they were before the run"
    )


class TargetSettings(_SearchSettings):
    """How ROME and MEMIT search the target vector (methods.md, section 1, Target)."""

    kind: Literal["memit"] = "memit"


class JointTargetSettings(_SearchSettings):
    """How PMET searches it: together with a second vector at attention's output, which is not written."""

    kind: Literal["joint"] = "joint"
    eased_likelihood: NotNegative = Field(0.1, description="weight of the likelihood while the target is the argmax")
    stop_divergence: NotNegative = Field(0.01, description="a fact that holds with less KL than this is done")


AnyTargetSettings: TypeAlias = Annotated[TargetSettings | JointTargetSettings, Field(discriminator="kind")]


class ContextSettings(Settings):
    """The short prefixes put before prompts when keys and targets are computed.

    ``halves`` is ½ of the bare prompt and ½ of the mean over prefixes; ``mean`` counts the bare prompt as one of them.
    """

    chat: StrictBool = Field(False, description="whether prompts are also put into the model's own chat template")
    openers: tuple[str, ...] = Field(("The", "Therefore", "Because", "I", "You"), description="how prefixes begin")
    per_opener: StrictInt = Field(1, ge=0, description="prefixes generated from each opener at each length")
    tokens: tuple[Annotated[StrictInt, Field(ge=1)], ...] = Field(
        (10,), min_length=1, description="lengths of prefixes in tokens, opener included"
    )
    top_k: StrictInt = Field(5, ge=1, description="sampling among this many tokens")
    seed: StrictInt = Field(0, ge=0, lt=2**63, description="of the generator that samples them")
    keys: Literal["halves", "mean", "bare"] = Field("halves", description="how keys are averaged over contexts")
    states: Literal["halves", "mean", "bare"] = Field("bare", description="how h is averaged over contexts")
    targets: Literal["all", "bare"] = Field("all", description="in which contexts targets are searched")

    @field_validator("tokens", mode="before")
    @classmethod
    def _one_length(cls, tokens: object) -> object:
        return (tokens,) if isinstance(tokens, int) else tokens


class RectifySettings(Settings):
    """Only the relatively largest entries of each batch's change stay."""

    kind: Literal["rect"]
    share: StrictFloat = Field(0.4, gt=0, le=1, description="the part of the entries that stays")


class PruneSettings(Settings):
    """Large singular values of the run's change are pressed down, in the copy that is evaluated and saved."""

    kind: Literal["prune"]
    on_top: StrictBool = Field(
        False, description="add the pruned change to the edited weights, as some published code does"
    )


class NormCapSettings(Settings):
    """No target is longer than the unedited model's states are on average."""

    kind: Literal["norm_cap"]


ShapingSettings: TypeAlias = Annotated[RectifySettings | PruneSettings | NormCapSettings, Field(discriminator="kind")]


class RoundSettings(Settings):
    """The steps of a batch are gone through several times, each time for the facts that are still open."""

    count: StrictInt = Field(ge=1, description="rounds")
    least: NotNegative = Field(description="α: a fact is open while ‖z − h‖ is larger than this")
    most: Positive = Field(description="and smaller than this")

    @field_validator("most")
    @classmethod
    def _above_least(cls, most: float, info: Any) -> float:
        if most <= info.data.get("least", 0.0):  # no fact could be open, so nothing would be written
            raise ValueError("'most' must be larger than 'least'")
        return most


_BY_KIND: Mapping[str, type[Settings]] = {
    **SOLVER_SETTINGS,
    "memit": TargetSettings,
    "joint": JointTargetSettings,
    "rect": RectifySettings,
    "prune": PruneSettings,
    "norm_cap": NormCapSettings,
}
_BY_SECTION: Mapping[str, type[Settings]] = {
    "contexts": ContextSettings,
    "statistics": StatisticsSettings,
    "rounds": RoundSettings,
    **_BY_KIND,
}


def path_of(item: Any) -> list[Any]:
    """Where one of pydantic's errors lies: the keys that a file has, without the tags of pydantic's own."""
    return [part for index, part in enumerate(item["loc"]) if index == 0 or part not in _BY_KIND]


def fault_of(source: str, item: Any, top: Iterable[str]) -> Fault:
    """One pydantic error in our words, with the nearest valid key where a key is unknown.

    Args:
        top: the keys of a whole recipe.
    """
    path = [str(part) for part in item["loc"]]
    where = f"{source}: {'.'.join(str(part) for part in path_of(item))}"
    if item["type"] == "value_error":  # our own checks: what they say is a sentence
        remedy = "Change one of them" if not item["loc"] else f"Got {item.get('input')!r:.200}"
        return Fault(where, str(item["ctx"]["error"]), remedy, code="RECIPE_CONTRADICTION")
    if item["type"] != "extra_forbidden":
        remedy = "Add this key" if item["type"] == "missing" else f"Got {item.get('input')!r:.200}"
        return Fault(
            where,
            item["msg"][0].lower() + item["msg"][1:],
            remedy,
            code="RECIPE_KEY_MISSING" if item["type"] == "missing" else "RECIPE_VALUE_INVALID",
        )
    section = _BY_SECTION.get(path[-2]) if len(path) > 1 else None
    known = list(section.model_fields) if section else [*top, "methods", "also"]
    hint = did_you_mean(path[-1], known, cutoff=0.5)
    return Fault(where, "unknown key", f"{hint}Known here: {', '.join(known)}", code="RECIPE_KEY_UNKNOWN")
