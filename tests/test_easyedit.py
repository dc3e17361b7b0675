"""Files of EasyEdit, KnowEdit, zsRE, QAEdit and CounterFact as facts. The records are made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from errata.errors import Fault, FaultsError
from errata.facts.fact import Fact, FactSet, Question
from errata.facts.files import read_facts

BASE: Mapping[str, Any] = {"subject": "Oria Bell", "prompt": "Oria Bell speaks", "target_new": "Welsh"}


def read(folder: Path, *records: object) -> FactSet:
    return read_facts(written(folder, list(records)))


def one(folder: Path, **fields: object) -> Fact:
    (fact,) = read(folder, {**BASE, **fields})
    return fact


def faults(path: Path) -> list[Fault]:
    with pytest.raises(FaultsError) as error:
        read_facts(path)
    return list(error.value.faults)


def written(folder: Path, content: object, *, indent: int | None = 2, name: str = "facts.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=indent), encoding="utf-8")
    return path


def test_json_in_all_its_layouts(tmp_path: Path) -> None:
    own = {"subject": "Ada", "prompt": "{} sings in", "target": "Basque", "old": "Welsh"}
    lines = json.dumps(BASE) + "\n" + json.dumps(own) + "\n"
    for suffix in (".json", ".jsonl"):
        for content, indent, places in (
            ([BASE, own], None, ["[0]", "[1]"]),
            ([BASE, own], 2, ["[0]", "[1]"]),
            (lines, None, [":1", ":2"]),
            (BASE, 2, [""]),  # one record over several lines
        ):
            facts = read_facts(written(tmp_path, content, indent=indent, name=f"facts{suffix}"))
            texts = [("Oria Bell speaks", "Welsh"), ("Ada sings in", "Basque")][: len(places)]
            assert [(fact.text, fact.target) for fact in facts] == texts
            assert [place.rpartition("facts")[2] for place in facts.places] == [f"{suffix}{place}" for place in places]


def test_lists_that_are_nested_or_damaged_are_one_fault(tmp_path: Path) -> None:
    (fault,) = faults(written(tmp_path, {"edits": [dict(BASE)] * 50}))
    assert fault.code == "FACTS_NESTED_LIST"
    assert "'edits'" in fault.what
    records = [{**BASE, "subject": f"Oria {number}", "prompt": f"Oria {number} speaks"} for number in range(50)]
    for end in ("", ',\n {"subject": "x"', ", 7]", "] []"):
        (fault,) = faults(written(tmp_path, json.dumps(records, indent=2)[:-1].rstrip() + end))
        assert fault.code == ("FACT_WRONG_TYPE" if "7" in end else "JSON_INVALID")


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


LOCALITY_FORMS: Sequence[object] = (
    {"neighborhood": {"prompt": ["Unai speaks", "Who rows?"], "ground_truth": ["Basque", "Ann"]}},
    {"neighborhood": {"prompt": ["Unai speaks", "Who rows?"], "ground_truth": [["Basque", "x"], ["Ann"]]}},
    {"1": {"prompt": "Unai speaks", "ground_truth": "Basque"},
     "2": {"prompt": ["Who rows?"], "ground_truth": "Ann"}},
    {"a": [{"prompt": "Unai speaks", "ground_truth": ["Basque"]}], "b": None, "c": [],
     "d": [{"prompt": "Who rows?", "answer": [["Ann"]]}]},
    [{"prompt": "Unai speaks", "ground_truth": "Basque"}, {"loc": "Who rows?", "loc_ans": "Ann"}],
    {"prompt": ["Unai speaks", "Who rows?"], "ground_truth": ["Basque", "Ann"]},
    [[{"prompt": "Unai speaks", "ground_truth": "Basque"}], [{"prompt": "Who rows?", "ground_truth": "Ann"}]],
)  # fmt: skip


def test_locality_in_all_its_forms(tmp_path: Path) -> None:
    for form in LOCALITY_FORMS:
        for name in ("locality", "locality_inputs"):
            fact = one(tmp_path, ground_truth="Basque", **{name: form})
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
    (fault,) = faults(written(tmp_path, [{"subject": "art", "prompt": "The start is", "target_new": "late"}]))
    assert fault.code == "FACT_SUBJECT_POSITION"
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
    assert not any("unused" in note for note in facts.notes)
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


def test_fields_of_errata_are_accepted_too(tmp_path: Path) -> None:
    fact = one(tmp_path, aliases=["Cymraeg"], neighbours=[{"prompt": "p", "answer": "a"}], old="Basque", joiner="")
    assert fact.joiner == ""
    assert (fact.aliases, fact.neighbours, fact.old) == (("Cymraeg",), (Question("p", "a"),), "Basque")


def test_faults_name_record_and_field(tmp_path: Path) -> None:
    good = {**BASE, "subject": "Ada", "prompt": "Ada speaks"}
    deep: object = "x"
    for _ in range(400):
        deep = {"a": deep}
    for changes, code, words in (
        ({"target_new": None, "ground_truth": "x"}, "FACT_MISSING_FIELD", "'alt'"),
        ({"target_new": "  "}, "FACT_EMPTY_FIELD", "'target_new'"),
        ({"target_new": {"a": 1}}, "FACT_WRONG_TYPE", "'target_new'"),
        ({"target_new": True}, "FACT_WRONG_TYPE", "true or false"),
        ({"subject": None}, "FACT_MISSING_FIELD", "'subject'"),
        ({"prompt": None}, "FACT_MISSING_FIELD", "'src'"),
        ({"prompt": "She speaks"}, "FACT_SUBJECT_POSITION", "'Oria Bell'"),
        ({"locality": {"a": ["Who rows?"]}}, "FACT_WRONG_TYPE", "'locality.a[0]'"),
        ({"locality": {"a": {"ground_truth": "x"}}}, "FACT_MISSING_FIELD", "'locality.a'"),
        ({"locality": {"a": {"prompt": ["p", "q"], "ground_truth": ["x"]}}}, "FACT_LIST_LENGTHS", "2 prompts"),
        ({"locality": {"a": [{"prompt": {}, "ground_truth": "x"}]}}, "FACT_WRONG_TYPE", "'locality.a[0].prompt'"),
        ({"locality": 7}, "FACT_WRONG_TYPE", "'locality' is a number"),
        ({"locality": deep}, "FACT_NESTED_TOO_DEEPLY", "'locality"),
        ({"rephrase_promt": "x"}, "FACT_UNKNOWN_FIELD", "'rephrase_prompt'"),
    ):
        records = [good, {**BASE, **changes}, {**good, "subject": "Ann", "prompt": "Ann speaks"}]
        (fault,) = faults(written(tmp_path, records))
        assert (fault.where.rpartition("/")[2], fault.code) == ("facts.json[1]", code), changes
        assert words in str(fault)


def test_all_records_are_checked(tmp_path: Path) -> None:
    found = faults(written(tmp_path, [{**BASE, "subject": None}, BASE, {**BASE, "target_new": []}, 7]))
    assert [fault.where.rpartition("/")[2] for fault in found] == ["facts.json[0]", "facts.json[2]", "facts.json[3]"]


def test_unused_fields_are_reported(tmp_path: Path) -> None:
    unanswered = {"prompt": "Oria Bell rows", "ground_truth": []}
    facts = read(tmp_path, {**BASE, "difficulty": 3, "locality": {"a": [unanswered]}})
    assert any("'" not in note and "difficulty" in note for note in facts.notes)
    assert any(note.startswith("1 question ") for note in facts.notes)


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


def test_parallel_lists_are_records(tmp_path: Path) -> None:
    facts = read_facts(written(tmp_path, COLUMNS))
    for name in ("facts.json", "facts.jsonl"):
        assert read_facts(written(tmp_path, COLUMNS, indent=None, name=name)).facts == facts.facts
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


def test_parallel_texts_are_one_record(tmp_path: Path) -> None:
    record = {"prompts": "Oria Bell speaks", "subject": "Oria Bell", "target_new": "Welsh"}
    assert [fact.text for fact in read_facts(written(tmp_path, record))] == ["Oria Bell speaks"]


def test_parallel_lists_of_other_lengths_are_one_fault(tmp_path: Path) -> None:
    locality = {"a": {"prompt": ["x"], "ground_truth": ["y"] * 3}}
    for changes, code, words in (
        ({"subject": ["Oria Bell"] * 50}, "FACT_LIST_LENGTHS", "'subject' 50"),
        ({"target_new": "Welsh"}, "FACT_LIST_LENGTHS", "'target_new' 1"),
        ({"locality_inputs": locality}, "FACT_LIST_LENGTHS", "'locality_inputs.a.prompt' 1"),
        ({"subject": None}, "FACT_MISSING_FIELD", "'subject'"),
        (
            {"prompts": ["Oria Bell speaks"], "subject": None, "target_new": None},
            "FACT_MISSING_FIELD",
            "'target_new'",
        ),
    ):
        (fault,) = faults(written(tmp_path, {**COLUMNS, **changes}))
        assert fault.code == code
        assert words in fault.what


def test_a_fault_in_parallel_lists_names_the_entry(tmp_path: Path) -> None:
    (fault,) = faults(written(tmp_path, {**COLUMNS, "subject": ["Oria Bell", "Torre Luce", "Io"]}))
    assert fault.where.endswith("[1]")
    assert "Torre Luce" in fault.what
