"""One cell of a grid (model, data set, method, seed): edit, check during the run, measure at the end.

Each cell runs in its own process, ``python -m errata.benchmark.cell DIRECTORY [--trust-remote-code]``, which reports
progress on standard output, one line at a time, and exits when its parent does. Exit status: 0 done, 1 failed
(``failure.json`` holds the reason), 130 interrupted. An interrupted cell resumes after its last whole batch, or its
last measurement. Files of a cell's directory:

cell.json       its specification
run/            its batches, as ``errata edit --run`` stores them, with the measurements after each
edits/          the same for editors other than locate-then-edit
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from errata.benchmark.cell_files import (
    CellResult,
    CellSpec,
    add_notes,
    before_path,
    note_before,
    read_measurement,
    read_spec,
    result_path,
    saved_edits,
)
from errata.benchmark.data import BenchmarkData, pin, read_data, read_json, reading_result
from errata.benchmark.grid import Measures, check_trusted
from errata.benchmark.measurements import (
    PERPLEXITY,
    REQUIRED,
    Measurement,
    MeasurementInputs,
    MeasurementResult,
    State,
    measurements_of,
)
from errata.benchmark.sequence import RunStoppedError, edit_batches, weight_norm_ratio
from errata.benchmark.workers import PROGRESS
from errata.editing.batch import BatchRecord
from errata.editors.contract import Answerer, Edit, KnowledgeEditor
from errata.editors.locate_then_edit import Editor
from errata.editors.registry import EDITORS, LOCATE_THEN_EDIT, EditorKind, editor_named
from errata.errors import ErrataError, Fault, FaultsError, NonFiniteError
from errata.evaluation.perplexity import Perplexity, perplexity
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.offload import device_of
from errata.models.prompts import Pair, TargetScore
from errata.patches.patch import supported_dtype_name
from errata.results.metrics import Ability, Metric
from errata.results.records import Record
from errata.runs.loading import load_model
from errata.runs.resume import editor_of
from errata.runs.run import RunDirectory, create_run, is_run, open_run, verified_json
from errata.statistics.store import source_digest
from errata.utils.files import reading, write_json, write_text
from errata.utils.locks import exclusive, in_turn, open_in_place
from errata.utils.progress import Report
from errata.utils.provenance import now, software_versions


@runtime_checkable
class Backend(Protocol):
    """An editor and its saved batches, as a cell uses them.

    Attributes:
        fingerprint: of the unedited weights.
        answerer: the edited model in its present state.
        batches_done: batches saved so far.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def answerer(self) -> Answerer: ...

    @property
    def batches_done(self) -> int: ...

    def locked(self) -> AbstractContextManager[None]: ...

    def log(self, text: str) -> None: ...

    def start(self) -> tuple[list[str], list[str]]:
        """Restore the saved batches; returns notes for readers of the results, and further lines for the log."""
        ...

    def unedited(self) -> AbstractContextManager[None]:
        """Within it the edits are removed; afterwards, and if one cannot be removed, they are in place."""
        ...

    def edit(self, check: Check) -> None:
        """Edit the remaining batches, saving each, with its check, before the next one starts."""
        ...

    def totals(self) -> tuple[float, int]:
        """Seconds of editing and checks, and facts edited."""
        ...


