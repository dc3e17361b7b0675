"""What verbs share that load a model: their options, and what these name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
import typer

from errata.benchmark.sequence import Examination
from errata.cli.terminal import error_console, tell, warn
from errata.editing.recipe_files import shipped_name_for
from errata.errors import Fault, FaultsError, InputError
from errata.evaluation.outcomes import derived
from errata.facts.fact import Fact, FactSet, Question
from errata.facts.files import Check
from errata.facts.tokens import token_faults, unembedded_faults
from errata.models.gguf import converted_directory
from errata.models.loading import Outline, gguf_of, is_hub_name
from errata.models.prompts import chat_frame
from errata.patches.stack import has_stack, is_stack, stack_base
from errata.results.metrics import CONTROLS, entry_of
from errata.runs.loading import base_of
from errata.runs.run import is_run, open_run
from errata.utils.files import file_text, is_file, reason_of

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="'lab' (the embedded model), a directory, a GGUF file, a name of `errata models list`, or one on the hub.",
    ),
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps … By default a GPU if there is one.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16. By default what is stored; lab: float32. An edited model is written in it."
    ),
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Placement(TypedDict):
    """Where a model's weights go and in which numbers; None is the model's own choice."""

    device: torch.device | None
    dtype: torch.dtype | None


def placement(device: str | None, dtype: str | None) -> Placement:
    """What --device and --dtype name.

    Raises:
        FaultsError: for a dtype that is none of the four, and a device that this machine or this torch does not have.
    """
    faults = []
    if dtype is not None and dtype not in _DTYPES:
        faults.append(Fault("--dtype", f"there is no dtype {dtype!r}", f"Known: {', '.join(_DTYPES)}"))
    try:
        if device is not None:
            torch.zeros(1, device=torch.device(device)).item()  # 'meta' has tensors, but no numbers in them
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        faults.append(Fault("--device", f"{device!r} cannot be used: {first}", "`errata doctor` lists devices"))
    if faults:
        raise FaultsError("the command line", faults)
    chosen = None if device is None else torch.device(device)
    return Placement(device=chosen, dtype=None if dtype is None else _DTYPES[dtype])


def outline_of(name: str, *, trust_remote_code: bool) -> Outline:
    """A model's outline; says so where the hub is asked for it, which can take a while without a network.

    Of a stack or a run it is its base's.
    """
    note_unfinished(name)
    name = base_of(name)
    if is_hub_name(name):
        note = f"note: there is no directory {name!r} here; looking on the hub (HF_HUB_OFFLINE=1: only among downloads)"
        error_console().print(note, markup=False, highlight=False)
    note_conversion(name)
    return Outline.load(name, trust_remote_code=trust_remote_code)


def note_conversion(name: str) -> None:
    """Say so where a GGUF file is about to be converted, which takes its time once."""
    file = gguf_of(name)
    if file is not None and not (target := converted_directory(file)).is_dir():
        warn(f"note: converting {file.name} to plain float32 weights, once; they are kept in {target}")


def note_unfinished(name: str) -> None:
    """Says so where a run is taken as it is, and has not come to its end."""
    if is_run(name):
        run = open_run(Path(name))
        if run.batches_done < run.batches:
            warn(
                f"note: the run {name} is unfinished: {run.batches_done} of its {run.batches} batches are done, "
                f"{run.facts_done} of its {len(run.facts)} facts (errata edit --resume {name} goes on with it)"
            )


def outline_here(name: str, *, trust_remote_code: bool) -> Outline | None:
    """A model's outline if it lies on this machine. The hub, which can be slow to say no, is left until all else that
    was given has been looked at: None.
    """
    return None if is_hub_name(base_of(name)) else outline_of(name, trust_remote_code=trust_remote_code)


PATCH_SUFFIX = ".safetensors"


def token_check(model: Outline | None, *, lead: int = 0) -> Check:
    """What finds subjects without tokens, and prompts that are too long for the model; nothing without one.

    Args:
        lead: the tokens that an edit puts before a prompt.
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
        faults = token_faults(facts, places, count_tokens=count_tokens, limit=limit, lead=lead)
        if model.unembedded:
            faults += unembedded_faults(facts, places, unembedded_in=unembedded_in)
        return faults

    return check


def check_facts(facts: FactSet, model: Outline, *, lead: int = 0) -> None:
    """Raises FaultsError for what ``token_check`` finds in facts that were read before the model was looked at."""
    if faults := token_check(model, lead=lead)(facts.facts, facts.places):
        raise FaultsError(facts.source, faults)


