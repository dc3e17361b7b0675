"""Keys and current states at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from errata.editing.contexts import subject_rows
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site

Average: TypeAlias = Literal["halves", "mean", "bare"]


def mean_keys(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    average: Average = "halves",
) -> Float[Tensor, "d_in u"]:
    """Keys on the weights as they are now, averaged over the bare prompt and the prompts behind prefixes.

    Args:
        average: ``halves`` is ½ k(bare) + ½ mean over the prefixes (methods.md, section 1, Keys), ``mean`` the mean
            over all contexts, ``bare`` k(bare). Without prefixes all three are k(bare).

    Returns:
        (d_in, facts) in float64.
    """
    return keys_and_bare(model, facts, prefixes, [layer], average)[layer][0]


def keys_and_bare(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layers: Sequence[int],
    average: Average = "halves",
) -> dict[int, tuple[Float[Tensor, "d_in u"], Float[Tensor, "d_in u"]]]:
    """As ``mean_keys`` in several layers, and beside each the keys of the bare prompts; all from one pass."""
    return _averaged_and_bare(model, facts, prefixes, layers, Site.KEY, average)


def current_states(
    model: LanguageModel,
    facts: Sequence[Fact],
    layer: int,
    site: Site,
    prefixes: Sequence[str] = (),
    average: Average = "bare",
) -> Float[Tensor, "d_out u"]:
    """h at the site on the weights as they are now, averaged as keys are: (d_out, facts) in float64."""
    return _averaged_and_bare(model, facts, prefixes, [layer], site, average)[layer][0]


def _averaged_and_bare(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layers: Sequence[int],
    site: Site,
    average: Average,
) -> dict[int, tuple[Float[Tensor, "d u"], Float[Tensor, "d u"]]]:
    contexts = ["", *([] if average == "bare" else prefixes)]
    captured = model.capture_last(subject_rows(model, facts, contexts), {site: list(layers)})
    found = {}
    for layer in layers:
        per_fact = captured[site, layer].double().view(len(facts), len(contexts), -1)
        bare = per_fact[:, 0].T.contiguous()
        if len(contexts) == 1:
            mean = bare
        elif average == "mean":
            mean = per_fact.mean(1).T.contiguous()
        else:
            mean = 0.5 * bare + 0.5 * per_fact[:, 1:].mean(1).T
        found[layer] = (mean, bare)
    return found
