"""Facts are searched in groups of similar length that fit in memory, which changes no target."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.hooks import RemovableHandle

from errata.editing.search_groups import FactLength, GroupLimits, groups_of, halved, memory_of_rows
from errata.editing.search_prompts import fact_lengths
from errata.editing.target_loss import TargetSettings
from errata.editing.target_search import Targets, find_targets
from errata.models.language_model import LanguageModel, Site
from errata.models.size import ModelSize

from tests.support.editing import FACTS, tiny_language_model

SETTINGS = TargetSettings(learning_rate=0.5, steps=4, stop_loss=0.0)
PREFIXES = ("The rain", "Therefore the river runs through the city, because")
LENGTHS = st.lists(
    st.builds(FactLength, st.integers(2, 7), st.just(7), st.integers(0, 30), st.integers(1, 20), st.integers(2, 20)),
    min_size=1,
    max_size=30,
)


def searched(model: LanguageModel, **options: Any) -> Targets:
    return find_targets(model, FACTS, PREFIXES, 1, Site.BLOCK, SETTINGS, **options)


@given(LENGTHS, st.integers(1, 60), st.integers(1, 400), st.integers(1, 10**8))
def test_groups_hold_every_fact_once_and_stay_within_their_limits(
    lengths: list[FactLength], rows: int, tokens: int, memory: int
) -> None:
    size = ModelSize(8, 64, 256, 500, 10**6, 10**5, 10**4, 32_000, 64, 32)
    groups = groups_of(lengths, GroupLimits(rows, tokens, memory), size, 2, 4)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        own = [lengths[index] for index in group]
        together, replayed = sum(each.rows for each in own), max(each.replayed for each in own)
        read = sum(each.rows * each.replayed for each in own)
        needed = memory_of_rows(
            size,
            2,
            4,
            rows=together,
            slots=max(each.before for each in own),
            replayed=replayed,
            wanted=sum(each.wanted for each in own),
        )
        assert len(group) == 1 or (together <= rows and read <= tokens and needed.total <= memory)
    # Similar facts are together: no group is longer than a later one.
    longest = [max(lengths[index].replayed for index in group) for group in groups]
    assert longest == sorted(longest)
    assert groups_of(lengths, GroupLimits(10**9)) == [list(range(len(lengths)))]
    parts = list(halved(groups))
    assert [index for part in parts for index in part] == [index for group in groups for index in group]
    assert max(map(len, parts)) == (max(map(len, groups)) + 1) // 2


def test_lengths_are_those_of_the_texts_in_all_contexts() -> None:
    model = tiny_language_model("llama")
    found = fact_lengths(model, FACTS, PREFIXES)
    for fact, length in zip(FACTS, found, strict=True):
        assert length.rows == len(PREFIXES) + 2
        texts = [f"{fact.text} {fact.target}", *(f"{prefix}. {fact.text} {fact.target}" for prefix in PREFIXES)]
        longest = max(len(model.tokenizer(text)["input_ids"]) for text in texts)
        assert longest - 1 == length.before + length.replayed  # the last token of the target is not read
    alone = [fact_lengths(model, [fact], PREFIXES)[0] for fact in FACTS]
    assert alone == found


def test_less_free_memory_makes_smaller_groups_and_equal_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model("llama")
    expected = searched(model)
    lengths, size = fact_lengths(model, FACTS, PREFIXES), ModelSize.of(model.model)
    assert len(groups_of(lengths, GroupLimits.of(model, None), size, 1, 4)) <= 2
    of_one = memory_of_rows(size, 1, 4, rows=4, slots=max(each.before for each in lengths), replayed=1, wanted=4)
    small = GroupLimits(1024, None, of_one.total)
    assert len(groups_of(lengths, small, size, 1, 4)) == len(FACTS)
    found = searched(model, row_budget=1)
    torch.testing.assert_close(found.delta, expected.delta, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.evaluations, expected.evaluations)


@contextmanager
def memory_for(model: LanguageModel, rows: int, error: type[Exception]) -> Iterator[None]:
    """Memory runs out in every pass of more than some rows that takes a gradient."""

    def check(module: object, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and len(args[0]) > rows:
            raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    handle: RemovableHandle = model.blocks[3].register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_group_that_runs_out_of_memory_is_searched_in_halves(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_language_model("llama")
    expected, before = searched(model), model.fingerprint()
    with caplog.at_level(logging.WARNING), memory_for(model, 10, error):
        found = searched(model)
    assert any("out of memory" in record.message for record in caplog.records)
    torch.testing.assert_close(found.delta, expected.delta, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.first_loss, expected.first_loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.evaluations, expected.evaluations)
    with memory_for(model, 0, error), pytest.raises(error):
        searched(model)
    assert model.fingerprint() == before


def test_other_errors_are_not_taken_for_memory() -> None:
    model = tiny_language_model("llama")

    def fail(module: object, args: object) -> None:
        raise RuntimeError("another reason")

    handle = model.blocks[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="another reason"):
        searched(model)
    handle.remove()
