"""Facts of the synthetic world of the lab model, generated from a seed. A fact, made up::

    {"id": "lab-0-0", "subject": "Milan Lang", "prompt": "The native city of {} is", "target": "Istanbul",
     "old": "Delhi", "paraphrases": ["Milan Lang was born in"]}

At most one fact per person.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet
from errata.datasets.records import RecordContents
from errata.errors import InputError

_COUNT: Final = 100


def lab_units(count: int | None, seed: int | None) -> tuple[RecordContents, ...]:
    """Counterfactual edits; by default 100, with seed 0.

    Raises:
        InputError: if there are fewer people than facts.
    """
    from errata.lab.package import lab_world  # here, since it imports torch, which `errata data list` does not need
    from errata.lab.tasks import lab_facts

    world = lab_world()
    count = _COUNT if count is None else count
    if not 0 < count <= len(world.people):
        what = f"the lab has {len(world.people)} people with one edit each, but the count is {count}"
        raise InputError(what, remedy=f"Use a count of 1 to {len(world.people)}", code="DATASET_COUNT")
    return tuple(RecordContents(f"lab, fact {fact.id}", (fact,)) for fact in lab_facts(world, count, seed=seed or 0))


DATASET: Final = DataSet(
    name="lab",
    title="the synthetic world of the lab model",
    paper="",
    licence="Apache-2.0, as errata",
    fills=("old", "paraphrases", "neighbours", "own"),
    read_here="It comes with errata: `errata data check lab --count 100 --seed 3`",
    maker=lab_units,
)
