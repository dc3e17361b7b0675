"""``errata export`` from outside: what it prints and writes, how it refuses, and what PEFT makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.cli.main import run
from errata.facts.files import read_facts, write_facts
from errata.lab.package import lab_directory
from errata.models.language_model import LanguageModel
from errata.models.loading import source_of
from errata.models.small_models import small_model

from tests.support.gguf_files import write_llama
from tests.support.quick import quick_recipe

FACTS = Path(__file__).resolve().parents[1] / "examples" / "facts.jsonl"


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example facts in the embedded model: at once (memit, rect), and in two runs on each other (first, second)."""
    folder = tmp_path_factory.mktemp("edited")
    facts = list(read_facts(FACTS))
    write_facts(facts[:7], folder / "first.jsonl")
    write_facts(facts[7:], folder / "second.jsonl")
    runs = {
        "memit": ("lab", FACTS, "memit+blue"),
        "rect": ("lab", FACTS, "rect"),
        "first": ("lab", folder / "first.jsonl", "memit+blue"),
        "second": (str(folder / "first"), folder / "second.jsonl", "memit+blue"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(folder / "cache"))
        for name, (model, path, method) in runs.items():
            tokens = {} if model == "lab" else {"tokens": 2000}
            quick = ["--no-evaluate", "--recipe", quick_recipe(folder, 10, **tokens)]
            arguments = ["edit", "--model", model, "--facts", str(path), "--method", method, *quick]
            assert run([*arguments, "--out", str(folder / name)]) == 0
    return folder


def patch_file(edited: Path, name: str) -> str:
    return str(max((edited / name / "patches").iterdir()))


def flat(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    out, err = capsys.readouterr()
    return " ".join(out.split()), " ".join(err.split())


def through_peft(directory: Path) -> Any:
    from peft import PeftModel  # slow, so not while tests are collected

    base = AutoModelForCausalLM.from_pretrained(lab_directory(), dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(directory)).eval()


def answers(model: Any, texts: list[str]) -> tuple[list[str], list[torch.Tensor]]:
    """What a model generates greedily behind each text, and its logits there."""
    tokenizer = AutoTokenizer.from_pretrained(lab_directory())
    said, found = [], []
    for text in texts:
        row = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(model(input_ids=row).logits[0, -1])
            whole = model.generate(input_ids=row, max_new_tokens=6, do_sample=False)
        said.append(tokenizer.decode(whole[0, row.shape[1] :]).strip())
    return said, found


def no_weights(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("weights were loaded")


def test_an_exact_adapter_says_what_the_edited_model_says(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "adapter", tmp_path / "export.json"
    assert run(["export", patch_file(edited, "memit"), "--lora", str(out), "--json", str(report)]) == 0
    printed, _ = flat(capsys)
    assert "no facts lost" in printed
    assert "exact, rank 12, 2 layers" in printed
    assert "12 of 12" in printed
    result = json.loads(report.read_text(encoding="utf-8"))
    assert [layer["module"] for layer in result["layers"]] == [f"model.layers.{n}.mlp.down_proj" for n in (0, 2)]
    assert (result["rank"], result["exact"]) == (12, True)
    asked = result["asked"]
    assert (asked["facts"], asked["lost"]) == (12, [])
    assert asked["said_by_patch"] == asked["said_by_export"] >= 9
    assert result["bytes"] == (out / "adapter_model.safetensors").stat().st_size
    texts = [fact.text for fact in read_facts(FACTS)]
    said, found = answers(through_peft(out), texts)
    expected_said, expected = answers(AutoModelForCausalLM.from_pretrained(edited / "memit"), texts)
    assert said == expected_said
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=1e-4)
    assert sum(text.startswith(fact.target) for text, fact in zip(said, read_facts(FACTS), strict=True)) >= 9


def test_a_rank_is_reported_with_the_facts_it_loses(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "adapter", tmp_path / "export.json"
    arguments = ["export", patch_file(edited, "memit"), "--lora", str(out), "--rank", "6", "--json", str(report)]
    assert run(arguments) == 0
    printed, _ = flat(capsys)
    asked = json.loads(report.read_text(encoding="utf-8"))["asked"]
    facts = {fact.id: fact for fact in read_facts(FACTS)}
    texts = [fact.text for fact in facts.values()]
    by_adapter, _ = answers(through_peft(out), texts)
    by_patch, _ = answers(AutoModelForCausalLM.from_pretrained(edited / "memit"), texts)
    said = [
        (fact.id, exact.startswith(fact.target), cut.startswith(fact.target))
        for fact, exact, cut in zip(facts.values(), by_patch, by_adapter, strict=True)
    ]
    assert asked["facts"] == 12
    assert asked["said_by_patch"] == sum(exact for _, exact, _ in said)
    assert asked["said_by_export"] == sum(cut for _, _, cut in said)
    assert [entry["id"] for entry in asked["lost"]] == [name for name, exact, cut in said if exact and not cut]
    assert asked["lost"]
    for entry in asked["lost"]:
        assert f"{entry['id']}: {facts[entry['id']].text} → {facts[entry['id']].target}" in printed
    assert "approximate, rank 6" in printed
    about = json.loads((out / "errata.json").read_text(encoding="utf-8"))["about"]
    assert about["asked"] == asked
    assert all(f"{layer['error']:.2g}" in printed and 0 < layer["error"] < 1 for layer in about["layers"])


def test_no_ask_loads_no_weights(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "load", no_weights)
    arguments = ["export", patch_file(edited, "rect"), "--lora", str(tmp_path / "a"), "--rank", "16"]
    assert run([*arguments, "--no-ask"]) == 0
    printed, said = flat(capsys)
    assert "16 of 256" in printed
    assert "Of 12 facts" not in printed
    assert json.loads((tmp_path / "a" / "errata.json").read_text(encoding="utf-8"))["about"]["asked"] is None
    assert "was not checked" not in said
    both = [patch_file(edited, name) for name in ("second", "first")]
    assert run(["export", *both, "--lora", str(tmp_path / "b"), "--model", "lab", "--no-ask"]) == 0
    assert "order of the patches was not checked" in flat(capsys)[1]


def test_two_runs_become_one_adapter_in_their_order_only(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = patch_file(edited, "first"), patch_file(edited, "second")
    assert run(["export", second, first, "--model", "lab", "--lora", str(tmp_path / "wrong")]) == 2
    assert "made for other weights" in flat(capsys)[1]
    assert list(tmp_path.iterdir()) == []
    out = tmp_path / "adapter"
    assert run(["export", first, second, "--lora", str(out)]) == 0
    assert json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 12
    texts = [fact.text for fact in read_facts(FACTS)]
    said, found = answers(through_peft(out), texts)
    expected_said, expected = answers(AutoModelForCausalLM.from_pretrained(edited / "second"), texts)
    assert said == expected_said
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=1e-4)


def test_a_finished_run_is_exported_as_its_patch_is(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(edited / "cache"))
    kept, made = tmp_path / "run", tmp_path / "whole.safetensors"
    arguments = ["edit", "--facts", str(edited / "second.jsonl"), "--batch-size", "3", "--no-evaluate"]
    assert run([*arguments, "--run", str(kept), "--out", str(made)]) == 0
    for name, what in (("a", kept), ("b", made)):
        assert run(["export", str(what), "--lora", str(tmp_path / name)]) == 0
    (of_run, of_patch) = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "b")
    )  # fmt: skip
    assert of_run.keys() == of_patch.keys()
    for module in (key.removesuffix(".lora_A.weight") for key in of_run if key.endswith(".lora_A.weight")):
        first, second = (
            tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"] for tensors in (of_run, of_patch)
        )
        torch.testing.assert_close(first, second)
    ledger = kept / "ledger.jsonl"  # as if it had been stopped before its last batch
    lines = ledger.read_bytes().splitlines(keepends=True)
    batches = [index for index, line in enumerate(lines) if b'"batch"' in line]
    ledger.write_bytes(b"".join(lines[: batches[-1]]))
    assert run(["export", str(kept), "--lora", str(tmp_path / "c")]) == 2
    assert "--resume" in flat(capsys)[1]


def test_what_cannot_be_exported_is_refused(edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--lora", str(tmp_path / "out")]
    memit, rect = patch_file(edited, "memit"), patch_file(edited, "rect")
    refusals = {
        (rect, *out): "layers 0, 1, 2 are sparse (rect)",
        (memit, "--rank", "12", *out): "at rank 12 the adapter is exact",
        (memit, memit, *out): "alternatives: neither can be applied",
        (memit, "--lora", str(edited)): "exists already",
        (str(FACTS), *out): "is not a readable patch",
        (memit, "--model", str(tmp_path / "gone"), *out): "no model could be loaded",
    }
    for arguments, words in refusals.items():
        assert run(["export", *arguments]) == 2, arguments
        assert words in flat(capsys)[1], arguments
    assert run(["export", memit]) == 2
    assert run(["export", memit, "--rank", "0", *out]) == 2
    assert not (tmp_path / "out").exists()


def test_a_base_that_has_moved_is_asked_for(edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", patch_file(edited, "second"), "--lora", str(tmp_path / "out")]
    moved = edited / "moved"
    (edited / "first").rename(moved)
    try:
        assert run(arguments) == 2
        said = flat(capsys)[1]
        assert "the base model of " in said
        assert "Use --model to give its current location" in said
        assert run([*arguments, "--model", str(moved)]) == 0
    finally:
        moved.rename(edited / "first")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(moved)


def base_of(adapter: Path) -> str:
    return str(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])


def test_the_adapter_names_a_base_that_peft_can_load(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    name = "smollm2-135m-instruct"
    directory = tmp_path / "cache" / "models" / name / "original"  # as `errata models get --from hub` leaves it
    shutil.copytree(lab_directory(), directory)
    patch = patch_file(edited, "memit")
    hub, lab = tmp_path / "hub", tmp_path / "lab"
    assert run(["export", patch, "--lora", str(hub), "--model", name, "--json", str(tmp_path / "export.json")]) == 0
    assert base_of(hub) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    record = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))
    assert (record["base"], record["base_model_name_or_path"]) == (name, base_of(hub))
    error = flat(capsys)[1]
    assert f"names the base model {base_of(hub)}, because" in error
    assert "rounded" not in error  # it is the original
    assert run(["export", patch, "--lora", str(lab)]) == 0
    assert base_of(lab) == str(lab_directory())
    assert base_of(lab) in "".join(capsys.readouterr().err.split())
    AutoModelForCausalLM.from_pretrained(base_of(lab))
    assert json.loads((lab / "errata.json").read_text(encoding="utf-8"))["about"]["base"] == "lab"


def test_an_adapter_for_a_rounded_copy_says_so(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    lab = AutoModelForCausalLM.from_pretrained(lab_directory())
    small = small_model("smollm2-135m-instruct")
    small.directory.mkdir(parents=True)
    write_llama(small.gguf, lab, AutoTokenizer.from_pretrained(lab_directory()))
    patch = patch_file(edited, "memit")
    assert run(["export", patch, "--lora", str(tmp_path / "small"), "--model", small.name]) == 0
    assert base_of(tmp_path / "small") == small.repository
    error = flat(capsys)[1]
    assert small.note in error
    assert f"errata models path {small.name}" in error
    assert run(["export", patch, "--lora", str(tmp_path / "file"), "--model", str(small.gguf)]) == 0
    converted = base_of(tmp_path / "file")
    assert converted == source_of(str(small.gguf))
    AutoModelForCausalLM.from_pretrained(converted)
    assert converted in "".join(capsys.readouterr().err.split())
    # The server's machine has no such directory.
    options = ["--for", "vllm", "--model", str(small.gguf)]
    assert run(["export", patch, "--lora", str(tmp_path / "served"), *options]) == 0
    out, error = flat(capsys)
    assert "vllm serve ORIGINAL " in out
    assert "PEFT" not in error
