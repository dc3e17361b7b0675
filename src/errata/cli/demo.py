"""``errata demo``: edits of the embedded model, or corrections of real facts in a pretrained model."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from errata.benchmark.recipe_search import automatic_file, layers_by_depth, unsearched_recipe
from errata.benchmark.sequence import EvaluationSet, measure, run_sequence
from errata.cli.model_options import DeviceOption, outline_of, placement, seed_option
from errata.cli.terminal import JsonOption, PlainConsole, console, echo, progress, write_json
from errata.editing.methods import BOUNDARY_SUFFIX, method_named
from errata.editing.recipe import Recipe, parse_recipe, shipped_recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import ErrataError, InputError
from errata.facts.fact import Fact, FactSet, Question
from errata.facts.files import read_facts
from errata.facts.joining import word_places
from errata.facts.questions import read_questions
from errata.lab.corpus import held_out_prose
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.report.tables import comparison_tables
from errata.results.records import Row, write_results
from errata.runs.loading import load_model
from errata.utils.files import check_file, write_text
from errata.utils.progress import Report
from errata.utils.provenance import software_versions
from errata.utils.text import counted

EXAMPLE = """Example: errata demo --out runs/demo --facts 100 --methods memit,memit+blue

Example: errata demo --model smollm2-135m-instruct --out runs/real"""
METHODS = "memit,memit+blue,alphaedit,alphaedit+blue"
app = typer.Typer()


@app.command("demo", epilog=EXAMPLE)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for results.json.")] = Path("runs/demo"),
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="'lab', or a pretrained model such as smollm2-135m-instruct, in which ten real facts are corrected.",
        ),
    ] = "lab",
    methods: Annotated[
        str | None, typer.Option(help=f"Comma-separated methods (lab only); default: {METHODS}.")
    ] = None,
    facts: Annotated[int | None, typer.Option(min=1, help="Number of facts to edit (lab only); default: 100.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts solved jointly (lab only); default: 25.")] = None,
    seed: Annotated[
        int | None, seed_option("of the facts (lab only); default: 0. The recipe was tuned on seeds 900 to 902.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Also save the table as an SVG image.")] = None,
    device: DeviceOption = "cpu",
    json: JsonOption = None,
) -> None:
    """Edit facts with and without boundary updates, and show the effect.

    Uses the embedded model by default. With --model, corrects ten real facts in a pretrained model, shows its answers
    before and after, and undoes the edit.
    """
    if model != "lab":
        if any(option is not None for option in (methods, facts, batch_size, seed)):
            raise InputError(
                "--methods, --facts, --batch-size and --seed need --model lab",
                remedy="Remove them",
                code="OPTION_NOT_APPLICABLE",
            )
        demo_real(model, out, svg, device, json)
        return
    methods = METHODS if methods is None else methods
    facts = 100 if facts is None else facts
    batch_size = 25 if batch_size is None else batch_size
    seed = 0 if seed is None else seed
    started = time.perf_counter()
    results = out / "results.json"
    for path in (results, *([svg] if svg else [])):
        check_file(path)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise InputError("--methods is empty", remedy=f"Use, for example, {METHODS}", code="OPTION_INVALID")
    recipes = []
    for name in names:
        method_named(name)
        recipe = shipped_recipe("lab", name)
        contexts = recipe.contexts.model_copy(update={"seed": seed})
        recipes.append(recipe.model_copy(update={"batch_size": batch_size, "contexts": contexts}))
    world = lab_world()
    if facts > len(world.people):
        raise InputError(
            f"--facts {facts} exceeds the {len(world.people)} people of the world, each of whom is edited once",
            remedy="Lower --facts",
            code="TOO_MANY_FACTS",
        )
    loaded = LanguageModel.load("lab", device=placement(device, None)["device"])
    edits = lab_facts(world, facts, seed=seed)
    evaluation_set = EvaluationSet(
        FactSet(tuple(edits), "the lab's world"),
        untouched_questions(world, [fact.subject for fact in edits], 300, seed=seed),
        held_out_prose(60),
    )
    rows: list[Row] = []
    with progress() as report:
        before = measure(loaded, evaluation_set, report=report, what="measuring before")
        for index, recipe in enumerate(recipes):
            report("methods", index, len(recipes))
            result = run_sequence(loaded, recipe, evaluation_set, before, report=report, seed=seed)
            result.patch.undo(loaded)
            rows += result.rows
        report("methods", len(recipes), len(recipes))
    # Only terminals limit the width of the table.
    wide = PlainConsole(record=svg is not None, width=None if console().is_terminal and svg is None else 120)
    for table in comparison_tables(rows, width=wide.width):
        wide.print(table)
        wide.print()
    seconds = time.perf_counter() - started
    wide.print(
        f"{counted(facts, 'fact')} in batches of {batch_size}, {counted(len(names), 'method')}, {seconds:.0f} s in "
        f"total; seed {seed}."
    )
    if svg is not None:
        _write_svg(svg, wide)
    about = {
        "command": f"errata demo --facts {facts} --batch-size {batch_size} --methods {methods} --seed {seed}",
        "recipes": {recipe.method: recipe.model_dump(mode="json") for recipe in recipes},
        "seconds": seconds,
        "versions": software_versions(),
    }
    for path in (results, *([json] if json else [])):
        write_results(path, rows, about)
    echo(f"Wrote {results}")


METHOD: Final = "memit+blue"
_TOKENS: Final = 8  # of each answer
_STATISTICS: Final = {
    "corpus": "builtin",
    "tokens": 50_000,
    "length": 512,
}  # enough for a model of this size


@dataclass(frozen=True, slots=True)
class _Answered:
    """A prompt with the correct answer, and the model's answers before and after the edit."""

    prompt: str
    right: str
    before: str
    after: str

    def is_right(self, said: str) -> bool:
        return 0 in word_places(said.casefold(), self.right.casefold())

    def record(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "right": self.right,
            "before": self.before,
            "after": self.after,
            "right_before": self.is_right(self.before),
            "right_after": self.is_right(self.after),
        }


