"""Facts: what is legal survives every round trip, and what is not is told with its line, field and remedy."""

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
from errata.facts.fact import MOST_FAULTS, Fact, FactSet, Question, fact_of
from errata.facts.files import escaped, facts_from_records, read_facts, write_facts
from errata.facts.tokens import token_faults

GOOD: Mapping[str, object] = {"subject": "Ada Lovelace", "prompt": "The mother tongue of {} is", "target": "French"}
SHARED_DIRECTORY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def jsonl(directory: Path, *lines: object) -> Path:
    """A file of lines: text as it is, everything else as JSON."""
    path = directory / "facts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def told(call: Callable[[], object]) -> list[str]:
    """The faults that a call tells, one text each, without the directory."""
    with pytest.raises(FaultsError) as caught:
        call()
    for fault in caught.value.faults:
        assert str(fault) in str(caught.value)
        assert fault.remedy
    return [re.sub(r"/\S*/", "", str(fault)) for fault in caught.value.faults]


def other(**changes: object) -> dict[str, object]:
    return {**GOOD, "subject": "Alan Turing", **changes}


# ---- what a fact is


@pytest.mark.parametrize(
    ("prompt", "subject", "text", "span"),
    [
        ("{} is", "Ada", "Ada is", (0, 3)),
        ("Ada knows {} and", "Ada", "Ada knows Ada and", (10, 13)),
        ('{"name": "{}"} means', "{}", '{"name": "{}"} means', (10, 12)),
        ("{{}} {0} {x} %s is", "{0}", "{{0}} {0} {x} %s is", (1, 4)),
        ("Say\n{}\nin", "line\nbreak", "Say\nline\nbreak\nin", (4, 14)),
        ("👩🏽‍🚀 {} 🚀", "Zoë 🎈", "👩🏽‍🚀 Zoë 🎈 🚀", (5, 10)),
        ("לשון האם של {} היא", "עדה לאבלייס", "לשון האם של עדה לאבלייס היא", (12, 23)),
    ],
)
def test_subject_stands_where_the_braces_stood(prompt: str, subject: str, text: str, span: tuple[int, int]) -> None:
    fact = Fact("a", subject, prompt, "x")
    assert fact.text == text
    assert fact.subject_span == span
    assert text[slice(*span)] == subject


def test_a_malformed_fact_cannot_be_made() -> None:
    faults = told(lambda: Fact("a", "", "no braces", " French", paraphrases=("",)))
    assert [fault.split(".")[0] for fault in faults] == [
        "fact 'a': 'subject' is empty",
        "fact 'a': 'target' begins or ends with whitespace",
        "fact 'a': 'paraphrases[0]' is empty",
        "fact 'a': 'prompt' has no {}",
    ]
    assert told(lambda: Question("Where?", "")) == ["question: 'answer' is empty. Fill it in"]


def test_fact_set_slices_batches_and_digests() -> None:
    facts = FactSet(tuple(Fact(f"f{n}", f"Person {n}", "{} speaks", "Latin") for n in range(5)), "mine")
    assert [[fact.id for fact in batch] for batch in facts.batches(2)] == [["f0", "f1"], ["f2", "f3"], ["f4"]]
    assert facts[1:3].facts == facts.facts[1:3]
    assert facts[1:3].places == ("mine, fact 'f1'", "mine, fact 'f2'")
    assert facts[-1] in facts
    assert facts.digest() == FactSet(facts.facts, "elsewhere").digest()
    assert len({facts.digest(), facts[:4].digest(), FactSet(facts.facts[::-1]).digest()}) == 3
    with pytest.raises(InputError, match="at least 1, got 0"):
        facts.batches(0)
    with pytest.raises(FaultsError, match="'id' 'f0' is already that of"):
        FactSet((facts[0], Fact("f0", "Someone", "{} is", "x")))
    with pytest.raises(InputError, match="5 facts came with 1 places"):
        FactSet(facts.facts, "mine", ("one",))


# ---- reading what is right


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
    assert told(lambda: facts_from_records([GOOD, other(target="")], source="mine"))[0].startswith("mine, record 2: ")


