"""What each published form becomes, on made-up records."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from errata.datasets.reading import read_dataset
from errata.datasets.registry import DATASETS
from errata.errors import InputError
from errata.facts.concept import Concept
from errata.facts.fact import FIELDS, Fact, Question
from errata.facts.files import write_facts

from tests.datasets import records
from tests.datasets.records import varied, written

MODULES = {"zsre-answers": "zsre", "zsre-alt": "zsre", "multi-counterfact": "counterfact"}
FACT = Fact(
    id="3", subject="Oria Bell", prompt="{} speaks the language of", target="Welsh", truth="Basque", relation="P1412"
)


def only(name: str, record: dict[str, Any], folder: Path) -> Fact:
    loaded = read_dataset(name, written(folder / "file.json", record))
    (fact,) = loaded.facts
    assert loaded.notes == ()
    assert loaded.dataset == name
    assert loaded.facts.places[0].startswith("file.json[0]")
    return fact


@pytest.mark.parametrize("name", ["counterfact", "multi-counterfact"])
def test_counterfact_fills_what_its_paper_measures(name: str, tmp_path: Path) -> None:
    assert only(name, records.COUNTERFACT, tmp_path) == Fact(
        **{field: getattr(FACT, field) for field in ("id", "subject", "prompt", "target", "truth", "relation")},
        paraphrases=("The bus was late. Oria Bell talks in", "What Oria Bell speaks is"),
        neighbours=(Question("Unai Etxe speaks the language of", "Basque"),),
        generation=("Oria Bell grew up in", "Oria Bell grew up in"),
    )


def test_the_reduced_form_never_takes_its_rephrase_prompt_for_a_paraphrase(tmp_path: Path) -> None:
    fact = only("counterfact-edit", records.COUNTERFACT_EDIT, tmp_path)
    assert fact.paraphrases == ()
    assert fact.generation == ("Oria Bell grew up in",)
    assert (fact.id, fact.prompt, fact.target, fact.truth) == ("3", FACT.prompt, "Welsh", "Basque")
    assert fact.neighbours == (Question("Unai Etxe speaks the language of", "Basque"),)


def test_the_two_readings_of_zsre_edit_to_different_targets(tmp_path: Path) -> None:
    answers = only("zsre-answers", records.ZSRE, tmp_path)
    alternative = only("zsre-alt", records.ZSRE, tmp_path)
    for fact in (answers, alternative):
        assert fact.id == "zsre-0"
        assert fact.prompt == "Which language does {} speak?"
        assert fact.paraphrases == ("What is the language of Oria Bell?",)
        assert fact.unrelated == (Question("nq question: who invented the paper boat?", "nobody"),)
    assert (answers.target, answers.truth, answers.aliases) == ("Basque", None, ("Euskara", "Basque"))
    assert answers.portability == ()  # written for the alternative
    assert (alternative.target, alternative.truth, alternative.aliases) == ("Welsh", "Basque", ())
    assert alternative.portability == (Question("In which country is the language of Oria Bell at home?", "Wales"),)


@pytest.mark.parametrize(
    ("path", "value", "field", "expected"),
    [
        ("loc", "nq question: who rows?", "unrelated", (Question("nq question: who rows?", "nobody"),)),
        ("portability", ..., "portability", ()),
        ("answers", ["Welsh", "Cymraeg"], "truth", "Cymraeg"),
        ("answers", ["Welsh"], "truth", None),
    ],
)
def test_zsre_to_the_alternative(path: str, value: object, field: str, expected: object, tmp_path: Path) -> None:
    assert getattr(only("zsre-alt", varied(records.ZSRE, path, value), tmp_path), field) == expected


def test_zsre_without_an_alternative_is_left_out_of_that_reading_alone(tmp_path: Path) -> None:
    file = written(tmp_path / "z.json", records.ZSRE, varied(records.ZSRE, "alt", ""))
    loaded = read_dataset("zsre-alt", file)
    assert [fact.id for fact in loaded.facts] == ["zsre-0"]
    assert loaded.notes == ("1 record was left out: 'alt' is empty, so there is nothing to edit to (z.json[1])",)
    by_answers = read_dataset("zsre-answers", file)
    assert len(by_answers.facts) == 1
    assert "1 record was left out" in by_answers.notes[0]


def test_qaedit_asks_its_unrelated_questions_as_they_stand(tmp_path: Path) -> None:
    fact = only("qaedit", records.QAEDIT, tmp_path)
    assert (fact.id, fact.prompt, fact.target) == ("NQ-3", "which language does {} speak?", "Welsh *")
    assert fact.paraphrases == ("What does Oria Bell speak?",)
    assert fact.unrelated == (Question("who invented the paper boat", "nobody"), Question("who rows", "Ann"))


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("i sing i?", "sing", "i {} i?"),
        ("i think it is", "i", "{} think it is"),
        ("is iris in irises?", "iris", "is {} in irises?"),
        ("aaa aa", "aa", "aaa {}"),  # occurrences may overlap
        ("who was the first of all?", "who was the first of all?", "{}"),
        ("was it {c} or b?", "{c}", "was it {} or b?"),
        ("born in bornheim?", "born", "{} in bornheim?"),
    ],
)
def test_a_subject_is_found_where_it_is_certain(prompt: str, subject: str, expected: str, tmp_path: Path) -> None:
    fact = only("qaedit", {**records.QAEDIT, "prompt": prompt, "subject": subject}, tmp_path)
    assert fact.prompt == expected
    assert fact.text == prompt


def test_an_ambiguous_subject_is_left_out_with_a_note(tmp_path: Path) -> None:
    twice = {**records.QAEDIT, "id": 4, "prompt": "who is ann and does ann row?", "subject": "ann"}
    loaded = read_dataset("qaedit", written(tmp_path / "q.json", records.QAEDIT, twice))
    assert [fact.id for fact in loaded.facts] == ["NQ-3"]
    assert len(loaded.notes) == 1
    assert loaded.notes[0].startswith("1 record was left out: the subject occurs")
    assert "q.json[1] (id 4)" in loaded.notes[0]


def test_known_facts_use_the_prompt_and_not_the_template(tmp_path: Path) -> None:
    fact = only("known", records.KNOWN, tmp_path)
    assert fact.to_record() == {
        "id": "known-3",
        "subject": "Oria Bell",
        "prompt": "{} speaks mostly in",
        "target": "Basque",
        "truth": "Basque",
        "relation": "P1412",
    }


def test_a_concept_is_also_a_fact_that_can_be_edited(tmp_path: Path) -> None:
    second = {
        **records.CONCEPT,
        "label": "oar",
        "prompt": "oar is",
        "instance_prompt": ["Whether A belongs to category oar?", "Whether B belongs to category oar?"],
        "definition": "a tool",
        "instances": ["Left oar"],
        "non_instances": ["Duet in D "],
    }
    loaded = read_dataset("conceptedit", written(tmp_path / "c.json", records.CONCEPT, second))
    first, other = loaded.concepts
    assert (first.id, first.concept, first.definition) == ("concept-0", "paddle", None)
    assert first.instance_questions == ("Whether Twin Oak belongs to category paddle?",)
    assert other == Concept(
        id="concept-1",
        concept="oar",
        prompt="{} is",
        definition="a tool",
        new_definition="a song for two voices",
        paraphrases=loaded.facts[1].paraphrases,
        instances=("Left oar",),
        non_instances=("Duet in D",),
        unrelated=loaded.facts[1].unrelated,
        instance_prompts=("Whether A belongs to category oar?", "Whether B belongs to category oar?"),
    )
    assert [fact.id for fact in loaded.facts] == ["concept-0", "concept-1"]
    assert loaded.facts[1] == Fact(
        id="concept-1",
        subject="oar",
        prompt="{} is",
        target="a song for two voices",
        truth="a tool",
        paraphrases=("By paddle people mean",),
        unrelated=(Question("who invented the paper boat", "nobody"),),
    )


def test_hard_cases_take_what_they_have(tmp_path: Path) -> None:
    full = {**records.HARD, "case_id": 8, "subject": "Oria", "ground_truth": "Basque", "locality_prompt": "Who rows?"}
    file = written(tmp_path / "h.json", records.HARD, {**full, "locality_ground_truth": "Ann", "rephrase_prompt": "x"})
    bare, rich = read_dataset("hardedit", file).facts
    assert bare.to_record() == {"id": "hard-0", "subject": "Oria Bell", "prompt": "{} speaks", "target": "Welsh"}
    assert (rich.id, rich.truth, rich.unrelated) == ("hard-8", "Basque", (Question("Who rows?", "Ann"),))
    assert rich.paraphrases == ()
    assert rich.generation == ()


def test_perplexity_texts_are_no_facts(tmp_path: Path) -> None:
    loaded = read_dataset("me-ppl", written(tmp_path / "p.json", records.TEXT, records.TEXT))
    assert len(loaded.facts) == 0
    assert loaded.texts == ("The river rose in the night", "The river rose in the night")


def test_ripples_are_sorted_into_what_follows_and_what_stays(tmp_path: Path) -> None:
    fact = only("rippleedits", records.RIPPLE, tmp_path)
    assert fact == Fact(
        id="popular-0",
        subject="Oria Bell",
        prompt="The mother tongue of {} is",
        target="Welsh",
        truth="Basque",
        paraphrases=("The mother tongue of O. Bell is",),
        own=(
            Question("The name of the father of Oria Bell is", "Ian Bell"),
            Question("The mother tongue of Oria Bell, which is not Welsh, is", "Basque"),
        ),
        portability=(
            Question("The people of Oria Bell are", "the Welsh"),
            Question("The country of the mother tongue of Oria Bell is", "Wales"),
        ),
        relation="NATIVE_LANGUAGE",
    )


def test_ripples_of_what_is_new_have_no_truth_and_those_without_labels_are_left_out(tmp_path: Path) -> None:
    recent = varied(records.RIPPLE, "edit.original_fact", ...)
    nameless = varied(records.RIPPLE, "edit.target_label", "")
    loaded = read_dataset("rippleedits", written(tmp_path / "r.json", recent, nameless))
    (fact,) = loaded.facts
    assert fact.truth is None
    assert loaded.notes == ("1 record was left out: subject or target have no label (r.json[1])",)


def test_multi_hop_questions_follow_from_all_edits_of_a_case(tmp_path: Path) -> None:
    case = records.mquake(5, ("Oria Bell", "Welsh"), ("Ann Roe", "Irish"))
    first, last = read_dataset("mquake", written(tmp_path / "m.json", case)).facts
    assert (first.id, last.id) == ("5.0", "5.1")
    assert first.paraphrases == ("Which language does Oria Bell speak?",)
    assert first.aliases == ("Welsh language",)
    assert (first.truth, first.relation) == ("Basque", "P1412")
    assert first.portability == ()
    assert last.portability == (Question("Question 5 about Oria Bell and Ann Roe?", "Cardiff"),)


def test_ones_own_file_is_read_by_the_rules_of_facts(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    write_facts([FACT], file)
    by_path, by_name = read_dataset(str(file)), read_dataset("jsonl", file)
    assert by_path.facts.facts == by_name.facts.facts == (FACT,)
    assert by_path.dataset == "jsonl"
    assert by_path.facts.places == (f"{file}:1",)
    with pytest.raises(InputError) as error:
        read_dataset(str(file), file)
    assert error.value.code == "DATASET_TWO_FILES"


def test_the_lab_is_drawn_by_seed() -> None:
    loaded = read_dataset("lab", count=12, seed=3)
    assert len(loaded.facts) == 12
    assert loaded.facts[0].id == "lab-3-0"
    assert loaded.facts.digest() == read_dataset("lab", count=12, seed=3).facts.digest()
    assert loaded.facts.digest() != read_dataset("lab", count=12, seed=4).facts.digest()
    assert len(read_dataset("lab").facts) == 100
    for arguments, code in (
        ({"count": 1001}, "DATASET_COUNT"),
        ({"path": "worlds.json"}, "DATASET_WITHOUT_FILE"),
    ):
        with pytest.raises(InputError) as error:
            read_dataset("lab", **arguments)
        assert error.value.code == code


def test_each_loader_reads_the_sample_in_its_docstring(tmp_path: Path) -> None:
    for name in DATASETS:
        if name in ("lab", "jsonl"):
            continue
        module = importlib.import_module(f"errata.datasets.{MODULES.get(name, name.replace('-', '_'))}")
        found = re.search(r"::\n\n((?: {4}.*\n|\n)+)", module.__doc__ or "")
        assert found is not None, name
        loaded = read_dataset(name, written(tmp_path / "sample.json", json.loads(found[1])))
        assert len(loaded.facts) + len(loaded.texts) == 1
        assert loaded.notes == ()
        filled = {field for fact in loaded.facts for field in fact.to_entry()} - {"id", "subject", "prompt", "target"}
        assert filled <= set(DATASETS[name].fills)
        assert bool(loaded.concepts) == ("concepts" in DATASETS[name].fills)
        assert bool(loaded.texts) == ("texts" in DATASETS[name].fills)


def test_rows_of_the_registry_are_complete() -> None:
    for name, row in DATASETS.items():
        assert row.name == name
        assert row.title
        assert row.licence
        assert row.read_here
        assert set(row.fills) <= {*FIELDS, "texts", "concepts"}
        assert (row.reader is None) != (row.maker is None)
        for source in row.sources:
            assert source.url is None or source.url.startswith("https://")
            assert source.url is not None or source.page.startswith("https://")
            assert (source.sha256 is None) == (source.size is None)
            assert source.sha256 is None or re.fullmatch("[0-9a-f]{64}", source.sha256)
        assert not row.sources or row.paper


def test_unknown_names_and_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    for arguments, code, words in (
        (("zsre",), "DATASET_UNKNOWN", "Did you mean zsre-answers or zsre-alt"),
        (("counterfacts",), "DATASET_UNKNOWN", "Did you mean counterfact"),
        (("",), "DATASET_UNKNOWN", "Known: lab, jsonl"),
        (("mquake",), "DATASET_NOT_DOWNLOADED", "`errata data get mquake` downloads it"),
        (("hardedit",), "DATASET_NOT_DOWNLOADED", "Get HardEdit.json at https://drive"),
        (("jsonl",), "DATASET_WITHOUT_FILE", "Give your own file"),
        (("qaedit", tmp_path / "absent.json"), "FACTS_UNREADABLE", "absent.json"),
    ):
        with pytest.raises(InputError) as error:
            read_dataset(*arguments)
        assert error.value.code == code
        assert words in str(error.value)
    (tmp_path / "data" / "qaedit").mkdir(parents=True)
    written(tmp_path / "data" / "qaedit" / "QAEdit.json", records.QAEDIT)
    assert [fact.id for fact in read_dataset("qaedit").facts] == ["NQ-3"]
