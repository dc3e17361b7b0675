"""benchmarks/real_table.py on a tiny model: layers of its automatic set, what it keeps, and its table of safety."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from errata.errors import ErrataError, NonFiniteError
from errata.patches.patch import Patch

from benchmarks import real_table
from tests.support.editing import corpus_texts, tiny_language_model, write_corpus

NAMES = ("Danielle Darrieux", "Thomas Stieltjes", "Leonard Bernstein", "Kenji Watanabe")
Script = Callable[..., None]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs the script in this process on a tiny model `small` of four blocks; two facts, automatic recipes."""
    model = tiny_language_model("gpt2")
    model.model.save_pretrained(tmp_path / "small")
    model.tokenizer.save_pretrained(tmp_path / "small")
    write_corpus(tmp_path / "corpus.txt")
    facts = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": "{} lives in",
                "subject": name,
                "relation_id": "P1",
                "target_new": {"str": "Rome"},
                "target_true": {"str": "Paris"},
            },
            "paraphrase_prompts": [f"The city of {name} is"],
            "neighborhood_prompts": ["The crowd lives in"],
            "generation_prompts": [f"{name} is"],
            "attribute_prompts": [],
        }
        for number, name in enumerate(NAMES)
    ]
    known = [
        {
            "known_id": 1,
            "subject": "Big Ben",
            "attribute": "London",
            "template": "{} is in",
            "prediction": " London",
            "prompt": "Big Ben is in",
            "relation_id": "P1",
        }
    ]
    prose = [{"Corpus": "tiny", "Text": text} for text in corpus_texts()[:4]]
    for name, records in (("facts", facts), ("known", known), ("prose", prose)):
        (tmp_path / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    monkeypatch.setattr(real_table, "TOKENS", 600)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        files = ["--facts", "facts.json", "--known", "known.json", "--prose", "prose.json", "--corpus", "corpus.txt"]
        size = ["--count", "2", "--batch-size", "2", "--seeds", "0", "--device", "cpu", "--out", "out"]
        line = ["real_table.py", "--models", "small", "--sets", "automatic", *files, *size, *arguments]
        monkeypatch.setattr(sys, "argv", line)
        real_table.main()

    return run


def kept(method: str) -> dict[str, Any]:
    return json.loads(Path(f"out/runs/small--automatic--{method}--0.json").read_text(encoding="utf-8"))


def line_of(method: str, text: str) -> list[str]:
    """The cells of a method's line in the table of safety."""
    table = text[text.index("Is it safe?") :]
    found = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_automatic_set_writes_the_layers_given_or_those_by_depth(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script("--methods", "memit,rome,rome+blue", "--layers", "small=3,1,2", "--part", "0", "--jobs", "1")
    written = [kept(method)["recipe"]["layers"] for method in ("memit", "rome", "rome+blue")]
    assert written == [[1, 2, 3], [3], [1, 2, 3]]
    assert list(kept("memit")["weight_change"]) == ["1", "2", "3"]
    script("--methods", "emmet", "--part", "0")
    assert kept("emmet")["recipe"]["layers"] == [1]  # of four blocks, from an eighth to a quarter of the depth
    capsys.readouterr()
    script("--methods", "memit,rome,emmet", "--collect")
    shown = capsys.readouterr().out
    assert [line_of(method, shown)[1] for method in ("memit", "rome", "emmet")] == ["1,2,3", "3", "1"]


@pytest.mark.parametrize("arguments", [["--collect"], []])
def test_runs_with_other_layers_are_not_mixed(
    script: Script, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]
) -> None:
    script("--methods", "memit", "--layers", "small=0,1", "--part", "0")
    with pytest.raises(SystemExit):
        script("--methods", "memit,alphaedit", "--layers", "small=1,2", *arguments)
    assert "--out" in capsys.readouterr().err
    assert [path.name for path in Path("out/runs").iterdir()] == ["small--automatic--memit--0.json"]


@pytest.mark.parametrize("pair", ["other=1,2", "small=1,x", "small", "small=1 small=2"])
def test_layers_that_mean_nothing_are_refused(script: Script, capsys: pytest.CaptureFixture[str], pair: str) -> None:
    with pytest.raises(SystemExit):
        script("--methods", "memit", "--layers", *pair.split(), "--part", "0")
    assert pair.partition("=")[0] in capsys.readouterr().err.partition("error:")[2]
    assert not Path("out").exists()


def test_the_table_of_safety_says_what_the_runs_kept(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script("--methods", "memit", "--layers", "small=1,2", "--part", "0")
    piece = kept("memit")
    capsys.readouterr()
    script("--methods", "memit", "--collect")
    cells = line_of("memit", capsys.readouterr().out)
    ratio = math.exp(
        (sum(piece["before"]["perplexity"][0]) - sum(piece["after"]["perplexity"][0]))
        / sum(piece["after"]["perplexity"][1])
    )
    assert cells == ["memit", "1,2", f"{ratio:.2f}", f"{max(piece['weight_change'].values()):.3f}", "0", "no"]
    assert piece["weight_change"]["1"] > 0
    script("--methods", "memit", "--collect", "--alarm", str(ratio / 2))
    assert "seed 0" in line_of("memit", capsys.readouterr().out)[-1]


def test_runs_of_earlier_versions_are_still_read(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """They kept the change of all layers together, and not how many facts were left alone."""
    script("--methods", "memit", "--layers", "small=1,2", "--part", "0")
    piece = kept("memit")
    del piece["weight_change"], piece["left_alone"]
    Path("out/runs/small--automatic--memit--0.json").write_text(json.dumps(piece), encoding="utf-8")
    capsys.readouterr()
    script("--methods", "memit", "--collect")
    cells = line_of("memit", capsys.readouterr().out)
    assert cells[3].startswith(f"{piece['after']['weight_norm_ratio']:.3f}")
    assert cells[4:] == ["–", "no"]


def test_an_edit_that_blows_up_sets_off_the_alarm(
    script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blow_up(*arguments: Any, **named: Any) -> None:
        raise NonFiniteError("the keys", facts=(), layer=1)

    monkeypatch.setattr(real_table, "run_sequence", blow_up)
    script("--methods", "memit", "--part", "0")
    capsys.readouterr()
    script("--methods", "memit", "--collect")
    assert "seed 0" in line_of("memit", capsys.readouterr().out)[-1]
    results = json.loads(Path("out/table.json").read_text(encoding="utf-8"))
    assert results["about"]["safety"]["rows"][0]["alarms"] == [0]


def test_a_failed_measurement_leaves_no_edit(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = []

    def run_sequence(model: Any, *arguments: Any, **named: Any) -> Any:
        fingerprints.append(model.fingerprint())
        return original(model, *arguments, **named)

    def fail(*arguments: Any) -> None:
        raise ErrataError("the norm is not finite", remedy="")

    original = real_table.run_sequence
    monkeypatch.setattr(real_table, "run_sequence", run_sequence)
    monkeypatch.setattr(Patch, "relative_norms", fail)
    script("--methods", "memit,memit+blue", "--layers", "small=1,2", "--part", "0")
    assert kept("memit")["failed"] == "the norm is not finite"
    assert len(fingerprints) == 2
    assert len(set(fingerprints)) == 1


def test_differences_of_two_sets_are_paired_over_facts(capsys: pytest.CaptureFixture[str]) -> None:
    def piece(values: dict[str, float], metric: str = "efficacy_accuracy") -> dict[str, Any]:
        records = [[fact, metric, "prompt", value, "said"] for fact, value in values.items()]
        measured = {"records": records, "perplexity": None, "weight_norm_ratio": None}
        return {"seed": 0, "before": measured, "after": measured}

    real_table._print_paired({"memit": [piece({"a": 0, "b": 0})]}, {"memit": [piece({"a": 1, "b": 1})]})
    assert "| memit | – | +100.0 [+100.0, +100.0] | – |" in capsys.readouterr().out
    real_table._print_paired({"memit": [piece({"a": 0})]}, {"memit": [piece({"a": 1})]})
    assert "| memit | – | +100.0 | – |" in capsys.readouterr().out


def test_the_alarm_takes_the_worst_seed_and_numbers_that_are_not_finite() -> None:
    def piece(seed: int, loss: float, change: float) -> dict[str, Any]:
        measured = {"records": [], "perplexity": [[-loss], [1]], "weight_norm_ratio": 0.1}
        start = {**measured, "perplexity": [[0.0], [1]]}
        recipe = {"layers": [1]}
        others = {"weight_change": {"1": change}, "left_alone": 2, "recipe": recipe}
        return {"seed": seed, "before": start, "after": measured, **others}

    found = real_table.safety_of("m", [piece(0, 0.1, 0.2), piece(1, 0.5, 0.3), piece(2, 0.2, 0.1)], 1.5)
    assert found.perplexity_ratio == pytest.approx(math.exp(0.5))
    assert (found.weight_change, found.left_alone, found.alarms, found.failed) == (0.3, 6, (1,), ())
    other = {"seed": 3, "failed": "no such module", "edit_failed": False}
    found = real_table.safety_of("m", [piece(0, 0.1, math.nan), piece(1, 0.1, 0.3), other], 1.5)
    assert (found.weight_change, found.alarms, found.failed) == (None, (0,), (3,))
