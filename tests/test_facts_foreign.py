"""Files of EasyEdit, KnowEdit, zsRE, QAEdit and CounterFact as facts: all their forms, and what is missing in them.

The records are made up; their form is that of the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from errata.errors import FaultsError
from errata.facts.fact import Fact, FactSet, Question
from errata.facts.files import read_facts

BASE: Mapping[str, Any] = {"subject": "Oria Bell", "prompt": "Oria Bell speaks", "target_new": "Welsh"}


def read(folder: Path, *records: object, indent: int | None = 2) -> FactSet:
    path = folder / "facts.json"
    path.write_text(json.dumps(list(records), indent=indent), encoding="utf-8")
    return read_facts(path)


def one(folder: Path, **fields: object) -> Fact:
    (fact,) = read(folder, {**BASE, **fields})
    return fact


def faults(folder: Path, *records: object) -> list[str]:
    with pytest.raises(FaultsError) as caught:
        read(folder, *records)
    return [f"{fault.where.rpartition('/')[2]}: {fault.what}. {fault.remedy}" for fault in caught.value.faults]


# ---- files


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_json_list_is_read_pretty_printed_or_not(suffix: str, indent: int | None, tmp_path: Path) -> None:
    own = {"subject": "Ada", "prompt": "{} sings in", "target": "Basque", "old": "Welsh"}
    path = tmp_path / f"facts{suffix}"
    path.write_text(json.dumps([BASE, own], indent=indent))
    facts = read_facts(path)
    assert [(fact.text, fact.target) for fact in facts] == [("Oria Bell speaks", "Welsh"), ("Ada sings in", "Basque")]
    assert [place.rpartition("facts")[2] for place in facts.places] == [f"{suffix}[0]", f"{suffix}[1]"]


def test_records_of_these_forms_are_also_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(BASE) + "\n" + json.dumps({**BASE, "subject": "Ada", "prompt": "Ada speaks"}) + "\n")
    assert [fact.target for fact in read_facts(path)] == ["Welsh", "Welsh"]


def test_one_pretty_printed_record_is_a_file_of_one(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(BASE, indent=2))
    assert read_facts(path)[0].prompt == "{} speaks"


def test_a_list_within_an_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"edits": [dict(BASE)] * 50}, indent=2))
    with pytest.raises(FaultsError) as caught:
        read_facts(path)
    (fault,) = caught.value.faults
    assert "'edits'" in fault.what


@pytest.mark.parametrize("end", ["", ',\n {"subject": "x"', ", 7]", "] []"])
def test_a_damaged_list_has_few_faults(end: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    records = [{**BASE, "subject": f"Oria {number}", "prompt": f"Oria {number} speaks"} for number in range(50)]
    path.write_text(json.dumps(records, indent=2)[:-1].rstrip() + end)
    with pytest.raises(FaultsError) as caught:
        read_facts(path)
    assert len(caught.value.faults) == 1


# ---- fields


def test_knowedit_with_nested_accepted_answers(tmp_path: Path) -> None:
    fact = one(
        tmp_path,
        ground_truth=["Basque"],
        rephrase_prompt="The language of Oria Bell is ",
        portability={
            "Logical_Generalization": [{"prompt": "Is Oria Bell mute?", "ground_truth": [["no"], ["false"]]}],
            "Reasoning": [{"prompt": "Oria Bell lives in", "ground_truth": [["Wales", "Cymru"]]}],
            "Subject_Aliasing": [{"prompt": "Miss Bell speaks", "ground_truth": [["Welsh", "Cymraeg"]]}],
        },
        locality={
            "Relation_Specificity": [
                {"prompt": "The mother of Oria Bell is", "ground_truth": [["Ann"]]},
                {"prompt": "Oria Bell sings", "ground_truth": [[]]},
                {"prompt": "Oria Bell dances", "ground_truth": [""]},
            ],
            "Forgetfulness": [{"prompt": "Oria Bell, not with Welsh, speaks", "ground_truth": "Basque"}],
        },
    )
    assert fact == Fact(
        "fact-1", "Oria Bell", "{} speaks", "Welsh",
        old="Basque",
        paraphrases=("The language of Oria Bell is", "Miss Bell speaks"),
        own=(Question("The mother of Oria Bell is", "Ann"), Question("Oria Bell, not with Welsh, speaks", "Basque")),
        portability=(Question("Is Oria Bell mute?", "no"), Question("Oria Bell lives in", "Wales")),
    )  # fmt: skip


@pytest.mark.parametrize(
    "locality",
    [
        {"neighborhood": {"prompt": ["Unai speaks", "Who rows?"], "ground_truth": ["Basque", "Ann"]}},
        {"neighborhood": {"prompt": ["Unai speaks", "Who rows?"], "ground_truth": [["Basque", "x"], ["Ann"]]}},
        {"1": {"prompt": "Unai speaks", "ground_truth": "Basque"},
         "2": {"prompt": ["Who rows?"], "ground_truth": "Ann"}},
        {"a": [{"prompt": "Unai speaks", "ground_truth": ["Basque"]}], "b": None, "c": [],
         "d": [{"prompt": "Who rows?", "answer": [["Ann"]]}]},
        [{"prompt": "Unai speaks", "ground_truth": "Basque"}, {"loc": "Who rows?", "loc_ans": "Ann"}],
        {"prompt": ["Unai speaks", "Who rows?"], "ground_truth": ["Basque", "Ann"]},
        [[{"prompt": "Unai speaks", "ground_truth": "Basque"}], [{"prompt": "Who rows?", "ground_truth": "Ann"}]],
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["locality", "locality_inputs"])
def test_locality_in_all_its_forms(name: str, locality: object, tmp_path: Path) -> None:
    fact = one(tmp_path, ground_truth="Basque", **{name: locality})
    assert fact.neighbours == (Question("Unai speaks", "Basque"),)
    assert fact.unrelated == (Question("Who rows?", "Ann"),)
    assert fact.own == ()


def test_a_subject_within_another_word_is_not_asked_about(tmp_path: Path) -> None:
    own = {"prompt": "The moon of IO is", "ground_truth": "none"}
    other = {"prompt": "The largest region is", "ground_truth": "Asia"}
    record = {"subject": "Io", "prompt": "Io orbits", "target_new": "Saturn", "locality": [own, other]}
    (fact,) = read(tmp_path, record)
    assert fact.own == (Question("The moon of IO is", "none"),)
    assert fact.unrelated == (Question("The largest region is", "Asia"),)
    chinese = [{"prompt": "中国的首都是", "ground_truth": "北京"}, {"prompt": "日本的首都是", "ground_truth": "东京"}]
    (fact,) = read(tmp_path, {"subject": "中国", "prompt": "中国位于", "target_new": "欧洲", "locality": chinese})
    assert [question.answer for question in fact.own] == ["北京"]
    assert [question.answer for question in fact.unrelated] == ["东京"]


def test_a_prompt_that_has_its_subject_only_inside_a_word_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, {"subject": "art", "prompt": "The start is", "target_new": "late"})
    assert "'art'" in fault
    (fact,) = read(tmp_path, {"subject": "Berlin", "prompt": "Der Bürgermeister Berlins", "target_new": "Ada"})
    assert fact.prompt == "Der Bürgermeister {}s", "endings of names are no other word"


def test_locality_as_two_fields_and_portability_as_one(tmp_path: Path) -> None:
    fact = one(
        tmp_path,
        ground_truth="Basque",
        locality_prompt="Unai speaks",
        locality_ground_truth="Basque",
        portability_inputs={"one_hop": {"prompt": "Oria Bell greets with", "ground_truth": "Shwmae"}},
    )
    assert fact.neighbours == (Question("Unai speaks", "Basque"),)
    assert fact.portability == (Question("Oria Bell greets with", "Shwmae"),)


def test_several_accepted_targets_and_old_answers(tmp_path: Path) -> None:
    fact = one(tmp_path, target_new=["Welsh", "Cymraeg"], ground_truth=["Welsh", "Basque"], rephrase=["a", "b", "a"])
    assert (fact.target, fact.aliases, fact.old, fact.paraphrases) == ("Welsh", ("Cymraeg",), "Basque", ("a", "b"))


def test_zsre(tmp_path: Path) -> None:
    record = {
        "subject": "Torre Ombra", "src": "When was Torre Ombra finished?", "rephrase": "What year saw Torre Ombra?",
        "answers": ["1924", "in 1924"], "loc": "nq question: who painted it", "loc_ans": "Jean Gris", "cond": "x",
        "pred": "1911",
    }  # fmt: skip
    portability = {"Recalled Relation": "(x)", "New Question": "In which decade?", "New Answer": "The 1930s"}
    without, with_alt = read(tmp_path, record), read(tmp_path, {**record, "alt": "1937", "portability": portability})
    assert (without[0].target, without[0].aliases, without[0].old) == ("1924", ("in 1924",), None)
    assert (with_alt[0].target, with_alt[0].aliases, with_alt[0].old) == ("1937", (), "1924")
    assert with_alt[0].portability == (Question("In which decade?", "The 1930s"),)
    assert with_alt[0].unrelated == (Question("nq question: who painted it?", "Jean Gris"),)
    assert with_alt[0].paraphrases == ("What year saw Torre Ombra?",)
    # Which of the two readings of the field it is, is said.
    assert any("'alt'" in note for note in with_alt.notes)
    assert not any("'alt'" in note for note in without.notes)


def test_counterfact(tmp_path: Path) -> None:
    record = {
        "case_id": 7,
        "requested_rewrite": {
            "prompt": "{} was built in", "relation_id": "P19", "subject": "Torre Ombra",
            "target_new": {"str": "Lyon", "id": "Q456"}, "target_true": {"str": "Turin", "id": "Q495"},
        },
        "paraphrase_prompts": ["It rained. Torre Ombra stands in"], "neighborhood_prompts": ["Torre Luce is in"],
        "attribute_prompts": ["Tour Grise is in"], "generation_prompts": ["Around Torre Ombra", "Around Torre Ombra"],
    }  # fmt: skip
    (fact,) = facts = read(tmp_path, record)
    assert fact == Fact(
        "7", "Torre Ombra", "{} was built in", "Lyon", "Turin",
        paraphrases=("It rained. Torre Ombra stands in",), neighbours=(Question("Torre Luce is in", "Turin"),),
        generation=("Around Torre Ombra",), relation="P19",
    )  # fmt: skip
    assert not any("without a use" in note for note in facts.notes)
    only = {"requested_rewrite": record["requested_rewrite"]}
    assert read(tmp_path, only)[0].target == "Lyon"


def test_qaedit_ids_count_within_their_source(tmp_path: Path) -> None:
    record = {"id": 7, "source": "NQ", "prompt": "who kept Torre Ombra?", "target": "Ada", "subject": "Torre Ombra"}
    other = {
        **record,
        "source": "TQ",
        "prompt": "who saw Torre Ombra?",
        "locality": [{"loc": "who", "loc_ans": "Jean"}],
    }
    facts = read(tmp_path, {**record, "rephrase": "Torre Ombra was kept by"}, other)
    assert [fact.id for fact in facts] == ["NQ-7", "TQ-7"]
    assert facts[1].unrelated == (Question("who", "Jean"),)


def test_a_users_rephrase_prompt_is_a_paraphrase(tmp_path: Path) -> None:
    fact = one(tmp_path, case_id=3, ground_truth="Basque", rephrase_prompt="What Oria Bell speaks is")
    assert (fact.paraphrases, fact.generation, fact.id) == (("What Oria Bell speaks is",), (), "3")


def test_errata_own_fields_may_stand_beside(tmp_path: Path) -> None:
    fact = one(tmp_path, aliases=["Cymraeg"], neighbours=[{"prompt": "p", "answer": "a"}], old="Basque", joiner="")
    assert fact.joiner == ""
    assert (fact.aliases, fact.neighbours, fact.old) == (("Cymraeg",), (Question("p", "a"),), "Basque")


# ---- what is missing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_new": None, "ground_truth": "x"}, ["'target_new' is missing", "'alt'", "'target'"]),
        ({"target_new": "  "}, ["'target_new' is empty"]),
        ({"target_new": {"a": 1}}, ["'target_new' holds an object"]),
        ({"target_new": True}, ["'target_new' holds true or false"]),
        ({"subject": None}, ["'subject' is missing"]),
        ({"prompt": None}, ["'prompt' is missing", "'src'"]),
        ({"prompt": "She speaks"}, ["'prompt' has no {}", "'Oria Bell'"]),
        ({"locality": {"a": ["Who rows?"]}}, ["'locality.a[0]'", "without its answer"]),
        ({"locality": {"a": {"ground_truth": "x"}}}, ["'locality.a'", "no 'prompt'"]),
        ({"locality": {"a": {"prompt": ["p", "q"], "ground_truth": ["x"]}}}, ["2 prompts", "'locality.a.ground_truth"]),
        ({"locality": {"a": [{"prompt": {}, "ground_truth": "x"}]}}, ["'locality.a[0].prompt' holds an object"]),
        ({"locality": 7}, ["'locality' is a number"]),
        ({"rephrase_promt": "x"}, ["'rephrase_promt' is unknown", "'rephrase_prompt'"]),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_record(changes: dict[str, object], words: list[str], tmp_path: Path) -> None:
    good = {**BASE, "subject": "Ada", "prompt": "Ada speaks"}
    (fault,) = faults(tmp_path, good, {**BASE, **changes}, {**good, "subject": "Ann", "prompt": "Ann speaks"})
    assert fault.startswith("facts.json[1]: ")
    for word in words:
        assert word in fault


def test_all_records_are_looked_at(tmp_path: Path) -> None:
    found = faults(tmp_path, {**BASE, "subject": None}, BASE, {**BASE, "target_new": []}, 7)
    assert [fault.partition(": ")[0] for fault in found] == ["facts.json[0]", "facts.json[2]", "facts.json[3]"]


def test_questions_and_objects_nested_without_end_are_a_fault(tmp_path: Path) -> None:
    deep: object = "x"
    for _ in range(400):
        deep = {"a": deep}
    assert "nested too deeply" in faults(tmp_path, {**BASE, "locality": deep})[0]


def test_what_was_not_read_is_said(tmp_path: Path) -> None:
    unanswered = {"prompt": "Oria Bell rows", "ground_truth": []}
    facts = read(tmp_path, {**BASE, "difficulty": 3, "locality": {"a": [unanswered]}})
    assert any("'" not in note and "difficulty" in note for note in facts.notes)
    assert any(note.startswith("1 question ") for note in facts.notes)


# ---- EasyEdit's lists side by side

COLUMNS: Mapping[str, Any] = {
    "prompts": ["Oria Bell speaks", "Torre Ombra is in", "Io orbits"],
    "subject": ["Oria Bell", "Torre Ombra", "Io"],
    "target_new": ["Welsh", "Lyon", ["Saturn", "the planet Saturn"]],
    "ground_truth": ["Basque", "Turin", None],
    "rephrase_prompts": ["The language of Oria Bell is", ["Torre Ombra lies in", "One finds Torre Ombra in"], None],
    "locality_inputs": {
        "neighborhood": {"prompt": ["Unai speaks", "Who rows?", None], "ground_truth": ["Basque", "Ann", None]},
        "distracting": {"prompt": ["Oria Bell sings", [""], "Io is"], "ground_truth": ["Lieder", "x", "a moon"]},
    },
    "portability_inputs": {"one_hop": {"prompt": ["a", "b", "c"], "ground_truth": ["1", "2", "3"]}},
    "loc_prompts": ["only for WISE"],
    "keep_original_weight": True,
}


@pytest.mark.parametrize(("name", "indent"), [("facts.json", 2), ("facts.json", None), ("facts.jsonl", None)])
def test_lists_side_by_side_are_records(name: str, indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(COLUMNS, indent=indent), encoding="utf-8")
    facts = read_facts(path)
    assert facts.facts == (
        Fact(
            "fact-1", "Oria Bell", "{} speaks", "Welsh", old="Basque", paraphrases=("The language of Oria Bell is",),
            neighbours=(Question("Unai speaks", "Basque"),), own=(Question("Oria Bell sings", "Lieder"),),
            portability=(Question("a", "1"),),
        ),
        Fact(
            "fact-2", "Torre Ombra", "{} is in", "Lyon", old="Turin",
            paraphrases=("Torre Ombra lies in", "One finds Torre Ombra in"),
            unrelated=(Question("Who rows?", "Ann"),), portability=(Question("b", "2"),),
        ),
        Fact(
            "fact-3", "Io", "{} orbits", "Saturn", aliases=("the planet Saturn",), own=(Question("Io is", "a moon"),),
            portability=(Question("c", "3"),),
        ),
    )  # fmt: skip
    assert any("loc_prompts" in note and "keep_original_weight" in note for note in facts.notes)
    assert [place.rpartition("[")[2] for place in facts.places] == ["0]", "1]", "2]"]


def test_texts_side_by_side_are_one_record(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    record = {"prompts": "Oria Bell speaks", "subject": "Oria Bell", "target_new": "Welsh"}
    path.write_text(json.dumps(record), encoding="utf-8")
    assert [fact.text for fact in read_facts(path)] == ["Oria Bell speaks"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"subject": ["Oria Bell"] * 50}, "'subject' 50"),
        ({"target_new": "Welsh"}, "'target_new' 1"),
        ({"locality_inputs": {"a": {"prompt": ["x"], "ground_truth": ["y"] * 3}}}, "'locality_inputs.a.prompt' 1"),
        ({"subject": None}, "'subject'"),
        ({"prompts": ["Oria Bell speaks"], "subject": None, "target_new": None}, "'target_new'"),
    ],
)
def test_lists_side_by_side_that_do_not_fit_are_one_fault(
    change: Mapping[str, object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({**COLUMNS, **change}), encoding="utf-8")
    with pytest.raises(FaultsError) as caught:
        read_facts(path)
    (fault,) = caught.value.faults
    assert said in fault.what


def test_a_fault_in_one_of_the_lists_names_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({**COLUMNS, "subject": ["Oria Bell", "Torre Luce", "Io"]}), encoding="utf-8")
    with pytest.raises(FaultsError) as caught:
        read_facts(path)
    (fault,) = caught.value.faults
    assert fault.where.endswith("[1]")
    assert "Torre Luce" in fault.what
