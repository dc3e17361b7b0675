"""MEMOIR: its masks and its descent against slow twins, and what the port of it gets wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from errata.editors.hook_editor import generator_of
from errata.editors.memoir import Memoir, MemoirSettings, least_threshold, mask_of

from tests.reference import memoir as reference
from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code


def memoir(family: str = "llama", **settings: Any) -> Memoir:
    return Memoir(tiny_language_model(family), MemoirSettings(**{"steps": 6, **settings}))


def test_masks_are_those_of_the_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, centre = torch.randn(7, 20, generator=generator), torch.randn(20, generator=generator)
    order = torch.rand(20, generator=generator_of(3, "permutation")).argsort()
    found = mask_of(queries, centre, 6, 3)
    assert found.tolist() == [reference.mask(query, centre, 6, order) for query in queries]
    assert torch.equal(mask_of(queries[2:4], centre, 6, 3), found[2:4])
    assert not torch.equal(mask_of(queries, centre, 6, 4), found)


def test_the_least_threshold_is_above_the_overlap_of_random_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(400, 60, generator=generator)
    masks = mask_of(queries, torch.zeros(60), 15, 0).double()
    overlaps = (masks @ masks.T / 15)[~torch.eye(400, dtype=torch.bool)]
    assert overlaps.mean() == pytest.approx(15 / 60, abs=0.01)
    assert least_threshold(15, 60) == pytest.approx(float(overlaps.mean() + 4 * overlaps.std()), abs=0.02)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2"])
def test_a_fact_is_written_as_by_whole_passes(family: str) -> None:
    editor = memoir(family, steps=3, learning_rate=0.5, clip=0.2, stop_loss=0.0)
    for fact in FACTS[:2]:
        edit = editor.apply([fact])
        state = editor.state
        expected = reference.memory_after(
            editor.model, fact, editor.layer, state.masks[0].double(), 3, 0.5, 0.2, state.unit
        )
        torch.testing.assert_close(state.memory.double(), expected, rtol=2e-2, atol=2e-3 * float(expected.abs().max()))
        assert expected.any()
        editor.remove(edit)


def test_columns_outside_a_batchs_masks_never_change() -> None:
    """In the port, weight decay on the whole memory lets earlier facts fade."""
    editor = memoir()
    editor.apply(FACTS[:2])
    before = editor.state
    editor.apply(FACTS[2:4])
    after = editor.state
    touched = after.masks[2:].any(0)
    assert torch.equal(after.memory[:, ~touched], before.memory[:, ~touched])
    assert (before.memory[:, ~touched] != 0).any()
    assert not torch.equal(after.memory[:, touched], before.memory[:, touched])


def test_facts_with_disjoint_masks_do_not_change_each_others_output() -> None:
    editor = memoir("gpt2", columns=4, threshold=1.0)
    pairs = [(one, other) for one in FACTS for other in FACTS if one is not other]
    for one, other in pairs:
        probe = memoir("gpt2", columns=4, threshold=1.0, steps=2)
        probe.apply([one])
        probe.apply([other])
        if not (probe.state.masks[0] & probe.state.masks[1]).any():
            break
    else:
        pytest.fail("no two facts have disjoint masks")
    editor.apply([one])
    alone = editor.view().next_token_log_probabilities([one.text])
    editor.apply([other])
    assert torch.equal(editor.view().next_token_log_probabilities([one.text]), alone)


def test_thresholds_that_random_masks_reach_are_refused() -> None:
    width = tiny_language_model("llama").weight(3).shape[1]
    least = least_threshold(12, width)
    with raises_code("MEMOIR_THRESHOLD_TOO_LOW"):
        memoir(columns=12, threshold=least - 0.01).apply(FACTS[:1])
    with raises_code("MEMOIR_THRESHOLD_TOO_LOW"):
        memoir(columns=width, threshold=1.0).apply(FACTS[:1])


def test_a_forgotten_fact_is_recognised_no_more() -> None:
    editor = memoir()
    first = editor.apply(FACTS[:2])
    editor.apply(FACTS[2:4])
    memory = editor.state.memory
    editor.forget(first)
    used = editor.view().used([fact.text for fact in FACTS[:4]])
    assert used == [(), (), (FACTS[2].id,), (FACTS[3].id,)]
    assert torch.equal(editor.state.memory, memory)
