"""``errata compare``: several editors on the same facts, by every argument for and against editing."""

from __future__ import annotations

import hashlib
import json as json_format
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.benchmark.arguments import probes_of
from errata.benchmark.columns import COLUMNS, Argument
from errata.benchmark.sequence import evaluation_set_record
from errata.benchmark.trials import (
    UNEDITED,
    Baseline,
    Candidate,
    Probe,
    Trial,
    measure_baseline,
    run_trial,
    unedited_trial,
)
from errata.cli.bench_plan import names_in
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
    shipped_sentences,
)
from errata.cli.terminal import JsonOption, console, echo, number_tables, progress, warn, write_json
from errata.cli.trial_options import PageOption, TrialData, candidate_of, extended, page_file, trial_data
from errata.datasets.reading import read_dataset
from errata.datasets.registry import split_file
from errata.editors.table import check_method
from errata.errors import InputError, collect_errors
from errata.evaluation.ability import AbilitySettings
from errata.evaluation.controls import known_facts
from errata.evaluation.harness import check_tasks
from errata.facts.fact import FactSet
from errata.facts.files import read_facts
from errata.facts.questions import read_questions, text_lines
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel
from errata.report.editor_comparison import (
    REFERENCE,
    EditorComparison,
    absent_lines,
    argument_table,
    comparison_page,
)
from errata.report.figures import check_drawing
from errata.runs.loading import load_model
from errata.utils import files
from errata.utils.files import is_file, write_text
from errata.utils.progress import Report
from errata.utils.provenance import code_digest, software_versions
from errata.utils.text import counted

EXAMPLE = """Example: errata compare --model lab --data lab --editors retrieval,memit+blue,lora --sizes 1,10

Example: errata compare --model smollm2-135m-instruct --facts facts.jsonl --sizes 10 --out runs/compare"""
DEFAULT_EDITORS = "in_context,memit+blue,lora"
DEFAULT_SIZES = "1,10,100"
ALIASES = {"in_context": REFERENCE}
FORMAT = "errata-trial-1"
_LAB_TARGETS = 100  # facts of the lab whose targets are versions of updated facts
app = typer.Typer()


