"""``errata locate``."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from errata.errors import Fault, InputError, told_together
from errata.facts import Fact, FactSet
from errata.facts_io import read_facts
from errata.loading import load_model
from errata.locate import ENOUGH_FACTS, RULE, Location, TracingSettings, check_window, default_window, locate
from errata.models.outline import Outline
from errata.output import check_new, new_directory, write_text
from errata.report.heatmap import check_drawing, draw_heat_map
from errata.report.tracing import text_heat_map, tracing_table
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
from errata.verbs.terminal import console, error_console, progress

EXAMPLE = "Example: errata locate --model lab --count 100 --out tracing"
app = typer.Typer()


@app.command("locate", epilog=EXAMPLE)
def locate_layers(
    model: ModelOption = "lab",
    facts: Annotated[
        Path | None,
        typer.Option("--facts", "-f", help="JSONL or CSV with the 'old' answer of every fact; lab: from its world."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many of the facts that the model knows to trace.")] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Draws of noise per fact.")] = 10,
    window: Annotated[
        int | None, typer.Option(min=1, help="Blocks whose MLP or attention is restored together; default: a fifth.")
    ] = None,
    noise: Annotated[
        float, typer.Option(min=0.01, help="In standard deviations of the subjects' embedding entries.")
    ] = 3.0,
    positions: Annotated[
        bool, typer.Option("--positions/--no-positions", help="Restore other tokens too: the heat map. Takes longer.")
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the noise, the choice of facts and the intervals.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new directory for tracing.json and the heat map.")
    ] = None,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Find the layers that hold a model's facts, by causal tracing."""
    outline = outline_here(model, trust_remote_code=trust_remote_code)
    with told_together("what was given") as part:
        with part:
            if out is not None:
                check_new(out)
                check_drawing()
        with part:
            where = placement(device, dtype)
        with part:
            known = _facts(facts, model, outline, seed)
    if outline is None:
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        check_facts(known, outline)
    settings = TracingSettings(
        count=count,
        samples=samples,
        window=default_window(outline.layers) if window is None else window,
        noise=noise,
        seed=seed,
        positions=tuple(Position) if positions else (Position.SUBJECT_LAST,),
    )
    check_window(settings.window, outline.layers)
    with progress() as report:
        loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
        found = locate(loaded, known, settings, report=report)
    record = found.record(loaded)
    layers = record["proposal"]["layers"] or []
    console().print(tracing_table(record["rows"], layers))
    if positions:
        shown = text_heat_map(record["rows"], width=console().width)
        console().print(f"\n{shown}", markup=False, highlight=False, soft_wrap=True)
    _show_facts(found)
    if out is not None:
        with new_directory(out) as partial:
            write_text(partial / "tracing.json", json_module.dumps(record, ensure_ascii=False, indent=2) + "\n")
            pictures = [partial / f"heatmap{suffix}" for suffix in (".png", ".svg")]
            title = f"{model}: {len(found.chosen.facts)} facts, {_draws(settings)}"
            draw_heat_map(record["rows"], pictures, title=title, critical=layers)
        console().print(f"Wrote {out}.", markup=False, highlight=False)
    write_json(json, record)
    proposal = found.propose()  # refused only now, when what was measured has been shown and written
    first, last = proposal.boundaries
    named = ",".join(str(layer) for layer in proposal.layers)
    console().print(f"\nProposed: --layers {named} (boundaries {first} and {last}).", markup=False, highlight=False)
    console().print(f"The rule: {RULE}.", markup=False, highlight=False, style="dim")


def _facts(path: Path | None, model: str, outline: Outline | None, seed: int) -> FactSet:
    """The user's facts, or the world's.

    Raises:
        InputError: if there are neither.
        FaultsError: if anything is wrong with the user's.
    """
    if path is not None:
        tokens = token_check(outline)

        def check(found: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
            lacking = [place for fact, place in zip(found, places, strict=True) if fact.old is None]
            remedy = "Add what the model says now: only what it knows can be traced"
            return [Fault(place, "the fact has no 'old' answer", remedy) for place in lacking] + tokens(found, places)

        return read_facts(path, check=check)
    if not is_lab(model):
        raise InputError(
            f"there are no facts to trace in {model!r}: only the embedded model comes with facts that it knows",
            remedy="Give --facts FILE with the 'old' answer of every fact (the target is not looked at)",
        )
    from errata.lab.package import lab_world
    from errata.lab.tasks import lab_facts

    own = Path(model) / "world.json"
    world = lab_world(Path(model)) if own.is_file() else lab_world()
    return FactSet(tuple(lab_facts(world, len(world.people), seed=seed)), "the lab's world")


def _show_facts(found: Location) -> None:
    """Which facts were traced, and how sure the model was of them."""
    chosen, totals = found.chosen, found.totals()
    left_out = f"; {chosen.nothing_behind} left out, with nothing behind their subject" if chosen.nothing_behind else ""
    console().print(
        f"\nTraced {len(chosen.facts)} facts (of {chosen.asked} asked, {chosen.known} are known{left_out}) with "
        f"{_draws(found.settings)}, σ = {found.traced.sigma:.3g}, in "
        f"{found.seconds:.0f} s. Probability of the answer {totals['clean']['mean']:.3f} clean, "
        f"{totals['corrupted']['mean']:.3f} corrupted.",
        markup=False,
        highlight=False,
    )
    if len(chosen.facts) < ENOUGH_FACTS:
        error_console().print(
            f"[yellow]warning:[/] only {len(chosen.facts)} facts were traced, which says little about the model's "
            f"layers. Give at least {ENOUGH_FACTS} that it knows (--facts, --count).",
            markup=True,
        )


def _draws(settings: TracingSettings) -> str:
    return f"{settings.samples} draw{'s' if settings.samples > 1 else ''} of noise of {settings.noise:g}σ"
