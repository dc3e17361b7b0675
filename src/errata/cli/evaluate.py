"""``errata evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Final

import typer

from errata.benchmark.sequence import compared, measure, perplexity_summaries
from errata.cli.edit_output import (
    chat_could_help,
    outcome_between,
    records_of,
    show_chat,
    show_controls,
    show_facts,
    show_unable,
)
from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    LastWinsOption,
    MaxMemoryOption,
    ModelOption,
    TrustOption,
    UntouchedOption,
    check_chat,
    check_facts,
    evaluation_set_for,
    is_lab,
    outline_here,
    outline_of,
    placement,
    seed_option,
    show_absent,
    token_check,
)
from errata.cli.terminal import JsonOption, console, echo, progress, warn, write_json
from errata.errors import Fault, collect_errors
from errata.evaluation.absence import absent_abilities
from errata.evaluation.answer_edits import AnswerSettings, absent_answer_edits, answer_edit_records, answers_to_compare
from errata.evaluation.chat import chat_questions
from errata.evaluation.free_running import FreeSettings, evaluate_free
from errata.evaluation.outcomes import NOT_COMPARED, absent_changes
from errata.evaluation.recall import METRICS as RECALL_METRICS
from errata.evaluation.recall import absent
from errata.facts.fact import QUESTION_LISTS, Fact
from errata.facts.files import read_facts
from errata.facts.questions import read_questions
from errata.report.tables import before_after_table
from errata.results.records import FORMAT, Record, summarise, to_long
from errata.runs.loading import load_answerer

EXAMPLE = "Example: errata evaluate --model edited --facts examples/facts.jsonl --against lab"
_BARE: Final = FreeSettings(contexts=("bare",))
app = typer.Typer()


@app.command("evaluate", epilog=EXAMPLE)
def evaluate(
    facts: Annotated[Path, typer.Option("--facts", "-f", help="Facts to evaluate: JSONL, JSON or CSV; see examples/.")],
    model: ModelOption = "lab",
    against: Annotated[
        str | None, typer.Option(help="Baseline model to compare with, usually the unedited one.")
    ] = None,
    untouched: UntouchedOption = None,
    last_wins: LastWinsOption = False,
    seed: Annotated[int, seed_option("for question sampling and bootstrap.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Also evaluate everything as messages in the model's chat template.")
    ] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="With --against: compare the generated answers of both (TE, TR). Always so without likelihoods.",
        ),
    ] = False,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    max_memory: MaxMemoryOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Measure how well a model recalls edited facts and whether other answers changed."""
    names = (model, *([against] if against else []))
    outlines = {name: outline_here(name, trust_remote_code=trust_remote_code, endpoints=True) for name in names}

    def check(found: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
        each = [token_check(outline)(found, places) for outline in outlines.values()]
        return list(dict.fromkeys(fault for faults in each for fault in faults))

    with collect_errors("the input") as part:
        with part:
            where = placement(device, dtype, max_memory)
        with part:
            fact_set = read_facts(facts, last_wins=last_wins, check=check)
            for note in fact_set.notes:
                warn(f"note: {note}")
        with part:
            questions = read_questions(untouched)
        with part:
            lab = any(is_lab(name) for name in names)
    for name in (name for name, outline in outlines.items() if outline is None):
        outlines[name] = found = outline_of(name, trust_remote_code=trust_remote_code, endpoints=True)
        check_facts(fact_set, found)
    evaluation_set = evaluation_set_for(fact_set, lab=lab, untouched=questions, seed=seed)
    if chat:
        for outline in outlines.values():
            check_chat(outline)
        in_chat = chat_questions(fact_set, evaluation_set.untouched, everything=True)
        evaluation_set = replace(evaluation_set, chat=in_chat)
    with progress() as report:
        loaded, fingerprint = load_answerer(model, **where, trust_remote_code=trust_remote_code)
        after = measure(loaded, evaluation_set, report=report, what="measuring")
        free = [] if "likelihood" in loaded.abilities else evaluate_free(loaded, fact_set, _BARE, report=report)
        summaries = summarise([*after.records, *free], "after", seed=seed)
        settings = AnswerSettings()
        comparing = against is not None and (answers or bool(free))
        said = answers_to_compare(loaded, fact_set, settings, report=report) if comparing else {}
        edits: list[Record] = []
        against_fingerprint = None
        before = None
        if against is not None:
            del loaded
            base, against_fingerprint = load_answerer(against, **where, trust_remote_code=trust_remote_code)
            before = measure(base, evaluation_set, report=report, what="measuring the baseline")
            summaries = compared(before.records, before.records, "before", seed=seed)
            summaries += compared(before.records, after.records, "after", seed=seed)
            if free or "likelihood" not in base.abilities:
                summaries += summarise(evaluate_free(base, fact_set, _BARE, report=report), "before", seed=seed)
            summaries += summarise(free, "after", seed=seed)
            if comparing:
                earlier_said = answers_to_compare(base, fact_set, settings, report=report)
                edits = answer_edit_records(fact_set, earlier_said, said, settings)
                summaries += summarise(edits, "after", seed=seed)
            if before.perplexity is not None and after.perplexity is not None:
                summaries += perplexity_summaries(before.perplexity, after.perplexity, seed=seed)
    rows = to_long(model, summaries)
    earlier = None if before is None else before.records
    outcome = outcome_between(evaluation_set, before, after)
    missing = {str(metric): why for metric, why in absent(fact_set, evaluation_set.untouched).items()}
    missing |= absent_changes(earlier, missing)
    if comparing:
        missing |= {str(metric): why for metric, why in absent_answer_edits(fact_set, settings).items()}
    if free:
        metrics = [metric for metric in RECALL_METRICS if str(metric) not in missing]
        lacking = absent_abilities(metrics, frozenset(("generation",)), model)
        missing |= {str(metric): why for metric, why in lacking.items()}
    about = {
        "model": model,
        "fingerprint": fingerprint,
        "against": against,
        "against_fingerprint": against_fingerprint,
        "perplexity": None if after.perplexity is None else after.perplexity.value,
        "absent": missing,
    }
    write_json(
        json,
        {
            "format": FORMAT,
            "rows": rows,
            "about": about,
            "outcome": outcome.to_record(),
            "records": records_of(before, after),
            "answers": [asdict(record) for record in (*free, *edits)],
        },
    )
    console().print(before_after_table(rows, width=console().width, marked=outcome.unable))
    show_unable(outcome, (row["metric"] for row in rows))
    show_absent({metric: why for metric, why in missing.items() if why != NOT_COMPARED})
    if questions is None and not lab and not any(getattr(fact, name) for fact in fact_set for name in QUESTION_LISTS):
        echo(
            "The facts have no control questions, so changes of other answers are not measured. `errata edit` "
            "generates some; --untouched FILE adds your own."
        )
    if before is None:
        echo("Give the unedited model as --against to see which answers changed.")
    if after.perplexity is not None:
        echo(f"Perplexity on {len(evaluation_set.prose)} texts: {after.perplexity.value:.3f}")
    show_facts(outcome.facts)
    show_chat(outcome.chat, outcome.facts, hint=chat_could_help(model))
    show_controls(outcome)
