"""YAML with the line of every key."""

from __future__ import annotations

import time

import pytest

from errata.errors import Fault, FaultsError, InputError
from errata.utils.yaml import line_of, parse_yaml


def test_every_key_and_entry_has_its_line() -> None:
    marked = parse_yaml("a: 1\nb:\n  c:\n  - {d: 2}\n  - 3\n", "x")
    assert marked.data == {"a": 1, "b": {"c": [{"d": 2}, 3]}}
    assert marked.lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", 0): 4,
        ("b", "c", 0, "d"): 4,
        ("b", "c", 1): 5,
    }
    assert line_of(marked.lines, ("b", "c", "nowhere")) == 3
    assert line_of(marked.lines, ("nowhere",)) is None
    assert parse_yaml("", "x").data is None


@pytest.mark.parametrize(
    ("text", "where", "line", "first"),
    [
        ("a: 1\nb: 2\na: 3\n", "x: a", 3, 1),
        ("s: {b: 1,\n 'b': 2}\n", "x: s.b", 2, 1),
        ("l:\n- {1: 2}\n- {1: 2,\n  1: 3}\n", "x: l.1.1", 4, 3),
        ("a: {b: [1]}\na: {b: [1]}\n", "x: a", 2, 1),  # and nothing of what lies in it
    ],
)
def test_keys_that_stand_twice_are_faults(text: str, where: str, line: int, first: int) -> None:
    with pytest.raises(FaultsError) as caught:
        parse_yaml(text, "x")
    what = f"this key stands there twice, first in line {first}"
    assert caught.value.faults == (Fault(where, what, "Leave one of them", line),)
    assert f"{where} (line {line}): {what}" in str(caught.value)


def test_what_is_merged_may_be_overridden_and_aliases_may_repeat() -> None:
    marked = parse_yaml("a: &a {b: 1, c: 2}\nd:\n  <<: *a\n  b: 3\ne: *a\n", "x")
    assert marked.data["d"] == {"b": 3, "c": 2}
    assert marked.data["e"] == {"b": 1, "c": 2}
    assert line_of(marked.lines, ("e", "c")) == 5


@pytest.mark.parametrize("text", ["a: [1", "{[1]: 2}", "a: !!int x", "a: 1\n---\nb: 2\n", "a: \x00"])
def test_what_is_no_yaml_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="x is not YAML"):
        parse_yaml(text, "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("010", 10), ("0o10", 8), ("0x1F", 31), ("1_000", "1_000"),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"), ("Yes", "Yes"),
        ("true", True), ("FALSE", False), ("1e-3", 0.001), ("1.5E3", 1500.0), ("-.5", -0.5), ("+7", 7), ("7.", 7.0),
        (".inf", float("inf")), ("-.INF", float("-inf")), ("~", None), ("null", None), ("", None),
        ("0b1", "0b1"), ("2025-01-02", "2025-01-02"), ("2025-13-01", "2025-13-01"), ("'1'", "1"), ("=", "="),
        ("!!str 1", "1"), ("!!int '12'", 12), ("!!float 3", 3.0),
    ],
)  # fmt: skip
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}\n", "x").data["a"]
    assert found == value
    assert type(found) is type(value)


MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (MERGES, "holds more than 20000 values"),
        ("a: &a\n  <<: *a\n", "refers to itself"),
        ("- [" + "x, " * 30_000 + "]", "holds more than 20000 values"),
        ("a: " + "x" * 2_000_001, "characters"),
    ],
)
def test_bombs_are_refused_at_once(text: str, reason: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError, match=reason):
        parse_yaml(text, "x")
    assert time.process_time() - started < 20


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("f: &f [*f]", "refers to itself"),
        ("f: &f {g: *f}", "refers to itself"),
        (LAUGHS, "holds more than 20000 values"),  # 10⁹ of them, in nine lines
        ("a: 0x" + "f" * 9000, "thousands of digits"),
        ('a: "\\uD800"', "half of a character"),
        ('"\\uD800": a', "half of a character"),
    ],
)
def test_what_could_not_be_shown_or_kept_is_an_input_error(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_yaml(text, "x")


@pytest.mark.parametrize("text", ["a: !!int ''", "a: !!bool x", "a: !!timestamp x", "a: !!python/tuple [1]"])
def test_tags_that_do_not_fit_are_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="x is not YAML"):
        parse_yaml(text, "x")


def test_brackets_without_end_are_an_input_error() -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        parse_yaml("[" * 5000, "x")