@dataclass(slots=True)
class RecordedRun:
    """Locate-then-edit: batches as ``errata edit --run`` stores them."""

    model: LanguageModel
    run: RunDirectory
    report: Report
    _editor: Editor | None = None

    @property
    def fingerprint(self) -> str:
        return self.run.manifest.fingerprint

    @property
    def answerer(self) -> LanguageModel:
        return self.model

    @property
    def batches_done(self) -> int:
        return self.run.batches_done

    @property
    def editor(self) -> Editor:
        assert self._editor is not None, "start() comes first"
        return self._editor

    def locked(self) -> AbstractContextManager[None]:
        return self.run.locked()

    def log(self, text: str) -> None:
        self.run.log(text)

    def start(self) -> tuple[list[str], list[str]]:
        self._editor, notes = editor_of(self.model, self.run, report=self.report)
        return notes, self.run.discard_unfinished_batch()

    @contextmanager
    def unedited(self) -> Iterator[None]:
        with self.model.edits.without(self.editor.patch().terms):
            yield

    def edit(self, check: Check) -> None:
        def measure(record: BatchRecord) -> dict[str, Any]:
            return check.after(record.index, record.facts, weight_norm_ratio(self.editor))

        edit_batches(self.editor, self.run, measure, report=self.report, resume_command="errata bench --retry")

    def totals(self) -> tuple[float, int]:
        seconds = sum(record.seconds for record in self.editor.records)
        for entry in self.run.ledger.of("batch"):
            file = self.run.batch_path(entry.fields["index"]).with_suffix(".json")
            seconds += float(verified_json(file, entry.fields["said"])["seconds"])
        return seconds, sum(len(record.facts) for record in self.editor.records)


@dataclass(frozen=True, slots=True)
class LiveView:
    """The edited model in whatever state the editor is in when it is queried."""

    editor: KnowledgeEditor

    @property
    def name(self) -> str:
        return self.editor.view().name

    @property
    def abilities(self) -> frozenset[Ability]:
        return self.editor.view().abilities

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.editor.view().tokenizer

    @property
    def context_length(self) -> int:
        return self.editor.view().context_length

    def score(self, pairs: Sequence[Pair], **options: Any) -> list[TargetScore]:
        return self.editor.view().score(pairs, **options)

    def next_token_log_probabilities(self, prompts: Sequence[str], **options: Any) -> torch.Tensor:
        return self.editor.view().next_token_log_probabilities(prompts, **options)

    def continue_texts(self, prompts: Sequence[str], **options: Any) -> list[str]:
        return self.editor.view().continue_texts(prompts, **options)

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        return self.editor.view().used(prompts)


@dataclass(slots=True)
class EditorRun:
    """Any ``KnowledgeEditor``: ``edits/NNNN.edit`` and, written last, ``edits/NNNN.json`` for each batch."""

    model: LanguageModel
    kind: EditorKind
    editor: KnowledgeEditor
    folder: Path
    facts: tuple[Fact, ...]
    batch_size: int
    report: Report
    fingerprint: str
    _edits: list[Edit] = field(default_factory=list)

    @property
    def answerer(self) -> Answerer:
        view = self.editor.view()  # a LanguageModel is live by itself, and perplexity needs one
        return view if isinstance(view, LanguageModel) else LiveView(self.editor)

    @property
    def batches_done(self) -> int:
        return len(self._edits)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with exclusive(self.folder / "lock", f"the cell {self.folder.parent}"):
            yield

    def log(self, text: str) -> None:
        with open_in_place(self.folder / "log.txt", "a") as file:
            file.write(f"{now()} {text}\n")

    def start(self) -> tuple[list[str], list[str]]:
        for batch in saved_edits(self.folder).values():
            edit = self.kind.load(self.folder / batch["edit"])
            self.editor.restore(edit)
            self._edits.append(edit)
        return [], []

    @contextmanager
    def unedited(self) -> Iterator[None]:
        edits, self._edits = self._edits, []  # a nested block has nothing left to remove
        removed: list[Edit] = []
        try:
            for edit in reversed(edits):
                self.editor.remove(edit)
                removed.append(edit)
            yield
        finally:
            for edit in reversed(removed):
                self.editor.restore(edit)
            self._edits = edits

    def edit(self, check: Check) -> None:
        for index in range(len(self._edits), check.batches):
            facts = self.facts[index * self.batch_size : (index + 1) * self.batch_size]
            self.report("facts edited", index * self.batch_size, len(self.facts))
            started = time.perf_counter()
            edit = self.editor.apply(facts)
            seconds = time.perf_counter() - started
            try:
                measured = check.after(index, facts, None)
                name = f"{index + 1:04d}.edit"
                edit.save(self.folder / name)
                batch = {"edit": name, "facts": [fact.id for fact in facts], "seconds": seconds, "said": measured}
                write_json((self.folder / name).with_suffix(".json"), batch)
            except BaseException:
                self.editor.remove(edit)
                raise
            self._edits.append(edit)
            self.log(f"batch {index + 1} of {check.batches}: {len(facts)} facts")
        self.report("facts edited", len(self.facts), len(self.facts))

    def totals(self) -> tuple[float, int]:
        saved = saved_edits(self.folder).values()
        seconds = sum(batch["seconds"] + batch["said"]["seconds"] for batch in saved)
        return seconds, sum(len(batch["facts"]) for batch in saved)


