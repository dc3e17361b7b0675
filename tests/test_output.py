"""Directories and files that are written completely or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from errata.errors import InputError, OutputError
from errata.utils.files import (
    check_file,
    check_new,
    check_new_file,
    new_directory,
    new_file,
    read_json,
    reading,
    reserved,
    write_json,
    write_text,
)
from errata.utils.text import counted, excerpt, listed


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    return error.value.code


def test_a_directory_appears_when_all_of_it_is_there(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_directory(target) as partial:
        assert partial != target
        assert partial.parent == target.parent  # one file system, so that the rename is one step
        (partial / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [entry.name for entry in target.parent.iterdir()] == ["b"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_no_trace(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out"
    with pytest.raises(error), new_directory(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_may_be_filled_and_is_left_empty_by_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(ValueError, match="no"), new_directory(target) as partial:
        (partial / "file").write_text("half")
        raise ValueError("no")
    assert [list(entry.iterdir()) for entry in tmp_path.iterdir()] == [[]]
    with new_directory(target) as partial:
        (partial / "file").write_text("all")
    assert (target / "file").read_text() == "all"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    full, elsewhere = tmp_path / "full", tmp_path / "elsewhere"
    (tmp_path / "file").write_text("mine")
    for directory in (full, elsewhere):
        directory.mkdir()
        (directory / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name in ("file", "full", "link", "dangling"):
        target = tmp_path / name
        with pytest.raises(InputError) as error, new_directory(target):
            pytest.fail("the block must not run")
        assert error.value.code == code_of(lambda target=target: check_new(target)) == "OUTPUT_EXISTS"
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["link", "current", "mount"])
def test_an_empty_directory_that_cannot_be_replaced_is_refused_before_the_work(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    target = tmp_path / "empty"
    if kind == "link":
        target = tmp_path / "link"
        target.symlink_to("empty")
    elif kind == "current":
        monkeypatch.chdir(target)
        target = Path()
    else:
        monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    assert code_of(lambda: check_new(target)) == "OUTPUT_NOT_REPLACEABLE"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_empty_directory_is_refused_where_nothing_can_be_put_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "closed" / "empty"
    target.mkdir(parents=True)
    target.parent.chmod(0o500)
    assert code_of(lambda: check_new(target)) == "OUTPUT_NOT_WRITABLE"


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError) as error, new_directory(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")
    assert error.value.code == "OUTPUT_NOT_WRITABLE"


def test_text_replaces_an_older_file_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "results.json"
    write_text(target, "first – λ\n")
    assert target.read_text(encoding="utf-8") == "first – λ\n"
    write_text(target, "second")
    assert target.read_text() == "second"
    assert target.stat().st_mode & 0o777 == 0o644

    def failing(source: object, destination: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        write_text(target, "third")
    assert target.read_text() == "second"
    assert [entry.name for entry in target.parent.iterdir()] == ["results.json"]


def test_text_is_written_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no fcntl there, and neither directories nor files that are open for reading can be synced."""
    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle)
        synced.append(handle)

    with monkeypatch.context() as patched:
        patched.delattr(os, "O_DIRECTORY")
        patched.setitem(sys.modules, "fcntl", None)
        patched.setattr(os, "fsync", fsync)
        write_text(tmp_path / "facts.jsonl", "content")
        assert len(synced) == 1
    assert (tmp_path / "facts.jsonl").read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path, code in (
        (tmp_path / "file" / "deep" / "out.json", "OUTPUT_NOT_WRITABLE"),
        (tmp_path, "OUTPUT_NOT_A_FILE"),
        (Path(os.devnull), "OUTPUT_NOT_A_FILE"),
        (Path("-"), "OUTPUT_STDOUT"),
    ):
        assert code_of(lambda path=path: check_file(path)) == code
    check_file(tmp_path / "file")  # it may be replaced
    check_file(tmp_path / "new" / "out.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_reported_for_the_output_and_leaves_nothing(tmp_path: Path) -> None:
    for raised in (
        OSError(errno.ENOSPC, "No space left on device", "somewhere/else"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
    ):
        found: list[tuple[str, OutputError]] = []
        with pytest.raises(OutputError) as error, new_directory(tmp_path / "out"):
            raise raised
        found.append(("out", error.value))
        with pytest.raises(OutputError) as error, new_file(tmp_path / "out.json"):
            raise raised
        found.append(("out.json", error.value))
        # A failure of a file in a new directory is one of the directory: the file's own name vanishes with it.
        with pytest.raises(OutputError) as error:  # noqa: SIM117
            with new_directory(tmp_path / "dir") as part, new_file(part / "file"):
                raise raised
        found.append(("dir", error.value))
        for name, failure in found:
            assert (failure.code, failure.exit_status) == ("DISK_FULL", 1)
            assert str(failure).startswith(f"{tmp_path / name} ")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_cannot_have_the_name_of_a_file(tmp_path: Path) -> None:
    for name in ("out.txt", "out.JSON", "out.safetensors"):
        assert code_of(lambda name=name: check_new(tmp_path / name)) == "OUTPUT_NOT_A_DIRECTORY"
    assert code_of(lambda: check_new(tmp_path / "-")) == "OUTPUT_STDOUT"
    check_new(tmp_path / "qwen2.5")


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_are_those_that_the_umask_allows(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "text.json", "{}")
    with new_file(tmp_path / "patch.safetensors") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)  # which makes a file of its own, for the owner alone
    with new_directory(tmp_path / "model") as partial:
        (partial / "deep").mkdir(mode=0o700)
        (partial / "deep" / "file").touch(mode=0o600)
        save_file({"a": torch.zeros(1)}, partial / "model.safetensors")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    directory, file = 0o777 & ~umask, 0o666 & ~umask
    assert modes == {
        "text.json": file,
        "patch.safetensors": file,
        "model": directory,
        "deep": directory,
        "file": file,
        "model.safetensors": file,
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from errata.utils.files import new_directory, new_file, reserved
target, kind = Path(sys.argv[1]), sys.argv[2]
with reserved(target), (new_file if kind == "file" else new_directory)(target) as partial:
    (partial if kind == "file" else partial / "file").write_bytes(b"part")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_a_killed_process_left_goes_when_it_is_done_again_and_not_before_its_end(
    tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        there = sorted(tmp_path.iterdir())
        assert len(there) == 2
        with pytest.raises(InputError) as error, reserved(target):
            pytest.fail("the block must not run")
        assert error.value.code == "OUTPUT_RESERVED"
        write_text(tmp_path / "out.json", "")  # another target
        with pytest.raises(KeyError), new_file(target):  # who does not ask first takes nothing from who is at work
            assert {*there} < {*tmp_path.iterdir()}
            raise KeyError
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {*there} < {*tmp_path.iterdir()}
    with reserved(target), (new_file if kind == "file" else new_directory)(target) as partial:
        (partial if kind == "file" else partial / "file").write_bytes(b"all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.json"]


def test_a_reservation_leaves_nothing_and_makes_no_directory(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "out.safetensors"
    with reserved(target):
        assert not target.parent.exists()
        with pytest.raises(InputError) as error, reserved(target):
            pass
        assert error.value.code == "OUTPUT_RESERVED"
        with reserved(target.with_name("other")):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for check in (check_new, check_file, check_new_file):
        for name in ("x" * 256, f"{'y' * 300}/out", "/".join(["z" * 200] * 30)):
            assert code_of(lambda check=check, name=name: check(tmp_path / name)) == "OUTPUT_NAME_INVALID"
            check(tmp_path / name[:200])


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 250 + ".json"), "{}")
    with new_directory(tmp_path / ("é" * 127)):
        pass
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [None, b"\xff", b"", b"[1", b"[" * 100_000])
def test_a_json_file_that_cannot_be_read_has_the_code_that_was_given(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "notes.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"cannot read the notes {path}: ") as error:
        read_json(path, f"the notes {path}", remedy="Restore it", code="JSON_INVALID")
    assert (error.value.code, error.value.remedy) == ("JSON_INVALID", "Restore it")


def test_a_json_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    value = {"z": [1, 0.1, None, "Zürich\u2028"], "a": {}}
    write_json(path, value, indent=1)
    assert path.read_bytes() == json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = read_json(path, path, remedy="", code="JSON_INVALID")
    assert list(found.items()) == list(value.items())
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"), allow_nan=False)
    assert read_json(path, path, remedy="", code="JSON_INVALID") == value


ERRORS = (KeyError("digest"), TypeError("no list"), OSError(errno.EIO, "I/O error"), ZeroDivisionError(), IndexError())


@pytest.mark.parametrize("error", ERRORS)
def test_a_damaged_file_of_ours_is_reported_with_the_code_that_was_given(error: Exception) -> None:
    damaged = reading(Path("data.json"), remedy="Start over", code="BENCH_DATA_DAMAGED")
    with pytest.raises(InputError, match=r"cannot read data\.json: ") as caught, damaged:
        raise error
    assert (caught.value.code, caught.value.__cause__) == ("BENCH_DATA_DAMAGED", error)


def test_an_error_with_a_code_keeps_it_while_a_file_of_ours_is_read() -> None:
    other = InputError("other", code="LOCKED")
    with pytest.raises(InputError) as caught, reading(Path("data.json"), remedy="", code="BENCH_DATA_DAMAGED"):
        raise other
    assert caught.value is other


def test_counts_and_lists_of_names() -> None:
    assert [counted(count, what) for count, what in ((0, "fact"), (1, "patch"), (2, "patch"), (1200, "fact"))] == [
        "0 facts", "1 patch", "2 patches", "1,200 facts",
    ]  # fmt: skip
    assert [listed(range(count), 2) for count in range(4)] == ["", "0", "0, 1", "0, 1, …"]


def test_excerpts_are_cut_between_words() -> None:
    text = "The capital of France is Paris, on the Seine"
    assert excerpt(text, len(text)) == excerpt(text, len(text), end=True) == text
    for most in range(14, len(text)):
        for end in (False, True):
            cut = excerpt(text, most, end=end)
            assert len(cut) <= most
            words = cut.removeprefix("… ").removesuffix(" …")
            assert f" {words} " in f" {text} "
            assert text.endswith(words) if end else text.startswith(words)
            assert len(words) >= most // 2 - 2


def test_excerpts_without_spaces_are_cut_between_characters() -> None:
    assert excerpt("日本の首都は東京です", 6) == "日本の首都…"
    assert excerpt("日本の首都は東京です", 6, end=True) == "…は東京です"
    assert excerpt("see " + "x" * 40, 20) == "see " + "x" * 15 + "…"
    marked = "กิ" * 10  # a letter and its vowel sign are two characters
    assert excerpt(marked, 6) == "กิ" * 2 + "…"
    assert excerpt(marked, 6, end=True) == "…" + "กิ" * 2
