"""CounterFact, and multi-CounterFact, which has no contradictory records, for many edits of one model.

Both have the same format. A record, made up::

    {
      "case_id": 7,
      "pararel_idx": 11,
      "requested_rewrite": {
        "prompt": "{} was built in the city of",
        "relation_id": "P19",
        "target_new": {"str": "Lyon", "id": "Q456"},
        "target_true": {"str": "Turin", "id": "Q495"},
        "subject": "Torre Ombra"
      },
      "paraphrase_prompts": ["It rained that day. Torre Ombra stands in"],
      "neighborhood_prompts": ["Torre Luce was built in the city of"],
      "attribute_prompts": ["Tour Grise was built in the city of"],
      "generation_prompts": ["Around Torre Ombra one often eats"]
    }

``case_id`` -> id; ``relation_id`` -> relation; ``target_new`` -> target, ``target_true`` -> old;
``paraphrase_prompts`` -> paraphrases; ``neighborhood_prompts`` (other subjects with the same true object) ->
neighbours, each with the answer ``target_true``; ``generation_prompts`` -> generation, including duplicates, since one
text is generated for each. No metric uses ``attribute_prompts`` (other subjects whose true object is ``target_new``).
``pararel_idx`` and the ids of the targets are not needed.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields


def fact_of_case(fields: Fields) -> Draft:
    """Map a record."""
    rewrite = fields.part("requested_rewrite")
    truth = rewrite.part("target_true").text("str")
    return Draft(
        facts=(
            {
                "id": fields.name("case_id"),
                "subject": rewrite.text("subject"),
                "prompt": rewrite.text("prompt"),
                "target": rewrite.part("target_new").text("str"),
                "old": truth,
                "paraphrases": fields.texts("paraphrase_prompts"),
                "neighbours": tuple(
                    {"prompt": prompt, "answer": truth} for prompt in fields.texts("neighborhood_prompts")
                ),
                "generation": fields.texts("generation_prompts"),
                "relation": rewrite.text_or_none("relation_id"),
            },
        )
    )


DATASET: Final = DataSet(
    name="counterfact",
    title="CounterFact",
    paper="Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv:2202.05262",
    licence="MIT",
    fills=("old", "paraphrases", "neighbours", "generation", "relation"),
    read_here="300 of its records; URL from dsets/counterfact.py of github.com/kmeng01/rome",
    sources=(
        Source(
            "counterfact.json",
            "https://rome.baulab.info/data/dsets/counterfact.json",
            records=21919,
            page="https://rome.baulab.info/data/dsets/",
        ),
    ),
    reader=json_list(fact_of_case, key="case_id"),
)
MULTI: Final = DataSet(
    name="multi-counterfact",
    title="multi-CounterFact",
    paper="Meng et al. 2023, Mass-Editing Memory in a Transformer, arXiv:2210.07229",
    licence="MIT",
    fills=DATASET.fills,
    read_here="not the file; its format and URL from dsets/counterfact.py of github.com/kmeng01/memit",
    sources=(
        Source(
            "multi_counterfact.json",
            "https://memit.baulab.info/data/dsets/multi_counterfact.json",
            page="https://memit.baulab.info/data/dsets/",
        ),
    ),
    reader=DATASET.reader,
)
