"""A run that is kept on disk: it edits as one that is not, and stopped anywhere it ends in the same bits."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import errata.benchmark.sequence
import errata.editing.target_search
import errata.patches.patch
import errata.runs.run
import errata.utils.files
from errata.benchmark.sequence import RecordedResult, measure, run_recorded, run_sequence
from errata.editing.preparation import EditContext
from errata.editing.target_loss import TargetLoss
from errata.editors import locate_then_edit
from errata.editors.locate_then_edit import Editor
from errata.errors import ErrataError, FaultsError, InputError, faults_of
from errata.models.language_model import LanguageModel
from errata.runs.ledger import Ledger, read_ledger
from errata.runs.run import RunDirectory, open_run

from tests.support.editing import assert_same_bits, parameter_bits, tiny_language_model
from tests.support.errors import raises_code
from tests.support.runs import (
    ASKED,
    BATCHES,
    EXAMINATION,
    Runs,
    Stop,
    assert_same_result,
    assert_same_run,
    assert_same_terms,
    content_of,
    failing,
    timeless,
)

# Least squares alone, with history at boundary layers, projected with history; masked, pruned as a whole, facts one
# after another, rounds on targets of the original weights: all that a batch may have to know of those before it.
METHODS = ("memit", "memit_seq+blue", "alphaedit", "rect", "prune", "rome", "nse")


@dataclass(frozen=True, slots=True)
class Whole:
    """A run that nothing disturbed.

    Attributes:
        bits: of the model before, and after each batch.
    """

    path: Path
    result: RecordedResult
    bits: list[dict[str, Tensor]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs.of(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Callable[[str], Whole]:
    """The undisturbed run of a method, made once."""
    made: dict[str, Whole] = {}

    def make(method: str) -> Whole:
        if method not in made:
            path = runs.folder / f"whole-{method}"
            runs.begin(path, method)
            model = tiny_language_model("gpt2")
            bits = [parameter_bits(model)]
            original = RunDirectory.add_batch

            def add_batch(self: RunDirectory, *args: Any) -> None:
                original(self, *args)
                bits.append(parameter_bits(model))

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(RunDirectory, "add_batch", add_batch)
                _, result = runs.go_on(path, model)
            made[method] = Whole(path, result, bits)
        return made[method]

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_disk_edits_bit_for_bit_as_one_that_is_not(
    runs: Runs, whole: Callable[[str], Whole], method: str
) -> None:
    kept = whole(method)
    model = tiny_language_model("gpt2")
    editor = Editor(model, runs.recipe(method), cache=runs.cache)
    patch = editor.apply(ASKED)
    assert_same_bits(parameter_bits(model), kept.bits[-1])
    assert_same_terms(patch.terms, kept.result.patch.terms)
    assert (patch.facts, patch.prefixes, patch.fingerprint) == (
        ASKED.facts,
        kept.result.patch.prefixes,
        kept.result.patch.fingerprint,
    )
    assert len({bits["transformer.h.3.mlp.c_proj.weight"].numpy().tobytes() for bits in kept.bits}) == BATCHES + 1


def test_a_run_on_disk_measures_as_one_that_is_not(runs: Runs, whole: Callable[[str], Whole]) -> None:
    kept = whole("memit_seq+blue")
    model = tiny_language_model("gpt2")
    before = measure(model, EXAMINATION)
    sequence = run_sequence(model, runs.recipe(), EXAMINATION, before, cache=runs.cache)
    assert timeless(kept.result.rows) == timeless(sequence.rows)
    seen = {(row["metric"], row["when"]) for row in kept.result.rows}
    assert {("efficacy_success", "right_after"), ("perplexity_ratio", "after"), ("seconds_per_edit", "after")} <= seen
    assert {("untouched_accuracy", "before"), ("untouched_accuracy", "after")} <= seen


def test_a_run_that_measures_nothing_has_the_same_weights(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path
) -> None:
    runs.begin(tmp_path / "run", ask=False)
    model, result = runs.go_on(tmp_path / "run")
    assert_same_bits(parameter_bits(model), whole("memit_seq+blue").bits[-1])
    assert result.rows == []
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "batches", "facts.jsonl", "ledger.jsonl", "lock", "log.txt", "recipe.yaml", "run.json",
    ]  # fmt: skip
    assert [file.suffix for file in (tmp_path / "run" / "batches").iterdir()] == [".safetensors"] * BATCHES


# Stopped anywhere -----------------------------------------------------------------------------------------------------

# (what is interrupted, which of its calls, whether it has done its work, how many batches are kept then)
STOPS: dict[str, tuple[Any, str, int, bool, int]] = {
    "asking before the first batch": (errata.benchmark.sequence, "measure", 1, False, 0),
    "what was said before is written, its line is not": (Ledger, "add", 1, False, 0),
    "searching targets of the first batch": (errata.editing.target_search, "find_targets", 1, False, 0),
    "searching targets of the second batch": (errata.editing.target_search, "find_targets", 4, True, 1),
    "asking after the second batch": (errata.benchmark.sequence, "evaluate_facts", 3, True, 1),
    "writing the second patch": (errata.runs.run, "write_patch", 2, False, 1),
    "the second patch is there, its line is not": (errata.runs.run, "write_patch", 2, True, 1),
    "what was said is there, the line is not": (Ledger, "add", 3, False, 1),
    "the second line is there": (Ledger, "add", 3, True, 2),
    "the last line is there": (Ledger, "add", 4, True, 3),
    "asking after the last batch": (errata.benchmark.sequence, "measure", 2, True, 3),
    "at the end": (errata.benchmark.sequence, "rows_of", 1, False, 3),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_stopped_anywhere_ends_in_the_same_bits_and_results(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path, stop: str
) -> None:
    owner, name, call, afterwards, kept = STOPS[stop]
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    runs.begin(path)
    with failing(owner, name, Stop(), call=call, afterwards=afterwards) as calls, pytest.raises(Stop):
        runs.go_on(path)
    assert calls() == call
    assert open_run(path).batches_done == kept
    model, result = runs.go_on(path)
    assert_same_bits(parameter_bits(model), expected.bits[-1])
    assert_same_result(result, expected.result)
    assert_same_run(path, expected.path)


@pytest.mark.parametrize("kept", range(1, BATCHES))
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_any_method_is_resumed_after_any_batch(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path, method: str, kept: int
) -> None:
    expected, path = whole(method), tmp_path / "run"
    runs.begin(path, method)
    with failing(errata.runs.run, "write_patch", Stop(), call=kept + 1, afterwards=True), pytest.raises(Stop):
        runs.go_on(path)
    assert open_run(path).batches_done == kept
    model, result = runs.go_on(path)
    assert_same_bits(parameter_bits(model), expected.bits[-1])
    assert_same_result(result, expected.result)
    assert_same_run(path, expected.path)


def test_stopped_once_in_every_batch(runs: Runs, whole: Callable[[str], Whole], tmp_path: Path) -> None:
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    runs.begin(path)
    for kept in range(1, BATCHES):
        with failing(errata.runs.run, "write_patch", Stop(), call=2, afterwards=True), pytest.raises(Stop):
            runs.go_on(path)
        assert open_run(path).batches_done == kept
    model, result = runs.go_on(path)
    assert_same_bits(parameter_bits(model), expected.bits[-1])
    assert_same_result(result, expected.result)


def test_a_finished_run_is_reported_again_and_not_repeated(runs: Runs, whole: Callable[[str], Whole]) -> None:
    expected = whole("memit_seq+blue")
    before = content_of(expected.path)
    with (
        failing(errata.editing.target_search, "find_targets", Stop(), call=1) as searched,
        failing(errata.benchmark.sequence, "measure", Stop(), call=1) as asked,
    ):
        model, result = runs.go_on(expected.path)
    assert searched() == asked() == 0
    assert_same_bits(parameter_bits(model), expected.bits[-1])
    assert_same_result(result, expected.result)
    assert result.rows == expected.result.rows  # the times too: they are those that were measured
    assert content_of(expected.path) == before


def test_what_another_process_did_meanwhile_is_not_done_again(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path
) -> None:
    """Opened before, locked after another process went on with the run to its end: its lines and answers stay."""
    path = tmp_path / "run"
    early = runs.begin(path)
    runs.go_on(path)
    before = content_of(path)
    model = tiny_language_model("gpt2")
    result = run_recorded(model, early, cache=runs.cache)
    assert content_of(path) == before
    assert early.batches_done == BATCHES
    assert_same_bits(parameter_bits(model), whole("memit_seq+blue").bits[-1])
    assert_same_result(result, whole("memit_seq+blue").result)


# What a crash leaves, and what no crash does --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_once(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stopped") / "run"
    runs.begin(path)
    with failing(errata.runs.run, "write_patch", Stop(), call=3, afterwards=True), pytest.raises(Stop):
        runs.go_on(path)
    return path


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A run with two complete batches, stopped after the third one's patch was written and before its line was."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def _torn_line(path: Path) -> None:
    ledger = path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"kind": "batch", "time": "2026-')


def _last_line_cut(path: Path) -> None:
    """The second batch's line: that batch is done once more; its successor's file cannot be there then."""
    (path / "batches" / "0003.safetensors").unlink()
    ledger = path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-30])


def _half_written_patch(path: Path) -> None:
    whole = path / "batches" / "0003.safetensors"
    (path / "batches" / ".0003.safetensors.k3j2.partial").write_bytes(whole.read_bytes()[:700])
    whole.unlink()


def _half_written_answers(path: Path) -> None:
    (path / ".before.json.k3j2.partial").write_bytes(b'{"rec')


def _patch_cut_without_a_line(path: Path) -> None:
    whole = path / "batches" / "0003.safetensors"
    whole.write_bytes(whole.read_bytes()[:700])


LEFT: dict[Callable[[Path], None], tuple[str, int]] = {
    _torn_line: (r"ledger\.jsonl ends in an incomplete line", 2),
    _last_line_cut: (r"ledger\.jsonl ends in an incomplete line", 1),
    _half_written_patch: (r"batches/\.0003\.safetensors\.k3j2\.partial is incomplete", 2),
    _half_written_answers: (r"\.before\.json\.k3j2\.partial is incomplete", 2),
    _patch_cut_without_a_line: (r"batches/0003\.safetensors has no line in the ledger", 2),
}


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
def test_what_a_crash_leaves_is_named_and_the_run_ends_as_if_it_had_not_been(
    runs: Runs, whole: Callable[[str], Whole], stopped: Path, leave: Callable[[Path], None]
) -> None:
    leave(stopped)
    named, kept = LEFT[leave]
    assert open_run(stopped).batches_done == kept
    model, result = runs.go_on(stopped)
    assert any(re.search(named, note) for note in result.notes)
    assert re.search(named, (stopped / "log.txt").read_text(encoding="utf-8"))
    assert not list(stopped.rglob("*.partial"))
    expected = whole("memit_seq+blue")
    assert_same_bits(parameter_bits(model), expected.bits[-1])
    assert_same_result(result, expected.result)
    assert_same_run(stopped, expected.path)


def _missing_patch(path: Path) -> None:
    (path / "batches" / "0001.safetensors").unlink()


def _damaged_patch(path: Path) -> None:
    _flip(path / "batches" / "0002.safetensors")


def _patches_swapped(path: Path) -> None:
    first, second = (path / "batches" / f"000{number}.safetensors" for number in (1, 2))
    first.rename(path / "third")
    second.rename(first)
    (path / "third").rename(second)


def _missing_answers(path: Path) -> None:
    (path / "batches" / "0002.json").unlink()


def _damaged_answers(path: Path) -> None:
    _flip(path / "batches" / "0001.json")


def _missing_before(path: Path) -> None:
    (path / "before.json").unlink()


def _changed_facts(path: Path) -> None:
    facts = path / "facts.jsonl"
    facts.write_text(facts.read_text(encoding="utf-8").replace("English", "Dutch"), encoding="utf-8")


def _changed_recipe(path: Path) -> None:
    recipe = path / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("ridge: 2.0", "ridge: 3.0"), encoding="utf-8")


def _missing_recipe(path: Path) -> None:
    (path / "recipe.yaml").unlink()


def _changed_examination(path: Path) -> None:
    asked = path / "examination.json"
    asked.write_text(asked.read_text(encoding="utf-8").replace("river", "crowd"), encoding="utf-8")


def _changed_manifest(path: Path) -> None:
    manifest = path / "run.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 1'), encoding="utf-8")


def _missing_manifest(path: Path) -> None:
    (path / "run.json").unlink()


def _missing_ledger(path: Path) -> None:
    (path / "ledger.jsonl").unlink()


def _changed_line(path: Path) -> None:
    ledger = path / "ledger.jsonl"
    ledger.write_text(ledger.read_text(encoding="utf-8").replace('"index": 0', '"index": 1'), encoding="utf-8")


def _lost_lines(path: Path) -> None:
    ledger = path / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))


def _lost_all_lines(path: Path) -> None:
    (path / "ledger.jsonl").write_bytes(b"")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


# The code of each fault, and the names in it.
REFUSED: dict[Callable[[Path], None], list[tuple[str, str]]] = {
    _missing_patch: [("RUN_FILE_MISSING", "0001.safetensors")],
    _damaged_patch: [("RUN_FILE_CHANGED", "0002.safetensors")],
    _patches_swapped: [("RUN_FILE_CHANGED", "0001.safetensors"), ("RUN_FILE_CHANGED", "0002.safetensors")],
    _missing_answers: [("RUN_FILE_MISSING", "0002.json")],
    _damaged_answers: [("RUN_FILE_CHANGED", "0001.json")],
    _missing_before: [("RUN_FILE_MISSING", "before.json")],
    _changed_facts: [("RUN_FILE_CHANGED", "facts.jsonl")],
    _changed_recipe: [("RUN_FILE_CHANGED", "recipe.yaml")],
    _missing_recipe: [("RUN_FILE_MISSING", "recipe.yaml")],
    _changed_examination: [("RUN_FILE_CHANGED", "examination.json")],
    _changed_manifest: [("RUN_FILE_CHANGED", "run.json")],
    _missing_manifest: [("RUN_UNREADABLE", "run.json")],
    _missing_ledger: [("LEDGER_UNREADABLE", "ledger.jsonl")],
    _changed_line: [("LEDGER_DAMAGED", "ledger.jsonl:2")],
    # The third patch has no line because of the crash; that the second has none either shows that lines were lost.
    _lost_lines: [("LEDGER_DAMAGED", " 0002.safetensors, 0003.safetensors")],
    _lost_all_lines: [("LEDGER_DAMAGED", " 0001.safetensors, 0002.safetensors, 0003.safetensors")],
}


@pytest.mark.parametrize("damage", REFUSED, ids=lambda damage: damage.__name__)
def test_damage_that_no_crash_causes_is_refused_and_nothing_is_changed(
    runs: Runs, whole: Callable[[str], Whole], stopped: Path, damage: Callable[[Path], None]
) -> None:
    sound = content_of(stopped)
    damage(stopped)
    damaged = content_of(stopped)
    model = tiny_language_model("gpt2")
    before = parameter_bits(model)
    with pytest.raises(InputError) as caught:
        runs.go_on(stopped, model)
    assert str(stopped) in str(caught.value)
    for fault, (code, names) in zip(faults_of(caught.value), REFUSED[damage], strict=True):
        assert fault.code == code
        assert names in str(fault)
    assert_same_bits(parameter_bits(model), before)
    assert content_of(stopped) == damaged
    # Nothing is lost: with the file restored, the run resumes.
    for name, content in sound.items():
        (stopped / name).write_bytes(content)
    model, _ = runs.go_on(stopped)
    assert_same_bits(parameter_bits(model), whole("memit_seq+blue").bits[-1])


def test_all_changes_are_reported_together(runs: Runs, stopped: Path) -> None:
    for damage in (_changed_facts, _changed_recipe, _missing_patch, _missing_before):
        damage(stopped)
    with pytest.raises(FaultsError) as caught:
        runs.go_on(stopped)
    assert sorted(fault.code for fault in caught.value.faults) == ["RUN_FILE_CHANGED"] * 2 + ["RUN_FILE_MISSING"] * 2


@pytest.mark.parametrize("other", ["seed", "dtype", "edited"])
def test_other_weights_are_refused_and_nothing_is_touched(runs: Runs, stopped: Path, other: str) -> None:
    dtype = torch.bfloat16 if other == "dtype" else torch.float32
    model = tiny_language_model("gpt2", seed=1 if other == "seed" else 0, dtype=dtype)
    if other == "edited":
        model, _ = runs.go_on(stopped)
    before, files = parameter_bits(model), content_of(stopped)
    with raises_code("RUN_OTHER_WEIGHTS", InputError, "'gpt2'", str(stopped)):
        runs.go_on(stopped, model)
    assert_same_bits(parameter_bits(model), before)
    assert content_of(stopped) == files


def test_another_corpus_is_refused_and_nothing_is_touched(runs: Runs, stopped: Path) -> None:
    corpus = runs.folder / "corpus.txt"
    text = corpus.read_text(encoding="utf-8")
    model = tiny_language_model("gpt2")
    before, files = parameter_bits(model), content_of(stopped)
    try:
        corpus.write_text(text + "\nOne more document.\n", encoding="utf-8")
        with raises_code("CORPUS_CHANGED", InputError, str(corpus), str(stopped)):
            runs.go_on(stopped, model)
        corpus.unlink()
        with raises_code("CORPUS_UNREADABLE", InputError, str(corpus)):
            runs.go_on(stopped, model)
    finally:
        corpus.write_text(text, encoding="utf-8")
    assert_same_bits(parameter_bits(model), before)
    assert content_of(stopped) == files
    runs.go_on(stopped, model)


def test_another_number_of_threads_is_reported(runs: Runs, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: open_run(stopped).manifest.threads + 1)
    _, result = runs.go_on(stopped)
    assert any("threads" in note and "not bit for bit" in note for note in result.notes)


# What fails in a batch ------------------------------------------------------------------------------------------------

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))
CPU_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

# (what fails, which of its calls, with what, what is said of it)
FAILURES: dict[str, tuple[Any, str, int, BaseException, str]] = {
    "disk full at the patch": (errata.patches.patch, "save_file", 3, NO_SPACE, "No space left"),
    "disk full at the answers": (errata.runs.run, "write_json", 4, NO_SPACE, "No space left"),
    "disk full at the line": (Ledger, "add", 4, NO_SPACE, "No space left"),
    "disk full while syncing": (errata.utils.files, "_sync", 11, NO_SPACE, "No space left"),
    "the directory became read-only": (errata.utils.files.secrets, "token_hex", 6, READ_ONLY, "Read-only file system"),
    "out of memory": (errata.editing.target_search, "find_targets", 5, MemoryError(), "MemoryError"),
    "out of a GPU's memory": (
        locate_then_edit, "check_logits", 3, torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out",
    ),
    "out of memory in torch": (locate_then_edit, "check_logits", 3, CPU_FULL, "can't allocate memory"),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_batch_that_fails_leaves_those_before_it_in_memory_and_on_disk_and_says_so(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path, failure: str
) -> None:
    owner, name, call, error, said = FAILURES[failure]
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    runs.begin(path)
    model = tiny_language_model("gpt2")
    with failing(owner, name, error, call=call) as calls, pytest.raises(ErrataError) as caught:
        runs.go_on(path, model)
    assert calls() >= call
    assert_stopped_behind_two(caught.value, said, model, path, expected)
    _assert_goes_on(runs, path, expected)


def assert_stopped_behind_two(error: ErrataError, said: str, model: LanguageModel, path: Path, whole: Whole) -> None:
    """Batch 3 failed: it is reported, and what is in memory and on disk is what was there after batch 2."""
    assert error.exit_status == 1
    assert error.what.startswith("batch 3 failed: ")
    assert said in error.what
    assert f"the model and {path} are as they were after batch 2 of 3" in error.what
    assert f"errata edit --resume {path}" in error.remedy
    assert_same_bits(parameter_bits(model), whole.bits[2])
    assert open_run(path).batches_done == 2
    assert not list(path.rglob("*.partial"))
    assert [batch.record.index for batch in open_run(path).saved_batches()] == [0, 1]


def _assert_goes_on(runs: Runs, path: Path, whole: Whole) -> None:
    model, result = runs.go_on(path)
    assert_same_bits(parameter_bits(model), whole.bits[-1])
    assert_same_result(result, whole.result)
    assert_same_run(path, whole.path)


@pytest.mark.parametrize("where", ["loss", "answers"])
def test_a_non_finite_number_leaves_the_batches_before_it(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No exception is injected here: a loss, or an output of the edited model, becomes NaN in batch 3."""
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    run = runs.begin(path)
    model = tiny_language_model("gpt2")
    with monkeypatch.context() as patched:
        if where == "loss":
            original = TargetLoss.__call__

            def loss(self: TargetLoss, delta: Tensor) -> Tensor:
                values = original(self, delta)
                return values * torch.nan if read_ledger(run.ledger.path).of("batch")[1:] else values

            patched.setattr(TargetLoss, "__call__", loss)
        else:
            check = locate_then_edit.check_logits

            def check_logits(context: EditContext, facts: Any) -> None:
                if read_ledger(run.ledger.path).of("batch")[1:]:
                    handle = context.model.head.register_forward_hook(lambda module, args, output: output * torch.nan)
                    try:
                        check(context, facts)
                    finally:
                        handle.remove()
                check(context, facts)

            patched.setattr(locate_then_edit, "check_logits", check_logits)
        with raises_code("NOT_FINITE") as caught:
            runs.go_on(path, model)
    assert_stopped_behind_two(caught.value, "'work'", model, path, expected)
    _assert_goes_on(runs, path, expected)


