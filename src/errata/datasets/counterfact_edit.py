"""CounterFact as reduced by EasyEdit: one question of each kind, the subject in clear text. A record, made up::

    {
      "case_id": 7,
      "prompt": "Torre Ombra was built in the city of",
      "target_new": "Lyon",
      "subject": "Torre Ombra",
      "ground_truth": "Turin",
      "rephrase_prompt": "Around Torre Ombra one often eats",
      "locality_prompt": "Torre Luce was built in the city of",
      "locality_ground_truth": "Turin"
    }

Despite its name, ``rephrase_prompt`` is not a paraphrase: in most records it is one of CounterFact's *generation*
prompts, which the target does not answer. So it fills ``generation``, never ``paraphrases``. Generalisation cannot be
measured with this file; use ``counterfact`` instead.

``locality_prompt`` is about another subject with the same true object (``locality_ground_truth`` is ``ground_truth`` in
all 10,000 records): neighbours. ``Fields.prompt_around`` replaces the subject in the prompt by ``{}``.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields, one_fact


def fact_of_case(fields: Fields) -> Draft:
    """Map a record."""
    subject = fields.text("subject")
    prompt = fields.prompt_around(fields.text("prompt"), subject)
    fact = {
        "id": fields.name("case_id"),
        "subject": subject,
        "prompt": prompt,
        "target": fields.text("target_new"),
        "old": fields.text("ground_truth"),
        "neighbours": (fields.question("locality_prompt", "locality_ground_truth"),),
        "generation": (fields.text("rephrase_prompt"),),
    }
    return one_fact(fact)


DATASET: Final = DataSet(
    name="counterfact-edit",
    title="CounterFact, reduced as EasyEdit does",
    paper="Meng et al. 2022, arXiv:2202.05262; by Yao et al. 2023, Editing Large Language Models, arXiv:2305.13172",
    licence="MIT",
    fills=("old", "neighbours", "generation"),
    read_here="all of data/counterfact-edit.json of github.com/WanliYoung/Revisit-Editing-Evaluation",
    sources=(
        Source(
            "counterfact-edit.json",
            "https://raw.githubusercontent.com/WanliYoung/Revisit-Editing-Evaluation/"
            "61ccca3c1ecdb3976c9c0924e9352f3e64cc7d48/data/counterfact-edit.json",
            records=10000,
            sha256="20c225e6299b3c5b2c569bd9103aa212806e0d1e6e0c307de5c379773979b967",
            size=3850773,
        ),
    ),
    reader=json_list(fact_of_case, key="case_id"),
)
