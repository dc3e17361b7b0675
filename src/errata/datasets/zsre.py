"""zsRE in the two readings in use, as two data sets whose results cannot be compared.

A record, made up::

    {
      "subject": "Torre Ombra",
      "src": "In which year was Torre Ombra finished?",
      "pred": "1911",
      "rephrase": "What year saw the completion of Torre Ombra?",
      "alt": "1937",
      "answers": ["1924", "in 1924"],
      "loc": "nq question: who painted the ceiling of the old opera",
      "loc_ans": "Jean Gris",
      "cond": "1911 >> 1937 || In which year was Torre Ombra finished?",
      "portability": {
        "Recalled Relation": "(1937, decade, 1930s)",
        "New Question": "In which decade was Torre Ombra finished?",
        "New Answer": "The 1930s"
      }
    }

``zsre-answers`` (MEMIT and its successors): the model is corrected to the true answer. The target is the first of
``answers``, the others are aliases; there is no old answer. ``portability`` is not filled, since its questions were
written for ``alt``: their answers do not follow from the true answer.

``zsre-alt`` (EasyEdit): the model is edited to the alternative. The target is ``alt``; the old answer is the first of
``answers`` that differs from ``alt`` (there may be none). A record whose ``alt`` is empty is left out, as in EasyEdit.
``portability`` is filled if the file has it.

Both: ``rephrase`` is the paraphrase. ``loc`` is an unrelated question with the answer ``loc_ans``; its prefix
"nq question: " is retained, and a "?" is added if missing, as in MEMIT. ``Fields.prompt_around`` replaces the subject
in ``src`` by ``{}``. ``pred`` and ``cond`` come from another model and are not used. The file has no ids, so they count
positions: ``zsre-0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields, one_fact


def fact_by_answers(fields: Fields) -> Draft:
    """The reading of MEMIT."""
    fact = _common(fields)
    answers = _answers(fields)
    fact |= {"target": answers[0] if answers else "", "aliases": tuple(dict.fromkeys(answers[1:]))}
    return one_fact(fact)


def fact_by_alternative(fields: Fields) -> Draft:
    """The reading of EasyEdit."""
    fact = _common(fields)
    answers = _answers(fields)
    if fields.has("alt") and fields.text_or_none("alt") is None and not fields.faults:
        return Draft(left_out="'alt' is empty, so there is nothing to edit to")
    target = fields.text("alt")
    portability: tuple[Mapping[str, str], ...] = ()
    if fields.has("portability"):
        portability = (fields.part("portability").question("New Question", "New Answer"),)
    truth = next((answer for answer in answers if answer != target), None)
    return one_fact(fact | {"target": target, "old": truth, "portability": portability})


def _common(fields: Fields) -> dict[str, Any]:
    subject = fields.text("subject")
    question = fields.text("loc")
    return {
        "id": f"zsre-{fields.index}",
        "subject": subject,
        "prompt": fields.prompt_around(fields.text("src"), subject, "src"),
        "paraphrases": (fields.text("rephrase"),),
        "unrelated": (
            {"prompt": question if question.endswith("?") else f"{question}?", "answer": fields.text("loc_ans")},
        ),
    }


def _answers(fields: Fields) -> tuple[str, ...]:
    answers = fields.texts("answers")
    if fields.has("answers") and not answers and not fields.faults:
        fields.fault("'answers' is empty", "Correct the file", "FACT_EMPTY_FIELD")
    return answers


_PAPER: Final = "Levy et al. 2017, arXiv:1706.04115; De Cao et al. 2021, arXiv:2104.08164; Mitchell et al. 2022 (MEND)"
_READ: Final = (
    "600 records with portability questions; the reading of `answers` from dsets/zsre.py of github.com/kmeng01/memit, "
    "that of `alt` from easyeditor/dataset/zsre.py of github.com/WanliYoung/Collapse-in-Model-Editing; no complete file"
)
_MEMIT: Final = Source(
    "zsre_mend_eval.json",
    "https://memit.baulab.info/data/dsets/zsre_mend_eval.json",
    page="https://memit.baulab.info/data/dsets/",
)
_EASY: Final = Source(
    "zsre_eval_10000.json",
    "https://raw.githubusercontent.com/WanliYoung/Revisit-Editing-Evaluation/"
    "61ccca3c1ecdb3976c9c0924e9352f3e64cc7d48/data/zsre_eval_10000.json",
)
_PORTABILITY: Final = Source("zsre_mend_eval_portability_gpt4.json", None, page="https://github.com/zjunlp/EasyEdit")

ANSWERS: Final = DataSet(
    name="zsre-answers",
    title="zsRE, corrected to the true answer (MEMIT)",
    paper=_PAPER,
    licence="MIT",
    fills=("paraphrases", "unrelated", "aliases"),
    read_here=_READ,
    sources=(_MEMIT, _EASY, _PORTABILITY),
    reader=json_list(fact_by_answers),
    folder="zsre",
)
ALTERNATIVE: Final = DataSet(
    name="zsre-alt",
    title="zsRE, edited to the alternative (EasyEdit)",
    paper=_PAPER,
    licence="MIT",
    fills=("old", "paraphrases", "unrelated", "portability"),
    read_here=_READ,
    sources=(_MEMIT, _EASY, _PORTABILITY),
    reader=json_list(fact_by_alternative),
    folder="zsre",
)