def check_chat(model: Outline | None) -> None:
    """Raises InputError unless a model has a chat template that can be used."""
    if model is not None:
        try:
            chat_frame(model.tokenizer)
        except InputError as error:
            raise InputError(f"--chat with {model.name!r}: {error.what}", remedy=error.remedy) from error


def has_chat(model: Outline) -> bool:
    """Whether a model has a chat template that can be used; says so where it has one that cannot."""
    if not model.tokenizer.chat_template:
        return False
    try:
        chat_frame(model.tokenizer)
    except InputError as error:
        warn(f"note: nothing is asked in chat: {error.what}")
        return False
    return True


def is_lab(name: str) -> bool:
    """Whether a model is the embedded one, was saved from it, or was edited from it, once or again and again.

    Raises:
        InputError: if the record beside the model cannot be read.
    """
    path = Path(name) / "errata.json"
    if is_stack(name) or is_run(name):
        return is_lab(base_of(name))
    if name != "lab" and is_file(path):
        try:
            return bool(json.loads(path.read_text(encoding="utf-8"))["about"]["lab"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not the record of an edit: {reason_of(error)}",
                remedy="Remove this file, or edit the model anew",
            ) from error
    if has_stack(name):
        return is_lab(stack_base(name)[0])
    return name == "lab" or is_file(Path(name) / "world.json")


def recipe_name(model: str) -> str:
    """Which shipped recipe a model takes: the lab's for what was made from the lab, else that of its base.

    A directory may have any name, so a model on disk is also recognised by the shape that its configuration gives.
    """
    if is_lab(model):
        return "lab"
    base = base_of(model)
    return shipped_name_for(_config_of(base)) or base


def _config_of(model: str) -> dict[str, Any]:
    """A directory's ``config.json``, of its text model where it has several; empty if there is none to read."""
    path = Path(model) / "config.json"
    if not is_file(path):
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # loading the model says what is wrong with it
    if not isinstance(config, dict):
        return {}
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def patch_name(out: Path) -> str:
    """What a patch is called that goes to ``out``."""
    return out.name.removesuffix(out.suffix) if out.suffix == PATCH_SUFFIX else out.name


UNTOUCHED = 300
PROSE = 60
_SOURCE = {str(metric): accuracy for accuracy in CONTROLS for metric in derived(accuracy)}


def examination_for(
    facts: FactSet, *, lab: bool, untouched: Sequence[tuple[str, Question]] | None, seed: int
) -> Examination:
    """The facts, questions about subjects that no fact edits, and prose.

    Args:
        lab: whether the model is the lab's or made from it; then its world and its held-out prose are used.
        untouched: questions of the user's, instead of the world's.
    """
    questions = untouched or []
    if lab:
        from errata.lab.corpus import held_out_prose
        from errata.lab.package import lab_world
        from errata.lab.tasks import untouched_questions

        if untouched is None:
            questions = untouched_questions(lab_world(), [fact.subject for fact in facts], UNTOUCHED, seed=seed)
        return Examination(facts, questions, held_out_prose(PROSE))
    return Examination(facts, questions, shipped_sentences())


def show_absent(absent: Mapping[str, str]) -> None:
    """Say which metrics are missing, and why; metrics with the same reason are on one line. What is derived from an
    accuracy is not named where that is missing for the same reason.

    Args:
        absent: metric -> reason.
    """
    reasons: dict[str, list[str]] = {}
    for metric, reason in absent.items():
        if absent.get(_SOURCE.get(metric, "")) != reason:
            reasons.setdefault(reason, []).append(entry_of(metric).heading)
    for reason, metrics in reasons.items():
        tell(f"Absent: {', '.join(metrics)} ({reason}).")


def shipped_sentences() -> list[str]:
    """The fixed, mixed set of sentences that perplexity is measured on for models other than the lab's."""
    text = (resources.files("errata") / "evaluation" / "sentences.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def read_questions(path: Path | None) -> list[tuple[str, Question]] | None:
    """Questions from JSONL of {"prompt", "answer"}, each a cluster of its own; None without a path.

    Raises:
        InputError: if the file cannot be read.
        FaultsError: every bad line.
    """
    if path is None:
        return None
    try:
        lines = file_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}", remedy="Give a UTF-8 JSONL file") from error
    questions: list[tuple[str, Question]] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            question = Question(record["prompt"], record["answer"], record.get("joiner"))
            questions.append((f"{path.name}:{number}", question))
        except (ValueError, TypeError, KeyError, InputError) as error:
            faults.append(Fault(f"{path}:{number}", f"not a question ({error})", 'Write {"prompt": …, "answer": …}'))
    if not questions and not faults:
        faults.append(Fault(str(path), "no question in it", 'Write one {"prompt": …, "answer": …} a line'))
    if faults:
        raise FaultsError(str(path), faults)
    return questions
