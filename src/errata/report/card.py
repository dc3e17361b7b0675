"""The model card of an edited model: its facts, their measured effects, the method, and how to undo the edit.

It is the README.md of a model on the Hugging Face hub, which reads the YAML at the top: ``base_model_relation`` is
one of adapter, finetune, merge and quantized (huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.models.small_models import SMALL_MODELS, is_small_model
from errata.patches.stack import Stack
from errata.report.ledger import EditedFact, edited_facts
from errata.report.markdown import Markdown, fenced, moment, text
from errata.report.tables import before_after_markdown
from errata.results.metrics import Metric, entry_of, in_order
from errata.results.records import Row
from errata.utils.text import counted, listed

if TYPE_CHECKING:
    from jinja2 import Template

FACTS_SHOWN = 50
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?(?:/[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Measured:
    """The measured results of an edit.

    Attributes:
        rows: the long form of one method; empty if nothing was measured.
        by: the command that measured.
        before: the model measured before; empty if there is none.
        absent: metrics that could not be measured, with the reason.
        left_alone: ids of facts that were not edited.
    """

    rows: tuple[Row, ...] = ()
    by: str = ""
    before: str = ""
    absent: Mapping[str, str] | None = None
    left_alone: tuple[str, ...] = ()


def model_card(
    stack: Stack, measured: Measured, *, name: str, with_weights: bool, repository: str | None = None
) -> Markdown:
    """The card as Markdown.

    Args:
        stack: all patches of the model; at least one patch with at least one fact.
        name: of the model, for the title.
        with_weights: whether the full model is published with the card, or only the patches.
        repository: its name on the hub, if any.
    """
    entries = edited_facts((stacked.name, stacked.patch) for stacked in stack.patches)
    recipes: dict[str, list[str]] = {}
    for stacked in stack.patches:
        recipes.setdefault(stacked.patch.recipe.without_directories().to_yaml(), []).append(stacked.name)
    metrics = {row["metric"] for row in measured.rows}
    return Markdown(
        _template().render(
            meta=_meta(stack, with_weights),
            name=name,
            stack=stack,
            base=shown_base(stack.base),
            base_on_hub=hub_name(stack.base),
            with_weights=with_weights,
            repository=repository,
            entries=entries[:FACTS_SHOWN],
            facts=len(entries),
            added={stacked.name: stacked.added for stacked in stack.patches},
            earlier=sum(not entry.latest for entry in entries),
            recipes=[(", ".join(names), recipe) for recipe, names in recipes.items()],
            measured=measured,
            table=_table(measured.rows) if measured.rows else Markdown(),
            meanings=[
                (entry.heading, Markdown(entry.meaning))
                for entry in map(entry_of, in_order(metrics))
                if entry.meaning and entry.name in set(Metric)
            ],
            absent=[(entry_of(metric).heading, why) for metric, why in (measured.absent or {}).items()],
            use=_use(stack, entries, with_weights, repository),
            undo=_undo(stack, entries, repository),
            serve=_serve(stack, with_weights, repository),
            licence=base_licence(stack.base),
        )
    )


def hub_name(base: str) -> str | None:
    """The name of a base model on the hub; None for ``lab``, errata's small models, and local models."""
    return base if base != "lab" and not is_small_model(base) and not is_local(base) else None


def is_local(name: str) -> bool:
    """Whether the name of a model or file is a local path."""
    return name != "lab" and not is_small_model(name) and (_HUB_NAME.fullmatch(name) is None or Path(name).exists())


def shown_base(base: str) -> str:
    """The base model for readers on other machines, without the path of a local directory."""
    if base == "lab":
        return "lab (the model embedded in errata)"
    if is_small_model(base):
        return f"{base} (`errata models get {base}`)"
    return f"{Path(base).name} (a local directory, not on the hub by this name)" if is_local(base) else base


def base_licence(base: str) -> str:
    """The licence of a base model, as far as errata knows it."""
    if base == "lab":
        return "Apache-2.0, as errata, which it comes with"
    if is_small_model(base):
        model = SMALL_MODELS[base]
        return f"{model.licence} ({model.licence_url})"
    where = "its page on the hub" if hub_name(base) else "its files"
    return f"not known to errata; see {where}"


