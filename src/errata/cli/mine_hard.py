"""``errata data mine-hard``: find the facts of which a single edit breaks a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from errata.benchmark.hard_facts import (
    BORDERLINE,
    Finding,
    Limits,
    Mined,
    Sequences,
    Source,
    annotation,
    edits_to_collapse,
    grown_candidates,
    header_of,
    mine,
    readings,
    share_interval,
    write_hard_facts,
)
from errata.benchmark.single_edits import SingleEdits
from errata.cli.bench_plan import default_prose, prose_of
from errata.cli.model_options import (
    CorpusOption,
    DeviceOption,
    DtypeOption,
    LayersOption,
    ModelOption,
    ProseOption,
    TrustOption,
    check_facts,
    is_lab,
    outline_of,
    placement,
    seed_option,
)
from errata.cli.recipe_options import automatic_recipe, comes_with_recipe, read_recipe_for, show_notes
from errata.cli.terminal import JsonOption, console, echo, plain_table, progress, warn, write_json
from errata.datasets.reading import read_dataset
from errata.datasets.registry import split_file
from errata.editing.recipe import Recipe
from errata.errors import InputError, collect_errors
from errata.models.loading import Outline
from errata.runs.loading import load_model
from errata.utils.files import check_new_file
from errata.utils.text import counted, excerpt

EXAMPLE = (
    "Example: errata data mine-hard --model lab --data lab --count 30 --out hard.jsonl\n\n"
    "Example: errata data mine-hard --model smollm2-135m-instruct --data counterfact --count 1000 --budget 100 "
    "--prose me-ppl=ME-PPL_50.json --sequence rome,memit+blue --out hard.jsonl"
)
SHOWN = 20
POOL = 10  # candidates that are predicted for each grown fact that is tried
app = typer.Typer()


@app.command("mine-hard", epilog=EXAMPLE)
def mine_hard(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="New .jsonl file for the hard facts, for --facts.")
    ],
    model: ModelOption = "lab",
    data: Annotated[
        str, typer.Option("--data", "-d", help="The facts to try: a data set, NAME or NAME=FILE, or your own file.")
    ] = "lab",
    count: Annotated[int | None, typer.Option(min=1, help="Number of facts; default: all, 100 of lab.")] = None,
    method: Annotated[
        str, typer.Option(help="A locate-then-edit method (see `errata methods`); hardness is relative to it.")
    ] = "rome",
    recipe: Annotated[Path | None, typer.Option(help="Recipe file; default: the recipe shipped for the model.")] = None,
    layers: LayersOption = None,
    corpus: CorpusOption = None,
    prose: ProseOption = None,
    without_bos: Annotated[
        bool, typer.Option("--without-bos", help="Leave BOS out of the texts, as in the published code.")
    ] = False,
    ratio: Annotated[float, typer.Option(min=1.5, help="Hard: perplexity grows at least by this factor …")] = 10.0,
    absolute: Annotated[float, typer.Option(min=1.0, help="… or reaches this number.")] = 1000.0,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Facts to try, the most suspicious first; default: all.")
    ] = None,
    check: Annotated[
        int, typer.Option(min=0, help="Further facts to try at random, which show what the prediction misses.")
    ] = 100,
    borderline: Annotated[bool, typer.Option("--borderline", help="Also write facts with a ratio of 1.5 or more.")] = (
        False
    ),
    grow: Annotated[
        int, typer.Option(min=0, help="New facts to try, in the pattern of hard ones; those that are hard are written.")
    ] = 0,
    sequence: Annotated[
        str | None,
        typer.Option(help="Methods, comma-separated: how many hard facts in sequence break the model with each?"),
    ] = None,
    orders: Annotated[int, typer.Option(min=5, help="Orders of the facts for --sequence.")] = 5,
    seed: Annotated[int, seed_option("for contexts, random facts and orders.")] = 0,
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help="Skip invalid records.")] = False,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Find the facts of which a single edit breaks a model, and write them as a file for --facts.

    Each fact is edited alone into the unedited weights, and the perplexity of prose is measured. Facts are tried in the
    order of a prediction from their keys; --budget leaves the rest untried.
    """
    limits = Limits(ratio, absolute)
    outline = outline_of(model, trust_remote_code=trust_remote_code)
    names = [] if sequence is None else list(dict.fromkeys(filter(None, map(str.strip, sequence.split(",")))))
    with collect_errors("the input") as part:
        with part:
            where = placement(device, dtype)
        with part:
            if out.suffix.lower() != ".jsonl":
                raise InputError(f"--out {out} is not a .jsonl file", remedy="Write hard.jsonl", code="OPTION_INVALID")
            check_new_file(out)
        with part:
            chosen = _recipe(model, method, outline, recipe, seed, corpus, layers)
        others: list[Recipe] = []
        for name in names:
            with part:
                others.append(chosen if name == method else _recipe(model, name, outline, None, seed, corpus, None))
        with part:
            dataset, path = split_file(data)
            loaded = read_dataset(dataset, path, count=count, seed=seed, skip_faulty=skip_faulty)
            if not loaded.facts:
                raise InputError(
                    f"{data} has no facts", remedy="Name a data set of facts", code="DATASET_WITHOUT_FACTS"
                )
            check_facts(loaded.facts, outline)
        with part:
            texts = default_prose(is_lab(model)) if prose is None else prose_of(prose)
    show_notes(chosen, model)
    for note in loaded.notes:
        warn(f"note: {note}")
    facts = loaded.facts.facts
    language_model = load_model(model, **where, trust_remote_code=trust_remote_code)
    started = time.monotonic()
    grown, candidates = Mined(()), 0
    sequences: list[Sequences] = []
    with progress(speed_window=300.0) as report, language_model.blaming_no_edit():
        edits = SingleEdits(language_model, chosen, texts, bos=not without_bos, report=report)
        mined = mine(edits, facts, limits, budget=budget, check=check, seed=seed, report=report)
        hard = [finding.fact for finding in mined.hard]
        if grow and hard:
            pool = grown_candidates(
                language_model.tokenizer, hard, facts, POOL * grow if edits.from_keys else grow, seed=seed
            )
            candidates = len(pool)
            grown = mine(edits, pool, limits, budget=grow, check=0, seed=seed, report=report)
        if hard:
            for other in others:
                own = SingleEdits(language_model, other, texts, bos=not without_bos, report=report)
                sequences.append(edits_to_collapse(own, hard, limits, orders=orders, seed=seed, report=report))
    seconds = time.monotonic() - started
    source = Source(
        model,
        chosen,
        texts,
        limits,
        seed,
        {"data": loaded.source, "budget": budget, "bos": not without_bos, "grown_candidates": candidates},
    )
    header = header_of(source, edits, mined) | {"sequences": [each.to_record() for each in sequences]}
    written = [*mined.hard, *grown.hard]
    if borderline:
        near = [finding for finding in mined.findings if finding.verdict == "borderline"]
        written += sorted(near, key=lambda finding: -(finding.ratio or 0.0))
    write_hard_facts(out, header, [(finding.fact, annotation(finding, source, edits)) for finding in written])
    _show(mined, grown, edits, limits, seconds)
    if grow and not candidates:
        warn("note: --grow had no pattern to follow: no hard fact begins with its subject")
    if names and not hard:
        warn("note: --sequence needs hard facts, and there are none")
    for each in sequences:
        echo(_sequence_line(each))
    echo(f"Wrote {counted(len(written), 'fact')} to {out}")
    write_json(
        json,
        {
            **{name: value for name, value in header.items() if name != "format"},
            "seconds": seconds,
            "findings": [
                {"id": finding.fact.id, **annotation(finding, source, edits)}
                for finding in (*mined.findings, *grown.findings)
            ],
        },
    )


