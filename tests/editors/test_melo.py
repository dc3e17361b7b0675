"""MELO: the rules of its clusters and its training against slow twins, and what the published code gets wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editors.hook_editor import output_ratios
from errata.editors.melo import Clusters, Melo, MeloSettings

from tests.reference import melo as reference
from tests.support.editing import FACTS, tiny_language_model

LABELS = ((3, 1), (1, 3), (4,), (2, 2))  # the first three sums are equal


def filled(queries: Tensor, labels: list[tuple[int, ...]], radius: float) -> Clusters:
    clusters = Clusters(radius)
    for query, label in zip(queries, labels, strict=True):
        clusters = clusters.assigned(query, label)
    return clusters


def melo(family: str = "llama", dtype: torch.dtype = torch.float32, **settings: Any) -> Melo:
    settings = {"learning_rate": 0.05, "steps": 6, **settings}
    return Melo(tiny_language_model(family, dtype=dtype), MeloSettings(**settings))


def test_clusters_are_those_of_the_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    queries = centres[torch.randint(12, (200,), generator=generator)]
    queries = queries + 0.4 * torch.randn(200, 5, generator=generator, dtype=torch.float64)
    # Clusters of one label grow; a few points of another one split them.
    labels = [LABELS[int(i)] for i in torch.randint(40, (200,), generator=generator).clamp_max(3)]
    found, rows = filled(queries, labels, 0.8), reference.clusters(queries.tolist(), labels, 0.8)
    assert 10 < len(rows) < 150
    assert max(len(members) for _, _, _, members in rows) > 5
    assert sum(len(members) for _, _, _, members in rows) < 200  # some were forgotten
    assert [(c.label, list(c.points)) for c in found.clusters] == [(label, members) for _, _, label, members in rows]
    for cluster, (centre, radius, _, _) in zip(found.clusters, rows, strict=True):
        assert cluster.radius == pytest.approx(max(radius, 0), abs=1e-12)
        assert cluster.centre.tolist() == pytest.approx(centre, abs=1e-12)
    others = queries + 0.5 * torch.randn(200, 5, generator=generator, dtype=torch.float64)
    hits = [reference.hit(rows, queries.tolist(), query) for query in others.tolist()]
    assert found.nearest(others, 0.0) == hits
    assert 20 < sum(point is None for point in hits) < 180


def test_labels_with_the_same_sum_are_not_the_same() -> None:
    queries = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    assert len(filled(queries, [(3, 1), (1, 3), (4,)], 1.0).clusters) == 3
    assert [len(cluster.points) for cluster in filled(queries, [(3, 1)] * 3, 1.0).clusters] == [3]


def test_a_batch_is_trained_as_by_whole_passes() -> None:
    editor = melo("gpt2", torch.float64, steps=3, halve_every=2, stop_loss=0.0)
    facts = FACTS[:2]
    editor.apply(facts)
    down, _ = editor.started(facts)
    factors = [editor.settings.alpha / 2 * ratio for ratio in output_ratios(editor.model, editor.layers).tolist()]
    expected = reference.trained(editor.model, facts, editor.layers, down, factors, 2, 3, 0.05, 2)
    (block,) = editor.state.blocks
    assert len(editor.layers) == 2
    torch.testing.assert_close((block.down @ block.up).transpose(1, 2), expected, rtol=1e-4, atol=1e-7)


def test_later_batches_do_not_touch_the_blocks_and_rows_of_earlier_ones() -> None:
    """A shared optimiser with momentum or weight decay would."""
    editor = melo()
    editor.apply(FACTS[:2])
    block = editor.state.blocks[0]
    before = block.down.clone(), block.up.clone()
    texts = [fact.text for fact in FACTS[:2]]
    scores = editor.view().next_token_log_probabilities(texts)
    editor.apply(FACTS[2:6])
    assert len(editor.state.blocks) == 2
    assert editor.state.blocks[0] is block
    assert torch.equal(block.down, before[0])
    assert torch.equal(block.up, before[1])
    assert torch.equal(editor.view().next_token_log_probabilities(texts), scores)


def test_a_row_uses_the_block_of_its_batch_only() -> None:
    apart = melo(batch_size=1, steps=3)
    apart.apply(FACTS[:3])
    assert len(apart.state.blocks) == 3
    for fact in FACTS[:3]:
        alone = melo(batch_size=1, steps=3)
        alone.apply([fact])
        found, expected = (
            editor.view().next_token_log_probabilities([fact.text])[0].tolist() for editor in (apart, alone)
        )
        assert found == pytest.approx(expected, abs=1e-5)


def test_a_fact_that_was_forgotten_in_a_conflict_is_back_when_the_other_one_leaves() -> None:
    editor = melo(radius=0.9, steps=2)
    same = [replace(fact, target="Rome") for fact in FACTS[:3]]
    editor.apply(same)
    before = editor.fingerprint(), editor.view().used([fact.text for fact in same])
    other = editor.apply([replace(FACTS[3], target="Lisbon")])
    editor.remove(other)
    assert (editor.fingerprint(), editor.view().used([fact.text for fact in same])) == before
