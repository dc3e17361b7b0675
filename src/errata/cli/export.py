"""``errata export``: a LoRA adapter for PEFT, vLLM, llama.cpp or Ollama, or a GGUF file with the edit in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from errata.cli.export_forms import ADAPTER_TYPES, Form, GgufAdapterForm, GgufModelForm, LoraForm
from errata.cli.model_options import (
    DeviceOption,
    Placement,
    TrustOption,
    error_context,
    finished_run,
    outline_of,
    placement,
)
from errata.cli.terminal import JsonOption, console, echo, progress, warn, write_json
from errata.errors import Fault, FaultsError, InputError
from errata.models.gguf import is_gguf
from errata.models.loading import Outline, gguf_of
from errata.patches.gguf_export import MERGED_TYPES, GgufFile
from errata.patches.lora_export import Adapter, AnswerComparison, answers_to, patches_applied
from errata.patches.patch import Patch
from errata.patches.stack import Stack, has_stack, is_stack, read_stack
from errata.runs.loading import load_model, patches_of, stack_of_run
from errata.runs.run import is_run
from errata.utils.files import check_new, check_new_file
from errata.utils.text import counted

EXAMPLE = """Example: errata export edited.safetensors --lora adapter --for vllm

Example: errata export edited.safetensors --gguf adapter.gguf"""

_SERVERS = ("peft", "vllm")
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
    lora: Annotated[
        Path | None, typer.Option("--lora", metavar="DIR", help="New directory for a LoRA adapter in PEFT's format.")
    ] = None,
    server: Annotated[
        str, typer.Option("--for", help="Who reads --lora: peft or vllm, which takes only some ranks and families.")
    ] = "peft",
    gguf: Annotated[
        Path | None, typer.Option("--gguf", metavar="FILE", help="New LoRA adapter in GGUF, for llama.cpp and Ollama.")
    ] = None,
    gguf_model: Annotated[
        Path | None,
        typer.Option(
            "--gguf-model", metavar="FILE", help="New GGUF model: a copy of the base's file with the edited weights."
        ),
    ] = None,
    gguf_base: Annotated[
        Path | None,
        typer.Option(
            "--gguf-base",
            metavar="FILE",
            help="The base's GGUF file that will be served; default: the base model, if it is one.",
        ),
    ] = None,
    stored_as: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="Of the numbers in a GGUF file. Adapter: f32 (default) or f16. Model: f32, f16 (default), bf16, or "
            "base, the type of the base's tensor.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum rank of an adapter; default: exact, i.e. one per fact and layer."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Base model; default: as recorded in the first patch.")
    ] = None,
    ask: Annotated[
        bool,
        typer.Option("--ask/--no-ask", help="Load the base model, and list the facts that what is exported loses."),
    ] = True,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="In which the base will be served with --lora; default: peft, as it was edited; vllm, as it is stored."
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Export patches for a server: as one LoRA adapter, or as a GGUF model.

    An adapter is loaded beside the unedited base model, by PEFT, vLLM (--for vllm), llama.cpp or Ollama (--gguf).
    Without --rank it is exact.

    Before anything is written, the facts of the patches are asked again in the precision that will be served, and those
    that would be lost are listed.
    """
    options = _Options(lora, server, gguf, gguf_model, gguf_base, stored_as, rank, dtype)
    options.check()
    where = placement(device, dtype)
    stack = read_stack(Path(patches[0])) if len(patches) == 1 and has_stack(patches[0]) else None
    found = [patch for name in patches for patch in _patches(name, trust_remote_code=trust_remote_code)]
    base = model or (found[0].base if stack is None else stack.base)
    _check_base(base, patches)
    file = _gguf_file(options, base)
    outline = _outline(base, model, patches[0], trust_remote_code)
    form = _form(options, found, base, outline, file, where["dtype"])
    answers: list[AnswerComparison] | None = None
    if ask:
        answers = _ask(form, found, base, stack, where, trust_remote_code=trust_remote_code)
    elif len(found) > 1:
        warn("note: the order of the patches was not checked, because --no-ask loads no weights")
    asked = None if answers is None else _record(answers, form.served)
    console().print(form.table())
    if answers is not None:
        _show(answers, form.served)
    form.write(asked)
    form.close()
    write_json(json, {"base": base, **form.record(), "asked": asked})


