"""Patches: applied, undone, stacked, saved and loaded, all bit for bit; what is damaged or foreign is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import errata.patches.patch
from errata.editors.locate_then_edit import Editor
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.models.weights import DenseTerm, LowRankTerm, Term
from errata.patches.patch import EditorRecipe, Patch

from tests.support.editing import (
    FACTS,
    assert_same_bits,
    parameter_bits,
    tiny_language_model,
    tiny_recipe,
    write_corpus,
)
from tests.support.errors import raises_code

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def make_editor(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Editor]:
    folder = tmp_path_factory.mktemp("patch")
    corpus = write_corpus(folder / "corpus.txt")

    def make(model: LanguageModel, method: str = "memit_seq+blue") -> Editor:
        return Editor(model, tiny_recipe(corpus, method, target={"steps": 3}), cache=folder / "cache")

    return make


@pytest.fixture(scope="module")
def made(make_editor: Callable[..., Editor]) -> tuple[Patch, dict[str, torch.Tensor]]:
    """A patch of two batches for the tiny GPT-2, and the bits of the edited model."""
    model = tiny_language_model("gpt2")
    patch = make_editor(model).apply(FACTS[:4])
    return patch, parameter_bits(model)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_applying_gives_the_edited_weights_and_undoing_the_base(
    make_editor: Callable[..., Editor], tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    model = tiny_language_model(family, dtype=dtype)
    base = parameter_bits(model)
    patch = make_editor(model).apply(FACTS[:4])
    edited = parameter_bits(model)
    assert patch.layers == (1, 3)
    assert patch.facts == FACTS[:4]
    patch.save(tmp_path / "edit.patch")
    patch.undo(model)
    assert_same_bits(parameter_bits(model), base)

    for again in (patch, Patch.load(tmp_path / "edit.patch")):
        fresh = tiny_language_model(family, dtype=dtype)
        again.apply(fresh)
        assert_same_bits(parameter_bits(fresh), edited)
        again.undo(fresh)
        assert_same_bits(parameter_bits(fresh), base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_of_two_can_be_taken_out(make_editor: Callable[..., Editor], dtype: torch.dtype) -> None:
    model = tiny_language_model("llama", dtype=dtype)
    base = parameter_bits(model)
    editor = make_editor(model)
    first, second = editor.apply(FACTS[:2]), editor.apply(FACTS[2:4])
    both = parameter_bits(model)
    assert len(first.terms) == len(second.terms) == 2
    first.undo(model)

    expected = tiny_language_model("llama", dtype=dtype)
    expected.edits.add(second.terms)
    assert_same_bits(parameter_bits(model), parameter_bits(expected))
    assert any(not torch.equal(parameter_bits(model)[name], both[name]) for name in both)
    second.undo(model)
    assert_same_bits(parameter_bits(model), base)


def test_two_patches_stack_on_a_fresh_model_in_their_order_only(
    make_editor: Callable[..., Editor], tmp_path: Path
) -> None:
    model = tiny_language_model("gpt2")
    editor = make_editor(model)
    for name, facts in (("first", FACTS[:2]), ("second", FACTS[2:4])):
        editor.apply(facts).save(tmp_path / name)
    first, second = Patch.load(tmp_path / "first"), Patch.load(tmp_path / "second")
    fresh = tiny_language_model("gpt2")
    with raises_code("PATCH_OTHER_WEIGHTS", InputError):
        second.apply(fresh)  # it was found on weights that hold the first
    first.apply(fresh)
    second.apply(fresh)
    assert_same_bits(parameter_bits(fresh), parameter_bits(model))


def test_saving_and_loading_keeps_everything(made: tuple[Patch, Any], tmp_path: Path) -> None:
    patch, _ = made
    path = tmp_path / "deep" / "down" / "edit.patch"
    patch.save(path)
    loaded = Patch.load(path)
    for mine, theirs in zip(patch.terms, loaded.terms, strict=True):
        assert mine.layer == theirs.layer
        assert torch.equal(mine.left, theirs.left)
        assert torch.equal(mine.right, theirs.right)
        assert mine.left.dtype == theirs.left.dtype
    for name in ("facts", "recipe", "prefixes", "base", "fingerprint", "dtype", "created", "seed"):
        assert getattr(patch, name) == getattr(loaded, name), name
    assert dict(patch.versions) == dict(loaded.versions)
    assert set(loaded.versions) == {"errata", "torch", "transformers", "python"}
    assert [entry.name for entry in path.parent.iterdir()] == ["edit.patch"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_norms_are_those_of_the_whole_change(made: tuple[Patch, Any]) -> None:
    patch, _ = made
    for layer in patch.layers:
        dense = sum(term.left.double() @ term.right.double() for term in patch.terms if term.layer == layer)
        assert patch.norms()[layer] == pytest.approx(float(torch.linalg.matrix_norm(dense)), rel=1e-9)
        assert patch.norms()[layer] > 0


def test_relative_norms_compare_the_change_with_the_weights_it_was_made_for(make_editor: Callable[..., Editor]) -> None:
    model = tiny_language_model("gpt2")
    before = {layer: model.weight(layer).double().clone() for layer in (1, 3)}
    patch = make_editor(model).apply(FACTS[:4])
    dense = {layer: model.weight(layer).double() - before[layer] for layer in (1, 3)}
    expected = {layer: float(dense[layer].norm() / before[layer].norm()) for layer in (1, 3)}
    assert patch.relative_norms(model) == pytest.approx(expected, rel=1e-5)
    assert min(expected.values()) > 1e-3
    patch.undo(model)
    assert patch.relative_norms(model) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("other", ["seed", "dtype", "edited"])
def test_other_weights_are_refused(made: tuple[Patch, Any], other: str) -> None:
    patch, _ = made
    model = tiny_language_model(
        "gpt2",
        seed=1 if other == "seed" else 0,
        dtype=torch.bfloat16 if other == "dtype" else torch.float32,
    )
    if other == "edited":
        patch.apply(model)
    before = parameter_bits(model)
    with raises_code("PATCH_OTHER_WEIGHTS", InputError, patch.fingerprint[:12]):
        patch.apply(model)
    assert_same_bits(parameter_bits(model), before)


def test_what_is_not_applied_cannot_be_undone(made: tuple[Patch, Any]) -> None:
    patch, _ = made
    model = tiny_language_model("gpt2")
    before = parameter_bits(model)
    with raises_code("PATCH_NOT_APPLIED", InputError):
        patch.undo(model)
    assert_same_bits(parameter_bits(model), before)


def test_a_failure_while_applying_leaves_the_model_alone(
    made: tuple[Patch, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, edited = made
    model = tiny_language_model("gpt2")
    before = parameter_bits(model)
    original, calls = LanguageModel.set_weight, 0

    def interrupted(self: LanguageModel, *args: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, *args)
        if calls == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModel, "set_weight", interrupted)
        with pytest.raises(KeyboardInterrupt):
            patch.apply(model)
    assert_same_bits(parameter_bits(model), before)
    patch.apply(model)
    assert_same_bits(parameter_bits(model), edited)


def test_a_change_that_the_weights_cannot_hold_is_refused(made: tuple[Patch, Any]) -> None:
    """Finite factors, whose product is beyond what float16 can tell."""
    patch, _ = made
    large = replace(patch, terms=tuple(LowRankTerm(term.layer, term.left * 1e5, term.right) for term in patch.terms))
    model = tiny_language_model("gpt2", dtype=torch.float16)
    before = parameter_bits(model)
    with raises_code("PATCH_NOT_FINITE", InputError, "layer 1", "'gpt2'", "float16"):
        large.apply(model, force=True)
    assert_same_bits(parameter_bits(model), before)
    assert not model.edits.terms


def test_a_patch_that_was_read_does_not_change_with_its_file(made: tuple[Patch, Any], tmp_path: Path) -> None:
    """Whoever cuts the file off, or writes into it, after it was read and checked: the factors stay what they were."""
    patch, _ = made
    path = tmp_path / "edit.patch"
    patch.save(path)
    loaded = Patch.load(path)
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(b"\xff" * len(content))
        file.truncate(0)
    for mine, theirs in zip(patch.terms, loaded.terms, strict=True):
        assert torch.equal(mine.left, theirs.left)
        assert torch.equal(mine.right, theirs.right)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(made: tuple[Patch, Any], tmp_path: Path, share: float) -> None:
    path = tmp_path / "edit.patch"
    made[0].save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with raises_code("PATCH_UNREADABLE", InputError, str(path)):
        Patch.load(path)


@pytest.mark.parametrize("what", ["text", "safetensors", "missing", "directory", "no record", "record of nonsense"])
def test_what_is_no_patch_is_refused(made: tuple[Patch, Any], tmp_path: Path, what: str) -> None:
    path = tmp_path / "thing"
    tensors = {"0.left": torch.zeros(2, 1), "0.right": torch.zeros(1, 2)}
    if what == "text":
        path.write_text("not a patch\n" * 20)
    elif what == "safetensors":
        save_file(tensors, path)
    elif what == "directory":
        path.mkdir()
    elif what == "no record":
        save_file(tensors, path, metadata={"format": errata.patches.patch.FORMAT})
    elif what == "record of nonsense":
        save_file(tensors, path, metadata={"format": errata.patches.patch.FORMAT, "record": "[1, 2]"})
    with raises_code("PATCH_UNREADABLE", InputError, str(path)):
        Patch.load(path)


def test_a_missing_tensor_is_noticed(made: tuple[Patch, Any], tmp_path: Path) -> None:
    path = tmp_path / "edit.patch"
    made[0].save(path)
    metadata = _metadata(path)
    tensors = load_file(path)
    del tensors["1.right"]
    save_file(tensors, path, metadata=metadata)
    with raises_code("PATCH_UNREADABLE", InputError, str(path)):
        Patch.load(path)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("older", [True, False])
def test_saving_that_fails_leaves_what_was_there(
    made: tuple[Patch, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    path = tmp_path / "edit.patch"
    if older:
        path.write_text("older")

    def failing(tensors: Any, filename: str, metadata: Any) -> None:
        Path(filename).write_bytes(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(errata.patches.patch, "save_file", failing)
    with pytest.raises(KeyboardInterrupt):
        made[0].save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == (["edit.patch"] if older else [])
    if older:
        assert path.read_text() == "older"


def test_a_fresh_process_gets_the_same_bits(made: tuple[Patch, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    patch, edited = made
    patch.save(tmp_path / "edit.patch")
    model = tiny_language_model("gpt2")
    model.model.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    script = """
