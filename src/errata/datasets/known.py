"""KnownFacts: facts that GPT-2-XL knows, for causal tracing. A record, made up::

    {
      "known_id": 7,
      "subject": "Torre Ombra",
      "attribute": "Turin",
      "template": "{} was built in",
      "prediction": " the city of Turin, where it stands",
      "prompt": "Torre Ombra was built in the city of",
      "relation_id": "P19"
    }

``prompt`` is the filled template with the words that the model generated before ``attribute``, so the prompt is used,
not the template. ``attribute`` is both target and old answer: nothing is edited, and `errata locate` uses the old
answer. ``prediction`` is another model's text and is not used.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields, one_fact


def fact_known(fields: Fields) -> Draft:
    """Map a record."""
    subject = fields.text("subject")
    prompt = fields.prompt_around(fields.text("prompt"), subject)
    attribute = fields.text("attribute")
    fact = {
        "id": f"known-{fields.name('known_id')}",
        "subject": subject,
        "prompt": prompt,
        "target": attribute,
        "old": attribute,
        "relation": fields.text_or_none("relation_id"),
    }
    return one_fact(fact)


DATASET: Final = DataSet(
    name="known",
    title="KnownFacts (known_1000)",
    paper="Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv:2202.05262",
    licence="MIT",
    fills=("old", "relation"),
    read_here="1,209 records, in a copy that could not be compared with the authors' file; URL from "
    "dsets/knowns.py of github.com/kmeng01/rome",
    sources=(
        Source(
            "known_1000.json",
            "https://rome.baulab.info/data/dsets/known_1000.json",
            records=1209,
            page="https://rome.baulab.info/data/dsets/",
        ),
    ),
    reader=json_list(fact_known, key="known_id"),
)
