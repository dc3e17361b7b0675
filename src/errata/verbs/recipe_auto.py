"""``errata recipe auto``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.benchmark.recipe_file import automatic_file, layers_by_depth, unsearched_recipe
from errata.benchmark.recipe_journal import read_journal
from errata.benchmark.recipe_numbers import starting_recipe
from errata.benchmark.recipe_search import RecipeSearch
from errata.errors import Fault, FaultsError, InputError, told_together
from errata.facts import Fact, FactSet
from errata.facts_io import read_facts
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.loading import load_model
from errata.locate import RULE, TracingSettings, default_window, locate
from errata.methods import BOUNDARY_SUFFIX, Method, method_named
from errata.models.language_model import LanguageModel
from errata.models.outline import Outline
from errata.output import check_file, write_text
from errata.progress import Report
from errata.recipe import corpus_path
from errata.statistics.corpus import open_corpus
from errata.tracing.places import Position
from errata.verbs.json_output import JsonOption, write_json
from errata.verbs.model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TrustOption,
    outline_here,
    outline_of,
    placement,
)
from errata.verbs.models import check_facts, is_lab, token_check
from errata.verbs.numbers import layers_named
from errata.verbs.questions import examination_for, read_questions
from errata.verbs.terminal import console, error_console, progress

EXAMPLE = "Example: errata recipe auto --model lab --methods memit --out auto.yaml --minutes 5"
LAB_SEED = 950  # of the held-out facts that the lab draws: no report draws its own with it
FACTS = 100
LEAD = 12  # tokens that the contexts of a search put before a prompt


def auto(
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe file to write.")],
    model: ModelOption = "lab",
    methods: Annotated[
        str, typer.Option(help="Rows of `errata methods`, by commas; each is searched with +blue too.")
    ] = ("memit,alphaedit"),
    facts: Annotated[
        Path | None, typer.Option("--facts", "-f", help="Held-out facts to search with; lab: from its world.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Critical layers, such as 4,5,6; default: as `locate` finds.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Text for the key statistics; lab: its own.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens of it to read.")] = 50_000,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="No further try begins after so many; default: no limit.")
    ] = None,
    untouched: Annotated[
        Path | None, typer.Option(help="JSONL of {prompt, answer} about other subjects; lab: from its world.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the tracing's noise and the questions.")] = 0,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Search a recipe for a model that nobody has published one for, on held-out facts, in scale-free numbers.

    Every try is kept in OUT.tries.jsonl; the same command goes on where it was stopped. With --minutes 0 nothing is
    searched: scale-free defaults are written, for which only the model's configuration is read.
    """
    journal = out.with_name(out.name + ".tries.jsonl")
    outline = outline_here(model, trust_remote_code=trust_remote_code)
    search, traced = minutes != 0, minutes != 0 and layers is None
    with told_together("what was given") as part:
        with part:
            where = placement(device, dtype)
        with part:
            rows = _rows(methods)
        with part:
            _check_out(out, journal)
        with part:
            chosen = None if layers is None else tuple(sorted(set(layers_named(layers))))
            if outline is not None:
                outline.check_layers(chosen or ())
        with part:
            text = _text(corpus)
        with part:
            lab = is_lab(model)
            if search and not lab:
                _check_given(facts, corpus)
            traced = traced and not lab  # the lab traces facts of its own
        with part:
            given = None if facts is None else _read_held_out(facts, outline, traced=traced)
        with part:
            questions = read_questions(untouched)
    if outline is None:
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        with told_together("what was given") as part:
            with part:
                outline.check_layers(chosen or ())
            with part:
                if given is not None:
                    check_facts(given, outline, lead=LEAD)
    if not search:
        _write_unsearched(model, rows, outline, chosen, text, tokens, out)
        return
    held_out = given or FactSet(tuple(lab_facts(lab_world(), FACTS, seed=LAB_SEED)), "the lab's world")
    examination = examination_for(held_out, lab=lab, untouched=questions, seed=seed)
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    reasons: dict[str, Any] = {}
    with _tries_told(journal), progress() as report:
        if chosen is None:
            chosen, why = _located(loaded, held_out, lab=lab, seed=seed, report=report)
        else:
            why = "given with --layers"
        found = {}
        limit = math.inf if minutes is None else 60 * minutes / len(rows)
        for row in rows:
            statistics = {"corpus": text or "lab", "tokens": tokens, "length": min(1024, loaded.context_length)}
            base = starting_recipe(model, row, chosen, outline.columns, statistics, batch_size=25)
            found[row.name] = RecipeSearch(
                loaded, base, chosen, examination, journal, seconds=limit, report=report
            ).run()
            reasons[row.name] = dict(found[row.name].reasons)
    write_text(out, automatic_file(model, chosen, why, found))
    console().print(f"layers {list(chosen)}: {why}", markup=False, highlight=False)
    for name, each in reasons.items():
        for number, reason in each.items():
            console().print(f"{name}, {number.replace('_', ' ')}: {reason}", markup=False, highlight=False)
    incomplete = [name for name, end in found.items() if not end.complete]
    if incomplete:
        console().print(f"Time was up before all was tried for {', '.join(incomplete)}; the same command goes on.")
    console().print(f"Wrote {out}", highlight=False)
    write_json(json, {"out": str(out), "layers": list(chosen), "why": why, "reasons": reasons})


