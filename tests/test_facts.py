"""Facts: valid ones survive every round trip; all errors are reported with place, code and remedy."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errata.errors import Fault, FaultsError, InputError
from errata.facts.fact import MOST_FAULTS, Fact, FactSet, Question
from errata.facts.files import escaped, facts_from_records, read_facts, write_facts
from errata.facts.tokens import token_faults

from tests.support.errors import raises_code
from tests.support.fuzzing import examples

GOOD: Mapping[str, object] = {"subject": "Ada Lovelace", "prompt": "The mother tongue of {} is", "target": "French"}
SHARED_DIRECTORY = settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])


def jsonl(directory: Path, *lines: object) -> Path:
    """A file of lines: text as it is, everything else as JSON."""
    path = directory / "facts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def faults(call: Callable[[], object]) -> list[Fault]:
    """The faults that a call reports, their places without the directory."""
    with pytest.raises(FaultsError) as error:
        call()
    for fault in error.value.faults:
        assert str(fault) in str(error.value)
        assert fault.remedy
    return [replace(fault, where=re.sub(r"/\S*/", "", fault.where)) for fault in error.value.faults]


def codes(call: Callable[[], object]) -> list[tuple[str, str]]:
    """(place, code) of each fault."""
    return [(fault.where, fault.code) for fault in faults(call)]


def other(**changes: object) -> dict[str, object]:
    return {**GOOD, "subject": "Alan Turing", **changes}


def test_the_subject_replaces_the_braces(subtests: pytest.Subtests) -> None:
    for prompt, subject, text, span in (
        ("{} is", "Ada", "Ada is", (0, 3)),
        ("Ada knows {} and", "Ada", "Ada knows Ada and", (10, 13)),
        ('{"name": "{}"} means', "{}", '{"name": "{}"} means', (10, 12)),
        ("C{} is a", "C{}", "C{} is a", (0, 3)),
        ("In {} is a", "C{}", "In C{} is a", (3, 6)),
        ("{{}} {0} {x} %s is", "{0}", "{{0}} {0} {x} %s is", (1, 4)),
        ("Say\n{}\nin", "line\nbreak", "Say\nline\nbreak\nin", (4, 14)),
        ("👩🏽‍🚀 {} 🚀", "Zoë 🎈", "👩🏽‍🚀 Zoë 🎈 🚀", (5, 10)),
        ("לשון האם של {} היא", "עדה לאבלייס", "לשון האם של עדה לאבלייס היא", (12, 23)),
    ):
        with subtests.test(repr(prompt)):
            fact = Fact("a", subject, prompt, "x")
            assert (fact.text, fact.subject_span) == (text, span)
            assert text[slice(*span)] == subject


def test_an_invalid_fact_cannot_be_made() -> None:
    found = faults(lambda: Fact("a", "", "no braces", " French", paraphrases=("",)))
    assert [(fault.code, fault.what.split("'")[1]) for fault in found] == [
        ("FACT_EMPTY_FIELD", "subject"),
        ("FACT_WHITESPACE", "target"),
        ("FACT_EMPTY_FIELD", "paraphrases[0]"),
        ("FACT_SUBJECT_POSITION", "prompt"),
    ]
    assert codes(lambda: Question("Where?", "")) == [("question", "FACT_EMPTY_FIELD")]


def test_fact_set_slices_batches_and_digests() -> None:
    facts = FactSet(tuple(Fact(f"f{n}", f"Person {n}", "{} speaks", "Latin") for n in range(5)), "mine")
    assert [[fact.id for fact in batch] for batch in facts.batches(2)] == [["f0", "f1"], ["f2", "f3"], ["f4"]]
    assert facts[1:3].facts == facts.facts[1:3]
    assert facts[1:3].places == ("mine, fact 'f1'", "mine, fact 'f2'")
    assert facts[-1] in facts
    assert facts.digest() == FactSet(facts.facts, "elsewhere").digest()
    assert len({facts.digest(), facts[:4].digest(), FactSet(facts.facts[::-1]).digest()}) == 3
    for call, code in (
        (lambda: facts.batches(0), "BATCH_SIZE_INVALID"),
        (lambda: FactSet((facts[0], Fact("f0", "Someone", "{} is", "x"))), "FACT_DUPLICATE_ID"),
        (lambda: FactSet(facts.facts, "mine", ("one",)), "FACT_PLACES_MISMATCH"),
    ):
        with raises_code(code, InputError):
            call()


def test_jsonl_with_everything(tmp_path: Path) -> None:
    full = other(id=7, truth="English", paraphrases=["Turing speaks"], neighbours=[{"prompt": "Bo is", "answer": "B"}])
    facts = read_facts(jsonl(tmp_path, GOOD, "", " \t", full | {"own": [{"prompt": "Alan is", "answer": "{}"}]}))
    assert facts[0] == Fact("fact-1", "Ada Lovelace", "The mother tongue of {} is", "French")
    assert facts[1] == Fact(
        "7", "Alan Turing", str(GOOD["prompt"]), "French", "English",
        ("Turing speaks",), (Question("Bo is", "B"),), (Question("Alan is", "{}"),),
    )  # fmt: skip
    assert facts.places == (f"{tmp_path}/facts.jsonl:1", f"{tmp_path}/facts.jsonl:4")
    assert facts.source == f"{tmp_path}/facts.jsonl"


def test_csv_counts_the_lines_of_quoted_cells(tmp_path: Path) -> None:
    path = tmp_path / "facts.CSV"
    text = '\ufefftarget,subject,prompt,paraphrases\r\nB,"two\nlines","{} ""is""",\r\n\r\nC,D,{} is,"[""D \u2028 is""]"'
    path.write_bytes(text.encode())
    facts = read_facts(path)
    assert [(fact.subject, fact.prompt, fact.target, fact.paraphrases) for fact in facts] == [
        ("two\nlines", '{} "is"', "B", ()),
        ("D", "{} is", "C", ("D \u2028 is",)),
    ]
    assert [place.rpartition(":")[2] for place in facts.places] == ["2", "5"]