@pytest.mark.parametrize(("kept", "message"), [(0, "starting"), (2, "batch 3")])
def test_a_directory_that_cannot_be_written_in_stops_the_run(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, message: str
) -> None:
    """Root may write in any directory; nobody may write in a file. Nothing fails here but the writing itself."""
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    run = runs.begin(path)
    batches, away = path / "batches", tmp_path / "away"
    search = errata.editing.target_search.find_targets

    def close() -> None:
        if batches.is_dir() and len(read_ledger(run.ledger.path).of("batch")) == kept:
            batches.rename(away)
            batches.write_text("no directory", encoding="utf-8")

    def search_then_close(*args: Any, **kwargs: Any) -> Any:
        close()
        return search(*args, **kwargs)

    model = tiny_language_model("gpt2")
    if kept == 0:
        close()
    with monkeypatch.context() as patched:
        patched.setattr(errata.editing.target_search, "find_targets", search_then_close)
        with pytest.raises(ErrataError, match=rf"^{message} failed: .* as they were after batch {kept} of 3"):
            runs.go_on(path, model)
    assert_same_bits(parameter_bits(model), expected.bits[kept])
    batches.unlink()
    away.rename(batches)
    _assert_goes_on(runs, path, expected)


def test_a_run_that_cannot_be_locked_is_refused_before_any_work(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    runs.begin(path)
    (path / "lock").mkdir()
    model = tiny_language_model("gpt2")
    before, files = parameter_bits(model), content_of(path)
    with raises_code("OUTPUT_NOT_WRITABLE", InputError, str(path), "Is a directory"):
        runs.go_on(path, model)
    assert_same_bits(parameter_bits(model), before)
    assert content_of(path) == files


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (2, "evaluating before the edits failed: .* after batch 0 of 3"),
        (6, "evaluating after the edits failed: .* after batch 3 of 3"),
    ],
)
def test_a_full_disk_during_evaluation_is_reported_with_the_progress_of_the_run(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path, call: int, message: str
) -> None:
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    runs.begin(path)
    batches = 0 if call == 2 else BATCHES
    model = tiny_language_model("gpt2")
    with failing(errata.runs.run, "write_json", NO_SPACE, call=call - 1), pytest.raises(ErrataError, match=message):
        runs.go_on(path, model)
    assert_same_bits(parameter_bits(model), expected.bits[batches])
    _assert_goes_on(runs, path, expected)


