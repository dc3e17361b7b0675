"""A new run on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from errata.facts import FactSet
from errata.facts_io import write_facts
from errata.ledger import new_ledger
from errata.models.outline import lasting_name
from errata.output import file_digest, new_directory, write_text
from errata.patch import DtypeName, now, software_versions
from errata.recipe import Recipe
from errata.run_directory import COPIES, RunDirectory, open_run
from errata.run_manifest import Manifest


def create_run(
    path: Path,
    *,
    model: str,
    fingerprint: str,
    dtype: DtypeName,
    lab: bool,
    recipe: Recipe,
    facts: FactSet,
    corpus: str,
    seed: int,
    examination: Mapping[str, Any] | None,
) -> RunDirectory:
    """A new run, in which nothing has been done.

    Raises:
        InputError: if ``path`` exists and is not an empty directory, or cannot be made.
    """
    source = Path(facts.source)
    with new_directory(path) as partial:
        write_facts(facts, partial / "facts.jsonl")
        write_text(partial / "recipe.yaml", recipe.to_yaml())
        if examination is not None:
            write_text(partial / "examination.json", json.dumps(examination, ensure_ascii=False) + "\n")
        (partial / "batches").mkdir()
        new_ledger(partial / "ledger.jsonl")
        manifest = Manifest(
            created=now(),
            model=lasting_name(model),
            fingerprint=fingerprint,
            dtype=dtype,
            lab=lab,
            method=recipe.method,
            batch_size=recipe.batch_size,
            facts_source=str(source.absolute()) if source.is_file() else facts.source,
            facts_source_sha256=file_digest(source) if source.is_file() else "",
            corpus=corpus,
            seed=seed,
            threads=torch.get_num_threads(),
            versions=software_versions(),
            digests={name: file_digest(partial / name) for name in COPIES if (partial / name).is_file()},
        )
        whole = {**manifest.model_dump(), "checksum": manifest.checksum()}
        write_text(partial / "run.json", json.dumps(whole, ensure_ascii=False, indent=1) + "\n")
    return open_run(path)
