"""``serac``: a memory of facts, a trained classifier of scope, and the model itself as the counterfactual model.

Mitchell et al. 2022, "Memory-Based Model Editing at Scale", ICML, arXiv:2206.06520. A query goes to the fact with the
largest probability s of being in scope, if s reaches a threshold: then the fact is put before the query, and the
unedited model answers both (``freeze_cntr`` in the published code); else the model answers the query alone. The
published threshold is ½; by default it is calibrated at the number of facts in memory, on facts that the classifier
was not trained on. ``scope`` has the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from errata.editors.contract import with_weights
from errata.editors.fact_memory import FactMemory
from errata.editors.memory_search import AnyEmbedder, AnyGate, CosineGate, SearchSettings
from errata.editors.prompted import Prompted
from errata.editors.retrieval import Gated, Plain, PromptRewriter, QueryReader
from errata.editors.scope import SCOPE, LearntScope


class SeracSettings(SearchSettings):
    """Facts in the prompt, by a trained classifier."""

    embedder: AnyEmbedder = Field(
        LearntScope(), description="the classifier: {kind: trained, file: FILE}, by `errata train-editor serac`"
    )
    gates: tuple[AnyGate, ...] = Field(
        (CosineGate(),),
        min_length=1,
        description="as of retrieval; 'threshold' is that of the probability (published: 0.5; null: calibrated)",
    )


@dataclass(slots=True)
class Serac(FactMemory[SeracSettings]):
    """See the module and ``FactMemory``.

    Raises:
        InputError: if there is no trained classifier for the model.
    """

    registered: ClassVar[str] = SCOPE

    def view(self) -> Prompted:
        """The model with the present facts in its prompts."""
        reader, memory = QueryReader(self.model.tokenizer), self._state.search.memory
        model = with_weights(self.model, f"{SCOPE!r}")
        return Prompted(model, PromptRewriter(reader, Gated(memory), Plain()))