@dataclass(frozen=True, slots=True)
class _Options:
    """What is exported, as given on the command line."""

    lora: Path | None
    server: str
    gguf: Path | None
    gguf_model: Path | None
    gguf_base: Path | None
    stored_as: str | None
    rank: int | None
    dtype: str | None

    def check(self) -> None:
        """Raises InputError or FaultsError for options that do not fit each other, and for outputs that exist."""
        given = {"--lora": self.lora, "--gguf": self.gguf, "--gguf-model": self.gguf_model}
        chosen = [option for option, value in given.items() if value is not None]
        if len(chosen) != 1:
            what = f"{' and '.join(chosen)} are both given" if chosen else "nothing to write is given"
            remedy = "Give one of --lora DIR, --gguf FILE, --gguf-model FILE"
            raise InputError(what, remedy=remedy, code="OPTION_CONFLICT" if chosen else "OPTION_MISSING")
        applicable = {
            "--lora": {"--for", "--rank", "--dtype"},
            "--gguf": {"--gguf-base", "--type", "--rank"},
            "--gguf-model": {"--gguf-base", "--type"},
        }[chosen[0]]
        used = {
            "--for": self.server != "peft",
            "--gguf-base": self.gguf_base is not None,
            "--type": self.stored_as is not None,
            "--rank": self.rank is not None,
            "--dtype": self.dtype is not None,
        }
        faults = [
            Fault(option, f"does not apply to {chosen[0]}", "Leave it out", code="OPTION_NOT_APPLICABLE")
            for option, is_used in used.items()
            if is_used and option not in applicable
        ]
        known = ADAPTER_TYPES if self.gguf is not None else MERGED_TYPES
        if "--type" in applicable and self.stored_as is not None and self.stored_as not in known:
            what = f"{self.stored_as!r} is not a type that {chosen[0]} can write"
            faults.append(Fault("--type", what, f"Available: {', '.join(known)}", code="OPTION_INVALID"))
        if self.server not in _SERVERS:
            what = f"{self.server!r} is not a known reader of adapters"
            faults.append(Fault("--for", what, f"Available: {', '.join(_SERVERS)}", code="OPTION_INVALID"))
        if faults:
            raise FaultsError("the command line", faults)
        if self.lora is not None:
            check_new(self.lora)
        else:
            target = self.gguf or self.gguf_model
            assert target is not None
            check_new_file(target)


def _gguf_file(options: _Options, base: str) -> GgufFile | None:
    """The GGUF file that will be served, if it is known.

    Raises:
        InputError: if a merged model has no base file, or the given one is not a GGUF file.
    """
    if options.lora is not None:
        return None
    if options.gguf_base is not None:
        if not is_gguf(options.gguf_base):
            what = f"{options.gguf_base} is not a GGUF file"
            raise InputError(what, remedy="Give the base model's GGUF file", code="FILE_WRONG_FORMAT")
        return GgufFile.read(options.gguf_base)
    if (own := gguf_of(base)) is not None:
        return GgufFile.read(own)
    if options.gguf_model is not None:
        raise InputError(
            f"the base {base!r} is not a GGUF file, and a merged GGUF model is made from one",
            remedy="Give the base's GGUF file (--gguf-base), or export an adapter (--gguf)",
            code="GGUF_BASE_MISSING",
        )
    return None


def _form(
    options: _Options,
    patches: Sequence[Patch],
    base: str,
    outline: Outline,
    file: GgufFile | None,
    dtype: torch.dtype | None,
) -> Form:
    """What is exported, with its factors or tensors computed."""
    if options.gguf_model is not None:
        assert file is not None
        return GgufModelForm(options.gguf_model, patches, outline, base, file, options.stored_as or "f16")
    adapter = Adapter.of(patches, options.rank)
    if options.gguf is not None:
        return GgufAdapterForm(options.gguf, adapter, outline, base, file, options.stored_as or "f32")
    assert options.lora is not None
    return LoraForm(options.lora, adapter, outline, base, vllm=options.server == "vllm", dtype=dtype)


def _ask(
    form: Form, patches: Sequence[Patch], base: str, stack: Stack | None, where: Placement, *, trust_remote_code: bool
) -> list[AnswerComparison]:
    """Ask all facts with the patches, and again as they will be served.

    Raises:
        InputError: if the base has changed, or the patches do not follow each other.
    """
    facts = [fact for patch in patches for fact in patch.facts]
    made_in = getattr(torch, patches[0].dtype)
    with progress() as report:
        loaded = load_model(base, dtype=made_in, device=where["device"], trust_remote_code=trust_remote_code)
        if stack is not None:
            stack.put_into(loaded)  # checks the base model; patches need not follow each other
            stack.take_out(loaded)
        with (
            error_context(remedy="Or export without asking (--no-ask)"),
            patches_applied(loaded, patches, force=stack is not None),
        ):
            by_patch = answers_to(loaded, facts, report=report)
        if form.host is not None and form.host != (base, loaded.dtype):
            del loaded  # one model at a time in memory
            name, dtype = form.host
            loaded = load_model(name, dtype=dtype, device=where["device"], trust_remote_code=trust_remote_code)
        with form.serving(loaded):
            by_export = answers_to(loaded, facts, report=report)
    return [AnswerComparison(*entry) for entry in zip(facts, by_patch, by_export, strict=True)]


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


def _record(answers: Sequence[AnswerComparison], served: str) -> dict[str, Any]:
    lost = [
        {
            "id": answer.fact.id,
            "prompt": answer.fact.text,
            "target": answer.fact.target,
            "said": answer.by_export.said,
        }
        for answer in answers
        if answer.is_lost
    ]
    return {
        "facts": len(answers),
        "served": served,
        "said_by_patch": sum(answer.by_patch.correct for answer in answers),
        "said_by_export": sum(answer.by_export.correct for answer in answers),
        "lost": lost,
    }


def _show(answers: Sequence[AnswerComparison], served: str) -> None:
    record = _record(answers, served)
    lost = record["lost"]
    echo(f"Asked again with {served}:")
    echo(
        f"  the patches recall {record['said_by_patch']} of {counted(record['facts'], 'fact')}, the export "
        f"{record['said_by_export']}; {counted(len(lost), 'fact') if lost else 'no facts'} lost{':' if lost else '.'}"
    )
    for entry in lost[:_SHOWN]:
        line = f"  {entry['id']}: {entry['prompt']} → {entry['target']} (it gives {entry['said']!r})"
        console().print(line, highlight=False, soft_wrap=True, markup=False)
    if len(lost) > _SHOWN:
        echo(f"  … and {len(lost) - _SHOWN} more, see --json")