# ---- reading what is wrong


@pytest.mark.parametrize(
    ("changes", "told_of_it"),
    [
        ({"target": None}, "'target' is missing. Add it"),
        ({"subject": " \n"}, "'subject' is empty. Fill it in"),
        ({"subject": "Ada "}, "'subject' begins or ends with whitespace"),
        ({"subject": 3}, "'subject' is a number, not text"),
        ({"id": 1.5}, "'id' is a number, not text"),
        ({"id": True}, "'id' is true or false, not text"),
        ({"id": ""}, "'id' is empty"),
        ({"prompt": "no braces"}, "'prompt' has no {}, and the subject 'Alan Turing' does not stand in it. Write {}"),
        ({"prompt": "{} and {}"}, "'prompt' holds {} 2 times. Write {} once"),
        ({"prompt": "{} is "}, "'prompt' ends in whitespace. Remove it: what joins a prompt"),
        ({"target": " French"}, "'target' begins or ends with whitespace. Remove it"),
        ({"target": "French\n"}, "'target' begins or ends with whitespace. Remove it"),
        ({"target": "a\ud800b"}, "'target' holds U+D800 at character 2"),
        ({"subject": "a\x00b"}, "'subject' holds a NUL (U+0000) at character 2"),
        ({"truth": ["x"]}, "'truth' is a list, not text"),
        ({"paraphrases": "text"}, "'paraphrases' is text, not a list"),
        ({"paraphrases": ["fine", ""]}, "'paraphrases[1]' is empty"),
        ({"neighbours": {"prompt": "p", "answer": "a"}}, "'neighbours' is an object, not a list"),
        ({"own": [{"prompt": "p", "answer": "a"}, "p"]}, "'own[1]' is text, not an object"),
        ({"own": [{"prompt": "p"}]}, "'own[0].answer' is missing"),
        ({"own": [{"prompt": "p ", "answer": "a"}]}, "'own[0].prompt' ends in whitespace"),
        ({"own": [{"prompt": "p", "answer": " a"}]}, "'own[0].answer' begins or ends with whitespace"),
        (
            {"own": [{"prompt": "p", "answer": "a", "anser": "b"}]},
            "'anser' in 'own[0]' is unknown. Did you mean 'answer'?",
        ),
        ({"Neighbors": []}, "the field 'Neighbors' is unknown. Did you mean 'neighbours'? The fields are id, subject,"),
        ({"zzz": 1}, "the field 'zzz' is unknown. The fields are id, subject,"),
    ],
)
def test_bad_field(changes: dict[str, object], told_of_it: str, tmp_path: Path) -> None:
    (fault,) = told(lambda: read_facts(jsonl(tmp_path, GOOD, other(**changes))))
    assert fault.startswith("facts.jsonl:2: ")
    assert told_of_it in fault
    (fault,) = told(lambda: facts_from_records([GOOD, other(**changes)]))
    assert told_of_it in fault


@pytest.mark.parametrize(
    ("line", "told_of_it"),
    [
        ('{"subject": "A",}', "invalid JSON: column 17: "),
        ('{"a": 1} {"b": 2}', "invalid JSON: column 10: Extra data"),
        ('{"id": "a", "id": "b"}', "invalid JSON: the field 'id' stands there twice"),
        ("[" * 100_000, "invalid JSON: the brackets are nested too deeply"),
        ('{"id": ' + "9" * 5000 + "}", "invalid JSON: Exceeds the limit"),
        ("[1]", "the record is a list. Write an object"),
        ("null", "the record is null"),
    ],
)
def test_bad_line(line: str, told_of_it: str, tmp_path: Path) -> None:
    (fault,) = told(lambda: read_facts(jsonl(tmp_path, GOOD, line)))
    assert fault.startswith("facts.jsonl:2: ")
    assert told_of_it in fault


