"""``errata advise``: try several editors on the user's facts, and recommend one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from errata.benchmark.sequence import EvaluationSet
from errata.benchmark.trials import Baseline, Candidate, Trial, measure_baseline, run_trial, with_wordings
from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TrustOption,
    UntouchedOption,
    check_facts,
    evaluation_set_for,
    is_lab,
    outline_of,
    placement,
    seed_option,
    shipped_sentences,
    token_check,
)
from errata.cli.recipe_options import automatic_recipe, comes_with_recipe, read_recipe_for, read_settings_for
from errata.cli.terminal import JsonOption, console, echo, plain_table, progress, warn, write_json
from errata.editing.recipe import Recipe
from errata.editors.contract import KnowledgeEditor
from errata.editors.locate_then_edit import LocateThenEdit
from errata.editors.registry import editor_named
from errata.editors.table import EDITOR_NAMES, check_method, editor_row
from errata.errors import InputError, collect_errors
from errata.evaluation.controls import facts_to_scan, with_automatic_controls
from errata.facts.fact import Fact, FactSet
from errata.facts.files import read_facts
from errata.facts.questions import read_questions
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.report.advice import cost_table, quality_table, recommendation
from errata.runs.loading import load_model
from errata.utils.progress import Report
from errata.utils.text import counted

EXAMPLE = """Example: errata advise --model lab --facts examples/facts.jsonl

Example: errata advise --model smollm2-135m-instruct --facts facts.jsonl --editors retrieval,memit+blue --minutes 10"""
WANTED = ("retrieval", "memit+blue", "alphaedit+blue", "lora", "ft_bf")
DEFAULT = tuple(name for name in WANTED if "+" in name or name in EDITOR_NAMES)
MORE = 10  # times the number of facts in the second round
app = typer.Typer()


@app.command("advise", epilog=EXAMPLE)
def advise(
    facts: Annotated[Path, typer.Option("--facts", "-f", help="The facts that you want to edit.")],
    model: ModelOption = "lab",
    editors: Annotated[
        str | None,
        typer.Option(help="Editors to try, comma-separated (see `errata methods`); default: a selection of each kind."),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.0, help="Time for everything; editors that would not end in time with more facts are skipped there."
        ),
    ] = 15.0,
    untouched: UntouchedOption = None,
    seed: Annotated[int, seed_option("for contexts, further facts and bootstrap.")] = 0,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Try several editors on your facts, compare what took and what broke, and recommend one.

    Each editor edits the facts and is removed again: first your facts, then ten times as many, with facts from errata's
    own list. Nothing is written.
    """
    ends = time.monotonic() + 60 * minutes
    names = list(dict.fromkeys(DEFAULT if editors is None else filter(None, map(str.strip, editors.split(",")))))
    outline = outline_of(model, trust_remote_code=trust_remote_code)
    candidates: list[Candidate] = []
    with collect_errors("the input") as part:
        with part:
            where = placement(device, dtype)
        for name in names:
            with part:
                check_method(name)
                candidates.append(_candidate(name, model, outline, seed))
        with part:
            if not names:
                raise InputError(
                    "--editors names no editor", remedy="Write retrieval,memit+blue", code="OPTION_INVALID"
                )
        with part:
            given = read_facts(facts, check=token_check(outline))
            for note in given.notes:
                warn(f"note: {note}")
        with part:
            questions = read_questions(untouched)
        with part:
            lab = is_lab(model)
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    rounds: list[tuple[FactSet, list[Trial]]] = []
    baselines: list[Baseline] = []
    skipped: list[str] = []
    with progress() as report, loaded.blaming_no_edit():
        for facts_of_round in (given, _more(loaded, given, lab=lab, seed=seed)):
            if not facts_of_round:
                continue
            check_facts(facts_of_round, outline)
            prepared = _evaluation_set(loaded, facts_of_round, questions, lab=lab, seed=seed)
            baseline = measure_baseline(loaded, prepared, report=report)
            baselines.append(baseline)
            rounds.append((facts_of_round, []))
            for candidate in candidates:
                earlier = _trial_of(rounds[0][1], candidate.name) if len(rounds) > 1 else None
                needed = 0.0 if earlier is None else earlier.seconds_per_fact * len(facts_of_round)
                if time.monotonic() + needed > ends and (len(rounds) > 1 or rounds[0][1]):
                    skipped.append(f"{candidate.name} with {len(facts_of_round)} facts")
                    continue
                if earlier is None or not earlier.failure:
                    trial = run_trial(loaded, candidate, prepared, baseline, seed=seed, report=report)
                    rounds[-1][1].append(trial)
    for number, (edited, trials) in enumerate(rounds):
        own = "" if number == 0 else f" ({counted(len(given), 'fact')} of yours, the others from errata's list)"
        echo(f"{counted(len(edited), 'fact')}{own}:")
        _show(trials, baselines[number].query_seconds)
    if skipped:
        warn(f"note: skipped for lack of time: {', '.join(skipped)} (--minutes {minutes:g})")
    advice = recommendation(rounds[0][1], rounds[1][1] if len(rounds) > 1 else ())
    echo(advice)
    record: dict[str, Any] = {
        "model": model,
        "rounds": [
            {"facts": len(edited), "trials": [trial.to_record() for trial in trials]} for edited, trials in rounds
        ],
        "skipped": skipped,
        "recommendation": advice,
    }
    write_json(json, record)


