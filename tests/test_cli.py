"""Commands from outside: what they print, write and return, for valid and invalid inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.cli.main import run
from errata.facts.files import read_facts
from errata.results.records import read_results

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "examples" / "facts.jsonl"
LONG_FORM = {"method", "metric", "when", "mean", "low", "high", "n"}


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The example facts, edited into the embedded model from the command line."""
    folder = tmp_path_factory.mktemp("edited")
    arguments = ["edit", "--facts", str(FACTS), "--out", str(folder / "model"), "--json", str(folder / "edit.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(folder / "cache"))
        assert run([*arguments, "--method", "memit+blue"]) == 0
    return folder / "model", json.loads((folder / "edit.json").read_text(encoding="utf-8"))


def test_edit_writes_a_directory_that_plain_transformers_loads_and_that_knows_the_facts(
    edited: tuple[Path, dict[str, object]],
) -> None:
    directory, _ = edited
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    right = 0
    facts = read_facts(FACTS)
    for fact in facts:
        inputs = tokenizer(fact.text, return_tensors="pt")
        with torch.no_grad():
            best = int(model(input_ids=inputs["input_ids"]).logits[0, -1].argmax())
        right += tokenizer.decode([best]).strip() != "" and fact.target.startswith(tokenizer.decode([best]).strip())
    assert right >= 0.7 * len(facts)


def test_edit_reports_in_long_form_before_right_after_and_after(edited: tuple[Path, dict[str, object]]) -> None:
    rows = edited[1]["rows"]
    assert isinstance(rows, list)
    assert all(set(row) == LONG_FORM for row in rows)
    seen = {(row["metric"], row["when"]) for row in rows}
    for metric in ("efficacy_success", "generalisation_accuracy", "specificity_success", "same_subject_accuracy"):
        assert {(metric, "before"), (metric, "after")} <= seen
    assert {("untouched_accuracy", "after"), ("perplexity_ratio", "after"), ("seconds_per_edit", "after")} <= seen
    assert ("efficacy_accuracy", "right_after") in seen
    value = {(row["metric"], row["when"]): row["mean"] for row in rows}
    assert value["efficacy_accuracy", "before"] < 0.2 < 0.7 <= value["efficacy_accuracy", "after"]


def test_edit_says_what_became_of_each_fact_and_of_each_control_question(edited: tuple[Path, dict[str, Any]]) -> None:
    report = edited[1]
    outcome, records = report["outcome"], report["records"]
    facts = {fact.id: fact for fact in read_facts(FACTS)}
    value = {(row["metric"], row["when"]): row["mean"] for row in report["rows"]}
    assert [fact["id"] for fact in outcome["facts"]] == list(facts)
    wordings = [wording for fact in outcome["facts"] for wording in fact["wordings"]]
    own = [wording["took"] for wording in wordings if wording["own"]]
    assert len(wordings) == len(facts) + sum(len(fact.paraphrases) for fact in facts.values())
    assert sum(own) / len(own) == pytest.approx(value["efficacy_accuracy", "after"])
    for fact in outcome["facts"]:
        took = [wording["took"] for wording in fact["wordings"]]
        assert fact["status"] == ("took" if all(took) else "partly" if any(took) else "failed")
    counts = outcome["controls"]
    assert counts["specificity"]["asked"] == sum(len(fact.neighbours) for fact in facts.values())
    for kind, count in counts.items():
        questions = [question for question in outcome["control_questions"] if question["kind"] == kind]
        lost = [question for question in questions if question["correct_before"] and not question["correct_now"]]
        assert (count["asked"], count["lost"]) == (len(questions), len(lost))
        assert value[f"{kind}_lost", "after"] == pytest.approx(len(lost) / len(questions))
        known = count["known"]
        assert value[f"{kind}_accuracy_known", "after"] == pytest.approx((known - len(lost)) / known)
        assert value[f"{kind}_accuracy_known", "before"] == 1
        assert all(question["before"] != question["now"] for question in lost)
    assert counts["same_subject"]["lost"] > 0
    assert outcome["weight_change"].keys() == {"0", "2"}
    assert all(change > 0 for change in outcome["weight_change"].values())
    assert len(records["before"]) == len(records["after"]) > len(wordings)
    assert outcome["advice"]


def test_an_edit_in_which_no_fact_took_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, recipe = tmp_path / "facts.jsonl", tmp_path / "recipe.yaml"
    facts.write_text('{"subject": "Zyx Qwv", "prompt": "{} was born in", "target": "Rome"}\n', encoding="utf-8")
    weak = (ROOT / "examples" / "recipe.yaml").read_text(encoding="utf-8").replace("ridge: 1000", "ridge: 1.0e+9")
    weak = weak.replace("corpus: builtin", "corpus: lab")  # whose statistics ship
    recipe.write_text(weak, encoding="utf-8")
    arguments = ["edit", "--facts", str(facts), "--recipe", str(recipe), "--out", str(tmp_path / "edited")]
    assert run(arguments) == 0
    assert "none of the facts is recalled" in " ".join(capsys.readouterr().out.split()).lower()


def test_evaluate_against_the_base_agrees_with_the_edit(edited: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    directory, report = edited
    out = tmp_path / "evaluate.json"
    arguments = ["evaluate", "--model", str(directory), "--facts", str(FACTS), "--against", "lab", "--json", str(out)]
    assert run(arguments) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    again = {(row["metric"], row["when"]): row["mean"] for row in rows}
    assert isinstance(report["rows"], list)
    for row in report["rows"]:
        if row["when"] != "right_after" and row["metric"] not in ("seconds_per_edit", "weight_norm_ratio"):
            assert again[row["metric"], row["when"]] == pytest.approx(row["mean"], abs=1e-4)


def test_ask_shows_both_models(edited: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    fact = read_facts(FACTS)[0]
    out = tmp_path / "ask.json"
    assert run(["ask", "--model", str(edited[0]), "--against", "lab", fact.text, "--json", str(out)]) == 0
    answers = json.loads(out.read_text(encoding="utf-8"))["answers"]
    assert [answer["model"] for answer in answers] == [str(edited[0]), "lab"]
    assert fact.truth is not None
    assert answers[1]["continuation"].strip().startswith(fact.truth)


def test_lab_save_is_a_plain_transformers_directory(tmp_path: Path) -> None:
    assert run(["lab", "save", str(tmp_path / "lab")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lab")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "lab")) == model.config.vocab_size
    assert run(["lab", "save", str(tmp_path / "lab")]) == 2  # nothing is overwritten


def test_methods_and_doctor_speak_to_machines(tmp_path: Path) -> None:
    assert run(["methods", "--json", str(tmp_path / "methods.json")]) == 0
    rows = json.loads((tmp_path / "methods.json").read_text(encoding="utf-8"))["methods"]
    assert {"memit", "alphaedit"} <= {row["name"] for row in rows}
    assert all(row["paper"] for row in rows)
    assert run(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    assert "torch" in json.loads((tmp_path / "doctor.json").read_text(encoding="utf-8"))["versions"]


def test_a_dry_run_writes_nothing_but_its_plan(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    assert run(["edit", "--facts", str(FACTS), "--method", "alphaedit+blue", "--dry-run", "--json", str(out)]) == 0
    plan = json.loads(out.read_text(encoding="utf-8"))
    assert [step["share"] for step in plan["steps"]] == [1.0, 1.0]
    assert list(tmp_path.iterdir()) == [out]


WRONG: list[tuple[list[str], str]] = [
    (["edit", "--facts", "missing.jsonl", "--out", "x"], "missing.jsonl"),
    (["edit", "--facts", str(FACTS)], "--out"),
    (["edit", "--facts", str(FACTS), "--out", "x", "--method", "memmit"], "memit"),
    (["edit", "--facts", str(FACTS), "--out", "x", "--model", "./nowhere"], "no such directory"),
    (["edit", "--facts", str(FACTS), "--out", "x", "--device", "warp"], "device"),
    (["edit", "--facts", str(FACTS), "--out", "x", "--dtype", "int3"], "dtype"),
    (["edit", "--facts", str(FACTS), "--out", "x", "--recipe", "nothing.yaml"], "nothing.yaml"),
    (["edit", "--facts", str(FACTS), "--out", "x", "--batch-size", "0"], "batch-size"),
    (["edit", "--facts", str(FACTS), "--out", str(ROOT / "src")], "exists already"),
    (["evaluate", "--facts", str(FACTS), "--model", "./nowhere"], "no such directory"),
    (["ask", "  "], "empty"),
    (["ask", "word " * 400], "tokens"),
    (["edti"], "edti"),
    (["demo", "--facts", "5000"], "TOO_MANY_FACTS"),
    (["lab", "facts", "--count", "5000", "--out", "x.jsonl"], "TOO_MANY_FACTS"),
    (["bench", "--model", "lab", "--methods", "memit", "--edits", "50000", "--out", "x"], "TOO_MANY_FACTS"),
]


def test_wrong_input_exits_with_status_2_and_a_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, words in WRONG:
        assert run(arguments) == 2, arguments
        assert words in " ".join(capsys.readouterr().err.split())
        assert list(tmp_path.iterdir()) == []


def test_all_faults_of_a_file_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"subject": "", "prompt": "x", "target": "y"}\n{"subjct": "a"}\nnot json\n', encoding="utf-8")
    assert run(["edit", "--facts", str(bad), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    for line in ("bad.jsonl:1", "bad.jsonl:2", "bad.jsonl:3"):
        assert line in said
    assert "subject" in said
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_with_130_and_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("errata.editing.target_search.find_targets", interrupted)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    assert run(["edit", "--facts", str(FACTS), "--out", str(tmp_path / "out"), "--no-evaluate"]) == 130
    assert not (tmp_path / "out").exists()


def test_out_of_memory_is_reported_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr("errata.editing.target_search.find_targets", exhausted)
    assert run(["edit", "--facts", str(FACTS), "--out", str(tmp_path / "out"), "--no-evaluate"]) == 1
    assert "--batch-size" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_edited_lab_can_be_edited_again(edited: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    again = tmp_path / "again"
    arguments = ["edit", "--model", str(edited[0]), "--facts", str(FACTS), "--out", str(again), "--no-evaluate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
        assert run([*arguments, "--method", "alphaedit"]) == 0
    assert read_results(edited[0] / "errata.json").rows  # what an edit records can be read as results
    assert [path.name for path in sorted((again / "patches").iterdir())] == [
        "0001-model.safetensors",
        "0002-again.safetensors",
    ]


def test_weights_that_are_missing_are_an_input_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "save", str(tmp_path / "lab")]) == 0
    weights = tmp_path / "lab" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert run(["ask", "--model", str(tmp_path / "lab"), "Ada"]) == 2
    assert "missing" in capsys.readouterr().err


def test_options_that_cannot_be_are_reported_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["edit", "--facts", str(FACTS), "--out", str(tmp_path / "x"), "--device", "abacus", "--dtype", "int3"]
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "2 faults" in said
    assert "'abacus'" in said
    assert "'int3'" in said
    assert "float32" in said


def test_a_dry_run_finds_layers_that_do_not_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (ROOT / "src" / "errata" / "recipes" / "lab.yaml").read_text(encoding="utf-8")
    recipe.write_text(re.sub(r"^layers: .*$", "layers: [0, 99]", text, count=1, flags=re.MULTILINE), encoding="utf-8")
    assert run(["edit", "--facts", str(FACTS), "--recipe", str(recipe), "--dry-run"]) == 2
    assert "layer 99 does not exist in 'lab', which has 8 blocks" in " ".join(capsys.readouterr().err.split())


def test_prompts_that_are_too_long_are_reported_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "Ada " * 400, "Ben " * 500, "Fine"]) == 2
    said = capsys.readouterr().err
    assert "2 faults" in said
    assert "'Ada Ada" in said
    assert "'Ben Ben" in said
    assert "Fine" not in said


def test_a_name_that_is_no_directory_is_announced_as_one_of_the_hub(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(["ask", "--model", "no-such-owner/no-such-model", "Hello"]) == 2
    assert "looking on the Hugging Face hub" in " ".join(capsys.readouterr().err.split())


def test_a_hub_that_cannot_be_reached_is_asked_once_and_reported_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("time.sleep", waited.append)
    assert run(["ask", "--model", "nothere", "Hello"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("there is no such directory, and the hub cannot be reached") == 1
    assert waited == []


QUANTISED = {"model_type": "llama", "num_hidden_layers": 4}


UNSUPPORTED: list[tuple[dict[str, object], str]] = [
    ({"model_type": "qwen2_moe", "num_experts": 64}, "mixture of experts"),
    ({"model_type": "phimoe", "num_local_experts": 8}, "mixture of experts"),
    ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder and a decoder"),
    (QUANTISED | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "are quantised"),
    (QUANTISED | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "are quantised"),
]


def test_unsupported_models_are_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There are neither weights nor a tokenizer: nothing of the model but its configuration has been read."""
    arguments = ["edit", "--model", str(tmp_path), "--facts", str(FACTS), "--dry-run"]
    for config, reason in UNSUPPORTED:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        assert run(arguments) == 2
        said = capsys.readouterr().err
        assert reason in " ".join(said.split())
        assert len(said.strip().splitlines()) == 1


def test_choices_on_the_command_line_override_the_recipes(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    arguments = ["edit", "--facts", str(FACTS), "--dry-run", "--json", str(plan), "--method", "memit"]
    assert run([*arguments, "--schedule", "replay", "--layers", "1,3", "--shaping", "norm_cap,rect"]) == 0
    recipe = json.loads(plan.read_text(encoding="utf-8"))["recipe"]
    assert (recipe["schedule"], recipe["layers"]) == ("replay", [1, 3])
    assert [entry["kind"] for entry in recipe["shaping"]] == ["norm_cap", "rect"]
    assert run([*arguments[:-1], "rect", "--shaping", "none"]) == 0
    assert json.loads(plan.read_text(encoding="utf-8"))["recipe"]["shaping"] == []


def test_choices_that_cannot_be_are_reported_together_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["edit", "--facts", str(FACTS), "--dry-run"]
    wrong = ["--schedule", "evn", "--layers", "one", "--shaping", "prun"]
    assert run([*arguments, *wrong]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "3 faults" in said
    for part in ("'evn'", "'one'", "'prun'", "norm_cap", "replay"):
        assert part in said
    assert run([*arguments, "--method", "memit+blue", "--schedule", "even"]) == 2
    assert "error[OPTION_CONFLICT]" in " ".join(capsys.readouterr().err.split())
    assert run([*arguments, "--method", "memit", "--schedule", "single"]) == 2
    assert "'single' writes one layer" in " ".join(capsys.readouterr().err.split())
    assert run([*arguments, "--method", "memit", "--as-published"]) == 2
    assert "[NOTHING_AS_PUBLISHED]" in " ".join(capsys.readouterr().err.split())


def test_changes_are_noted_in_the_source_and_a_switch_without_effect_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    arguments = ["edit", "--facts", str(FACTS), "--dry-run", "--json", str(plan), "--method", "prune"]
    assert run([*arguments, "--layers", "0,1"]) == 0
    assert json.loads(plan.read_text(encoding="utf-8"))["recipe"]["source"].endswith("; changed: layers")
    assert run([*arguments, "--as-published", "--shaping", "none"]) == 2
    assert "--as-published has no effect, because shaping" in " ".join(capsys.readouterr().err.split())
    assert run([*arguments, "--shaping", "rect,rect"]) == 2
    said = capsys.readouterr().err
    assert "duplicate shaping" in " ".join(said.split())
    assert "'model':" not in said  # not the whole recipe
    assert run([*arguments, "--schedule", "boundry"]) == 2
    assert "Did you mean 'boundary'?" in " ".join(capsys.readouterr().err.split())


def test_as_published_goes_by_what_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    arguments = ["edit", "--facts", str(FACTS), "--dry-run", "--json", str(plan), "--as-published"]
    assert run([*arguments, "--method", "memit", "--schedule", "boundary"]) == 0
    assert json.loads(plan.read_text(encoding="utf-8"))["recipe"]["target"]["weights"] == "original"
    assert run([*arguments, "--method", "memit", "--shaping", "norm_cap,prune"]) == 0
    recipe = json.loads(plan.read_text(encoding="utf-8"))["recipe"]
    assert recipe["shaping"] == [{"kind": "norm_cap"}, {"kind": "prune", "on_top": True}]
    assert recipe["target"]["weights"] == "current"
    assert run([*arguments, "--method", "prune+blue", "--shaping", "none"]) == 0  # the schedule's fault is left
    assert run([*arguments, "--method", "memit", "--schedule", "sqrt"]) == 2
    assert "--as-published has no effect" in " ".join(capsys.readouterr().err.split())


def test_facts_that_no_round_is_for_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (ROOT / "src" / "errata" / "recipes" / "lab.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("least: 0.5", "least: 900"), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["edit", "--facts", str(FACTS), "--recipe", str(recipe), "--method", "nse", "--out", str(out)]
    assert run([*arguments, "--no-evaluate"]) == 0
    said = capsys.readouterr()
    assert "12 of 12 facts were not edited" in " ".join(said.err.split())
    assert "no weights changed" in " ".join(said.out.split())
    assert len(json.loads((out / "errata.json").read_text(encoding="utf-8"))["about"]["left_alone"]) == 12
