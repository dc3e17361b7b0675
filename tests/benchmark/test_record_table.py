"""The table with a row per prompt: what was asked for, and how many facts were in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from errata.benchmark.campaign import Campaign
from errata.benchmark.collect import FinishedCell, read_finished, records_file
from errata.benchmark.grid import Measures

from tests.support.bench import TinyBench, finish
from tests.support.editing import tiny_language_model

TEMPLATE = "{% for message in messages %}[{{ message.content | trim }}]{% endfor %}"


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    folder = tmp_path_factory.mktemp("bench")
    bench = TinyBench.of(folder)
    tokenizer = tiny_language_model("gpt2").tokenizer
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    assert AutoTokenizer.from_pretrained(folder / "model").chat_template == TEMPLATE
    measures = Measures(parts=("free",), options={"free": {"settings": {"new_tokens": 2}}})
    grid = bench.grid(["memit"], seeds=(0,), edits=2, measures=measures)
    campaign = bench.begin(folder / "out", grid)
    finish(campaign)
    return campaign


def lines_of(cell: FinishedCell, path: Path) -> list[Mapping[str, Any]]:
    with records_file(path) as write:
        write(cell)
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pylist()


def test_the_expected_answer_is_beside_each_free_answer(campaign: Campaign, tmp_path: Path) -> None:
    (directory,) = campaign.cells
    cell = read_finished(campaign, directory)
    targets = {fact.id: fact.target for fact in cell.data.facts}
    found = set()
    for line in lines_of(cell, tmp_path / "records.parquet"):
        name, _, context = line["metric"].partition(":")
        if name.startswith(("free_efficacy", "free_generalisation")):
            assert line["expected"] == targets[line["fact"]], line
            found.add(context)
    assert found == {"", "instruction", "chat"}


def test_the_edits_of_a_run_that_stopped_early_are_those_in_the_model(campaign: Campaign, tmp_path: Path) -> None:
    (directory,) = campaign.cells
    cell = read_finished(campaign, directory)
    stopped = replace(cell, result=replace(cell.result, edits=1, collapsed_at=2))
    for each, edits in ((cell, 2), (stopped, 1)):
        lines = lines_of(each, tmp_path / f"{edits}.parquet")
        assert {line["edits"] for line in lines if line["when"] == "after"} == {edits}
