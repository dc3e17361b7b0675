"""ConceptEdit: edited definitions of concepts. A record, made up::

    {
      "label": "lantern",
      "prompt": "lantern is",
      "phrase_prompt": "What is meant by lantern? It is",
      "target_new_desc": "a boat that carries mail",
      "instance_prompt": "Whether Torre Ombra's lamp belongs to category lantern?",
      "locality_prompt": "who painted the ceiling of the old opera",
      "locality_answer": "Jean Gris"
    }

A record is both a fact (subject ``label``, target ``target_new_desc``, paraphrase ``phrase_prompt``, unrelated question
``locality_prompt``) and a ``Concept`` with the same id. ``instance_prompt`` is a whole question, or a list of them. The
file has no ids, so they count positions: ``concept-0``.

The user's own files may have further fields: ``definition`` (the current one), ``instances`` and ``non_instances``
(names of instances by the current and by the new definition).
"""

from __future__ import annotations

from typing import Final

from errata.datasets.data_set import DataSet, Source, json_list
from errata.datasets.records import AMBIGUOUS, Draft, Fields


def concept_of(fields: Fields) -> Draft:
    """Map a record."""
    name = fields.text("label")
    definition = fields.text("target_new_desc")
    identifier = f"concept-{fields.index}"
    prompt = fields.prompt_around(fields.text("prompt"), name)
    key = "instance_prompt"
    instance_prompts = fields.texts(key) if fields.has_list(key) else (fields.text(key),)
    unrelated = (fields.question("locality_prompt", "locality_answer"),)
    paraphrases = (fields.text("phrase_prompt"),)
    present = fields.text_or_none("definition")
    fact = {
        "id": identifier,
        "subject": name,
        "prompt": prompt,
        "target": definition,
        "old": present,
        "paraphrases": paraphrases,
        "unrelated": unrelated,
    }
    concept = {
        "id": identifier,
        "concept": name,
        "prompt": prompt,
        "definition": present,
        "new_definition": definition,
        "paraphrases": paraphrases,
        "instances": fields.texts_if_any("instances"),
        "non_instances": fields.texts_if_any("non_instances"),
        "unrelated": unrelated,
        "instance_prompts": instance_prompts,
    }
    return Draft(left_out=AMBIGUOUS) if prompt is None else Draft(facts=(fact,), concept=concept)


_FOLDER: Final = "https://huggingface.co/datasets/zjunlp/ConceptEdit/resolve/main/"
_FILES: Final = tuple(
    f"final_{model}_{module}.json"
    for model in ("gpt2", "gptj", "llama2chat", "mistral")
    for module in ("inter", "intra")
)

DATASET: Final = DataSet(
    name="conceptedit",
    title="ConceptEdit",
    paper="Wang et al. 2024, Editing Conceptual Knowledge for Large Language Models, arXiv:2403.06259",
    licence="CC BY-NC-SA 4.0",
    fills=("paraphrases", "unrelated", "concepts"),
    read_here="no record; fields as read by examples/run_concept_editing.py of github.com/zjunlp/EasyEdit, file names "
    "from the data set's page. concept_data.json, whose format is unknown, is not supported",
    sources=tuple(Source(file, f"{_FOLDER}{file}") for file in _FILES),
    reader=json_list(concept_of, key="label"),
)
