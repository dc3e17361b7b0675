"""A run's directory: what is in it, what belongs to it and what does not, and who may work there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import errata.runs.run
from errata.errors import FaultsError, InputError, OutputError
from errata.facts.fact import FactSet
from errata.facts.files import read_facts
from errata.runs.ledger import START, read_ledger
from errata.runs.run import Manifest, create_run, is_run, open_run
from errata.utils.files import file_digest

from tests.support.errors import raises_code
from tests.support.runs import ASKED, BATCHES, EXAMINATION, Runs, content_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs.of(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def finished(runs: Runs) -> dict[str, bytes]:
    """Every file of a run that is done."""
    runs.begin(runs.folder / "finished")
    runs.go_on(runs.folder / "finished")
    return content_of(runs.folder / "finished")


@pytest.fixture
def run(finished: dict[str, bytes], tmp_path: Path) -> Path:
    """A copy of it."""
    (tmp_path / "run" / "batches").mkdir(parents=True)
    for name, content in finished.items():
        (tmp_path / "run" / name).write_bytes(content)
    return tmp_path / "run"


def test_a_new_run_holds_all_that_it_takes_and_nothing_is_done(runs: Runs, tmp_path: Path) -> None:
    made = runs.begin(tmp_path / "run")
    assert sorted(file.name for file in made.path.iterdir()) == [
        "batches", "examination.json", "facts.jsonl", "ledger.jsonl", "recipe.yaml", "run.json",
    ]  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    read = open_run(made.path)
    assert read == made
    assert read.facts.facts == ASKED.facts
    assert read.recipe == runs.recipe()
    assert read.examination is not None
    assert read.examination["prose"] == list(EXAMINATION.prose)
    assert (read.batches_done, read.batches) == (0, BATCHES)
    assert read.measurement("before") is None
    assert read.manifest.batch_size == 2
    assert read.manifest.digests == {
        name: file_digest(made.path / name) for name in ("facts.jsonl", "recipe.yaml", "examination.json")
    }
    assert is_run(made.path)
    assert not is_run(tmp_path)


def test_the_file_that_the_facts_are_from_is_recorded_and_need_not_stay(runs: Runs, tmp_path: Path) -> None:
    source = tmp_path / "facts.jsonl"
    lines = [json.dumps(fact.to_record()) for fact in ASKED.facts[:3]]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = read_facts(source)
    made = create_run(
        tmp_path / "run", model="gpt2", fingerprint="0" * 64, dtype="float32", lab=False, recipe=runs.recipe(),
        facts=facts, corpus="", seed=0, examination=None,
    )  # fmt: skip
    assert made.manifest.facts_source == str(source)
    assert made.manifest.facts_source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    source.unlink()
    assert open_run(made.path).facts.digest() == facts.digest()
    assert open_run(made.path).examination is None


@pytest.mark.parametrize("there", ["a file", "a directory that is not empty", "a run"])
def test_nothing_that_is_there_is_ever_overwritten(runs: Runs, run: Path, tmp_path: Path, there: str) -> None:
    path = tmp_path / "there"
    if there == "a file":
        path.write_text("mine", encoding="utf-8")
    elif there == "a run":
        path = run
    else:
        path.mkdir()
        (path / "mine").touch()
    before = content_of(tmp_path)
    with raises_code("OUTPUT_EXISTS", InputError, str(path)):
        runs.begin(path)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("stage", ["write_text", "new_ledger", "write_facts"])
def test_a_run_that_cannot_be_begun_leaves_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(errata.runs.run, stage, full)
    with pytest.raises(OutputError) as error:
        runs.begin(tmp_path / "run")
    assert error.value.code == "DISK_FULL"
    assert list(tmp_path.iterdir()) == []


def test_reading_a_run_changes_nothing(run: Path, finished: dict[str, bytes]) -> None:
    read = open_run(run)
    assert read.batches_done == BATCHES
    assert [batch.record.index for batch in read.saved_batches()] == [0, 1, 2]
    assert [batch.record.facts for batch in read.saved_batches()] == [
        ASKED.facts[0:2],
        ASKED.facts[2:4],
        ASKED.facts[4:],
    ]
    assert all(batch.record.keys for batch in read.saved_batches())
    assert content_of(run) == finished
    assert not (run / "lock").exists()


def test_beginning_a_batch_over_removes_what_has_no_line_and_nothing_else(
    run: Path, finished: dict[str, bytes]
) -> None:
    opened = open_run(run)
    assert opened.discard_unfinished_batch() == []
    assert content_of(run) == finished
    for name in ("batches/.0004.safetensors.xx.partial", ".after.json.yy.partial"):
        (run / name).write_bytes(b"part")
    (run / "notes.txt").write_text("of the user", encoding="utf-8")
    notes = opened.discard_unfinished_batch()
    assert len(notes) == 2
    assert all(".partial is incomplete" in text for text in notes)
    assert content_of(run) == {**finished, "notes.txt": b"of the user"}


# What checksums cannot tell -------------------------------------------------------------------------------------------


def rewrite_ledger(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """The ledger with other lines, each with a checksum that fits: as another version of errata might write it."""
    bodies = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change(bodies)
    last, lines = START, []
    for body in bodies:
        body.pop("checksum", None)
        canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        last = hashlib.sha256(f"{last}\n{canonical}".encode()).hexdigest()
        lines.append(json.dumps({**body, "checksum": last}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _no_patch(bodies: list[dict[str, Any]]) -> None:
    del bodies[2]["patch"]


def _index_as_text(bodies: list[dict[str, Any]]) -> None:
    bodies[1]["index"] = "0"


def _facts_of_another_form(bodies: list[dict[str, Any]]) -> None:
    bodies[1]["left_alone"] = [["tongue"]]


def _a_number_twice(bodies: list[dict[str, Any]]) -> None:
    bodies[2]["index"] = 0


def _a_kind_of_tomorrow(bodies: list[dict[str, Any]]) -> None:
    bodies.append({"kind": "undone", "time": "2030-01-01T00:00:00+00:00", "index": 2})


def _nothing_said(bodies: list[dict[str, Any]]) -> None:
    bodies[0]["said"] = None


UNKNOWN: dict[Callable[[list[dict[str, Any]]], None], str] = {
    _no_patch: " batch.patch: ",
    _index_as_text: " batch.index: ",
    _facts_of_another_form: " batch.left_alone.0: ",
    _a_number_twice: "not numbered",
    _a_kind_of_tomorrow: "'undone'",
    _nothing_said: " before.said: ",
}


@pytest.mark.parametrize("change", UNKNOWN, ids=lambda change: change.__name__)
def test_lines_that_errata_does_not_write_are_refused(run: Path, change: Callable[..., None]) -> None:
    rewrite_ledger(run / "ledger.jsonl", lambda bodies: None)
    assert open_run(run).batches_done == BATCHES  # with the lines as they were
    rewrite_ledger(run / "ledger.jsonl", change)
    with raises_code("LEDGER_DAMAGED", FaultsError, UNKNOWN[change]):
        open_run(run)
    assert read_ledger(run / "ledger.jsonl").entries


def rewrite_manifest(path: Path, **changes: Any) -> None:
    """run.json with other values, and a checksum that fits where that can be."""
    whole = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    whole.pop("checksum")
    whole["checksum"] = Manifest.model_construct(**whole).checksum()
    path.write_text(json.dumps(whole), encoding="utf-8")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "errata-run-9"),
        ("dtype", "float3"),
        ("dtype", "Tensor"),
        ("seed", -1),
        ("batch_size", 0),
        ("digests", {}),
        ("digests", {"facts.jsonl": "0" * 64}),
        ("digests", {"facts.jsonl": "0" * 64, "recipe.yaml": "0" * 64, "../../secret": "0" * 64}),
        ("unknown", 1),
    ],
)
def test_a_record_of_another_form_is_refused(run: Path, field: str, value: Any) -> None:
    rewrite_manifest(run / "run.json")
    assert open_run(run).batches_done == BATCHES
    rewrite_manifest(run / "run.json", **{field: value})
    with raises_code("RUN_UNREADABLE", InputError, "run.json", field):
        open_run(run)


# The lock -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(run: Path) -> Iterator[int]:
    """A process that holds the run's lock until it is killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run in here
        try:
            with open_run(run).locked():
                os.write(write, b"!")
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(read, 1) == b"!"
    yield child
    os.close(read)
    os.close(write)
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def test_two_processes_cannot_work_on_one_run(run: Path, holder: int, finished: dict[str, bytes]) -> None:
    with (
        raises_code("RUN_LOCKED", InputError, f"process {holder}", str(run)),
        open_run(run).locked(),
    ):
        pytest.fail("it was let in")
    assert (run / "lock").read_text(encoding="utf-8") == f"process {holder}"
    assert open_run(run).batches_done == BATCHES  # reading is free
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with open_run(run).locked():
        assert (run / "lock").read_text(encoding="utf-8") == f"process {os.getpid()}"
    with open_run(run).locked():
        assert content_of(run) == finished


