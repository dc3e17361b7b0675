"""One cell of a grid (model, data set, method, seed): edit, check during the run, measure at the end.

Each cell runs in its own process, ``python -m errata.benchmark.cell DIRECTORY [--trust-remote-code]``, which reports
progress on standard output, one line at a time, and exits when its parent does. Exit status: 0 done, 1 failed
(``failure.json`` holds the reason), 130 interrupted. An interrupted cell resumes after its last whole batch, or its
last measurement. Files of a cell's directory:

cell.json       its specification
run/            its batches, as ``errata edit --run`` stores them, with the measurements after each
before.json     which measurements of the unedited model belong to it; cells with the same ones share them
collapse.json   the batch that was rolled back because the model collapsed; absent if none
result.json     summary of editing; absent until that has finished
notes.json      what differed when the cell was resumed, such as the number of threads; absent if nothing
after/          measurements of the edited model, one file each
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from errata.benchmark.cell_files import (
    CellResult,
    CellSpec,
    add_notes,
    answer_path,
    before_path,
    note_before,
    read_answer,
    read_spec,
    result_of,
)
from errata.benchmark.data import BenchmarkData, damaged, pin, read_data, read_json
from errata.benchmark.grid import Measures, check_trusted
from errata.benchmark.measurements import PERPLEXITY, REQUIRED, Measurement, MeasurementInputs, State, measurements_of
from errata.benchmark.sequence import RunStoppedError, edit_batches, weight_norm_ratio
from errata.benchmark.workers import PROGRESS
from errata.editing.batch import BatchRecord
from errata.editors.locate_then_edit import Editor
from errata.errors import ErrataError, Fault, FaultsError, NonFiniteError
from errata.evaluation.perplexity import Perplexity, perplexity
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.patches.patch import dtype_name
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.runs.loading import load_model
from errata.runs.resume import editor_of
from errata.runs.run import RunDirectory, create_run, is_run, open_run, sound_json
from errata.statistics.corpus import open_corpus
from errata.utils.files import write_text
from errata.utils.locks import in_turn
from errata.utils.progress import Report


@dataclass(slots=True)
class Cell:
    """A cell in progress."""

    directory: Path
    spec: CellSpec
    data: BenchmarkData
    model: LanguageModel
    run: RunDirectory
    report: Report

    def before(self, measurement: Measurement) -> Path:
        """File of the unedited model's result, which depends on neither method nor recipe."""
        return before_path(
            self.directory.parent.parent, self.run.manifest.fingerprint, measurement, self.spec, self.data
        )

    def work(self) -> None:
        """Do the remaining work.

        Raises:
            ErrataError: if it failed. If an optional measurement fails, the others are still made.
        """
        failed: dict[str, ErrataError] = {}
        with self.run.locked():
            editor, notes = editor_of(self.model, self.run, report=self.report)
            add_notes(self.directory, notes)
            for note in (*notes, *self.run.begin_batch_over()):
                self.run.log(note)
            for measurement in REQUIRED:
                self._ask_before(measurement, editor)
            if result_of(self.directory) is None:
                result = self._result(editor, self._edit(editor))
                write_text(self.directory / "result.json", json.dumps(asdict(result)) + "\n")
            for measurement in REQUIRED:
                self._ask_after(measurement, editor)
            for measurement in measurements_of(self.spec.measures.parts)[len(REQUIRED) :]:
                try:
                    self._ask_before(measurement, editor)
                    self._ask_after(measurement, editor)
                except ErrataError as error:
                    self.run.log(f"measuring {measurement.name} failed: {error.what}")
                    failed[measurement.name] = error
            self.run.log("done")
        if failed:
            raise FaultsError(
                "the cell",
                [
                    Fault(f"measurement {name!r}", error.what, error.remedy, code=error.code)
                    for name, error in failed.items()
                ],
            )

    def _result(self, editor: Editor, collapse: CollapseError | None) -> CellResult:
        seconds = sum(record.seconds for record in editor.records)
        for entry in self.run.ledger.of("batch"):
            file = self.run.batch_path(entry.about["index"]).with_suffix(".json")
            seconds += float(sound_json(file, entry.about["said"])["seconds"])
        edits = sum(len(record.facts) for record in editor.records)
        at, ratio = (None, None) if collapse is None else (collapse.batch, collapse.ratio)
        return CellResult(seconds, edits, at, ratio)

    def _ask_before(self, measurement: Measurement, editor: Editor) -> None:
        path = self.before(measurement)
        # Only one of several concurrent cells measures it.
        with in_turn(path.with_suffix(".lock"), "the unedited model's answers"):
            if not path.exists():  # removing the edits recomputes weights
                with editor.model.edits.without(editor.patch().terms):
                    self._ask("before", measurement, path, editor)
        note_before(self.directory, path)

    def _ask_after(self, measurement: Measurement, editor: Editor) -> None:
        self._ask("after", measurement, answer_path(self.directory / "after", measurement, self.spec.measures), editor)

    def _ask(self, state: State, measurement: Measurement, path: Path, editor: Editor) -> None:
        """Make a measurement, unless its file exists."""
        if path.exists():
            return
        before = None if state == "before" else read_answer(self.before(measurement)).kept

        def report(what: str, done: int, total: int) -> None:
            self.report(f"{state}: {measurement.name}", done, total)

        @contextmanager
        def unedited() -> Iterator[None]:
            with self.model.edits.without(editor.patch().terms):
                yield

        options = self.spec.measures.options.get(measurement.name, {})
        inputs = MeasurementInputs(self.model, self.data, options, self.spec.seed, before, unedited, report, path)
        started = time.perf_counter()
        answer = measurement.ask(inputs)
        answer = replace(answer, seconds=time.perf_counter() - started)
        write_text(path, json.dumps(answer.to_record(), ensure_ascii=False, allow_nan=False) + "\n")

    def _edit(self, editor: Editor) -> CollapseError | None:
        """Edit the remaining batches; returns the reason if the run ended early."""
        path = self.directory / "collapse.json"
        if path.is_file():
            try:
                return CollapseError(**read_json(path))
            except TypeError as error:
                raise damaged(path, error) from error
        check = Check(self.spec, self.data, self.model, self.run.batches, self.before(PERPLEXITY))

        def measure(record: BatchRecord) -> Any:
            return check.after(record, editor)

        try:
            edit_batches(editor, self.run, measure, report=self.report, go_on="errata bench --retry")
        except CollapseError as error:
            collapse = error
        except ErrataError as error:
            if not isinstance(error.__cause__, NonFiniteError):
                raise
            collapse = CollapseError(self.run.batches_done + 1, None)  # NaN in the model or in the edit
        else:
            return None
        # Written before any measurement, so that a resumed cell does not try the batch again.
        write_text(path, json.dumps({"batch": collapse.batch, "ratio": collapse.ratio}) + "\n")
        self.run.log(collapse.what)
        return collapse


