"""errata recipe: list, show and check from outside; --corpus, and recipes of models that are not the lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, GPT2Config

from errata.cli.main import run
from errata.editing.recipe import read_recipe, shipped_recipe

from tests.support.editing import write_corpus

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "examples" / "facts.jsonl"
WRONG = """
model: m
layer: [1, 2]
layers: [1, 2, 3]
target: {learning_rat: 0.1, steps: 0}
statistics: {corpus: lab, length: 3}
methods:
  memit: {solver: {ridge: -1}}
  memit+blue: {target: {clam: 2}}
  rect: {solver: {ridge: -1}}
  pmet: {}
  pmet+blue: {}
  memmit: {}
  emmet: 3
"""


def faults_of(text: str, tmp_path: Path, *options: str) -> dict[str, str]:
    """Where in the file -> what and what to do, of a file that must have faults."""
    path, out = tmp_path / "own.yaml", tmp_path / "check.json"
    path.write_text(text, encoding="utf-8")
    assert run(["recipe", "check", str(path), *options, "--json", str(out)]) == 2
    report = json.loads(out.read_text(encoding="utf-8"))
    assert not report["valid"]
    faults = [(fault["where"].removeprefix(str(path)).removeprefix(": "), fault) for fault in report["faults"]]
    by_place = {where: f"{fault['what']}. {fault['remedy']}" for where, fault in faults}
    assert len(by_place) == len(faults), "each place once"
    return by_place


@pytest.fixture
def plain_gpt2_xl(tmp_path: Path) -> Path:
    """A directory of GPT2-XL's name and depth, without weights: enough for a plan."""
    directory = tmp_path / "gpt2-xl"
    AutoTokenizer.from_pretrained(ROOT / "src" / "errata" / "lab" / "weights").save_pretrained(directory)
    GPT2Config(n_layer=48, n_embd=8, n_head=2, vocab_size=4096, architectures=["GPT2LMHeadModel"]).save_pretrained(
        directory
    )
    return directory


# list and show --------------------------------------------------------------------------------------------------------


def test_list_names_every_shipped_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "list", "--json", str(tmp_path / "list.json")]) == 0
    said = capsys.readouterr().out
    recipes = json.loads((tmp_path / "list.json").read_text(encoding="utf-8"))["recipes"]
    names = [recipe["name"] for recipe in recipes]
    assert {"lab", "gpt2-xl", "gpt-j-6b", "llama-3-8b-instruct", "llama-2-7b-hf", "llama-2-13b-hf"} <= set(names)
    assert all(name in said for name in names)
    assert "alphaedit+blue" in next(recipe["methods"] for recipe in recipes if recipe["name"] == "gpt2-xl")


def test_show_prints_a_recipe_that_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "show.json"
    arguments = ["recipe", "show", "--model", "openai-community/gpt2-xl", "--method", "alphaedit+blue"]
    assert run([*arguments, "--json", str(out)]) == 0
    own = tmp_path / "own.yaml"
    own.write_text(capsys.readouterr().out, encoding="utf-8")
    recipe = shipped_recipe("gpt2-xl", "alphaedit+blue")
    assert read_recipe(own, "alphaedit+blue") == recipe.with_corpus(tmp_path.resolve() / "wikipedia.txt")
    assert yaml.safe_load(own.read_text(encoding="utf-8"))["source"] == recipe.source
    assert json.loads(out.read_text(encoding="utf-8"))["solver"]["l2"] == 80
    assert run(["recipe", "check", str(own)]) == 0


def test_show_without_a_method_is_a_table_of_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "show.json"
    assert run(["recipe", "show", "--model", "gpt-j-6B", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    line = next(line.split() for line in said.splitlines() if line.split()[:1] == ["memit"])
    assert line[1:7] == ["3–8", "0.5", "25", "0.0625", "0.5", "0.75"]
    assert "ridge 15000" in said
    assert "kmeng01/memit@80426fd" in said
    assert "100000 documents of wikipedia.txt" in " ".join(said.split())
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["model"] == "EleutherAI/gpt-j-6b"
    assert {"memit", "pmet+blue"} <= {recipe["method"] for recipe in report["methods"]}


def test_show_lists_the_methods_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "show", "--model", "lab"]) == 0
    printed = capsys.readouterr().out
    assert printed.split().count("memit_seq+blue") == 1
    assert printed.count("all methods") == 2  # their statistics, and their source


