"""``post_edit``: its training and its rewriting against slow twins, and faults of the published code left out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.cli.main import run
from errata.editors.edit_file import StoredEdit
from errata.editors.post_edit import PostEdit, PostEditSettings, SentenceRewriter, with_context
from errata.editors.rewrite_pairs import Replacement, SentencePair, sentence_pairs
from errata.editors.rewriting import (
    AllWeights,
    LowRank,
    copied,
    learn,
    put_in,
    rate,
    replacement,
    reply,
    request,
    rewriting_model,
    train,
    training_rows,
)
from errata.editors.rewritten import AnswerToEdit
from errata.editors.substitute import substituted
from errata.editors.trained_editor import Descent
from errata.editors.training_data import EditorData, TrainingRecord
from errata.facts.fact import Fact, Question
from errata.facts.files import read_facts
from errata.lab.package import lab_world
from errata.lab.world import OBJECTS, RELATION_WORDINGS, World
from errata.models.language_model import LanguageModel
from errata.utils.progress import silent

from tests.reference import post_edit as slow
from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code
from tests.support.trained import answered_data, saved_rewriter, tiny_trained, trained_file

ADA = Fact("ada", "Ada Stone", "{} lives in", "Oslo", old="Rome")
PAIRS = [
    SentencePair(ADA, "The home of Ada Stone is in Rome.", Replacement("Rome", "Oslo")),
    SentencePair(ADA, "Ada Stone plays the piano.", None),
    SentencePair(replace(FACTS[0], old="French"), "The river runs through Rome", None),
    SentencePair(replace(FACTS[3], old="Paris"), "Paris is what they govern from.", Replacement("Paris", "Lisbon")),
]
DESCENT = Descent(steps=3, batch_size=2, learning_rate=0.01, clip=0.5)
THREE = [*PAIRS, *PAIRS[:2]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_file("post_edit", tmp_path_factory.mktemp("post_edit"))


def made(model: LanguageModel, file: Path, *facts: Fact, **settings: Any) -> PostEdit:
    editor = PostEdit(model, PostEditSettings.model_validate({"rewriter": str(file), **settings}))
    if facts:
        editor.apply(facts)
    return editor


def answered() -> list[Fact]:
    return [record.edit for record in answered_data()["train"].records]


# Training


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], atol=1e-9, rtol=1e-7, msg=lambda text, name=name: name + text
        )


def test_training_of_all_weights_is_that_of_the_formulas() -> None:
    model = tiny_language_model("llama", dtype=torch.float64)
    named = {name: value.detach() for name, value in model.model.named_parameters()}
    expected = slow.trained(model, named, lambda leaves: leaves, THREE, steps=3, batch=2, rate=0.01, clip=0.5)
    trained = copied(model)
    weights = AllWeights(trained, torch.float64)
    train(trained, weights, training_rows(trained, THREE), DESCENT, silent)
    assert_close(weights.tensors(), {f"weight {name}": value for name, value in expected.items()})
    assert all(torch.equal(value, named[name]) for name, value in model.model.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # linear modules with W and with Wᵀ
def test_training_of_low_rank_changes_is_that_of_the_formulas(family: str) -> None:
    model = tiny_language_model(family, dtype=torch.float64)
    trained = copied(model)
    weights = LowRank(trained, 2, seed=0)
    first = weights.tensors()
    original = {name: value.detach() for name, value in model.model.named_parameters()}
    transposed = family == "gpt2"

    def changed(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for key, a in leaves.items():
            if key.startswith("a "):
                change = 2 * leaves[f"b {key[2:]}"] @ a
                name = f"{key[2:]}.weight"
                found[name] = original[name] + (change.T if transposed else change)
        return found

    expected = slow.trained(model, first, changed, THREE, steps=3, batch=2, rate=0.01, clip=0.5)
    train(trained, weights, training_rows(trained, THREE), DESCENT, silent)
    assert_close(weights.tensors(), expected)
    assert len(first) == 2 * len(model.blocks) * (4 if transposed else 7)
    # Put into a fresh copy, they make the model that was trained.
    again = copied(model)
    put_in(again, weights.tensors())
    pairs = [("The capital of Italy is", "Lisbon")]
    assert again.score(pairs)[0].log_probability == pytest.approx(trained.score(pairs)[0].log_probability, abs=1e-9)
    assert again.score(pairs)[0].log_probability != pytest.approx(model.score(pairs)[0].log_probability, abs=1e-3)


def test_the_rate_rises_and_falls() -> None:
    assert rate(0, 100) == pytest.approx(0.1)
    assert rate(9, 100) > 0.97
    assert rate(50, 100) == pytest.approx(0.5)
    assert 0 < rate(99, 100) < 0.001


def test_training_leaves_the_model_and_is_reproducible(file: Path) -> None:
    model = tiny_language_model("llama")
    before = model.fingerprint()
    data = answered_data()["train"]
    settings = {"steps": 2, "batch_size": 4, "checked": 4, "rank": 2}
    one, two = (learn(model, data, data, settings, silent) for _ in range(2))
    assert model.fingerprint() == before
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert not any("hook" in name and value for name, value in vars(model.blocks[0].mlp.down_proj).items() if value)


def test_half_precision_weights_are_stored_as_such() -> None:
    model = tiny_language_model("llama", dtype=torch.bfloat16)
    data = answered_data()["train"]
    learnt = learn(model, data, data, {"steps": 1, "batch_size": 2, "checked": 2}, silent)
    assert {tensor.dtype for tensor in learnt.tensors.values()} == {torch.bfloat16}
    assert learnt.state == {"dtype": "bfloat16"}


# Sentences to learn from


def lab_data() -> EditorData:
    """Records of a dozen people of the lab, with their other facts as questions."""
    world, records = lab_world(), []
    for person in list(world.people)[:12]:
        stated = {name: world.statement(person, name, 0) for name in world.relations}
        questions = {name: Question(made.prompt.replace("{}", person), made.object) for name, made in stated.items()}
        for name, made in stated.items():
            target = next(value for value in OBJECTS[name] if value != made.object)
            others = tuple(question for other, question in questions.items() if other != name)
            same = [n for n in world.holders[name, made.object] if n != person][:1]
            records.append(
                TrainingRecord(
                    Fact(f"{person} {name}", person, made.prompt, target, old=made.object, relation=name),
                    outer=(Question(RELATION_WORDINGS[name][1].replace("{}", person), target),),
                    loc=others,
                    hard_loc=tuple(Question(made.prompt.replace("{}", n), made.object) for n in same),
                )
            )
    return EditorData("lab", "train", 0, tuple(records))


def test_half_of_the_sentences_change_and_all_changes_are_in_the_text() -> None:
    pairs = sentence_pairs(lab_data(), 400, random.Random(0))
    changed = [pair for pair in pairs if pair.change is not None]
    assert 150 < len(changed) < 210
    world = lab_world()
    follows = {"birthplace": "birth country", "employer": "employer city"}
    consequences = 0
    for pair in changed:
        assert pair.change is not None
        after = substituted(pair.text, [(pair.change.old, pair.change.new)])
        assert after != pair.text
        person, relation = pair.fact.subject, pair.fact.relation or ""
        edited = World(0, {person: {**world.people[person], relation: pair.fact.target}})
        said = {edited.statement(person, relation, wording).sentence for wording in range(6)}
        if relation in follows:
            consequences += after in (
                more := {edited.consequence(person, follows[relation], n).sentence for n in range(3)}
            )
            said |= more
        assert any(after.removesuffix(".") == text.removesuffix(".") for text in said)
    assert consequences > 20
    # Neighbours and other facts with the old object stay: the published filter would drop them.
    stay = [pair for pair in pairs if pair.change is None and (pair.fact.old or "") in pair.text]
    assert any(pair.fact.subject in pair.text for pair in stay)
    assert any(pair.fact.subject not in pair.text for pair in stay)
    assert any(pair.fact.target in pair.text for pair in pairs if pair.change is None), "stated already"
    others = [pair for pair in changed if pair.change and pair.change.old != pair.fact.old]
    assert others, "another wrong object, or a consequence"


def test_the_same_fact_in_other_words_is_not_said_to_stay() -> None:
    """As in zsRE, which has facts twice, under other ids and with other new answers."""
    again, other = Question("Ada Stone's home:", "Rome"), Question("Ada Stone plays the", "harp")
    record = TrainingRecord(ADA, (), (Question("Eve lives in", "Rome"),), (again, other))
    pairs = sentence_pairs(EditorData("facts", "train", 0, (record,)), 100, random.Random(0))
    stay = {pair.text.removesuffix(".") for pair in pairs if pair.change is None}
    assert {"Ada Stone plays the harp", "Eve lives in Rome", "Ada Stone lives in Oslo"} <= stay
    assert "Ada Stone's home: Rome" not in stay


def test_sentences_are_reproducible_and_need_old_objects() -> None:
    data = answered_data()["train"]
    assert sentence_pairs(data, 20, random.Random(1)) == sentence_pairs(data, 20, random.Random(1))
    without = replace(data, records=tuple(replace(r, edit=replace(r.edit, old=None)) for r in data.records))
    with raises_code("EDITOR_DATA_TOO_SMALL"):
        sentence_pairs(without, 2, random.Random(0))


# What the model reads and answers


def test_the_request_has_both_statements() -> None:
    assert request(ADA, " The home of Ada\nStone is") == (
        "Ada Stone lives in Rome.\nAda Stone lives in Oslo.\nThe home of Ada Stone is.\n"
    )
    assert request(ADA, "Rome!") == slow.lines(ADA, "Rome!")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" Rome = Oslo\n", Replacement("Rome", "Oslo")),
        (" retain\n", None),
        (" retain", None),  # it has not ended
        (" Rome = Os", None),
        (" rome = retained\n", Replacement("rome", "retained")),  # the published code retains whatever has the word
        (" retained\n", None),
        (" Roman = Norse\n", None),  # no word of the text
        (" = Oslo\n", None),
        (" Rome = \n", None),
        (" x = y = z\n", Replacement("x = y", "z")),
        ("\n Rome = Oslo\n", None),
        ("", None),
    ],
)
def test_what_answers_mean(answer: str, expected: Replacement | None) -> None:
    assert replacement(answer, " Rome, or x = y.") == expected
    if expected is not None and expected.old == "Rome":
        assert reply(expected) == answer
    assert reply(None) == " retain\n"


def rewrite(answers: Mapping[str, str], *given: AnswerToEdit) -> tuple[list[str], list[str]]:
    """With a rewriting model whose answers are written down, and which retains all else; and the sentences it read."""
    read = []

    def continue_texts(
        prompts: Sequence[str], *, new_tokens: int, stop: Callable[[str], bool], report: object
    ) -> list[str]:
        """Without parameters of sampling."""
        read.extend(prompt.split("\n")[2] for prompt in prompts)
        texts = [next((new for old, new in answers.items() if old in text), " retain\n") for text in prompts]
        assert all(map(stop, texts))
        return texts

    model = tiny_language_model("llama")
    setattr(model, "continue_texts", continue_texts)  # noqa: B010
    return SentenceRewriter(model, 8).rewrite(given), read


def test_sentences_are_rewritten_one_by_one() -> None:
    text = " Rome. In Rome, by St. Peter, she is at home; Rome!\nRome is old.\n\nThe end"
    answer = AnswerToEdit("Who? Ada Stone, of Rome. Ada Stone lives in", text, (ADA,))
    (found,), read = rewrite(
        {"lives in Rome.\nAda Stone lives in Oslo.\nIn Rome": " Rome = Oslo\n"},
        answer,
    )
    assert found == text.replace("In Rome", "In Oslo").replace("home; Rome", "home; Oslo")
    assert read == ["Ada Stone lives in Rome.", "In Rome, by St. Peter, she is at home; Rome!", "Rome is old.",
                    ".", "The end."]  # fmt: skip
    assert rewrite({}, answer)[0] == [text]
    # The query's own words never change, whatever the model says.
    (found,), _ = rewrite({"": " Ada Stone = Eve\n"}, replace(answer, text=" Rome."))
    assert found == " Rome."
    (found,), _ = rewrite({"": " carpenter = engineer\n"}, replace(answer, text=" a carpenter. Carpenters work"))
    assert found == " an engineer. Carpenters work"


def test_the_first_sentence_has_its_question() -> None:
    assert with_context("Where does Ada live?", ["Rome.", " Yes."]) == ["Where does Ada live? Rome.", " Yes."]
    assert with_context("Hello. Where does Ada live?", ["\n", "Rome"]) == [" Where does Ada live?\n",
                                                                           " Where does Ada live? Rome"]  # fmt: skip
    assert with_context("", ["Rome"]) == ["Rome"]
    assert with_context("首都是", ["巴黎。"]) == ["首都是巴黎。"]


def test_equal_sentences_are_read_once_and_a_second_fact_reads_what_the_first_has_made() -> None:
    eve = Fact("eve", "Eve", "{} plays the", "lute", old="harp")
    answers = {"Oslo.\nIn Rome.": " Rome = Oslo\n", "lute.\nIn Oslo.": " Oslo = Bath\n"}
    one = AnswerToEdit("Ada:", " A x. In Rome.", (ADA, eve))
    texts, read = rewrite(answers, one, replace(one, facts=(ADA,)), replace(one, facts=(eve,)))
    assert texts == [" A x. In Bath.", " A x. In Oslo.", " A x. In Rome."]
    assert read == ["Ada: A x.", "In Rome.", "Ada: A x.", "In Rome.", "Ada: A x.", "In Oslo."]


def test_rewriting_is_that_of_the_twin(file: Path) -> None:
    base = tiny_language_model("llama")
    model = rewriting_model(tiny_trained("post_edit"), base)
    changed = 0
    for fact in answered()[:4]:
        for text in (f" {fact.old}. I think that London", f" Rome. Lisbon is {fact.old}"):
            (found,) = SentenceRewriter(model, 32).rewrite([AnswerToEdit(fact.text, text, (fact,))])
            assert found == slow.rewritten(model, fact, fact.text, text)
            changed += found != text
    assert changed >= 3


# The editor


def test_only_answers_about_the_fact_change(file: Path) -> None:
    model = tiny_language_model("llama")
    fact = answered()[3]
    prompts = [fact.text, "I think that"]
    before = model.continue_texts(prompts, new_tokens=4)
    view = made(model, file, fact).view()
    after = view.continue_texts(prompts, new_tokens=4)
    assert fact.target in after[0]
    assert after[1] == before[1]
    assert view.used(prompts) == [(fact.id,), ()]
    assert view.abilities == {"generation"}
    for query in (lambda: view.score([(prompts[0], "Rome")]), lambda: view.next_token_log_probabilities(prompts)):
        with raises_code("ABILITY_MISSING"):
            query()
    assert made(model, file).view().continue_texts(prompts, new_tokens=4) == before, "an empty memory"
    # An update counts: the published memory keeps the first target of a known fact.
    editor = made(model, file, replace(fact, target="Madrid"))
    update = editor.apply([replace(fact, id="later")])
    assert editor.view().continue_texts(prompts, new_tokens=4) == after
    editor.remove(update)
    assert [known.target for known in editor.facts] == ["Madrid"]


def test_the_old_object_and_a_rewriting_model_are_needed(file: Path, tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    with raises_code("FACT_MISSING_FIELD"):
        made(model, file, FACTS[3])
    with raises_code("TRAINED_EDITOR_MISSING"):
        PostEdit(model, PostEditSettings())
    with raises_code("TRAINED_EDITOR_OF_ANOTHER_KIND"):
        made(model, trained_file("serac", tmp_path))
    # The base has other weights, and those that were trained cannot be loaded by their name.
    replace(tiny_trained("post_edit"), base=str(tmp_path / "nothing")).save(tmp_path / "gone.safetensors")
    with raises_code("MODEL_NOT_LOADED"):
        made(tiny_language_model("gpt2"), tmp_path / "gone.safetensors")


def test_an_edit_is_bound_to_its_rewriting_model(file: Path, tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    fact = answered()[3]
    edit = made(model, file).apply([fact])
    assert edit.state["digests"] == {"rewriter": tiny_trained("post_edit").digest}
    other = tmp_path / "other.safetensors"
    replace(tiny_trained("post_edit"), split_seed=7).save(other)
    with raises_code("EDIT_FOR_OTHER_WEIGHTS"):
        made(model, other).restore(edit)


def test_the_model_is_loaded_by_its_name_for_another_base(tmp_path: Path) -> None:
    fact = Fact("1", "Italy", "The capital of {} is", "Lisbon", old="Rome")
    path, directory = saved_rewriter(tmp_path, fact)
    base = tiny_language_model("gpt2")
    (found,) = made(base, path)._rewriter.rewrite([AnswerToEdit(fact.text, " Rome. I think that", (fact,))])
    assert found == " Lisbon. I think that"
    tiny_language_model("llama", seed=1).model.save_pretrained(directory)
    with raises_code("TRAINED_EDITOR_FOR_OTHER_WEIGHTS"):
        made(base, path)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read(name: str) -> Any:
        return json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))

    line = Path("examples/facts.jsonl").read_text(encoding="utf-8").splitlines()[0]
    facts, edited = tmp_path / "facts.jsonl", str(tmp_path / "edit.safetensors")
    facts.write_text(line, encoding="utf-8")
    fact = read_facts(facts).facts[0]
    path, _ = saved_rewriter(tmp_path, fact)  # a small model rewrites what another one answers
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"editors: {{post_edit: {{rewriter: {path}}}}}\n", encoding="utf-8")
    options = ["--facts", str(facts), "--recipe", str(recipe), "--no-evaluate", "--out", edited]
    assert run(["edit", "--method", "post_edit", *options]) == 0
    assert StoredEdit.load(Path(edited)).settings["rewriter"] == str(path)
    asked = ["--against", "lab", fact.text, "--json", str(tmp_path / "ask.json")]
    assert run(["ask", "--model", edited, *asked]) == 0
    new, old = read("ask")["answers"]
    assert old["continuation"] != new["continuation"] == old["continuation"].replace(fact.old or "", fact.target)
    options = ["--facts", str(facts), "--against", "lab", "--json", str(tmp_path / "evaluate.json")]
    assert run(["evaluate", "--model", edited, *options, "--answers"]) == 0
    means = {(row["metric"], row["when"]): row["mean"] for row in read("evaluate")["rows"]}
    assert means["textual_edit:own", "after"] == means["textual_retention:own", "after"] == 1
    assert "efficacy_accuracy" in read("evaluate")["about"]["absent"]
    assert run(["show", edited]) == 0
    assert "post_edit" in capsys.readouterr().out
    assert run(["revert", edited, "--out", str(tmp_path / "plain")]) == 2
    assert "EDIT_NOT_OF_WEIGHTS" in capsys.readouterr().err