def open_cell(directory: Path, report: Report, *, trust_remote_code: bool = False) -> Cell:
    """Load a cell; a new one gets its run directory.

    Raises:
        InputError: if the model, its corpus or the data changed since this cell or another one started; if the model
            needs remote code that is not allowed.
    """
    spec = read_spec(directory)
    grid = directory.parent.parent / "grid.json"
    try:
        measures = Measures.model_validate(read_json(grid)["grid"]["measures"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(grid, error) from error
    spec = spec.model_copy(update={"measures": measures})  # measurements may be added later
    data = read_data(directory.parent.parent / "material" / spec.material)
    entry = spec.model
    check_trusted([entry], trust_remote_code=trust_remote_code)
    dtype = None if entry.dtype is None else getattr(torch, entry.dtype)
    device = None if entry.device is None else torch.device(entry.device)
    report("loading the model", 0, 1)
    model = load_model(entry.name, device=device, dtype=dtype, trust_remote_code=entry.trust_remote_code)
    text = spec.recipe.statistics.corpus if spec.recipe.needs_statistics else None
    run = open_run(directory / "run") if is_run(directory / "run") else None
    if run is not None:
        fingerprint, corpus = run.manifest.fingerprint, run.manifest.corpus
    else:
        fingerprint, corpus = model.fingerprint(), "" if text is None else open_corpus(text).digest
    pin(directory.parent.parent, "weights", entry.name, fingerprint)
    if text is not None:
        pin(directory.parent.parent, "text", text, corpus)
    if run is None:
        run = create_run(
            directory / "run",
            model=entry.name,
            fingerprint=fingerprint,
            dtype=dtype_name(model.dtype),
            lab=entry.name == "lab",
            recipe=spec.recipe,
            facts=data.facts,
            corpus=corpus,
            seed=spec.seed,
            examination=None,
        )
    return Cell(directory, spec, data, model, run, report)


def work_on(directory: Path, report: Report, *, trust_remote_code: bool = False) -> None:
    """Do the remaining work of a cell.

    Raises:
        ErrataError: if it failed; finished work is saved.
    """
    open_cell(directory, report, trust_remote_code=trust_remote_code).work()


class CollapseError(RunStoppedError):
    """Perplexity exceeded the limit: the batch is rolled back, and the run ends."""

    def __init__(self, batch: int, ratio: float | None) -> None:
        value = "not finite" if ratio is None else f"{ratio:.3g} times the unedited model's"
        super().__init__(f"perplexity is {value} after batch {batch}", code="MODEL_COLLAPSED")
        self.batch, self.ratio = batch, ratio


@dataclass(frozen=True, slots=True)
class Check:
    """Measurements after each batch and, every few batches, on a sample of all facts so far.

    Attributes:
        batches: of the whole run.
        prose_answer: file of the unedited model's perplexity.
    """

    spec: CellSpec
    data: BenchmarkData
    model: LanguageModel
    batches: int
    prose_answer: Path

    def after(self, record: BatchRecord, editor: Editor) -> dict[str, Any]:
        """Records of the batch's facts, perplexity, norm of the change, a check if due, and the wall time; as JSON.

        Checks are due every ``eval_every`` batches and after the last one.

        Raises:
            CollapseError: if perplexity exceeds the limit.
        """
        started = time.perf_counter()
        spec, model, data = self.spec, self.model, self.data
        number = record.index + 1
        prose, ratio = self._ratio(number)
        if spec.collapse is not None and ratio is not None and ratio > spec.collapse:
            raise CollapseError(number, ratio)
        found: dict[str, Any] = {
            "records": [asdict(entry) for entry in evaluate_facts(model, record.facts, tokens=True)],
            "perplexity": None if prose is None else asdict(prose),
            "weight_norm_ratio": weight_norm_ratio(editor),
            "check": None,
        }
        if spec.eval_every and (number % spec.eval_every == 0 or number == self.batches):
            edited = number * spec.recipe.batch_size
            facts = self._sample(data.facts.facts, edited)
            untouched = data.untouched[: spec.sample]
            records = evaluate_facts(model, facts, untouched=untouched, tokens=True)
            size = spec.recipe.batch_size
            records += _efficacy_only(model, data.facts.facts[:size], "first")
            records += _efficacy_only(model, record.facts, "last")
            found["check"] = [asdict(entry) for entry in records]
        found["seconds"] = time.perf_counter() - started
        return found

    def _sample(self, facts: tuple[Fact, ...], edited: int) -> list[Fact]:
        """A sample of the edited facts; the same order of all facts at every check."""
        order = random.Random(f"check {self.spec.seed}").sample(range(len(facts)), len(facts))
        chosen = [index for index in order if index < edited][: self.spec.sample]
        return [facts[index] for index in sorted(chosen)]

    def _ratio(self, number: int) -> tuple[Perplexity | None, float | None]:
        prose = self.data.prose
        if not prose:
            return None, None
        kept = read_answer(self.prose_answer).kept["perplexity"]
        try:
            now = perplexity(self.model, prose)
        except NonFiniteError as error:
            raise CollapseError(number, None) from error
        return now, now.value / Perplexity(tuple(kept["log_likelihoods"]), tuple(kept["counts"])).value


def _efficacy_only(model: LanguageModel, facts: tuple[Fact, ...], which: Literal["first", "last"]) -> list[Record]:
    bare = [Fact(fact.id, fact.subject, fact.prompt, fact.target) for fact in facts]
    name = Metric.EFFICACY_ACCURACY_FIRST if which == "first" else Metric.EFFICACY_ACCURACY_LAST
    return [replace(record, metric=name) for record in evaluate_facts(model, bare)]


_REPORT_INTERVAL = 0.2


def main() -> int:
    """Run the cell named on the command line."""
    directory = Path(sys.argv[1])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reported_at, reported = 0.0, ""

    def report(what: str, done: int, total: int) -> None:
        nonlocal reported_at, reported
        now = time.monotonic()
        if what == reported and done < total and now - reported_at < _REPORT_INTERVAL:
            return
        reported_at, reported = now, what
        print(PROGRESS + json.dumps([what, done, total]), flush=True)

    try:
        work_on(directory, report, trust_remote_code="--trust-remote-code" in sys.argv[2:])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        what = str(error) if isinstance(error, ErrataError) else f"{type(error).__name__}: {error}"
        write_text(directory / "failure.json", json.dumps({"what": what}, ensure_ascii=False) + "\n")
        write_text(directory / "traceback.txt", traceback.format_exc())
        return 1
    return 0


def _end_with_parent() -> None:
    """Exit when standard input ends, which it does when the parent exits; a run survives that."""
    while os.read(0, 1024):  # not sys.stdin, whose lock the interpreter needs at exit
        pass
    os._exit(143)


if __name__ == "__main__":
    sys.exit(main())
