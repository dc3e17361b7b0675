"""Wrong inputs of commands: all errors are reported together, before any work."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from errata.cli.main import run
from errata.cli.model_options import is_lab
from errata.facts.questions import read_questions, text_lines
from errata.lab.training import TrainingSettings, train
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline

from tests.support.errors import assert_reported, raises_code, reported
from tests.support.tiny_models import tiny_model

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "examples" / "facts.jsonl"


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("no weights may be loaded")

    monkeypatch.setattr(LanguageModel, "load", load)


@pytest.fixture
def wrong(tmp_path: Path) -> dict[str, str]:
    """Files that are each wrong in another way."""
    files = {"facts.jsonl": '{"subject": ""}\nno json\n', "others.jsonl": "3\n", "recipe.yaml": "model: m\nlayer: 1\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {name: str(tmp_path / name) for name in files}


@pytest.fixture(scope="module")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a model's configuration and tokenizer, without weights."""
    model, tokenizer = tiny_model("gpt2")
    directory = tmp_path_factory.mktemp("bare") / "model"
    model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return " ".join(err.split())


def test_edit_reports_the_faults_of_all_its_inputs_together(
    wrong: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["edit", "--facts", wrong["facts.jsonl"], "--untouched", wrong["others.jsonl"], "--out", str(tmp_path)]
    options = ["--corpus", str(tmp_path), "--shaping", "prun", "--layers", "one", "--dtype", "int3"]
    assert run([*arguments, *options, "--recipe", wrong["recipe.yaml"]]) == 2
    errors = said(capsys)
    assert errors.startswith("error[SEVERAL]: ")
    assert_reported(
        errors,
        ("FACT_EMPTY_FIELD", "facts.jsonl:1"), ("JSON_INVALID", "facts.jsonl:2"),
        ("QUESTION_INVALID", "others.jsonl:1"),
        ("RECIPE_KEY_UNKNOWN", "recipe.yaml: layer (line 2)"), ("RECIPE_KEY_MISSING", "recipe.yaml: statistics"),
        ("CORPUS_UNREADABLE", repr(str(tmp_path))), ("SHAPING_UNKNOWN", "--shaping: unknown shaping 'prun'"),
        ("LAYERS_INVALID", "--layers: 'one'"), ("DTYPE_UNKNOWN", "'int3'"), ("OUTPUT_EXISTS", str(tmp_path)),
    )  # fmt: skip


def test_edit_reports_layers_that_do_not_exist_with_the_facts_faults(
    wrong: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["edit", "--facts", wrong["facts.jsonl"], "--layers", "0,99", "--dry-run"]
    assert run([*arguments, "--method", "memit"]) == 2
    assert_reported(said(capsys), ("LAYER_UNKNOWN", "layer 99 "), ("JSON_INVALID", "facts.jsonl:2"))
    assert run([*arguments, "--method", "memitt"]) == 2
    assert_reported(said(capsys), ("METHOD_UNKNOWN", "'memitt'"))


def test_a_text_that_is_none_is_reported_once_even_if_the_recipe_names_it_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    arguments = ["edit", "--facts", str(tmp_path), "--dry-run", "--method", "memit"]
    assert run([*arguments, "--corpus", str(tmp_path / "text")]) == 2
    errors = said(capsys)
    assert sorted(code for code, _ in reported(errors)) == ["CORPUS_UNREADABLE", "FACTS_UNKNOWN_FORMAT", "SEVERAL"]
    assert_reported(errors, ("CORPUS_UNREADABLE", "text'"))


def test_evaluate_reports_the_faults_of_all_its_inputs_together(
    wrong: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["evaluate", "--facts", wrong["facts.jsonl"], "--untouched", wrong["others.jsonl"], "--device", "warp"]
    assert run(arguments) == 2
    assert_reported(
        said(capsys),
        ("FACT_EMPTY_FIELD", "facts.jsonl:1"), ("JSON_INVALID", "facts.jsonl:2"),
        ("QUESTION_INVALID", "others.jsonl:1"),
        ("DEVICE_UNAVAILABLE", "'warp'"),
    )  # fmt: skip


def test_recipe_auto_reports_the_faults_of_all_its_inputs_together(
    wrong: dict[str, str], bare_model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["recipe", "auto", "--model", bare_model, "--out", wrong["recipe.yaml"], "--methods", ","]
    files = ["--facts", wrong["facts.jsonl"], "--untouched", wrong["others.jsonl"], "--corpus", str(tmp_path)]
    assert run([*arguments, *files, "--layers", "77", "--device", "warp"]) == 2
    assert_reported(
        said(capsys),
        ("OUTPUT_EXISTS", "recipe.yaml"), ("OPTION_INVALID", "--methods"), ("FACT_EMPTY_FIELD", "facts.jsonl:1"),
        ("QUESTION_INVALID", "others.jsonl:1"), ("CORPUS_UNREADABLE", repr(str(tmp_path))),
        ("LAYER_UNKNOWN", "layer 77 "), ("DEVICE_UNAVAILABLE", "'warp'"),
    )  # fmt: skip


def test_locate_finds_facts_that_cannot_be_traced_before_the_weights_are_read(
    bare_model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    facts = tmp_path / "facts.jsonl"
    lines = [{"subject": name, "prompt": "{} was born in", "target": "Rome"} for name in ("Ann Lee", "Bob Ray")]
    facts.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    assert run(["locate", "--model", bare_model, "--facts", str(facts), "--tracing"]) == 2
    ((code, message),) = reported(said(capsys))
    assert code == "FACT_MISSING_FIELD"
    assert message.count("'old'") == 2


UNWRITABLE = [
    ["edit", "--facts", str(FACTS), "--out", "out", "--json"],
    ["evaluate", "--facts", str(FACTS), "--json"],
    ["ask", "Ada", "--json"],
    ["locate", "--json"],
    ["methods", "--json"],
    ["doctor", "--json"],
    ["demo", "--json"],
    ["demo", "--svg"],
    ["demo", "--out"],
    ["recipe", "list", "--json"],
    ["recipe", "auto", "--methods", "memit", "--out"],
    ["recipe", "auto", "--methods", "memit", "--out", "auto.yaml", "--json"],
    ["lab", "save", "lab", "--json"],
]


def test_unwritable_outputs_are_reported_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way", encoding="utf-8")
    for arguments in UNWRITABLE:
        assert run([*arguments, "file/result"]) == 2, arguments
        assert_reported(said(capsys), ("OUTPUT_NOT_WRITABLE", "file"))
        if arguments[-1] == "--json":
            assert run([*arguments, "."]) == 2, arguments
            assert_reported(said(capsys), ("OUTPUT_NOT_A_FILE", ". "))
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"], arguments


COMMANDS = [
    ["edit", "--out", "out", "--recipe", str(ROOT / "examples" / "recipe.yaml")],
    ["evaluate"],
    ["evaluate", "--model", "lab", "--against", "someone/some-model"],
    ["recipe", "auto", "--out", "auto.yaml", "--corpus", str(FACTS), "--layers", "0,1"],
]


def test_the_hub_is_not_contacted_if_a_file_is_wrong(
    wrong: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Outline.load

    def only_local(name: str, *, trust_remote_code: bool = False) -> Outline:
        assert name == "lab", "the hub must not be contacted"
        return load(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Outline, "load", only_local)
    for command in COMMANDS:
        model = [] if "--against" in command else ["--model", "someone/some-model"]
        assert run([*command, *model, "--facts", wrong["facts.jsonl"], "--untouched", wrong["others.jsonl"]]) == 2
        errors = said(capsys)
        assert_reported(errors, ("JSON_INVALID", "facts.jsonl:2"), ("QUESTION_INVALID", "others.jsonl:1"))
        assert "looking on the Hugging Face hub" not in errors


def test_facts_are_checked_against_a_hub_model_once_it_is_available(
    bare_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Outline.load

    def local(name: str, *, trust_remote_code: bool = False) -> Outline:
        return load("lab" if name == "lab" else bare_model)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Outline, "load", local)
    facts = tmp_path / "facts.jsonl"
    fact = {"subject": "Ann", "prompt": "word " * 90 + "{} was born in", "target": "Rome", "truth": "Oslo"}
    facts.write_text(json.dumps(fact), encoding="utf-8")
    for command in COMMANDS:
        model = [] if "--against" in command else ["--model", "someone/some-model"]
        assert run([*command, *model, "--facts", str(facts)]) == 2
        assert_reported(said(capsys), ("FACT_TOO_LONG", "facts.jsonl:1"))


def test_only_line_ends_end_a_question(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    record = {"prompt": "one\u2028two\x85three is", "answer": "four"}
    path.write_text(json.dumps(record, ensure_ascii=False) + "\r\n\n" + json.dumps(record) + "\r", encoding="utf-8")
    questions = read_questions(path)
    assert questions is not None
    assert [(name, question.prompt) for name, question in questions] == [
        ("questions.jsonl:1", record["prompt"]), ("questions.jsonl:3", record["prompt"]),
    ]  # fmt: skip
    assert text_lines(path, path, remedy="")[1] == ""
    path.write_text('{"prompt": ' + 100_000 * "[", encoding="utf-8")
    with raises_code("QUESTION_INVALID"):
        read_questions(path)
    (tmp_path / "errata.json").write_text(100_000 * "[", encoding="utf-8")
    with raises_code("RECORD_INVALID"):
        is_lab(str(tmp_path))


def test_invalid_lists_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {"--shaping": ("", "rect,", "rect,,norm_cap", "none,rect"), "--layers": ("", "1,", "0,,2")}
    for option, texts in cases.items():
        for text in texts:
            assert run(["edit", "--facts", str(FACTS), "--dry-run", "--method", "memit", option, text]) == 2
            assert_reported(said(capsys), (f"{option[2:].upper()}_INVALID", f"{option}: {text!r}"))


def test_boundary_layers_that_are_one_layer_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["edit", "--facts", str(FACTS), "--dry-run", "--layers", "1"]
    for choice in (["--method", "memit+blue"], ["--method", "memit", "--schedule", "boundary"]):
        assert run([*arguments, *choice]) == 0
        assert "equivalent to the schedule 'single'" in said(capsys)
    assert run([*arguments, "--method", "memit", "--schedule", "single"]) == 0
    assert "equivalent" not in said(capsys)


# Files without end, files that cannot be read, numbers that are too large -------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    """A pipe that nobody writes into: opening it to read would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


ENDLESS = [
    ["edit", "--facts", str(FACTS), "--corpus", "PIPE", "--out", "OUT"],
    ["edit", "--facts", str(FACTS), "--recipe", "PIPE", "--out", "OUT"],
    ["edit", "--facts", str(FACTS), "--untouched", "PIPE", "--out", "OUT"],
    ["bench", "PIPE", "--out", "OUT"],
    ["bench", "--data", "lab", "--methods", "memit", "--edits", "2", "--prose", "PIPE", "--out", "OUT"],
    ["show", "PIPE"],
    ["data", "check", "counterfact", "PIPE"],
    ["recipe", "check", "PIPE"],
]


def test_pipes_and_devices_are_refused_at_once(pipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for endless in (pipe, "/dev/zero"):
        given = {"PIPE": endless, "OUT": str(tmp_path / "out")}
        for arguments in ENDLESS:
            assert run([given.get(argument, argument) for argument in arguments]) == 2, arguments
            assert endless in said(capsys), arguments


def test_a_patch_that_may_not_be_read_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = tmp_path / "p.safetensors"
    patch.write_bytes(b"x")
    real = os.open

    def refusing(path: object, *arguments: int, **named: int) -> int:
        if str(path) == str(patch):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", refusing)
    assert run(["show", str(patch)]) == 2
    errors = said(capsys).lower()
    assert os.strerror(errno.EACCES).lower() in errors
    assert "cannot be found" not in errors


def test_seeds_that_no_generator_accepts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    grid = ["bench", "--data", "lab", "--methods", "memit", "--edits", "2", "--out", out]
    for seed in (2**63, 10**30):
        for arguments in (
            ["edit", "--facts", str(FACTS), "--out", out],
            ["evaluate", "--facts", str(FACTS)],
            ["data", "check", "lab"],
            ["lab", "facts", "--out", out],
        ):
            assert run([*arguments, "--seed", str(seed)]) == 2
            assert_reported(said(capsys), ("USAGE", "--seed"))
        for seeds in (str(seed), f"{seed},"):
            assert run([*grid, "--seeds", seeds]) == 2
            assert_reported(said(capsys), ("GRID_INVALID", "seeds"))


def test_a_world_that_is_too_small_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 people"):
        train(replace(TrainingSettings(), people=20, epochs=1, compile=False), tmp_path, on_epoch=lambda done: None)


def test_invalid_files_of_a_benchmark_are_input_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("summary.json", "grid.json"):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        for content, code in (
            ("[" * 100_000, "JSON_INVALID"),
            ("\x00", "JSON_INVALID"),
            ('{"format": 1}', "FILE_WRONG_FORMAT"),
        ):
            (folder / name).write_text(content, encoding="utf-8")
            assert run(["report", str(folder)] if name == "summary.json" else ["bench", "--out", str(folder)]) == 2
            assert_reported(said(capsys), (code if name == "summary.json" else "BENCH_DAMAGED", name))