import sys
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
model = LanguageModel.load(sys.argv[1], device="cpu")
Patch.load(sys.argv[2]).apply(model)
model.model.save_pretrained(sys.argv[3])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    arguments = [str(tmp_path / name) for name in ("base", "edit.patch", "edited")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, env=environment, timeout=300)
    reloaded = LanguageModel.load(tmp_path / "edited", device="cpu")
    assert_same_bits(parameter_bits(reloaded), edited)


def test_terms_are_never_shared_by_value(made: tuple[Patch, Any]) -> None:
    """Undoing goes by identity: an equal change of someone else stays in."""
    patch, edited = made
    model = tiny_language_model("gpt2")
    twins = tuple(LowRankTerm(term.layer, term.left.clone(), term.right.clone()) for term in patch.terms)
    patch.apply(model)
    model.edits.add(twins)
    patch.undo(model)
    assert_same_bits(parameter_bits(model), edited)


def dense_patch(model: LanguageModel, *, scale: float = 0.1) -> Patch:
    """A dense and a low-rank change of one layer, by an editor without a recipe of its own."""
    generator = torch.Generator().manual_seed(0)
    d_out, d_in = model.weight(2).shape
    terms: tuple[Term, ...] = (
        DenseTerm(2, scale * torch.randn(d_out, d_in, generator=generator)),
        LowRankTerm(2, torch.randn(d_out, 1, generator=generator), torch.randn(1, d_in, generator=generator)),
    )
    return Patch(
        terms=terms,
        facts=FACTS[:2],
        recipe=EditorRecipe(method="ft", seed=5, batch_size=2, settings={"rate": 0.5, "layers": [2], "cap": None}),
        prefixes=(),
        base=model.name,
        fingerprint=model.fingerprint(),
        dtype="float32" if model.dtype == torch.float32 else "bfloat16",
        created="2026-11-28T00:00:00+00:00",
        versions={"errata": "0"},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_dense_change_is_saved_applied_and_undone(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_language_model("gpt2", dtype=dtype)
    base, patch = parameter_bits(model), dense_patch(model)
    w0 = model.weight(2).float().clone()
    patch.save(tmp_path / "edit.patch")
    again = Patch.load(tmp_path / "edit.patch")
    assert again.recipe == patch.recipe
    assert again.seed == 5
    assert (tmp_path / "edit.patch").stat().st_size >= again.stored_bytes > 4 * w0.numel()
    dense, low = again.terms
    assert isinstance(dense, DenseTerm)
    assert isinstance(low, LowRankTerm)
    whole = dense.value + low.left @ low.right
    assert again.norms()[2] == pytest.approx(float(whole.norm()), rel=1e-5)
    assert again.ranks()[2] == min(whole.shape)
    again.apply(model)
    torch.testing.assert_close(model.weight(2), (w0 + whole).to(dtype))
    again.undo(model)
    assert_same_bits(parameter_bits(model), base)


def test_a_dense_change_is_checked(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    patch = dense_patch(model)
    path = tmp_path / "edit.patch"
    for bad in (torch.full_like(model.weight(2), torch.nan), torch.zeros(3, 4)):
        replace(patch, terms=(DenseTerm(2, bad), *patch.terms)).save(path)
        with pytest.raises(InputError) as caught:
            Patch.load(path)
        assert caught.value.code == "PATCH_UNREADABLE"
    patch.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(InputError, match="checksum"):
        Patch.load(path)
