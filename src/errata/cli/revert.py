"""``errata revert`` and ``errata rebuild``: remove patches, and solve later ones again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from errata.cli.apply import stack_record
from errata.cli.edit_output import check_output, save_full
from errata.cli.model_options import DeviceOption, OutOption, TrustOption, error_context, note_unfinished, placement
from errata.cli.terminal import JsonOption, echo, progress, warn, write_json
from errata.editors.edit_file import StoredEdit
from errata.editors.fact_memory import latest
from errata.editors.rebuild import named_facts, rebuild
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.loading import lasting_name
from errata.models.offload import Device
from errata.patches.stack import Stack, has_stack, is_stack, read_stack, solved_on_top, write_stack
from errata.runs.loading import check_alike, check_exists, editor_under, edits_of, is_edit, load_model, stack_of_run
from errata.runs.run import is_run
from errata.utils.files import check_new, new_directory
from errata.utils.text import counted, did_you_mean

REVERT_EXAMPLE = "Example: errata revert stack --patch first --out without-first"
REBUILD_EXAMPLE = "Example: errata rebuild stack --without first/lab-42-3 --out rebuilt"

MODEL = typer.Argument(help="A stack, or a full model edited or merged by errata.", metavar="MODEL")
BaseOption = Annotated[str | None, typer.Option(help="Current location of the base model; default: the recorded one.")]
app = typer.Typer()


@app.command("revert", epilog=REVERT_EXAMPLE)
def revert(
    model: Annotated[str, MODEL],
    out: OutOption,
    patches: Annotated[list[str] | None, typer.Option("--patch", help="Patch to remove; may be repeated.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Remove all patches.")] = False,
    base: BaseOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Revert even if a full model contains other changes; they are lost.")
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
    echo(f"Wrote {out}: {stack.base} with {counted(len(left.patches), 'patch')}; removed: {', '.join(names)}.")
    if above := solved_on_top(stack, names):
        count = sum(len(facts) for _, facts in above)
        later = ", ".join(name for name, _ in above)
        warn(
            f"note: {later} ({counted(count, 'fact')}) was solved on top of the removed patches and is unchanged. To "
            f"solve it again: errata rebuild {model} {' '.join(f'--without {name}' for name in names)} --out REBUILT"
        )
    write_json(json, {**stack_record(left), "on_top": [[name, [fact.id for fact in facts]] for name, facts in above]})


@app.command("rebuild", epilog=REBUILD_EXAMPLE)
def rebuild_stack(
    model: Annotated[
        str, typer.Argument(help="A stack, a run, an edit, or a full model edited by errata.", metavar="MODEL")
    ],
    without: Annotated[
        list[str], typer.Option("--without", help="Patch, fact id, or PATCH/ID to remove; may be repeated.")
    ],
    out: OutOption,
    base: BaseOption = None,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Remove facts and solve later edits again, as if the facts had never been edited.

    The output is a stack; `errata merge` turns it into a full model. An edit that changes
    no weights is made again.
    """
    where = placement(device, None)["device"]
    if is_edit(model):
        _rebuild_edit(model, without, out, base, where, json, trust_remote_code=trust_remote_code)
        return
    check_new(out)
    note_unfinished(model)
    if is_run(model):
        stack = stack_of_run(model, device=where, trust_remote_code=trust_remote_code)
    else:
        stack = _stack_of(model)
    named_facts(stack, without)  # checked before the base model is loaded
    loaded = _base(stack, base, where, trust_remote_code=trust_remote_code)
    with progress() as report:
        found = rebuild(loaded, stack, without, report=report)
    with new_directory(out) as partial:
        write_stack(found.stack, partial)
    again = ", ".join(found.edited_again) or "nothing"
    facts = sum(len(stacked.patch.facts) for stacked in found.stack.patches if stacked.name in found.edited_again)
    echo(
        f"Wrote {out}: {counted(len(found.stack.patches), 'patch')}, {counted(len(found.stack.facts), 'fact')}. "
        f"Removed: {counted(len(found.removed), 'fact')}. Solved again: {again} ({counted(facts, 'fact')})."
    )
    record = {
        **stack_record(found.stack),
        "removed": [f"{patch}/{fact.id}" for patch, fact in found.removed],
        "solved_again": list(found.edited_again),
    }
    write_json(json, record)