@app.command("compare", epilog=EXAMPLE)
def compare(
    model: ModelOption = "lab",
    editors: Annotated[
        str, typer.Option(help="Editors, comma-separated (see `errata methods`); in_context is retrieval.")
    ] = DEFAULT_EDITORS,
    facts: Annotated[
        Path | None, typer.Option("--facts", "-f", help="Facts to edit; further ones come from errata's list.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A data set instead, NAME or NAME=FILE; default for lab: lab.")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Numbers of facts, comma-separated.")] = DEFAULT_SIZES,
    minutes: Annotated[
        float,
        typer.Option(min=0.0, help="Time for everything; trials that would probably not end in time are skipped."),
    ] = 60.0,
    untouched: UntouchedOption = None,
    reference_corpus: Annotated[
        Path | None,
        typer.Option(help="Text in which subjects are counted for their popularity; default: log P(old answer)."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, comma-separated, or YAML files of some.")
    ] = None,
    task_limit: Annotated[int, typer.Option(min=1, help="Questions of each task at most.")] = 100,
    seed: Annotated[int, seed_option("for facts, contexts and bootstrap.")] = 0,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    out: PageOption = None,
    json: JsonOption = None,
) -> None:
    """Compare editors on the same facts by every argument for and against editing.

    One row per editor and number of facts: what took, consequences, consistency, popular facts, damage, trust,
    attribution, updates, disclosure and cost, with bootstrap intervals, and which editors are dominated by another.
    With a directory as --out, finished trials are stored there, and the same command continues with the others. Trials
    of another version of errata, or of changed code, are made again.
    """
    ends = time.monotonic() + 60 * minutes
    outline = outline_of(model, trust_remote_code=trust_remote_code)
    candidates: list[Candidate] = []
    with collect_errors("the input") as part:
        with part:
            where = placement(device, dtype)
        for name in _names(editors):
            with part:
                check_method(name)
                candidates.append(candidate_of(name, model, outline, seed))
        with part:
            if not _names(editors):
                raise InputError(
                    "--editors names no editor", remedy="Write retrieval,memit+blue", code="OPTION_INVALID"
                )
        counts = [1]
        with part:
            counts = _sizes(sizes)
        with part:
            lab = is_lab(model)
            given = _facts(facts, data, max(counts), lab=lab, seed=seed)
            check_facts(given, outline)
            for note in given.notes:
                warn(f"note: {note}")
        with part:
            questions = read_questions(untouched)
        with part:
            corpus = _corpus(reference_corpus)
        ability = None
        with part:
            if named := names_in(tasks):
                check_tasks(named)
                ability = AbilitySettings(tuple(named), limit=task_limit)
        with part:
            page = page_file(out, "compare")
            if page is not None:
                check_drawing()
    store = Store(None if out is None or page == out else out / "trials")
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    comparisons: list[EditorComparison] = []
    notes: dict[str, None] = {}
    skipped: list[str] = []
    with progress(speed_window=3600.0) as report, loaded.blaming_no_edit():
        pool = extended(loaded, given, max(counts), lab=lab, seed=seed)
        check_facts(pool, outline)
        chosen = _possible(counts, len(pool), notes)
        if len(pool) > len(given):
            notes[f"{counted(len(pool) - len(given), 'fact')} of errata's list after the {len(given)} given"] = None
        done, total = 0, len(chosen) * len(candidates)
        for size in chosen:
            facts_of_size = FactSet(pool.facts[:size], pool.source)
            prepared = trial_data(loaded, facts_of_size, questions, lab=lab, seed=seed, others=True)
            notes |= dict.fromkeys(f"{counted(size, 'fact')}: {note}" for note in prepared.notes)
            runner = Runner(loaded, prepared, pool, corpus, ability, lab, seed, store, report)
            trials: list[Trial] = []
            for candidate in candidates:
                report("trials", done, total)
                done += 1
                earlier = [trial for each in comparisons for trial in each.trials if trial.method == candidate.name]
                late = time.monotonic() + _expected(earlier, size) > ends and bool(trials or comparisons)
                if late and not runner.is_stored(candidate):
                    skipped.append(f"{candidate.name} with {counted(size, 'fact')}")
                else:
                    trials.append(runner.trial(candidate))
            if trials:
                comparisons.append(EditorComparison(size, tuple(trials), runner.unedited(), seed))
        report("trials", total, total)
    if skipped:
        notes[f"skipped for lack of time: {', '.join(skipped)} (--minutes {minutes:g})"] = None
    if store.restored:
        notes[f"{counted(store.restored, 'trial')} of an earlier run, from {store.folder}"] = None
    _show(comparisons, list(notes))
    if page is not None:
        text = comparison_page(
            comparisons,
            model=model,
            data=given.source,
            notes=list(notes),
            command="errata " + shlex.join(sys.argv[1:]),
            versions=software_versions(),
        )
        write_text(page, text)
        echo(f"Wrote {page}.")
    write_json(
        json,
        {
            "model": model,
            "data": given.source,
            "comparisons": [comparison.to_record() for comparison in comparisons],
            "columns": [{"name": column.name, "meaning": column.meaning, "best": column.best} for column in COLUMNS],
            "notes": list(notes),
            "versions": software_versions(),
        },
    )


class Store:
    """Finished trials as files, each named by what it depends on; without a folder none are stored.

    Attributes:
        restored: how many were read.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.restored = 0

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether the trial is stored."""
        return (path := self._path(key)) is not None and is_file(path)

    def trial(self, key: Mapping[str, Any], make: Callable[[], Trial]) -> Trial:
        """The stored trial, or a new one, which is stored unless it failed.

        Raises:
            InputError: if the stored one cannot be read.
        """
        path = self._path(key)
        if path is not None and self.has(key):
            with files.reading(path, remedy="Remove the file; the trial is then made again", code="TRIAL_DAMAGED"):
                found = Trial.from_record(json_format.loads(path.read_text(encoding="utf-8"))["trial"])
            self.restored += 1
            return found
        made = make()
        if path is not None and not made.failure:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {"format": FORMAT, "trial": made.to_record()})
        return made

    def _path(self, key: Mapping[str, Any]) -> Path | None:
        digest = hashlib.sha256(json_format.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return None if self.folder is None else self.folder / f"{key['editor']}-{len(key['facts'])}-{digest}.json"


@dataclass(slots=True)
class Runner:
    """Makes the trials of one number of facts; the unedited model is measured when the first one needs it.

    Attributes:
        pool: all facts, for further versions of updated ones; errata's list follows them.
        corpus: for popularity.
    """

    model: LanguageModel
    data: TrialData
    pool: FactSet
    corpus: Sequence[str] | None
    tasks: AbilitySettings | None
    lab: bool
    seed: int
    store: Store
    report: Report
    _made: tuple[Baseline, list[Probe]] | None = field(init=False, default=None)

    def unedited(self) -> Trial:
        """The numbers of the unedited model."""
        return self.store.trial(self._key(UNEDITED, {}), self._unedited)

    def trial(self, candidate: Candidate) -> Trial:
        """The numbers of an editor."""
        return self.store.trial(self._key(candidate.name, candidate.settings), lambda: self._trial(candidate))

    def is_stored(self, candidate: Candidate) -> bool:
        """Whether an earlier run has made the trial."""
        return self.store.has(self._key(candidate.name, candidate.settings))

    def _unedited(self) -> Trial:
        baseline, probes = self._prepared()
        return unedited_trial(
            self.model, self.data.evaluation_set, baseline, probes, seed=self.seed, report=self.report
        )

    def _trial(self, candidate: Candidate) -> Trial:
        baseline, probes = self._prepared()
        asked = self.data.evaluation_set
        return run_trial(self.model, candidate, asked, baseline, probes=probes, seed=self.seed, report=self.report)

    def _key(self, editor: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that a trial depends on."""
        asked = self.data.evaluation_set
        return {
            "code": code_digest(),
            "software": software_versions(),
            "model": self.model.fingerprint(),
            "editor": editor,
            "settings": settings,
            "facts": [fact.to_record() for fact in asked.facts],
            "questions": evaluation_set_record(asked),
            "pool": self.pool.digest(),
            "corpus": self.corpus,
            "tasks": None if self.tasks is None else self.tasks.to_record(),
            "seed": self.seed,
            "columns": [column.name for column in COLUMNS],
        }

    def _prepared(self) -> tuple[Baseline, list[Probe]]:
        if self._made is None:
            asked = self.data.evaluation_set
            baseline = measure_baseline(self.model, asked, report=self.report)
            probes = probes_of(
                self.model,
                asked,
                baseline,
                consequences=self.data.consequences,
                absent=dict(self.data.absent),
                pool=(*self.pool.facts, *(lab_facts(lab_world(), _LAB_TARGETS, seed=0) if self.lab else known_facts())),
                sentences=shipped_sentences(),
                corpus=self.corpus,
                tasks=self.tasks,
                lab=self.lab,
            )
            self._made = baseline, probes
        return self._made


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(ALIASES.get(name, name) for name in names_in(text)))


def _sizes(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise InputError(
            f"--sizes {text!r} is not a list of numbers", remedy="Write 1,10,100", code="OPTION_INVALID"
        ) from error
    if found[0] < 1:
        raise InputError("--sizes: a number of facts is below 1", remedy="Write 1,10,100", code="OPTION_INVALID")
    return found


def _possible(counts: Sequence[int], available: int, notes: dict[str, None]) -> list[int]:
    """The numbers of facts that there are, the largest in the place of those beyond it."""
    found = sorted({min(count, available) for count in counts})
    if max(counts) > available:
        notes[f"there are only {counted(available, 'fact')}"] = None
    return found


def _facts(path: Path | None, data: str | None, count: int, *, lab: bool, seed: int) -> FactSet:
    if path is not None and data is not None:
        raise InputError("--facts and --data are both given", remedy="Give one of them", code="OPTION_CONFLICT")
    if path is not None:
        return read_facts(path)
    if data is None and not lab:
        raise InputError(
            "no facts to edit", remedy="Give --facts FILE, or --data with a data set", code="OPTION_MISSING"
        )
    name, file = split_file(data or "lab")
    whole = read_dataset(name, file, count=count if name == "lab" else None, seed=seed)
    chosen = FactSet(whole.facts.facts[:count], whole.facts.source, notes=whole.notes)
    if not chosen:
        raise InputError(
            f"{name} contains no facts",
            remedy="`errata data list` shows what each data set contains",
            code="FACTS_EMPTY",
        )
    return chosen


def _corpus(path: Path | None) -> list[str] | None:
    return None if path is None else text_lines(path, path, remedy="Give a UTF-8 text file")


def _expected(earlier: Sequence[Trial], size: int) -> float:
    """Seconds that a trial will take, from those of the same editor with fewer facts; 0 if there is none."""
    if not earlier:
        return 0.0
    last = earlier[-1]
    editing = last.seconds_per_fact * last.facts
    return last.seconds_per_fact * size + (last.seconds - editing)


def _show(comparisons: Sequence[EditorComparison], notes: Sequence[str]) -> None:
    for argument in Argument:
        table = argument_table(comparisons, argument)
        if table is None:
            continue
        echo(f"{table.title}:")
        out = console()
        for part in number_tables(table.lines, out.width, leading=2 if "facts" in table.lines[0] else 1):
            out.print(part)
            out.print()
        echo(table.explained)
        echo("")
    echo("Shares and slopes in % with 95 % intervals over facts.")
    for title, reason in absent_lines(comparisons):
        echo(f"Not measured: {title} ({reason}).")
    for note in notes:
        warn(f"note: {note}")
    for comparison in comparisons:
        echo(f"\nWith {counted(comparison.facts, 'fact')}:")
        for sentence in comparison.verdict():
            echo(f"- {sentence}")
        for trial in comparison.trials:
            if trial.failure:
                warn(f"{trial.method} failed: {trial.failure}")
