"""SimIE: edits of single facts, each found alone on the unedited weights, combined into one change.

A base editor gives for fact i the change Δ_i that edits it alone. The combined W agrees with every W₀ + Δ_i on that
fact's own inputs: with X_i (tokens × d_in) the inputs of W at all tokens of prompt and target, and A_i = X_iᵀ X_i, it
minimises Σ ‖(W − W₀ − Δ_i) X_iᵀ‖² + λ ‖W − W₀‖². The published recursion

    P ← P + A_i,   W ← W + (W₀ + Δ_i − W) A_i P⁻¹,   P₀ = λ I

ends there whatever the order, so all facts of a batch are searched together on W₀. A further batch adds the same step
for all of its facts at once. The base editor is ROME without key statistics (C = I): Δ_i = δ_i k_iᵀ / ‖k_i‖².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor

from errata.editing.keys import SubjectTexts
from errata.editing.preparation import target_site
from errata.editing.target_loss import TargetSettings
from errata.editing.target_search import find_targets
from errata.editors.training import completions
from errata.editors.weight_editor import Present, WeightEditor, WeightEditorSettings, Written
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import probe_row
from errata.models.row_replay import RowReplay, TrainingRow
from errata.models.weights import LowRankTerm
from errata.utils.settings import Positive
from errata.utils.tensors import float64_device, to_float64

_INPUTS = "inputs"


class SimieSettings(WeightEditorSettings):
    """Settings of ``simie``. Published: λ 1e4, not relative."""

    method: ClassVar[str] = "simie"
    layer: StrictInt | None = Field(None, ge=0, description="whose W is changed; by default at a sixth of the depth")
    target: TargetSettings = TargetSettings(learning_rate=0.5, relative_rate=True, steps=25, clamp=4.0)
    ridge: Positive = Field(0.1, description="λ")
    relative: StrictBool = Field(True, description="λ is in units of the mean of ‖x‖² over an ordinary text")


class Simie(WeightEditor[SimieSettings]):
    """See the module."""

    @property
    def layers(self) -> tuple[int, ...]:
        return (len(self.model.blocks) // 6 if self.settings.layer is None else self.settings.layer,)

    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        (layer,), edits, device = self.layers, self.model.edits, float64_device(self.model.device)
        with edits.without([*before.terms, *call.terms]):
            inputs = [to_float64(x).to(device) for x in inputs_of(self.model, facts, layer)]
            deltas, keys = self._single_edits(facts, layer, report)
            ridge = self.settings.ridge * (self._unit(layer) if self.settings.relative else 1.0)
        deltas, keys = deltas.to(device), keys.to(device)
        new = torch.cat(inputs)
        earlier = [state[_INPUTS].to(device) for state in (*before.states, *call.states)]
        # What each single change adds to the outputs of its own fact: Δ_i x = δ_i · kᵀx / ‖k‖².
        sizes = [len(x) for x in inputs]
        shares = torch.cat([x @ k / (k @ k) for x, k in zip(inputs, keys.T, strict=True)])
        wanted = deltas.repeat_interleave(torch.tensor(sizes, device=device), dim=1) * shares
        present = torch.zeros(self.model.weight(layer).shape, dtype=torch.float64, device=device)
        for term in (*before.terms, *call.terms):
            term.add_to(present)
        left, right = combined(wanted - present @ new.T, torch.cat([*earlier, new]), ridge)
        left, right = (factor.to(edits.sum_dtype).to(self.model.device) for factor in (left, right))
        term = LowRankTerm(layer, left, right)
        of_call = torch.cat([*(state[_INPUTS].to(device) for state in call.states), new])
        return Written((*call.terms, term), {_INPUTS: of_call.cpu()})

    def _single_edits(
        self, facts: Sequence[Fact], layer: int, report: Callable[[int, int], None]
    ) -> tuple[Tensor, Tensor]:
        """δ (d_out, facts) and k (d_in, facts), float64, of each fact's edit alone."""
        settings, site = self.settings.target, target_site(self.model, "mlp")
        found = find_targets(
            self.model, facts, (), layer, site, settings, on_step=lambda step: report(step.done, step.total)
        )
        keys = SubjectTexts.tokenise(self.model, facts).read(Site.KEY, [layer])[layer][1]
        return to_float64(found.delta), keys

    def _unit(self, layer: int) -> float:
        """The mean of ‖x‖² over an ordinary text, but not its first token, whose is far larger in many models."""
        row = probe_row(self.model.tokenizer)
        replay = RowReplay(self.model, [TrainingRow(row, (0,), (0,))], [layer])
        return float(to_float64(replay.keys(0)[1:]).square().sum(1).mean())


def inputs_of(model: LanguageModel, facts: Sequence[Fact], layer: int) -> list[Tensor]:
    """X (tokens, d_in) of each fact: W's inputs at all tokens of prompt and target."""
    rows = [TrainingRow(row.ids, (0,), (0,)) for row in completions(model.tokenizer, facts)]
    replay = RowReplay(model, rows, [layer])
    return [replay.keys(index) for index in range(len(rows))]


def combined(missing: Tensor, inputs: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """E X_new (λ I + Xᵀ X)⁻¹ in two factors; one tokens × tokens system.

    Args:
        missing: E (d_out, new tokens), what the outputs of the new tokens lack.
        inputs: X (tokens, d_in), the new tokens last.
    """
    inner = inputs @ inputs.T
    inner.diagonal().add_(ridge)
    # X_new (λ I + Xᵀ X)⁻¹ is the last rows of (λ I + X Xᵀ)⁻¹ X.
    chosen = torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)[:, -missing.shape[1] :]
    return missing, torch.cholesky_solve(chosen, torch.linalg.cholesky(inner)).T @ inputs
