"""What an edit leaves on disk: a full model, or the change alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.benchmark.sequential import Examination
from errata.evaluation.recall import absent
from errata.evaluation.results_file import FORMAT, Row
from errata.models.edited_files import write_edited
from errata.models.language_model import LanguageModel
from errata.output import check_new, check_new_file, new_directory, write_text
from errata.patch import Patch
from errata.stack import Stack, write_stack
from errata.verbs.models import PATCH_SUFFIX, is_lab
from errata.verbs.terminal import warn


def check_output(out: Path) -> None:
    """Raises InputError where ``write_edit`` could not write, before any work is done."""
    if out.suffix == PATCH_SUFFIX:
        check_new_file(out)
    else:
        check_new(out)


def write_edit(out: Path, model: LanguageModel, stack: Stack, patch: Patch, record: dict[str, Any]) -> None:
    """Write the change alone where ``out`` ends in .safetensors, else the full model.

    Args:
        stack: everything that is in the model's weights, ``patch`` on top.
    """
    if out.suffix == PATCH_SUFFIX:
        patch.save(out)
        return
    with new_directory(out) as partial:
        save_full(model, stack, partial)
        write_text(partial / "errata.json", json.dumps(record, ensure_ascii=False, indent=2) + "\n")
        write_text(partial / "recipe.yaml", patch.recipe.to_yaml())


def save_full(model: LanguageModel, stack: Stack, directory: Path) -> None:
    """A plain transformers directory like the base's, with the patches that are in its weights beside them.

    Says so where it is in another dtype than the base, or files came from outside the base's directory.
    """
    written = write_edited(model, directory)
    write_stack(stack, directory)
    if written.converted is not None:
        stored, dtype = written.converted
        warn(f"note: the weights are written in {dtype}, in which they were edited; the base is in {stored}")
    if written.linked:
        warn(f"note: files of the base that are links to other places were copied: {', '.join(written.linked)}")


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
