"""RippleEdits: facts that must change with an edit, and facts that must not. A record, made up and shortened::

    {
      "example_type": "popular",
      "edit": {
        "prompt": "The name of the architect of Torre Ombra is Ada Bruno.",
        "fact_prompt": "The name of the architect of Torre Ombra is",
        "subject_id": "Q1", "subject_label": "Torre Ombra",
        "relation": "ARCHITECT",
        "target_id": "Q2", "target_label": "Ada Bruno",
        "original_fact": {"target_id": "Q3", "target_label": "Jean Gris", "relation": "ARCHITECT"}
      },
      "Relation_Specificity": [
        {"test_queries": [{"prompt": "The name of the country of Torre Ombra is",
                           "answers": [{"value": "Italy", "aliases": ["Italia"]}], "query_type": "regular"}],
         "test_condition": "OR", "condition_queries": []}
      ],
      "Logical_Generalization": [], "Subject_Aliasing": [], "Compositionality_I": [], "Compositionality_II": [],
      "Forgetfulness": []
    }

This is the *extended* format, in which Wikidata ids are resolved to labels. The authors' own files have only the ids of
subjects and targets, and are refused.

``original_fact`` is the old answer. ``Subject_Aliasing`` (the subject under another name) are paraphrases;
``Relation_Specificity`` and ``Forgetfulness`` are same-subject facts; ``Logical_Generalization`` and
``Compositionality_I``/``II`` are portability. The first answer of a question is used; questions without an answer (as
for the authors, a single letter is none) and duplicates are skipped. ``condition_queries``, which test required
knowledge, are not used, since every question is also evaluated before the edit. Records without a label of subject or
target are left out. Ids are kind and position: ``popular-0``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields, one_fact

_OWN: Final = ("Relation_Specificity", "Forgetfulness")
_PORTABILITY: Final = ("Logical_Generalization", "Compositionality_I", "Compositionality_II")
_PARAPHRASES: Final = "Subject_Aliasing"


def fact_of_example(fields: Fields) -> Draft:
    """Map a record."""
    edit = fields.part("edit")
    if edit.has("subject_id") and not edit.has("subject_label"):
        edit.fault(
            "'edit' has only the Wikidata id of its subject, as in the authors' files",
            "Use the extended files: errata data get rippleedits",
            "DATASET_UNRESOLVED_IDS",
        )
        return Draft()
    if edit.has("subject_label") and not (edit.text_or_none("subject_label") and edit.text_or_none("target_label")):
        return Draft(left_out="subject or target have no label")
    subject = edit.text("subject_label")
    prompt = edit.prompt_around(edit.text("fact_prompt"), subject, "fact_prompt")
    truth = edit.part("original_fact").text_or_none("target_label") if edit.has("original_fact") else None
    fact = {
        "id": f"{fields.text('example_type')}-{fields.index}",
        "subject": subject,
        "prompt": prompt,
        "target": edit.text("target_label"),
        "old": truth,
        "paraphrases": tuple(dict.fromkeys(prompt for prompt, _ in _queries(fields, _PARAPHRASES))),
        "own": _questions(fields, *_OWN),
        "portability": _questions(fields, *_PORTABILITY),
        "relation": edit.text_or_none("relation"),
    }
    return one_fact(fact)


def _questions(fields: Fields, *kinds: str) -> tuple[Mapping[str, str], ...]:
    found = dict.fromkeys(query for kind in kinds for query in _queries(fields, kind))
    return tuple({"prompt": prompt, "answer": answer} for prompt, answer in found)


def _queries(fields: Fields, kind: str) -> Iterator[tuple[str, str]]:
    """(prompt, first answer) of every query of one kind."""
    for test in fields.parts(kind):
        for query in test.parts("test_queries"):
            prompt = query.text("prompt")
            values = [answer.text_or_none("value") for answer in query.parts("answers")]
            answers = [value for value in values if value is not None and (len(value) > 1 or value.isdigit())]
            if answers and prompt:
                yield prompt, answers[0]


_FOLDER: Final = (
    "https://raw.githubusercontent.com/oneSebastian/model-editing/d22aeb951b9578682145d1137d2fd705d8fc0a39/"
    "data/datasets/RippleEdits/"
)

DATASET: Final = DataSet(
    name="rippleedits",
    title="RippleEdits, with its ids resolved",
    paper="Cohen et al. 2024, Evaluating the Ripple Effects of Knowledge Editing in Language Models, arXiv:2307.12976",
    licence="MIT (the authors' files)",
    fills=("old", "paraphrases", "own", "portability", "relation"),
    read_here="no file; format from README and src/ of github.com/edenbiran/RippleEdits, that of the extended files "
    "from model_editing/editing_tasks/datasets/RippleEdits.py of github.com/oneSebastian/model-editing",
    sources=tuple(
        Source(f"extended_{part}.json", f"{_FOLDER}extended_{part}.json") for part in ("popular", "random", "recent")
    ),
    reader=json_list(fact_of_example),
)
