"""``errata export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    TrustOption,
    error_context,
    finished_run,
    outline_of,
    placement,
)
from errata.cli.terminal import JsonOption, console, echo, progress, warn, write_json
from errata.errors import InputError
from errata.models.loading import Outline, gguf_of, source_of, transformers_name
from errata.models.small_models import is_small_model, small_model
from errata.patches.lora_export import WEIGHTS, Adapter, AnswerComparison, compare_answers, patches_applied
from errata.patches.patch import Patch
from errata.patches.stack import has_stack, is_stack, read_stack
from errata.runs.loading import load_model, patches_of, stack_of_run
from errata.runs.run import is_run
from errata.utils.files import check_new
from errata.utils.text import counted

EXAMPLE = "Example: errata export edited.safetensors --lora adapter --rank 8"

_SHOWN = 20  # lost facts that are printed; the JSON record contains all
app = typer.Typer()


@app.command("export", epilog=EXAMPLE)
def export(
    patches: Annotated[
        list[str],
        typer.Argument(
            help="Patches or finished runs, oldest first; or one stack or edited model.", metavar="PATCH..."
        ),
    ],
    lora: Annotated[Path, typer.Option("--lora", metavar="DIR", help="New directory for the PEFT LoRA adapter.")],
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum rank; default: exact, i.e. one per fact and layer."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Base model; default: as recorded in the first patch.")
    ] = None,
    ask: Annotated[
        bool,
        typer.Option("--ask/--no-ask", help="Load the base model and report facts lost by the rank limit."),
    ] = True,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Export patches as one LoRA adapter that PEFT loads on top of the unedited base model.

    Without --rank the adapter is exact, and a single patch is exported without loading the base model's weights. A run
    is exported as one patch, for which the base model is loaded.
    """
    check_new(lora)
    where = placement(device, dtype)
    stack = read_stack(Path(patches[0])) if len(patches) == 1 and has_stack(patches[0]) else None
    found = [patch for name in patches for patch in _patches(name, trust_remote_code=trust_remote_code)]
    base = model or (found[0].base if stack is None else stack.base)
    _check_base(base, patches)
    adapter = Adapter.of(found, rank)
    outline = _outline(base, model, patches[0], trust_remote_code)
    empty = outline.empty_model()
    modules = adapter.modules(empty)
    answers: list[AnswerComparison] | None = None
    if ask and (len(found) > 1 or not adapter.is_exact):
        with progress() as report:
            made_in = getattr(torch, found[0].dtype)
            loaded = load_model(
                base,
                dtype=where["dtype"] or made_in,
                device=where["device"],
                trust_remote_code=trust_remote_code,
            )
            if stack is not None:
                stack.put_into(loaded)  # checks the base model; patches need not follow each other
                stack.take_out(loaded)
            if not adapter.is_exact:
                answers = compare_answers(loaded, adapter, force=stack is not None, report=report)
            elif stack is None:
                with patches_applied(loaded, found):
                    pass  # checks that the patches follow each other; an exact adapter loses nothing
    elif len(found) > 1:
        warn("note: the order of the patches was not checked, because --no-ask loads no weights")
    asked = None if answers is None else _record(answers)
    adapter.write(lora, empty, base=base, about={"asked": asked})
    console().print(_table(adapter, modules))
    if answers is not None:
        _show(answers)
    size = (lora / WEIGHTS).stat().st_size
    kind = "exact" if adapter.is_exact else "approximate"
    layers_text = counted(len({factors.layer for factors in adapter.layers}), "layer")
    echo(f"Wrote {lora} ({kind}, rank {adapter.rank}, {layers_text}, {size / 1e6:.2f} MB in float32).")
    _note_base(base)
    layers = adapter.layer_records(modules)
    names = {"base": base, "base_model_name_or_path": transformers_name(base)}
    result = {**names, "rank": adapter.rank, "exact": adapter.is_exact, "layers": layers}
    write_json(json, {**result, "bytes": size, "asked": asked})