def test_the_lock_is_free_after_an_error(run: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(run).locked():
        raise KeyboardInterrupt
    with open_run(run).locked():
        pass


@pytest.mark.parametrize("name", ["lock", "log.txt", "after.json", "batches"])
def test_a_run_with_links_is_not_resumed(runs: Runs, run: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    if (path := run / name).exists():
        path.rename(victim)
    else:
        victim.write_text("of somebody else", encoding="utf-8")
    before = content_of(victim) if victim.is_dir() else victim.read_bytes()
    path.symlink_to(victim)
    with raises_code("FILE_NOT_REGULAR", InputError, str(path)):
        runs.go_on(run)
    assert before == (content_of(victim) if victim.is_dir() else victim.read_bytes())
    if name in ("lock", "log.txt"):
        with raises_code("FILE_NOT_REGULAR", InputError, str(path)), open_run(run).locked():
            pytest.fail("the block must not run")


def test_under_the_lock_the_ledger_is_read_again(run: Path) -> None:
    early = open_run(run)
    open_run(run).ledger.add("after", said="0" * 64)
    assert len(early.ledger.entries) == 5
    with early.locked():
        assert len(early.ledger.entries) == 6


def test_facts_without_a_file_are_named_by_their_source(runs: Runs, tmp_path: Path) -> None:
    made = create_run(
        tmp_path / "run", model="gpt2", fingerprint="0" * 64, dtype="float32", lab=False, recipe=runs.recipe(),
        facts=FactSet(ASKED.facts[:1], "of my own"), corpus="", seed=0, examination=None,
    )  # fmt: skip
    assert (made.manifest.facts_source, made.manifest.facts_source_sha256) == ("of my own", "")


@pytest.mark.parametrize(
    ("number", "way_out"),
    [(1, ""), (2, "apply {}/0001.safetensors --model"), (3, "apply --force {}/{{0001..0002}}.safetensors --model")],
)
def test_a_damaged_batch_says_what_is_left_of_the_run(run: Path, number: int, way_out: str) -> None:
    path = run / "batches" / f"{number:04}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FaultsError) as caught:
        open_run(run).saved_batches()
    (fault,) = caught.value.faults
    assert "or begin a new run" in fault.remedy
    assert way_out.format(run / "batches") in fault.remedy
    assert ("intact" in fault.remedy) == (number > 1)
