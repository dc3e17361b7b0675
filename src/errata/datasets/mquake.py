"""MQuAKE: edits with multi-hop questions whose answers change. A record, made up and shortened::

    {
      "case_id": 7,
      "requested_rewrite": [
        {
          "prompt": "{} was built in the city of",
          "relation_id": "P19",
          "target_new": {"str": "Lyon", "id": "Q456"},
          "target_true": {"str": "Turin", "id": "Q495"},
          "subject": "Torre Ombra",
          "question": "In which city was Torre Ombra built?"
        }
      ],
      "questions": ["In which country is the city in which Torre Ombra was built?"],
      "answer": "Italy", "answer_alias": ["Italian Republic"],
      "new_answer": "France", "new_answer_alias": ["French Republic"],
      "single_hops": [],
      "new_single_hops": [
        {"question": "In which city was Torre Ombra built?", "cloze": "Torre Ombra was built in the city of",
         "answer": "Lyon", "answer_alias": ["Lyons"]}
      ],
      "orig": {}
    }

Each of ``requested_rewrite`` is a fact, ``7.0``, ``7.1`` and so on; its ``question`` is a paraphrase, and the aliases
of the new single hop with that very question are the target's aliases. ``questions`` with ``new_answer`` are
portability questions that follow from *all* facts of the record together, so a record is selected as a whole
(``reading.select``), and one that contradicts another, as in the first version of the file, is left out as a whole. A
question has one answer; ``new_answer_alias`` is not used, and neither are the answers before the edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields


def facts_of_case(fields: Fields) -> Draft:
    """Map a record."""
    case = fields.name("case_id")
    rewrites = fields.parts("requested_rewrite")
    if fields.has("requested_rewrite") and not rewrites:
        fields.fault("'requested_rewrite' is empty", "Correct the file", "FACT_EMPTY_FIELD")
    hops = fields.parts("new_single_hops") if fields.has("new_single_hops") else ()
    answer = fields.text("new_answer")
    return Draft(
        facts=tuple(_fact(rewrite, f"{case}.{number}", hops) for number, rewrite in enumerate(rewrites)),
        together=tuple({"prompt": question, "answer": answer} for question in fields.texts("questions")),
    )


def _fact(rewrite: Fields, name: str, hops: Sequence[Fields]) -> Mapping[str, Any]:
    question = rewrite.text_or_none("question")
    target = rewrite.part("target_new").text("str")
    aliases = [
        alias
        for hop in hops
        if question is not None and hop.text_or_none("question") == question
        for alias in hop.texts_if_any("answer_alias")
    ]
    return {
        "id": name,
        "subject": rewrite.text("subject"),
        "prompt": rewrite.text("prompt"),
        "target": target,
        "old": rewrite.part("target_true").text("str"),
        "paraphrases": () if question is None else (question,),
        "aliases": tuple(alias for alias in dict.fromkeys(aliases) if alias != target),
        "relation": rewrite.text_or_none("relation_id"),
    }


_FOLDER: Final = (
    "https://raw.githubusercontent.com/princeton-nlp/MQuAKE/fb43dadc2d8cd19d08ce81c63d957b59deb3f3cd/datasets/"
)

DATASET: Final = DataSet(
    name="mquake",
    title="MQuAKE",
    paper="Zhong et al. 2023, MQuAKE: Assessing Knowledge Editing via Multi-Hop Questions, arXiv:2305.14795",
    licence="MIT",
    fills=("old", "paraphrases", "portability", "aliases", "relation"),
    read_here="no complete file; format and counts from the README of github.com/princeton-nlp/MQuAKE",
    sources=(
        Source("MQuAKE-CF-3k-v2.json", f"{_FOLDER}MQuAKE-CF-3k-v2.json", records=3000),
        Source("MQuAKE-CF.json", f"{_FOLDER}MQuAKE-CF.json", records=9218),
        Source("MQuAKE-T.json", f"{_FOLDER}MQuAKE-T.json", records=1825),
        Source("MQuAKE-CF-3k.json", f"{_FOLDER}MQuAKE-CF-3k.json", records=3000),
    ),
    reader=json_list(facts_of_case, key="case_id"),
)
