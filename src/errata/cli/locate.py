"""``errata locate``: find layers to edit, by trial edits or by causal tracing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TrustOption,
    check_facts,
    is_lab,
    outline_here,
    outline_of,
    placement,
    seed_option,
    token_check,
)
from errata.cli.recipe_options import corpus_of
from errata.cli.terminal import JsonOption, console, echo, progress, warn, write_json
from errata.errors import ErrataError, Fault, InputError, collect_errors
from errata.evaluation.controls import facts_to_scan
from errata.facts.fact import Fact, FactSet
from errata.facts.files import read_facts
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.report.figures import check_drawing
from errata.report.layers import (
    draw_heat_map,
    draw_scan,
    scan_markdown,
    scan_table,
    text_heat_map,
    tracing_table,
)
from errata.runs.loading import load_model
from errata.statistics.settings import BUILTIN
from errata.tracing.causal_tracing import (
    ENOUGH_FACTS,
    Location,
    Position,
    TracingSettings,
    check_window,
    default_window,
    locate,
)
from errata.tracing.layer_scan import ENOUGH_FACTS as ENOUGH_TO_SCAN
from errata.tracing.layer_scan import RULE, LayerScan, ScanSettings, scan_layers
from errata.utils import files
from errata.utils.files import check_new, new_directory, write_text
from errata.utils.progress import Report
from errata.utils.provenance import software_versions
from errata.utils.text import counted, dtype_name

EXAMPLE = """Example: errata locate --model lab --out layers

Example: errata locate --model lab --tracing --no-scan --count 100 --out tracing"""
FORMAT = "errata-locate-1"
LAB_SEED = 950  # seed of the lab's facts for a scan; not used by any report
app = typer.Typer()


@app.command("locate", epilog=EXAMPLE)
def locate_layers(
    model: ModelOption = "lab",
    facts: Annotated[
        Path | None,
        typer.Option(
            "--facts",
            "-f",
            help="Facts for trial edits: JSONL or CSV, different from those you will edit; default: well-known facts "
            "shipped with errata, for lab, facts of its world. Tracing needs the 'old' answer of every fact.",
        ),
    ] = None,
    scan: Annotated[
        bool,
        typer.Option("--scan/--no-scan", help="Edit facts into single layers, and propose layers from the results."),
    ] = True,
    scan_count: Annotated[int, typer.Option(min=1, help="Number of facts per layer of the scan.")] = 24,
    every: Annotated[
        int | None, typer.Option(min=1, help="First scan every n-th layer; default: an eighth of the depth.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Text for the scan's key statistics; default: the text shipped with errata.")
    ] = None,
    tracing: Annotated[
        bool, typer.Option("--tracing/--no-tracing", help="Also run causal tracing, an analysis that takes longer.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="Tracing: number of facts that the model knows.")] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Tracing: noise samples per fact.")] = 10,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Tracing: number of blocks restored together; default: a fifth of the depth."),
    ] = None,
    noise: Annotated[
        float, typer.Option(min=0.01, help="Tracing: noise level, in standard deviations of the subjects' embeddings.")
    ] = 3.0,
    positions: Annotated[
        bool,
        typer.Option("--positions/--no-positions", help="Tracing: also restore other tokens, for the heat map."),
    ] = True,
    seed: Annotated[int, seed_option("for contexts, noise, choice of facts and bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New directory for results and figures.")] = None,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Find the layers of a model that accept edits, by editing one layer at a time."""
    outline = outline_here(model, trust_remote_code=trust_remote_code)
    lab = is_lab(model)
    with collect_errors("the input") as part:
        with part:
            if not (scan or tracing):
                raise InputError(
                    "--no-scan without --tracing leaves nothing to do", remedy="Add --tracing", code="NOTHING_TO_DO"
                )
        with part:
            if out is not None:
                check_new(out)
                check_drawing()
        with part:
            where = placement(device, dtype)
        with part:
            given = None if facts is None else _read_facts(facts, outline, traced=tracing)
            if tracing and given is None and not lab:
                raise InputError(
                    f"--tracing needs --facts for {model!r}; only the embedded model has its own",
                    remedy="Give --facts FILE with the 'old' answer of every fact, or remove --tracing",
                    code="OPTION_MISSING",
                )
        with part:
            text = corpus_of(corpus, default="lab" if lab else BUILTIN)
    if outline is None:
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        if given is not None:
            check_facts(given, outline)
    traced_with = TracingSettings(
        count=count,
        samples=samples,
        window=default_window(outline.layers) if window is None else window,
        noise=noise,
        seed=seed,
        positions=tuple(Position) if positions else (Position.SUBJECT_LAST,),
    )
    check_window(traced_with.window, outline.layers)
    scanned: LayerScan | None = None
    traced: Location | None = None
    with progress() as report:
        loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
        if scan:
            settings = ScanSettings(count=scan_count, every=every, corpus=text, seed=seed)
            scanned = scan_model(loaded, given, settings, lab=lab, report=report)
        if tracing:
            known = _world_facts(model, seed) if given is None else given
            traced = locate(loaded, known, traced_with, report=report)
    record = _record(loaded, scanned, traced)
    layers = record["layers"] or []
    if scanned is not None:
        _show_scan(scanned, layers)
    if traced is not None:
        _show_tracing(traced, record["tracing"], positions=positions)
    if out is not None:
        _write(out, model, record, scanned, traced)
        echo(f"Wrote {out}.")
    write_json(json, record)
    if scanned is not None:
        scanned.choose()  # may raise, so only after the results have been shown and written
        named = ",".join(map(str, layers))
        echo(f"\nProposed: --layers {named} (+blue: {layers[0]} and {layers[-1]}), after {scanned.seconds:.0f} s.")
        console().print(f"Rule: {RULE}.", markup=False, highlight=False, style="dim")