@dataclass(slots=True)
class Cell:
    """A cell in progress."""

    directory: Path
    spec: CellSpec
    data: BenchmarkData
    model: LanguageModel
    backend: Backend
    report: Report

    def before(self, measurement: Measurement) -> Path:
        """File of the unedited model's result, which depends on neither method nor settings."""
        return before_path(self.directory.parent.parent, self.backend.fingerprint, measurement, self.spec, self.data)

    def work(self) -> None:
        """Do the remaining work.

        Raises:
            ErrataError: if it failed. If an optional measurement fails, the others are still made.
        """
        failed: dict[str, ErrataError] = {}
        backend = self.backend
        with backend.locked():
            notes, more = backend.start()
            add_notes(self.directory, notes)
            for note in (*notes, *more):
                backend.log(note)
            for measurement in REQUIRED:
                self._measure_before(measurement)
            if (self.directory / "result.json").is_file():
                CellResult.read(self.directory)  # a damaged one is reported before more is measured
            else:
                collapse = self._edit()
                at, ratio = (None, None) if collapse is None else (collapse.batch, collapse.ratio)
                result = CellResult(*backend.totals(), at, ratio)
                write_json(self.directory / "result.json", asdict(result))
            for measurement in REQUIRED:
                self._measure_after(measurement)
            for measurement in measurements_of(self.spec.measures.parts)[len(REQUIRED) :]:
                try:
                    self._measure_before(measurement)
                    self._measure_after(measurement)
                except ErrataError as error:
                    backend.log(f"measuring {measurement.name} failed: {error.what}")
                    failed[measurement.name] = error
            backend.log("done")
        if failed:
            raise FaultsError(
                "the cell",
                [
                    Fault(f"measurement {name!r}", error.what, error.remedy, code=error.code)
                    for name, error in failed.items()
                ],
            )

    def _measure_before(self, measurement: Measurement) -> None:
        path = self.before(measurement)
        # Only one of several concurrent cells measures it.
        with in_turn(path.with_suffix(".lock"), "the unedited model's answers"):
            if not path.exists():  # removing the edits recomputes weights
                with self.backend.unedited():
                    self._measure("before", measurement, path)
        note_before(self.directory, path)

    def _measure_after(self, measurement: Measurement) -> None:
        self._measure("after", measurement, result_path(self.directory / "after", measurement, self.spec.measures))

    def _measure(self, state: State, measurement: Measurement, path: Path) -> None:
        """Make a measurement, unless its file exists."""
        if path.exists():
            return
        earlier = None if state == "before" else read_measurement(self.before(measurement), measurement)
        answerer = self.model if earlier is None else self.backend.answerer

        def report(what: str, done: int, total: int) -> None:
            self.report(f"{state}: {measurement.name}", done, total)

        started = time.perf_counter()
        absent = {} if earlier is None else measurement.absent(answerer, self.spec.method)
        if earlier is not None and absent and len(absent) == len(measurement.metrics):
            names = dict.fromkeys([*absent, *(record.metric for record in earlier.records)])  # variants too
            reasons = {name: absent[Metric(name.partition(":")[0])] for name in names}
            result = MeasurementResult([], {"perplexity": None}, reasons)
        else:
            options = self.spec.measures.options.get(measurement.name, {})
            before = None if earlier is None else earlier.extra
            view = None if answerer is self.model else answerer
            inputs = MeasurementInputs(
                model=self.model,
                data=self.data,
                options=options,
                seed=self.spec.seed,
                before=before,
                unedited=self.backend.unedited,
                report=report,
                partial_path=path,
                view=view,
            )
            result = measurement.run(inputs)
        result = replace(result, seconds=time.perf_counter() - started)
        write_json(path, result.to_record(), allow_nan=False)

    def _edit(self) -> CollapseError | None:
        """Edit the remaining batches; returns the reason if the run ended early."""
        path = self.directory / "collapse.json"
        if path.is_file():
            with reading_result(path):
                return CollapseError(**read_json(path))
        batches = -(-len(self.data.facts) // self.spec.batch_size)
        try:
            self.backend.edit(Check(self.spec, self.data, self.backend, batches, self.before(PERPLEXITY)))
        except CollapseError as error:
            collapse = error
        except ErrataError as error:
            if not isinstance(error, NonFiniteError) and not isinstance(error.__cause__, NonFiniteError):
                raise
            collapse = CollapseError(self.backend.batches_done + 1, None)  # NaN in the model or in the edit
        else:
            return None
        # Written before any measurement, so that a resumed cell does not try the batch again.
        write_json(path, {"batch": collapse.batch, "ratio": collapse.ratio})
        self.backend.log(collapse.what)
        return collapse


def open_cell(
    directory: Path,
    report: Report,
    *,
    trust_remote_code: bool = False,
    editors: Mapping[str, EditorKind] = EDITORS,
) -> Cell:
    """Load a cell; a new one gets its run directory.

    Raises:
        InputError: if the model, its corpus or the data changed since this cell or another one started; if the model
            needs remote code that is not allowed; if the editor is unknown.
    """
    spec = read_spec(directory)
    bench = directory.parent.parent
    with reading(bench / "grid.json", remedy="Restore it, or start over", code="BENCH_DAMAGED"):
        grid = json.loads((bench / "grid.json").read_text(encoding="utf-8"))["grid"]
        measures = Measures.model_validate(grid["measures"])
    spec = spec.model_copy(update={"measures": measures})  # measurements may be added later
    kind = editor_named(spec.editor, editors)
    data = read_data(bench / "material" / spec.material)
    entry = spec.model
    check_trusted([entry], trust_remote_code=trust_remote_code)
    dtype = None if entry.dtype is None else getattr(torch, entry.dtype)
    device = None if entry.device is None else device_of(entry.device)
    report("loading the model", 0, 1)
    model = load_model(entry.name, device=device, dtype=dtype, trust_remote_code=entry.trust_remote_code)
    backend: Backend
    if spec.editor == LOCATE_THEN_EDIT:  # it stores its batches in a run directory
        backend = _recorded_run(directory, spec, data, model, report)
    else:
        folder = directory / "edits"
        folder.mkdir(exist_ok=True)
        fingerprint = model.fingerprint()
        pin(bench, "weights", entry.name, fingerprint)
        if not (folder / "versions.json").is_file():
            write_json(folder / "versions.json", software_versions())
        editor = kind.make(model, spec.settings, report)
        backend = EditorRun(model, kind, editor, folder, data.facts.facts, spec.batch_size, report, fingerprint)
    return Cell(directory, spec, data, model, backend, report)


def _recorded_run(
    directory: Path, spec: CellSpec, data: BenchmarkData, model: LanguageModel, report: Report
) -> RecordedRun:
    bench, name, recipe = directory.parent.parent, spec.model.name, spec.recipe
    text = recipe.statistics.source if recipe.needs_statistics else None
    run = open_run(directory / "run") if is_run(directory / "run") else None
    if run is not None:
        fingerprint, corpus = run.manifest.fingerprint, run.manifest.corpus
    else:
        fingerprint, corpus = model.fingerprint(), "" if text is None else source_digest(recipe.statistics)
    pin(bench, "weights", name, fingerprint)
    if text is not None:
        pin(bench, "text", text, corpus)
    if run is None:
        run = create_run(
            directory / "run",
            model=name,
            fingerprint=fingerprint,
            dtype=supported_dtype_name(model.dtype),
            lab=name == "lab",
            recipe=recipe,
            facts=data.facts,
            corpus=corpus,
            seed=spec.seed,
            examination=None,
        )
    return RecordedRun(model, run, report)


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
    backend: Backend
    batches: int
    prose_answer: Path

    def after(self, index: int, batch: tuple[Fact, ...], weight_norm: float | None) -> dict[str, Any]:
        """Records of the batch's facts, perplexity, norm of the change, a check if due, and the wall time; as JSON.

        Checks are due every ``eval_every`` batches and after the last one. Metrics of missing abilities are left out.

        Args:
            batch: the facts of the batch.
            weight_norm: the weight norm ratio; None for editors that leave the weights alone.

        Raises:
            CollapseError: if perplexity exceeds the limit.
        """
        started = time.perf_counter()
        spec, data, answerer = self.spec, self.data, self.backend.answerer
        number, size = index + 1, spec.batch_size
        prose, ratio = self._ratio(number)
        if spec.collapse is not None and ratio is not None and ratio > spec.collapse:
            raise CollapseError(number, ratio)
        scored = "likelihood" in answerer.abilities
        found: dict[str, Any] = {
            "records": [asdict(entry) for entry in evaluate_facts(answerer, batch, tokens=True)] if scored else [],
            "perplexity": None if prose is None else asdict(prose),
            "weight_norm_ratio": weight_norm,
            "check": None,
        }
        if scored and spec.eval_every and (number % spec.eval_every == 0 or number == self.batches):
            facts = self._sample(data.facts.facts, number * size)
            records = evaluate_facts(answerer, facts, untouched=data.untouched[: spec.sample], tokens=True)
            records += _efficacy_only(answerer, data.facts.facts[:size], "first")
            records += _efficacy_only(answerer, batch, "last")
            found["check"] = [asdict(entry) for entry in records]
        found["seconds"] = time.perf_counter() - started
        return found

    def _sample(self, facts: tuple[Fact, ...], edited: int) -> list[Fact]:
        """A sample of the edited facts; the same order of all facts at every check."""
        order = random.Random(f"check {self.spec.seed}").sample(range(len(facts)), len(facts))
        chosen = [index for index in order if index < edited][: self.spec.sample]
        return [facts[index] for index in sorted(chosen)]

    def _ratio(self, number: int) -> tuple[Perplexity | None, float | None]:
        prose, answerer = self.data.prose, self.backend.answerer
        if not prose or not isinstance(answerer, LanguageModel):
            return None, None
        before = read_measurement(self.prose_answer, PERPLEXITY).perplexity
        assert before is not None, "the unedited model was measured on the same prose"
        try:
            now = perplexity(answerer, prose)
        except NonFiniteError as error:
            raise CollapseError(number, None) from error
        return now, now.value / before.value


def _efficacy_only(answerer: Answerer, facts: tuple[Fact, ...], which: Literal["first", "last"]) -> list[Record]:
    bare = [Fact(fact.id, fact.subject, fact.prompt, fact.target) for fact in facts]
    name = Metric.EFFICACY_ACCURACY_FIRST if which == "first" else Metric.EFFICACY_ACCURACY_LAST
    return [replace(record, metric=name) for record in evaluate_facts(answerer, bare)]


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
        open_cell(directory, report, trust_remote_code="--trust-remote-code" in sys.argv[2:]).work()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        what = str(error) if isinstance(error, ErrataError) else f"{type(error).__name__}: {error}"
        write_json(directory / "failure.json", {"what": what})
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