def _patches(name: str, *, trust_remote_code: bool) -> list[Patch]:
    """The patches of a patch file, stack or edited model; a run is one patch, with the shaping of its recipe.

    Raises:
        InputError: if a run is not finished, or there are no patches.
    """
    if not is_run(name):
        return [patch for _, patch in patches_of(name)]
    finished_run(name)
    return [stack_of_run(name, trust_remote_code=trust_remote_code).patches[-1].patch]


def _check_base(base: str, patches: Sequence[str]) -> None:
    """Raises InputError if the base is a stack or run, which have no weights that PEFT could load."""
    if is_stack(base) or is_run(base):
        kind = "stack" if is_stack(base) else "run"
        raise InputError(
            f"{' '.join(patches)} was made for the {kind} {base}, which has no weights that PEFT could load",
            remedy=f"Export all of it: errata apply {' '.join(patches)} --model {base} --out STACK, then errata export "
            "STACK; or merge it first (errata merge)"
            if is_stack(base)
            else f"Merge it first (errata merge {' '.join(patches)} --model {base} --out FULL), and export the result",
            code="BASE_WITHOUT_WEIGHTS",
        )


def _outline(base: str, model: str | None, patch: str, trust_remote_code: bool) -> Outline:
    if model is not None:
        return outline_of(base, trust_remote_code=trust_remote_code)
    with error_context(after=f" (the base model of {patch})", remedy="Use --model to give its current location"):
        return outline_of(base, trust_remote_code=trust_remote_code)


def _note_base(base: str) -> None:
    """Note which base model adapter_config.json names, where PEFT cannot load it by errata's name."""
    written = transformers_name(base)
    start = f"note: adapter_config.json names the base model {written}, because PEFT cannot load {base!r}"
    if is_small_model(base):
        model = small_model(base)
        copied = (
            f". The adapter was made for a copy with {model.note}, so its answers may differ from those measured. For "
            f"exactly that copy, attach the adapter to {source_of(base)} (printed by `errata models path {base}`)"
        )
        warn(start + ("" if model.here == model.original else copied))
    elif base == "lab" or gguf_of(base) is not None:
        warn(f"{start}; the directory is on this machine only")


def _table(adapter: Adapter, modules: Sequence[str]) -> Table:
    table = Table(
        caption="rank: adapter rank of required rank; retained: share of the sum of ΔW's singular values;\n"
        "error: ‖ΔW − BA‖ / ‖ΔW‖ (Frobenius norm)",
        caption_justify="left",
    )
    table.add_column("layer", justify="right")
    table.add_column("module", overflow="fold")
    for head in ("rank", "retained", "error"):
        table.add_column(head, justify="right")
    for factors, path in zip(adapter.layers, modules, strict=True):
        rank = f"{factors.rank} of {factors.exact_rank}"
        error = "0" if factors.rank == factors.exact_rank else f"{factors.error:.2g}"
        table.add_row(str(factors.layer), path, rank, f"{factors.retained_share:.1%}", error)
    return table


def _record(answers: Sequence[AnswerComparison]) -> dict[str, Any]:
    lost = [
        {
            "id": answer.fact.id,
            "prompt": answer.fact.text,
            "target": answer.fact.target,
            "said": answer.by_adapter.said,
        }
        for answer in answers
        if answer.is_lost
    ]
    return {
        "facts": len(answers),
        "said_by_patch": sum(answer.by_patch.correct for answer in answers),
        "said_by_adapter": sum(answer.by_adapter.correct for answer in answers),
        "lost": lost,
    }


def _show(answers: Sequence[AnswerComparison]) -> None:
    record = _record(answers)
    lost = record["lost"]
    echo(
        f"The exact patch recalls {record['said_by_patch']} of {record['facts']} facts, this adapter "
        f"{record['said_by_adapter']}; {counted(len(lost), 'fact') if lost else 'no facts'} lost{':' if lost else '.'}"
    )
    for entry in lost[:_SHOWN]:
        line = f"  {entry['id']}: {entry['prompt']} → {entry['target']} (the adapter gives {entry['said']!r})"
        console().print(line, highlight=False, soft_wrap=True)
    if len(lost) > _SHOWN:
        echo(f"  … and {len(lost) - _SHOWN} more, see errata.json")
