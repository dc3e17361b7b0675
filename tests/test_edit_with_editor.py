"""An editor that changes no weights on the command line: one file, used as a model by every command that asks one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.benchmark.grid import grid_of, read_grid
from errata.cli.bench_plan import plan_of
from errata.cli.main import run
from errata.editors.edit_file import StoredEdit
from errata.editors.table import EDITOR_NAMES, check_method
from errata.errors import FaultsError, InputError
from errata.lab.package import lab_directory

Capture = pytest.CaptureFixture[str]
METHOD = "grace"
OUT = ("--out", "x.safetensors")
EDIT = ("edit", "--method", METHOD)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four facts of the lab (``facts.jsonl``), their edit (``edit.safetensors``) and its record."""
    folder = tmp_path_factory.mktemp("editor")
    lines = Path("examples/facts.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "facts.jsonl").write_text("\n".join(lines[:4]), encoding="utf-8")
    (folder / "more.jsonl").write_text("\n".join(lines[4:6]), encoding="utf-8")
    (folder / "recipe.yaml").write_text(f"editors: {{{METHOD}: {{steps: 40, epsilon: 0.2}}}}\n", encoding="utf-8")
    arguments = ["--facts", str(folder / "facts.jsonl"), "--recipe", str(folder / "recipe.yaml")]
    out = ["--out", str(folder / "edit.safetensors"), "--json", str(folder / "edit.json")]
    assert run(["edit", "--method", METHOD, *arguments, "--batch-size", "3", *out]) == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_edit_is_measured_and_written(made: Path) -> None:
    record = read(made / "edit.json")
    after = {row["metric"]: row["mean"] for row in record["rows"] if row["when"] == "after"}
    before = {row["metric"]: row["mean"] for row in record["rows"] if row["when"] == "before"}
    assert (before["efficacy_accuracy"], after["efficacy_accuracy"]) == (0, 1)
    assert after["untouched_accuracy"] == before["untouched_accuracy"]
    assert "perplexity_ratio" in record["about"]["absent"]
    assert record["about"]["settings"]["steps"] == 40
    edit = StoredEdit.load(made / "edit.safetensors")
    assert edit.settings["batch_size"] == 3  # the command line over the recipe over the defaults
    assert edit.settings["epsilon"] == 0.2
    assert len(edit.facts) == 4
    assert edit.base == "lab"


def test_the_file_is_a_model(made: Path, capsys: Capture, tmp_path: Path) -> None:
    edited, facts = str(made / "edit.safetensors"), str(made / "facts.jsonl")
    fact = StoredEdit.load(made / "edit.safetensors").facts[0]
    assert run(["ask", "--model", edited, "--against", "lab", fact.text, "--json", str(tmp_path / "ask.json")]) == 0
    new, old = read(tmp_path / "ask.json")["answers"]
    assert fact.target in new["continuation"]
    assert (new["used"], old["used"]) == ([fact.id], [])
    assert new["next"][0][0].strip()
    options = ["--facts", facts, "--against", "lab", "--json", str(tmp_path / "evaluate.json")]
    assert run(["evaluate", "--model", edited, *options]) == 0
    record = read(tmp_path / "evaluate.json")
    assert record["about"]["fingerprint"] != record["about"]["against_fingerprint"]
    after = {row["metric"]: row["mean"] for row in record["rows"] if row["when"] == "after"}
    assert after["efficacy_accuracy"] == 1
    assert run(["history", edited, "--json", str(tmp_path / "history.json")]) == 0
    assert all(entry["still_said"] for entry in read(tmp_path / "history.json")["history"])
    assert run(["show", edited, "--json", str(tmp_path / "show.json")]) == 0
    (shown,) = read(tmp_path / "show.json")["edits"]
    assert shown["method"] == METHOD
    assert len(shown["facts"]) == 4
    assert METHOD in capsys.readouterr().out


def test_generated_answers_are_measured_where_there_are_no_likelihoods(made: Path, tmp_path: Path) -> None:
    edited, options = str(tmp_path / "edit.safetensors"), ["--facts", str(made / "more.jsonl")]
    assert run(["edit", "--method", "substitute", *options, "--no-evaluate", "--out", edited]) == 0
    options += ["--against", "lab", "--json", str(tmp_path / "evaluate.json")]
    assert run(["evaluate", "--model", edited, *options]) == 0
    record = read(tmp_path / "evaluate.json")
    means = {(row["metric"], row["when"]): row["mean"] for row in record["rows"]}
    assert [means["free_efficacy_contained", when] for when in ("before", "after")] == [0, 1]
    assert means["textual_edit:own", "after"] == means["textual_retention:own", "after"] == 1
    assert ("efficacy_accuracy", "after") not in means
    assert "efficacy_accuracy" in record["about"]["absent"]


def test_an_edit_on_an_edit_and_one_without_a_fact(made: Path, tmp_path: Path, capsys: Capture) -> None:
    first, second = made / "edit.safetensors", tmp_path / "second.safetensors"
    options = ["--facts", str(made / "more.jsonl"), "--recipe", str(made / "recipe.yaml"), "--batch-size", "3"]
    assert run(["edit", "--model", str(first), *options, "--no-evaluate", "--out", str(second)]) == 0
    assert "6 facts in all" in " ".join(capsys.readouterr().out.split())
    edit = StoredEdit.load(second)
    assert edit.base == str(first.resolve())
    assert run(["history", str(second), "--json", str(tmp_path / "history.json")]) == 0
    history = read(tmp_path / "history.json")["history"]
    assert len(history) == 6
    assert all(entry["still_said"] for entry in history)
    smaller, gone = tmp_path / "smaller.safetensors", edit.facts[0].id
    assert run(["rebuild", str(second), "--without", gone, "--out", str(smaller)]) == 0
    assert [fact.id for fact in StoredEdit.load(smaller).facts] == [edit.facts[1].id]
    assert StoredEdit.load(smaller).fingerprint == edit.fingerprint  # of the same state before
    undone, under = tmp_path / "undone.safetensors", StoredEdit.load(first)
    assert run(["rebuild", str(second), "--without", "second", "--out", str(undone)]) == 0
    assert StoredEdit.load(undone).fingerprint == under.fingerprint
    assert StoredEdit.load(undone).facts == under.facts


def test_a_fact_of_an_earlier_edit_leaves_as_if_it_had_never_been_edited(made: Path, tmp_path: Path) -> None:
    first, second, out = made / "edit.safetensors", tmp_path / "second.safetensors", tmp_path / "out.safetensors"
    facts = StoredEdit.load(first).facts
    gone, kept = facts[0], facts[1:]
    more = [json.loads(line) for line in (made / "more.jsonl").read_text(encoding="utf-8").splitlines()]
    newer = kept[0].to_record() | {"id": "newer", "target": "Oslo"}  # replaces a fact of the first edit
    records = [more[0] | {"id": gone.id}, more[1] | {"id": kept[1].id}, newer]
    (tmp_path / "second.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    options = ["--facts", str(tmp_path / "second.jsonl"), "--on-conflict", "replace", "--no-evaluate"]
    edit = ["edit", "--model", str(first), "--method", METHOD, "--recipe", str(made / "recipe.yaml")]
    assert run([*edit, "--batch-size", "3", *options, "--out", str(second)]) == 0
    rebuild = ["rebuild", str(second), "--out", str(out), "--without"]
    assert run([*rebuild, f"edit/{gone.id}", "--json", str(tmp_path / "out.json")]) == 0
    assert read(tmp_path / "out.json")["removed"] == [gone.id]
    rebuilt = StoredEdit.load(out)
    assert (rebuilt.base, rebuilt.fingerprint) == ("lab", StoredEdit.load(first).fingerprint)
    # The earlier fact of two with one id has the name of its edit; the replaced one is not there.
    own = [fact.id for fact in StoredEdit.load(second).facts]
    assert [fact.id for fact in rebuilt.facts] == [f"edit/{kept[1].id}", kept[2].id, *own]
    assert own == [gone.id, kept[1].id, "newer"]
    direct = tmp_path / "direct.safetensors"
    remaining = [fact.to_record() for fact in rebuilt.facts]
    (tmp_path / "remaining.jsonl").write_text("\n".join(map(json.dumps, remaining)), encoding="utf-8")
    arguments = ["--facts", str(tmp_path / "remaining.jsonl"), "--recipe", str(made / "recipe.yaml")]
    assert (
        run(["edit", "--method", METHOD, *arguments, "--batch-size", "3", "--no-evaluate", "--out", str(direct)]) == 0
    )
    same = StoredEdit.load(direct)
    assert rebuilt.state == same.state
    assert all(torch.equal(rebuilt.tensors[name], tensor) for name, tensor in same.tensors.items())
    # An id alone is that of the newest edit that has it.
    out.unlink()
    assert run([*rebuild, gone.id]) == 0
    assert StoredEdit.load(out).base == str(first.resolve())


def test_the_base_is_the_given_one_where_it_moved(made: Path, tmp_path: Path) -> None:
    base, moved, edited, out = (tmp_path / name for name in ("base", "moved", "edit.safetensors", "out.safetensors"))
    shutil.copytree(lab_directory(), base)
    edit = ["edit", "--model", str(base), "--method", "substitute", "--facts", str(made / "more.jsonl")]
    assert run([*edit, "--no-evaluate", "--out", str(edited)]) == 0
    base.rename(moved)
    first, second = StoredEdit.load(edited).facts
    rebuild = ["rebuild", str(edited), "--without", f"edit/{first.id}", "--out", str(out)]
    assert run(rebuild) == 2
    assert run([*rebuild, "--base", str(moved)]) == 0
    assert StoredEdit.load(out).base == str(moved)
    assert StoredEdit.load(out).facts == (second,)


def test_nothing_is_written_if_measuring_fails(made: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.safetensors"
    address = ["--model", "http://localhost:9/v1#x", "--facts", str(made / "more.jsonl")]
    assert run(["edit", *address, "--method", "substitute", "--out", str(out)]) != 0
    assert "ENDPOINT_UNREACHABLE" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([*EDIT, "--facts", "FACTS", "--out", "dir"], "EDIT_NOT_OF_WEIGHTS"),
        ([*EDIT, "--facts", "FACTS", "--layers", "3", *OUT], "OPTION_CONFLICT"),
        ([*EDIT, "--facts", "FACTS", "--run", "run", *OUT], "OPTION_CONFLICT"),
        ([*EDIT, "--facts", "FACTS", "--chat", *OUT], "OPTION_CONFLICT"),
        (["edit", "--method", "ultra", "--facts", "FACTS", "--chat", *OUT], "OPTION_CONFLICT"),
        ([*EDIT, *OUT], "OPTION_MISSING"),
        ([*EDIT, "--facts", "FACTS"], "OPTION_MISSING"),
        (["edit", "--method", METHOD + "s", "--facts", "FACTS", *OUT], "METHOD_UNKNOWN"),
        ([*EDIT, "--facts", "FACTS", "--recipe", "OTHER", *OUT], "RECIPE_WITHOUT_EDITOR"),
        ([*EDIT, "--facts", "FACTS", "--recipe", "BAD", *OUT], "RECIPE_KEY_UNKNOWN"),
        (["merge", "--model", "EDIT", "--out", "dir"], "EDIT_NOT_OF_WEIGHTS"),
        (["revert", "EDIT", "--out", "dir"], "EDIT_NOT_OF_WEIGHTS"),
        (["rebuild", "EDIT", "--without", "nobody", *OUT], "FACT_OR_PATCH_UNKNOWN"),
        (["rebuild", "EDIT", "--without", "edit", *OUT], "FACTS_MISSING"),
        (["rebuild", "EDIT", "--without", "FACT", "--base", "EDIT", *OUT], "EDIT_FOR_OTHER_WEIGHTS"),
        (["export", "EDIT", "--lora", "dir"], "EDIT_NOT_OF_WEIGHTS"),
        (["save", "EDIT", "--out", "dir"], "EDIT_NOT_OF_WEIGHTS"),
        (["push", "EDIT", "--to", "owner/name"], "EDIT_NOT_OF_WEIGHTS"),
        (["apply", "EDIT", "--out", "dir"], "EDIT_NOT_OF_WEIGHTS"),
        (["diff", "EDIT", "EDIT"], "EDIT_NOT_OF_WEIGHTS"),
        (["diff", "lab", "EDIT"], "EDIT_NOT_OF_WEIGHTS"),
        (["analyse", "sinks", "--model", "EDIT", "--facts", "FACTS", "--out", "dir"], "EDIT_NOT_OF_WEIGHTS"),
        (["ask", "--model", "TEXT", "Hello"], "MODEL_IS_FILE"),
        (["edit", "--model", "EDIT", "--method", "memit", "--facts", "FACTS", *OUT], "EDIT_NOT_OF_WEIGHTS"),
        (["edit", "--model", "EDIT", "--method", METHOD, "--facts", "CLASH", *OUT], "FACT_CONFLICT"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], code: str
) -> None:
    (tmp_path / "other.yaml").write_text("editors: {retrieval: {}}\n", encoding="utf-8")
    (made / "text.safetensors").write_text("no weights", encoding="utf-8")
    (tmp_path / "bad.yaml").write_text(f"editors:\n  {METHOD}:\n    stepz: 3\n", encoding="utf-8")
    fact = StoredEdit.load(made / "edit.safetensors").facts[0]
    (made / "clash.jsonl").write_text(json.dumps(fact.to_record() | {"target": "Oslo"}), encoding="utf-8")
    names = {
        "FACTS": str(made / "facts.jsonl"), "EDIT": str(made / "edit.safetensors"),
        "OTHER": str(tmp_path / "other.yaml"), "BAD": str(tmp_path / "bad.yaml"),
        "CLASH": str(made / "clash.jsonl"), "FACT": fact.id, "TEXT": str(made / "text.safetensors"),
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run([names.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert code in error
    assert code != "RECIPE_KEY_UNKNOWN" or ("line 3" in error and "steps" in error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "other.yaml"]


def test_dry_run_shows_the_plan(made: Path, capsys: Capture) -> None:
    assert run([*EDIT, "--facts", str(made / "facts.jsonl"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 facts" in out
    assert "epsilon" in out


def test_a_benchmark_plans_editors_beside_methods(made: Path) -> None:
    data = {
        "methods": ["memit", METHOD],
        "edits": 4,
        "batch_size": 2,
        "seeds": [7],
        "models": [{"name": "lab", "recipe": str(made / "recipe.yaml")}],
        "vary": {"epsilon": [0.1, 0.3]},
    }
    lab = {**data, "models": ["lab"]}
    specs = plan_of(grid_of(lab, "test")).specs
    assert [(spec.editor, spec.settings["epsilon"]) for spec in specs] == [(METHOD, 0.1), (METHOD, 0.3)]
    assert all((spec.batch_size, spec.settings["seed"]) == (2, 7) for spec in specs)
    assert [entry.label for entry in plan_of(grid_of(lab, "test")).undefined] == [
        "memit [epsilon=0.1]",
        "memit [epsilon=0.3]",
    ]
    own = {**data, "methods": [METHOD], "vary": {}}
    (spec,) = plan_of(grid_of(own, "test")).specs  # the recipe file of the model
    assert spec.settings["steps"] == 40
    with pytest.raises(FaultsError) as caught:
        grid_of({**data, "methods": ["grase"]}, "test")
    assert "METHOD_UNKNOWN" in {fault.code for fault in caught.value.faults}
    with pytest.raises(FaultsError):
        grid_of({**data, "vary": {"seed": [1, 2]}}, "test")


def test_the_example_grid_of_editors_is_valid() -> None:
    grid = grid_of(read_grid(Path("examples/editors.yaml")), "examples/editors.yaml")
    assert set(EDITOR_NAMES) & set(grid.methods)


def test_a_benchmark_skips_an_editor_where_facts_lack_a_field_that_it_needs(tmp_path: Path) -> None:
    complete, short = tmp_path / "complete.jsonl", tmp_path / "short.jsonl"
    records = [{"prompt": "{} is in", "subject": name, "target": "Rome", "truth": "Bonn"} for name in ("Oslo", "Riga")]
    complete.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    del records[1]["truth"]
    short.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    grid = {"models": ["lab"], "methods": ["substitute", "grace"], "edits": 2, "batch_size": 2, "seeds": [0, 1]}
    plan = plan_of(grid_of({**grid, "data": [str(complete), str(short)]}, "test"))
    assert [(spec.editor, Path(spec.data.name).stem) for spec in plan.specs if spec.seed == 0] == [
        ("substitute", "complete"),
        ("grace", "complete"),
        ("grace", "short"),
    ]
    (left,) = plan.undefined  # once for both seeds
    assert "old" in left.reason
    with pytest.raises(FaultsError) as caught:
        plan_of(grid_of({**grid, "methods": ["substitute"], "data": [str(short)]}, "test"))
    assert {fault.code for fault in caught.value.faults} == {"COMBINATION_INVALID"}


@pytest.mark.parametrize("method", ["kn", "substitute", "post_edit"])
def test_a_missing_old_answer_is_refused_by_the_name_in_files_before_loading(
    method: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.cli.edit_with_editor._editor", None)  # what loads the model
    facts = tmp_path / "facts.jsonl"
    fact = {"prompt": "{} works for", "subject": "Ada Meyer", "target": "Nordwind", "paraphrases": ["Ada Meyer is at"]}
    facts.write_text(json.dumps(fact), encoding="utf-8")
    assert run(["edit", "--method", method, "--facts", str(facts), "--out", str(tmp_path / "x.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "FACT_MISSING_FIELD" in error
    assert "'old'" in error
    assert "truth" not in error


def test_blue_is_for_locate_then_edit_only() -> None:
    with pytest.raises(InputError) as caught:
        check_method("grace+blue")
    assert caught.value.code == "METHOD_UNKNOWN"
    assert "--method grace" in caught.value.remedy
    assert "locate-then-edit" in caught.value.remedy
    assert "rome" not in caught.value.remedy
