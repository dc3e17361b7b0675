"""YAML with the line of every key."""

from __future__ import annotations

import time

import pytest

from errata.errors import FaultsError, InputError
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


def test_duplicate_keys_are_faults() -> None:
    for text, where, line, first in (
        ("a: 1\nb: 2\na: 3\n", "x: a", 3, 1),
        ("s: {b: 1,\n 'b': 2}\n", "x: s.b", 2, 1),
        ("l:\n- {1: 2}\n- {1: 2,\n  1: 3}\n", "x: l.1.1", 4, 3),
        ("a: {b: [1]}\na: {b: [1]}\n", "x: a", 2, 1),  # and nothing inside it
    ):
        with pytest.raises(FaultsError) as error:
            parse_yaml(text, "x")
        (fault,) = error.value.faults
        assert (fault.where, fault.line, fault.code) == (where, line, "YAML_DUPLICATE_KEY")
        assert f"line {first}" in fault.what
        assert f"{where} (line {line}): " in str(error.value)


def test_merged_keys_may_be_overridden_and_aliases_repeated() -> None:
    marked = parse_yaml("a: &a {b: 1, c: 2}\nd:\n  <<: *a\n  b: 3\ne: *a\n", "x")
    assert marked.data["d"] == {"b": 3, "c": 2}
    assert marked.data["e"] == {"b": 1, "c": 2}
    assert line_of(marked.lines, ("e", "c")) == 5


PLAIN_VALUES: list[tuple[str, object]] = [
    ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("010", 10), ("0o10", 8), ("0x1F", 31), ("1_000", "1_000"),
    ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"), ("Yes", "Yes"),
    ("true", True), ("FALSE", False), ("1e-3", 0.001), ("1.5E3", 1500.0), ("-.5", -0.5), ("+7", 7), ("7.", 7.0),
    (".inf", float("inf")), ("-.INF", float("-inf")), ("~", None), ("null", None), ("", None),
    ("0b1", "0b1"), ("2025-01-02", "2025-01-02"), ("2025-13-01", "2025-13-01"), ("'1'", "1"), ("=", "="),
    ("!!str 1", "1"), ("!!int '12'", 12), ("!!float 3", 3.0),
]  # fmt: skip


def test_plain_values_follow_yaml_1_2() -> None:
    for text, value in PLAIN_VALUES:
        found = parse_yaml(f"a: {text}\n", "x").data["a"]
        assert found == value, text
        assert type(found) is type(value), text


MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_invalid_and_excessive_texts_are_refused_at_once() -> None:
    for text, code in (
        ("a: [1", "YAML_INVALID"),
        ("{[1]: 2}", "YAML_INVALID"),
        ("a: !!int x", "YAML_INVALID"),
        ("a: 1\n---\nb: 2\n", "YAML_INVALID"),
        ("a: \x00", "YAML_INVALID"),
        ("a: !!int ''", "YAML_INVALID"),
        ("a: !!bool x", "YAML_INVALID"),
        ("a: !!timestamp x", "YAML_INVALID"),
        ("a: !!python/tuple [1]", "YAML_INVALID"),
        ("a: 0x" + "f" * 9000, "YAML_INVALID"),
        ('a: "\\uD800"', "YAML_INVALID"),
        ('"\\uD800": a', "YAML_INVALID"),
        ("f: &f [*f]", "YAML_TOO_LARGE"),
        ("f: &f {g: *f}", "YAML_TOO_LARGE"),
        ("a: &a\n  <<: *a\n", "YAML_TOO_LARGE"),
        (MERGES, "YAML_TOO_LARGE"),
        (LAUGHS, "YAML_TOO_LARGE"),  # 10⁹ values in nine lines
        ("- [" + "x, " * 30_000 + "]", "YAML_TOO_LARGE"),
        ("a: " + "x" * 2_000_001, "YAML_TOO_LARGE"),
        ("[" * 5000, "YAML_TOO_LARGE"),
    ):
        started = time.process_time()
        with pytest.raises(InputError) as error:
            parse_yaml(text, "x")
        assert error.value.code == code, text[:40]
        assert time.process_time() - started < 20
