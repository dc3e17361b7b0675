"""HardEdit and HardCF: hard cases, of which one edit can make a model collapse. A record, made up::

    {"prompt": "Torre Ombra was built in the city of", "subject": "Torre Ombra", "target_new": "Lyon"}

The files lie in a folder that only a person can open, and none could be read here. What the loader relies on is what
the authors' own program reads of such records: ``prompt`` with the subject in clear text, ``subject`` and
``target_new``. A ``ground_truth`` becomes the old answer, and ``locality_prompt`` with ``locality_ground_truth`` an
unrelated question, where a file has them. ``rephrase_prompt`` is not used: whether it is a paraphrase here could not be
seen, and in CounterFact's reduced form it is none. Facts are named by ``case_id`` if there is one, else by position.
"""

from __future__ import annotations

from typing import Any, Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import AMBIGUOUS, Draft, Fields


def fact_of_case(fields: Fields) -> Draft:
    """A record of the form above."""
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
        asked = {"prompt": fields.text("locality_prompt"), "answer": fields.text("locality_ground_truth")}
        fact["unrelated"] = (asked,)
    return Draft(left_out=AMBIGUOUS) if prompt is None else Draft(facts=(fact,))


_PAGE: Final = "https://drive.google.com/drive/folders/1-L2TzbaWVmduJaFzfp49XzdVp-3LuQ1i"

DATASET: Final = DataSet(
    name="hardedit",
    title="HardEdit and HardCF (hard cases)",
    paper="Yang et al. 2024, The Butterfly Effect of Model Editing, Findings of ACL 2024, 2024.findings-acl.322",
    licence="MIT (that of the authors' repository)",
    fills=("old", "unrelated"),
    read_here="no record; the fields that mass_edit.py of github.com/WanliYoung/Collapse-in-Model-Editing reads, and "
    "the folder's address from its README",
    sources=(Source("HardEdit.json", None, page=_PAGE), Source("HardCF.json", None, page=_PAGE)),
    reader=json_list(fact_of_case, key="case_id"),
)