def corrections() -> tuple[Sequence[Fact], Sequence[Question]]:
    """Ten facts that small models get wrong, and twenty control questions that they answer correctly."""
    folder = Path(str(resources.files("errata") / "corrections"))
    questions = read_questions(folder / "controls.jsonl") or []
    return read_facts(folder / "facts.jsonl").facts, [question for _, question in questions]


def demo_real(name: str, out: Path, svg: Path | None, device: str | None, json: Path | None) -> None:
    """Correct the ten facts in a model, show its answers before and after, and undo the edit.

    Raises:
        InputError: if the model cannot be loaded, or a path cannot be written.
        ErrataError: if undoing the edit does not restore the weights.
    """
    results = out / "results.json"
    for path in (results, *([svg] if svg else [])):
        check_file(path)
    facts, controls = corrections()
    where = placement(device, None)
    outline_of(name, trust_remote_code=False)
    model = load_model(name, **where)
    started = time.perf_counter()
    fingerprint = model.fingerprint()
    recipe, source = _recipe_for(model, name)
    echo(f"Correcting {len(facts)} facts in {name} with {recipe.method} at layers {list(recipe.layers)} ({source}).")
    asked = [
        *((fact.text, fact.target) for fact in facts),
        *((prompt, fact.target) for fact in facts for prompt in fact.paraphrases),
        *((question.prompt, question.answer) for question in controls),
    ]
    prompts = [prompt for prompt, _ in asked]
    with progress() as report:
        before = _answers(model, prompts, report, "measuring before")
        patch = _edited(model, recipe, facts, report)
        after = _answers(model, prompts, report, "measuring after")
    answered = [_Answered(*pair, one, two) for pair, one, two in zip(asked, before, after, strict=True)]
    patch.undo(model)
    restored = model.fingerprint() == fingerprint
    seconds = time.perf_counter() - started
    main, others = answered[: len(facts)], answered[len(facts) : len(answered) - len(controls)]
    unrelated = answered[len(answered) - len(controls) :]
    shown = PlainConsole(record=svg is not None, width=None if console().is_terminal and svg is None else 100)
    shown.print(_table(main))
    shown.print(_summary(main, others, unrelated))
    shown.print(
        "The edit was undone: the weights are bit for bit the original ones (same SHA-256)."
        if restored
        else "[bold red]Undoing the edit did not restore the original weights.[/]"
    )
    shown.print(f"{seconds:.0f} s in total, without loading the model.", highlight=False)
    if svg is not None:
        _write_svg(svg, shown)
    record = {
        "model": name,
        "recipe": recipe.model_dump(mode="json"),
        "facts": [one.record() for one in main],
        "paraphrases": [one.record() for one in others],
        "controls": [one.record() for one in unrelated],
        "fingerprint": fingerprint,
        "restored": restored,
        "seconds": seconds,
        "versions": software_versions(),
    }
    for path in (results, *([json] if json else [])):
        write_json(path, record)
    echo(f"Wrote {results}")
    if not restored:
        raise ErrataError(
            "undoing the edit did not restore the weights", remedy="Please report this bug", code="UNDO_FAILED"
        )


