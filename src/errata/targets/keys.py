"""Keys and current states at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from errata.facts import Fact
from errata.models.language_model import LanguageModel, Site
from errata.targets.contexts import subject_rows


def mean_keys(
    model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int
) -> Float[Tensor, "d_in u"]:
    """k = ½ k(bare) + ½ mean over the prefixes, on the weights as they are now; k(bare) alone without prefixes.

    Returns:
        (d_in, facts) in float64 (methods.md, section 1, Keys).
    """
    contexts = ["", *prefixes]
    rows = subject_rows(model, facts, contexts)
    captured = model.capture_last(rows, {Site.KEY: [layer]})[Site.KEY, layer].double()
    per_fact = captured.view(len(facts), len(contexts), -1)
    bare = per_fact[:, 0]
    keys = bare if not prefixes else 0.5 * bare + 0.5 * per_fact[:, 1:].mean(1)
    return keys.T.contiguous()


def current_states(model: LanguageModel, facts: Sequence[Fact], layer: int, site: Site) -> Float[Tensor, "d_out u"]:
    """h of the bare prompts at the site, on the weights as they are now: (d_out, facts) in float64."""
    rows = subject_rows(model, facts, [""])
    return model.capture_last(rows, {site: [layer]})[site, layer].double().T.contiguous()
