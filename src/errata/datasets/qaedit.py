"""QAEdit: questions of three benchmarks that models answer wrongly. A record, made up::

    {
      "id": 7,
      "source": "NQ",
      "prompt": "who was the first keeper of Torre Ombra?",
      "target": "Ada Bruno",
      "subject": "first keeper of Torre Ombra",
      "rephrase": "Which person was Torre Ombra's first keeper?",
      "locality": [{"loc": "who painted the ceiling of the old opera", "loc_ans": "Jean Gris"}]
    }

``id`` is unique only within ``source``, so ids combine both: ``NQ-7``. ``rephrase`` is the paraphrase; ``locality`` are
unrelated questions, used unchanged, without a "?". There is no old answer: the target is the true answer.

The subject can be a long phrase, nearly all of the question, or one letter of it. ``Fields.prompt_around`` replaces it
by ``{}``; the few records in which it occurs several times are left out, with a note.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields, one_fact


def fact_of_question(fields: Fields) -> Draft:
    """Map a record."""
    subject = fields.text("subject")
    prompt = fields.prompt_around(fields.text("prompt"), subject)
    fact = {
        "id": f"{fields.text('source')}-{fields.name('id')}",
        "subject": subject,
        "prompt": prompt,
        "target": fields.text("target"),
        "paraphrases": (fields.text("rephrase"),),
        "unrelated": tuple(part.question("loc", "loc_ans") for part in fields.parts("locality")),
    }
    return one_fact(fact)


_REPOSITORY: Final = (
    "https://raw.githubusercontent.com/WanliYoung/Revisit-Editing-Evaluation/61ccca3c1ecdb3976c9c0924e9352f3e64cc7d48/"
)

DATASET: Final = DataSet(
    name="qaedit",
    title="QAEdit",
    paper="Yang et al. 2025, The Mirage of Model Editing: Revisiting Evaluation in the Wild, arXiv:2502.11177",
    licence="Apache-2.0",
    fills=("paraphrases", "unrelated"),
    read_here="all of data/QAEdit_inter_1k.json of github.com/WanliYoung/Revisit-Editing-Evaluation, and 500 other "
    "records; not all of QAEdit.json",
    sources=(
        Source("QAEdit.json", f"{_REPOSITORY}data/QAEdit.json"),
        Source(
            "QAEdit_inter_1k.json",
            f"{_REPOSITORY}data/QAEdit_inter_1k.json",
            records=1000,
            sha256="640e1d279759263fdaae543a385680d21a55aa3597ca8b597ffd7937fef07c42",
            size=1117792,
        ),
    ),
    reader=json_list(fact_of_question, key="id"),
)
