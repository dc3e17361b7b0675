"""One cell of a grid: one model, one data set, one method, one seed; edited, checked on the way, asked at the end.

A cell is a directory, and a process of its own works in it: ``python -m errata.benchmark.cell DIRECTORY``. Whatever
stops it, the same command goes on from the last whole batch, or from the last part of a measurement.

cell.json       what it is
run/            its batches, as ``errata edit --run`` keeps them, with what was asked behind each
before.txt      where what the unedited model said is kept; cells with the same model and material share it
after/          what the edited model says, part by part
result.json     how it ended; absent until then
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from errata.benchmark.grid import DataEntry, Measures, ModelEntry
from errata.benchmark.material import Material, read_material
from errata.benchmark.measurements import parts_of
from errata.benchmark.parts import Part, Question, State
from errata.benchmark.recorded import RunStoppedError, edit_batches
from errata.edit import BatchRecord, Editor
from errata.evaluation.perplexity import Perplexity, perplexity
from errata.evaluation.recall import evaluate_facts
from errata.evaluation.records import Metric, Record
from errata.facts import Fact
from errata.loading import load_model
from errata.models.language_model import LanguageModel
from errata.output import write_text
from errata.patch import dtype_name
from errata.progress import Report
from errata.recipe import Recipe
from errata.restore import editor_of
from errata.run_directory import RunDirectory, create_run, is_run, open_run
from errata.statistics.corpus import open_corpus


class CellSpec(BaseModel):
    """What a cell is; never changes.

    Attributes:
        label: the method with the values of varied fields, as tables call it.
        material: the file of facts and questions, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["errata-cell-1"] = "errata-cell-1"
    model: ModelEntry
    data: DataEntry
    label: str
    recipe: Recipe
    seed: int
    material: str
    eval_every: int
    sample: int
    collapse: float | None
    measures: Measures

    @property
    def key(self) -> str:
        """A name of its own, the same for the same edits; what is measured of them may grow later."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"measures"}).encode()).hexdigest()[:10]
        words = f"{self.model.name.rstrip('/').rsplit('/', 1)[-1]}-{self.data.name}-{self.recipe.method}-{self.seed}"
        return "".join(sign if sign.isalnum() or sign in "+-_." else "-" for sign in words)[:80] + f"-{digest}"


@dataclass(frozen=True, slots=True)
class CellResult:
    """How a cell ended.

    Attributes:
        seconds: wall time of its last sitting.
        collapsed_at: the batch, from 1, behind which perplexity was over the limit; it was taken out again.
        ratio: the perplexity ratio there.
        edits: facts that are in the model at the end.
    """

    seconds: float
    edits: int
    collapsed_at: int | None
    ratio: float | None


class CollapseError(RunStoppedError):
    """Perplexity went over the limit: the batch is taken out, and the run ends before it."""

    def __init__(self, batch: int, ratio: float) -> None:
        super().__init__(f"perplexity is {ratio:.3g} times the unedited model's after batch {batch}")
        self.batch, self.ratio = batch, ratio


@dataclass(slots=True)
class Cell:
    """A cell that is being worked on."""

    directory: Path
    spec: CellSpec
    material: Material
    model: LanguageModel
    run: RunDirectory
    report: Report

    @property
    def shared(self) -> Path:
        """Where the unedited model's answers are: they depend on neither method nor recipe."""
        spec = self.spec
        words = [self.run.manifest.fingerprint, spec.material, str(spec.seed)]
        digest = hashlib.sha256("|".join(words).encode()).hexdigest()[:16]
        return self.directory.parent.parent / "before" / digest

    def work(self) -> CellResult:
        started = time.perf_counter()
        collapse: CollapseError | None = None
        earlier = _result_of(self.directory)
        with self.run.locked():
            editor, notes = editor_of(self.model, self.run, report=self.report)
            notes += self.run.begin_batch_over()
            for note in notes:
                self.run.log(note)
            with editor.model.edits.without(editor.patch().terms):
                self._ask("before", self.shared, editor)
            if earlier is None:
                collapse = self._edit(editor)
            self._ask("after", self.directory / "after", editor)
            self.run.log("done")
        write_text(self.directory / "before.txt", self.shared.name + "\n")
        edits = sum(len(record.facts) for record in editor.records)
        if earlier is not None:  # only something more was measured
            return earlier
        at, ratio = (None, None) if collapse is None else (collapse.batch, collapse.ratio)
        return CellResult(time.perf_counter() - started, edits, at, ratio)

    def _ask(self, state: State, folder: Path, editor: Editor) -> None:
        """Every part that has not been kept yet."""
        for part in parts_of(self.spec.measures.parts):
            path = answer_path(folder, part, self.spec.measures)
            if path.exists():
                continue
            before = None if state == "before" else _kept(answer_path(self.shared, part, self.spec.measures))

            def report(what: str, done: int, total: int, part: Part = part) -> None:
                self.report(f"{state}: {part.name}", done, total)

            @contextmanager
            def unedited() -> Iterator[None]:
                with self.model.edits.without(editor.patch().terms):
                    yield

            options = self.spec.measures.options.get(part.name, {})
            question = Question(self.model, self.material, options, self.spec.seed, before, unedited, report)
            answer = part.ask(question)
            write_text(path, json.dumps(answer.to_record(), ensure_ascii=False, allow_nan=False) + "\n")

    def _edit(self, editor: Editor) -> CollapseError | None:
        """The batches that are left; the reason if the run ended before its last one."""
        check = Check(self)

        def say(record: BatchRecord) -> Any:
            return check.behind(record, editor)

        try:
            edit_batches(editor, self.run, say, report=self.report)
        except CollapseError as collapse:
            self.run.log(collapse.what)
            return collapse
        return None


