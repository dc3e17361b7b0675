"""Stacks: patches on a base, written and read, put in and taken out, bit for bit; and what is damaged is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.cli.edit_output import chat_could_help
from errata.editors.locate_then_edit import Editor, as_patch
from errata.editors.rebuild import named_facts, rebuild
from errata.editors.registry import editor_named
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.patches.stack import FILE, Stack, has_stack, is_stack, new_stack, read_stack, solved_on_top, write_stack
from errata.runs.loading import base_of, load_model, patches_of, stack_under
from errata.utils.progress import silent

from tests.support.editing import FACTS, assert_same_bits, editor_maker, parameter_bits, tiny_language_model
from tests.support.errors import raises_code

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
THREE = (FACTS[:2], FACTS[2:4], FACTS[4:])


@pytest.fixture(scope="module")
def make_editor(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Editor]:
    return editor_maker(tmp_path_factory.mktemp("stack"))


def three_patches(
    make_editor: Callable[..., Editor], family: str = "llama", dtype: torch.dtype = torch.float32
) -> tuple[Stack, LanguageModel]:
    """Three patches, each solved on top of those before it, and the model that they are in."""
    model = tiny_language_model(family, dtype=dtype)
    stack = new_stack(model, model.fingerprint())
    for name, method, facts in zip("abc", ("memit_seq+blue", "rect", "alphaedit"), THREE, strict=True):
        stack = stack.with_patch(name, make_editor(model, method).apply(facts))
    return stack, model


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_stack_gives_the_same_bits_again(
    make_editor: Callable[..., Editor], tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    stack, model = three_patches(make_editor, family, dtype)
    (tmp_path / "stack").mkdir()
    write_stack(stack, tmp_path / "stack")
    assert is_stack(tmp_path / "stack")
    fresh = tiny_language_model(family, dtype=dtype)
    base = parameter_bits(fresh)
    read = read_stack(tmp_path / "stack")
    read.put_into(fresh)
    assert_same_bits(parameter_bits(fresh), parameter_bits(model))
    for stacked in read.patches:
        stacked.patch.undo(fresh)
    assert_same_bits(parameter_bits(fresh), base)
    assert [stacked.name for stacked in read.patches] == ["a", "b", "c"]
    assert read.facts == [(name, fact) for name, facts in zip("abc", THREE, strict=True) for fact in facts]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_middle_one_taken_out_is_as_if_its_factors_had_never_been_added(
    make_editor: Callable[..., Editor], dtype: torch.dtype
) -> None:
    stack, model = three_patches(make_editor, dtype=dtype)
    left = stack.without(["b"])
    stack.patches[1].patch.undo(model)
    fresh = tiny_language_model("llama", dtype=dtype)
    left.put_into(fresh)
    assert_same_bits(parameter_bits(fresh), parameter_bits(model))
    assert [(stacked.name, stacked.missing) for stacked in left.patches] == [("a", ()), ("c", ("b",))]
    assert solved_on_top(stack, ["b"]) == [("c", THREE[2])]
    assert solved_on_top(stack, ["c"]) == []
    with raises_code("PATCH_UNKNOWN", InputError, "'x'", "a, b, c"):
        stack.without(["x"])


def test_names_are_unique(make_editor: Callable[..., Editor]) -> None:
    stack, _ = three_patches(make_editor)
    patch = stack.patches[0].patch
    again = stack.with_patch("a", patch).with_patch("a", patch)
    assert [stacked.name for stacked in again.patches] == ["a", "b", "c", "a-2", "a-3"]
    with raises_code("PATCH_NAME_TWICE", InputError, "'a'"):
        replace(stack, patches=(*stack.patches, stack.patches[0]))


def test_another_base_is_refused_and_left_as_it_was(make_editor: Callable[..., Editor]) -> None:
    stack, _ = three_patches(make_editor)
    for other in (tiny_language_model("llama", seed=1), tiny_language_model("llama", dtype=torch.bfloat16)):
        before = parameter_bits(other)
        with raises_code("STACK_OTHER_BASE", InputError, "in float32"):
            stack.put_into(other)
        assert_same_bits(parameter_bits(other), before)


@pytest.mark.parametrize("damage", ["flipped", "missing", "record", "outside", "dtype", "no record", "twice"])
def test_what_is_damaged_is_named(make_editor: Callable[..., Editor], tmp_path: Path, damage: str) -> None:
    stack, _ = three_patches(make_editor)
    write_stack(stack, tmp_path)
    file = next((tmp_path / "patches").glob("0002*"))
    record = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    words = file.name
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    elif damage == "record":
        (tmp_path / FILE).write_text("{", encoding="utf-8")
        words = FILE
    elif damage == "no record":
        (tmp_path / FILE).unlink()
        words = FILE
    elif damage == "outside":
        record["patches"][1]["file"] = "../../etc/passwd"
        (tmp_path / FILE).write_text(json.dumps(record), encoding="utf-8")
        words = "'../../etc/passwd'"
    elif damage == "twice":
        record["patches"][1]["name"] = record["patches"][0]["name"]
        (tmp_path / FILE).write_text(json.dumps(record), encoding="utf-8")
        words = "'a'"
    else:
        record["dtype"] = "float31"
        (tmp_path / FILE).write_text(json.dumps(record), encoding="utf-8")
        with raises_code("STACK_DAMAGED", InputError, "float31"):
            load_model(str(tmp_path))
        return
    with raises_code("STACK_DAMAGED", InputError, words):
        read_stack(tmp_path)


# Forced application -----------------------------------------------------------------------------------------


def test_force_puts_a_patch_on_other_weights_but_not_on_other_shapes(make_editor: Callable[..., Editor]) -> None:
    stack, _ = three_patches(make_editor)
    patch = stack.patches[0].patch
    other = tiny_language_model("llama", seed=1)
    before = parameter_bits(other)
    with raises_code("PATCH_OTHER_WEIGHTS", InputError):
        patch.apply(other)
    patch.apply(other, force=True)
    assert any(not torch.equal(bits, before[name]) for name, bits in parameter_bits(other).items())
    patch.undo(other)
    assert_same_bits(parameter_bits(other), before)
    term = patch.terms[0]
    narrow = type(term)(term.layer, term.left[:-1], term.right)  # type: ignore[attr-defined,call-arg]
    wrong = Patch(
        (narrow,), patch.facts, patch.recipe, patch.prefixes, patch.base, patch.fingerprint, patch.dtype,
        patch.created, patch.versions,
    )  # fmt: skip
    with raises_code("PATCH_SHAPE_MISMATCH", InputError, "31 × 48"):
        wrong.apply(other, force=True)
    assert_same_bits(parameter_bits(other), before)


# Rebuilding -----------------------------------------------------------------------------------------


def test_rebuilding_is_as_if_the_facts_had_never_been_edited(make_editor: Callable[..., Editor]) -> None:
    stack, _ = three_patches(make_editor)
    model = tiny_language_model("llama")
    found = rebuild(model, stack, ["plays", "c"], cache=make_editor(model).cache)
    expected = tiny_language_model("llama")
    make_editor(expected, "memit_seq+blue").apply(FACTS[:2])
    make_editor(expected, "rect").apply(FACTS[3:4])
    assert_same_bits(parameter_bits(model), parameter_bits(expected))
    assert [stacked.name for stacked in found.stack.patches] == ["a", "b"]
    assert found.stack.patches[0] is stack.patches[0]  # what lies below is not touched
    assert found.edited_again == ["b"]
    assert [fact.id for _, fact in found.removed] == ["plays", "work", "bell"]
    fresh = tiny_language_model("llama")
    found.stack.put_into(fresh)
    assert_same_bits(parameter_bits(fresh), parameter_bits(model))


@pytest.mark.parametrize("sequence", ["stack", "again"])
def test_rebuilding_with_editors_of_the_registry(make_editor: Callable[..., Editor], sequence: str) -> None:
    settings = {"layers": (1, 3), "steps": 3, "sequence": sequence}

    def edited(*groups: Sequence[Fact]) -> tuple[LanguageModel, Stack]:
        model = tiny_language_model("llama")
        lora = editor_named("lora").make(model, settings, silent)
        stack = new_stack(model, model.fingerprint())
        for name, facts in zip("abc", groups, strict=True):
            maker = make_editor(model, "memit") if name == "b" else lora
            stack = stack.with_patch(name, as_patch(maker.apply(facts)))
        return model, stack

    _, stack = edited(FACTS[:2], FACTS[2:4], FACTS[4:6])
    model = tiny_language_model("llama")
    rebuild(model, stack, ["c/bell"], cache=make_editor(model).cache)
    assert_same_bits(parameter_bits(model), parameter_bits(edited(FACTS[:2], FACTS[2:4], FACTS[4:5])[0]))


def test_editing_in_chat_is_suggested_for_locate_then_edit_only(
    make_editor: Callable[..., Editor], tmp_path: Path
) -> None:
    model = tiny_language_model("llama")
    lora = editor_named("lora").make(model, {"layers": (1,), "steps": 1}, silent)
    base = new_stack(model, model.fingerprint())
    others = base.with_patch("lora", as_patch(lora.apply(FACTS[:1])))
    both = others.with_patch("memit", make_editor(model, "memit").apply(FACTS[1:2]))
    for name, stack in (("others", others), ("both", both)):
        (tmp_path / name).mkdir()
        write_stack(stack, tmp_path / name)
    assert [chat_could_help(str(tmp_path / name)) for name in ("others", "both")] == [False, True]
    assert chat_could_help("lab")


def test_facts_are_named_by_patch_or_id(make_editor: Callable[..., Editor]) -> None:
    stack, _ = three_patches(make_editor)
    assert named_facts(stack, ["a"]) == [("a", FACTS[0]), ("a", FACTS[1])]
    assert named_facts(stack, ["b/plays", "plays", "bell"]) == [("b", FACTS[2]), ("c", FACTS[5])]
    with raises_code("FACT_OR_PATCH_UNKNOWN", InputError, "'x', 'y'"):
        named_facts(stack, ["x", "a", "y"])
    twice = stack.with_patch("d", stack.patches[0].patch)
    with raises_code("FACT_AMBIGUOUS", InputError, "'tower'", "a/tower, d/tower"):
        named_facts(twice, ["tower"])
    model = tiny_language_model("llama")
    with pytest.raises(InputError) as nothing:
        rebuild(model, stack, [])
    assert nothing.value.code == "FACTS_MISSING"


def test_a_rebuild_that_fails_leaves_the_base(
    make_editor: Callable[..., Editor], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, _ = three_patches(make_editor)
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    original, calls = Editor.apply, []

    def failing(self: Editor, *arguments: object, **options: object) -> Patch:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Editor, "apply", failing)
    with pytest.raises(KeyboardInterrupt):
        rebuild(model, stack, ["tower"], cache=make_editor(model).cache)
    assert_same_bits(parameter_bits(model), before)


# By name -----------------------------------------------------------------------------------------


def test_a_stack_is_loaded_by_its_name(make_editor: Callable[..., Editor], tmp_path: Path) -> None:
    base = tiny_language_model("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    model = LanguageModel.load(tmp_path / "base", device="cpu")
    stack = new_stack(model, model.fingerprint()).with_patch("a", make_editor(model).apply(FACTS[:2]))
    (tmp_path / "stack").mkdir()
    write_stack(stack, tmp_path / "stack")
    name = str(tmp_path / "stack")
    assert base_of(name) == str((tmp_path / "base").resolve())
    loaded = load_model(name, device="cpu")
    assert loaded.name == name
    assert_same_bits(parameter_bits(loaded), parameter_bits(model))
    under = stack_under(loaded, name, "")
    assert [stacked.name for stacked in under.patches] == ["a"]
    assert [title for title, _ in patches_of(name)] == ["a"]
    stack.patches[0].patch.save(tmp_path / "one.safetensors")
    assert [title for title, _ in patches_of(str(tmp_path / "one.safetensors"))] == ["one"]
    # Beside the weights of a full model it only says what is in them.
    write_stack(stack, tmp_path / "base")
    assert has_stack(tmp_path / "base")
    assert not is_stack(tmp_path / "base")
    with raises_code("PATCHES_MISSING", InputError, "'lab'"):
        patches_of("lab")


def test_a_base_that_lies_on_itself_is_refused(make_editor: Callable[..., Editor], tmp_path: Path) -> None:
    stack, _ = three_patches(make_editor)
    write_stack(Stack(str(tmp_path), stack.fingerprint, stack.dtype), tmp_path)
    with raises_code("STACK_CIRCULAR", InputError, str(tmp_path)):
        load_model(str(tmp_path))
