"""Verdicts that were given stay, and an outage of the judge is reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from errata.benchmark.campaign import Campaign
from errata.benchmark.collect import collect
from errata.benchmark.grid import Measures
from errata.benchmark.measurements import CachedJudge
from errata.errors import ErrataError, InputError
from errata.evaluation.judge import Case, HttpJudge, JudgeSettings, Verdict
from errata.results.records import read_results

from tests.support.bench import TinyBench, finish
from tests.support.judge_server import JudgeServer, Step, judge_server

CASES = [Case(f"question {index}", ("a",), "b") for index in range(6)]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def kept(server: JudgeServer, path: Path) -> CachedJudge:
    settings = JudgeSettings(base_url=server.address, model="grader", workers=1, retries=0, give_up_after=2)
    return CachedJudge(HttpJudge(settings), path)


def test_an_outage_is_a_failure_and_what_was_judged_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    down = Step(status=503)
    with judge_server(Step(reply="CORRECT"), Step(reply="INCORRECT"), down, down) as server:
        with pytest.raises(ErrataError, match=r"stopped answering: HTTP 503; 4 of 6 answers have no verdict"):
            kept(server, path).judge(CASES)
        assert len(server.requests) == 4
        found = kept(server, path).judge([*CASES, CASES[1]])
        assert len(server.requests) == 8  # the four that had none
    assert found == [Verdict(True), Verdict(False), *[Verdict(True)] * 4, Verdict(False)]


def test_an_interrupt_loses_no_more_than_what_is_asked_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.benchmark.measurements._AT_ONCE", 2)
    path, original, calls = tmp_path / "verdicts.json", HttpJudge.judge, []

    def interrupted(judge: HttpJudge, cases: Sequence[Case]) -> list[Verdict]:
        calls.append(list(cases))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(judge, cases)

    monkeypatch.setattr(HttpJudge, "judge", interrupted)
    with judge_server() as server:
        with pytest.raises(KeyboardInterrupt):
            kept(server, path).judge(CASES)
        assert kept(server, path).judge(CASES) == [Verdict(True)] * 6
        assert len(server.requests) == 6
    assert calls == [CASES[:2], CASES[2:4], CASES[2:4], CASES[4:]]


def test_a_reply_that_is_no_verdict_is_none_and_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    with judge_server(Step(reply="perhaps"), Step(reply="CORRECT")) as server:
        first, second = kept(server, path).judge(CASES[:2])
        assert (first.correct, second) == (None, Verdict(True))
        assert kept(server, path).judge(CASES[:1]) == [Verdict(True)]
    path.write_text("[{}]", encoding="utf-8")
    with judge_server() as server, pytest.raises(InputError, match="cannot read"):
        kept(server, path).judge(CASES)


def test_a_cell_whose_judge_failed_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    with judge_server() as server:
        judge = {"base_url": server.address, "model": "grader", "workers": 1, "retries": 0, "give_up_after": 2}
        options = {"free": {"judge": judge, "settings": {"new_tokens": 4, "contexts": ["bare"]}}}
        bench = TinyBench.of(tmp_path)
        grid = bench.grid(["memit"], seeds=(0,), edits=2, measures=Measures(parts=("free",), options=options))
        campaign = bench.begin(tmp_path / "out", grid)
        server.steps = [Step(reply="CORRECT"), *[Step(status=503)] * 2]
        (line,) = finish(campaign)
        assert "measurement 'free'" in line
        assert "stopped answering: HTTP 503" in line
        assert judged(campaign) == set()
        finish(campaign, retry=True)
        assert judged(campaign) == {"before", "after"}
        questions = [json.loads(request["messages"][1]["content"])["question"] for request in server.requests]
        assert questions.count(questions[0]) == 2  # before and after editing: the verdict before the outage was kept
    assert campaign.pending() == []


def judged(campaign: Campaign) -> set[str]:
    rows = read_results(collect(campaign)[0]).rows
    return {row["when"] for row in rows if row["metric"] == "free_efficacy_judged"}
