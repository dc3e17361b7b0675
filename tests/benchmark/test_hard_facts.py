"""Mining hard facts: one pass over many edited models equals editing each, and the file is read as facts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.benchmark.hard_facts import (
    Limits,
    Source,
    annotation,
    edits_to_collapse,
    grown_candidates,
    header_of,
    mine,
    share_interval,
    write_hard_facts,
)
from errata.benchmark.single_edits import Outcome, Prediction, SingleEdits, TextLosses, losses_of, text_rows
from errata.cli.main import run
from errata.editing.solvers.rank_one import RankOne, RankOneLayer
from errata.editors.locate_then_edit import LocateThenEdit
from errata.errors import InputError
from errata.evaluation.perplexity import perplexity
from errata.facts.fact import Fact
from errata.facts.files import read_facts
from errata.models.language_model import LanguageModel

from tests.support.editing import (
    FACTS,
    assert_same_bits,
    corpus_texts,
    parameter_bits,
    tiny_language_model,
    tiny_recipe,
    write_corpus,
)

PROSE = corpus_texts()[:5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hard")
    write_corpus(folder / "corpus.txt")
    return folder


def single_edits(folder: Path, model: LanguageModel, method: str = "rome", **changes: object) -> SingleEdits:
    changes = {"target": {"steps": 3}, **changes}
    recipe = tiny_recipe(folder / "corpus.txt", method, **changes)
    return SingleEdits(model, recipe, PROSE, cache=folder / "cache")


def edited_one_by_one(edits: SingleEdits, facts: Sequence[Fact]) -> list[tuple[float, float]]:
    """Both readings of the perplexity after each edit, by the contract: apply, perplexity, remove."""
    found = []
    for fact in facts:
        editor = LocateThenEdit(edits.model, edits.recipe, prepared=edits.prepared)
        edit = editor.apply([fact])
        whole = perplexity(edits.model, PROSE)
        each = [perplexity(edits.model, [text]).value for text in PROSE]
        found.append((sum(each) / len(each), whole.value))
        editor.remove(edit)
    return found


CASES = [
    ("gpt2", "rome"),
    ("llama", "rome+blue"),
    ("gemma2", "memit"),
    ("gpt2", "nse"),  # several changes of one layer
    ("gpt2", "rect"),
    ("gpt2", "prune"),
]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_edits_evaluated_together_equal_those_written_one_by_one(folder: Path, family: str, method: str) -> None:
    dtype = torch.float32 if family == "gemma2" else torch.float64
    tolerance = 1e-4 if dtype is torch.float32 else 1e-8
    model = tiny_language_model(family, dtype=dtype)
    before = parameter_bits(model)
    edits = single_edits(folder, model, method)
    assert edits.are_evaluated_together == (method not in ("rect", "prune"))
    facts = FACTS[:2]
    (found,) = edits.try_out(facts, first=2, needs_all=lambda losses: True)
    assert_same_bits(parameter_bits(model), before)
    expected = edited_one_by_one(edits, facts)
    unedited = edits.losses.mean_of_exp
    for outcome, pair in zip(found, expected, strict=True):
        assert outcome.losses is not None
        assert (outcome.losses.mean_of_exp, outcome.losses.exp_of_mean) == pytest.approx(pair, rel=tolerance)
        assert outcome.losses.mean_of_exp != pytest.approx(unedited, rel=tolerance)
        assert outcome.change is not None
        assert outcome.change > 0
    assert perplexity(model, PROSE).value == pytest.approx(edits.losses.exp_of_mean)
    alone = [next(edits.try_out([fact], first=2, needs_all=lambda losses: False))[0] for fact in facts[:2]]
    for one, together in zip(alone, found, strict=False):
        assert one.losses is not None
        assert together.losses is not None
        assert one.losses.means == pytest.approx(together.losses.means[:2], rel=tolerance)


def test_half_precision_is_written_since_rounding_counts(folder: Path) -> None:
    model = tiny_language_model("gpt2", dtype=torch.bfloat16)
    edits = single_edits(folder, model)
    assert not edits.are_evaluated_together
    (found,) = edits.try_out(FACTS[:1], first=5, needs_all=lambda losses: True)
    assert found[0].losses is not None
    assert found[0].losses.exp_of_mean == pytest.approx(edited_one_by_one(edits, FACTS[:1])[0][1], rel=1e-3)


def test_keys_predict_the_change_and_give_the_order(folder: Path) -> None:
    edits = single_edits(folder, tiny_language_model("gpt2"))
    predictions = edits.predict(FACTS)
    (layer,) = {step.layer for step in edits.recipe.steps}
    moment = edits.prepared.solvers[layer]
    assert isinstance(moment, RankOneLayer)
    assert moment._factor is not None
    inverse = torch.linalg.inv(moment._factor @ moment._factor.T)
    for fact, found in zip(FACTS, predictions, strict=True):
        averaged, bare = (each[:, 0] for each in _keys(edits, fact, layer))
        product = abs(float(bare @ inverse @ averaged))
        lengths = float(bare @ inverse @ bare) ** 0.5 * float(averaged @ inverse @ averaged) ** 0.5
        assert found.agreement == pytest.approx(product / lengths)
        assert found.amplification == pytest.approx(float((inverse @ averaged).norm() * averaged.norm()) / product)
    mined = mine(edits, FACTS, Limits(), budget=2, check=2)
    strengths = [finding.prediction.strength for finding in mined.findings]
    assert strengths == sorted(strengths, reverse=True)
    assert [finding.verdict == "unknown" for finding in mined.findings[:2]] == [False, False]
    assert mined.count("unknown") == len(FACTS) - 4
    assert sum(finding.at_random for finding in mined.findings[2:]) == 2
    assert mined.missed[1] == 2


def _keys(edits: SingleEdits, fact: Fact, layer: int) -> tuple[Tensor, Tensor]:
    from errata.editing.batch import read_keys

    return read_keys(edits._context, edits._texts([fact]), [layer])[layer]


def test_other_methods_are_ordered_by_the_searched_residual_which_is_used_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = single_edits(folder, tiny_language_model("gpt2"), "memit")
    assert not edits.from_keys
    predictions = edits.predict(FACTS[:2])
    assert all(found.amplification is None and (found.residual or 0) > 0 for found in predictions)
    expected = edited_one_by_one(edits, FACTS[:2])
    monkeypatch.setattr("errata.editing.batch.layer_targets", None)
    monkeypatch.setattr("errata.benchmark.single_edits.layer_targets", None)
    (found,) = edits.try_out(FACTS[:2], first=5, needs_all=lambda losses: False)
    assert [each.losses and each.losses.exp_of_mean for each in found] == [
        pytest.approx(pair[1], rel=2e-4) for pair in expected
    ]


def test_the_gap_of_parallel_and_orthogonal_keys() -> None:
    layer = RankOne(denominator="bare").prepare(torch.eye(3, dtype=torch.float64) * 2)
    keys = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    bare = torch.tensor([[-3.0, 0.0], [0.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    assert layer.agreement(keys, bare).tolist() == pytest.approx([1.0, 0.0])


class Scripted(SingleEdits):
    """Edits whose outcomes and predictions are given."""

    def __init__(self, before: TextLosses, outcomes: dict[str, TextLosses | str]) -> None:
        self.losses, self.outcomes = before, outcomes
        self.tried: list[tuple[str, int]] = []

    def predict(self, facts: Sequence[Fact]) -> list[Prediction]:
        return [Prediction(float(index)) for index in range(len(facts))]

    def try_out(self, facts, *, first, needs_all):  # type: ignore[no-untyped-def]
        for fact in facts:
            given = self.outcomes[fact.id]
            if isinstance(given, str):
                yield [Outcome(None, refusal=given)]
                continue
            part = given.first(first)
            losses = given if needs_all(part) else part
            self.tried.append((fact.id, len(losses)))
            yield [Outcome(losses, 0.1)]


def losses(*perplexities: float) -> TextLosses:
    return TextLosses(tuple(map(math.log, perplexities)), (10,) * len(perplexities))


def test_verdicts_and_rungs() -> None:
    before = losses(20, 20, 40, 40)
    edits = Scripted(
        before,
        {
            "tongue": losses(21, 21, 4000, 4000),  # the first texts do not show it
            "tower": losses(30, 30, 3000, 3000),
            "plays": losses(900, 900, 40, 40),
            "capital": losses(35, 35, 60, 60),
            "work": TextLosses((math.nan,) * 4, (10,) * 4),
            "bell": "KEY_WITHOUT_DIRECTION",
        },
    )
    mined = mine(edits, FACTS, Limits(ratio=10, absolute=1000, first=2))
    found = {finding.fact.id: finding for finding in mined.findings}
    assert [finding.fact.id for finding in mined.findings] == [fact.id for fact in reversed(FACTS)]
    verdicts = {name: (finding.verdict, finding.decided_by) for name, finding in found.items()}
    assert verdicts == {
        "tongue": ("fine", "first_texts"),
        "tower": ("hard", "all_texts"),
        "plays": ("hard", "first_texts"),
        "capital": ("borderline", "all_texts"),
        "work": ("hard", "not_finite"),
        "bell": ("hard", "refused"),
    }
    assert dict(edits.tried) == {"tongue": 2, "tower": 4, "plays": 2, "capital": 4, "work": 2}
    assert [finding.fact.id for finding in mined.hard] == ["bell", "work", "tower", "plays"]
    assert found["tower"].ratio == pytest.approx(1515 / 30)
    assert found["plays"].ratio == pytest.approx(45)
    with pytest.raises(InputError, match="perplexity"):
        mine(edits, FACTS, Limits(absolute=30))


def test_the_absolute_limit_suffices() -> None:
    edits = Scripted(losses(200, 200), {"tongue": losses(1100, 1100)})
    (finding,) = mine(edits, FACTS[:1], Limits(ratio=10, absolute=1000)).findings
    assert finding.verdict == "hard"
    assert finding.ratio == pytest.approx(5.5)


def test_readings_of_the_perplexity() -> None:
    found = TextLosses((math.log(10), math.log(1000)), (30, 10))
    assert found.mean_of_exp == pytest.approx(505)
    assert found.exp_of_mean == pytest.approx(10**1.5)
    assert found.median == pytest.approx(505)
    assert TextLosses((800.0,), (1,)).mean_of_exp == math.inf


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # without and with BOS
def test_texts_without_bos_predict_one_token_less(family: str) -> None:
    model = tiny_language_model(family)
    with_bos, without = text_rows(model, PROSE), text_rows(model, PROSE, bos=False)
    has_bos = model.tokenizer(PROSE[0])["input_ids"][0] == model.tokenizer.bos_token_id
    assert has_bos == (family == "llama")
    for one, other in zip(with_bos, without, strict=True):
        assert other.targets == (one.targets[1:] if has_bos else one.targets)
    assert losses_of(model, with_bos).exp_of_mean == pytest.approx(perplexity(model, PROSE).value, rel=1e-5)
    with pytest.raises(InputError, match="predict"):
        text_rows(model, ["a" if family == "gpt2" else ""], bos=False)


def test_the_file_is_read_as_facts(folder: Path) -> None:
    model = tiny_language_model("gpt2")
    edits = single_edits(folder, model)
    mined = mine(edits, FACTS, Limits(ratio=1.0001), seed=4)
    assert mined.hard
    source = Source("tiny", edits.recipe, PROSE, Limits(ratio=1.0001), 4)
    path = folder / "hard.jsonl"
    write_hard_facts(
        path,
        header_of(source, edits, mined),
        [(finding.fact, annotation(finding, source, edits)) for finding in mined.hard],
    )
    assert list(read_facts(path)) == [finding.fact for finding in mined.hard]
    header, *lines = map(json.loads, path.read_text("utf-8").splitlines())
    assert header["header"]["hard"] == len(lines) == len(mined.hard)
    ratios = [line["hard"]["ratio"] for line in lines]
    assert ratios == sorted(ratios, reverse=True)
    described = {"fingerprint", "recipe_digest", "texts_digest", "seed", "decided_by", "change", "amplification", "gap"}
    for line in lines:
        assert described <= line["hard"].keys()
        assert line["hard"]["subject_first"] == line["prompt"].startswith("{}")
        assert line["hard"]["subject_tokens"] >= 1
        assert line["hard"]["after"]["mean_of_exp"] / line["hard"]["before"]["mean_of_exp"] == pytest.approx(
            line["hard"]["ratio"]
        )


def test_grown_facts_have_the_pattern_of_hard_ones() -> None:
    tokenizer = tiny_language_model("gpt2").tokenizer
    hard = [replace(FACTS[1], relation="place"), FACTS[0]]
    facts = [*hard, replace(FACTS[3], relation="place", old="Paris")]
    grown = grown_candidates(tokenizer, hard, facts, 50)
    assert grown
    assert {fact.prompt for fact in grown} == {"{} stands in"}
    assert {fact.target for fact in grown} <= {"Rome", "Lisbon", "Paris"}
    for fact in grown:
        assert len(tokenizer(fact.subject)["input_ids"]) == 1
        assert fact.subject.istitle()
    assert grown == grown_candidates(tokenizer, hard, facts, 50)
    assert grown_candidates(tokenizer, FACTS[:1], facts, 50) == []


def test_edits_to_collapse(folder: Path) -> None:
    model = tiny_language_model("gpt2")
    before = parameter_bits(model)
    edits = single_edits(folder, model, "memit", target={"steps": 2})
    never = edits_to_collapse(edits, FACTS[:2], Limits(ratio=1e9, absolute=1e9))
    assert never.edits == (None,) * 5
    assert never.median is None
    at_once = edits_to_collapse(edits, FACTS[:2], Limits(ratio=1e-9, absolute=1e9))
    assert at_once.edits == (1,) * 5
    assert at_once.range == (1, 1)
    assert_same_bits(parameter_bits(model), before)


def test_intervals_of_shares() -> None:
    low, high = share_interval(0, 100)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0.0370, abs=1e-4)
    assert share_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_mining_lab_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    out, record = tmp_path / "hard.jsonl", tmp_path / "all.json"
    call = ["data", "mine-hard", "--data", "lab", "--count", "6", "--budget", "1", "--check", "1", "--out", str(out)]
    assert run([*call, "--json", str(record), "--grow", "2"]) == 0
    found = json.loads(record.read_text("utf-8"))
    assert [each["verdict"] for each in found["findings"]].count("unknown") == 4
    assert found["missed"] == 0
    shown = capsys.readouterr()
    assert "2 facts tried" in shown.out.replace("\n", " ")
    assert "grow" in shown.err
    assert run(call) == 2  # the file exists
    assert "exists" in capsys.readouterr().err
    assert run([*call[:-1], str(tmp_path / "hard.csv")]) == 2
    assert not (tmp_path / "hard.csv").exists()
