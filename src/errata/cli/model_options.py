"""Shared by commands that load a model: options, checks of facts and questions before loading, and evaluation data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
import typer
from transformers import PreTrainedConfig

from errata.benchmark.sequence import EvaluationSet
from errata.cli.terminal import echo, warn
from errata.editing.recipe_files import shipped_name_for
from errata.editors.endpoint import Endpoint, is_endpoint
from errata.errors import Fault, FaultsError, InputError
from errata.evaluation.outcomes import derived
from errata.facts.fact import Fact, FactSet, Question
from errata.facts.files import Check
from errata.facts.tokens import token_faults, unembedded_faults
from errata.models.gguf import converted_directory
from errata.models.loading import Outline, gguf_of, is_hub_name
from errata.models.offload import PLANS, Spread, device_of
from errata.models.prompts import chat_frame
from errata.patches.stack import has_stack, is_stack, stack_base
from errata.results.metrics import CONTROLS, entry_of
from errata.runs.loading import base_of, check_weights, is_edit
from errata.runs.run import RunDirectory, is_run, open_run
from errata.utils.files import is_file, reason_of
from errata.utils.text import counted

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="'lab' (the embedded model), a directory, a GGUF file, a stack, a name from `errata models list`, "
        "a name on the Hugging Face hub, or BASE_URL#MODEL at an OpenAI-compatible endpoint (for ask, evaluate and "
        "editors that need no weights).",
    ),
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model to run.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        "--device-map",
        help="cpu, cuda, cuda:1, mps …; default: a GPU if available. auto, balanced or sequential: accelerate spreads "
        "the model over GPUs, main memory and disk.",
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(metavar="LIMITS", help="With --device-map: the most memory of each device, as 0=20GiB,cpu=60GiB."),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16 or float64; default: as stored (lab: float32)."),
]

UntouchedOption = Annotated[
    Path | None,
    typer.Option(
        help="JSONL of {prompt, answer} about subjects that are not edited; default for lab: sampled from its world."
    ),
]
ProseOption = Annotated[
    str | None, typer.Option(help="Texts for perplexity: me-ppl=FILE, or a file with one text per line.")
]
LayersOption = Annotated[
    str | None, typer.Option(help="Critical layers, such as 4,5,6; overrides the recipe's layers.")
]
CorpusOption = Annotated[
    str | None,
    typer.Option(help="Text for key statistics, with blank lines between documents; default: from the recipe."),
]
StatisticsOption = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        metavar="FILE",
        help="Key statistics from a file of `errata statistics make` or `import`, instead of from a text.",
    ),
]
LastWinsOption = Annotated[
    bool, typer.Option("--last-wins", help="If facts share subject and prompt, use only the last of them.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Validate all inputs and show the plan without loading weights.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="New directory for the result.")]


def seed_option(purpose: str) -> Any:
    """A random seed that every generator accepts."""
    return typer.Option(min=0, max=2**63 - 1, help=f"Random seed {purpose}")


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Placement(TypedDict):
    """Device and dtype of a model's weights; None selects the default."""

    device: torch.device | Spread | None
    dtype: torch.dtype | None


def placement(device: str | None, dtype: str | None, max_memory: str | None = None) -> Placement:
    """Parse --device, --dtype and --max-memory.

    Raises:
        FaultsError: for an unknown dtype, and for a device that is not available.
    """
    faults = []
    if dtype is not None and dtype not in _DTYPES:
        faults.append(
            Fault("--dtype", f"unknown dtype {dtype!r}", f"Available: {', '.join(_DTYPES)}", code="DTYPE_UNKNOWN")
        )
    chosen: torch.device | Spread | None = None
    try:
        if device is not None or max_memory is not None:
            chosen = device_of(with_limits(device, max_memory))
        if isinstance(chosen, torch.device):
            torch.zeros(1, device=chosen).item()  # fails for 'meta', whose tensors have no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        what = f"{device!r} is not available: {first}"
        faults.append(Fault("--device", what, "`errata doctor` lists the available devices", code="DEVICE_UNAVAILABLE"))
    if faults:
        raise FaultsError("the command line", faults)
    return Placement(device=chosen, dtype=None if dtype is None else _DTYPES[dtype])


