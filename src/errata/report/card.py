"""The model card of an edited model: what was changed and how, what that did to everything else, and the way back.

It is the README.md that a model has on the Hugging Face hub. The hub reads the YAML on top: ``base_model_relation`` is
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

from errata.conflicts import statement
from errata.evaluation.metrics import Metric
from errata.evaluation.results_file import Row
from errata.facts import Fact
from errata.models.small_models import is_small_model
from errata.report.markdown import Markdown, fenced, moment, text
from errata.report.tables import before_after_markdown
from errata.stack import Stack, Stacked

if TYPE_CHECKING:
    from jinja2 import Template

FACTS_SHOWN = 50
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?(?:/[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?)?", re.ASCII)
_MEANING: Mapping[str, Markdown] = {
    Metric.EFFICACY_SUCCESS: Markdown("the edited prompt: the new answer is likelier than the old one"),
    Metric.EFFICACY_ACCURACY: Markdown("the edited prompt: the new answer is what the model says"),
    Metric.GENERALISATION_SUCCESS: Markdown("paraphrases of it: the new answer is likelier than the old one"),
    Metric.GENERALISATION_ACCURACY: Markdown("paraphrases of it: the new answer is what the model says"),
    Metric.SPECIFICITY_SUCCESS: Markdown(
        "other subjects in the same relation: their answer is likelier than the new one"
    ),
    Metric.SPECIFICITY_ACCURACY: Markdown("other subjects in the same relation: their answer is what the model says"),
    Metric.SCORE: Markdown("harmonic mean of the three successes"),
    Metric.SAME_SUBJECT_ACCURACY: Markdown("other facts of the edited subjects: the model still says them"),
    Metric.UNTOUCHED_ACCURACY: Markdown("facts of subjects that nobody edited: the model still says them"),
    Metric.PERPLEXITY_RATIO: Markdown("perplexity on held-out text, over that before; 1 is no change"),
    Metric.SECONDS_PER_EDIT: Markdown("wall time of the edit over its facts, without preparation"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of an edit beside its weights.

    Attributes:
        rows: the long form of one method; none where nothing was measured.
        by: the command that measured.
        before: what the column "before" is of; empty where there is none.
        absent: metrics that could not be measured, with the reason.
        left_alone: ids of facts that nothing was written for.
    """

    rows: tuple[Row, ...] = ()
    by: str = ""
    before: str = ""
    absent: Mapping[str, str] | None = None
    left_alone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger.

    Attributes:
        patch: what brought the fact.
        added: when that was put on.
        again_by: the last patch that was told something of the same words later; empty if none was.
    """

    fact: Fact
    patch: str
    added: str
    again_by: str


def ledger_of(stack: Stack) -> list[Entry]:
    """Every fact that was ever written, oldest first."""
    last = {statement(fact): patch for patch, fact in stack.facts}
    return [
        Entry(fact, stacked.name, stacked.added, "" if (later := last[statement(fact)]) == stacked.name else later)
        for stacked in stack.patches
        for fact in stacked.patch.facts
    ]


def model_card(
    stack: Stack, measured: Measured, *, name: str, with_weights: bool, repository: str | None = None
) -> Markdown:
    """The card as Markdown.

    Args:
        stack: all that is in the model; at least one patch with at least one fact.
        name: what the model is called, for its title.
        with_weights: whether the whole model lies beside the card, or the patches alone.
        repository: its name on the hub, where it has one.
    """
    entries = ledger_of(stack)
    recipes: dict[str, list[str]] = {}
    for stacked in stack.patches:
        recipe = stacked.patch.recipe.with_corpus(Path(stacked.patch.recipe.statistics.corpus).name)  # no paths
        recipes.setdefault(recipe.to_yaml(), []).append(stacked.name)
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
            replaced=sum(bool(entry.again_by) for entry in entries),
            patches=[_patch_line(stacked) for stacked in stack.patches],
            recipes=[(", ".join(names), recipe) for recipe, names in recipes.items()],
            measured=measured,
            table=_table(measured.rows) if measured.rows else Markdown(),
            meanings=[(_spaced(metric), what) for metric, what in _MEANING.items() if metric in metrics],
            absent=[(_spaced(metric), why) for metric, why in (measured.absent or {}).items()],
            use=_use(stack, entries, with_weights, repository),
            undo=_undo(stack, entries, repository),
        )
    )


def hub_name(base: str) -> str | None:
    """A base's name on the hub; None of ``lab``, of errata's small models, and of what is on this machine only."""
    return base if base != "lab" and not is_small_model(base) and not is_local(base) else None


def is_local(name: str) -> bool:
    """Whether a model's or file's name means something on this machine only."""
    return name != "lab" and not is_small_model(name) and (_HUB_NAME.fullmatch(name) is None or Path(name).exists())


def shown_base(base: str) -> str:
    """A base for readers elsewhere, without the path of a directory that they do not have."""
    if base == "lab":
        return "lab (the model that is embedded in errata)"
    if is_small_model(base):
        return f"{base} (`errata models get {base}`)"
    return f"{Path(base).name} (a local directory, not on the hub by this name)" if is_local(base) else base


def _spaced(metric: str) -> str:
    return metric.replace("_", " ")


def _meta(stack: Stack, with_weights: bool) -> Markdown:
    """The YAML on top: each value as JSON, which is YAML and keeps to one line whatever it holds."""
    methods = dict.fromkeys(stacked.patch.recipe.method for stacked in stack.patches)
    about: dict[str, Any] = {}
    if base := hub_name(stack.base):
        about = {"base_model": base, "base_model_relation": "finetune" if with_weights else "adapter"}
    # The hub offers code for a library by its name; patches alone are nothing that transformers could load.
    about["library_name"] = "transformers" if with_weights else "errata"
    if with_weights:
        about["pipeline_tag"] = "text-generation"
    about["tags"] = ["errata", "model-editing", "knowledge-editing", *methods]
    return Markdown("\n".join(f"{key}: {json.dumps(value)}" for key, value in about.items()))


def _patch_line(stacked: Stacked) -> dict[str, Any]:
    patch = stacked.patch
    return {
        "name": stacked.name,
        "facts": len(patch.facts),
        "method": patch.recipe.method,
        "layers": ", ".join(map(str, patch.layers)) or "none",
        "batch_size": patch.recipe.batch_size,
        "seed": patch.seed,
        "created": patch.created,
        "versions": ", ".join(f"{name} {version}" for name, version in patch.versions.items()),
        "forced": stacked.forced,
        "missing": ", ".join(stacked.missing),
    }


def _table(rows: Sequence[Row]) -> Markdown:
    """Names are from a file that anybody may have written; of a model's path, readers elsewhere need the end."""
    known = set(Metric)
    shown = [
        Row(
            method=text(Path(row["method"]).name),
            metric=row["metric"] if row["metric"] in known else text(row["metric"]),
            when=row["when"],
            mean=row["mean"],
            low=row["low"],
            high=row["high"],
            n=row["n"],
        )
        for row in rows
    ]
    return Markdown(before_after_markdown(shown))