def _meta(stack: Stack, with_weights: bool) -> Markdown:
    """The YAML at the top; values are JSON, which is valid YAML on one line."""
    methods = dict.fromkeys(stacked.patch.recipe.method for stacked in stack.patches)
    about: dict[str, Any] = {}
    if base := hub_name(stack.base):
        about = {"base_model": base, "base_model_relation": "finetune" if with_weights else "adapter"}
    # The hub shows example code for this library; transformers cannot load patches.
    about["library_name"] = "transformers" if with_weights else "errata"
    if with_weights:
        about["pipeline_tag"] = "text-generation"
    about["tags"] = ["errata", "model-editing", "knowledge-editing", *methods]
    return Markdown("\n".join(f"{key}: {json.dumps(value)}" for key, value in about.items()))


def _table(rows: Sequence[Row]) -> Markdown:
    """The results as a table; names come from an untrusted file, and of paths only the last part is shown."""
    known = set(Metric)
    shown: list[Row] = [
        {
            **row,
            "method": text(Path(row["method"]).name),
            "metric": row["metric"] if row["metric"] in known else text(row["metric"]),
        }
        for row in rows
    ]
    return Markdown(before_after_markdown(shown))


def _use(stack: Stack, entries: Sequence[EditedFact], with_weights: bool, repository: str | None) -> list[Markdown]:
    """Code blocks that load the model."""
    asked = next((entry.fact.text for entry in entries if entry.fact.text.isprintable()), "A prompt")
    place = _place(repository)
    lines = [f"hf download {repository} --local-dir {place}"] if repository else []
    lines.append(f"errata ask --model {place} {shlex.quote(asked)}")
    blocks = [fenced("\n".join(lines), "bash")]
    if with_weights:
        named = repr(repository or place)
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({named})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({named})"
        )
    else:
        code = f"from errata.runs.loading import load_model\n\nmodel = load_model({place!r})"
    return [*blocks, fenced(code, "python")]


def _undo(stack: Stack, entries: Sequence[EditedFact], repository: str | None) -> Markdown:
    """Commands that remove a patch and a fact."""
    place = _place(repository)
    # Names with invisible characters are not for copying into a shell.
    names = [(entry.edit, f"{entry.edit}/{entry.fact.id}") for entry in reversed(entries)]
    patch, fact = map(shlex.quote, next((pair for pair in names if pair[1].isprintable()), ("PATCH", "PATCH/ID")))
    base = " --base BASE" if is_local(stack.base) else ""
    return fenced(
        f"errata revert {place} --patch {patch}{base} --out without-a-patch\n"
        f"errata rebuild {place} --without {fact}{base} --out without-a-fact  # solves later patches again",
        "bash",
    )


def _serve(stack: Stack, with_weights: bool, repository: str | None) -> Markdown:
    """Commands that serve the edited model."""
    place = _place(repository)
    base = " --model BASE" if is_local(stack.base) else ""
    lines = [
        f"errata serve --model {place}  # to try it, at an OpenAI-compatible endpoint",
        f"errata export {place}{base} --lora adapter --for vllm  # an adapter for the base, and the command for vLLM",
        f"errata export {place}{base} --gguf adapter.gguf  # an adapter for the base in llama.cpp and Ollama",
    ]
    if with_weights:
        lines.insert(0, f"vllm serve {place}")
    return fenced("\n".join(lines), "bash")


def _place(repository: str | None) -> str:
    """The name of the model's directory on the reader's machine."""
    return repository.rpartition("/")[2] if repository else "DIRECTORY"


def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown is not HTML: every value must pass through a filter, otherwise rendering fails
        finalize=_checked,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": text, "moment": moment, "fenced": fenced, "counted": counted, "listed": listed}
    return environment.get_template("card.md.j2")


def _checked(value: object) -> object:
    """Refuses values that did not pass through a filter."""
    if not isinstance(value, Markdown):
        raise TypeError(f"a value was put into the card without a filter: {value!r}")
    return value