def _rebuild_edit(
    model: str,
    without: list[str],
    out: Path,
    base: str | None,
    device: Device | None,
    json: Path | None,
    *,
    trust_remote_code: bool,
) -> None:
    """Make an edit that changes no weights again without some facts.

    The result holds the remaining facts of the oldest edit with one of them and of all edits on top of it, edited
    together, on what that edit is based on. Without any of its facts it is a copy of that base, if this is an edit.
    """
    check_output(out, weights=False)
    top = StoredEdit.load(Path(model))
    if base is not None:
        top = replace(top, base=lasting_name(base))
    under = edits_of(top.base) if is_edit(top.base) else []
    chain = [*((title, edit) for title, edit in under if isinstance(edit, StoredEdit)), (Path(model).stem, top)]
    removed = _named_in(chain, model, without)
    first = min(place for place, _ in removed)
    oldest = chain[first][1]
    left = _left(chain, removed, first)
    if not left and not is_edit(oldest.base):
        raise InputError(
            "no fact would be left", remedy=f"Use its base model {oldest.base} instead", code="FACTS_MISSING"
        )
    check_alike([edit for _, edit in chain])
    with progress() as report:
        _, editor = editor_under(oldest, device=device, trust_remote_code=trust_remote_code, report=report)
        if editor.fingerprint() != oldest.fingerprint:
            raise InputError(
                f"{model} was made for other weights, or on top of other edits, than those of {oldest.base}",
                remedy="Give the current location of its base with --base",
                code="EDIT_FOR_OTHER_WEIGHTS",
            )
        copied = None if left else StoredEdit.load(Path(oldest.base))
        new = editor.apply(left) if copied is None else copied
    new.save(out)
    all_in = "" if left else f" of its base {Path(oldest.base).name}"
    echo(f"Wrote {out}: {counted(len(new.facts), 'fact')}{all_in}. Removed: {counted(len(removed), 'fact')}.")
    if left and oldest is not top:
        echo(f"The facts of {' and '.join(title for title, _ in chain[first:])} were edited together, into one file.")
    facts = [fact.id for fact in new.facts]
    write_json(
        json,
        {
            "method": top.method,
            "base": oldest.base if copied is None else copied.base,
            "facts": facts,
            "removed": [fact for _, fact in removed],
        },
    )


Chain = Sequence[tuple[str, StoredEdit]]
"""(title, edit), oldest first."""


def _left(chain: Chain, removed: Sequence[tuple[int, str]], first: int) -> tuple[Fact, ...]:
    """The facts of the edits from ``first`` on that are not removed, without those that a later one replaces.

    An id that a later edit has too gets the title of its edit before it.
    """
    kept = [
        (place, fact)
        for place, (_, edit) in enumerate(chain)
        for fact in edit.facts
        if place >= first and (place, fact.id) not in removed
    ]
    last = {fact.id: place for place, fact in kept}
    return latest(
        [fact if last[fact.id] == place else replace(fact, id=f"{chain[place][0]}/{fact.id}") for place, fact in kept]
    )


def _named_in(chain: Chain, model: str, names: Sequence[str]) -> list[tuple[int, str]]:
    """The facts, as (place of the edit, id), that names refer to: of an edit's title all, of ``EDIT/ID`` or ``ID`` one.

    ``ID`` alone is that of the newest edit that has it.

    Raises:
        InputError: for names that no edit has.
    """
    known: dict[str, list[tuple[int, str]]] = {}
    for place, (title, edit) in enumerate(chain):
        for fact in edit.facts:
            known[fact.id] = known[f"{title}/{fact.id}"] = [(place, fact.id)]
    known |= {title: [(place, fact.id) for fact in edit.facts] for place, (title, edit) in enumerate(chain)}
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"{model} has no fact {', '.join(map(repr, unknown))}",
            remedy=f"{did_you_mean(unknown[0], known)}`errata show {model} --all` lists them",
            code="FACT_OR_PATCH_UNKNOWN",
        )
    return list(dict.fromkeys(one for name in names for one in known[name]))


def _stack_of(model: str) -> Stack:
    if is_edit(model):
        edit = StoredEdit.load(Path(model))
        raise InputError(
            f"{model} is an edit by {edit.method!r}, which changes no weights",
            remedy=f"To undo it, use its base {edit.base!r}; to remove single facts: errata rebuild {model} --without "
            "ID --out NEW.safetensors",
            code="EDIT_NOT_OF_WEIGHTS",
        )
    if is_run(model):
        raise InputError(
            f"{model} is a run, which is one edit and has no separate patches",
            remedy=f"Merge it first (errata merge --model {model} --out FULL) and revert the result; or remove facts "
            f"with errata rebuild {model} --without ID",
            code="RUN_HAS_NO_PATCHES",
        )
    if not has_stack(model):
        check_exists(model)
        raise InputError(
            f"{model!r} has no record of patches",
            remedy="Give a stack (errata apply) or a full model edited or merged by errata",
            code="NO_PATCHES",
        )
    stack = read_stack(Path(model))
    if not stack.patches:
        raise InputError(f"{model!r} has no patches to remove", remedy="It equals its base model", code="NO_PATCHES")
    return stack


def _base(stack: Stack, base: str | None, device: Device | None, *, trust_remote_code: bool) -> LanguageModel:
    name, dtype = base or stack.base, getattr(torch, stack.dtype)
    with error_context(f"the base model {name!r} is needed: ", remedy="Give its location with --base"):
        return load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def _check_same(rebuilt: LanguageModel, name: str, *, force: bool, trust_remote_code: bool) -> None:
    """Check that a full model equals its base model with its patches, up to the rounding of two edits.

    Raises:
        InputError: if it contains other changes, which removing a patch would lose.
    """
    saved = LanguageModel.load(name, dtype=rebuilt.dtype, device=rebuilt.device, trust_remote_code=trust_remote_code)
    expected = rebuilt.model.state_dict()
    # Two roundings to the model's dtype, relative to the largest entry.
    tolerance = 4 * torch.finfo(rebuilt.dtype).eps
    others = [
        key
        for key, value in saved.model.state_dict().items()
        if key not in expected
        or value.shape != expected[key].shape
        or float((value.double() - expected[key].double()).abs().max())
        > tolerance * float(expected[key].double().abs().max())
    ]
    if others and not force:
        raise InputError(
            f"{name!r} contains changes besides its patches ({len(others)} parameters, such as {others[0]!r})",
            remedy="They would be lost; use --force to discard them",
            code="MODEL_HAS_OTHER_CHANGES",
        )
