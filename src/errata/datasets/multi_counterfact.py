"""multi-CounterFact: CounterFact without records that contradict each other, for many edits in one model.

Its records have CounterFact's form; what becomes of them stands in ``counterfact``. A record, made up::

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
      "paraphrase_prompts": [], "neighborhood_prompts": [], "attribute_prompts": [], "generation_prompts": []
    }
"""

from __future__ import annotations

from typing import Final

from errata.datasets import counterfact
from errata.datasets.data_set import DataSet, Source, json_list

DATASET: Final = DataSet(
    name="multi-counterfact",
    title="multi-CounterFact",
    paper="Meng et al. 2023, Mass-Editing Memory in a Transformer, arXiv:2210.07229",
    licence="MIT",
    fills=counterfact.DATASET.fills,
    read_here="not the file; that it has CounterFact's form, and its address, from dsets/counterfact.py of "
    "github.com/kmeng01/memit",
    sources=(
        Source(
            "multi_counterfact.json",
            "https://memit.baulab.info/data/dsets/multi_counterfact.json",
            page="https://memit.baulab.info/data/dsets/",
        ),
    ),
    reader=json_list(counterfact.fact_of_case, key="case_id"),
)