@dataclass(frozen=True, slots=True)
class Check:
    """What is asked behind each batch, and, every few batches, of a sample of all facts so far."""

    cell: Cell

    def behind(self, record: BatchRecord, editor: Editor) -> dict[str, Any]:
        """As JSON: answers right after the batch, the perplexity, the norm of the change, and a check if it is due.

        Raises:
            CollapseError: if perplexity is over the limit.
        """
        spec, model, material = self.cell.spec, self.cell.model, self.cell.material
        number = record.index + 1
        prose, ratio = self._ratio(model)
        if spec.collapse is not None and ratio is not None and ratio > spec.collapse:
            raise CollapseError(number, ratio)
        said: dict[str, Any] = {
            "records": [asdict(entry) for entry in evaluate_facts(model, record.facts, tokens=True)],
            "perplexity": None if prose is None else asdict(prose),
            "weight_norm_ratio": weight_norm_ratio(editor),
            "check": None,
        }
        if spec.eval_every and number % spec.eval_every == 0 and number < self.cell.run.batches:
            edited = number * spec.recipe.batch_size
            facts = self._sample(material.facts.facts, edited)
            untouched = material.untouched[: spec.sample]
            found = evaluate_facts(model, facts, untouched=untouched, tokens=True)
            size = spec.recipe.batch_size
            found += _efficacy_only(model, material.facts.facts[:size], "first")
            found += _efficacy_only(model, record.facts, "last")
            said["check"] = [asdict(entry) for entry in found]
        return said

    def _sample(self, facts: tuple[Fact, ...], edited: int) -> list[Fact]:
        """The same order of all facts at every check, of which those that have been edited count."""
        order = random.Random(f"check {self.cell.spec.seed}").sample(range(len(facts)), len(facts))
        chosen = [index for index in order if index < edited][: self.cell.spec.sample]
        return [facts[index] for index in sorted(chosen)]

    def _ratio(self, model: LanguageModel) -> tuple[Perplexity | None, float | None]:
        prose = self.cell.material.prose
        if not prose:
            return None, None
        kept = _kept(self.cell.shared / "perplexity.json")["perplexity"]
        now = perplexity(model, prose)
        return now, now.value / Perplexity(tuple(kept["log_likelihoods"]), tuple(kept["counts"])).value


def weight_norm_ratio(editor: Editor) -> float:
    """‖W − W₀‖ / ‖W₀‖ (Frobenius) over all layers that are written, as one vector."""
    terms = editor.patch().terms
    change = total = 0.0
    for layer in dict.fromkeys(term.layer for term in terms):
        before = editor.model.edits.weight_without(layer, terms).double()
        change += float((editor.model.weight(layer).double() - before).square().sum())
        total += float(before.square().sum())
    return (change / total) ** 0.5 if total else 0.0


def _efficacy_only(model: LanguageModel, facts: tuple[Fact, ...], which: Literal["first", "last"]) -> list[Record]:
    bare = [Fact(fact.id, fact.subject, fact.prompt, fact.target) for fact in facts]
    name = Metric.EFFICACY_ACCURACY_FIRST if which == "first" else Metric.EFFICACY_ACCURACY_LAST
    return [replace(record, metric=name) for record in evaluate_facts(model, bare)]


def answer_path(folder: Path, part: Part, measures: Measures) -> Path:
    """Where a part's answer is kept; with other options it is another answer."""
    options = measures.options.get(part.name)
    if not options:
        return folder / f"{part.name}.json"
    text = json.dumps(options, sort_keys=True, default=str)
    return folder / f"{part.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def is_done(directory: Path, measures: Measures) -> bool:
    """Whether a cell has been edited, and asked all that is measured."""
    answers = [answer_path(directory / "after", part, measures) for part in parts_of(measures.parts)]
    return all(path.is_file() for path in (directory / "result.json", *answers))


def _kept(path: Path) -> Mapping[str, Any]:
    kept: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["kept"]
    return kept


def _result_of(directory: Path) -> CellResult | None:
    path = directory / "result.json"
    return CellResult(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def open_cell(directory: Path, report: Report) -> Cell:
    """Load what a cell needs; its run is begun if it is new.

    Raises:
        InputError: if the model, its recipe's text or the material is not what it was.
    """
    spec = CellSpec.model_validate_json((directory / "cell.json").read_text(encoding="utf-8"))
    material = read_material(directory.parent.parent / "material" / spec.material)
    entry = spec.model
    dtype = None if entry.dtype is None else getattr(torch, entry.dtype)
    device = None if entry.device is None else torch.device(entry.device)
    report("loading the model", 0, 1)
    model = load_model(entry.name, device=device, dtype=dtype, trust_remote_code=entry.trust_remote_code)
    if not is_run(directory / "run"):
        corpus = open_corpus(spec.recipe.statistics.corpus).digest if spec.recipe.needs_statistics else ""
        create_run(
            directory / "run",
            model=entry.name,
            fingerprint=model.fingerprint(),
            dtype=dtype_name(model.dtype),
            lab=entry.name == "lab",
            recipe=spec.recipe,
            facts=material.facts,
            corpus=corpus,
            seed=spec.seed,
            examination=None,
        )
    return Cell(directory, spec, material, model, open_run(directory / "run"), report)


def work_on(directory: Path, report: Report) -> CellResult:
    """Do what is left of a cell, and say how it ended.

    Raises:
        ErrataError: if it failed; what it has done is kept.
    """
    result = open_cell(directory, report).work()
    write_text(directory / "result.json", json.dumps(asdict(result)) + "\n")
    return result