def with_limits(device: str | None, max_memory: str | None) -> str:
    """--device-map, by default auto, with the limits of --max-memory.

    Raises:
        InputError: if the device is a single one.
    """
    plan = device or "auto"
    if max_memory is not None and plan not in PLANS:
        what = f"--max-memory limits what accelerate spreads over several devices, and --device is {plan!r}"
        remedy = "Leave --device out, or give --device-map auto"
        raise InputError(what, remedy=remedy, code="MAX_MEMORY_OF_ONE_DEVICE")
    return plan if max_memory is None else f"{plan},{max_memory}"


def outline_of(name: str, *, trust_remote_code: bool, endpoints: bool = False) -> Outline:
    """The outline of a model, or of the base model of a stack or run.

    Prints a note before it contacts the hub, which can take a while without a network.

    Args:
        endpoints: whether the model may be an address; such a model has no blocks and no limit here.

    Raises:
        InputError: if nothing can be loaded, or it is an address.
    """
    note_unfinished(name)
    if not endpoints:
        check_weights(name)
    name = base_of(name)
    if is_endpoint(name):
        found = Endpoint(name)
        return Outline(name, found.tokenizer, found.context_length, 0, PreTrainedConfig())
    if is_hub_name(name):
        warn(
            f"note: no local directory {name!r}; looking on the Hugging Face hub (HF_HUB_OFFLINE=1 uses only "
            "downloaded models)"
        )
    note_conversion(name)
    return Outline.load(name, trust_remote_code=trust_remote_code)


def note_conversion(name: str) -> None:
    """Print a note before a GGUF file is converted, which takes some time."""
    file = gguf_of(name)
    if file is not None and not (target := converted_directory(file)).is_dir():
        warn(f"note: converting {file.name} to float32 weights; they are cached in {target}")


def note_unfinished(name: str) -> None:
    """Print a note if a run is used before it has finished."""
    if is_run(name):
        run = open_run(Path(name))
        if run.batches_done < run.batches:
            warn(
                f"note: the run {name} is unfinished: {run.batches_done} of {run.batches} batches, {run.facts_done} of "
                f"{counted(len(run.facts), 'fact')} (resume it with: errata edit --resume {name})"
            )


def finished_run(name: str) -> RunDirectory:
    """A run all of whose batches are done; raises InputError for an unfinished one."""
    run = open_run(Path(name))
    if run.batches_done < run.batches:
        raise InputError(
            f"the run {name} is unfinished: {run.batches_done} of {run.batches} batches are done",
            remedy=f"Finish it first: errata edit --resume {name}",
            code="RUN_UNFINISHED",
        )
    return run


@contextmanager
def error_context(before: str = "", after: str = "", remedy: str = "") -> Iterator[None]:
    """Add context to the InputErrors of a block.

    Args:
        before, after: text around the message.
        remedy: a further sentence of the remedy.
    """
    try:
        yield
    except FaultsError as error:
        raise FaultsError(f"{error.subject}{after}", error.faults, remedy=remedy, before=before) from error
    except InputError as error:
        remedies = ". ".join(part for part in (error.remedy, remedy) if part)
        raise InputError(f"{before}{error.what}{after}", remedy=remedies, code=error.code) from error


def outline_here(name: str, *, trust_remote_code: bool, endpoints: bool = False) -> Outline | None:
    """The outline of a local model; None for a model on the hub, which is contacted only after all other checks."""
    if is_hub_name(base_of(name)):
        return None
    return outline_of(name, trust_remote_code=trust_remote_code, endpoints=endpoints)


PATCH_SUFFIX = ".safetensors"