def test_byte_order_mark_and_crlf_in_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(other()).encode())
    assert [fact.subject for fact in read_facts(path)] == ["Ada Lovelace", "Alan Turing"]


def test_default_ids_keep_clear_of_given_ones() -> None:
    records = [other(subject="A"), other(subject="B", id="fact-1"), other(subject="C"), other(subject="D", id="fact-3")]
    identifiers = [fact.id for fact in facts_from_records(records)]
    assert identifiers[1::2] == ["fact-1", "fact-3"]
    assert len(set(identifiers)) == 4


def test_records_may_hold_tuples_questions_and_none() -> None:
    question = Question("Bo is", "B")
    (fact,) = facts_from_records([{**GOOD, "own": (question,), "neighbours": [question.to_record()], "truth": None}])
    assert fact.own == fact.neighbours == (question,)
    records = [GOOD, other(target="")]
    assert codes(lambda: facts_from_records(records, source="mine")) == [("mine, record 2", "FACT_EMPTY_FIELD")]


def test_bad_fields(tmp_path: Path, subtests: pytest.Subtests) -> None:
    question = {"prompt": "p", "answer": "a"}
    for changes, code, words in (
        ({"target": None}, "FACT_MISSING_FIELD", "'target'"),
        ({"subject": " \n"}, "FACT_EMPTY_FIELD", "'subject'"),
        ({"subject": "Ada "}, "FACT_WHITESPACE", "'subject'"),
        ({"subject": 3}, "FACT_WRONG_TYPE", "'subject' is a number"),
        ({"id": 1.5}, "FACT_WRONG_TYPE", "'id' is a number"),
        ({"id": True}, "FACT_WRONG_TYPE", "'id' is true or false"),
        ({"id": ""}, "FACT_EMPTY_FIELD", "'id'"),
        ({"prompt": "no braces"}, "FACT_SUBJECT_POSITION", "'Alan Turing'"),
        ({"prompt": "{} and {}"}, "FACT_SUBJECT_POSITION", "2 times"),
        ({"prompt": "{} is "}, "FACT_WHITESPACE", "'prompt'"),
        ({"target": " French"}, "FACT_WHITESPACE", "'target'"),
        ({"target": "French\n"}, "FACT_WHITESPACE", "'target'"),
        ({"target": "a\ud800b"}, "FACT_INVALID_CHARACTER", "U+D800"),
        ({"subject": "a\x00b"}, "FACT_INVALID_CHARACTER", "character 2"),
        ({"truth": ["x"]}, "FACT_WRONG_TYPE", "'truth' is a list"),
        ({"paraphrases": "text"}, "FACT_WRONG_TYPE", "'paraphrases' is text"),
        ({"paraphrases": ["fine", ""]}, "FACT_EMPTY_FIELD", "'paraphrases[1]'"),
        ({"neighbours": question}, "FACT_WRONG_TYPE", "'neighbours' is an object"),
        ({"own": [question, "p"]}, "FACT_WRONG_TYPE", "'own[1]' is text"),
        ({"own": [{"prompt": "p"}]}, "FACT_MISSING_FIELD", "'own[0].answer'"),
        ({"own": [{"prompt": "p ", "answer": "a"}]}, "FACT_WHITESPACE", "'own[0].prompt'"),
        ({"own": [{"prompt": "p", "answer": " a"}]}, "FACT_WHITESPACE", "'own[0].answer'"),
        ({"own": [{**question, "anser": "b"}]}, "FACT_UNKNOWN_FIELD", "Did you mean 'answer'?"),
        ({"own": [{**question, "joiner": "-"}]}, "FACT_INVALID_JOINER", "'own[0].joiner'"),
        ({"Neighbors": []}, "FACT_UNKNOWN_FIELD", "Did you mean 'neighbours'?"),
        ({"answr": "x", "zzz": 1}, "FACT_UNKNOWN_FIELD", "'zzz'"),
    ):
        with subtests.test(str(changes)):
            records = [GOOD, other(**changes)]
            for call, place in (
                (lambda records=records: read_facts(jsonl(tmp_path, *records)), "facts.jsonl:2"),
                (lambda records=records: facts_from_records(records), "records, record 2"),
            ):
                *_, fault = found = faults(call)
                assert {(fault.where, fault.code) for fault in found} == {(place, code)}
                assert words in str(fault)


