"""What the verbs ask of a model that the user named, before or beside loading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.errors import Fault, FaultsError, InputError
from errata.facts import Fact, FactSet
from errata.facts_io import Check
from errata.facts_tokens import token_faults, unembedded_faults
from errata.loading import base_of
from errata.models.outline import Outline
from errata.models.prompts import chat_frame
from errata.output import is_file
from errata.reading import reason_of
from errata.recipe_files import shipped_name_for
from errata.run_directory import is_run
from errata.stack import has_stack, is_stack, stack_base
from errata.verbs.terminal import warn

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
