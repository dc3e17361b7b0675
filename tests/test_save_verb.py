"""``errata save`` and ``errata push``: what is written, what would be uploaded, and what must never be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

import errata
from errata.cli.main import run
from errata.facts.files import read_facts
from errata.patches.stack import FILE, has_stack, is_stack, read_stack
from errata.runs.loading import load_model

from tests.support.hub_server import hub_server
from tests.support.quick import quick_recipe

FACTS = Path(__file__).resolve().parents[1] / "examples" / "facts.jsonl"
SOURCE = Path(errata.__file__).resolve().parents[1]
TOKEN = "hf_ThisIsNoTokenButMustNeverBeSeen"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything that can be saved, of two facts: a patch, a stack, a full model, a run; and results."""
    folder = tmp_path_factory.mktemp("save")
    lines = FACTS.read_text(encoding="utf-8").splitlines()
    (folder / "facts.jsonl").write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
    (folder / "more.jsonl").write_text(lines[2] + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        recipe = ["--recipe", quick_recipe(folder)]
        edit = ["edit", "--facts", "facts.jsonl", "--method", "memit", *recipe]
        one = ["--batch-size", "1"]
        assert run([*edit, "--out", "full", "--run", "run", *one, "--json", "edit.json"]) == 0
        assert run([*edit, "--out", "patch.safetensors", "--no-evaluate"]) == 0
        assert run(["apply", "patch.safetensors", "--out", "stack"]) == 0
        on_top = ["edit", "--facts", "more.jsonl", "--model", "stack", "--recipe", quick_recipe(folder, tokens=2000)]
        assert run([*on_top, "--out", "on.safetensors", "--no-evaluate"]) == 0
        evaluate = ["evaluate", "--facts", "facts.jsonl", "--model"]
        assert run([*evaluate, "stack", "--against", "lab", "--json", "evaluation.json"]) == 0
        assert run([*evaluate, "lab", "--json", "of-the-base.json"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("ERRATA_CACHE", str(made / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def files_in(directory: Path) -> set[str]:
    return {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()}


def text_of(directory: Path) -> str:
    return (directory / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("model", "name", "is_measured"), [
    ("patch.safetensors", "patch", False), ("stack", "patch", False), ("run", "run", True),
])  # fmt: skip
def test_patches_become_a_small_folder_that_loads(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, name: str, is_measured: bool
) -> None:
    out = tmp_path / "published"
    assert run(["save", model, "--out", str(out), "--json", str(tmp_path / "save.json")]) == 0
    output = capsys.readouterr()
    patch = f"patches/0001-{name}.safetensors"
    assert files_in(out) == {"README.md", "facts.jsonl", FILE, patch}
    assert sum(file.stat().st_size for file in out.rglob("*")) < 1e6
    assert is_stack(out)
    assert tuple(read_facts(out / "facts.jsonl")) == tuple(read_facts("facts.jsonl"))
    assert ("**Nothing was measured.**" in text_of(out)) is not is_measured
    assert ("no measurements" in output.err) is not is_measured
    assert ("| untouched accuracy |" in text_of(out)) is is_measured
    record = json.loads((tmp_path / "save.json").read_text(encoding="utf-8"))
    assert record["files"] == sorted(files_in(out))
    assert (record["facts"], record["measured"]) == (2, is_measured)
    loaded, expected = load_model(str(out)), load_model(model if model != "patch.safetensors" else "stack")
    for layer in range(8):
        assert torch.equal(loaded.weight(layer), expected.weight(layer))


def test_a_full_model_is_copied_whole_with_its_card(made: Path, tmp_path: Path) -> None:
    (made / "full" / ".env").write_text(f"HF_TOKEN={TOKEN}", encoding="utf-8")
    out = tmp_path / "published"
    assert run(["save", "full", "--out", str(out)]) == 0
    assert files_in(out) == files_in(made / "full") - {".env"} | {"README.md", "facts.jsonl"}
    theirs = load_file(made / "full" / "model.safetensors")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in load_file(out / "model.safetensors").items())
    assert has_stack(out)
    whole = text_of(out)
    assert "| memit | before | " in whole
    assert 'library_name: "transformers"' in whole
    # Again, from what was published: the same but for the name.
    assert run(["save", str(out), "--out", str(tmp_path / "again")]) == 0
    assert text_of(tmp_path / "again").replace("# again", "# published") == whole
    assert files_in(tmp_path / "again") == files_in(out)


def test_the_card_alone(made: Path, tmp_path: Path) -> None:
    assert run(["save", "full", "--card-only", "--out", str(tmp_path / "card")]) == 0
    assert files_in(tmp_path / "card") == {"README.md", "facts.jsonl"}


def test_a_patch_on_other_patches_brings_them_along(made: Path, tmp_path: Path) -> None:
    assert run(["save", "on.safetensors", "--out", str(tmp_path / "published")]) == 0
    stack = read_stack(tmp_path / "published")
    assert (stack.base, [stacked.name for stacked in stack.patches]) == ("lab", ["patch", "on"])
    assert len(read_facts(tmp_path / "published" / "facts.jsonl")) == 3
    shutil.copytree("stack", "kept")
    shutil.rmtree("stack")
    try:
        assert run(["edit", "--facts", "more.jsonl", "--out", "stack", "--no-evaluate", "--method", "memit"]) == 0
        assert run(["save", "on.safetensors", "--out", str(tmp_path / "other")]) == 2
        assert not (tmp_path / "other").exists()
    finally:
        shutil.rmtree("stack")
        Path("kept").rename("stack")


@pytest.mark.parametrize(("results", "model", "by"), [
    ("edit.json", "full", "errata edit"), ("evaluation.json", "stack", "errata evaluate on stack"),
])  # fmt: skip
def test_results_are_taken_from_a_named_file(made: Path, tmp_path: Path, results: str, model: str, by: str) -> None:
    assert run(["save", model, "--results", results, "--out", str(tmp_path / "out")]) == 0
    whole = text_of(tmp_path / "out")
    assert f"Measured by {by}. *Before* is the base lab" in whole
    assert "| untouched accuracy | 100" in whole
    assert str(made) not in whole


def changed(path: str, **about: Any) -> str:
    whole = json.loads(Path(path).read_text(encoding="utf-8"))
    whole["about"] |= about
    Path("changed.json").write_text(json.dumps(whole), encoding="utf-8")
    return "changed.json"


FOREIGN: list[tuple[str, str, dict[str, Any], str | None]] = [
    ("patch.safetensors", "edit.json", {}, "[RESULTS_MISMATCH]"),  # of another batch size
    ("full", "edit.json", {"fingerprint": "0" * 64}, "[RESULTS_MISMATCH]"),
    ("full", "edit.json", {"facts": []}, "[RESULTS_MISMATCH]"),
    ("stack", "evaluation.json", {"against_fingerprint": "0" * 64}, "[RESULTS_MISMATCH]"),
    ("stack", "evaluation.json", {"against": None, "against_fingerprint": None}, None),
    ("stack", "of-the-base.json", {}, "[RESULTS_MISMATCH]"),
    ("on.safetensors", "evaluation.json", {}, "[RESULTS_MISMATCH]"),  # with the first patch only
    ("full", "facts.jsonl", {}, "[JSON_INVALID]"),
    ("full", "missing.json", {}, "no file or directory"),
]


def test_results_of_another_model_are_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, results, about, words in FOREIGN:
        path = changed(results, **about) if about else results
        status = run(["save", model, "--results", path, "--out", str(tmp_path / "out")])
        error = " ".join(capsys.readouterr().err.split())
        if words is None:
            assert status == 0
            assert "these numbers do not show what changed" in text_of(tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
            continue
        assert status == 2, (model, results)
        assert words in error
        assert list(tmp_path.iterdir()) == []


def test_wrong_inputs_leave_nothing(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert run(["save", *arguments]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return " ".join(capsys.readouterr().err.split())

    out = str(tmp_path / "out")
    assert "error[NO_PATCHES]" in refused("lab", "--out", out)
    assert "error[NO_PATCHES]" in refused(str(tmp_path), "--out", out)
    assert "error[NO_PATCHES]" in refused("facts.jsonl", "--out", out)
    assert "exists already" in refused("stack", "--out", str(made / "full"))
    assert "error[OUTPUT_CONFLICT]" in refused("full", "--out", "full/published")
    assert "error[HUB_NAME_INVALID]" in refused("stack", "--base", "./somewhere", "--out", out)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((made / "patch.safetensors").read_bytes()[:-10])
    assert "not a readable patch" in refused(str(torn), "--out", out)
    assert run(["revert", "stack", "--all", "--out", str(tmp_path / "empty")]) == 0
    assert "has no patches" in refused(str(tmp_path / "empty"), "--out", out)


def test_a_run_that_is_not_at_its_end_is_not_published(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("errata.runs.run.RunDirectory.batches", 3)
    assert run(["save", "run", "--out", str(tmp_path / "out")]) == 2
    assert (
        "is unfinished: 2 of 3 batches are done. Finish it first: errata edit --resume run" in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_nothing(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    for target in ("write_text", "write_facts"):
        with monkeypatch.context() as patch:
            patch.setattr(f"errata.cli.publish.{target}", full_disk)
            assert run(["save", "full", "--out", str(tmp_path / "out")]) == 1
        assert list(tmp_path.iterdir()) == []
    assert "README.md" not in files_in(made / "full")


def test_a_base_of_this_machine_gets_the_name_that_it_has_elsewhere(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = tmp_path / "somewhere" / "lab-model"
    on_it = str(tmp_path / "on-it")
    assert run(["lab", "save", str(lab)]) == 0
    assert run(["apply", "patch.safetensors", "--model", str(lab), "--dtype", "float32", "--out", on_it]) == 0
    assert run(["save", on_it, "--out", str(tmp_path / "local")]) == 0
    assert f"contain local paths: {lab}" in capsys.readouterr().err
    assert "lab-model (a local directory" in text_of(tmp_path / "local").replace("&#40;", "(")
    assert "somewhere" not in text_of(tmp_path / "local")
    assert run(["save", on_it, "--base", "owner/lab", "--out", str(tmp_path / "named")]) == 0
    assert 'base_model: "owner/lab"\nbase_model_relation: "adapter"\n' in text_of(tmp_path / "named")
    assert read_stack(tmp_path / "named").base == "owner/lab"


class Hub:
    """Stands for HfApi: keeps what it was called with."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    uploaded: ClassVar[dict[str, bytes]] = {}
    is_private = True
    fails: Exception | None = None

    def __init__(self, token: object = None) -> None:
        assert token is True, "the library finds the token itself"

    def create_repo(self, repo_id: str, **options: Any) -> None:
        Hub.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def model_info(self, repo_id: str) -> SimpleNamespace:
        Hub.calls.append(("model_info", {"repo_id": repo_id}))
        names = (".gitattributes", "README.md", "old.bin")
        return SimpleNamespace(private=Hub.is_private, siblings=[SimpleNamespace(rfilename=name) for name in names])

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        if Hub.fails is not None:
            raise Hub.fails
        Hub.calls.append(("upload_folder", options))
        Hub.uploaded = {name: (folder_path / name).read_bytes() for name in files_in(folder_path)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "uploaded", {})
    monkeypatch.setattr(Hub, "is_private", True)
    monkeypatch.setattr(Hub, "fails", None)
    monkeypatch.setattr("errata.models.hub.HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return Hub


@pytest.mark.parametrize("model", ["stack", "full"])
def test_push_uploads_what_save_writes_and_no_token(
    made: Path, tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str], model: str
) -> None:
    result = tmp_path / "push.json"
    assert run(["push", model, "--to", "owner/name", "--yes", "--json", str(result)]) == 0
    output = capsys.readouterr()
    assert hub.calls == [
        ("create_repo", {"repo_id": "owner/name", "private": True, "exist_ok": True}),
        ("model_info", {"repo_id": "owner/name"}),
        ("upload_folder", {"repo_id": "owner/name", "commit_message": "2 facts edited by errata"}),
    ]
    assert run(["save", model, "--out", str(tmp_path / "saved")]) == 0
    saved = {name: (tmp_path / "saved" / name).read_bytes() for name in files_in(tmp_path / "saved")}
    assert hub.uploaded.keys() == saved.keys()
    different = {name for name in saved if saved[name] != hub.uploaded[name]}
    assert different <= {"README.md", FILE, "patches/0001-patch.safetensors"}  # safetensors orders its header anew
    card = hub.uploaded["README.md"].decode()
    assert "hf download owner/name --local-dir name" in card
    assert ("from_pretrained('owner/name')" in card) is (model == "full")
    for name in saved:
        assert f"  {name}  " in output.out
    assert "(private: visible to you" in output.out
    assert "unchanged: old.bin" in output.err
    written = [*hub.uploaded.values(), result.read_bytes(), output.out.encode(), output.err.encode()]
    assert not [content for content in written if TOKEN.encode() in content]


def test_nothing_is_called_before_a_yes(
    made: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push = ["push", "stack", "--to", "owner/name"]
    assert run(push) == 2  # nobody to ask
    assert "error[CONFIRMATION_IMPOSSIBLE]" in capsys.readouterr().err
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr("errata.cli.publish.sys", SimpleNamespace(stdin=terminal))
    asked: list[list[Any]] = []

    def say(answer: bool) -> None:
        def confirm(text: str) -> bool:
            asked.append(list(hub.calls))
            return answer

        monkeypatch.setattr("errata.cli.publish.typer.confirm", confirm)

    say(False)
    assert run(push) == 1
    output = capsys.readouterr()
    assert "https://huggingface.co/owner/name" in output.out
    assert "nothing was uploaded" in output.err
    assert hub.calls == []
    say(True)
    assert run([*push, "--public"]) == 0
    assert asked == [[], []]
    assert "visible to everyone" in capsys.readouterr().out
    assert hub.calls[0] == ("create_repo", {"repo_id": "owner/name", "private": False, "exist_ok": True})


def test_what_is_public_already_is_not_written_to_as_private(
    made: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "is_private", False)
    assert run(["push", "stack", "--to", "owner/name", "--yes"]) == 2
    assert "nothing was uploaded" in capsys.readouterr().err
    assert hub.uploaded == {}
    assert run(["push", "stack", "--to", "owner/name", "--yes", "--public"]) == 0
    assert hub.uploaded


def test_names_that_the_hub_would_refuse(made: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("name", "a/b/c", "owner/", "/name", "owner/na me", "owner/--", "-o/n", "owner/x.git"):
        assert run(["push", "stack", f"--to={name}", "--yes"]) == 2
        assert "OWNER/NAME" in " ".join(capsys.readouterr().err.split())
    assert hub.calls == []


def test_without_a_token_it_is_shown_what_would_go_and_nothing_is_sent(
    made: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("errata.models.hub.get_token", lambda: None)
    assert run(["push", "missing", "--to", "owner/name", "--yes"]) == 2
    assert "no file or directory 'missing'" in " ".join(capsys.readouterr().err.split())
    assert run(["push", "stack", "--to", "owner/name", "--yes"]) == 2
    output = capsys.readouterr()
    assert "  errata-stack.json  " in output.out
    assert "hf auth login" in " ".join(output.err.split())
    assert hub.calls == []


PUSH = ["push", "stack", "--to", "owner/name", "--yes"]


def pushed(address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``errata push`` in a process of its own: the hub's library reads where the hub is when it is imported."""
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, "-m", "errata", *PUSH],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_library_of_the_hub_sends_it_as_it_is_meant(made: Path) -> None:
    with hub_server() as server:
        done = pushed(server.address)
        assert done.returncode == 0, (done.stderr, server.asked)
        assert server.tokens <= {f"Bearer {TOKEN}", ""}
        assert server.made_private == [True]
        assert server.files.keys() == {"README.md", "facts.jsonl", FILE, "patches/0001-patch.safetensors"}
        assert server.files["facts.jsonl"] == (made / "facts.jsonl").read_bytes()
    assert f"Uploaded to {server.address}/owner/name" in done.stdout
    sent = b"".join(server.files.values()) + done.stdout.encode() + done.stderr.encode()
    assert TOKEN.encode() not in sent


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library in this process, allowed to open connections and logged in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.mark.usefixtures("online")
def test_what_the_hub_refuses_is_one_clear_error(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for status, code, words in ((403, 2, "[HUB_FORBIDDEN]"), (400, 1, "answered 400")):
        with hub_server() as server:
            server.status = status
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
            assert run(PUSH) == code
        out, err = capsys.readouterr()
        assert words in " ".join(err.split())
        assert "Traceback" not in err
        assert TOKEN not in err + out
        assert server.files == {}


@pytest.mark.usefixtures("online")
def test_without_a_network_or_a_login_it_says_so(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_server() as server:
        closed = server.address
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed)
    assert run(PUSH) == 1
    assert "the hub cannot be reached" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(PUSH) == 2
    assert "HF_HUB_OFFLINE is set" in " ".join(capsys.readouterr().err.split())
    done = pushed(closed, HF_TOKEN="", HF_HOME=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "you are not logged in" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", [["save", "--out", "published"], ["push", "--to", "someone/model", "--yes"]])
@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "broken"])
def test_what_lies_elsewhere_is_not_published(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str], kind: str
) -> None:
    """A link to a file or a folder elsewhere, or to nothing, and what is no file at all: refused by name."""
    shutil.copytree("full", tmp_path / "full")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text(TOKEN)
    odd = tmp_path / "full" / "notes"
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"file": "../secret/key", "folder": "../secret", "broken": "../nothing"}[kind])
    (tmp_path / "full" / "within.json").symlink_to("config.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run([verb[0], "full", *verb[1:]]) == 2
        error = capsys.readouterr().err
        assert "notes" in error
        assert TOKEN not in error
        assert not Path("published").exists()
        odd.unlink()
        assert run(["save", "full", "--out", "published"]) == 0  # links within it are as good as copies
        assert (Path("published") / "within.json").read_bytes() == (Path("full") / "config.json").read_bytes()


def test_a_patch_keeps_what_its_edit_measured(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """edit, apply, save: the card has the numbers of the edit, as long as the patch is on what it was made for."""
    monkeypatch.chdir(tmp_path)
    edit = ["edit", "--facts", str(made / "facts.jsonl"), "--method", "memit"]
    assert run([*edit, "--out", "one.safetensors", "--json", "one.json"]) == 0
    assert run(["apply", "one.safetensors", "--out", "stack"]) == 0
    assert run(["apply", str(made / "on.safetensors"), "--model", "lab", "--force", "--out", "other"]) == 0
    assert run(["apply", "one.safetensors", "--model", "other", "--force", "--out", "forced"]) == 0
    assert run(["save", "stack", "--results", "one.json", "--out", "expected"]) == 0

    def measured(card: str) -> list[str]:
        """The table's rows, but for those of facts, which have the minute at which a patch was applied."""
        return [line for line in text_of(tmp_path / card).splitlines() if line.startswith("| ") and "lab-" not in line]

    for source in ("stack", "one.safetensors"):
        assert run(["save", source, "--out", f"card-{Path(source).stem}"]) == 0
        table = measured(f"card-{Path(source).stem}")
        assert table == measured("expected")
        assert any("untouched accuracy" in line for line in table)
    assert run(["save", "forced", "--out", "card-forced"]) == 0
    assert "**Nothing was measured.**" in text_of(tmp_path / "card-forced")
