"""One cell of a grid: one model, one data set, one method, one seed; edited, checked on the way, asked at the end.

A cell is a directory, and a process of its own works in it (``cell_process``). Whatever
stops it, the same command goes on from the last whole batch, or from the last part of a measurement.

cell.json       what it is
run/            its batches, as ``errata edit --run`` keeps them, with what was asked behind each
before.json     which answers of the unedited model are its own; cells that would ask the same share them
collapse.json   which batch was taken out again because the model collapsed; absent if none was
result.json     how its editing ended; absent until then
notes.json      what is not as it was when it went on, such as the number of threads; absent if nothing was
after/          what the edited model says, part by part; one that fails leaves the others
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from errata.benchmark.answers import answer_path, before_path, note_before, read_answer
from errata.benchmark.cell_spec import CellResult, CellSpec, damaged, read_json, read_spec, result_of
from errata.benchmark.checks import Check, CollapseError
from errata.benchmark.grid import Measures, check_trusted
from errata.benchmark.material import Material, pin, read_material
from errata.benchmark.measurements import ALWAYS, PERPLEXITY, Inquiry, Part, State, parts_of
from errata.benchmark.sequence import edit_batches
from errata.editing.batch import BatchRecord
from errata.editors.locate_then_edit import Editor
from errata.errors import ErrataError, Fault, FaultsError, NonFiniteError
from errata.models.language_model import LanguageModel
from errata.patches.patch import dtype_name
from errata.runs.loading import load_model
from errata.runs.resume import editor_of
from errata.runs.run import RunDirectory, create_run, is_run, open_run, sound_json
from errata.statistics.corpus import open_corpus
from errata.utils.files import write_text
from errata.utils.locks import in_turn
from errata.utils.progress import Report

# ----------------------------------------------------------------------------------------------------
# What a reader of a cell's results should know of how it was worked on, such as that it went on elsewhere.


_NAME = "notes.json"


def add_notes(cell: Path, notes: Sequence[str]) -> None:
    """Keep them beside the cell's result, each once.

    Raises:
        InputError: if the file is damaged.
    """
    known = notes_of(cell)
    if new := [note for note in dict.fromkeys(notes) if note not in known]:
        write_text(cell / _NAME, json.dumps([*known, *new], ensure_ascii=False) + "\n")


def notes_of(cell: Path) -> tuple[str, ...]:
    """Those that were kept; raises InputError if the file is damaged."""
    path = cell / _NAME
    if not path.is_file():
        return ()
    notes = read_json(path)
    if not isinstance(notes, list):
        raise damaged(path, TypeError("it holds no list"))
    return tuple(map(str, notes))


# ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cell:
    """A cell that is being worked on."""

    directory: Path
    spec: CellSpec
    material: Material
    model: LanguageModel
    run: RunDirectory
    report: Report

    def before(self, part: Part) -> Path:
        """Where the unedited model's answer is kept: it depends on neither method nor recipe."""
        return before_path(self.directory.parent.parent, self.run.manifest.fingerprint, part, self.spec, self.material)

    def work(self) -> None:
        """Do what is left.

        Raises:
            ErrataError: if it failed. One further measurement that fails keeps none of the others from being made.
        """
        failed: dict[str, ErrataError] = {}
        with self.run.locked():
            editor, notes = editor_of(self.model, self.run, report=self.report)
            add_notes(self.directory, notes)
            for note in (*notes, *self.run.begin_batch_over()):
                self.run.log(note)
            for part in ALWAYS:
                self._ask_before(part, editor)
            if result_of(self.directory) is None:
                result = self._result(editor, self._edit(editor))
                write_text(self.directory / "result.json", json.dumps(asdict(result)) + "\n")
            for part in ALWAYS:
                self._ask_after(part, editor)
            for part in parts_of(self.spec.measures.parts)[len(ALWAYS) :]:
                try:
                    self._ask_before(part, editor)
                    self._ask_after(part, editor)
                except ErrataError as error:
                    self.run.log(f"measuring {part.name} failed: {error.what}")
                    failed[part.name] = error
            self.run.log("done")
        if failed:
            raise FaultsError(
                "what is measured of it",
                [Fault(f"measurement {name!r}", error.what, error.remedy) for name, error in failed.items()],
            )

    def _result(self, editor: Editor, collapse: CollapseError | None) -> CellResult:
        seconds = sum(record.seconds for record in editor.records)
        for entry in self.run.ledger.of("batch"):
            file = self.run.batch_path(entry.about["index"]).with_suffix(".json")
            seconds += float(sound_json(file, entry.about["said"])["seconds"])
        edits = sum(len(record.facts) for record in editor.records)
        at, ratio = (None, None) if collapse is None else (collapse.batch, collapse.ratio)
        return CellResult(seconds, edits, at, ratio)

    def _ask_before(self, part: Part, editor: Editor) -> None:
        path = self.before(part)
        # Of cells that are worked on at the same time one asks.
        with in_turn(path.with_suffix(".lock"), "the unedited model's answers"):
            if not path.exists():  # weights are computed anew for it
                with editor.model.edits.without(editor.patch().terms):
                    self._ask("before", part, path, editor)
        note_before(self.directory, path)

    def _ask_after(self, part: Part, editor: Editor) -> None:
        self._ask("after", part, answer_path(self.directory / "after", part, self.spec.measures), editor)

    def _ask(self, state: State, part: Part, path: Path, editor: Editor) -> None:
        """A part that has not been kept yet."""
        if path.exists():
            return
        before = None if state == "before" else read_answer(self.before(part)).kept

        def report(what: str, done: int, total: int) -> None:
            self.report(f"{state}: {part.name}", done, total)

        @contextmanager
        def unedited() -> Iterator[None]:
            with self.model.edits.without(editor.patch().terms):
                yield

        options = self.spec.measures.options.get(part.name, {})
        inquiry = Inquiry(self.model, self.material, options, self.spec.seed, before, unedited, report, path)
        started = time.perf_counter()
        answer = part.ask(inquiry)
        answer = replace(answer, seconds=time.perf_counter() - started)
        write_text(path, json.dumps(answer.to_record(), ensure_ascii=False, allow_nan=False) + "\n")

    def _edit(self, editor: Editor) -> CollapseError | None:
        """The batches that are left; the reason if the run ended before its last one."""
        path = self.directory / "collapse.json"
        if path.is_file():
            try:
                return CollapseError(**read_json(path))
            except TypeError as error:
                raise damaged(path, error) from error
        check = Check(self.spec, self.material, self.model, self.run.batches, self.before(PERPLEXITY))

        def say(record: BatchRecord) -> Any:
            return check.behind(record, editor)

        try:
            edit_batches(editor, self.run, say, report=self.report, go_on="errata bench --retry")
        except CollapseError as error:
            collapse = error
        except ErrataError as error:
            if not isinstance(error.__cause__, NonFiniteError):
                raise
            collapse = CollapseError(self.run.batches_done + 1, None)  # no number in the model, or in the edit itself
        else:
            return None
        # Kept before anything is asked: whoever goes on must not try the batch again, which could come out otherwise.
        write_text(path, json.dumps({"batch": collapse.batch, "ratio": collapse.ratio}) + "\n")
        self.run.log(collapse.what)
        return collapse


def open_cell(directory: Path, report: Report, *, trust_remote_code: bool = False) -> Cell:
    """Load what a cell needs; its run is begun if it is new.

    Raises:
        InputError: if the model, its recipe's text or the material is not what it was, for this cell or for others; if
            the model needs code that may not run.
    """
    spec = read_spec(directory)
    grid = directory.parent.parent / "grid.json"
    try:
        measures = Measures.model_validate(read_json(grid)["grid"]["measures"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(grid, error) from error
    spec = spec.model_copy(update={"measures": measures})  # they may grow
    material = read_material(directory.parent.parent / "material" / spec.material)
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
            facts=material.facts,
            corpus=corpus,
            seed=spec.seed,
            examination=None,
        )
    return Cell(directory, spec, material, model, run, report)


def work_on(directory: Path, report: Report, *, trust_remote_code: bool = False) -> None:
    """Do what is left of a cell.

    Raises:
        ErrataError: if it failed; what it has done is kept.
    """
    open_cell(directory, report, trust_remote_code=trust_remote_code).work()
