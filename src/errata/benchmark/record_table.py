"""Every prompt of every cell as a row of one Parquet file, for whoever asks other questions than the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.benchmark.finished import Finished
from errata.benchmark.material import Material
from errata.evaluation.free_questions import FreeQuestion, expected_answer, free_questions
from errata.evaluation.records import Record, When
from errata.extras import require
from errata.facts import Question
from errata.facts_rules import QUESTION_LISTS
from errata.output import new_file


def check_table() -> None:
    """Raises MissingExtraError if the file cannot be written here."""
    require("a benchmark's table of records", "eval", "pyarrow")


@contextmanager
def records_file(path: Path) -> Iterator[Callable[[Finished], None]]:
    """One row per prompt, metric and moment, of each cell that what is given is called with; whole or not at all.

    Raises:
        MissingExtraError: without the extra ``eval``.
    """
    check_table()
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    text, number = arrow.string(), arrow.int64()
    schema = arrow.schema(
        [("cell", text), ("model", text), ("data", text), ("method", text), ("seed", number), ("when", text),
         ("edits", number), ("fact", text), ("metric", text), ("prompt", text), ("expected", text),
         ("value", arrow.float64()), ("said", text)]
    )  # fmt: skip
    with new_file(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def write(cell: Finished) -> None:
            columns: dict[str, list[Any]] = {name: [] for name in schema.names}
            expected = expected_answers(cell.material)
            freely = _by_fact(free_questions(cell.material.facts))
            spec = cell.spec
            common = (cell.directory.name, spec.model.name, spec.data.label, spec.label, spec.seed)
            for when, edits, record in _all_records(cell):
                answer = expected.get((record.fact, record.prompt))
                if record.metric.startswith("free_"):  # of a free question the prompt is all that the model read
                    answer = expected_answer(freely.get(record.fact, []), record.metric, record.prompt) or answer
                asked = (record.fact, str(record.metric), record.prompt, answer, record.value, record.said)
                for name, value in zip(schema.names, (*common, when, edits, *asked), strict=True):
                    columns[name].append(value)
            writer.write_table(arrow.table(columns, schema=schema))

        yield write


def _by_fact(asked: Sequence[FreeQuestion]) -> dict[str, list[FreeQuestion]]:
    found: dict[str, list[FreeQuestion]] = {}
    for entry in asked:
        found.setdefault(entry.fact, []).append(entry)
    return found


def _all_records(cell: Finished) -> Iterator[tuple[When, int, Record]]:
    total = int(cell.result["edits"])  # in the model at the end: fewer than were asked for where the run stopped early
    yield from (("before", 0, record) for record in cell.records("before"))
    for batch in cell.batches:
        yield from (("right_after", batch.edits, record) for record in batch.records)
        yield from (("during", batch.edits, record) for record in batch.check or ())
    yield from (("after", total, record) for record in cell.records("after"))


def expected_answers(material: Material) -> dict[tuple[str, str], str]:
    """(fact or cluster, prompt) -> the answer that is asked for; what a fact is edited to say counts first."""
    found: dict[tuple[str, str], str] = {}
    for fact in material.facts:
        found.setdefault((fact.id, fact.text), fact.target)
        for paraphrase in fact.paraphrases:
            found.setdefault((fact.id, paraphrase), fact.target)
        questions: list[Question] = [question for name in QUESTION_LISTS for question in getattr(fact, name)]
        for question in questions:
            found.setdefault((fact.id, question.prompt), question.answer)
    for cluster, question in material.untouched:
        found.setdefault((cluster, question.prompt), question.answer)
    return found
