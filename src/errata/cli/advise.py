"""``errata advise``: try several editors on the user's facts, and recommend one."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.benchmark.trials import Baseline, Candidate, Trial, measure_baseline, run_trial
from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TrustOption,
    UntouchedOption,
    check_facts,
    is_lab,
    outline_of,
    placement,
    seed_option,
    token_check,
)
from errata.cli.terminal import JsonOption, console, echo, number_tables, progress, warn, write_json
from errata.cli.trial_options import PageOption, TrialData, candidate_of, extended, page_file, trial_data
from errata.editors.table import EDITOR_NAMES, check_method
from errata.errors import InputError, collect_errors
from errata.facts.fact import FactSet
from errata.facts.files import read_facts
from errata.facts.questions import read_questions
from errata.report.advice import QUERY, UNITS, advice_page, cost_table, quality_table, recommendation
from errata.report.figures import check_drawing
from errata.runs.loading import load_model
from errata.utils.files import write_text
from errata.utils.provenance import software_versions
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
    out: PageOption = None,
    json: JsonOption = None,
) -> None:
    """Try several editors on your facts, compare what took and what broke, and recommend one.

    Each editor edits the facts and is removed again: first your facts, then ten times as many, with facts from errata's
    own list. Other wordings, control questions and consequences are made where the facts have none. Nothing but the
    page and the JSON is written.
    """
    began = time.monotonic()
    ends = began + 60 * minutes
    names = list(dict.fromkeys(DEFAULT if editors is None else filter(None, map(str.strip, editors.split(",")))))
    outline = outline_of(model, trust_remote_code=trust_remote_code)
    candidates: list[Candidate] = []
    with collect_errors("the input") as part:
        with part:
            where = placement(device, dtype)
        for name in names:
            with part:
                check_method(name)
                candidates.append(candidate_of(name, model, outline, seed))
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
        with part:
            page = page_file(out, "advice")
            if page is not None:
                check_drawing()
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    rounds: list[tuple[FactSet, list[Trial]]] = []
    baselines: list[Baseline] = []
    data: list[TrialData] = []
    skipped: list[str] = []
    with progress() as report, loaded.blaming_no_edit():
        more = extended(loaded, given, MORE * len(given), lab=lab, seed=seed)
        for facts_of_round in (given, more) if len(more) > len(given) else (given,):
            if rounds and time.monotonic() > ends:
                skipped += [f"{candidate.name} with {len(facts_of_round)} facts" for candidate in candidates]
                break
            check_facts(facts_of_round, outline)
            data.append(trial_data(loaded, facts_of_round, questions, lab=lab, seed=seed))
            prepared = data[-1].evaluation_set
            measuring = time.monotonic()
            baseline = measure_baseline(loaded, prepared, report=report)
            if not rounds:
                now = time.monotonic()
                _warn_of_time(now - began, now - measuring, len(candidates), minutes)
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
    titles = [
        counted(len(edited), "fact")
        + ("" if number == 0 else f" ({counted(len(given), 'fact')} of yours, the others from errata's list)")
        for number, (edited, _) in enumerate(rounds)
    ]
    for title, (_, trials), baseline in zip(titles, rounds, baselines, strict=True):
        if trials:
            echo(f"{title}:")
            _show(trials, baseline)
    for name, reason in data[0].absent:
        echo(f"Not measured: {name} ({reason}).")
    notes = [
        f"{counted(len(edited), 'fact')}: {note}"
        for (edited, _), each in zip(rounds, data, strict=True)
        for note in each.notes
    ]
    if skipped:
        notes.append(f"skipped for lack of time: {', '.join(skipped)} (--minutes {minutes:g})")
    for note in notes:
        warn(f"note: {note}")
    untried = [name for name in names if _trial_of(rounds[0][1], name) is None]
    advice = recommendation(rounds[0][1], rounds[1][1] if len(rounds) > 1 else (), untried)
    echo(advice)
    if page is not None:
        text = advice_page(
            model=model,
            rounds=[(title, trials) for title, (_, trials) in zip(titles, rounds, strict=True) if trials],
            advice=advice,
            absent=data[0].absent,
            notes=notes,
            command="errata " + shlex.join(sys.argv[1:]),
            versions=software_versions(),
        )
        write_text(page, text)
        echo(f"Wrote {page}.")
    record: dict[str, Any] = {
        "model": model,
        "rounds": [
            {"facts": len(edited), "trials": [trial.to_record() for trial in trials]} for edited, trials in rounds
        ],
        "skipped": skipped,
        "absent": dict(data[0].absent),
        "notes": notes,
        "recommendation": advice,
    }
    write_json(json, record)


def _warn_of_time(spent: float, measuring: float, editors: int, minutes: float) -> None:
    """Note before the first trial if the time will not do: each trial measures as much as the baseline, and edits.

    Args:
        spent: seconds so far.
        measuring: seconds of the baseline.
    """
    least = (spent + editors * measuring) / 60
    if least > minutes:
        warn(
            f"note: --minutes {minutes:g} will not do for {counted(editors, 'editor')}: measuring alone takes at least "
            f"{least:.1f} min; give more, or fewer --editors"
        )


def _trial_of(trials: Sequence[Trial], method: str) -> Trial | None:
    return next((trial for trial in trials if trial.method == method), None)


def _show(trials: Sequence[Trial], baseline: Baseline) -> None:
    out = console()
    for lines in (quality_table(trials), cost_table(trials)):
        for table in number_tables(lines, out.width):
            out.print(table)
            out.print()
    hit, miss = (1000 * seconds for seconds in baseline.query_seconds)
    echo(f"{UNITS} {QUERY} The unedited model takes {hit:.0f} and {miss:.0f} ms.")
    for trial in trials:
        if trial.failure:
            warn(f"{trial.method} failed: {trial.failure}")
