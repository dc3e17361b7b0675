"""What is written of an edited model: the base's files, byte for byte, but for the edited tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.models.weights import LowRankTerm

from tests.support.errors import raises_code
from tests.support.tiny_models import FAMILIES, tiny_model

# As transformers 4 wrote them: the names, and classes, of which transformers 5 makes others.
ROPE = {"rope_theta": 100000.0, "rope_scaling": None, "torch_dtype": "float32", "transformers_version": "4.57.1"}
LAYERS = (1, 3)
EDITED = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in LAYERS}


def base_directory(
    path: Path, family: str = "llama_tied", *, dtype: torch.dtype = torch.float32, shards: int = 1, **config: Any
) -> Path:
    """A base as it may be found: a configuration and tokenizer of transformers 4, and a few other files."""
    model, tokenizer = tiny_model(family, dtype=dtype)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    found = json.loads((path / "config.json").read_text())
    if "rope_parameters" in found and family.startswith("llama"):
        del found["rope_parameters"]
        found |= ROPE
    found.pop("dtype", None)
    found |= {"torch_dtype": str(dtype).removeprefix("torch."), **config}
    (path / "config.json").write_text(json.dumps(found, indent=4) + "\n\n")  # in nobody's wording
    about = json.loads((path / "tokenizer_config.json").read_text())
    about["tokenizer_class"] = "PreTrainedTokenizerFast"
    (path / "tokenizer_config.json").write_text(json.dumps(about))
    (path / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    (path / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    (path / "LICENSE").write_text("do as you like")
    (path / "README.md").write_text("of the base")
    (path / "pytorch_model.bin").write_text("not read")
    (path / "helper.py").write_text("raise SystemExit")
    if shards > 1:
        split(path, shards)
    return path


def split(path: Path, shards: int) -> None:
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    where = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, path / file, metadata={"format": "pt", "made": "here"})
        where |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size, "by": "hand"}, "weight_map": where})
    )


def edited(path: Path, **options: Any) -> LanguageModel:
    """The base with a change in two layers."""
    model = LanguageModel.load(path, device="cpu", **options)
    generator = torch.Generator().manual_seed(0)
    for layer in LAYERS:
        rows, columns = model.weight(layer).shape
        left, right = (torch.randn(size, generator=generator) for size in ((rows, 1), (1, columns)))
        model.edits.add([LowRankTerm(layer, left, right)])
    return model


def tensors_in(path: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def header(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def changed(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    assert list(one) == list(other)
    return {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}


def check_files(base: Path, out: Path, *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """All files but the weights are the base's; those of other weights, and a README about them, are left out."""
    left_out = {"README.md", "pytorch_model.bin", "helper.py"}
    names = {file.name for file in base.iterdir()} - left_out
    assert {file.name for file in out.iterdir()} == names
    for name in names - but:
        if not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == (base / name).read_bytes(), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_edited_tensors_differ(tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    base, out = base_directory(tmp_path / "base", dtype=dtype, shards=shards), tmp_path / "out"
    model = edited(base)
    out.mkdir()
    written = model.write_files(out)
    assert (written.converted, written.linked) == (None, ())
    check_files(base, out)
    for file in base.glob("*.safetensors"):
        assert header(out / file.name) == header(file)  # names, dtypes, shapes, order, metadata
    assert changed(tensors_in(base), tensors_in(out)) == {
        f"model.layers.{layer}.mlp.down_proj.weight" for layer in LAYERS
    }
    assert "lm_head.weight" not in tensors_in(out)
    assert LanguageModel.load(out, device="cpu").fingerprint() == model.fingerprint()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    model, tokenizer = tiny_model(family)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    out.mkdir()
    loaded = edited(tmp_path / "base")
    loaded.write_files(out)
    assert len(changed(tensors_in(tmp_path / "base"), tensors_in(out))) == len(LAYERS)
    assert LanguageModel.load(out, device="cpu").fingerprint() == loaded.fingerprint()


def test_other_matrices_than_the_down_projection(tmp_path: Path) -> None:
    base, out = base_directory(tmp_path / "base"), tmp_path / "out"
    model = LanguageModel.load(base, device="cpu")
    d_out, d_in = model.weight(2, "v_proj").shape
    model.edits.add([LowRankTerm(2, torch.ones(d_out, 1), torch.ones(1, d_in), module="v_proj")])
    model.save(out)
    assert changed(tensors_in(base), tensors_in(out)) == {"model.layers.2.self_attn.v_proj.weight"}
    assert LanguageModel.load(out, device="cpu").fingerprint() == model.fingerprint()


def test_a_checkpoint_without_the_models_prefix(tmp_path: Path) -> None:
    """As GPT-2's own, whose names begin with `h.` and not with `transformer.h.`."""
    base = tmp_path / "base"
    model, tokenizer = tiny_model("gpt2")
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    save_file({name.removeprefix("transformer."): value for name, value in tensors.items()}, base / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    edited(base).write_files(out)
    assert changed(tensors_in(base), tensors_in(out)) == {f"h.{layer}.mlp.c_proj.weight" for layer in LAYERS}


def test_from_python(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base")
    model = edited(base)
    model.save(tmp_path / "out")
    assert changed(tensors_in(base), tensors_in(tmp_path / "out")) == EDITED
    check_files(base, tmp_path / "out")
    with pytest.raises(InputError):
        model.save(tmp_path / "out")
    with raises_code("MODEL_WITHOUT_FILES", InputError):
        LanguageModel(*tiny_model("llama")).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_edit_taken_out_again_leaves_the_base(tmp_path: Path) -> None:
    base, out = base_directory(tmp_path / "base", dtype=torch.bfloat16), tmp_path / "out"
    model = edited(base)
    model.edits.remove(list(model.edits.terms))
    out.mkdir()
    model.write_files(out)
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


@pytest.mark.parametrize("shards", [1, 3])
def test_another_dtype_than_the_bases_is_written_and_named(tmp_path: Path, shards: int) -> None:
    base, out = base_directory(tmp_path / "base", dtype=torch.bfloat16, shards=shards), tmp_path / "out"
    model = edited(base, dtype=torch.float32)
    out.mkdir()
    assert model.write_files(out).converted == ("bfloat16", "float32")
    check_files(base, out, but={"config.json", "model.safetensors.index.json"})
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    assert list(before) == list(after)
    assert after == {**before, "torch_dtype": "float32"}
    assert {tensor.dtype for tensor in tensors_in(out).values()} == {torch.float32}
    if shards > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())["metadata"]
        assert index == {"total_size": sum(tensor.nbytes for tensor in tensors_in(out).values()), "by": "hand"}
    assert LanguageModel.load(out, device="cpu").fingerprint() == model.fingerprint()


def test_weights_stored_wider_than_the_configuration_says_stay_so(tmp_path: Path) -> None:
    """Configuration in bfloat16, files in float32: nobody asked for other files."""
    base, out = base_directory(tmp_path / "base", torch_dtype="bfloat16"), tmp_path / "out"
    model = edited(base)
    assert model.dtype is torch.bfloat16
    out.mkdir()
    assert model.write_files(out).converted is None
    assert header(out / "model.safetensors") == header(base / "model.safetensors")
    check_files(base, out)
    assert LanguageModel.load(out, device="cpu").fingerprint() == model.fingerprint()


def test_weights_stored_narrower_than_the_configuration_says(tmp_path: Path) -> None:
    """Files in float16, configuration in float32: only what was edited needs the wider numbers."""
    base = base_directory(tmp_path / "base", dtype=torch.float16, torch_dtype="float32", shards=2)
    out = tmp_path / "out"
    model = edited(base)
    out.mkdir()
    model.write_files(out)
    wide = {name for name, tensor in tensors_in(out).items() if tensor.dtype is torch.float32}
    assert wide == EDITED
    check_files(base, out, but={"model.safetensors.index.json"})
    assert LanguageModel.load(out, device="cpu").fingerprint() == model.fingerprint()


def test_code_is_copied_only_if_the_configuration_needs_it(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base", auto_map={"AutoConfig": "helper.Config"})
    (base / ".hidden.py").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    edited(base).write_files(out)
    assert (out / "helper.py").is_file()
    assert not (out / ".hidden.py").exists()


def test_links_to_other_places_are_named(tmp_path: Path) -> None:
    base, out = base_directory(tmp_path / "base"), tmp_path / "out"
    (tmp_path / "secret").write_text("key")
    (base / "vocab.txt").symlink_to(tmp_path / "secret")
    (base / "merges.txt").symlink_to("LICENSE")
    out.mkdir()
    assert edited(base).write_files(out).linked == ("vocab.txt",)


def test_the_hubs_cache_is_a_base_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snapshots are links into a folder beside them."""
    made = base_directory(tmp_path / "made")
    cache = tmp_path / "hub" / "models--owner--name"
    commit = "0" * 40
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    for file in made.iterdir():
        shutil.copyfile(file, cache / "blobs" / file.name)
        (cache / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / file.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = edited(Path("owner/name"))
    assert model.files is not None
    assert model.files.directory == cache / "snapshots" / commit
    out = tmp_path / "out"
    out.mkdir()
    assert model.write_files(out).linked == ()
    check_files(made, out)
    assert not any(file.is_symlink() for file in out.rglob("*"))


def test_a_base_in_another_format_gets_safetensors_files(tmp_path: Path) -> None:
    base, out = base_directory(tmp_path / "base"), tmp_path / "out"
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    model = edited(base)
    out.mkdir()
    model.write_files(out)
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert (out / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    assert not list(out.glob("*.bin"))
    assert LanguageModel.load(out, device="cpu").fingerprint() == model.fingerprint()


def test_files_that_changed_meanwhile_are_refused(tmp_path: Path) -> None:
    base, out = base_directory(tmp_path / "base"), tmp_path / "out"
    model = edited(base)
    other, _ = tiny_model("llama_tied", seed=1)
    other.save_pretrained(base)
    out.mkdir()
    with raises_code("MODEL_FILES_CHANGED", InputError):
        model.write_files(out)


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base", shards=2)
    path = base / "model.safetensors.index.json"
    first = base / "model-00001-of-00002.safetensors"
    first.rename(tmp_path / first.name)
    path.write_text(path.read_text().replace(first.name, f"../{first.name}"))
    with raises_code("MODEL_NOT_LOADED", InputError, first.name):
        LanguageModel.load(base, device="cpu")
