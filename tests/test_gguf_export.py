"""Exports for llama.cpp: adapters that its own rules read as ΔW, and merged files that differ in the edit only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from errata.cli.main import run
from errata.errors import InputError, UnsupportedModelError
from errata.lab.package import lab_directory
from errata.models.families import ARCHITECTURES
from errata.models.language_model import LanguageModel
from errata.models.loading import source_of
from errata.models.weights import LowRankTerm, Place
from errata.patches.factors import dense
from errata.patches.gguf_export import (
    GgufFile,
    gguf_architecture,
    merged_tensors,
    tensor_name,
    weights_replaced,
    write_gguf_adapter,
    write_gguf_model,
)
from errata.patches.lora_export import VLLM_RANKS, Adapter, vllm_rank
from errata.patches.patch import Patch

from tests.reference import gguf_adapter as slow
from tests.reference import vllm_rules
from tests.support.editing import FACTS, assert_same_bits, parameter_bits, tiny_language_model
from tests.support.errors import raises_code
from tests.support.gguf_files import write_llama
from tests.support.tiny_models import FAMILIES, byte_level_tokenizer, tiny_model
from tests.test_lora import logits, low_rank, patch_of, random_matrix, sparse

RUNS_IN_LLAMA_CPP = tuple(name for name in FAMILIES if not name.startswith(("gptj", "opt")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, PreTrainedModel, PreTrainedTokenizerFast]:
    """A tiny Llama and its GGUF file in float32."""
    tokenizer = byte_level_tokenizer(add_bos=False)
    model = tiny_model("llama", vocab_size=len(tokenizer))[0]
    write_llama(tmp_path / "base.gguf", model, tokenizer)
    return tmp_path / "base.gguf", model, tokenizer


def as_patch_of(model: LanguageModel, *terms: LowRankTerm) -> Adapter:
    return Adapter.of([patch_of(model, terms, FACTS[:2])])


# Names and adapters ---------------------------------------------------------------------------------------------


def test_tensors_have_the_names_that_the_package_gguf_gives_them() -> None:
    codes = {name: code for code, name in gguf.MODEL_ARCH_NAMES.items()}
    for family in RUNS_IN_LLAMA_CPP:
        config = tiny_model(family)[0].config
        row = next(row for row in ARCHITECTURES if row.model_type == config.model_type)
        names = gguf.get_tensor_name_map(codes[gguf_architecture(config)], 5)
        for module, path in {"down_proj": row.down_projection, "q_proj": row.query, "v_proj": row.value}.items():
            if path is None:
                continue
            place = Place(3, module)  # type: ignore[arg-type]
            expected = names.get_name(f"{row.blocks}.3.{path}", try_suffixes=(".weight",))
            assert tensor_name(place) == f"{expected}.weight", (family, module)


@pytest.mark.parametrize("family", RUNS_IN_LLAMA_CPP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_an_adapter_is_the_change_by_the_rules_of_llama_cpp(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_language_model(family)
    terms = [low_rank(model, 1, 3), low_rank(model, 4, 2, seed=5), low_rank(model, 1, 2, seed=9)]
    adapter = as_patch_of(model, *terms)
    config = model.model.config
    path = tmp_path / "adapter.gguf"
    write_gguf_adapter(adapter.rounded(dtype), path, config, dtype=dtype, about={"facts": 2})
    shapes = {f"blk.{layer}.ffn_down.weight": tuple(model.weight(layer).shape)[::-1] for layer in range(5)}
    found = slow.changes(path, gguf_architecture(config), shapes)
    expected = {1: dense([terms[0], terms[2]]), 4: dense([terms[1]])}
    assert sorted(found) == [f"blk.{layer}.ffn_down.weight" for layer in expected]
    exact = {torch.float32: 1e-6, torch.float16: 2e-3}[dtype]
    for layer, change in expected.items():
        error = np.linalg.norm(found[f"blk.{layer}.ffn_down.weight"] - change.numpy())
        assert error <= exact * float(change.norm())
    reader = GGUFReader(path)
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    assert types == {"F32" if dtype == torch.float32 else "F16"}
    assert reader.fields["adapter.lora.alpha"].contents() == adapter.rank == 5
    assert json.loads(reader.fields["errata.about"].contents()) == {"facts": 2}


def test_a_change_of_llama_s_queries_is_reordered_as_the_file_is(
    base: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    """The twin is transformers' own reader, which undoes the order when it loads the base with the change added."""
    path, original, tokenizer = base
    model = LanguageModel(original, tokenizer)
    d_out, d_in = model.weight(2, "q_proj").shape
    term = LowRankTerm(
        2, random_matrix(d_out, 2, seed=1).float(), random_matrix(2, d_in, seed=2).float(), module="q_proj"
    )
    adapter = as_patch_of(model, term)
    write_gguf_adapter(adapter, tmp_path / "a.gguf", original.config, dtype=torch.float32, about={})
    change = slow.changes(tmp_path / "a.gguf", "llama", {"blk.2.attn_q.weight": (d_in, d_out)})["blk.2.attn_q.weight"]
    weight = next(t for t in GGUFReader(path).tensors if t.name == "blk.2.attn_q.weight").data
    write_gguf_model(path, {"blk.2.attn_q.weight": ((weight + change).astype(np.float32), "f32")}, tmp_path / "m.gguf")
    loaded = LanguageModel.load(tmp_path / "m.gguf").weight(2, "q_proj")
    torch.testing.assert_close(loaded, (model.weight(2, "q_proj") + term.left @ term.right), rtol=0, atol=1e-5)
    (merged,) = merged_tensors([term], GgufFile.read(path), original.config, stored_as="f32")
    torch.testing.assert_close(merged.value, loaded, rtol=0, atol=1e-5)


