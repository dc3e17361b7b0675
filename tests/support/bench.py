"""What tests of benchmarks share: a tiny model on disk, and campaigns whose cells are worked on in this process."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from errata.benchmark.campaign import Campaign, begin
from errata.benchmark.cell import open_cell
from errata.benchmark.cell_files import CellSpec
from errata.benchmark.data import BenchmarkData, data_name, write_data
from errata.benchmark.grid import DataEntry, Grid, ModelEntry
from errata.benchmark.workers import work
from errata.errors import ErrataError
from errata.facts.fact import Fact, FactSet, Question
from errata.utils.files import write_text
from errata.utils.progress import Report, silent

from tests.support.editing import FACTS, tiny_language_model, tiny_recipe, write_corpus

ASKED = tuple(
    replace(
        fact,
        truth="Paris",
        paraphrases=(f"Everybody knows of {fact.subject} that it is in",),
        neighbours=(Question(f"Not {fact.subject} but the crowd is in", "Paris"),),
        unrelated=(Question(f"The rain near {fact.subject} is", "in London"),),
    )
    for fact in FACTS
)
UNTOUCHED = (("crowd", Question("The crowd runs through the", "river")), ("rain", Question("The rain is", "Lisbon")))
PROSE = ("The river runs through the city.", "I think that the piano is what she plays.", "The rain is in London.")


@dataclass(slots=True)
class Inline:
    """Works on cells in this process.

    Attributes:
        before_cell: called with a cell before it is worked on, and on each report of it.
    """

    before_cell: Callable[[Path], None] = lambda cell: None
    on_report: Callable[[str, int], None] = lambda what, done: None
    worked: list[str] = field(default_factory=list)

    def run(self, cell: Path, report: Report) -> int:
        self.worked.append(cell.name)

        def listen(what: str, done: int, total: int) -> None:
            self.on_report(what, done)
            report(what, done, total)

        try:
            self.before_cell(cell)
            open_cell(cell, listen).work()
        except ErrataError as error:
            write_text(cell / "failure.json", json.dumps({"what": str(error)}))
            return 1
        return 0

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TinyBench:
    """A tiny model in a folder, and grids on it."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, family: str = "gpt2") -> TinyBench:
        model = tiny_language_model(family)
        model.model.save_pretrained(folder / "model")
        model.tokenizer.save_pretrained(folder / "model")
        write_corpus(folder / "corpus.txt")
        return cls(folder)

    def grid(self, methods: Sequence[str], **changes: Any) -> Grid:
        values: dict[str, Any] = {"batch_size": 2, "edits": 6, "eval_every": 1, "sample": 3, "seeds": (0, 1)} | changes
        return Grid(
            models=(ModelEntry(name=str(self.folder / "model"), device="cpu"),),
            data=(DataEntry(name="jsonl", path="facts.jsonl"),),
            methods=tuple(methods),
            **values,
        )

    def material(self, seed: int, edits: int = 6, facts: Sequence[Fact] = ASKED) -> BenchmarkData:
        chosen = random.Random(f"facts {seed}").sample(list(facts), edits)
        return BenchmarkData(FactSet(tuple(chosen), "tiny facts"), UNTOUCHED, PROSE, ("made for this test",))

    def specs(self, grid: Grid, **recipe: Any) -> list[CellSpec]:
        found = []
        for seed in grid.seeds:
            for method in grid.methods:
                numbers = tiny_recipe(self.folder / "corpus.txt", method, target={"steps": 6}, **recipe)
                contexts = numbers.contexts.model_copy(update={"seed": seed})
                found.append(
                    CellSpec(
                        model=grid.models[0],
                        data=grid.data[0],
                        label=method,
                        recipe=numbers.model_copy(update={"batch_size": grid.batch_size, "contexts": contexts}),
                        seed=seed,
                        material=data_name(self.material(seed, grid.edits)),
                        eval_every=grid.eval_every,
                        sample=grid.sample,
                        collapse=grid.collapse,
                        measures=grid.measures,
                    )
                )
        return found

    def begin(self, out: Path, grid: Grid, **recipe: Any) -> Campaign:
        def materials(folder: Path) -> None:
            for seed in grid.seeds:
                write_data(self.material(seed, grid.edits), folder)

        command = f"errata bench (a test) {' '.join(grid.measures.parts)}".strip()
        campaign = begin(out, grid, self.specs(grid, **recipe), [], materials, command)
        with campaign.locked():
            return campaign.measuring(grid.measures, (), command)


def finish(campaign: Campaign, runner: Inline | None = None, *, retry: bool = False) -> list[str]:
    """Work on all cells that are left; returns the lines that report each."""
    lines: list[str] = []
    work(campaign, campaign.pending(retry=retry), runner or Inline(), jobs=1, report=silent, on_end=lines.append)
    return lines