@contextmanager
def _tries_told(journal: Path) -> Iterator[None]:
    """After Ctrl-C, say what is kept, if anything is: hours of tries look lost otherwise."""
    try:
        yield
    except KeyboardInterrupt:
        if kept := len(read_journal(journal)):
            tries = f"{kept} finished {'try is' if kept == 1 else 'tries are'} kept in {journal}"
            error_console().print(
                f"{tries}; the same command goes on from there", markup=False, highlight=False, soft_wrap=True
            )
        raise


def _check_out(out: Path, journal: Path) -> None:
    if out.exists() and not journal.exists():
        raise InputError(f"{out} exists already", remedy="Give another name, or remove it first")
    check_file(out)
    read_journal(journal)  # a broken one is told now, and not after the model has been traced


def _text(corpus: str | None) -> str | None:
    """The text that was named, which must be there; the file that is written may lie elsewhere, so its whole path."""
    if corpus is None or corpus == "lab":
        return corpus
    path = str(corpus_path(corpus, Path()))
    open_corpus(path)
    return path


def _check_given(facts: Path | None, corpus: str | None) -> None:
    """Raises FaultsError for what a search cannot do without where the lab does not bring it."""
    faults = []
    if facts is None:
        faults.append(Fault("--facts", "there are no held-out facts", "Give facts that no later report will use"))
    if corpus is None:
        faults.append(Fault("--corpus", "there is no text for the key statistics", "Give ordinary text, UTF-8"))
    if faults:
        raise FaultsError("the command line", faults)


def _read_held_out(path: Path, outline: Outline | None, *, traced: bool) -> FactSet:
    """The user's facts; what has no old answer cannot be traced.

    Raises:
        InputError, FaultsError: as ``read_facts``.
    """
    tokens = token_check(outline, lead=LEAD)

    def check(found: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
        lacking = [place for fact, place in zip(found, places, strict=True) if traced and fact.old is None]
        remedy = "Add what the model says now, or give the layers with --layers"
        faults = [Fault(place, "the fact has no 'old' answer to trace", remedy) for place in lacking]
        return faults + tokens(found, places)

    return read_facts(path, check=check)


def _write_unsearched(
    model: str,
    rows: Sequence[Method],
    outline: Outline,
    layers: tuple[int, ...] | None,
    corpus: str | None,
    tokens: int,
    out: Path,
) -> None:
    """A recipe from the configuration alone."""
    why = "given with --layers" if layers is not None else "by depth, as in Llama 3; not traced"
    layers = layers_by_depth(outline.layers) if layers is None else layers
    text = corpus or ("lab" if is_lab(model) else "corpus.txt")
    statistics = {"corpus": text, "tokens": tokens, "length": min(1024, outline.context_length)}
    found = {row.name: unsearched_recipe(model, row, layers, outline.columns, statistics) for row in rows}
    write_text(out, automatic_file(model, layers, why, found))
    console().print(f"Wrote {out}: defaults, not searched.", highlight=False, markup=False)


def _located(
    model: LanguageModel, held_out: Sequence[Fact], *, lab: bool, seed: int, report: Report
) -> tuple[tuple[int, ...], str]:
    """The layers that causal tracing proposes, and how they were found.

    Raises:
        ErrataError: if nothing can be proposed.
    """
    if lab:
        held_out = lab_facts(lab_world(), len(lab_world().people), seed=LAB_SEED)
    window = default_window(len(model.blocks))
    settings = TracingSettings(window=window, seed=seed, positions=(Position.SUBJECT_LAST,))
    found = locate(model, held_out, settings, report=report)
    facts = f"causal tracing of {len(found.chosen.facts)} facts"
    return found.propose().layers, f"{facts}; {RULE}"


def _rows(methods: str) -> list[Method]:
    names = [name.strip().removesuffix(BOUNDARY_SUFFIX) for name in methods.split(",") if name.strip()]
    if not names:
        raise InputError("no method was named", remedy="Give some of `errata methods`")
    return [method_named(name) for name in dict.fromkeys(names)]
