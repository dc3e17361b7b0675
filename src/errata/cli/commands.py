"""The command line's verbs by name, so that they can be listed without being imported: that takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Entry:
    """A verb.

    Attributes:
        module: of this package, whose ``app`` has the command of the verb's name, or is a group of commands.
        summary: the first sentence of its help.
    """

    module: str
    summary: str


VERBS: Final[Mapping[str, Entry]] = {
    "edit": Entry("edit", "Edit facts into a model and show what changed."),
    "evaluate": Entry("evaluate", "Measure how well a model says the facts, and what it says of everything else."),
    "export": Entry("export", "Write patches as one LoRA adapter that PEFT loads beside the unedited base."),
    "ask": Entry(
        "ask",
        "Let a model continue a text (greedily), and show the likeliest next tokens; a base model beside it if asked.",
    ),
    "show": Entry("show", "Show what was changed: the facts, and of each layer the size and the rank of the change."),
    "diff": Entry(
        "diff", "Compare two edits: facts that only one has or that they tell apart, and the changes layer by layer."
    ),
    "apply": Entry("apply", "Put patches on a model, or on a stack of them, as a small new stack beside its base."),
    "merge": Entry(
        "apply", "Write a stack, a run, or a base with patches as a full model, which plain transformers can load."
    ),
    "revert": Entry(
        "revert",
        "Take patches out (the last one by default): exactly, for weights are computed from the base and the others.",
    ),
    "rebuild": Entry(
        "revert", "Take facts out and solve again what was solved on top of them, as if they had never been edited."
    ),
    "history": Entry("history", "Tell what was changed, when, by which patch, and whether the model still says it."),
    "save": Entry(
        "save",
        "Write a folder ready to publish: the patches or the model, with a card of what was changed and what that did.",
    ),
    "push": Entry("push", "Upload what `errata save` writes to the Hugging Face hub, after showing what goes where."),
    "locate": Entry("locate", "Find the layers of a model that take edits, by writing facts into one layer at a time."),
    "report": Entry(
        "report",
        "Show what a benchmark or a study found: one HTML page that needs no network, Markdown, CSV and LaTeX tables.",
    ),
    "methods": Entry(
        "methods",
        "List the editing methods with their papers, and where they differ from them; any of them takes +blue.",
    ),
    "doctor": Entry(
        "doctor", "Show versions, devices, what fits in memory, and whether the embedded model is in order."
    ),
    "bench": Entry(
        "bench", "Edit facts in a sequence of batches, with every method, and measure honestly what that did."
    ),
    "analyse": Entry(
        "analyse", "Measure each step of the argument behind boundary-layer updates, on any supported model."
    ),
    "demo": Entry(
        "demo", "Edit facts into the embedded model, with and without boundary-layer updates, and show what changed."
    ),
    "recipe": Entry("recipe", "The numbers of an edit: what comes with errata, and the check of your own."),
    "models": Entry("small_models", "Small real models for trying things: list them, get one, say where it is."),
    "data": Entry("data", "Data sets of the field: list them, download one, check a file of one."),
    "lab": Entry("lab", "The embedded model: save it, train it, measure its recall, draw facts from its world."),
}