def test_what_llama_cpp_or_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    for family in ("gptj", "opt"):
        with raises_code("GGUF_FAMILY_UNSUPPORTED", UnsupportedModelError, family):
            gguf_architecture(tiny_model(family)[0].config)
    model = tiny_language_model("llama")
    width, inner = model.weight(1).shape
    huge = LowRankTerm(1, torch.full((width, 1), 1e5), torch.full((1, inner), 1e5))
    adapter = as_patch_of(model, huge)
    with raises_code("LORA_OUT_OF_RANGE", InputError, "float16"):
        adapter.rounded(torch.float16)
    adapter.rounded(torch.bfloat16)


# Merged files ---------------------------------------------------------------------------------------------------


def same_but(first: Path, second: Path, edited: set[str]) -> None:
    """Whether all metadata and all other tensors are equal byte for byte, and the tensors in the same order."""
    one, other = GGUFReader(first), GGUFReader(second)
    assert [t.name for t in one.tensors] == [t.name for t in other.tensors]
    start = [reader.tensors[0].field.offset for reader in (one, other)]
    assert bytes(one.data[: start[0]]) == bytes(other.data[: start[1]])  # the header up to the list of tensors
    for a, b in zip(one.tensors, other.tensors, strict=True):
        if a.name not in edited:
            assert a.tensor_type == b.tensor_type
            assert a.data.tobytes() == b.data.tobytes()
    last = max(other.tensors, key=lambda t: t.data_offset)
    assert all(t.data_offset % 32 == 0 for t in other.tensors)
    assert second.stat().st_size == last.data_offset + last.n_bytes + -last.n_bytes % 32


