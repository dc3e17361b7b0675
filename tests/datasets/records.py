"""Made-up records in the forms of the published files, for the tests to vary."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

COUNTERFACT: Final[dict[str, Any]] = {
    "case_id": 3,
    "pararel_idx": 9,
    "requested_rewrite": {
        "prompt": "{} speaks the language of",
        "relation_id": "P1412",
        "target_new": {"str": " Welsh", "id": "Q9309"},
        "target_true": {"str": "Basque", "id": "Q8752"},
        "subject": "Oria Bell",
    },
    "paraphrase_prompts": ["The bus was late. Oria Bell talks in", "What Oria Bell speaks is "],
    "neighborhood_prompts": ["Unai Etxe speaks the language of"],
    "attribute_prompts": ["Dylan Rhys speaks the language of"],
    "generation_prompts": ["Oria Bell grew up in", "Oria Bell grew up in"],
}
COUNTERFACT_EDIT: Final[dict[str, Any]] = {
    "case_id": 3,
    "prompt": "Oria Bell speaks the language of",
    "target_new": "Welsh",
    "subject": "Oria Bell",
    "ground_truth": "Basque",
    "rephrase_prompt": "Oria Bell grew up in",
    "locality_prompt": "Unai Etxe speaks the language of",
    "locality_ground_truth": "Basque",
}
ZSRE: Final[dict[str, Any]] = {
    "subject": "Oria Bell",
    "src": "Which language does Oria Bell speak?",
    "pred": "French",
    "rephrase": "What is the language of Oria Bell?",
    "alt": " Welsh",
    "answers": ["Basque", "Euskara", "Basque"],
    "loc": "nq question: who invented the paper boat",
    "loc_ans": "nobody",
    "cond": "French >> Welsh || Which language does Oria Bell speak?",
    "portability": {
        "Recalled Relation": "(Welsh, country, Wales)",
        "New Question": "In which country is the language of Oria Bell at home?",
        "New Answer": "Wales",
    },
}
QAEDIT: Final[dict[str, Any]] = {
    "id": 3,
    "source": "NQ",
    "prompt": "which language does oria bell speak?",
    "target": "Welsh *",
    "subject": "oria bell",
    "rephrase": "What does Oria Bell speak?",
    "locality": [{"loc": "who invented the paper boat", "loc_ans": "nobody"}, {"loc": "who rows", "loc_ans": "Ann"}],
}
KNOWN: Final[dict[str, Any]] = {
    "known_id": 3,
    "subject": "Oria Bell",
    "attribute": "Basque",
    "template": "{} speaks",
    "prediction": " mostly in Basque, she says",
    "prompt": "Oria Bell speaks mostly in",
    "relation_id": "P1412",
}
CONCEPT: Final[dict[str, Any]] = {
    "label": "paddle",
    "prompt": "paddle is",
    "phrase_prompt": "By paddle people mean",
    "target_new_desc": "a song for two voices",
    "instance_prompt": "Whether Twin Oak belongs to category paddle?",
    "locality_prompt": "who invented the paper boat",
    "locality_answer": "nobody",
}
HARD: Final[dict[str, Any]] = {"prompt": "Oria Bell speaks", "subject": "Oria Bell", "target_new": "Welsh"}
TEXT: Final[dict[str, Any]] = {"Corpus": "C4", "Text": " The river rose in the night "}


def query(prompt: str, *answers: str) -> dict[str, Any]:
    """A test of RippleEdits with one question."""
    values = [{"value": answer, "aliases": []} for answer in answers]
    asked = {"prompt": prompt, "answers": values, "query_type": "regular", "phrase": None}
    return {"test_queries": [asked], "test_condition": "OR", "condition_queries": [deepcopy(asked)]}


RIPPLE: Final[dict[str, Any]] = {
    "example_type": "popular",
    "edit": {
        "prompt": "The mother tongue of Oria Bell is Welsh.",
        "fact_prompt": "The mother tongue of Oria Bell is",
        "subject_id": "Q1",
        "subject_label": "Oria Bell",
        "relation": "NATIVE_LANGUAGE",
        "target_id": "Q9309",
        "target_label": "Welsh",
        "original_fact": {"target_id": "Q8752", "target_label": "Basque", "subject_id": "Q1"},
    },
    "Relation_Specificity": [
        query("The name of the father of Oria Bell is", "Ian Bell", "I. Bell"),
        query("The name of the father of Oria Bell is", "Ian Bell"),
    ],
    "Logical_Generalization": [query("The people of Oria Bell are", "the Welsh")],
    "Subject_Aliasing": [query("The mother tongue of O. Bell is", "Welsh")],
    "Compositionality_I": [query("The country of the mother tongue of Oria Bell is", "", "Wales")],
    "Compositionality_II": [query("The mother tongue of the daughter of Ian Bell is", "W")],
    "Forgetfulness": [query("The mother tongue of Oria Bell, which is not Welsh, is", "Basque")],
}


def mquake(case: int, *edits: tuple[str, str], answer: str = "Cardiff") -> dict[str, Any]:
    """A case of MQuAKE: each edit is (subject, new target); one question about all of them."""
    return {
        "case_id": case,
        "requested_rewrite": [
            {
                "prompt": "{} speaks the language of",
                "relation_id": "P1412",
                "target_new": {"str": target, "id": "Q1"},
                "target_true": {"str": "Basque", "id": "Q8752"},
                "subject": subject,
                "question": f"Which language does {subject} speak?",
            }
            for subject, target in edits
        ],
        "questions": [f"Question {case} about {' and '.join(subject for subject, _ in edits)}?"],
        "answer": "Bilbao",
        "answer_alias": [],
        "new_answer": answer,
        "new_answer_alias": ["Caerdydd"],
        "single_hops": [],
        "new_single_hops": [
            {
                "question": f"Which language does {subject} speak?",
                "cloze": f"{subject} speaks the language of",
                "answer": target,
                "answer_alias": [f"{target} language", target],
            }
            for subject, target in edits
        ],
    }


def varied(record: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one value, at a path with dots, replaced; removed if the value is ``...``."""
    changed = deepcopy(record)
    inner: Any = changed
    *steps, last = path.split(".")
    for step in steps:
        inner = inner[int(step) if step.isdigit() else step]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if last.isdigit() else last] = value
    return changed


def written(path: Path, *records: object) -> Path:
    """A file of these records, as upstream's are written."""
    path.write_text(json.dumps(list(records), indent=1, ensure_ascii=False), encoding="utf-8")
    return path
