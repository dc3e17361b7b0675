"""A file of one's own: JSON Lines, a JSON list or CSV (`facts_io`). A record in errata's own form::

    {"subject": "Torre Ombra", "prompt": "{} was built in the city of", "target": "Lyon", "old": "Turin"}

Records in the form of EasyEdit, KnowEdit, zsRE or CounterFact are taken too (`facts_foreign`). It is held to the rules
of every file of facts: what clashes in it is a fault, and nothing of it is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from errata.datasets.data_set import DataSet
from errata.datasets.records import Contents, Unit
from errata.facts.fact import FIELDS, REQUIRED_FIELDS
from errata.facts.files import read_facts


def read_own(path: Path, skip_faulty: bool) -> Contents:
    """A file of facts; ``skip_faulty`` is not for one's own file, which can be mended."""
    facts = read_facts(path)
    units = tuple(Unit(place, (fact,)) for fact, place in zip(facts, facts.places, strict=True))
    return Contents(units, facts.notes)


DATASET: Final = DataSet(
    name="jsonl",
    title="your own facts: JSON Lines, a JSON list or CSV, also in the form of EasyEdit, KnowEdit, zsRE or CounterFact",
    paper="",
    licence="yours",
    fills=tuple(name for name in FIELDS if name not in ("id", *REQUIRED_FIELDS)),
    read_here="Give your own file: a path that ends in .jsonl, .json or .csv",
    reader=read_own,
)