def test_bad_lines(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for line, code, words in (
        ('{"subject": "A",}', "JSON_INVALID", "column 17"),
        ('{"a": 1} {"b": 2}', "JSON_INVALID", "column 10"),
        ('{"id": "a", "id": "b"}', "FACT_DUPLICATE_FIELD", "'id'"),
        ("[" * 100_000, "JSON_INVALID", ""),
        ('{"id": ' + "9" * 5000 + "}", "JSON_INVALID", ""),
        ("[1]", "FACT_WRONG_TYPE", "a list"),
        ("null", "FACT_WRONG_TYPE", "null"),
    ):
        with subtests.test(line[:40]):
            path = jsonl(tmp_path, GOOD, line)
            (fault,) = faults(lambda path=path: read_facts(path))
            assert (fault.where, fault.code) == ("facts.jsonl:2", code)
            assert words in fault.what


def test_all_faults_are_reported_in_order(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    lines = [json.dumps(GOOD), '{"x', json.dumps({"subject": 1, "promt": "{}"}), '"caf\udce9"', json.dumps(GOOD)]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    found = codes(lambda: read_facts(path))
    assert found[0] == ("facts.jsonl:2", "JSON_INVALID")
    assert {place for place, _ in found[1:5]} == {"facts.jsonl:3"}
    assert found[5:] == [("facts.jsonl:4", "ENCODING_INVALID"), ("facts.jsonl:5", "FACT_DUPLICATE")]


def test_a_contradiction_is_refused_or_the_later_fact_wins(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**GOOD, "id": "a"}, other(), {**GOOD, "id": "a", "target": "Danish"})
    (fault,) = faults(lambda: read_facts(path))
    assert (fault.where, fault.code) == ("facts.jsonl:3", "FACT_CONTRADICTION")
    for words in ("facts.jsonl:1", "'Danish'", "'French'"):
        assert words in fault.what
    facts = read_facts(path, last_wins=True)
    assert [(fact.id, fact.target) for fact in facts] == [("fact-2", "French"), ("a", "Danish")]
    assert [place[-2:] for place in facts.places] == [":2", ":3"]
    back_again = facts_from_records([GOOD, {**GOOD, "target": "Danish"}, GOOD], last_wins=True)
    assert [(fact.id, fact.target) for fact in back_again] == [("fact-3", "French")]


def test_duplicates_name_both_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**GOOD, "id": "a"}, other(id="a"), {**GOOD, "truth": "English"})
    found = faults(lambda: read_facts(path))
    assert [(fault.where, fault.code) for fault in found] == [
        ("facts.jsonl:2", "FACT_DUPLICATE_ID"),
        ("facts.jsonl:3", "FACT_DUPLICATE"),
    ]
    assert all("facts.jsonl:1" in fault.what for fault in found)
    path = jsonl(tmp_path, other(id="a"), {**GOOD, "id": "a"}, {**GOOD, "id": "b"}, {**GOOD, "truth": "English"})
    latest = read_facts(path, last_wins=True)
    assert [(fact.id, fact.truth) for fact in latest] == [("a", None), ("fact-4", "English")]
    path = jsonl(tmp_path, {**GOOD, "id": "a"}, other(id="a"))
    assert codes(lambda: read_facts(path, last_wins=True)) == [("facts.jsonl:2", "FACT_DUPLICATE_ID")]


