"""What the playground does without its page, on the lab's model."""

from __future__ import annotations

import socket
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from errata import Editor, Fact, LanguageModel, Patch, generate, shipped_recipe
from errata.cli.main import run
from errata.errors import FaultsError, InputError
from errata.patches.stack import read_stack
from errata.playground.session import HOST, Playground, Visit
from errata.utils.progress import SearchStep

from tests.support.errors import raises_code

FACT = ("Milan Lang", "The native city of {} is", "Istanbul")
PROMPT = "The native city of Milan Lang is"
CONTROLS = ("Fiona Meyer lives in", "Carla Lombardi won a medal in")


@pytest.fixture(scope="module")
def playground() -> Playground:
    recipe = shipped_recipe("lab", "memit+blue").with_choices({"batch_size": 1})
    made = Playground(LanguageModel.load("lab", device="cpu"), recipe, CONTROLS, lab=True)
    made.prepare()
    return made


@pytest.fixture(scope="module")
def edited(playground: Playground) -> tuple[list[SearchStep], Visit]:
    *steps, visit = playground.edit(playground.visit(), *FACT)
    assert isinstance(visit, Visit)
    return [step for step in steps if isinstance(step, SearchStep)], visit


@pytest.fixture(autouse=True)
def unedited_between_calls(playground: Playground) -> Iterator[None]:
    before = playground.model.fingerprint()
    yield
    assert playground.model.fingerprint() == before
    assert not playground.model.edits.terms


def test_an_edit_is_that_of_the_editor_and_its_loss_is_shown(
    playground: Playground, edited: tuple[list[SearchStep], Visit]
) -> None:
    steps, visit = edited
    assert len(steps) > 5
    assert {step.layer for step in steps} == {0, 2}
    assert steps[-1].loss < 0.1 * steps[0].loss
    (patch,) = visit.patches
    model = LanguageModel.load("lab", device="cpu")
    alone = Editor(model, playground.recipe).apply([Fact("edit-1", *FACT)])
    assert patch.fingerprint == alone.fingerprint
    for ours, theirs in zip(patch.terms, alone.terms, strict=True):
        assert torch.equal(ours.left, theirs.left)  # type: ignore[union-attr]
        assert torch.equal(ours.right, theirs.right)  # type: ignore[union-attr]
    # What the visitor sees is what the edited model says.
    before, after = playground.ask(visit, PROMPT + " ")
    assert (before.text.split(".")[0], after.text.split(".")[0]) == ("Delhi", "Istanbul")
    assert after.text == generate(model, [PROMPT], new_tokens=8)[0].strip()
    chances = model.next_token_log_probabilities([PROMPT])[0].exp().sort(descending=True)
    assert [share for _, share in after.likeliest] == pytest.approx(chances.values[:5].tolist(), rel=1e-5)
    assert after.likeliest[0][0] == " Istanbul"
    changed = [each for each in playground.check(visit) if each.is_changed]
    for each in playground.check(visit):
        assert each.now == generate(model, [each.prompt], new_tokens=8)[0].strip().split(".")[0]
    assert [each.prompt for each in changed] == ["The favourite sport of Milan Lang is"]
    assert set(CONTROLS) < set(visit.controls)


def test_visits_do_not_see_each_other(playground: Playground, edited: tuple[list[SearchStep], Visit]) -> None:
    before, after = playground.ask(playground.visit(), PROMPT)
    assert before == after
    assert not any(each.is_changed for each in playground.check(playground.visit()))


def test_undo_takes_out_one_edit_and_leaves_the_later_ones(
    playground: Playground, edited: tuple[list[SearchStep], Visit]
) -> None:
    *_, both = playground.edit(edited[1], "Fiona Meyer", "Fiona Meyer lives in", "Rome")
    assert isinstance(both, Visit)
    assert playground.ask(both, PROMPT)[1].text.startswith("Istanbul")
    assert playground.ask(both, CONTROLS[0])[1].text.startswith("Rome")
    left = playground.undo(both, "edit-1")
    assert playground.ask(left, PROMPT)[1].text.startswith("Delhi")
    assert playground.ask(left, CONTROLS[0])[1].text.startswith("Rome")
    assert left.stack.patches[0].missing == ("edit-1",)
    with raises_code("PATCH_UNKNOWN", InputError):
        playground.undo(left, "edit-1")
    *_, third = playground.edit(left, *FACT)
    assert isinstance(third, Visit)
    assert [stacked.name for stacked in third.stack.patches] == ["edit-2", "edit-3"]