def test_all_faults_are_told_at_once_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    lines = [json.dumps(GOOD), '{"x', json.dumps({"subject": 1, "promt": "{}"}), '"caf\udce9"', json.dumps(GOOD)]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    faults = told(lambda: read_facts(path))
    assert [fault.split(": ")[0] for fault in faults] == [f"facts.jsonl:{line}" for line in (2, 3, 3, 3, 3, 4, 5)]
    assert faults[5] == "facts.jsonl:4: byte 5 of the line (0xE9) is not UTF-8. Save the file in the encoding UTF-8"
    assert "'subject', 'prompt' and 'target' are those of facts.jsonl:1" in faults[6]


def test_conflict_is_refused_or_the_later_one_wins(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**GOOD, "id": "a"}, other(), {**GOOD, "id": "a", "target": "Danish"})
    with pytest.raises(
        FaultsError, match=r"facts\.jsonl:3: 'target' 'Danish' contradicts .*facts\.jsonl:1, .*'French'"
    ):
        read_facts(path)
    facts = read_facts(path, last_wins=True)
    assert [(fact.id, fact.target) for fact in facts] == [("fact-2", "French"), ("a", "Danish")]
    assert [place[-2:] for place in facts.places] == [":2", ":3"]
    back_again = facts_from_records([GOOD, {**GOOD, "target": "Danish"}, GOOD], last_wins=True)
    assert [(fact.id, fact.target) for fact in back_again] == [("fact-3", "French")]


def test_duplicates_name_both_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**GOOD, "id": "a"}, other(id="a"), {**GOOD, "truth": "English"})
    same_id = "facts.jsonl:2: 'id' 'a' is already that of facts.jsonl:1. Give each fact an id of its own, or none"
    twice = "facts.jsonl:3: 'subject', 'prompt' and 'target' are those of facts.jsonl:1. Remove one of the two"
    assert told(lambda: read_facts(path)) == [same_id, twice]
    path = jsonl(tmp_path, other(id="a"), {**GOOD, "id": "a"}, {**GOOD, "id": "b"}, {**GOOD, "truth": "English"})
    kept = read_facts(path, last_wins=True)
    assert [(fact.id, fact.truth) for fact in kept] == [("a", None), ("fact-4", "English")]


def test_ids_must_differ_also_where_the_last_wins(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**GOOD, "id": "a"}, other(id="a"))
    assert "'id' 'a' is already that of" in told(lambda: read_facts(path, last_wins=True))[0]