@pytest.mark.parametrize("model", ["lab", "llama-3-8b-instruct"])
def test_show_takes_every_file(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "show", "--model", model]) == 0
    said = capsys.readouterr().out
    assert ("No key statistics: rome" in said) == (model != "lab")
    assert ("tokens of lab" in " ".join(said.split())) == (model == "lab")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "--model", "unheard-of"], "errata ships no recipe for 'unheard-of'"),
        (["show", "--model", "gpt2-xl", "--method", "nse+blue"], "errata has no published settings of 'nse+blue'"),
        (["show", "--method", "memitt"], "Did you mean 'memit'?"),
        (["check", "nothing.yaml"], "[FILE_NOT_FOUND]"),
        (["check", str(ROOT / "examples" / "recipe.yaml"), "--method", "memitt"], "Did you mean 'memit'?"),
    ],
)
def test_missing_things_are_reported(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "show", "check", "auto"):
        assert run(["recipe", command, "--help"]) == 0
        assert f"Example: errata recipe {command}" in " ".join(capsys.readouterr().out.split())


# check ----------------------------------------------------------------------------------------------------------------


def test_a_recipe_without_faults_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = ROOT / "examples" / "recipe.yaml", tmp_path / "check.json"
    assert run(["recipe", "check", str(path), "--json", str(out)]) == 0
    listed = "memit, memit_seq, alphaedit (each with and without +blue)"  # an entry counts for its +blue too
    assert capsys.readouterr().out == f"{path} is valid for {listed}.\n"
    report = json.loads(out.read_text(encoding="utf-8"))
    methods = [form for name in ("memit", "memit_seq", "alphaedit") for form in (name, f"{name}+blue")]
    expected = {"format": "errata-output-1", "file": str(path), "valid": True, "methods": methods, "editors": []}
    assert report == {**expected, "faults": []}
    assert run(["recipe", "check", str(path), "--method", "memit+blue"]) == 0


