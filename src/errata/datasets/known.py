"""KnownFacts: what GPT-2-XL knows, for causal tracing. A record, made up::

    {
      "known_id": 7,
      "subject": "Torre Ombra",
      "attribute": "Turin",
      "template": "{} was built in",
      "prediction": " the city of Turin, where it stands",
      "prompt": "Torre Ombra was built in the city of",
      "relation_id": "P19"
    }

``prompt`` is the filled template with the words that the model put before ``attribute``; the attribute follows it, so
it is the prompt that is used and not the template. Nothing is edited here: ``attribute`` is both target and old answer,
and what `errata locate` asks for is the old answer. ``prediction`` is another model's text and is not used.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import AMBIGUOUS, Draft, Fields


def fact_known(fields: Fields) -> Draft:
    """A record of the form above."""
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
    return Draft(left_out=AMBIGUOUS) if prompt is None else Draft(facts=(fact,))


DATASET: Final = DataSet(
    name="known",
    title="KnownFacts (known_1000)",
    paper="Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv:2202.05262",
    licence="MIT",
    fills=("old", "relation"),
    read_here="1,209 records, in a copy whose bytes could not be compared with the authors'; the address from "
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