def _recipe(
    model: str,
    method: str,
    outline: Outline,
    path: Path | None,
    seed: int,
    corpus: str | None,
    layers: str | None,
) -> Recipe:
    """The recipe of a method: from a file, shipped, or automatic."""
    default = None if path is not None or comes_with_recipe(model) else automatic_recipe(model, method, outline)
    return read_recipe_for(model, method, path, seed=seed, corpus=corpus, layers=layers, default=default)


def _show(mined: Mined, grown: Mined, edits: SingleEdits, limits: Limits, seconds: float) -> None:
    shown = [*mined.hard, *grown.hard][:SHOWN]
    if shown:
        numbers = ["ratio", "gap", "amplification"]
        table = plain_table("fact", "prompt", *numbers, right=numbers, fold=True)
        for finding in shown:
            table.add_row(*map(Text, _cells(finding)))
        console().print(table)
    before = readings(edits.losses)
    echo(
        f"Perplexity before: {before['mean_of_exp']:.4g} as the mean of {len(edits.rows)} texts' own, "
        f"{before['exp_of_mean']:.4g} over all tokens."
    )
    tried = len(mined.findings) - mined.count("unknown")
    found: dict[str, Any] = {name: mined.count(name) for name in ("hard", "borderline", "fine", "unknown")}
    echo(
        f"{counted(tried, 'fact')} tried with {edits.recipe.method} in {seconds:.0f} s: {found['hard']} hard "
        f"(perplexity × {limits.ratio:g} or at {limits.absolute:g}), {found['borderline']} borderline "
        f"(× {BORDERLINE:g}), {found['fine']} fine; {found['unknown']} not tried."
    )
    largest = max((finding for finding in mined.findings if finding.ratio is not None), default=None, key=_ratio)
    if largest is not None and not mined.hard:
        echo(f"The largest ratio is {_ratio(largest):.4g} (fact {largest.fact.id!r}).")
    missed, checked = mined.missed
    if checked:
        low, high = share_interval(missed, checked)
        echo(
            f"Missed by the prediction: {missed} of {checked} facts tried at random are hard (95 % interval "
            f"{100 * low:.1f} to {100 * high:.1f} %)."
        )
    if grown.findings:
        echo(f"Grown: {grown.count('hard')} of {len(grown.findings) - grown.count('unknown')} new facts are hard.")


def _cells(finding: Finding) -> tuple[str, str, str, str, str]:
    prediction = finding.prediction
    ratio = finding.decided_by if finding.ratio is None else f"{finding.ratio:.4g}"
    return (
        finding.fact.id,
        excerpt(finding.fact.text, 50),
        ratio,
        "–" if prediction.agreement is None else f"{prediction.agreement:.3f}",
        "–" if prediction.amplification is None else f"{prediction.amplification:.4g}",
    )


def _ratio(finding: Finding) -> float:
    return finding.ratio or 0.0


def _sequence_line(found: Sequences) -> str:
    low, high = ("no collapse" if count is None else str(count) for count in found.range)
    middle = f"more than {found.facts}" if found.median is None else f"{found.median:g}"
    return (
        f"In sequence with {found.method}: the model breaks after {middle} edits (median of "
        f"{counted(len(found.edits), 'order')}; {low} to {high}; {counted(found.facts, 'hard fact')})."
    )