def _use(stack: Stack, entries: Sequence[Entry], with_weights: bool, repository: str | None) -> list[Markdown]:
    """Blocks of code that load the model, one after another."""
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
        code = f"from errata.loading import load_model\n\nmodel = load_model({place!r})"
    return [*blocks, fenced(code, "python")]


def _undo(stack: Stack, entries: Sequence[Entry], repository: str | None) -> Markdown:
    """Commands that take out a patch, and a fact."""
    place = _place(repository)
    # What cannot be seen is not for copying into a shell.
    names = [(entry.patch, f"{entry.patch}/{entry.fact.id}") for entry in reversed(entries)]
    patch, fact = map(shlex.quote, next((pair for pair in names if pair[1].isprintable()), ("PATCH", "PATCH/ID")))
    base = " --base BASE" if is_local(stack.base) else ""
    return fenced(
        f"errata revert {place} --patch {patch}{base} --out without-a-patch\n"
        f"errata rebuild {place} --without {fact}{base} --out without-a-fact  # solves again what stood on it",
        "bash",
    )


def _place(repository: str | None) -> str:
    """What the folder is called where a reader has it."""
    return repository.rpartition("/")[2] if repository else "DIRECTORY"


def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown is not HTML: every value goes through a filter of ours, or there is no card
        finalize=_checked,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": text, "moment": moment, "fenced": fenced}
    return environment.get_template("card.md.j2")


def _checked(value: object) -> object:
    """Lets only through what a filter has made safe."""
    if not isinstance(value, Markdown):
        raise TypeError(f"a value is put into the card without a filter: {value!r}")
    return value
