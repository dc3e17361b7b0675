"""Recipe: every number and choice of an edit, frozen, validated, from and to YAML.

A recipe file belongs to one model and holds what is common to all methods at the top level, and what a method changes
under ``methods``: first the row's own entry, then the one with ``+blue`` (``recipe_files``); never module paths.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from errata.errors import Fault, FaultsError, InputError
from errata.methods import method_named
from errata.recipe_files import RecipeFile, merge, parse_file, read_file, shipped_for

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _SearchSettings(_Settings):
    learning_rate: _Positive = Field(description="Adam's step")
    relative_rate: bool = Field(False, description="the learning rate is in units of ‖h⁰‖ / √d, for each fact")
    steps: int = Field(ge=1, description="evaluations of the loss; there is one update less")
    kl_factor: _NotNegative = Field(0.0625, description="weight of the KL term on '{subject} is a'")
    weight_decay: _NotNegative = Field(0.5, description="weight of ‖δ‖ / ‖h⁰‖²")
    clamp: _Positive = Field(0.75, description="‖δ‖ is kept within clamp · ‖h⁰‖")
    stop_loss: _NotNegative = Field(0.05, description="a fact whose whole loss is below this is done")
    weights: Literal["current", "original"] = Field(
        "current", description="on which weights: as they are now, or as they were before the run"
    )


class TargetSettings(_SearchSettings):
    """How ROME and MEMIT search the target vector (methods.md, section 1, Target)."""

    kind: Literal["memit"] = "memit"


class JointTargetSettings(_SearchSettings):
    """How PMET searches it: together with a second vector at attention's output, which is not written."""

    kind: Literal["joint"] = "joint"
    eased_likelihood: _NotNegative = Field(0.1, description="weight of the likelihood while the target is the argmax")
    stop_divergence: _NotNegative = Field(0.01, description="a fact that holds with less KL than this is done")


AnyTargetSettings: TypeAlias = Annotated[TargetSettings | JointTargetSettings, Field(discriminator="kind")]


class ContextSettings(_Settings):
    """The short prefixes that stand before prompts when keys and targets are found.

    ``halves`` is ½ of the bare prompt and ½ of the mean over prefixes; ``mean`` counts the bare prompt as one of them.
    """

    openers: tuple[str, ...] = Field(("The", "Therefore", "Because", "I", "You"), description="how prefixes begin")
    per_opener: int = Field(1, ge=0, description="prefixes generated from each opener at each length")
    tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10,), min_length=1, description="lengths of prefixes in tokens, opener included"
    )
    top_k: int = Field(5, ge=1, description="sampling among this many tokens")
    seed: int = Field(0, ge=0, description="of the generator that samples them")
    keys: Literal["halves", "mean", "bare"] = Field("halves", description="how keys are averaged over contexts")
    states: Literal["halves", "mean", "bare"] = Field("bare", description="how h is averaged over contexts")
    targets: Literal["all", "bare"] = Field("all", description="in which contexts targets are searched")

    @field_validator("tokens", mode="before")
    @classmethod
    def _one_length(cls, tokens: object) -> object:
        return (tokens,) if isinstance(tokens, int) else tokens


class StatisticsSettings(_Settings):
    """The text over which the second moment of keys is taken."""

    corpus: str = Field(
        description="'lab', or the path, from the recipe's file on, of a plain text file with blank "
        "lines between documents"
    )
    documents: int | None = Field(None, ge=1, description="how many documents to read, in place of tokens")
    tokens: int | None = Field(None, ge=1, validate_default=True, description="how many tokens to read")
    length: int = Field(ge=1, description="documents are cut at this many tokens")
    special_tokens: bool = Field(True, description="whether keys of BOS and other special tokens count")

    @field_validator("tokens")
    @classmethod
    def _one_amount(cls, tokens: int | None, info: Any) -> int | None:
        if "documents" not in info.data:  # it is wrong itself
            return tokens
        if tokens is None and info.data["documents"] is None:
            raise PydanticCustomError("missing", "field required, or 'documents' in its place")
        if tokens is not None and info.data["documents"] is not None:
            raise ValueError("'documents' stands there too: give one of the two")
        return tokens

    @property
    def amount(self) -> int:
        """How much is read, in the unit that was given."""
        return self.tokens or self.documents or 0


class LeastSquaresSettings(_Settings):
    """ΔW = R Kᵀ (λC + M + K Kᵀ)⁻¹, M only with history."""

    kind: Literal["least_squares"]
    ridge: _Positive = Field(description="λ, the weight of the second moment C")
    history: bool = Field(description="whether keys of earlier batches (M) count")


class NullSpaceSettings(_Settings):
    """[P(K Kᵀ + M) + L2·I] X = P K Rᵀ, ΔW = Xᵀ."""

    kind: Literal["null_space"]
    threshold: _Positive = Field(description="eigenvectors of C with eigenvalues below this span P")
    l2: _Positive = Field(description="L2, the ridge")
    relative: bool = Field(False, description="threshold and L2 are in units of C's mean eigenvalue")
    history: bool = Field(description="whether keys of earlier batches (M) count")