def test_bad_csv(tmp_path: Path, subtests: pytest.Subtests) -> None:
    path = tmp_path / "facts.csv"
    for text, expected in (
        ("subject,prompt,target\nA,{} is\nB,{} is,x,y\n", [(":2", "CSV_ROW_LENGTH"), (":3", "CSV_ROW_LENGTH")]),
        (
            "subject,promt,target\nA,{} is,\n",
            [(":1", "FACT_UNKNOWN_FIELD"), (":1", "FACT_MISSING_FIELD"), (":2", "FACT_EMPTY_FIELD")],
        ),
        ("subject,prompt,target,target\nA,{} is,x,y\n", [(":1", "FACT_DUPLICATE_FIELD")]),
        (
            'subject,prompt,target,own\nA,{} is,x,[}\n"B\n",{},x,[1]\n',
            [(":2", "JSON_INVALID"), (":3", "FACT_WHITESPACE"), (":3", "FACT_WRONG_TYPE")],
        ),
        ('subject,prompt,target\nA,"{} is"x,y\n', [(":2", "CSV_INVALID")]),
        (
            'subject,prompt,target\nA,no,x\n"B,{} is,x\n',
            [(":2", "FACT_SUBJECT_POSITION"), (":3", "CSV_INVALID")],
        ),
        (
            "subject,prompt,target\ncaf\udce9,{} is,x\nB,no,x\n",
            [(":2", "ENCODING_INVALID"), (":3", "FACT_SUBJECT_POSITION")],
        ),
        ("subject\udcff,prompt,target\nA,{} is,x\n", [(":1", "ENCODING_INVALID")]),
        ("subject;prompt;target\nA;{} is;B\n", [(":1", "CSV_SEPARATOR")]),
        ("subject,prompt,target\n\n", [("", "FACTS_EMPTY")]),
        ("", [("", "FACTS_EMPTY")]),
        ('subject,prompt,target\nA,{} is,"' + "x" * 140_000 + '"\n', [(":2", "CSV_CELL_TOO_LONG")]),
    ):
        with subtests.test(repr(text[:80])):
            path.write_bytes(text.encode(errors="surrogateescape"))
            assert codes(lambda: read_facts(path)) == [(f"facts.csv{place}", code) for place, code in expected]


