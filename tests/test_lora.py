"""LoRA adapters: through PEFT itself they must give what the patches give, and what they leave out must be reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import errata.patches.lora_export
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.facts.files import facts_from_records
from errata.models.language_model import LanguageModel
from errata.models.weights import DenseTerm, LowRankTerm, SparseTerm, Term
from errata.patches.factors import balanced, exact_rank, factors_of
from errata.patches.lora_export import Adapter, compare_answers, patches_applied
from errata.patches.patch import Patch, supported_dtype_name
from errata.utils.provenance import now, software_versions

from tests.reference import lora as slow
from tests.support.editing import (
    FACTS,
    assert_same_bits,
    editor_maker,
    parameter_bits,
    tiny_language_model,
    tiny_recipe,
)
from tests.support.errors import raises_code
from tests.support.tiny_models import FAMILIES, tiny_model

TOLERANCE = 1e-4
MODULE = {"gpt2": "transformer.h.{}.mlp.c_proj", "llama": "model.layers.{}.mlp.down_proj"}


def random_matrix(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(model: LanguageModel, layer: int, rank: int, *, seed: int = 0) -> LowRankTerm:
    """A change about as large as W; long on the left and short on the right, as solvers give them."""
    d_out, d_in = model.weight(layer).shape
    left, right = random_matrix(d_out, rank, seed=seed), random_matrix(rank, d_in, seed=seed + 1)
    return LowRankTerm(layer, (20 * left).float(), (0.01 * right / rank**0.5).float())


def sparse(model: LanguageModel, layer: int, *, seed: int = 0) -> SparseTerm:
    """A change of every third entry or so."""
    change = 0.2 * random_matrix(*model.weight(layer).shape, seed=seed)
    mask = change.abs() > change.abs().quantile(0.66)
    return SparseTerm(layer, change[mask].float(), mask)


def write_adapter(directory: Path, patches: list[Patch], model: PreTrainedModel, *, rank: int | None = None) -> Adapter:
    adapter = Adapter.of(patches, rank)
    adapter.write(directory, model)
    return adapter


def patch_of(model: LanguageModel, terms: Sequence[Term], facts: Sequence[Fact] = FACTS[:1]) -> Patch:
    """A patch for the model as it is."""
    return Patch(
        terms=tuple(terms),
        facts=tuple(facts),
        recipe=tiny_recipe(Path("corpus.txt")),
        prefixes=(),
        base=model.name,
        fingerprint=model.fingerprint(),
        dtype=supported_dtype_name(model.dtype),
        created=now(),
        versions=software_versions(),
    )


def logits(model: Any) -> Tensor:
    ids = torch.tensor([[5, 9, 17, 30, 44, 2, 8], [61, 3, 3, 12, 7, 25, 40]])
    with torch.no_grad():
        result: Tensor = model(input_ids=ids).logits
    return result


def through_peft(family: str, directory: Path, **overrides: Any) -> tuple[Any, list[str]]:
    """A fresh base with the adapter on it, read by PEFT, and the paths of the modules that it adapted."""
    from peft import PeftModel  # slow, so not while tests are collected
    from peft.tuners.lora import LoraLayer

    model: Any = PeftModel.from_pretrained(tiny_model(family, **overrides)[0], str(directory))
    adapted = [name for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)]
    return model.eval(), adapted


def delta(adapted: Any, path: str) -> Tensor:
    """B A as PEFT forms it, (d_out, d_in)."""
    module = adapted.base_model.model.get_submodule(path)
    found: Tensor = module.lora_B["default"].weight @ module.lora_A["default"].weight
    return module.scaling["default"] * found.detach().double()


# Through PEFT ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_base_and_adapter_give_the_patched_logits(family: str, tmp_path: Path) -> None:
    model = tiny_language_model(family)
    before = logits(model.model)
    # Layers of different ranks, one of them in two terms.
    patch = patch_of(model, [low_rank(model, 1, 3), low_rank(model, 4, 2, seed=5), low_rank(model, 1, 2, seed=9)])
    adapter = write_adapter(tmp_path / "adapter", [patch], model.model)
    assert (adapter.rank, adapter.is_exact) == (5, True)
    assert [factors.rank for factors in adapter.layers] == [5, 2]
    for factors in adapter.layers:  # for those who load it in half precision
        assert 0.49 < float((factors.left.norm(dim=0) / factors.right.norm(dim=1)).max()) < 2.01
    patch.apply(model)
    adapted, modules = through_peft(family, tmp_path / "adapter")
    row = model.architecture
    assert modules == [f"{row.blocks}.{layer}.{row.down_projection}" for layer in (1, 4)]
    assert float((logits(model.model) - before).abs().max()) > 0.05
    torch.testing.assert_close(logits(adapted), logits(model.model), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["memit_seq+blue", "prune"])
def test_a_run_of_several_batches_is_exported_exactly(family: str, method: str, tmp_path: Path) -> None:
    model = tiny_language_model(family)
    before = logits(model.model)
    # Large changes, for otherwise there is nothing to prune.
    editor = editor_maker(tmp_path)(model, method, target={"steps": 4, "learning_rate": 2.0, "clamp": 20.0})
    editor.apply(FACTS[:4]).save(tmp_path / "patch")
    patch = Patch.load(tmp_path / "patch")
    if method == "prune":
        assert all(isinstance(term, LowRankTerm) and term.replaces for term in patch.terms)
    adapter = write_adapter(tmp_path / "adapter", [patch], tiny_model(family)[0])
    assert adapter.rank == 4  # one for each fact
    adapted, modules = through_peft(family, tmp_path / "adapter")
    assert modules == [MODULE[family].format(layer) for layer in patch.layers]
    assert float((logits(model.model) - before).abs().max()) > 0.05
    torch.testing.assert_close(logits(adapted), logits(model.model), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("written", [(1,), (2, 12), tuple(range(1, 24))], ids=["one", "two", "more than twenty"])
def test_only_the_written_modules_are_adapted(family: str, written: tuple[int, ...], tmp_path: Path) -> None:
    """Layer 1 is not layer 11; and PEFT shortens long lists of modules to what they end in."""
    layers = {"n_layer" if family == "gpt2" else "num_hidden_layers": 24}
    model = tiny_language_model(family, **layers)
    patch = patch_of(model, [low_rank(model, layer, 1, seed=layer) for layer in written])
    write_adapter(tmp_path / "adapter", [patch], model.model)
    adapted, modules = through_peft(family, tmp_path / "adapter", **layers)
    assert modules == [MODULE[family].format(layer) for layer in written]
    for term, path in zip(patch.terms, modules, strict=True):
        assert isinstance(term, LowRankTerm)
        torch.testing.assert_close(delta(adapted, path), (term.left @ term.right).double(), rtol=1e-5, atol=1e-6)


def test_the_meta_device_suffices(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    patch = patch_of(model, [low_rank(model, 2, 2)])
    with torch.device("meta"):
        empty = type(model.model)(model.model.config)
    write_adapter(tmp_path / "meta", [patch], empty)
    write_adapter(tmp_path / "real", [patch], model.model)
    for name in ("adapter_config.json", "adapter_model.safetensors", "errata.json"):
        assert (tmp_path / "meta" / name).read_bytes() == (tmp_path / "real" / name).read_bytes()


def test_more_facts_than_the_matrix_has_rows_need_no_higher_rank(tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    patch = patch_of(model, [low_rank(model, 3, 30, seed=seed) for seed in (1, 2, 3)])
    adapter = write_adapter(tmp_path / "adapter", [patch], model.model)
    assert (adapter.rank, adapter.is_exact, adapter.layers[0].error) == (32, True, 0)
    patch.apply(model)
    adapted, _ = through_peft("llama", tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), logits(model.model), rtol=0, atol=TOLERANCE)


def test_patches_on_each_other_become_one_adapter(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    first = patch_of(model, [low_rank(model, 1, 2)])
    first.apply(model)
    second = patch_of(model, [low_rank(model, 1, 1, seed=7), low_rank(model, 3, 1, seed=8)])
    second.apply(model)
    adapter = write_adapter(tmp_path / "adapter", [first, second], model.model)
    assert [factors.rank for factors in adapter.layers] == [3, 1]
    adapted, _ = through_peft("gpt2", tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), logits(model.model), rtol=0, atol=TOLERANCE)


# What is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_files_say_what_they_are(family: str, tmp_path: Path) -> None:
    model = tiny_language_model(family)
    patch = patch_of(model, [low_rank(model, 1, 4), low_rank(model, 2, 2)], FACTS[:3])
    adapter = write_adapter(tmp_path / "adapter", [patch], model.model, rank=3)
    folder = tmp_path / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "errata.json",
    ]
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(folder))
    assert (config.r, config.lora_alpha, config.use_rslora, config.bias) == (3, 3, False, "none")
    assert config.fan_in_fan_out == (family == "gpt2")
    assert (config.task_type, config.base_model_name_or_path) == ("CAUSAL_LM", family)
    assert not config.rank_pattern
    weights = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert {name.split(".")[-2]: 3 in tensor.shape for name, tensor in weights.items()} == {
        "lora_A": True,
        "lora_B": True,
    }
    record = json.loads((folder / "errata.json").read_text(encoding="utf-8"))
    about = record["about"]
    assert record["format"] == errata.patches.lora_export.FORMAT
    assert (about["base"], about["fingerprint"], about["exact"]) == (family, model.fingerprint(), False)
    assert facts_from_records(about["patches"][0]["facts"], source="here").facts == FACTS[:3]
    assert about["patches"][0]["recipe"] == patch.recipe.model_dump(mode="json")
    layers = [(entry["layer"], entry["rank"], entry["needed"], entry["error"]) for entry in about["layers"]]
    assert layers == [(1, 3, 4, adapter.layers[0].error), (2, 2, 2, 0.0)]


def test_a_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model("gpt2")
    adapter = Adapter.of([patch_of(model, [low_rank(model, 1, 1)])])

    def failing(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(errata.patches.lora_export, "save_file", failing)
    with pytest.raises(KeyboardInterrupt):
        adapter.write(tmp_path / "adapter", model.model)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine").touch()
    with raises_code("OUTPUT_EXISTS", InputError, "adapter"):
        adapter.write(tmp_path / "adapter", model.model)


# Truncation -----------------------------------------------------------------------------------------------------


@given(
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 9),
    factors=st.integers(1, 14),
    rank=st.integers(1, 12),
    repeated=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_factors_of_a_rank_are_the_dense_truncation(
    d_out: int, d_in: int, factors: int, rank: int, repeated: bool, seed: int
) -> None:
    left, right = 30 * random_matrix(d_out, factors, seed=seed), random_matrix(factors, d_in, seed=seed + 1)
    if repeated:  # two batches with the same keys: fewer dimensions than factors
        right[factors // 2 :] = right[: factors - factors // 2].clone()
    dense = left @ right
    terms = [LowRankTerm(0, left, right)]
    found = factors_of(terms, exact_rank(terms), rank)
    expected = slow.truncated(dense, rank)
    product = found.left.double() @ found.right.double()
    size = float(dense.norm())
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-6 * size)
    assert found.error == pytest.approx(slow.relative_error(dense, expected), abs=1e-7)
    values = torch.linalg.svdvals(dense)
    assert found.retained_share == pytest.approx(float(values[:rank].sum() / values.sum()), abs=1e-9)
    assert found.left.shape[1] == found.right.shape[0] == min(rank, d_out, d_in, factors)
    if found.rank < factors:  # both sides contain √Σ
        diagonal = torch.diag(values[: found.rank])
        torch.testing.assert_close(found.left.double().T @ found.left.double(), diagonal, rtol=0, atol=1e-6 * size)
        torch.testing.assert_close(found.right.double() @ found.right.double().T, diagonal, rtol=0, atol=1e-6 * size)
    sparse = [SparseTerm(0, dense.flatten(), torch.ones_like(dense, dtype=torch.bool))]
    again = factors_of(sparse, exact_rank(sparse), rank)
    torch.testing.assert_close(again.left.double() @ again.right.double(), expected, rtol=0, atol=1e-6 * size)


def test_a_change_of_zero_has_no_error() -> None:
    found = factors_of([LowRankTerm(0, torch.zeros(4, 3), torch.ones(3, 5))], 3, 2)
    assert (found.error, found.retained_share) == (0.0, 1.0)
    assert not found.left.any()


@given(rank=st.integers(1, 5), power=st.integers(-20, 20), seed=st.integers(0, 10**6))
def test_levelling_changes_no_bit_of_the_product(rank: int, power: int, seed: int) -> None:
    left = (2.5**power * random_matrix(6, rank, seed=seed)).float()
    right = random_matrix(rank, 7, seed=seed + 1).float()
    left[:, 0] = 0
    new_left, new_right = balanced(left, right)
    for index in range(rank):
        before = torch.outer(left[:, index], right[index])
        assert torch.equal(torch.outer(new_left[:, index], new_right[index]), before)
        if index:
            assert 0.49 < float(new_left[:, index].norm() / new_right[index].norm()) < 2.01


@pytest.mark.parametrize("rank", [1, 3])
def test_a_truncated_adapter_is_the_best_one_and_reports_its_error(rank: int, tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    terms = [low_rank(model, 1, 3), low_rank(model, 1, 2, seed=4), low_rank(model, 2, 1, seed=6)]
    adapter = write_adapter(tmp_path / "adapter", [patch_of(model, terms)], model.model, rank=rank)
    dense = sum(term.left.double() @ term.right.double() for term in terms[:2])
    assert isinstance(dense, Tensor)
    adapted, modules = through_peft("gpt2", tmp_path / "adapter")
    found = delta(adapted, modules[0])
    torch.testing.assert_close(found, slow.truncated(dense, rank), rtol=0, atol=1e-5)
    assert adapter.layers[0].error == pytest.approx(slow.relative_error(dense, found), rel=1e-4)
    assert adapter.layers[0].error > 0.1
    # What fits stays exact.
    assert (adapter.layers[1].error, adapter.layers[1].retained_share) == (0.0, 1.0)
    torch.testing.assert_close(delta(adapted, modules[1]), (terms[2].left @ terms[2].right).double())


def test_rect_is_refused_without_a_rank_and_approximated_with_one(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    patch = patch_of(model, [sparse(model, 1), low_rank(model, 1, 2), low_rank(model, 3, 2)])
    with raises_code("LORA_RANK_TOO_HIGH", InputError, "layer 1 ", "rank 32", "--rank"):
        write_adapter(tmp_path / "adapter", [patch], model.model)
    assert list(tmp_path.iterdir()) == []
    adapter = write_adapter(tmp_path / "eight", [patch], model.model, rank=8)
    dense = torch.zeros(model.weight(1).shape, dtype=torch.float64)
    for term in patch.terms[:2]:
        term.add_to(dense)
    adapted, modules = through_peft("gpt2", tmp_path / "eight")
    found = delta(adapted, modules[0])
    torch.testing.assert_close(found, slow.truncated(dense, 8), rtol=0, atol=1e-5)
    assert adapter.layers[0].error == pytest.approx(slow.relative_error(dense, found), rel=1e-4)
    assert [factors.rank for factors in adapter.layers] == [8, 2]

    whole = write_adapter(tmp_path / "whole", [patch], model.model, rank=32)
    assert whole.is_exact
    patch.apply(model)
    adapted, _ = through_peft("gpt2", tmp_path / "whole")
    torch.testing.assert_close(logits(adapted), logits(model.model), rtol=0, atol=TOLERANCE)


def test_a_dense_change_is_exported_by_rank_with_its_error(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    value = 0.2 * random_matrix(*model.weight(1).shape, seed=3)
    patch = patch_of(model, [DenseTerm(1, value.float())])
    with pytest.raises(InputError) as caught:
        write_adapter(tmp_path / "adapter", [patch], model.model)
    assert caught.value.code == "LORA_RANK_TOO_HIGH"
    adapter = write_adapter(tmp_path / "four", [patch], model.model, rank=4)
    adapted, modules = through_peft("gpt2", tmp_path / "four")
    found = delta(adapted, modules[0])
    torch.testing.assert_close(found, slow.truncated(value, 4), rtol=0, atol=1e-5)
    assert adapter.layers[0].error == pytest.approx(slow.relative_error(value, found), rel=1e-4)


def test_a_rect_run_has_sparse_terms(tmp_path: Path) -> None:
    patch = editor_maker(tmp_path)(tiny_language_model("llama"), "rect").apply(FACTS[:2])
    with raises_code("LORA_RANK_TOO_HIGH", InputError, "rect"):
        Adapter.of([patch])
    assert 0 < Adapter.of([patch], 4).layers[0].error < 1


# Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "words"),
    [(0, "rank 0 "), (3, "at rank 3 "), (90, "at rank 3 ")],
)
def test_a_rank_that_cuts_nothing_or_all_is_refused(rank: int, words: str) -> None:
    model = tiny_language_model("gpt2")
    with raises_code("LORA_RANK_INVALID", InputError, words):
        Adapter.of([patch_of(model, [low_rank(model, 1, 3), low_rank(model, 2, 1)])], rank)


def test_a_rank_above_the_whole_matrix_is_refused() -> None:
    model = tiny_language_model("gpt2")
    with raises_code("LORA_RANK_INVALID", InputError, "rank 33 ", "at rank 32 "):
        Adapter.of([patch_of(model, [sparse(model, 1)])], 33)


def test_what_is_no_stack_is_refused() -> None:
    model = tiny_language_model("gpt2")
    nothing, something = patch_of(model, []), patch_of(model, [low_rank(model, 1, 1)])
    with raises_code("PATCH_EMPTY", InputError):
        Adapter.of([])
    with raises_code("PATCH_EMPTY", InputError):
        Adapter.of([nothing])
    with raises_code("PATCHES_ALTERNATIVE", InputError, "patches 2 and 3 "):
        Adapter.of([nothing, something, something])
    assert Adapter.of([nothing, something]).rank == 1


def test_patches_of_different_models_are_refused(tmp_path: Path) -> None:
    wide, square = tiny_language_model("gpt2"), tiny_language_model("gpt2_square")
    patches = [patch_of(model, [low_rank(model, 1, 1)]) for model in (wide, square)]
    with raises_code("PATCH_SHAPE_MISMATCH", InputError, "32 × 32 and 32 × 48", "layer 1"):
        Adapter.of(patches)
    with raises_code("PATCH_SHAPE_MISMATCH", InputError, "32 × 48 in layer 1", "transformer.h.1.", " 32 × 32"):
        write_adapter(tmp_path / "adapter", patches[:1], square.model)
    shallow = tiny_model("gpt2", n_layer=1)[0]
    with raises_code("LAYER_UNKNOWN", InputError, "layer 1 ", " 1 block"):
        write_adapter(tmp_path / "adapter", patches[:1], shallow)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = tiny_language_model("gpt2")
    term = low_rank(model, 1, 1)
    term.left[3, 0] = torch.nan
    with raises_code("PATCH_NOT_FINITE", InputError, "layer 1 "):
        Adapter.of([patch_of(model, [term])])


# Lost facts -----------------------------------------------------------------------------------------------------


def ids(model: LanguageModel, text: str) -> list[int]:
    return list(model.tokenizer(text)["input_ids"])


def likeliest(model: Any, tokenizer: Any, prompt: str) -> int:
    with torch.no_grad():
        return int(model(input_ids=tokenizer(prompt, return_tensors="pt")["input_ids"]).logits[0, -1].argmax())


def test_lost_facts_are_those_that_only_the_exact_patch_says(tmp_path: Path) -> None:
    """Facts whose targets are what a random change makes the model say; token by token through PEFT as the twin."""
    model = tiny_language_model("llama")
    base = parameter_bits(model)
    term = low_rank(model, 4, 6)
    asked = [Fact(f"{a.id}-{b.id}", a.subject, b.prompt, "x") for a in FACTS for b in FACTS]
    with patches_applied(model, [patch_of(model, [term])]):
        saying = [(fact, likeliest(model.model, model.tokenizer, fact.text)) for fact in asked]
    assert_same_bits(parameter_bits(model), base)
    facts = []
    for fact, token in saying:
        target = model.tokenizer.decode([token]).strip()
        if target and ids(model, f"{fact.text} {target}") == [*ids(model, fact.text), token]:
            facts.append(Fact(fact.id, fact.subject, fact.prompt, target))
    assert len(facts) >= 3
    facts.append(Fact("never", "Italy", "The capital of {} is", "Rome"))
    patch = patch_of(model, [term], facts)
    adapter = write_adapter(tmp_path / "adapter", [patch], model.model, rank=1)
    answers = compare_answers(model, adapter)
    assert_same_bits(parameter_bits(model), base)
    assert model.edits.terms == []

    adapted, _ = through_peft("llama", tmp_path / "adapter")
    for fact, answer in zip(facts[:-1], answers[:-1], strict=True):
        token = ids(model, f"{fact.text} {fact.target}")[-1]
        assert (answer.fact, answer.by_patch.correct) == (fact, True)
        assert answer.by_export.correct == (likeliest(adapted, model.tokenizer, fact.text) == token)
    assert not answers[-1].by_patch.correct
    assert {answer.is_lost for answer in answers[:-1]} == {True, False}
    assert not answers[-1].is_lost


def test_asking_refuses_other_weights_and_leaves_them_alone() -> None:
    model = tiny_language_model("llama")
    first = patch_of(model, [low_rank(model, 1, 2)])
    first.apply(model)
    second = patch_of(model, [low_rank(model, 1, 2, seed=3)])
    first.undo(model)
    base = parameter_bits(model)
    with raises_code("PATCH_OTHER_WEIGHTS", InputError, "patch 1 "):
        compare_answers(model, Adapter.of([second, first], 1))
    with raises_code("PATCH_OTHER_WEIGHTS", InputError, "patch 2 "), patches_applied(model, [first, first]):
        pass
    assert_same_bits(parameter_bits(model), base)
    with patches_applied(model, [first, second]):
        assert len(model.edits.terms) == 2
    assert_same_bits(parameter_bits(model), base)