def token_check(model: Outline | None, *, prefix_tokens: int = 0) -> Check:
    """A check for subjects without tokens and prompts that are too long; without a model it accepts everything.

    Args:
        prefix_tokens: the number of tokens that an edit puts before a prompt.
    """

    if model is None:
        return lambda facts, places: []

    def count_tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def unembedded_in(text: str) -> list[str]:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [model.unembedded[index] for index in ids if index in model.unembedded]

    def check(facts: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
        limit = model.context_length - 1  # one for BOS
        faults = token_faults(facts, places, count_tokens=count_tokens, limit=limit, lead=prefix_tokens)
        if model.unembedded:
            faults += unembedded_faults(facts, places, unembedded_in=unembedded_in)
        return faults

    return check


def check_facts(facts: FactSet, model: Outline, *, prefix_tokens: int = 0) -> None:
    """Apply ``token_check`` to facts that were read before the outline was available; raises FaultsError."""
    if faults := token_check(model, prefix_tokens=prefix_tokens)(facts.facts, facts.places):
        raise FaultsError(facts.source, faults)


def check_chat(model: Outline | None) -> None:
    """Raises InputError unless the model has a usable chat template."""
    if model is not None and is_endpoint(model.name):
        raise InputError(
            f"--chat with {model.name!r}: an endpoint applies the chat template itself",
            remedy="Leave out --chat; each prompt is sent as a message unless the address ends in /completions",
            code="OPTION_CONFLICT",
        )
    if model is not None:
        with error_context(f"--chat with {model.name!r}: "):
            chat_frame(model.tokenizer)


def has_chat(model: Outline) -> bool:
    """Whether a model has a usable chat template; prints a note if it has an unusable one."""
    if not model.tokenizer.chat_template:
        return False
    try:
        chat_frame(model.tokenizer)
    except InputError as error:
        warn(f"note: chat is not evaluated: {error.what}")
        return False
    return True


def is_lab(name: str) -> bool:
    """Whether a model is the embedded one, a saved copy of it, or the result of editing it any number of times.

    Raises:
        InputError: if the model's errata.json cannot be read.
    """
    path = Path(name) / "errata.json"
    if is_stack(name) or is_run(name) or is_edit(name):
        return is_lab(base_of(name))
    if name != "lab" and is_file(path):
        try:
            return bool(json.loads(path.read_text(encoding="utf-8"))["about"]["lab"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} is not a valid record of an edit: {reason_of(error)}",
                remedy="Remove this file, or edit the model again",
                code="RECORD_INVALID",
            ) from error
    if has_stack(name):
        return is_lab(stack_base(name)[0])
    return name == "lab" or is_file(Path(name) / "world.json")


def recipe_name(model: str) -> str:
    """The name of the shipped recipe for a model: 'lab' for edited lab models, otherwise that of the base model.

    Directories may have any name, so a local model is also recognised by the shape in its configuration.
    """
    if is_lab(model):
        return "lab"
    base = base_of(model)
    return shipped_name_for(_config_of(base)) or base


def _config_of(model: str) -> dict[str, Any]:
    """The ``config.json`` of a directory (of its text model if there are several); empty if it cannot be read."""
    path = Path(model) / "config.json"
    if not is_file(path):
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # loading the model reports the error
    if not isinstance(config, dict):
        return {}
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def patch_name(out: Path) -> str:
    """The name of a patch that is written to ``out``."""
    return out.name.removesuffix(out.suffix) if out.suffix == PATCH_SUFFIX else out.name


UNTOUCHED = 300  # default number of questions about subjects that no fact edits
PROSE = 60  # default number of texts for perplexity
_SOURCE = {str(metric): accuracy for accuracy in CONTROLS for metric in derived(accuracy)}


def evaluation_set_for(
    facts: FactSet, *, lab: bool, untouched: Sequence[tuple[str, Question]] | None, seed: int
) -> EvaluationSet:
    """The facts, questions about subjects that no fact edits, and texts for perplexity.

    Args:
        lab: whether the model is the lab's or derived from it; then its world and held-out texts are used.
        untouched: the user's questions; they replace those of the lab's world.
    """
    questions = untouched or []
    if lab:
        from errata.lab.corpus import held_out_prose
        from errata.lab.package import lab_world
        from errata.lab.tasks import untouched_questions

        if untouched is None:
            questions = untouched_questions(lab_world(), [fact.subject for fact in facts], UNTOUCHED, seed=seed)
        return EvaluationSet(facts, questions, held_out_prose(PROSE))
    return EvaluationSet(facts, questions, shipped_sentences())


def show_absent(absent: Mapping[str, str]) -> None:
    """Print which metrics are missing and why, one line per reason.

    Metrics derived from an accuracy are omitted if the accuracy is missing for the same reason.

    Args:
        absent: metric -> reason.
    """
    reasons: dict[str, list[str]] = {}
    for metric, reason in absent.items():
        if absent.get(_SOURCE.get(metric, "")) != reason:
            reasons.setdefault(reason, []).append(entry_of(metric).heading)
    for reason, metrics in reasons.items():
        echo(f"Not measured: {', '.join(metrics)} ({reason}).")


def shipped_sentences() -> list[str]:
    """The shipped sentences on which perplexity is measured for models other than the lab's."""
    text = (resources.files("errata") / "evaluation" / "sentences.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]