def _write_svg(path: Path, recorded: PlainConsole) -> None:
    """Save the output of a console, without rich's reference to a web font."""
    image = recorded.export_svg(title="errata demo")
    write_text(path, re.sub(r"@font-face \{.*?\}\s*", "", image, flags=re.DOTALL))


def _recipe_for(model: LanguageModel, name: str) -> tuple[Recipe, str]:
    """The shipped recipe of a model, otherwise automatic settings; and a description of which it is."""
    try:
        return shipped_recipe(name, METHOD), "shipped recipe"
    except InputError:  # there is none for this model
        row = method_named(METHOD.removesuffix(BOUNDARY_SUFFIX))
    layers = layers_by_depth(len(model.blocks))
    found = unsearched_recipe(name, row, layers, model.key_width(layers[0]), _STATISTICS)
    text = automatic_file(name, layers, "by depth", {row.name: found})
    return parse_recipe(text, METHOD, source="automatic settings"), "automatic settings"


def _edited(model: LanguageModel, recipe: Recipe, facts: Sequence[Fact], report: Report) -> Patch:
    return Editor(model, recipe.with_choices({"batch_size": len(facts)}), report=report).apply(facts)


def _answers(model: LanguageModel, prompts: Sequence[str], report: Report, what: str) -> list[str]:
    """The first lines of the model's greedy continuations."""
    texts = model.continue_texts(prompts, new_tokens=_TOKENS, report=lambda _, done, total: report(what, done, total))
    return [text.strip().partition("\n")[0].strip() for text in texts]


def _table(answered: Sequence[_Answered]) -> Table:
    table = Table(title="Answers of the model", title_justify="left")
    for head in ("prompt", "before", "after"):
        table.add_column(head, overflow="fold")
    table.add_column("")
    for one in answered:
        mark = "[green]✓[/]" if one.is_right(one.after) else "[red]✗[/]"
        table.add_row(escape(one.prompt), escape(one.before), escape(one.after), mark)
    return table


def _summary(main: Sequence[_Answered], others: Sequence[_Answered], controls: Sequence[_Answered]) -> str:
    def right(answered: Sequence[_Answered], when: str) -> int:
        return sum(one.is_right(getattr(one, when)) for one in answered)

    lost = [one for one in controls if one.is_right(one.before) and not one.is_right(one.after)]
    lines = [
        f"Correct answers: {right(main, 'before')} before, {right(main, 'after')} after, of {len(main)};",
        f"to paraphrases: {right(others, 'before')} before, {right(others, 'after')} after, of {len(others)};",
        f"to control questions: {right(controls, 'before')} before, {right(controls, 'after')} after, of "
        f"{len(controls)}.",
        *(escape(f"Lost: {one.prompt} {one.right} (now {one.after!r})") for one in lost),
    ]
    return "\n".join(lines)
