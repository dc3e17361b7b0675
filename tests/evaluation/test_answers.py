"""Where an answer ends, and when it is right."""

from __future__ import annotations

import pytest

from errata.evaluation.free_running import (
    answer_end,
    answer_of,
    is_contained,
    is_exact,
    is_repeated,
    normalise,
)
from errata.facts.sentences import first_sentence_end, sentences


@pytest.mark.parametrize(
    ("sentence", "rest"),
    [
        ("He lives in St. Louis.", " The city is large."),
        ("Rome.", " Paris"),
        ("J. R. R. Tolkien.", " He wrote books."),
        ("It was made by Apple Inc.", " The company is large."),
        ("She lives in Washington, D.C.", " In 1990 she moved."),
        ('He said "Rome."', " Then he left."),
        ("It rose by 3.5 points.", " 1990 was worse."),
        ("Mr. Smith met Dr. No. 5 at Mt. Everest.", " Nobody saw it."),
        ("She likes vitamin C.", " The end."),
        ("Émile.", " Über alles"),
        ("巴黎.", " 罗马"),
    ],
)
def test_the_first_sentence(sentence: str, rest: str) -> None:
    assert first_sentence_end(sentence + rest) == len(sentence)
    # Asked while the text grows, the same comes out as soon as anything does, and never less.
    ends = [first_sentence_end((sentence + rest)[:length]) for length in range(len(sentence + rest) + 1)]
    known = [end for end in ends if end is not None]
    assert set(known) == {len(sentence)}
    assert ends[-len(known) :] == known


@pytest.mark.parametrize(
    "text",
    [
        "St. Louis",
        "Rome.",
        "Rome. ",
        "Rome. and more",
        "www.rome.it",
        "J. A. Smith",
        "Philip I. Smith and others",
        "U.S. Steel",
        "Martin Luther King Jr. Day",
        "1. Paris",
        "wait... The end",
        "e.g. Paris",
        "Rome! The city? Yes",
        "",
    ],
)
def test_no_sentence_ends_here(text: str) -> None:
    assert first_sentence_end(text) is None


def test_sentences_add_up_to_the_text() -> None:
    text = " He lives in St. Louis. The city\nis large.\n\nMr. X left! Then"
    parts = [" He lives in St. Louis.", " The city\n", "is large.", "\n", "\n", "Mr. X left! Then"]
    assert sentences(text) == parts
    assert sentences("") == []
    assert sentences("Rome.") == ["Rome."]


def test_where_answers_end() -> None:
    text = " St. Louis. The city\nis large"
    assert answer_of(text, "sentence") == "St. Louis."
    assert answer_of(text, "full_stop") == "St"
    assert answer_of(" Rome and\nParis. X", "sentence") == "Rome and"
    assert answer_of(" Rome and\nParis. X", "full_stop") == "Rome and"
    assert answer_of(" Rome", "sentence") == answer_of(" Rome", "full_stop") == "Rome"
    assert answer_of("\nRome", "sentence") == ""
    assert answer_end(" Rome", "sentence") is None
    assert answer_end(" Rome.", "sentence") is None
    assert answer_end(" Rome.", "full_stop") == 5


def test_what_is_compared() -> None:
    assert normalise("  The U.S.A.’s “Big-Ben”, 3.5 %!\n") == "the usas big ben 3.5 %"
    assert normalise("ＲＯＭＥ ① Straße") == "rome 1 strasse"
    assert normalise("C#") != normalise("C")
    assert normalise("AT&T") == "at&t"


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "contained"),
    [
        ("Rome", ("Rome",), True, True),
        (" ROME. ", ("Rome",), True, True),
        ("the Hague", ("The Hague",), True, True),
        ("Hague", ("The Hague",), True, True),
        ("St Louis", ("St. Louis",), True, True),
        ("It is Rome, of course", ("Rome",), False, True),
        ("Romeo and Juliet", ("Rome",), False, False),
        ("Rome’s streets", ("Rome",), False, True),
        ("at McDonald's today", ("McDonald's",), False, True),
        ("New York City", ("York",), False, True),
        ("Big Apple", ("New York", "big apple"), True, True),
        ("It is called the Big Apple", ("New York", "Big Apple"), False, True),
        ("the man who sang", ("The Who",), False, False),
        ("", ("Rome",), False, False),
        ("Paris", ("!!!",), False, False),
        ("!!!", ("!!!",), True, True),
        ("35", ("3.5",), False, False),
    ],
)
def test_right_and_wrong(answer: str, accepted: tuple[str, ...], exact: bool, contained: bool) -> None:
    assert is_exact(answer, accepted) is exact
    assert is_contained(answer, accepted) is contained


def test_repetition() -> None:
    assert is_repeated("Rome Rome", ["Rome"])
    assert is_repeated("New York, New York", ["New York"])
    assert not is_repeated("Rome", ["Rome"])
    assert not is_repeated("Rome in Romeo", ["Rome"])


@pytest.mark.parametrize(
    ("answer", "accepted", "contained"),
    [
        ("法国的首都是巴黎。", "巴黎", True),
        ("首都是Paris。", "Paris", True),
        ("首都是Parisian", "Paris", False),
        ("フランスの首都はパリです。", "パリ", True),
        ("เมืองหลวงคือปารีสครับ", "ปารีส", True),
        ("เมืองหลวงคือปารีส", "ปาร", False),  # what follows only adds to the last letter
        ("ปารีส", "โรม", False),
        ("រដ្ឋធានីគឺប៉ារីស។", "ប៉ារីស", True),
        ("파리", "파", False),
        ("伦敦", "巴黎", False),
    ],
)
def test_words_of_scripts_without_spaces(answer: str, accepted: str, contained: bool) -> None:
    assert is_contained(answer, [accepted]) is contained
    assert is_repeated(answer + answer, [accepted]) is contained
    assert not is_repeated(answer, [accepted])


@pytest.mark.parametrize(
    ("sentence", "rest"),
    [
        ("巴黎。", "法国很大。"),
        ("他说：“巴黎。”", "然后他走了。"),
        ("「パリです。」", "と彼は言った。"),
        ("真的吗？！", "是的。"),
        ("巴黎.", " 罗马。伦敦"),
        ("ភ្នំពេញ។", "បន្ទាប់"),
        ("पेरिस।", " फिर"),
    ],
)
def test_sentences_of_scripts_without_spaces(sentence: str, rest: str) -> None:
    ends = [first_sentence_end((sentence + rest)[:length]) for length in range(len(sentence + rest) + 1)]
    assert {end for end in ends if end is not None} == {len(sentence)}
    assert answer_of(f"{sentence}{rest}", "sentence") == sentence
    assert answer_of("巴黎。法国", "full_stop") == "巴黎"
