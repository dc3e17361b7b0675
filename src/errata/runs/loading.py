"""Models by name: a plain model, a stack of patches on one, or a run that edits one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.patches.stack import Stack, has_stack, is_stack, new_stack, read_stack, stack_base
from errata.runs.resume import patch_of_run
from errata.runs.run import is_run, open_run
from errata.utils.files import is_file, is_there

DEPTH = 20  # of runs on stacks on runs …


def base_of(name: str) -> str:
    """The plain model on which a stack or a run is based; a plain model is its own base.

    Raises:
        InputError: if a record cannot be read, or a base is based on itself.
    """
    base = name
    for _ in range(DEPTH):
        if is_stack(base):
            base = stack_base(base)[0]
        elif is_run(base):
            base = open_run(Path(base)).manifest.model
        else:
            return base
    raise InputError(
        f"{name!r} is based on itself", remedy="Give the model that was edited first", code="STACK_CIRCULAR"
    )


def load_model(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A plain model, or the base of a stack or a run with its patches applied.

    Args:
        dtype: of the weights; by default that in which a stack's or run's base was edited, else see
            ``LanguageModel.load``.

    Raises:
        InputError: if it cannot be loaded, or the base has changed.
    """
    base_of(name)
    apply: Callable[[LanguageModel], object]
    if is_stack(name):
        base, made_in = stack_base(name)
        apply = read_stack(Path(name)).put_into
    elif is_run(name):
        run = open_run(Path(name))
        base, made_in = run.manifest.model, getattr(torch, run.manifest.dtype)
        apply = partial(patch_of_run, run=run)
    else:
        return LanguageModel.load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    model = load_model(base, dtype=dtype or made_in, device=device, trust_remote_code=trust_remote_code)
    apply(model)
    model.name = name
    return model


def stack_under(model: LanguageModel, name: str, fingerprint: str) -> Stack:
    """The patches that a model was loaded with, by the records of its directory; an empty stack if there are none.

    Args:
        name: from which ``model`` was loaded.
        fingerprint: of its weights as they were loaded.
    """
    if has_stack(name):
        return read_stack(Path(name))
    return stack_of_run(name, device=model.device) if is_run(name) else new_stack(model, fingerprint)


def stack_of_run(name: str, *, device: str | torch.device | None = None, trust_remote_code: bool = False) -> Stack:
    """The stack of a run's base, with the whole run as one patch on top."""
    run = open_run(Path(name))
    base = load_model(
        run.manifest.model, dtype=getattr(torch, run.manifest.dtype), device=device, trust_remote_code=trust_remote_code
    )
    under = stack_under(base, run.manifest.model, run.manifest.fingerprint)
    return under.with_patch(Path(name).name, patch_of_run(base, run))


def check_exists(name: str) -> None:
    """Raises InputError if the path of an edited model does not exist; models on the hub cannot be edited ones."""
    if name != "lab" and not is_there(Path(name)):
        what = f"there is no file or directory {name!r}"
        remedy = "Give an edited model, a patch or a run; models by name, such as those of the hub, have no edits"
        raise InputError(what, remedy=remedy, code="FILE_MISSING")


def patches_of(name: str) -> list[tuple[str, Patch]]:
    """(name, patch) of a patch file, a stack, a full model that was edited, or a run, without loading a model.

    The patches of a run are those of its batches, as they were before any shaping of the whole run.

    Raises:
        InputError: if there are none.
    """
    path = Path(name)
    if is_file(path):
        return [(path.stem, Patch.load(path))]
    if has_stack(name):
        return [(stacked.name, stacked.patch) for stacked in read_stack(path).patches]
    if is_run(name):
        return [(f"batch {batch.record.index + 1}", batch.patch) for batch in open_run(path).saved_batches()]
    check_exists(name)
    what = f"there are no patches in {name!r}"
    remedy = "Give a patch (.safetensors), or a directory created by `errata edit`, `apply` or `merge`"
    raise InputError(what, remedy=remedy, code="PATCHES_MISSING")
