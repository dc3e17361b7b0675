"""A model that is edited for a while: for studies that compare many runs on one model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from errata.batch_record import BatchRecord
from errata.edit import Editor
from errata.facts import Fact


@contextmanager
def edited(editor: Editor, facts: Sequence[Fact], known: Sequence[BatchRecord] = ()) -> Iterator[list[BatchRecord]]:
    """Within it the model holds the facts, in batches of the recipe's size; behind it it is bit for bit what it was.

    Args:
        known: the first batches as another editor made them, if it could not but do there what this one would; they
            are put in and not made again.

    Yields:
        What each batch did that was not known, the keys that later batches keep in place among it.

    Raises:
        EditError, InputError: the model is what it was.
    """
    made: list[BatchRecord] = []
    size = editor.recipe.batch_size
    try:
        if known:
            editor.restore(known)
        for start in range(size * len(known), len(facts), size):
            made.append(editor.apply_batch(facts[start : start + size]))
        editor.show()
        yield made
    finally:
        editor.model.edits.remove(editor.patch().terms)