@pytest.mark.parametrize("stored_as", ["f32", "f16", "bf16", "base"])
def test_a_merged_file_is_the_base_with_the_edit(
    stored_as: str, base: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    path = base[0]
    if stored_as == "base":  # a quantised base
        blocks = {
            tensor.name: (quantize(tensor.data, GGMLQuantizationType.Q8_0), "q8_0")
            for tensor in GGUFReader(path).tensors
            if tensor.data.ndim == 2 and tensor.data.shape[1] % 32 == 0 and "ffn_down" not in tensor.name
        }
        write_gguf_model(path, blocks, tmp_path / "q8.gguf")
        same_but(path, tmp_path / "q8.gguf", set(blocks))
        path = tmp_path / "q8.gguf"
    model = LanguageModel.load(path)
    before = parameter_bits(model)
    module: Any = "v_proj" if stored_as == "base" else "down_proj"  # 48 columns are no whole block of 32
    d_out, d_in = model.weight(3, module).shape
    term = LowRankTerm(
        3, 0.2 * random_matrix(d_out, 2, seed=1).float(), 0.2 * random_matrix(2, d_in, seed=2).float(), module=module
    )
    file = GgufFile.read(path)
    (tensor,) = merged_tensors([term], file, model.model.config, stored_as=stored_as)
    assert tensor.after == ("q8_0" if stored_as == "base" else stored_as)
    write_gguf_model(path, {tensor.name: (tensor.stored, tensor.after)}, tmp_path / "merged.gguf")
    same_but(path, tmp_path / "merged.gguf", {tensor.name})

    exact = model.weight(3, module).double() + dense([term])
    kind = GGMLQuantizationType[tensor.after.upper()]
    twin = dequantize(quantize(exact.float().numpy(), kind), kind)
    np.testing.assert_array_equal(tensor.value.numpy(), twin)
    lost = float((torch.from_numpy(twin).double() - exact).norm() / dense([term]).norm())
    assert tensor.error == pytest.approx(lost, rel=1e-3, abs=1e-7)
    assert tensor.error < {"f32": 1e-6, "f16": 2e-3, "bf16": 2e-2, "base": 5e-2}[stored_as]

    merged = LanguageModel.load(tmp_path / "merged.gguf")
    with weights_replaced(model, [tensor]):
        assert_same_bits(parameter_bits(model), parameter_bits(merged))
    assert_same_bits(parameter_bits(model), before)
    model.edits.add([term])
    difference = float((logits(merged.model) - logits(model.model)).abs().max())
    assert difference < {"f32": 1e-5, "f16": 5e-3, "bf16": 5e-2, "base": 0.2}[stored_as]


def test_a_sparse_change_is_merged_exactly(
    base: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    path, original, tokenizer = base
    model = LanguageModel(original, tokenizer)
    term = sparse(model, 1)
    (tensor,) = merged_tensors([term], GgufFile.read(path), original.config, stored_as="f32")
    model.edits.add([term])
    torch.testing.assert_close(tensor.value, model.weight(1), rtol=0, atol=1e-6)


def test_files_of_another_model_are_refused(
    base: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    path, original, tokenizer = base
    file = GgufFile.read(path)
    model = LanguageModel(original, tokenizer)
    with raises_code("GGUF_OTHER_MODEL", InputError, "qwen2"):
        file.check_holds([], "qwen2")
    with raises_code("GGUF_OTHER_MODEL", InputError, "the-base"):
        file.check_holds([(Place(9), (32, 48))], "llama", "the-base")
    with raises_code("GGUF_OTHER_MODEL", InputError, "32 × 48"):
        file.check_holds([(Place(1), (48, 32))], "llama")
    adapter = as_patch_of(model, low_rank(model, 1, 1))
    write_gguf_adapter(adapter, tmp_path / "a.gguf", original.config, dtype=torch.float32, about={})
    with raises_code("GGUF_UNSUPPORTED", InputError, "not a model"):
        GgufFile.read(tmp_path / "a.gguf")
    (tmp_path / "short.gguf").write_bytes(path.read_bytes()[:2000])
    with raises_code("GGUF_UNREADABLE", InputError):
        GgufFile.read(tmp_path / "short.gguf")


# vLLM and PEFT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 9, 30])
def test_an_adapter_for_vllm_obeys_its_rules(rank: int, tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    adapter = as_patch_of(model, low_rank(model, 1, rank), low_rank(model, 4, 1))
    padded = vllm_rank(adapter, model.model.config)
    adapter.write(tmp_path / "adapter", model.model, rank=padded)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    linear = {
        name.rpartition(".")[2] for name, part in model.model.named_modules() if isinstance(part, torch.nn.Linear)
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    assert vllm_rules.faults(config, shapes, linear) == []
    assert vllm_rules.scale(config) == 1
    assert config["r"] == min(allowed for allowed in vllm_rules.RANKS if allowed >= rank)
    for factors in adapter.layers:
        path = f"base_model.model.model.layers.{factors.layer}.mlp.down_proj"
        product = weights[f"{path}.lora_B.weight"].double() @ weights[f"{path}.lora_A.weight"].double()
        torch.testing.assert_close(product, factors.left.double() @ factors.right.double())
    plain = json.loads(json.dumps(config)) | {"r": 3, "rank_pattern": {"x": 2}, "modules_to_save": ["lm_head"]}
    assert len(vllm_rules.faults(plain, shapes, {"q_proj"})) >= 5  # the rules can fail


def test_vllm_refuses_ranks_above_512_and_some_families() -> None:
    assert set(VLLM_RANKS) == vllm_rules.RANKS
    model = tiny_language_model("llama")
    wide = LowRankTerm(1, torch.randn(600, 513), torch.randn(513, 600))
    with raises_code("VLLM_RANK_TOO_HIGH", InputError, "513"):
        vllm_rank(as_patch_of(model, wide), model.model.config)
    assert vllm_rank(Adapter.of([patch_of(model, [wide])], 512), model.model.config) == 512
    gpt2 = tiny_language_model("gpt2")
    with raises_code("VLLM_FAMILY_UNSUPPORTED", UnsupportedModelError, "gpt2"):
        vllm_rank(as_patch_of(gpt2, low_rank(gpt2, 1, 1)), gpt2.model.config)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_two_patches_are_swapped_in_peft_merged_and_unmerged(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = tiny_language_model(family)
    unedited = logits(model.model)
    patches = {name: patch_of(model, [low_rank(model, 1, 2, seed=seed)]) for name, seed in (("one", 1), ("two", 7))}
    expected = {}
    for name, patch in patches.items():
        Adapter.of([patch]).write(tmp_path / name, model.model)
        patch.apply(model)
        expected[name] = logits(model.model)
        patch.undo(model)
    assert float((expected["one"] - expected["two"]).abs().max()) > 0.05
    served: Any = PeftModel.from_pretrained(tiny_model(family)[0], str(tmp_path / "one"), adapter_name="one").eval()
    served.load_adapter(str(tmp_path / "two"), adapter_name="two")
    for name in ("one", "two", "one"):
        served.set_adapter(name)
        torch.testing.assert_close(logits(served), expected[name], rtol=0, atol=1e-4)
        served.merge_adapter()
        torch.testing.assert_close(logits(served), expected[name], rtol=0, atol=1e-4)
        served.unmerge_adapter()
        with served.disable_adapter():
            torch.testing.assert_close(logits(served), unedited, rtol=0, atol=1e-4)
    whole = served.merge_and_unload()
    torch.testing.assert_close(logits(whole), expected["one"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_facts_are_asked_as_peft_answers(dtype: torch.dtype, tmp_path: Path) -> None:
    """An attached adapter must compute what PEFT does, also beside half-precision weights, which it does not touch."""
    from peft import PeftModel

    model = tiny_language_model("llama", dtype=dtype)
    before = parameter_bits(model)
    adapter = as_patch_of(model, low_rank(model, 1, 2), low_rank(model, 3, 1))
    adapter.write(tmp_path / "adapter", model.model)
    served: Any = PeftModel.from_pretrained(tiny_model("llama", dtype=dtype)[0], str(tmp_path / "adapter")).eval()
    with adapter.attached(model):
        found = logits(model.model)
        assert_same_bits(parameter_bits(model), before)
    torch.testing.assert_close(found, logits(served), rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert float((logits(model.model) - found).abs().max()) > 0.1


# From outside ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch of the example facts in lab, and lab's GGUF file, exact and in four bits."""
    from tests.support.quick import quick_recipe

    folder = tmp_path_factory.mktemp("edited")
    facts = Path(__file__).resolve().parents[1] / "examples" / "facts.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(folder / "cache"))
        quick = ["--no-evaluate", "--recipe", quick_recipe(folder, 10), "--method", "memit+blue"]
        assert run(["edit", "--facts", str(facts), *quick, "--out", str(folder / "patch.safetensors")]) == 0
    lab = AutoModelForCausalLM.from_pretrained(lab_directory(), dtype=torch.float32)
    write_llama(folder / "lab.gguf", lab, AutoTokenizer.from_pretrained(lab_directory()))
    coarse = {
        tensor.name: (quantize(tensor.data, GGMLQuantizationType.Q4_0), "q4_0")
        for tensor in GGUFReader(folder / "lab.gguf").tensors
        if tensor.data.ndim == 2
    }
    write_gguf_model(folder / "lab.gguf", coarse, folder / "coarse.gguf")
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    return " ".join(f"{out} {err}".split())


def test_the_facts_are_asked_in_the_quantisation_that_is_served(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The twin: PEFT on transformers' reading of the four-bit file, token by token."""
    from peft import PeftModel

    patch = str(edited / "patch.safetensors")
    report = tmp_path / "report.json"
    arguments = ["export", patch, "--gguf", str(tmp_path / "a.gguf"), "--gguf-base", str(edited / "coarse.gguf")]
    assert run([*arguments, "--json", str(report)]) == 0
    printed = said(capsys)
    assert f"--lora-scaled {tmp_path / 'a.gguf'}:1.0" in printed
    assert f"FROM {edited / 'coarse.gguf'} ADAPTER {tmp_path / 'a.gguf'}" in printed
    assert run(["export", patch, "--lora", str(tmp_path / "lora")]) == 0
    asked = json.loads(report.read_text(encoding="utf-8"))["asked"]
    whole = AutoModelForCausalLM.from_pretrained(str(edited), gguf_file="coarse.gguf", dtype=torch.float32)
    served: Any = PeftModel.from_pretrained(whole, str(tmp_path / "lora")).eval()
    tokenizer = AutoTokenizer.from_pretrained(source_of(str(edited / "coarse.gguf")))  # it adds no BOS, unlike lab's

    recalled = []
    for fact in Patch.load(patch).facts:
        prompt = tokenizer(fact.text, return_tensors="pt")["input_ids"]
        row = tokenizer(f"{fact.text} {fact.target}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            likeliest = served(input_ids=row).logits[0].argmax(-1)
        if likeliest[prompt.shape[1] - 1 : -1].tolist() == row[0, prompt.shape[1] :].tolist():
            recalled.append(fact.id)
    assert asked["said_by_export"] == len(recalled)
    assert {entry["id"] for entry in asked["lost"]}.isdisjoint(recalled)
    assert len(asked["lost"]) >= asked["said_by_patch"] - len(recalled)
    assert "coarse.gguf" in asked["served"]


def test_a_merged_model_is_written_from_the_command_line(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch, report = str(edited / "patch.safetensors"), tmp_path / "report.json"
    out, base = tmp_path / "merged.gguf", ["--gguf-base", str(edited / "coarse.gguf")]
    assert run(["export", patch, "--gguf-model", str(out), *base, "--type", "base", "--json", str(report)]) == 0
    record = json.loads(report.read_text(encoding="utf-8"))
    assert {tensor["after"] for tensor in record["tensors"]} == {"q4_0"}
    assert all(tensor["error"] > 0.05 for tensor in record["tensors"])  # four bits lose part of it
    assert f"{record['tensors'][0]['error']:.2g}" in said(capsys)
    same_but(edited / "coarse.gguf", out, {tensor["name"] for tensor in record["tensors"]})


def test_options_that_do_not_fit_are_refused(edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch, out = str(edited / "patch.safetensors"), str(tmp_path / "out.gguf")
    refusals = {
        (): "nothing to write",
        ("--gguf", out, "--lora", str(tmp_path / "x")): "both given",
        ("--gguf", out, "--for", "vllm"): "does not apply",
        ("--gguf", out, "--type", "bf16"): "not a type",
        ("--gguf-model", out, "--rank", "2"): "does not apply",
        ("--gguf-model", out): "is not a GGUF file",
        ("--lora", str(tmp_path / "x"), "--for", "tgi"): "not a known reader",
        ("--gguf", out, "--gguf-base", patch): "is not a GGUF file",
        ("--gguf", str(edited / "lab.gguf")): "exists already",
    }
    for arguments, words in refusals.items():
        assert run(["export", patch, *arguments]) == 2, arguments
        assert words in said(capsys), arguments
    assert not Path(out).exists()