class EqualitySettings(_Settings):
    """ΔW = R (Kᵀ C⁻¹ K + εI)⁻¹ Kᵀ C⁻¹."""

    kind: Literal["equality"]
    ridge: _NotNegative = Field(0.1, description="ε of a batch of several facts")
    ridge_of_one: _NotNegative = Field(0.0, description="ε of a batch of one fact")


class RankOneSettings(_Settings):
    """ΔW = r (C⁻¹ k̄)ᵀ / (kᵀ C⁻¹ k̄), facts one after another."""

    kind: Literal["rank_one"]
    denominator: Literal["bare", "averaged"] = Field(description="which key is k")
    moment: Literal["measured", "identity"] = Field("measured", description="what C is")


class NeuronsSettings(_Settings):
    """Least squares on the columns of W with the largest keys."""

    kind: Literal["neurons"]
    ridge: _Positive = Field(description="λ, the weight of the second moment C")
    share: float = Field(gt=0, le=1, description="p: the chosen columns make up at most this part of all keys")
    history: bool = Field(description="whether keys of earlier batches (M) count")


SolverSettings: TypeAlias = Annotated[
    LeastSquaresSettings | NullSpaceSettings | EqualitySettings | RankOneSettings | NeuronsSettings,
    Field(discriminator="kind"),
]


class RectifySettings(_Settings):
    """Only the relatively largest entries of each batch's change stay."""

    kind: Literal["rect"]
    share: float = Field(0.4, gt=0, le=1, description="the part of the entries that stays")


class PruneSettings(_Settings):
    """Large singular values of the run's change are pressed down, in the copy that is evaluated and saved."""

    kind: Literal["prune"]
    on_top: bool = Field(False, description="add the pruned change to the edited weights, as some published code does")


class NormCapSettings(_Settings):
    """No target is longer than the unedited model's states are on average."""

    kind: Literal["norm_cap"]


ShapingSettings: TypeAlias = Annotated[RectifySettings | PruneSettings | NormCapSettings, Field(discriminator="kind")]


class RoundSettings(_Settings):
    """The steps of a batch are gone through several times, each time for the facts that are still open."""

    count: int = Field(ge=1, description="rounds")
    least: _NotNegative = Field(description="α: a fact is open while ‖z − h‖ is larger than this")
    most: _Positive = Field(description="and smaller than this")


