"""CounterFact, and multi-CounterFact, which has the same form. A record, made up::

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

What becomes of it: ``case_id`` -> id; ``relation_id`` -> relation; ``target_new`` -> target, ``target_true`` ->
old; ``paraphrase_prompts`` -> paraphrases; ``neighborhood_prompts`` (other subjects with the same true object) ->
neighbours, each with the answer ``target_true``; ``generation_prompts`` -> generation, repeats included, since one text
is written for each. ``attribute_prompts`` (other subjects whose true object is ``target_new``) are not used: no metric
asks them, and a reference text about them would have to come from elsewhere. ``pararel_idx`` and the ids of the targets
say nothing that an edit needs.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields

_FILLS: Final = ("old", "paraphrases", "neighbours", "generation", "relation")


def fact_of_case(fields: Fields) -> Draft:
    """A record of the form above."""
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
    fills=_FILLS,
    read_here="300 of its records; the address from dsets/counterfact.py of github.com/kmeng01/rome",
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