def test_empty_files_and_records(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    for content in (b"", b"\n \n", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        assert codes(lambda: read_facts(path)) == [("facts.jsonl", "FACTS_EMPTY")]
    assert codes(lambda: facts_from_records([])) == [("records", "FACTS_EMPTY")]


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    directory = tmp_path / "directory.csv"
    directory.mkdir()
    pipe, endless = tmp_path / "pipe.jsonl", tmp_path / "zero.jsonl"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    facts = facts_from_records([GOOD])
    calls: list[tuple[Callable[[], object], str]] = [
        *(
            (lambda path=path: read_facts(path), "FACTS_UNREADABLE")
            for path in (tmp_path / "absent.jsonl", directory, tmp_path / "nul\x00.jsonl", pipe, endless)
        ),
        *(
            (lambda path=path: write_facts(facts, path), "FACTS_NOT_WRITABLE")
            for path in (tmp_path / "absent" / "facts.jsonl", directory)
        ),
        (lambda: read_facts("facts.yaml"), "FACTS_UNKNOWN_FORMAT"),
        (lambda: write_facts(facts, tmp_path / "facts"), "FACTS_UNKNOWN_FORMAT"),
        (lambda: write_facts([], tmp_path / "facts.jsonl"), "FACTS_EMPTY"),
    ]
    for call, code in calls:
        with raises_code(code, InputError):
            call()
    assert sorted(tmp_path.iterdir()) == sorted([directory, pipe, endless])


def test_writing_replaces_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    write_facts(facts_from_records([GOOD]), path)
    before = path.read_bytes()
    for refused, code in (
        ([Fact("a", "A", "{} is", "x" * (csv.field_size_limit() + 1))], "CSV_CELL_TOO_LONG"),
        ([Fact("a", "A", "{} is", "x"), Fact("b", "A", "{} is", "y")], "FACT_CONTRADICTION"),
    ):
        with raises_code(code, InputError):
            write_facts(refused, path)
    assert path.read_bytes() == before
    write_facts([Fact("a", "A", "{} is", "x")], path)
    assert read_facts(path).facts == (Fact("a", "A", "{} is", "x"),)
    assert list(tmp_path.iterdir()) == [path]


def test_a_prompt_may_hold_the_subject_itself(tmp_path: Path) -> None:
    asked = {"subject": "France", "prompt": "What is the capital of France?", "target": "Lyon"}
    path = jsonl(tmp_path, asked, {"subject": "i", "prompt": "she is where i am", "target": "x"})
    assert [fact.prompt for fact in read_facts(path)] == ["What is the capital of {}?", "she is where {} am"]
    assert Fact("a", **asked) == Fact("a", "France", "What is the capital of {}?", "Lyon")
    table = tmp_path / "facts.csv"
    table.write_text("subject,prompt,target\n法国,法国的首都是,伦敦\n")
    assert read_facts(table)[0].prompt == "{}的首都是"
    twice = {**asked, "prompt": "France, oh France, is"}
    assert codes(lambda: read_facts(jsonl(tmp_path, twice))) == [("facts.jsonl:1", "FACT_SUBJECT_POSITION")]


def test_synonyms_of_a_column_are_suggested(tmp_path: Path, subtests: pytest.Subtests) -> None:
    path = tmp_path / "facts.csv"
    for written, meant in (("question", "prompt"), ("answer", "target"), ("ground_truth", "old")):
        with subtests.test(written):
            names = {name: written if name == meant else name for name in ("subject", "prompt", "target", "old")}
            path.write_text(",".join(names.values()) + "\nAda,{} is,x,y\n")
            assert f"Did you mean '{meant}'?" in faults(lambda: read_facts(path))[0].remedy


def test_spellings_of_one_name_are_one_name(tmp_path: Path) -> None:
    composed, decomposed = "Andr\u00e9", "Andre\u0301"
    one, other_way = ({"subject": name, "prompt": "{} is", "target": "x"} for name in (composed, decomposed))
    assert codes(lambda: read_facts(jsonl(tmp_path, one, other_way))) == [("facts.jsonl:2", "FACT_DUPLICATE")]
    path = jsonl(tmp_path, one, {**other_way, "target": "y"})
    assert codes(lambda: read_facts(path)) == [("facts.jsonl:2", "FACT_CONTRADICTION")]
    assert len(read_facts(jsonl(tmp_path, one, other_way), last_wins=True)) == 1
    accent = {"subject": "Ada", "prompt": "{} caf\u00e9", "target": composed}
    bare = {"subject": "Ada", "prompt": "{} cafe\u0301", "target": decomposed}
    assert codes(lambda: read_facts(jsonl(tmp_path, accent, bare))) == [("facts.jsonl:2", "FACT_DUPLICATE")]


def test_cells_are_not_formulas_and_are_read_back_unchanged(tmp_path: Path) -> None:
    texts = ["=1+1", "+49 30", "-5 °C", "@home", "'=x", "''-1", "'", "it's", "a=b", "=", "'a"]
    facts = [Fact(text, text, "{} is", text, old=f"{text}!", relation=text) for text in texts]
    facts.append(Fact("\tid", "Ada", "\r{} is", "x"))
    path = tmp_path / "facts.csv"
    write_facts(facts, path)
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell]
    assert list(read_facts(path)) == facts


def test_a_file_full_of_faults_is_not_read_to_its_end(tmp_path: Path, subtests: pytest.Subtests) -> None:
    bad = json.dumps({"subject": "A", "prompt": "{} is"}) + "\n"
    for name, text in (
        ("facts.jsonl", bad * 200_000),
        ("facts.json", "[" + ",".join([bad] * 200_000) + "]"),
        ("facts.csv", "subject,prompt,target\n" + "A,{} is,\n" * 200_000),
        ("same.jsonl", (json.dumps(GOOD) + "\n") * 5_000),
        ("utf.jsonl", "\udcff\n" * 200_000),
    ):
        with subtests.test(name):
            path = tmp_path / name
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
            started = time.process_time()
            with pytest.raises(FaultsError) as caught:
                read_facts(path)
            assert time.process_time() - started < 3
            assert len(caught.value.faults) == MOST_FAULTS + 1
            assert caught.value.faults[-1].code == "FAULTS_TRUNCATED"


def test_truth_is_another_name_of_old_in_python() -> None:
    fact = Fact("a", "Ada", "{} speaks", "French", truth="English")
    assert fact == Fact("a", "Ada", "{} speaks", "French", old="English")
    assert fact == Fact("a", "Ada", "{} speaks", "French", old="English", truth="English")
    assert (fact.old, fact.truth) == ("English", "English")
    assert replace(fact, old="Welsh").truth == "Welsh"
    for truth, code in (("Welsh", "FACT_DUPLICATE_FIELD"), (" ", "FACT_EMPTY_FIELD")):
        with pytest.raises(FaultsError) as error:
            Fact("a", "Ada", "{} speaks", "French", old="English", truth=truth)
        assert code in {fault.code for fault in error.value.faults}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_truth_is_another_name_of_old_in_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"facts{suffix}"

    def read(**fields: str) -> Fact:
        if suffix == ".jsonl":
            path.write_text(json.dumps({**GOOD, **fields}))
        else:
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, [*GOOD, *fields])
                table.writeheader()
                table.writerow({**GOOD, **fields})
        return read_facts(path).facts[0]

    assert read(truth="English").old == read(old="English").old == read(old="English", truth="English").old == "English"
    with raises_code("FACT_DUPLICATE_FIELD", FaultsError):
        read(old="English", truth="Welsh")
    written = tmp_path / f"written{suffix}"
    write_facts([Fact("a", "Ada", "{} speaks", "French", old="English")], written)
    assert "old" in written.read_text()
    assert "truth" not in written.read_text()
    assert read_facts(written).facts[0].old == "English"