class Recipe(_Settings):
    """Everything that decides an edit, given model, facts and batch size."""

    model: str = Field(description="the model that the numbers are for")
    method: str = Field(description="a row of `errata methods`, with or without +blue")
    layers: tuple[int, ...] = Field(min_length=1, description="critical layers, ascending, counted from 0")
    site: Literal["block", "mlp"] = Field(description="where targets live")
    schedule: Literal["even", "sqrt", "boundary", "single", "replay"] = Field(
        description="which layers get which share"
    )
    target: AnyTargetSettings
    contexts: ContextSettings = ContextSettings()
    solver: SolverSettings
    shaping: tuple[ShapingSettings, ...] = Field((), description="what is done beside solving")
    rounds: RoundSettings | None = Field(None, description="several passes over a batch; none is one for all facts")
    statistics: StatisticsSettings
    batch_size: int = Field(25, ge=1, description="facts that are solved together")
    source: str = Field("", description="where the numbers are from")

    @field_validator("layers")
    @classmethod
    def _layers_ascend(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
            raise ValueError("layers must be ascending, distinct and not negative")
        return layers

    @model_validator(mode="after")
    def _choices_go_together(self) -> Recipe:
        if reasons := list(_contradictions(self)):
            raise ValueError("; ".join(reasons))
        return self

    @property
    def is_automatic(self) -> bool:
        """Whether no person has published or measured the numbers."""
        return self.source.startswith("automatic")

    @property
    def needs_statistics(self) -> bool:
        """Whether the solver looks at the key statistics at all."""
        return not (self.solver.kind == "rank_one" and self.solver.moment == "identity")

    def with_corpus(self, corpus: str | Path) -> Recipe:
        """The recipe with another text to take key statistics over."""
        statistics = self.statistics.model_copy(update={"corpus": str(corpus)})
        return self.model_copy(update={"statistics": statistics})

    def with_choices(self, choices: Mapping[str, Any]) -> Recipe:
        """The recipe with other values of some fields.

        Raises:
            FaultsError: if it then does not hold, each fault with its reason.
        """
        source = {"source": f"{self.source}; changed: {', '.join(choices)}"} if self.source else {}
        try:
            return Recipe.model_validate({**self.model_dump(), **choices, **source})
        except ValidationError as error:
            found = [fault_of("the recipe", item) for item in error.errors()]
            faults = [replace(fault, where=fault.where.removesuffix(": ")) for fault in found]
            raise FaultsError(f"{self.method} with {', '.join(choices)} of your choice", faults) from error

    def to_yaml(self) -> str:
        """YAML that ``read_recipe`` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path, method: str, *, as_published: bool = False) -> Recipe:
    """The recipe for one method from a YAML file.

    Args:
        as_published: reproduce the faults of published code that published numbers depend on; see ``Method``.

    Raises:
        InputError: if the file cannot be read as YAML, was written for another method, or the method is not known.
        FaultsError: every wrong or missing key, each with the nearest valid one.
    """
    recipe = _recipe_from(read_file(path), method, as_published=as_published)
    if recipe.statistics.corpus == "lab":
        return recipe
    # A path in a file counts from that file, wherever the user stands.
    return recipe.with_corpus((Path(path).parent / Path(recipe.statistics.corpus).expanduser()).resolve())


def shipped_recipe(model: str, method: str, *, as_published: bool = False) -> Recipe:
    """The recipe that comes with errata for ``model``; ``as_published`` as in ``read_recipe``.

    Found by the last part of the model's name, in lower case, or by another name that the file lists under ``also``.

    Raises:
        InputError: if there is none, or nobody published the method's numbers for this model; says what there is.
    """
    return _recipe_from(shipped_for(model, method), method, as_published=as_published)


def parse_recipe(text: str, method: str, *, source: str, as_published: bool = False) -> Recipe:
    """As ``read_recipe``, from the text itself; ``source`` is what messages call it."""
    return _recipe_from(parse_file(text, source), method, as_published=as_published)


def _recipe_from(file: RecipeFile, method: str, *, as_published: bool) -> Recipe:
    row = method_named(method)
    if as_published and not row.as_published:
        raise InputError(
            f"no published number of {method!r} depends on a fault of published code",
            remedy="Leave out --as-published",
        )
    merged, faults = file.merged(method), file.faults()
    if as_published:
        merged = merge(merged, row.as_published)
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        faults += [fault_of(file.source, item) for item in error.errors()]
        raise FaultsError(f"the recipe {file.source} for {method}", faults) from error
    if faults:
        raise FaultsError(f"the recipe {file.source}", faults)
    return recipe


_BY_KIND: Mapping[str, type[_Settings]] = {
    "memit": TargetSettings, "joint": JointTargetSettings, "least_squares": LeastSquaresSettings,
    "null_space": NullSpaceSettings, "equality": EqualitySettings, "rank_one": RankOneSettings,
    "neurons": NeuronsSettings, "rect": RectifySettings, "prune": PruneSettings, "norm_cap": NormCapSettings,
}  # fmt: skip
_BY_SECTION: Mapping[str, type[_Settings]] = {
    "contexts": ContextSettings, "statistics": StatisticsSettings, "rounds": RoundSettings, **_BY_KIND,
}  # fmt: skip


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Combinations of choices that mean nothing, each with its reason."""
    kinds = [shaper.kind for shaper in recipe.shaping]
    if recipe.schedule == "single" and len(recipe.layers) != 1:
        yield f"the schedule 'single' writes one layer, got {list(recipe.layers)}"
    if recipe.schedule == "replay" and len(recipe.layers) == 1:
        yield "the schedule 'replay' carries the first layer's target to later ones, got one layer; take 'single'"
    if recipe.schedule == "replay" and recipe.target.weights == "original":
        yield "the schedule 'replay' reads later targets off the current weights, so its first one is found on them too"
    if recipe.target.kind == "joint" and recipe.site != "mlp":
        yield "the target 'joint' is searched at the MLP's output, so site must be 'mlp'"
    if len(set(kinds)) < len(kinds):
        yield f"a shaping stands there twice: {', '.join(kinds)}"
    if {"rect", "prune"} <= set(kinds):
        yield "'rect' makes each batch's change sparse and 'prune' the whole run's change dense again: take one of them"
    if recipe.solver.kind == "rank_one" and recipe.rounds is not None:
        yield "'rank_one' writes facts one after another; rounds are for facts that are solved together"


def path_of(item: Any) -> list[Any]:
    """Where one of pydantic's errors lies: the keys that a file has, without the tags of pydantic's own."""
    return [part for index, part in enumerate(item["loc"]) if index == 0 or part not in _BY_KIND]


def fault_of(source: str, item: Any) -> Fault:
    """One pydantic error in our words, with the nearest valid key where a key is unknown."""
    path = [str(part) for part in item["loc"]]
    where = f"{source}: {'.'.join(str(part) for part in path_of(item))}"
    if item["type"] == "value_error":  # our own checks: what they say is a sentence
        remedy = "Change one of them" if not item["loc"] else f"Got {item.get('input')!r}"
        return Fault(where, str(item["ctx"]["error"]), remedy)
    if item["type"] != "extra_forbidden":
        remedy = "Add this key" if item["type"] == "missing" else f"Got {item.get('input')!r}"
        return Fault(where, item["msg"][0].lower() + item["msg"][1:], remedy)
    section = _BY_SECTION.get(path[-2]) if len(path) > 1 else None
    known = list(section.model_fields) if section else [*Recipe.model_fields, "methods", "also"]
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return Fault(where, "unknown key", f"{hint}Known here: {', '.join(known)}")