def test_a_search_that_is_stopped_changes_nothing_and_is_in_nobodys_way(playground: Playground) -> None:
    running = playground.edit(playground.visit(), *FACT)
    assert isinstance(next(running), SearchStep)
    running.close()  # type: ignore[attr-defined]
    assert playground.ask(playground.visit(), PROMPT)[1].text.startswith("Delhi")


@pytest.mark.parametrize("kind", ["patch", "LoRA adapter"])
def test_exports_can_be_used(
    playground: Playground, edited: tuple[list[SearchStep], Visit], tmp_path: Path, kind: str
) -> None:
    path = playground.export(edited[1], kind, tmp_path)  # type: ignore[arg-type]
    if kind == "patch":
        model = LanguageModel.load("lab", device="cpu")
        Patch.load(path).apply(model)
        assert generate(model, [PROMPT], new_tokens=2) == [" Istanbul."]
    else:
        assert {"lora/adapter_config.json", "lora/adapter_model.safetensors"} <= set(zipfile.ZipFile(path).namelist())
    with raises_code("EDIT_MISSING", InputError):
        playground.export(playground.visit(), kind, tmp_path)  # type: ignore[arg-type]


def test_several_edits_are_exported_as_a_stack(
    playground: Playground, edited: tuple[list[SearchStep], Visit], tmp_path: Path
) -> None:
    *_, both = playground.edit(edited[1], "Fiona Meyer", "Fiona Meyer lives in", "Rome")
    assert isinstance(both, Visit)
    zipfile.ZipFile(playground.export(both, "patch", tmp_path)).extractall(tmp_path / "out")
    stack = read_stack(tmp_path / "out" / "stack")
    stack.put_into(model := LanguageModel.load("lab", device="cpu"))
    assert generate(model, [PROMPT, CONTROLS[0]], new_tokens=2) == [" Istanbul.", " Rome."]


def test_wrong_inputs_are_refused(playground: Playground) -> None:
    visit = playground.visit()
    for fact in (("", "x {}", "y"), ("Milan Lang", "no subject here", "y"), ("Milan Lang", "{} is", "")):
        with pytest.raises(FaultsError):
            next(playground.edit(visit, *fact))
    for prompt, code in (("  ", "PROMPT_EMPTY"), ("word " * 5000, "PROMPT_TOO_LONG")):
        with raises_code(code, InputError):
            playground.ask(visit, prompt)
        with raises_code(code, InputError):
            playground.with_control(visit, prompt)
    assert playground.with_control(visit, CONTROLS[0]) == replace(visit)  # each question once


@pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed")
def test_an_edited_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch = tmp_path / "one.safetensors"
    Editor(LanguageModel.load("lab", device="cpu"), shipped_recipe("lab", "memit+blue")).apply(
        [Fact("one", *FACT)]
    ).save(patch)
    assert run(["apply", str(patch), "--out", str(tmp_path / "stack")]) == 0
    capsys.readouterr()
    assert run(["playground", "--model", str(tmp_path / "stack")]) == 2
    assert "error[MODEL_NOT_PLAIN]" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    assert run(["playground"]) == 2
    error = capsys.readouterr().err
    assert "error[EXTRA_MISSING]" in error
    assert "errata[app]" in error


@pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed")
def test_a_port_in_use_is_refused_before_the_model_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server((HOST, 0)) as taken:
        assert run(["playground", "--model", "no-such-model", "--port", str(taken.getsockname()[1])]) == 2
    assert "error[ADDRESS_UNAVAILABLE]" in capsys.readouterr().err