def test_only_what_a_file_has_numbers_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yaml.safe_load((ROOT / "examples" / "recipe.yaml").read_text(encoding="utf-8"))
    data["methods"] = {"rect+blue": data["methods"]["memit"], "memit": data["methods"]["memit"], "memit+blue": {}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    assert run(["recipe", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path} is valid for memit (with and without +blue), rect+blue.\n"
    path.write_text(read_recipe(path, "memit").to_yaml(), encoding="utf-8")
    assert run(["recipe", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path} is valid for memit.\n"  # written for this one


def test_all_faults_of_all_methods_are_reported_once_and_by_their_place(tmp_path: Path) -> None:
    faults = faults_of(WRONG, tmp_path)
    assert set(faults) == {
        "layer",
        "target.steps",
        "target.learning_rat",
        "target.learning_rate",
        "statistics.tokens",
        "methods.memit.solver.ridge",
        "methods.memit+blue.target.clam",
        "methods.rect.solver.ridge",
        "methods.pmet.solver.ridge",
        "methods.memmit",
        "methods.emmet",
    }
    assert "Did you mean 'layers'?" in faults["layer"]
    assert "Did you mean 'learning_rate'?" in faults["target.learning_rat"]
    assert "Did you mean 'clamp'?" in faults["methods.memit+blue.target.clam"]
    assert "Did you mean 'memit'?" in faults["methods.memmit"]
    assert "Got -1" in faults["methods.memit.solver.ridge"]
    assert "Add this key" in faults["methods.pmet.solver.ridge"]
    assert "is not a mapping" in faults["methods.emmet"]


def test_a_check_for_one_method_leaves_out_what_is_wrong_for_others(tmp_path: Path) -> None:
    faults = faults_of(WRONG, tmp_path, "--method", "rect")
    assert "methods.rect.solver.ridge" in faults
    assert not {"methods.memit.solver.ridge", "methods.pmet.solver.ridge"} & set(faults)


def test_a_contradiction_is_reported_with_its_methods(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "examples" / "recipe.yaml").read_text(encoding="utf-8"))
    data["methods"]["rome"] = {}
    assert "'single' writes one layer" in faults_of(yaml.safe_dump(data), tmp_path)["methods.rome"]
    data["methods"] = {"memit": data["methods"]["memit"]}
    assert run(["recipe", "check", str(ROOT / "examples" / "recipe.yaml")]) == 0
    assert set(faults_of(yaml.safe_dump(data | {"schedule": "single"}), tmp_path)) == {""}  # of the whole file


INVALID: list[tuple[str, str | None, str]] = [
    ("model: m\n", None, "does not name a method"),
    ("- 1\n", None, "is not a mapping"),
    ("method: memitt\n", "method", "Did you mean 'memit'?"),
    ("metods: {memit: {}}\nmethods: {memit: {}}\n", "metods", "Did you mean 'methods'?"),
    ("also: 3\nmethods: {memit: {}}\n", "also", "is not a list of model names"),
    ("shaping: [{kind: rect, share: 2}]\nmethods: {memit: {}}\n", "shaping.0.share", "Got 2"),
]


def test_invalid_files(tmp_path: Path) -> None:
    for text, where, words in INVALID:
        faults = faults_of(text, tmp_path)
        assert words in (faults[where] if where is not None else "".join(faults.values()))


def test_faults_name_their_line_or_that_of_the_section_around(tmp_path: Path) -> None:
    path, out = tmp_path / "own.yaml", tmp_path / "check.json"
    path.write_text(WRONG.lstrip(), encoding="utf-8")
    assert run(["recipe", "check", str(path), "--json", str(out)]) == 2
    faults = json.loads(out.read_text(encoding="utf-8"))["faults"]
    lines = {fault["where"].removeprefix(f"{path}: "): fault["line"] for fault in faults}
    assert lines == {
        "layer": 2,
        "target.steps": 4,
        "target.learning_rat": 4,
        "target.learning_rate": 4,  # missing in this section
        "statistics.tokens": 5,
        "methods.memit.solver.ridge": 7,
        "methods.memit+blue.target.clam": 8,
        "methods.rect.solver.ridge": 9,
        "methods.pmet.solver.ridge": 10,  # missing in this entry
        "methods.memmit": 12,
        "methods.emmet": 13,
    }


def test_duplicate_keys_are_reported_with_both_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "examples" / "recipe.yaml").read_text(encoding="utf-8")
    count = len(text.splitlines())
    path = tmp_path / "own.yaml"
    path.write_text(f"{text}  memit: {{solver: {{ridge: 1, ridge: 2}}}}\nlayers: [0]\n", encoding="utf-8")
    for verb in (["recipe", "check", str(path)], ["edit", "--dry-run", "--facts", str(FACTS), "--recipe", str(path)]):
        assert run(verb) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "2 faults in" in said
        assert f"methods.memit (line {count + 1}): duplicate key, first in line {count - 2}" in said
        assert f"layers (line {count + 2}): duplicate key" in said


# edit -----------------------------------------------------------------------------------------------------------------


def test_a_published_recipe_asks_for_a_corpus_and_takes_it(
    plain_gpt2_xl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["edit", "--facts", str(FACTS), "--model", str(plain_gpt2_xl), "--method", "memit+blue", "--dry-run"]
    assert run(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot read the corpus 'wikipedia.txt'" in said
    assert "--corpus FILE" in said
    assert "Traceback" not in said
    corpus = write_corpus(tmp_path / "small.txt")
    assert run([*arguments, "--corpus", "small.txt"]) == 2
    assert "has 210 documents, but 100000 are needed" in " ".join(capsys.readouterr().err.split())
    corpus.write_text("A document.\n\n" * 100000, encoding="utf-8")
    assert run([*arguments, "--corpus", "small.txt", "--json", "plan.json"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert plan["recipe"]["statistics"]["corpus"] == str(corpus.resolve())
    assert [step["layer"] for step in plan["steps"]] == [13, 17]
    assert "recipe was made for" not in capsys.readouterr().err


def test_a_recipe_that_is_lent_to_another_model_is_announced(
    plain_gpt2_xl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = plain_gpt2_xl.rename(tmp_path / "llama-2-7b-chat-hf")
    arguments = ["edit", "--facts", str(FACTS), "--model", str(model), "--method", "rome", "--dry-run"]
    assert run(arguments) == 0, "C is the identity, so no corpus is asked for"
    assert "the recipe was made for 'meta-llama/Llama-2-7b-hf'" in " ".join(capsys.readouterr().err.split())


# the section editors --------------------------------------------------------------------------------------------------


def test_a_recipe_of_editors_only_is_checked(tmp_path: Path) -> None:
    path, out = tmp_path / "own.yaml", tmp_path / "check.json"
    path.write_text("editors: {grace: {epsilon: 0.2}, ultra: }\n", encoding="utf-8")
    assert run(["recipe", "check", str(path), "--json", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["editors"] == ["grace", "ultra"]
    assert run(["recipe", "check", str(path), "--method", "grace"]) == 0
    assert run(["recipe", "check", str(path), "--method", "memoir"]) == 2  # it has no settings of it


def test_all_faults_of_the_section_editors_are_reported_together(tmp_path: Path) -> None:
    text = "editors:\n  grace: {epsilon: -1, stepz: 3}\n  grase: {}\n  ultra: 3\n  lora: {rank: 0}\n"
    wrong = {"editors.grace.epsilon", "editors.grace.stepz", "editors.grase", "editors.ultra", "editors.lora.rank"}
    found = faults_of(text, tmp_path)
    assert set(found) == wrong
    assert "steps" in found["editors.grace.stepz"]
    assert "'grace'" in found["editors.grase"]
    assert set(faults_of(f"stepz: 3\n{text}", tmp_path)) == {*wrong, "stepz"}
    assert faults_of("editors: [grace]\n", tmp_path).keys() == {"editors"}
    assert faults_of("editors: {ultra: 3}\n", tmp_path, "--method", "ultra").keys() == {"editors.ultra"}
