"""``errata revert`` and ``errata rebuild``: patches taken out, and what stood on them solved again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from errata.cli.apply import OutOption, stack_record
from errata.cli.edit_output import save_full
from errata.cli.model_options import DeviceOption, TrustOption, note_unfinished, placement
from errata.cli.terminal import JsonOption, counted, progress, tell, warn, write_json
from errata.editors.rebuild import named_facts, rebuild
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.patches.stack import Stack, has_stack, is_stack, read_stack, solved_on_top, write_stack
from errata.runs.loading import check_there, load_model, stack_of_run
from errata.runs.run import is_run
from errata.utils.files import check_new, new_directory

REVERT_EXAMPLE = "Example: errata revert stack --patch first --out without-first"
REBUILD_EXAMPLE = "Example: errata rebuild stack --without first/lab-42-3 --out rebuilt"

MODEL = typer.Argument(help="A stack, or a full model that errata edited or merged.", metavar="MODEL")
BaseOption = Annotated[
    str | None, typer.Option(help="Where the base is now; by default where it was when it was edited.")
]
app = typer.Typer()


@app.command("revert", epilog=REVERT_EXAMPLE)
def revert(
    model: Annotated[str, MODEL],
    out: OutOption,
    patches: Annotated[
        list[str] | None, typer.Option("--patch", help="A patch to take out; several times for several.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Take out all patches.")] = False,
    base: BaseOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where a full model has other changes, which are lost then.")
    ] = False,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Remove patches exactly (by default the last one).

    The weights are recomputed from the base model and the remaining patches. The output is of the same kind as the
    input: a stack, or a full model, for which the base model must be available.
    """
    check_new(out)
    stack = _stack_of(model)
    names = [stacked.name for stacked in stack.patches] if every else patches or [stack.patches[-1].name]
    left = stack.without(names)
    if is_stack(model):
        with new_directory(out) as partial:
            write_stack(left, partial)
    else:
        where = placement(device, None)["device"]
        loaded = _base(stack, base, where, trust_remote_code=trust_remote_code)
        stack.put_into(loaded)
        _check_same(loaded, model, force=force, trust_remote_code=trust_remote_code)
        for stacked in stack.patches:
            if stacked.name in names:
                stacked.patch.undo(loaded)
        with new_directory(out) as partial:
            save_full(loaded, left, partial)
    tell(f"Wrote {out}: {stack.base} with {counted(len(left.patches), 'patch')}; taken out: {', '.join(names)}.")
    if above := solved_on_top(stack, names):
        count = sum(len(facts) for _, facts in above)
        standing = ", ".join(name for name, _ in above)
        warn(
            f"note: {standing} ({counted(count, 'fact')}) stood on what was taken out, and stays as it was solved. To "
            f"solve it again: errata rebuild {model} {' '.join(f'--without {name}' for name in names)} --out REBUILT"
        )
    write_json(json, {**stack_record(left), "on_top": [[name, [fact.id for fact in facts]] for name, facts in above]})


@app.command("rebuild", epilog=REBUILD_EXAMPLE)
def rebuild_stack(
    model: Annotated[str, typer.Argument(help="A stack, a run, or a full model that errata edited.", metavar="MODEL")],
    without: Annotated[
        list[str], typer.Option("--without", help="A patch, a fact's id, or PATCH/ID; several times for several.")
    ],
    out: OutOption,
    base: BaseOption = None,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Remove facts and solve later edits again, as if the facts had never been edited.

    The output is a stack; `errata merge` turns it into a full model.
    """
    check_new(out)
    where = placement(device, None)["device"]
    note_unfinished(model)
    if is_run(model):
        stack = stack_of_run(model, device=where, trust_remote_code=trust_remote_code)
    else:
        stack = _stack_of(model)
    named_facts(stack, without)  # before the base is loaded
    loaded = _base(stack, base, where, trust_remote_code=trust_remote_code)
    with progress() as report:
        found = rebuild(loaded, stack, without, report=report)
    with new_directory(out) as partial:
        write_stack(found.stack, partial)
    again = ", ".join(found.solved_again) or "nothing"
    facts = sum(len(stacked.patch.facts) for stacked in found.stack.patches if stacked.name in found.solved_again)
    tell(
        f"Wrote {out}: {counted(len(found.stack.patches), 'patch')}, "
        f"{counted(len(found.stack.facts), 'fact')}. Taken out: {counted(len(found.removed), 'fact')}. "
        f"Solved again: {again} ({counted(facts, 'fact')})."
    )
    record = {
        **stack_record(found.stack),
        "removed": [f"{patch}/{fact.id}" for patch, fact in found.removed],
        "solved_again": list(found.solved_again),
    }
    write_json(json, record)


def _stack_of(model: str) -> Stack:
    if is_run(model):
        raise InputError(
            f"{model} is a run: its batches are one edit, and it has no patches to take out",
            remedy=f"Merge it first (errata merge --model {model} --out FULL) and revert that; or take facts out with "
            f"errata rebuild {model} --without ID",
        )
    if not has_stack(model):
        check_there(model)
        raise InputError(
            f"there is no record of patches in {model!r}",
            remedy="Give a stack (errata apply) or a full model that errata edited or merged",
        )
    stack = read_stack(Path(model))
    if not stack.patches:
        raise InputError(f"{model!r} has no patches to take out", remedy="It is its base already")
    return stack


def _base(stack: Stack, base: str | None, device: torch.device | None, *, trust_remote_code: bool) -> LanguageModel:
    try:
        return load_model(
            base or stack.base,
            dtype=getattr(torch, stack.dtype),
            device=device,
            trust_remote_code=trust_remote_code,
        )
    except InputError as error:
        raise InputError(
            f"the base {base or stack.base!r} is needed, and {error.what}", remedy="Say where it is with --base"
        ) from error


def _check_same(rebuilt: LanguageModel, name: str, *, force: bool, trust_remote_code: bool) -> None:
    """Whether a full model is its base with its patches, and nothing else, up to the rounding of an edit of an edit.

    Raises:
        InputError: if it has other changes, which taking a patch out would lose.
    """
    there = LanguageModel.load(name, dtype=rebuilt.dtype, device=rebuilt.device, trust_remote_code=trust_remote_code)
    expected = rebuilt.model.state_dict()
    # Two roundings to the model's dtype, relative to the largest entry.
    tolerance = 4 * torch.finfo(rebuilt.dtype).eps
    others = [
        key
        for key, value in there.model.state_dict().items()
        if key not in expected
        or value.shape != expected[key].shape
        or float((value.double() - expected[key].double()).abs().max())
        > tolerance * float(expected[key].double().abs().max())
    ]
    if others and not force:
        raise InputError(
            f"{name!r} has changes that are not those of its patches ({len(others)} parameters, such as {others[0]!r})",
            remedy="They would be lost; --force loses them",
        )
