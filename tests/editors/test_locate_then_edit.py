"""Runs of a locate-then-edit method one after another, between which edits are removed and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errata.editing import preparation
from errata.editors.locate_then_edit import LocateThenEdit

from tests.support.editing import (
    FACTS,
    assert_same_bits,
    parameter_bits,
    tiny_language_model,
    tiny_recipe,
    write_corpus,
)


def test_contexts_and_statistics_are_those_of_the_base_in_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, read = tiny_recipe(write_corpus(tmp_path / "corpus.txt")), []
    own = preparation.moments_for

    def counted(*arguments: Any, **options: Any) -> Any:
        read.append(arguments)
        return own(*arguments, **options)

    monkeypatch.setattr(preparation, "moments_for", counted)
    one, other = (LocateThenEdit(tiny_language_model("gpt2"), recipe, cache=tmp_path / "cache") for _ in range(2))
    base = one.fingerprint()
    first = one.apply(FACTS[:2])
    second = one.apply(FACTS[2:4])
    # Another run on the first edit, of a method without a history.
    other.restore(first)
    again = other.apply(FACTS[2:4])
    assert_same_bits(parameter_bits(other.model), parameter_bits(one.model))
    assert (again.fingerprint, again.prefixes) == (second.fingerprint, first.prefixes)
    assert other.prepared is not None
    assert other.prepared.fingerprint == base
    # After a removal, nothing is read again.
    count = len(read)
    one.remove(first)
    with_second = one.fingerprint()
    third = one.apply(FACTS[4:6])
    assert len(read) == count
    assert (third.fingerprint, third.prefixes) == (with_second, first.prefixes)
    one.remove(second)
    one.remove(third)
    assert one.fingerprint() == base
