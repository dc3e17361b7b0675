"""Models by what users call them: a plain model, a stack of patches on one, or a run that edits one."""

from __future__ import annotations

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
    """The plain model that is under a stack or a run; a plain model is its own base.

    Raises:
        InputError: if a record cannot be read, or a base lies on itself.
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
        f"the base of {name!r} lies on itself", remedy="Give the model that was edited first", code="STACK_CIRCULAR"
    )


def load_model(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A plain model, or the base of a stack or a run with its patches in it.

    Args:
        dtype: of the weights; by default that in which a stack's or run's base was edited, else see
            ``LanguageModel.load``.

    Raises:
        InputError: if it cannot be loaded, or the base is not what it was.
    """
    if not (is_stack(name) or is_run(name)):
        return LanguageModel.load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if is_stack(name):
        base, made_in = stack_base(name)
    else:
        run = open_run(Path(name))
        base, made_in = run.manifest.model, getattr(torch, run.manifest.dtype)
    base_of(name)
    model = load_model(base, dtype=dtype or made_in, device=device, trust_remote_code=trust_remote_code)
    if is_stack(name):
        read_stack(Path(name)).put_into(model)
    else:
        patch_of_run(model, run)
    model.name = name
    return model


def stack_under(model: LanguageModel, name: str, fingerprint: str) -> Stack:
    """The patches that a model had been given before, as far as what lies beside it tells; without any, its own stack.

    Args:
        name: what ``model`` was loaded from.
        fingerprint: of its weights as they were loaded.
    """
    if has_stack(name):
        return read_stack(Path(name))
    return stack_of_run(name, device=model.device) if is_run(name) else new_stack(model, fingerprint)


def stack_of_run(name: str, *, device: str | torch.device | None = None, trust_remote_code: bool = False) -> Stack:
    """What was in a run's model before it, with the whole run as one patch on top."""
    run = open_run(Path(name))
    base = load_model(
        run.manifest.model,
        dtype=getattr(torch, run.manifest.dtype),
        device=device,
        trust_remote_code=trust_remote_code,
    )
    under = stack_under(base, run.manifest.model, run.manifest.fingerprint)
    return under.with_patch(Path(name).name, patch_of_run(base, run))


def check_there(name: str) -> None:
    """Raises InputError if nothing at all is where something edited was expected: nothing of the hub is."""
    if name != "lab" and not is_there(Path(name)):
        raise InputError(
            f"{name!r} cannot be found",
            remedy="Look at the name: there is no such file or directory",
            code="FILE_MISSING",
        )


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
    check_there(name)
    raise InputError(
        f"there are no patches in {name!r}",
        remedy="Give a patch (.safetensors), or a directory that `errata edit`, `apply` or `merge` made",
        code="PATCHES_MISSING",
    )
