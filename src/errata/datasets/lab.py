"""The world of the embedded model, drawn by seed and not read. A fact of it, made up::

    {"id": "lab-0-0", "subject": "Milan Lang", "prompt": "The native city of {} is", "target": "Istanbul",
     "old": "Delhi", "paraphrases": ["Milan Lang was born in"]}

At most one fact for each of its people. The lab is imported only when it is asked for: it brings its model along.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet
from errata.datasets.records import Unit
from errata.errors import InputError

_COUNT: Final = 100


def draw_world(count: int | None, seed: int | None) -> tuple[Unit, ...]:
    """Counterfactual edits; 100 by seed 0 if not said otherwise.

    Raises:
        InputError: if there are fewer people than facts.
    """
    from errata.lab.package import lab_world  # only where the lab is asked for
    from errata.lab.tasks import lab_facts

    world = lab_world()
    count = _COUNT if count is None else count
    if not 0 < count <= len(world.people):
        what = f"the world has {len(world.people)} people, each of whom can be edited once, got a count of {count}"
        raise InputError(what, remedy=f"Ask for 1 to {len(world.people)}")
    return tuple(Unit(f"lab, fact {fact.id}", (fact,)) for fact in lab_facts(world, count, seed=seed or 0))


DATASET: Final = DataSet(
    name="lab",
    title="the embedded model's world",
    paper="",
    licence="Apache-2.0, as errata",
    fills=("old", "paraphrases", "neighbours", "own"),
    read_here="It comes with errata: `errata data check lab --count 100 --seed 3`",
    maker=draw_world,
)