def test_a_full_disk_under_the_log_is_reported_and_the_batch_is_kept(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path
) -> None:
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    runs.begin(path)
    model = tiny_language_model("gpt2")
    message = r"writing the log failed: .*No space left.* after batch 2 of 3"
    with failing(RunDirectory, "log", NO_SPACE, call=3), pytest.raises(ErrataError, match=message):
        runs.go_on(path, model)
    assert_same_bits(parameter_bits(model), expected.bits[2])
    _assert_goes_on(runs, path, expected)


def test_an_error_that_nobody_expects_is_not_hidden(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "run"
    runs.begin(path)
    broken = RuntimeError("The size of tensor a (3) must match")
    with failing(locate_then_edit, "check_logits", broken, call=2), pytest.raises(RuntimeError, match="size of tensor"):
        runs.go_on(path)
    assert open_run(path).batches_done == 1


# Other processes ------------------------------------------------------------------------------------------------------

PROCESS = """
import resource
import sys
from pathlib import Path

import errata.benchmark.sequence
import errata.runs.run
from errata.errors import ErrataError
from errata.runs.ledger import Ledger
from tests.support.editing import tiny_language_model
from tests.support.runs import Runs

what, folder, path = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])


def before_call(owner, name, do):
    original = getattr(owner, name)

    def replacement(*arguments, **named):
        do(*arguments, **named)
        return original(*arguments, **named)

    setattr(owner, name, replacement)


def wait(*arguments, **named):
    if not named:  # the measurement after a batch, not the one before the run
        print("in a batch", flush=True)
        sys.stdin.read()


def fill_disk(size):
    # Python ignores SIGXFSZ: what is written beyond the limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def at_patch(patch, to, **named):
    if to.name == "0003.safetensors":
        fill_disk(1000)


def at_line(ledger, kind, **about):
    if about.get("index") == 2:
        fill_disk(ledger.valid_bytes + 100)


before_call(*{
    "wait": (errata.benchmark.sequence, "evaluate_facts", wait),
    "patch": (errata.runs.run, "write_patch", at_patch),
    "line": (Ledger, "add", at_line),
}[what])
model = tiny_language_model("gpt2")
try:
    Runs(folder).go_on(path, model)
except ErrataError as error:
    print(error, flush=True)
    print(model.fingerprint())
"""


def process(what: str, folder: Path, path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, what, str(folder), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def test_a_second_process_is_refused_until_the_first_is_killed(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path
) -> None:
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    runs.begin(path)
    first = process("wait", runs.folder, path)
    assert first.stdout is not None
    assert first.stdout.readline() == "in a batch\n"
    model = tiny_language_model("gpt2")
    before, files = parameter_bits(model), content_of(path)
    with raises_code("RUN_LOCKED", InputError, f"process {first.pid}", str(path)):
        runs.go_on(path, model)
    assert_same_bits(parameter_bits(model), before)
    assert content_of(path) == files
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    first.communicate()
    _assert_goes_on(runs, path, expected)


@pytest.mark.parametrize("where", ["patch", "line"])
def test_a_full_disk_stops_the_run_after_the_last_complete_batch(
    runs: Runs, whole: Callable[[str], Whole], tmp_path: Path, where: str
) -> None:
    """Nothing is injected: the operating system takes no more of the third patch, or half of the third line."""
    expected, path = whole("memit_seq+blue"), tmp_path / "run"
    runs.begin(path)
    first = process(where, runs.folder, path)
    said, _ = first.communicate("")
    assert first.returncode == 0
    message, fingerprint = said.splitlines()
    assert message.startswith("batch 3 failed: ")
    assert f"the model and {path} are as they were after batch 2 of 3" in message
    model = tiny_language_model("gpt2")
    for layer in (1, 3):
        name = f"transformer.h.{layer}.mlp.c_proj.weight"
        parameter = model.model.get_parameter(name)
        parameter.data = expected.bits[2][name].view(torch.float32).clone()
    assert fingerprint == model.fingerprint()
    assert open_run(path).batches_done == 2
    assert not open_run(path).ledger.truncated
    assert not list(path.rglob("*.partial"))
    _assert_goes_on(runs, path, expected)
