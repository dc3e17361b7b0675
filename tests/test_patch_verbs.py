"""Edits as things that are kept, shown, stacked, merged, taken back and solved again, from the command line."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import errata.editing.target_search
from errata.cli import main as cli
from errata.cli.history import word_widths
from errata.cli.main import run
from errata.cli.terminal import progress
from errata.facts.files import read_facts, write_facts
from errata.lab.package import lab_directory
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.patches.stack import read_stack
from errata.runs.loading import load_model

from tests.support.quick import quick_recipe

FACTS = Path(__file__).resolve().parents[1] / "examples" / "facts.jsonl"
Capture = pytest.CaptureFixture[str]


def said(capsys: Capture) -> tuple[str, str]:
    out, err = capsys.readouterr()
    return " ".join(out.split()), " ".join(err.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patches of three facts each, the second solved on top of the first; the stack of both, and it merged."""
    folder = tmp_path_factory.mktemp("made")
    facts = list(read_facts(FACTS))
    write_facts(facts[:3], folder / "first.jsonl")
    write_facts(facts[3:6], folder / "second.jsonl")
    steps = [
        ["edit", "-f", str(folder / "first.jsonl"), "--no-evaluate", "--out", str(folder / "first.safetensors")],
        ["apply", str(folder / "first.safetensors"), "--out", str(folder / "one")],
        ["edit", "-f", str(folder / "second.jsonl"), "--model", str(folder / "one"), "--method", "memit",
         "--recipe", quick_recipe(folder, steps=25, tokens=2000), "--no-evaluate",
         "--out", str(folder / "second.safetensors")],
        ["apply", str(folder / "second.safetensors"), "--model", str(folder / "one"), "--out", str(folder / "two")],
        ["merge", "--model", str(folder / "two"), "--out", str(folder / "full")],
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(folder / "cache"))
        for arguments in steps:
            assert run(arguments) == 0, arguments
    return folder


