"""Study ``hidden-shift``: how far a run moves the hidden states of prompts that it was not to touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from errata.analysis.runs import about_run, edited, facts_said, run_name, runs_of
from errata.analysis.shift_findings import CKA, COSINE, DISTANCE, IN_PICTURE, KINDS, UNTOUCHED, findings_of
from errata.analysis.similarity import check_plane, cka_interval, cosines, fit_plane, relative_distances
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.benchmark.material import Material
from errata.errors import InputError, NonFiniteError
from errata.methods import BOUNDARY_PAPER
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import encode
from errata.recipe import Recipe


def prompts_of(material: Material) -> dict[str, list[tuple[str, str]]]:
    """Kind -> (cluster, prompt), each once; the cluster is the subject that was edited, or what an untouched question
    belongs to.
    """
    facts = material.facts
    found = {
        UNTOUCHED: [(cluster, asked.prompt) for cluster, asked in material.untouched],
        "neighbours": [(fact.subject, asked.prompt) for fact in facts for asked in fact.neighbours],
        "edited": [(fact.subject, fact.text) for fact in facts],
    }
    return {kind: list(dict.fromkeys(found[kind])) for kind in KINDS}


def states_of(model: LanguageModel, prompts: Sequence[str]) -> list[Float[Tensor, "prompts d"]]:
    """Every block's output at the last token of each prompt, in the model's dtype on the CPU.

    Raises:
        InputError: if a prompt is longer than the model takes.
        NonFiniteError: if a state is not finite.
    """
    rows = [row.ids for row in encode(model.tokenizer, prompts)]
    if (longest := max(map(len, rows))) > model.context_length:
        raise InputError(
            f"a prompt has {longest} tokens, but {model.name!r} takes {model.context_length}", remedy="Leave it out"
        )
    layers = range(len(model.blocks))
    found = model.capture_last(rows, {Site.BLOCK: layers})
    for layer in layers:
        if not bool(torch.isfinite(found[Site.BLOCK, layer]).all()):
            raise NonFiniteError("hidden state of a prompt", facts=(), layer=layer)
    return [found[Site.BLOCK, layer].cpu() for layer in layers]


def _measure(bench: Workbench, seed: int, method: str) -> Kept:
    prompts = {kind: found for kind, found in prompts_of(bench.materials[seed]).items() if found}
    everything = [prompt for found in prompts.values() for _, prompt in found]
    before = states_of(bench.model, everything)
    with edited(bench, seed, method):
        after = states_of(bench.model, everything)
        said = facts_said(bench, bench.materials[seed].facts)
    places: dict[str, slice] = {}
    for kind, found in prompts.items():
        start = sum(place.stop - place.start for place in places.values())
        places[kind] = slice(start, start + len(found))
    about = about_run(bench, seed, method)
    kinds = {
        kind: _compare([cluster for cluster, _ in prompts[kind]], before, after, place)
        for kind, place in places.items()
    }
    pictures = {str(layer): _picture(before[layer], after[layer], places) for layer in _drawn(about, len(before))}
    return {**about, "blocks": len(before), "said": said, "kinds": kinds, "pictures": pictures}


def _compare(clusters: Sequence[str], before: Sequence[Tensor], after: Sequence[Tensor], place: slice) -> Kept:
    kept: dict[str, Any] = {"clusters": list(clusters), DISTANCE: [], COSINE: [], CKA: []}
    for old, new in zip(before, after, strict=True):
        x, y = old[place].double(), new[place].double()
        kept[DISTANCE].append(relative_distances(x, y).tolist())
        kept[COSINE].append(cosines(x, y).tolist())
        kept[CKA].append(cka_interval(x, y, clusters))
    return kept


def _drawn(about: Kept, blocks: int) -> list[int]:
    """The layers of the pictures: the last critical one and the last block."""
    return list(dict.fromkeys((about["critical"][-1], blocks - 1)))


def _picture(before: Tensor, after: Tensor, places: Mapping[str, slice]) -> Kept | None:
    """The plane of the untouched prompts' states before; in it those and the edited prompts', before and after."""
    plane = fit_plane(before[places[UNTOUCHED]]) if UNTOUCHED in places else None
    if plane is None:
        return None
    points = {
        kind: {"before": plane.points(before[places[kind]]), "after": plane.points(after[places[kind]])}
        for kind in IN_PICTURE
    }
    return {"shares": plane.shares, "points": points}


def _pieces(bench: Workbench) -> list[Piece]:
    return [Piece(run_name(seed, method), partial(_measure, bench, seed, method)) for seed, method in runs_of(bench)]


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    check_plane()


HIDDEN_SHIFT = Study(
    name="hidden-shift",
    title=TITLES["hidden-shift"],
    shows="The hidden state h at the last token of a prompt, at every block's output, before and after a run of edits "
    "(h′): its relative distance ‖h′ − h‖ / ‖h‖ and cosine, the linear centred kernel alignment of all prompts' states "
    "before with those after, and both in the plane of the untouched prompts' first two principal components. Prompts "
    "about other subjects (untouched), those of neighbours, and the edited facts' own.",
    units="Distances are shares of ‖h‖; cosines and alignments are numbers without a unit (an alignment of 1: the same "
    "but for rotation and one scale; with fewer prompts than dimensions it lies higher than with many).",
    source=f"hidden-state shift in {BOUNDARY_PAPER}; CKA: Kornblith et al. 2019, Similarity of Neural "
    "Network Representations Revisited, arXiv:1905.00414",
    uses=("count", "batch_size", "methods"),
    pieces=_pieces,
    findings=findings_of,
    check=_check,
    defaults={"seeds": (0, 1, 2)},  # claims about whole runs are paired over seeds
)