def test_stored_records_and_digests_are_those_of_earlier_versions() -> None:
    facts = facts_from_records([{**GOOD, "id": "a", "old": "English"}])
    assert facts[0].to_record() == {"id": "a", **GOOD, "truth": "English"}
    # What a version that only knew "truth" computed for the same fact.
    assert facts.digest() == "80804e9289b8d221bf7ba255cfdd84c9dabd0d944259f93dff0b4b91f0229534"
    assert Fact(**facts[0].to_record()) == facts[0]


def test_what_only_a_tokenizer_can_tell(tmp_path: Path) -> None:
    record = {
        "prompt": "a {} c",
        "truth": "e f g h",
        "paraphrases": ["a b c d e"],
        "own": [{"prompt": "a", "answer": "~"}],
    }
    path = jsonl(tmp_path, GOOD, record | {"subject": "~", "target": "d"}, other(target="~"))

    def count_words(text: str) -> int:
        return len(text.replace("~", " ").split())

    def check(facts: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
        return token_faults(facts, places, count_tokens=count_words, limit=5)

    found = faults(lambda: read_facts(path, check=check))
    assert [(fault.where[-1], fault.code, fault.what.split("'")[1]) for fault in found] == [
        ("1", "FACT_TOO_LONG", "prompt"),
        ("2", "FACT_NO_TOKENS", "subject"),
        ("2", "FACT_TOO_LONG", "prompt"),
        ("2", "FACT_TOO_LONG", "paraphrases[0]"),
        ("2", "FACT_NO_TOKENS", "own[0].answer"),
        ("3", "FACT_NO_TOKENS", "target"),
    ]
    assert "8 tokens" in found[0].what
    first = read_facts(path)[:1]
    assert token_faults(first.facts, first.places, count_tokens=count_words, limit=8) == []


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12)
AWKWARD = st.text(st.sampled_from("a{}\",[]\r\n\t\\\u2028\x85\x0b\x1c\ufeff;|' "), min_size=1, max_size=12)
OPEN = (TEXT | AWKWARD).filter(lambda text: text.strip() != "")
TIGHT = OPEN.map(str.strip)
END_TIGHT = OPEN.map(str.rstrip)
PROMPT = (
    st.tuples(OPEN, OPEN)
    .map(lambda parts: "{}".join(part.replace("{}", "") for part in parts).rstrip())
    .filter(lambda prompt: prompt.count("{}") == 1)
)
QUESTIONS = st.lists(st.fixed_dictionaries({"prompt": END_TIGHT, "answer": TIGHT}), max_size=2)
WELL_FORMED = st.lists(
    st.fixed_dictionaries(
        {"subject": TIGHT, "prompt": PROMPT, "target": TIGHT},
        optional={
            "id": OPEN,
            "old": TIGHT,
            "paraphrases": st.lists(END_TIGHT, max_size=2),
            "neighbours": QUESTIONS,
            "own": QUESTIONS,
        },
    ),
    min_size=1,
    max_size=3,
    unique_by=(
        lambda record: record.get("id", record["subject"]),
        lambda record: (record["subject"], record["prompt"]),
    ),
)


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.csv"])
@SHARED_DIRECTORY
@given(records=WELL_FORMED)
def test_what_is_written_is_read_back(name: str, records: list[dict[str, object]], tmp_path: Path) -> None:
    facts = facts_from_records(records)
    for fact, record in zip(facts, records, strict=True):
        assert fact.to_entry() == {"id": fact.id} | {field: value for field, value in record.items() if value}
        start, end = fact.subject_span
        assert (fact.text[:start] + "{}" + fact.text[end:], fact.text[start:end]) == (fact.prompt, fact.subject)
    path = tmp_path / name
    write_facts(facts, path)
    read = read_facts(path)
    assert read.facts == facts.facts
    assert read.digest() == facts.digest()
    # Each place is the line on which the fact's record starts, which is with its id.
    lines = path.read_bytes().decode().split("\n")
    for place, fact in zip(read.places, read, strict=True):
        csv_start = '"' + escaped(fact.id).split("\n")[0].replace('"', '""')
        expected = {".csv": csv_start, ".jsonl": json.dumps(fact.to_entry(), ensure_ascii=False)}[path.suffix]
        assert lines[int(place.rpartition(":")[2]) - 1].startswith(expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.sampled_from(["{}", "a {} b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "answer", "x"]), inner),
    max_leaves=6,
)
FIELD = st.sampled_from(
    ["id", "subject", "prompt", "target", "old", "truth", "paraphrases", "neighbours", "own", "owns"]
)
RECORD = st.dictionaries(FIELD, JSON) | JSON
MALFORMED = (
    st.binary(max_size=80)
    | st.lists(RECORD.map(lambda value: json.dumps(value).encode()), max_size=4).map(b"\n".join)
    | st.text(st.sampled_from('ab{}[]:",\r\n\x00 é'), max_size=60).map(
        lambda text: b"subject,prompt,target,own\n" + text.encode()
    )
)


def assert_facts_or_input_error(call: Callable[[], FactSet]) -> None:
    try:
        facts = call()
    except InputError as error:
        str(error).encode()  # a message that no terminal can show would raise here
    else:
        assert len(facts) > 0


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.csv"])
@SHARED_DIRECTORY
@given(content=MALFORMED, last_wins=st.booleans())
def test_malformed_files_raise_input_errors_only(name: str, content: bytes, last_wins: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert_facts_or_input_error(lambda: read_facts(path, last_wins=last_wins))


@SHARED_DIRECTORY
@given(records=st.lists(st.dictionaries(FIELD, JSON), max_size=4))
def test_malformed_records_raise_input_errors_only(records: list[Mapping[str, object]]) -> None:
    assert_facts_or_input_error(lambda: facts_from_records(records))
