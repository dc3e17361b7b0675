"""A run's change as whole matrices: what each layer's weight is after each batch minus what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from errata.editing.recipe import Recipe
from errata.editors.locate_then_edit import Editor
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel


def changes(
    model: LanguageModel, recipe: Recipe, facts: Sequence[Fact], layers: Sequence[int], cache: Path
) -> list[dict[int, Tensor]]:
    """After each batch: layer -> W now − W before the run; float64."""
    before = {layer: model.weight(layer).double().clone() for layer in layers}
    found: list[dict[int, Tensor]] = []
    Editor(model, recipe, cache=cache).apply(
        facts,
        on_batch=lambda record: found.append(
            {layer: model.weight(layer).double() - old for layer, old in before.items()}
        ),
    )
    return found