def weights(model: LanguageModel) -> Mapping[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_patch_is_small_and_its_own_file(made: Path) -> None:
    patch = Patch.load(made / "first.safetensors")
    assert [fact.id for fact in patch.facts] == [fact.id for fact in read_facts(made / "first.jsonl")]
    assert patch.layers == (0, 2)
    assert (made / "first.safetensors").stat().st_size < 100_000
    files = {path.name for path in (made / "two").rglob("*") if path.is_file()}
    assert files == {"errata-stack.json", "0001-first.safetensors", "0002-second.safetensors"}
    assert set(load_file(made / "first.safetensors")) == {"0.left", "0.right", "1.left", "1.right"}


def test_a_merged_stack_loads_with_plain_transformers_and_is_the_stack(made: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(made / "full")
    assert same(dict(plain.state_dict()), weights(load_model(str(made / "two"))))


def test_show_lists_facts_norms_ranks_and_layers(made: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["show", str(made / "two"), "--json", str(tmp_path / "show.json")]) == 0
    out = capsys.readouterr().out
    for word in ("2 patches on lab in float32", "memit+blue, 3 facts", "layer 2", "rank", "lab-42-0", "seed 0"):
        assert word in out
    # The longest bar is that of the largest change, and the others are in proportion.
    bars = [line.count("█") for line in out.splitlines() if line.strip().startswith("layer ")]
    patches = json.loads((tmp_path / "show.json").read_text(encoding="utf-8"))["patches"]
    sizes = [[layer["norm"] for layer in patch["layers"]] for patch in patches]
    assert bars == [int(32 * size / max(of_patch)) for of_patch in sizes for size in of_patch]
    assert max(bars) == 32
    assert [entry["name"] for entry in patches] == ["first", "second"]
    norms = Patch.load(made / "first.safetensors").norms()
    assert [layer["norm"] for layer in patches[0]["layers"]] == list(norms.values())


def test_an_edit_does_not_differ_from_itself(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch, report = str(made / "first.safetensors"), tmp_path / "diff.json"
    assert run(["diff", patch, patch, "--json", str(report)]) == 0
    found = json.loads(report.read_text(encoding="utf-8"))
    assert (found["facts"]["only_in_first"], found["facts"]["only_in_second"]) == ([], [])
    assert found["facts"]["in_both"] > 0
    assert {layer["difference"] for layer in found["layers"]} == {0.0}


def test_diff_of_edits_and_of_models(made: Path, tmp_path: Path, capsys: Capture) -> None:
    report = tmp_path / "diff.json"
    arguments = ["diff", str(made / "first.safetensors"), str(made / "two"), "--json", str(report)]
    assert run(arguments) == 0
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["facts"]["in_both"] == 3
    assert [fact["id"] for fact in found["facts"]["only_in_second"]] == [
        fact.id for fact in read_facts(made / "second.jsonl")
    ]
    second = Patch.load(made / "second.safetensors")
    by_layer = {entry["layer"]: entry for entry in found["layers"]}
    assert by_layer[1]["first"] == 0
    assert by_layer[0]["difference"] == pytest.approx(second.norms()[0], rel=1e-6)
    assert run(["diff", "lab", str(made / "full"), "--json", str(report)]) == 0
    rows = json.loads(report.read_text(encoding="utf-8"))["parameters"]
    assert {row["parameter"] for row in rows} == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)}
    capsys.readouterr()
    assert run(["diff", "lab", str(made / "first.safetensors")]) == 2
    assert "error[NOT_COMPARABLE]" in said(capsys)[1]


def test_diff_lists_facts_with_different_targets(made: Path, tmp_path: Path, capsys: Capture) -> None:
    patch = Patch.load(made / "first.safetensors")
    first, *others = patch.facts
    replace(patch, facts=(replace(first, target="Elsewhere"), *others)).save(tmp_path / "other.safetensors")
    arguments = [str(made / "first.safetensors"), str(tmp_path / "other.safetensors")]
    assert run(["diff", *arguments, "--json", str(tmp_path / "diff.json")]) == 0
    found = json.loads((tmp_path / "diff.json").read_text(encoding="utf-8"))["facts"]
    assert (found["in_both"], found["only_in_first"], found["only_in_second"]) == (2, [], [])
    assert [[fact["target"] for fact in pair] for pair in found["apart"]] == [[first.target, "Elsewhere"]]
    out = said(capsys)[0]
    assert "2 facts in both with the same target" in out
    assert "1 fact in both with different targets" in out
    assert f"{first.text}: {first.target!r} and 'Elsewhere'" in out


@pytest.mark.parametrize("kind", ["two", "full"])
def test_reverting_is_exact_and_says_what_stood_on_top(made: Path, tmp_path: Path, capsys: Capture, kind: str) -> None:
    assert run(["revert", str(made / kind), "--patch", "first", "--out", str(tmp_path / "left")]) == 0
    err = said(capsys)[1]
    assert "second (3 facts) was solved on top of the removed patches" in err
    assert f"errata rebuild {made / kind} --without first --out".replace(" ", "") in err.replace(" ", "")
    expected = LanguageModel.load("lab")
    Patch.load(made / "second.safetensors").apply(expected, force=True)
    assert same(weights(load_model(str(tmp_path / "left"))), weights(expected))
    assert run(["revert", str(made / kind), "--all", "--out", str(tmp_path / "base")]) == 0
    assert same(weights(load_model(str(tmp_path / "base"))), weights(LanguageModel.load("lab")))
    assert not read_stack(tmp_path / "base").patches
    assert run(["revert", str(made / kind), "--patch", "nobody", "--out", str(tmp_path / "x")]) == 2
    assert "Available: first, second" in said(capsys)[1]


def test_a_merged_model_with_other_changes_is_not_reverted_unless_forced(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = LanguageModel.load(made / "full")
    with torch.no_grad():
        model.weight(5).mul_(1.01)
    (tmp_path / "tuned" / "patches").mkdir(parents=True)
    for path in (made / "full").rglob("*"):
        if path.is_file() and path.name != "model.safetensors":
            (tmp_path / "tuned" / path.relative_to(made / "full")).write_bytes(path.read_bytes())
    model.model.save_pretrained(tmp_path / "tuned")
    assert run(["revert", str(tmp_path / "tuned"), "--out", str(tmp_path / "left")]) == 2
    err = said(capsys)[1]
    assert "model.layers.5.mlp.down_proj.weight" in err
    assert "--force" in err
    assert not (tmp_path / "left").exists()
    assert run(["revert", str(tmp_path / "tuned"), "--out", str(tmp_path / "left"), "--force"]) == 0


def test_a_base_that_has_moved_can_be_named(made: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["lab", "save", str(tmp_path / "base")]) == 0
    for arguments in (
        ["apply", str(made / "first.safetensors"), "--model", str(tmp_path / "base"), "--dtype", "float32"],
        ["merge", "--model", str(tmp_path / "stack")],
    ):
        out = tmp_path / ("stack" if arguments[0] == "apply" else "full")
        assert run([*arguments, "--out", str(out)]) == 0
    (tmp_path / "base").rename(tmp_path / "moved")
    capsys.readouterr()
    assert run(["revert", str(tmp_path / "full"), "--out", str(tmp_path / "back")]) == 2
    assert "--base" in said(capsys)[1]
    arguments = ["revert", str(tmp_path / "full"), "--base", str(tmp_path / "moved"), "--out", str(tmp_path / "back")]
    assert run(arguments) == 0
    assert run(["revert", str(tmp_path / "full"), "--base", str(made / "full"), "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


def test_other_weights_are_refused_and_forced_with_a_warning(made: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["apply", str(made / "second.safetensors"), "--model", "lab", "--out", str(tmp_path / "out")]
    assert run(arguments) == 2
    assert "made for other weights" in said(capsys)[1]
    assert run([*arguments, "--dtype", "bfloat16"]) == 2
    assert "in float32" in said(capsys)[1]
    assert not (tmp_path / "out").exists()
    assert run([*arguments, "--force"]) == 0
    assert "warning: second was made for different weights" in said(capsys)[1]
    assert read_stack(tmp_path / "out").patches[0].forced
    bad = [str(made / "first.jsonl"), str(made / "one")]
    assert run(["apply", *bad, "--out", str(tmp_path / "x")]) == 2
    assert "2 faults" in said(capsys)[1]
    assert run(["apply", *bad, str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "error[FILE_NOT_FOUND]" in said(capsys)[1]


def test_a_base_with_a_relative_path_is_found_from_other_directories(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(made / "cache"))
    shutil.copytree(lab_directory(), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    recipe = ["--recipe", quick_recipe(tmp_path, tokens=2000)]
    edit = ["edit", "--model", "base", "-f", str(made / "first.jsonl"), "--no-evaluate", "--no-controls", *recipe]
    assert run([*edit, "--out", "new.safetensors"]) == 0
    monkeypatch.chdir(made)
    assert run(["apply", str(tmp_path / "new.safetensors"), "--out", str(tmp_path / "stack")]) == 0
    assert read_stack(tmp_path / "stack").base == str(tmp_path / "base")


def test_a_patch_is_applied_to_the_base_that_its_record_names(made: Path, tmp_path: Path, capsys: Capture) -> None:
    second = str(made / "second.safetensors")
    assert run(["apply", second, "--out", str(tmp_path / "stack")]) == 0  # on the stack "one", not on lab
    assert same(weights(load_model(str(tmp_path / "stack"))), weights(load_model(str(made / "two"))))
    assert run(["merge", second, "--out", str(tmp_path / "full")]) == 0
    assert same(weights(load_model(str(tmp_path / "full"))), weights(load_model(str(made / "two"))))
    gone = replace(Patch.load(second), base=str(tmp_path / "gone"))
    gone.save(tmp_path / "gone.safetensors")
    capsys.readouterr()
    assert run(["apply", str(tmp_path / "gone.safetensors"), "--out", str(tmp_path / "none")]) == 2
    assert "--model" in said(capsys)[1]
    assert run(["merge", "--out", str(tmp_path / "none")]) == 2


def test_a_patch_given_as_the_model_is_called_a_patch(made: Path, capsys: Capture) -> None:
    assert run(["ask", "--model", str(made / "first.safetensors"), "Hello"]) == 2
    assert "errata apply" in said(capsys)[1]


def test_rebuilding_solves_again_as_if_the_facts_had_never_been_there(
    made: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(made / "cache"))
    arguments = ["rebuild", str(made / "two"), "--without", "first/lab-42-1", "--out", str(tmp_path / "rebuilt")]
    assert run(arguments) == 0
    assert "Removed: 1 fact. Solved again: first, second (5 facts)." in said(capsys)[0]
    facts = [fact for fact in read_facts(made / "first.jsonl") if fact.id != "lab-42-1"]
    write_facts(facts, tmp_path / "left.jsonl")
    chain = [
        ["edit", "-f", str(tmp_path / "left.jsonl"), "--no-evaluate", "--out", str(tmp_path / "a.safetensors")],
        ["apply", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "a")],
        ["edit", "-f", str(made / "second.jsonl"), "--model", str(tmp_path / "a"), "--method", "memit",
         "--recipe", str(made / "quick.yaml"), "--no-evaluate", "--out", str(tmp_path / "b.safetensors")],
        ["apply", str(tmp_path / "b.safetensors"), "--model", str(tmp_path / "a"), "--out", str(tmp_path / "b")],
    ]  # fmt: skip
    for step in chain:
        assert run(step) == 0
    assert same(weights(load_model(str(tmp_path / "rebuilt"))), weights(load_model(str(tmp_path / "b"))))
    assert run(["rebuild", str(made / "two"), "--without", "lab-9", "--out", str(tmp_path / "x")]) == 2


def test_history_shows_each_change_and_whether_the_model_still_says_it(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    fact = read_facts(made / "first.jsonl")[0]
    report = tmp_path / "history.json"
    assert run(["history", str(made / "two"), "--subject", fact.subject.lower(), "--json", str(report)]) == 0
    entry = json.loads(report.read_text(encoding="utf-8"))["history"][0]
    assert (entry["patch"], entry["method"], entry["fact"]["id"]) == ("first", "memit+blue", fact.id)
    assert entry["still_said"] is True
    assert entry["replaced_by"] is None
    capsys.readouterr()
    assert run(["history", str(made / "two"), "--subject", "Milan Long"]) == 2
    assert "Did you mean 'Milan Lang'" in said(capsys)[1]
    assert run(["history", str(made / "first.safetensors")]) == 2
    assert run(["history", str(made / "first.safetensors"), "--no-ask"]) == 0
    assert run(["history", "lab"]) == 2


@pytest.mark.parametrize("width", [60, 80, 200])
def test_history_fits_the_terminal(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["history", str(made / "two"), "--no-ask"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.split()[:3] == ["1", "first", "memit+blue"] for line in lines)
    facts = [*read_facts(made / "first.jsonl"), *read_facts(made / "second.jsonl")]
    for fact in facts:
        line = next(line for line in lines if line.split()[1:2] == [fact.id])
        assert fact.target in line
        if width >= 80:
            assert fact.text in line  # on one line
        assert (f"{fact.old}" in line) == (width == 200)


@pytest.mark.parametrize("choice", [None, "replace", "keep"])
def test_conflicts_with_earlier_edits(
    made: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, choice: str | None
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(made / "cache"))
    old = read_facts(made / "first.jsonl")[0]
    new = tmp_path / "new.jsonl"
    lines = [
        {"id": "back", "subject": old.subject, "prompt": old.prompt, "target": old.truth},
        {"id": "other", "subject": "Agnes Hayashi", "prompt": "{} was born in", "target": "Tokyo"},
    ]
    new.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    out = tmp_path / "new.safetensors"
    arguments = ["edit", "-f", str(new), "--model", str(made / "two"), "--no-evaluate", "--out", str(out)]
    arguments += ["--recipe", quick_recipe(tmp_path, tokens=2000)]
    status = run([*arguments, *([] if choice is None else ["--on-conflict", choice])])
    err = said(capsys)[1]
    if choice is None:
        assert status == 2
        assert "new.jsonl:1: 'target' 'Delhi' is the answer that 'first' replaced by 'Istanbul'" in err
        assert "errata revert" in err
        assert not out.exists()
        return
    assert status == 0
    assert f"1 contradicting fact ('back') {'replaces' if choice == 'replace' else 'is skipped in favour of'}" in err
    assert [fact.id for fact in Patch.load(out).facts] == (["other"] if choice == "keep" else ["back", "other"])
    if choice == "replace":
        assert run(["apply", str(out), "--model", str(made / "two"), "--out", str(tmp_path / "three")]) == 0
        report = tmp_path / "history.json"
        subject = ["--subject", old.subject, "--no-ask", "--json", str(report)]
        assert run(["history", str(tmp_path / "three"), *subject]) == 0
        found = json.loads(report.read_text(encoding="utf-8"))["history"]
        assert [entry["replaced_by"] for entry in found] == ["new", None]


def test_a_patch_on_a_stack_is_no_adapter_beside_it(made: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["export", str(made / "second.safetensors"), "--lora", str(tmp_path / "adapter")]) == 2
    err = said(capsys)[1]
    assert f"was made for the stack {made / 'one'}" in err
    assert f"errata apply {made / 'second.safetensors'} --model {made / 'one'} --out STACK" in err
    assert list(tmp_path.iterdir()) == []


def test_missing_models_are_reported_as_such(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(made)
    for command in ("show", "diff first.safetensors", "history", "revert --out x", "save --out x"):
        assert run([*command.split(), "nothere"]) == 2
        assert "no file or directory 'nothere'" in said(capsys)[1]


def test_a_patch_that_does_not_fit_is_named_with_what_is_in_the_model(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    first, second, out = (str(made / "first.safetensors"), str(made / "second.safetensors"), str(tmp_path / "out"))
    assert run(["apply", first, first, "--out", out]) == 2
    err = said(capsys)[1]
    assert "first was made for other weights" in err
    assert "'lab' with first on it in float32 has" in err
    assert "first is applied already" in err
    assert run(["apply", second, first, "--model", "lab", "--out", out]) == 2
    assert "second was made for other weights" in said(capsys)[1]
    assert run(["apply", first, str(FACTS), "--out", out]) == 2
    assert said(capsys)[1].count(str(FACTS)) == 1


def test_where_nobody_looks_there_is_no_empty_line(capsys: Capture) -> None:
    with progress() as report:
        report("facts edited", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_columns_are_as_wide_as_their_words_where_there_is_room() -> None:
    columns = [["when", "2026-01-01 12:00"], ["was told", "Istanbul (replaced by c3)"], ["a", "b"]]
    assert word_widths(columns, 80) == [10, 9, 1]
    assert word_widths(columns, 17) == [8, 8, 1]
    assert word_widths(columns, 1) == [1, 1, 1]


# Runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("ERRATA_CACHE", str(made / "cache"))

    def start(*more: str) -> int:
        recipe = ["--recipe", quick_recipe(tmp_path)]
        return run(["edit", "-f", str(made / "first.jsonl"), *recipe, "--batch-size", "1", *more])

    return start


def test_a_stopped_run_is_resumed_with_the_same_results(
    small_run: Callable[..., int], made: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert small_run("--run", str(whole), "--json", str(tmp_path / "whole.json")) == 0
    from errata.runs.run import RunDirectory

    original, calls = RunDirectory.add_batch, []

    def failing(self: RunDirectory, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        original(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "add_batch", failing)
        assert small_run("--run", str(broken)) == 1
    err = said(capsys)[1]
    assert "batch 2 failed: OSError: [Errno 28] No space left on device" in err
    assert "as they were after batch 1 of 3" in err
    assert "--resume" in err
    assert run(["show", str(broken)]) == 0
    assert "on lab: 1 of 3 batches, 1 of 3 facts" in said(capsys)[0]
    assert run(["merge", "--model", str(broken), "--out", str(tmp_path / "part")]) == 0
    assert "is unfinished: 1 of 3 batches, 1 of 3 facts" in said(capsys)[1]
    out, report = tmp_path / "full", tmp_path / "broken.json"
    assert run(["edit", "--resume", str(broken), "--out", str(out), "--json", str(report)]) == 0
    assert same(weights(LanguageModel.load(out)), weights(load_model(str(whole))))
    one, other = (json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) for name in ("whole", "broken"))
    timed = "seconds_per_edit"
    assert [row for row in one["rows"] if row["metric"] != timed] == [
        row for row in other["rows"] if row["metric"] != timed
    ]


def test_settings_other_than_the_runs_are_refused(
    small_run: Callable[..., int], made: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "run"
    assert small_run("--run", str(path), "--no-evaluate") == 0
    capsys.readouterr()
    arguments = ["edit", "--resume", str(path)]
    others = ["--facts", str(made / "second.jsonl"), "--method", "memit", "--dtype", "bfloat16", "--run", "x"]
    assert run([*arguments, *others]) == 2
    err = said(capsys)[1]
    for word in ("differ from those of the run", "--method: memit, but the run uses memit+blue",
                 "the run uses float32", "--run: cannot be combined with --resume"):  # fmt: skip
        assert word in err
    assert run([*arguments, "--model", str(made / "full")]) == 2
    assert "are not those that the run" in said(capsys)[1]
    assert run([*arguments, "--seed", "3", "--method", "memit", "--layers", "0,1"]) == 2
    err = said(capsys)[1]
    assert "--seed: 3, but the run uses 0" in err
    assert "--layers: 0,1, but the run uses 0,1,2" in err
    assert "3 faults" in err
    same_again = ["-f", str(made / "first.jsonl"), "--method", "memit+blue", "--batch-size", "1", "--model", "lab"]
    assert run([*arguments, *same_again, "--recipe", quick_recipe(tmp_path)]) == 0
    assert run(["edit", "--resume", str(tmp_path / "nothing")]) == 2
    assert "error[FILE_NOT_FOUND]" in said(capsys)[1]


def test_a_run_of_the_last_of_duplicate_facts_is_resumed_with_its_file(
    small_run: Callable[..., int], made: Path, tmp_path: Path
) -> None:
    first, *others = read_facts(made / "first.jsonl")
    facts = [json.dumps(fact.to_record()) for fact in (replace(first, id="earlier", target="Welsh"), first, *others)]
    file, path = tmp_path / "facts.jsonl", tmp_path / "run"
    file.write_text("\n".join(facts) + "\n", encoding="utf-8")
    given = ["-f", str(file), "--last-wins"]
    assert run(["edit", *given, "--run", str(path), "--no-evaluate"]) == 0
    assert run(["edit", *given, "--resume", str(path)]) == 0
    assert run(["edit", "-f", str(file), "--resume", str(path)]) == 0
    assert run(["edit", "--last-wins", "--resume", str(path)]) == 2
    assert run(["edit", "-f", str(made / "second.jsonl"), "--last-wins", "--resume", str(path)]) == 2


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_far_it_is_and_how_to_resume_it(
    small_run: Callable[..., int],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    sign: signal.Signals,
) -> None:
    original, calls = errata.editing.target_search.find_targets, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # two layers a batch
            signal.raise_signal(sign)
        return original(*arguments, **options)

    monkeypatch.setattr(errata.editing.target_search, "find_targets", stopped)
    handler, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background does not have
    monkeypatch.setattr(cli, "run", lambda arguments, on_import: on_import() or small_run(*arguments))
    try:
        path, out = tmp_path / "run", tmp_path / "out.safetensors"
        with pytest.raises(SystemExit) as end:
            cli.main(["--no-evaluate", "--run", str(path), "--out", str(out)])
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, interrupt)
    assert end.value.code == 130
    err = said(capsys)[1]
    assert f"interrupted: 1 of 3 batches are done and saved in {path}." in err
    assert f"errata edit --resume {path} --out {out}" in err
    assert run(["revert", str(path), "--out", str(tmp_path / "x")]) == 2
    assert f"errata merge --model {path} --out FULL" in said(capsys)[1]
    assert run(["export", str(path), "--lora", str(tmp_path / "x")]) == 2
    assert f"errata edit --resume {path}" in said(capsys)[1]
    assert run(["edit", "--resume", str(path), "--out", str(out)]) == 0
    assert len(Patch.load(out).facts) == 3
