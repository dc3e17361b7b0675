"""What an edit leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.benchmark.sequential import Examination
from errata.evaluation.recall import absent
from errata.evaluation.records import FORMAT, Row
from errata.models.language_model import LanguageModel
from errata.output import write_text
from errata.patch import Patch
from errata.verbs.models import is_lab


def save_edited(model: LanguageModel, patch: Patch, record: dict[str, Any], directory: Path) -> None:
    """A plain transformers directory, with the patch and the record of the run beside the weights."""
    model.model.save_pretrained(directory)
    model.tokenizer.save_pretrained(directory)
    patch.save(directory / "patch.safetensors")
    text = json.dumps(record, ensure_ascii=False, indent=2)
    write_text(directory / "errata.json", text + "\n")
    write_text(directory / "recipe.yaml", patch.recipe.to_yaml())


def record_of(rows: Sequence[Row], patch: Patch, examination: Examination, seed: int) -> dict[str, Any]:
    """Results in the form that ``read_results`` reads, and everything that it takes to make them again."""
    about = {
        "base": patch.base,
        "lab": is_lab(patch.base),
        "method": patch.recipe.method,
        "seed": seed,
        "recipe": patch.recipe.model_dump(mode="json"),
        "prefixes": list(patch.prefixes),
        "fingerprint": patch.fingerprint,
        "versions": dict(patch.versions),
        "absent": absent(examination.facts, examination.untouched) if rows else {},
        "facts": [fact.to_record() for fact in patch.facts],
    }
    return {"format": FORMAT, "rows": list(rows), "about": about}