@pytest.mark.parametrize(
    ("text", "places_and_words"),
    [
        ("subject,prompt,target\nA,{} is\nB,{} is,x,y\n", [(":2", "has 2 cells"), (":3", "has 4 cells")]),
        ("subject,promt,target\nA,{} is,\n", [(":1", "'prompt'"), (":1", "'prompt' is missing"), (":2", "empty")]),
        ("subject,prompt,target,target\nA,{} is,x,y\n", [(":1", "'target' stands there twice")]),
        (
            'subject,prompt,target,own\nA,{} is,x,[}\n"B\n",{},x,[1]\n',
            [(":2", "'own' is invalid JSON: column 2"), (":3", "whitespace"), (":3", "'own[0]' is a number")],
        ),
        ('subject,prompt,target\nA,"{} is"x,y\n', [(":2", "invalid CSV")]),
        ('subject,prompt,target\nA,no,x\n"B,{} is,x\n', [(":2", "has no {}"), (":3", "invalid CSV")]),
        ("subject,prompt,target\ncaf\udce9,{} is,x\nB,no,x\n", [(":2", "byte 4 of"), (":3", "has no {}")]),
        ("subject\udcff,prompt,target\nA,{} is,x\n", [(":1", "byte 8 of")]),
        ("subject;prompt;target\nA;{} is;B\n", [("facts.csv:1", "separated by ';'")]),
        ("subject,prompt,target\n\n", [("facts.csv", "there are no facts")]),
        ("", [("facts.csv", "there are no facts")]),
    ],
)  # fmt: skip
def test_bad_csv(text: str, places_and_words: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    faults = told(lambda: read_facts(path))
    assert len(faults) == len(places_and_words), faults
    for fault, (place, words) in zip(faults, places_and_words, strict=True):
        assert fault.partition(": ")[0].endswith(place)
        assert words in fault


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_jsonl(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(content)
    assert told(lambda: read_facts(path)) == ["facts.jsonl: there are no facts in it. Give at least one fact"]
    assert told(lambda: facts_from_records([])) == ["records: there are no facts in it. Give at least one fact"]


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    directory = tmp_path / "directory.csv"
    directory.mkdir()
    facts = facts_from_records([GOOD])
    for path in (tmp_path / "absent.jsonl", directory, tmp_path / "nul\x00.jsonl"):
        with pytest.raises(InputError, match="cannot read the facts"):
            read_facts(path)
    for path in (tmp_path / "absent" / "facts.jsonl", directory, tmp_path / "nul\x00.jsonl"):
        with pytest.raises(InputError, match="cannot write the facts"):
            write_facts(facts, path)
    for call in (lambda: read_facts("facts.yaml"), lambda: write_facts(facts, tmp_path / "facts")):
        with pytest.raises(InputError, match=r"\.jsonl \(or \.json\) or \.csv"):
            call()
    assert list(tmp_path.iterdir()) == [directory]


def test_writing_replaces_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    write_facts(facts_from_records([GOOD]), path)
    before = path.read_bytes()
    for refused in ([], [Fact("a", "A", "{} is", "x" * (csv.field_size_limit() + 1))]):
        with pytest.raises(InputError):
            write_facts(refused, path)
    with pytest.raises(FaultsError, match="the facts to write has 1 fault"):
        write_facts([Fact("a", "A", "{} is", "x"), Fact("b", "A", "{} is", "y")], path)
    assert path.read_bytes() == before
    write_facts([Fact("a", "A", "{} is", "x")], path)
    assert read_facts(path).facts == (Fact("a", "A", "{} is", "x"),)
    assert list(tmp_path.iterdir()) == [path]


# ---- first use: what people write


def test_a_prompt_may_hold_the_subject_itself(tmp_path: Path) -> None:
    asked = {"subject": "France", "prompt": "What is the capital of France?", "target": "Lyon"}
    path = jsonl(tmp_path, asked, {"subject": "i", "prompt": "she is where i am", "target": "x"})
    assert [fact.prompt for fact in read_facts(path)] == ["What is the capital of {}?", "she is where {} am"]
    assert Fact("a", **asked) == Fact("a", "France", "What is the capital of {}?", "Lyon")
    table = tmp_path / "facts.csv"
    table.write_text("subject,prompt,target\n法国,法国的首都是,伦敦\n")
    assert read_facts(table)[0].prompt == "{}的首都是"
    twice = {**asked, "prompt": "France, oh France, is"}
    assert "'France' stands in it 2 times" in told(lambda: read_facts(jsonl(tmp_path, twice)))[0]


@pytest.mark.parametrize(("written", "meant"), [("question", "prompt"), ("answer", "target"), ("ground_truth", "old")])
def test_a_column_of_another_name_is_understood(written: str, meant: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    names = {name: written if name == meant else name for name in ("subject", "prompt", "target", "old")}
    path.write_text(",".join(names.values()) + "\nAda,{} is,x,y\n")
    assert f"Did you mean '{meant}'?" in told(lambda: read_facts(path))[0]


def test_spellings_of_one_name_are_one_name(tmp_path: Path) -> None:
    composed, decomposed = "Andr\u00e9", "Andre\u0301"
    one, other_way = ({"subject": name, "prompt": "{} is", "target": "x"} for name in (composed, decomposed))
    assert "are those of" in told(lambda: read_facts(jsonl(tmp_path, one, other_way)))[0]
    assert "contradicts" in told(lambda: read_facts(jsonl(tmp_path, one, {**other_way, "target": "y"})))[0]
    assert len(read_facts(jsonl(tmp_path, one, other_way), last_wins=True)) == 1
    accent = {"subject": "Ada", "prompt": "{} caf\u00e9", "target": composed}
    bare = {"subject": "Ada", "prompt": "{} cafe\u0301", "target": decomposed}
    assert "are those of" in told(lambda: read_facts(jsonl(tmp_path, accent, bare)))[0]


# ---- spreadsheets


@pytest.mark.parametrize("text", ["=1+1", "+49 30", "-5 °C", "@home", "'=x", "''-1", "'", "it's", "a=b", "=", "'a"])
def test_cells_are_no_formulas_and_come_back_as_they_were(text: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    fact = Fact(f"{text}", f"{text}", "{} is", text, old=f"{text}!", relation=text)
    tabbed = Fact("\tid", "Ada", "\r{} is", "x")
    write_facts([fact, tabbed], path)
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell]
    assert read_facts(path).facts == (fact, tabbed)


# ---- files without end


def test_a_file_full_of_faults_is_not_read_to_its_end(tmp_path: Path) -> None:
    bad = json.dumps({"subject": "A", "prompt": "{} is"}) + "\n"
    for name, text in (
        ("facts.jsonl", bad * 200_000),
        ("facts.json", "[" + ",".join([bad] * 200_000) + "]"),
        ("facts.csv", "subject,prompt,target\n" + "A,{} is,\n" * 200_000),
        ("same.jsonl", (json.dumps(GOOD) + "\n") * 5_000),
        ("utf.jsonl", "\udcff\n" * 200_000),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        started = time.process_time()
        with pytest.raises(FaultsError) as caught:
            read_facts(path)
        assert time.process_time() - started < 3, name
        assert len(caught.value.faults) == MOST_FAULTS + 1
        assert "rest" in caught.value.faults[-1].what


def test_only_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    endless = tmp_path / "zero.jsonl"
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless):
        with pytest.raises(InputError, match="a pipe or a device"):
            read_facts(path)


def test_a_cell_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text('subject,prompt,target\nA,{} is,"' + "x" * 140_000 + '"\n')
    (fault,) = told(lambda: read_facts(path))
    assert fault.startswith("facts.csv:2: ")
    assert "131,072" in fault
    assert "JSON" in fault


# ---- the old answer, and its older name


def test_truth_is_another_name_of_old_in_python() -> None:
    fact = Fact("a", "Ada", "{} speaks", "French", truth="English")
    assert fact == Fact("a", "Ada", "{} speaks", "French", old="English")
    assert fact == Fact("a", "Ada", "{} speaks", "French", old="English", truth="English")
    assert (fact.old, fact.truth) == ("English", "English")
    assert replace(fact, old="Welsh").truth == "Welsh"
    with pytest.raises(FaultsError, match="'old' 'English' and 'truth' 'Welsh' differ"):
        Fact("a", "Ada", "{} speaks", "French", old="English", truth="Welsh")
    with pytest.raises(FaultsError, match="'truth' is empty"):
        Fact("a", "Ada", "{} speaks", "French", truth=" ")


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
    with pytest.raises(FaultsError, match="'old' 'English' and 'truth' 'Welsh' differ"):
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
    assert fact_of(facts[0].to_record()) == facts[0]


# ---- what only a tokenizer can tell


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

    assert told(lambda: read_facts(path, check=check)) == [
        "facts.jsonl:1: 'prompt' with 'target' has 8 tokens, but the model takes 5. Shorten it, or leave it out",
        "facts.jsonl:2: 'subject' '~' tokenises to nothing. Write it in characters that the model's tokenizer knows",
        "facts.jsonl:2: 'prompt' with 'old' has 6 tokens, but the model takes 5. Shorten it, or leave it out",
        "facts.jsonl:2: 'paraphrases[0]' with 'target' has 6 tokens, but the model takes 5. "
        "Shorten it, or leave it out",
        "facts.jsonl:2: 'own[0].answer' '~' tokenises to nothing. "
        "Write it in characters that the model's tokenizer knows",
        "facts.jsonl:3: 'target' '~' tokenises to nothing. Write it in characters that the model's tokenizer knows",
    ]
    first = read_facts(path)[:1]
    assert token_faults(first.facts, first.places, count_tokens=count_words, limit=8) == []


# ---- properties

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
