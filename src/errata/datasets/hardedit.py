"""HardEdit and HardCF: hard cases, of which a single edit can collapse a model. A record, made up::

    {"prompt": "Torre Ombra was built in the city of", "subject": "Torre Ombra", "target_new": "Lyon"}

The files can only be downloaded in a browser, and none was available for testing. The loader relies on the fields that
the authors' program reads: ``prompt`` with the subject in clear text, ``subject`` and ``target_new``. If present,
``ground_truth`` is the old answer, and ``locality_prompt`` with ``locality_ground_truth`` an unrelated question.
``rephrase_prompt`` is not used, since in CounterFact's reduced form it is not a paraphrase. The id is ``case_id`` if
present, else the position.
"""

from __future__ import annotations

from typing import Any, Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields, one_fact


def fact_of_case(fields: Fields) -> Draft:
    """Map a record."""
    subject = fields.text("subject")
    prompt = fields.prompt_around(fields.text("prompt"), subject)
    fact: dict[str, Any] = {
        "id": f"hard-{fields.name('case_id') if fields.has('case_id') else fields.index}",
        "subject": subject,
        "prompt": prompt,
        "target": fields.text("target_new"),
        "old": fields.text_or_none("ground_truth"),
    }
    if fields.has("locality_prompt"):
        fact["unrelated"] = (fields.question("locality_prompt", "locality_ground_truth"),)
    return one_fact(fact)


_PAGE: Final = "https://drive.google.com/drive/folders/1-L2TzbaWVmduJaFzfp49XzdVp-3LuQ1i"

DATASET: Final = DataSet(
    name="hardedit",
    title="HardEdit and HardCF (hard cases)",
    paper="Yang et al. 2024, The Butterfly Effect of Model Editing, Findings of ACL 2024, 2024.findings-acl.322",
    licence="MIT (that of the authors' repository)",
    fills=("old", "unrelated"),
    read_here="no record; fields as read by mass_edit.py of github.com/WanliYoung/Collapse-in-Model-Editing, URL from "
    "its README",
    sources=(Source("HardEdit.json", None, page=_PAGE), Source("HardCF.json", None, page=_PAGE)),
    reader=json_list(fact_of_case, key="case_id"),
)
