"""ME-PPL: human-written sentences for measuring an edited model's perplexity. A record, made up::

    {"Corpus": "Wikipedia", "Text": " The tower was closed to visitors in the second winter"}

These are texts, not facts, stripped of whitespace at both ends. The corpus is not stored. Duplicate texts are included,
as in the authors' perplexity.
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import Draft, Fields


def text_of(fields: Fields) -> Draft:
    """Map a record."""
    return Draft(text=fields.text("Text"))


_FOLDER: Final = (
    "https://raw.githubusercontent.com/WanliYoung/Collapse-in-Model-Editing/678beddf656385b660281de93a6650bb1b485ee9/"
    "data/ME-PPL/"
)

DATASET: Final = DataSet(
    name="me-ppl",
    title="ME-PPL",
    paper="Yang et al. 2024, The Butterfly Effect of Model Editing, Findings of ACL 2024, 2024.findings-acl.322",
    licence="MIT; the quoted texts keep their own terms",
    fills=("texts",),
    read_here="all three files in data/ME-PPL of github.com/WanliYoung/Collapse-in-Model-Editing",
    sources=(
        Source(
            "ME-PPL_1k.json",
            f"{_FOLDER}ME-PPL_1k.json",
            records=1000,
            sha256="71e29fc5daf443b35ec16c8a9e91e1f4398b5b84ca7c25393639c066b65b5afb",
            size=196508,
        ),
        Source(
            "ME-PPL_50.json",
            f"{_FOLDER}ME-PPL_50.json",
            records=50,
            sha256="55f3b951d2c4287b90d9e511f256efb9d47461f0da408a17dac5ffcef685c4e4",
            size=9527,
        ),
        Source(
            "ME-PPL.json",
            f"{_FOLDER}ME-PPL.json",
            records=10000,
            sha256="c09b3d8191ffad954bf3b5e96dac84a7caf83d57c15e262b1d81ef6590742fb4",
            size=1975615,
        ),
    ),
    reader=json_list(text_of),
)