def scan_model(
    model: LanguageModel, facts: Sequence[Fact] | None, settings: ScanSettings, *, lab: bool, report: Report
) -> LayerScan:
    """Scan with the user's facts, or by default with facts of the lab's world or errata's well-known facts.

    Raises:
        InputError, NonFiniteError: as ``scan_layers``.
    """
    if facts is None and lab:
        from errata.lab.package import lab_world
        from errata.lab.tasks import lab_facts

        facts = lab_facts(lab_world(), settings.count, seed=LAB_SEED)
    if facts is None:
        facts = facts_to_scan(model, settings.count, seed=settings.seed)
    return scan_layers(model, facts, settings, report=report)


def _read_facts(path: Path, outline: Outline | None, *, traced: bool) -> FactSet:
    """Read the user's facts.

    Raises:
        InputError, FaultsError: as ``read_facts``, and with ``traced`` for facts without an old answer.
    """
    tokens = token_check(outline)

    def check(found: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
        lacking = [place for fact, place in zip(found, places, strict=True) if traced and fact.old is None]
        what = "missing field 'old', which tracing needs"
        remedy = "Add the model's current answer, or remove --tracing"
        faults = [Fault(place, what, remedy, code="FACT_MISSING_FIELD") for place in lacking]
        return faults + tokens(found, places)

    return read_facts(path, check=check)


def _world_facts(model: str, seed: int) -> FactSet:
    """Facts known by the lab or a model trained like it."""
    from errata.lab.package import lab_world
    from errata.lab.tasks import lab_facts

    world_file = Path(model) / "world.json"
    world = lab_world(Path(model)) if world_file.is_file() else lab_world()
    return FactSet(tuple(lab_facts(world, len(world.people), seed=seed)), "the lab's world")


def _record(model: LanguageModel, scanned: LayerScan | None, traced: Location | None) -> dict[str, Any]:
    scan = None if scanned is None else scanned.record()
    return {
        "format": FORMAT,
        "layers": None if scan is None else scan["layers"],
        "scan": scan,
        "tracing": None if traced is None else traced.record(model),
        "about": {
            "model": model.name,
            "fingerprint": model.fingerprint(),
            "dtype": dtype_name(model.dtype),
            "device": str(model.device),
            "versions": software_versions(),
        },
    }


def _show_scan(scanned: LayerScan, layers: Sequence[int]) -> None:
    console().print(scan_table(scanned, layers))
    if scanned.facts < ENOUGH_TO_SCAN:
        warn(
            f"warning: scanned only {counted(scanned.facts, 'fact')}, which is not conclusive. Give at least "
            f"{ENOUGH_TO_SCAN} (--facts, --scan-count)."
        )


def _show_tracing(traced: Location, record: dict[str, Any], *, positions: bool) -> None:
    """Print the curves of causal tracing, the number of facts, and the layers that they indicate."""
    layers = record["proposal"]["layers"] or []
    console().print(tracing_table(record["rows"], layers))
    if positions:
        shown = text_heat_map(record["rows"], width=console().width)
        console().print(f"\n{shown}", markup=False, highlight=False, soft_wrap=True)
    chosen, totals = traced.chosen, traced.totals()
    skipped = f"; {chosen.untraceable} skipped, with no text after the subject" if chosen.untraceable else ""
    echo(
        f"\nTraced {counted(len(chosen.facts), 'fact')} ({chosen.known} of {chosen.queried} are known{skipped}) with "
        f"{_noise(traced.settings)}, σ = {traced.traced.sigma:.3g}, in {traced.seconds:.0f} s. Probability of the "
        f"answer {totals['clean']['mean']:.3f} clean, {totals['corrupted']['mean']:.3f} corrupted."
    )
    if len(chosen.facts) < ENOUGH_FACTS:
        warn(
            f"warning: traced only {counted(len(chosen.facts), 'fact')}, which is not conclusive. Give at least "
            f"{ENOUGH_FACTS} that the model knows (--facts, --count)."
        )
    try:
        layers = traced.propose()
    except ErrataError as error:
        warn(f"note: tracing indicates no layers: {error.what}")
    else:
        shown = f"{layers[0]} to {layers[-1]}"
        echo(f"Tracing indicates layers {shown}, where facts are recalled; edits may work best elsewhere.")


def _write(out: Path, model: str, record: dict[str, Any], scanned: LayerScan | None, traced: Location | None) -> None:
    with new_directory(out) as partial:
        if scanned is not None:
            layers = record["layers"] or []
            files.write_json(partial / "layers.json", record["scan"] | {"about": record["about"]}, indent=2)
            write_text(partial / "layers.md", scan_markdown(scanned, layers))
            pictures = [partial / f"layers{suffix}" for suffix in (".png", ".svg")]
            draw_scan(scanned, pictures, title=f"{model}: {scanned.facts} facts", chosen=layers)
        if traced is not None:
            files.write_json(partial / "tracing.json", record["tracing"], indent=2)
            pictures = [partial / f"heatmap{suffix}" for suffix in (".png", ".svg")]
            title = f"{model}: {len(traced.chosen.facts)} facts, {_noise(traced.settings)}"
            critical = record["tracing"]["proposal"]["layers"] or []
            draw_heat_map(record["tracing"]["rows"], pictures, title=title, critical=critical)


def _noise(settings: TracingSettings) -> str:
    return f"{counted(settings.samples, 'sample')} of {settings.noise:g}σ noise"
