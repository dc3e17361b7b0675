"""A file of one's own, in errata's own form (`facts_io`), JSON Lines or CSV. A record::

    {"subject": "Torre Ombra", "prompt": "{} was built in the city of", "target": "Lyon", "old": "Turin"}

It is held to the rules of every file of facts: what clashes in it is a fault, and nothing of it is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from errata.datasets.json_records import Contents
from errata.datasets.loaded import Unit
from errata.datasets.row import DataSet
from errata.facts import FIELDS
from errata.facts_io import read_facts
from errata.facts_rules import REQUIRED_FIELDS


def read_own(path: Path, skip_faulty: bool) -> Contents:
    """A file of facts; ``skip_faulty`` is not for one's own file, which can be mended."""
    facts = read_facts(path)
    return Contents(tuple(Unit(place, (fact,)) for fact, place in zip(facts, facts.places, strict=True)))


DATASET: Final = DataSet(
    name="jsonl",
    title="your own facts, JSONL or CSV",
    paper="",
    licence="yours",
    fills=tuple(name for name in FIELDS if name not in ("id", *REQUIRED_FIELDS)),
    read_here="Give your own file: a path that ends in .jsonl or .csv",
    reader=read_own,
)
