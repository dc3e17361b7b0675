"""``errata apply`` and ``errata merge``: apply patches to a model and save a stack or a full model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from errata.cli.edit_output import save_full
from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    OutOption,
    Placement,
    TrustOption,
    error_context,
    outline_of,
    placement,
)
from errata.cli.terminal import JsonOption, echo, warn, write_json
from errata.errors import InputError, collect_errors
from errata.facts.conflicts import conflicts
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.patches.stack import Stack, write_stack
from errata.runs.loading import load_model, load_patch, stack_under
from errata.utils.files import check_new, new_directory
from errata.utils.text import counted

APPLY_EXAMPLE = "Example: errata apply first.safetensors second.safetensors --model lab --out stack"
MERGE_EXAMPLE = "Example: errata merge --model stack --out full"

BaseOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Model, stack or run to apply the patches to; default: the model that the first patch was made for.",
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Apply patches to weights they were not made for; the effects may differ."),
]
app = typer.Typer()


@app.command("apply", epilog=APPLY_EXAMPLE)
def apply(
    patches: Annotated[list[Path], typer.Argument(help="Patches, in the order of application.", metavar="PATCH...")],
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
    stack = _applied(loaded, base, read, force=force)
    with new_directory(out) as partial:
        write_stack(stack, partial)
    echo(f"Wrote {out}: {_sizes(stack)}, on {stack.base}.")
    write_json(json, stack_record(stack))


@app.command("merge", epilog=MERGE_EXAMPLE)
def merge(
    out: OutOption,
    patches: Annotated[
        list[Path] | None, typer.Argument(help="Patches to apply before merging.", metavar="PATCH...")
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
    stack = _applied(loaded, base, read, force=force)
    if not stack.patches:
        raise InputError(
            f"there is nothing to merge into {base!r}",
            remedy="Give patches, or a stack as --model",
            code="NOTHING_TO_MERGE",
        )
    with new_directory(out) as partial:
        save_full(loaded, stack, partial)
    echo(f"Wrote {out}: {stack.base} with {_sizes(stack)} merged into the weights.")
    write_json(json, stack_record(stack))


def _base(
    model: str | None, patches: Sequence[tuple[str, Patch]], where: Placement, *, trust_remote_code: bool
) -> tuple[str, LanguageModel]:
    """Name and weights of the model to apply patches to: the given one, else the one recorded in the first patch.

    Raises:
        InputError: if it cannot be loaded, or neither is given.
    """
    if model is not None:
        outline_of(model, trust_remote_code=trust_remote_code)
        return model, load_model(model, **where, trust_remote_code=trust_remote_code)
    if not patches:
        raise InputError(
            "no patches and no --model were given", remedy="Give patches, or a stack as --model", code="OPTION_MISSING"
        )
    name, patch = patches[0]
    dtype = where["dtype"] or getattr(torch, patch.dtype)
    remedy = "Use --model to give the current location of the base model"
    with error_context(after=f" ({name} was made for this model)", remedy=remedy):
        outline_of(patch.base, trust_remote_code=trust_remote_code)
        loaded = load_model(patch.base, dtype=dtype, device=where["device"], trust_remote_code=trust_remote_code)
    return patch.base, loaded


def stack_record(stack: Stack) -> dict[str, object]:
    """The JSON record of a stack, without factors."""
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
    """Load all patches; errors are reported together."""
    read = []
    with collect_errors("the input") as part:
        for path in paths:
            with part:
                read.append((path.stem, load_patch(path)))
    return read


def _applied(model: LanguageModel, name: str, patches: Sequence[tuple[str, Patch]], *, force: bool) -> Stack:
    """Apply the patches to the model; returns the resulting stack."""
    stack = stack_under(model, name, model.fingerprint())
    for number, (title, patch) in enumerate(patches):
        before = [earlier for earlier, _ in patches[:number]]
        clashing = conflicts(patch.facts, stack.facts)
        forced = force and model.fingerprint() != patch.fingerprint
        patch.apply(model, force=forced, name=title, before=before)
        stack = stack.with_patch(title, patch, forced=forced)
        if forced:
            warn(f"warning: {title} was made for different weights ({patch.base}); its facts may not be recalled")
        for conflict in clashing[:5]:
            warn(f"note: {title}: {conflict.fault(conflict.fact.id).what}")
        if len(clashing) > 5:
            warn(f"note: {title}: … and {len(clashing) - 5} more facts contradict earlier patches")
    return stack
