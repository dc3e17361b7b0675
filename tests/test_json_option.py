"""``--json`` never overwrites inputs, other outputs, or files that are not results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.cli.main import run

FACTS = Path(__file__).resolve().parents[1] / "examples" / "facts.jsonl"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    Path("stack").mkdir()
    Path("stack/errata-stack.json").write_text("{}", encoding="utf-8")
    Path("one.jsonl").write_text("{}\n", encoding="utf-8")


def content() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


OVERLAPS = [
    (["show", "first.safetensors"], "first.safetensors"),
    (["show", "stack"], "stack/errata-stack.json"),
    (["show", "stack"], "stack/new.json"),
    (["diff", "one.jsonl", "stack"], "./one.jsonl"),
    (["ask", "--model", "stack", "Hello"], "stack/new.json"),
    (["apply", "one.jsonl", "--out", "new"], "one.jsonl"),
    (["edit", "--facts", str(FACTS), "--out", "q.safetensors"], "q.safetensors"),
    (["edit", "--facts", str(FACTS), "--out", "q"], "q/results.json"),
    (["edit", "--facts", "one.jsonl", "--out", "q"], "one.jsonl"),
    (["edit", "--facts", str(FACTS), "--run", "runs/one"], "runs/one/results.json"),
    (["edit", "--facts", str(FACTS), "--run", "runs/one"], "runs"),
    (["lab", "facts", "--out", "new.jsonl"], "new.jsonl"),
    (["recipe", "check", "one.jsonl"], "one.jsonl"),
]
OTHER_FILES = [
    "one line\n",
    '{"a": 1}\n{"a": 2}\n',
    "[1]",
    "{",
    '{"subject": "Ada", "prompt": "{} speaks", "target": "Welsh"}\n',  # a file of one fact
    json.dumps({"model_type": "llama", "hidden_size": 64}, indent=2),  # a model's config.json
    '{"format": "errata-stack-1"}',
    '{"format": "pt"}',
]


def test_results_never_replace_inputs_or_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    before = content()
    for arguments, target in OVERLAPS:
        assert run([*arguments, "--json", target]) == 2
        said = capsys.readouterr().err
        assert "error[OUTPUT_CONFLICT]" in said or "error[OUTPUT_EXISTS]" in said, arguments
        assert content() == before


def test_results_never_replace_other_files(capsys: pytest.CaptureFixture[str]) -> None:
    for text in OTHER_FILES:
        Path("mine").write_text(text, encoding="utf-8")
        assert run(["methods", "--json", "mine"]) == 2
        assert "error[OUTPUT_EXISTS]" in capsys.readouterr().err
        assert Path("mine").read_text(encoding="utf-8") == text


def test_commands_can_be_repeated() -> None:
    Path("empty.json").touch()  # as mktemp makes it
    for target in ("new/results.json", "new/results.json", "empty.json"):
        assert run(["methods", "--json", target]) == 0
        assert "memit" in json.dumps(json.loads(Path(target).read_text(encoding="utf-8")))
    # A prompt is not a path, even if a file of that name exists.
    assert run(["ask", "stack", "--tokens", "1", "--json", "stack/answer.json"]) == 0
