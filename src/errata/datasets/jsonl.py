"""The user's own file: JSON Lines, a JSON list or CSV (``facts.files``). A record in errata's own format::

    {"subject": "Torre Ombra", "prompt": "{} was built in the city of", "target": "Lyon", "old": "Turin"}

Records in the format of EasyEdit, KnowEdit, zsRE or CounterFact are accepted too (``facts.easyedit``). Clashing facts
are errors here; nothing is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from errata.datasets.data_set import DataSet
from errata.datasets.records import Contents, RecordContents
from errata.facts.fact import FIELDS, REQUIRED_FIELDS
from errata.facts.files import read_facts


def read_own(path: Path, skip_faulty: bool) -> Contents:
    """A file of facts; ``skip_faulty`` does not apply, since the user can correct the file."""
    facts = read_facts(path)
    units = tuple(RecordContents(place, (fact,)) for fact, place in zip(facts, facts.places, strict=True))
    return Contents(units, facts.notes)


DATASET: Final = DataSet(
    name="jsonl",
    title="your own facts: JSON Lines, JSON list or CSV, also in the format of EasyEdit, KnowEdit, zsRE or CounterFact",
    paper="",
    licence="yours",
    fills=tuple(name for name in FIELDS if name not in ("id", *REQUIRED_FIELDS)),
    read_here="Give your own file: a path that ends in .jsonl, .json or .csv",
    reader=read_own,
)
