"""Keys and hidden states at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from errata.editing.contexts import Average, neutral_leads, subject_rows
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.utils.tensors import to_float64


@dataclass(frozen=True, slots=True)
class SubjectTexts:
    """The prompts of a batch up to the subject's last token, in every context, tokenised once.

    Attributes:
        leads: for each fact the text before its bare prompt; see ``neutral_leads``.
        rows: for each fact the token ids of its bare prompt, then of its prompt in each context.
    """

    model: LanguageModel
    facts: Sequence[Fact]
    leads: Sequence[str]
    rows: Sequence[Sequence[tuple[int, ...]]]

    @classmethod
    def tokenise(cls, model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str] = ()) -> SubjectTexts:
        """Raises InputError, naming the fact, if its subject has no token."""
        contexts, leads = ["", *prefixes], neutral_leads(model.tokenizer, facts)
        flat, count = subject_rows(model, facts, contexts, leads), len(contexts)
        return cls(model, facts, leads, [flat[start : start + count] for start in range(0, len(flat), count)])

    def of(self, indices: Sequence[int]) -> SubjectTexts:
        """Some of the facts."""
        facts, leads = [self.facts[i] for i in indices], [self.leads[i] for i in indices]
        return SubjectTexts(self.model, facts, leads, [self.rows[i] for i in indices])

    def read(
        self, site: Site, layers: Sequence[int], average: Average = "bare"
    ) -> dict[int, tuple[Float[Tensor, "d u"], Float[Tensor, "d u"]]]:
        """Vectors at a site of several layers on the current weights, from one forward pass.

        Keys and states have passes of their own: keys are read in all contexts and states in bare prompts (except for
        ``r_rome``), and other texts in a batch would change the last bits.

        Args:
            average: ``halves`` is ½ v(bare) + ½ mean over the contexts (methods.md, section 1, Keys), ``mean`` the mean
                over all texts, ``bare`` v(bare). Without contexts all three are v(bare).

        Returns:
            layer -> (averaged, of the bare prompts), each (d, facts) in float64 on ``float64_device``.
        """
        rows = [texts[:1] if average == "bare" else texts for texts in self.rows]
        count = len(rows[0])
        captured = self.model.capture_last([row for texts in rows for row in texts], {site: list(layers)})
        found = {}
        for layer in layers:
            per_fact = to_float64(captured[site, layer]).view(len(rows), count, -1)
            bare = per_fact[:, 0].T.contiguous()
            if count == 1:
                mean = bare
            elif average == "mean":
                mean = per_fact.mean(1).T.contiguous()
            else:
                mean = 0.5 * bare + 0.5 * per_fact[:, 1:].mean(1).T
            found[layer] = (mean, bare)
        return found
