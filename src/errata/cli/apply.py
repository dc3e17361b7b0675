"""``errata apply`` and ``errata merge``: patches on top of a model, as a small stack or as a full model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from errata.cli.edit_output import save_full
from errata.cli.model_options import DeviceOption, DtypeOption, Placement, TrustOption, outline_of, placement
from errata.cli.terminal import JsonOption, counted, tell, warn, write_json
from errata.errors import InputError, collect_errors
from errata.facts.conflicts import conflicts
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.patches.stack import Stack, write_stack
from errata.runs.loading import load_model, stack_under
from errata.utils.files import check_new, new_directory

APPLY_EXAMPLE = "Example: errata apply first.safetensors second.safetensors --model lab --out stack"
MERGE_EXAMPLE = "Example: errata merge --model stack --out full"

BaseOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="The model, stack or run that they go on; default: the one that the first patch was made for.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="A new directory.")]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Also on other weights than it was made for: it may change other things there."),
]
app = typer.Typer()


@app.command("apply", epilog=APPLY_EXAMPLE)
def apply(
    patches: Annotated[
        list[Path], typer.Argument(help="Patches, in the order in which they go in.", metavar="PATCH...")
    ],
    out: OutOption,
    model: BaseOption = None,
    force: ForceOption = False,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Apply patches to a model or a stack and save the result as a new stack.

    A stack contains the patches and the name of the base model, but no weights; every command accepts it as --model.
    """
    check_new(out)
    read = _read(patches)
    base, loaded = _base(model, read, placement(device, dtype), trust_remote_code=trust_remote_code)
    stack = _put_on(loaded, base, read, force=force)
    with new_directory(out) as partial:
        write_stack(stack, partial)
    tell(f"Wrote {out}: {_sizes(stack)}, on {stack.base}.")
    write_json(json, stack_record(stack))


@app.command("merge", epilog=MERGE_EXAMPLE)
def merge(
    out: OutOption,
    patches: Annotated[
        list[Path] | None, typer.Argument(help="Patches to put on top before.", metavar="PATCH...")
    ] = None,
    model: BaseOption = None,
    force: ForceOption = False,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Merge patches into the weights and save a full model that transformers can load."""
    check_new(out)
    read = _read(patches or [])
    base, loaded = _base(model, read, placement(device, dtype), trust_remote_code=trust_remote_code)
    stack = _put_on(loaded, base, read, force=force)
    if not stack.patches:
        raise InputError(f"there is nothing to merge into {base!r}", remedy="Give patches, or a stack as --model")
    with new_directory(out) as partial:
        save_full(loaded, stack, partial)
    tell(f"Wrote {out}: {stack.base} with {_sizes(stack)}, in its weights.")
    write_json(json, stack_record(stack))


def _base(
    model: str | None, patches: Sequence[tuple[str, Patch]], where: Placement, *, trust_remote_code: bool
) -> tuple[str, LanguageModel]:
    """What the patches go on, by its name and loaded: what was given, else what the first patch's record names.

    Raises:
        InputError: if it cannot be loaded, or nothing names it.
    """
    if model is not None:
        outline_of(model, trust_remote_code=trust_remote_code)
        return model, load_model(model, **where, trust_remote_code=trust_remote_code)
    if not patches:
        raise InputError("neither patches nor a model were given", remedy="Give patches, or a stack as --model")
    name, patch = patches[0]
    dtype = where["dtype"] or getattr(torch, patch.dtype)
    try:
        outline_of(patch.base, trust_remote_code=trust_remote_code)
        loaded = load_model(patch.base, dtype=dtype, device=where["device"], trust_remote_code=trust_remote_code)
    except InputError as error:
        raise InputError(
            f"{error.what} ({name} was made for this model)",
            remedy=f"{error.remedy}. --model says where its base is now",
        ) from error
    return patch.base, loaded


def stack_record(stack: Stack) -> dict[str, object]:
    """A stack for machines, without its factors."""
    return {
        "base": stack.base,
        "fingerprint": stack.fingerprint,
        "dtype": stack.dtype,
        "patches": [
            {
                "name": stacked.name,
                "added": stacked.added,
                "forced": stacked.forced,
                "missing": list(stacked.missing),
                "method": stacked.patch.recipe.method,
                "created": stacked.patch.created,
                "layers": list(stacked.patch.layers),
                "facts": [fact.to_record() for fact in stacked.patch.facts],
            }
            for stacked in stack.patches
        ],
    }


def _sizes(stack: Stack) -> str:
    return f"{counted(len(stack.patches), 'patch')}, {counted(len(stack.facts), 'fact')}"


def _read(paths: Sequence[Path]) -> list[tuple[str, Patch]]:
    """All patches, or all that is wrong with them."""
    read = []
    with collect_errors("the input") as part:
        for path in paths:
            with part:
                read.append((path.stem, Patch.load(path)))
    return read


def _put_on(model: LanguageModel, name: str, patches: Sequence[tuple[str, Patch]], *, force: bool) -> Stack:
    """The stack with the patches on top, which are in the model afterwards."""
    stack = stack_under(model, name, model.fingerprint())
    for number, (title, patch) in enumerate(patches):
        before = [earlier for earlier, _ in patches[:number]]
        clashing = conflicts(patch.facts, stack.facts)
        forced = force and model.fingerprint() != patch.fingerprint
        patch.apply(model, force=forced, name=title, before=before)
        stack = stack.with_patch(title, patch, forced=forced)
        if forced:
            warn(f"warning: {title} was made for other weights than these ({patch.base}); its facts may not be said")
        for conflict in clashing[:5]:
            warn(f"note: {title}: {conflict.fault(conflict.fact.id).what}")
        if len(clashing) > 5:
            warn(f"note: {title}: … and {len(clashing) - 5} more contradict what was there before")
    return stack
