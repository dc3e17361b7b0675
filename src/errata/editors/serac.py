"""``serac``: a memory of facts, a trained classifier of scope, and the model itself as the counterfactual model.

Mitchell et al. 2022, "Memory-Based Model Editing at Scale", ICML, arXiv:2206.06520. A query goes to the fact with the
largest probability s of being in scope, if s reaches a threshold: then the fact is put before the query, and the
unedited model answers both (``freeze_cntr`` in the published code); else the model answers the query alone. The
published threshold is ½; by default it is calibrated at the number of facts in memory, on facts that the classifier
was not trained on. ``scope`` has the classifier. A small model that was trained with it can answer in the model's place
(``counterfactual``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from errata.editors import counterfactual, scope
from errata.editors.contract import with_weights
from errata.editors.fact_memory import FactMemory
from errata.editors.memory_search import AnyEmbedder, AnyGate, CosineGate, SearchSettings
from errata.editors.prompted import Prompted
from errata.editors.retrieval import Gated, Plain, PromptRewriter, QueryReader
from errata.editors.scope import SCOPE, LearntScope, ScopeEmbedder, ScopeSettings
from errata.editors.trained_editor import Learnt, Trainer
from errata.editors.training_data import EditorData
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.utils.progress import Report


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
    counterfactual: Literal["base", "small"] = Field(
        "base",
        description="what answers a query with its fact: the edited model itself, or a small model in the classifier's "
        "file, by `errata train-editor serac --set counterfactual=small`; that reads one fact (k_facts: 1)",
    )


def learn(
    model: LanguageModel, train: EditorData, calibration: EditorData, settings: Mapping[str, Any], report: Report
) -> Learnt:
    """Train the classifier, and the small model if the settings say so; see ``trained_editor.Trainer``."""
    learnt, chosen = scope.learn(model, train, calibration, settings, report), ScopeSettings.model_validate(settings)
    if chosen.counterfactual == "base":
        return learnt
    tensors, record = counterfactual.learn(model, train, calibration, chosen.small, chosen.seed, report)
    return Learnt({**learnt.tensors, **tensors}, {**learnt.record, **record}, learnt.state)


TRAINER: Final = Trainer(ScopeSettings, learn)


@dataclass(slots=True)
class Serac(FactMemory[SeracSettings]):
    """See the module and ``FactMemory``.

    Raises:
        InputError: if there is no trained classifier for the model, or no small model with it that the settings name.
    """

    _small: LanguageModel | None = field(init=False, default=None)

    registered: ClassVar[str] = SCOPE

    def __post_init__(self) -> None:
        FactMemory.__post_init__(self)
        embedder = self._state.search.embedder
        if self.settings.counterfactual == "base":
            return
        if self.settings.k_facts != 1 or not isinstance(embedder, ScopeEmbedder):
            raise InputError(
                "the small counterfactual model needs the trained classifier as embedder, and reads one fact",
                remedy="Set embedder: {kind: trained, file: FILE} and k_facts: 1",
                code="COUNTERFACTUAL_MODEL_MISSING",
            )
        model = with_weights(self.model, f"{SCOPE!r}")
        settings = ScopeSettings.model_validate(embedder.trained.settings)
        self._small = counterfactual.loaded(model, settings.small, embedder.trained.tensors)

    def view(self) -> Prompted:
        """The model with the present facts in its prompts."""
        reader, memory = QueryReader(self.model.tokenizer), self._state.search.memory
        model = with_weights(self.model, f"{SCOPE!r}")
        return Prompted(model, PromptRewriter(reader, Gated(memory), Plain()), self._small)