def _candidate(name: str, model: str, outline: Outline, seed: int) -> Candidate:
    """An editor with its shipped or automatic settings for the model."""
    if name in EDITOR_NAMES:
        settings = read_settings_for(name, model, None, seed=seed).model_dump(mode="json")
        kind = editor_named(name)
        return Candidate(name, editor_row(name).where, lambda loaded, report: kind.make(loaded, settings, report))
    default = None if comes_with_recipe(model) else automatic_recipe(model, name, outline)
    recipe = read_recipe_for(model, name, None, seed=seed, default=default)
    return Candidate(name, "weights", partial(_locate_then_edit, recipe=recipe))


def _locate_then_edit(model: LanguageModel, report: Report, recipe: Recipe) -> KnowledgeEditor:
    return LocateThenEdit(model, recipe, report=report)


def _more(model: LanguageModel, facts: FactSet, *, lab: bool, seed: int) -> FactSet | None:
    """The user's facts and further ones, ``MORE`` times as many; None if there are no further ones."""
    wanted = (MORE - 1) * len(facts)
    subjects = {fact.subject.casefold() for fact in facts}
    further: Sequence[Fact]
    if lab:
        from errata.lab.package import lab_world
        from errata.lab.tasks import lab_facts

        world = lab_world()
        further = lab_facts(world, min(wanted + len(facts), len(world.people)), seed=seed)
    else:
        further = facts_to_scan(model, wanted + len(facts), seed=seed)
    chosen = [fact for fact in further if fact.subject.casefold() not in subjects][:wanted]
    return FactSet((*facts, *chosen), f"{facts.source} and errata's list") if chosen else None


def _evaluation_set(model: LanguageModel, facts: FactSet, questions: Any, *, lab: bool, seed: int) -> EvaluationSet:
    """The facts with other wordings and control questions, generated where they have none."""
    worded, added = with_wordings(facts.facts, shipped_sentences())
    if added:
        warn(
            f"note: {counted(added, 'fact')} without paraphrases: the prompt after an unrelated sentence is used "
            "instead, which is easier than a paraphrase"
        )
    prepared = FactSet(tuple(worded), facts.source)
    automatic = frozenset[tuple[str, str]]()
    if not lab:
        generated = with_automatic_controls(model, prepared)
        prepared, automatic = generated.facts, generated.automatic
    found = evaluation_set_for(prepared, lab=lab, untouched=questions, seed=seed)
    return replace(found, automatic=automatic)


def _trial_of(trials: Sequence[Trial], method: str) -> Trial | None:
    return next((trial for trial in trials if trial.method == method), None)


def _show(trials: Sequence[Trial], base_query: float) -> None:
    for heads, *rows in (quality_table(trials), cost_table(trials)):
        table = plain_table(*heads, right=heads[1:5], no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        console().print(table)
    echo(
        f"Shares in % with 95 % intervals; perplexity of prose as a ratio. A query is one generated token, about an "
        f"edited fact and about others; it takes the unedited model {1000 * base_query:.0f} ms."
    )
    for trial in trials:
        if trial.failure:
            warn(f"{trial.method} failed: {trial.failure}")
