"""The cache of key moments: found again, and never trusted where it does not fit."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import errata.statistics.files
import errata.statistics.store
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import SecondMoment
from errata.statistics.settings import StatisticsSettings
from errata.statistics.store import check_source, default_cache, moments_for

from tests.support.editing import corpus_texts, tiny_language_model, write_corpus
from tests.support.errors import raises_code

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model("gpt2")


@pytest.fixture
def settings(tmp_path: Path) -> StatisticsSettings:
    corpus = write_corpus(tmp_path / "corpus.txt", corpus_texts()[:40])
    return StatisticsSettings(corpus=str(corpus), tokens=200, length=16)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The layers of every pass over the text."""
    passes: list[list[int]] = []
    original = errata.statistics.store.key_moments

    def counting(model: LanguageModel, layers: Any, *args: Any, **kwargs: Any) -> dict[int, SecondMoment]:
        passes.append(list(layers))
        return original(model, layers, *args, **kwargs)

    monkeypatch.setattr(errata.statistics.store, "key_moments", counting)
    return passes


def assert_equal(found: dict[int, SecondMoment], expected: dict[int, SecondMoment]) -> None:
    assert set(found) == set(expected)
    for layer, moment in found.items():
        assert moment.count == expected[layer].count
        assert torch.equal(moment.total, moment.total.T)
        # Half of it is stored; the other half is its mirror image, which a sum of products is but for rounding.
        assert torch.allclose(moment.total, expected[layer].total, rtol=1e-12, atol=1e-12)


def test_what_was_computed_is_found_again(
    model: LanguageModel, settings: StatisticsSettings, cache: Path, computed: list[list[int]]
) -> None:
    first = moments_for(model, LAYERS, settings, cache=cache)
    again = moments_for(model, LAYERS, settings, cache=cache)
    assert computed == [[1, 3]]  # one pass for both
    assert_equal(again, first)
    moments_for(model, [1, 2, 3], settings, cache=cache)
    assert computed == [[1, 3], [2]]
    assert len(list(cache.iterdir())) == 3
    assert {path.suffix for path in cache.iterdir()} == {".safetensors"}


@pytest.mark.parametrize("change", ["tokens", "length", "special_tokens", "text", "weights", "dtype"])
def test_whatever_it_depends_on_is_part_of_its_key(
    model: LanguageModel, settings: StatisticsSettings, cache: Path, computed: list[list[int]], change: str
) -> None:
    moments_for(model, [1], settings, cache=cache)
    if change in ("tokens", "length", "special_tokens"):
        value = {"tokens": 150, "length": 8, "special_tokens": False}[change]
        settings = settings.model_copy(update={change: value})
    elif change == "text":
        write_corpus(Path(settings.corpus), corpus_texts()[1:41])
    elif change == "weights":
        model = tiny_language_model("gpt2", seed=1)
    else:
        model = tiny_language_model("gpt2", dtype=torch.bfloat16)
    moments_for(model, [1], settings, cache=cache)
    assert computed == [[1], [1]]
    assert len(list(cache.iterdir())) == 2


def test_edited_weights_are_other_weights(settings: StatisticsSettings, cache: Path, computed: list[list[int]]) -> None:
    model = tiny_language_model("gpt2")
    first = moments_for(model, [3], settings, cache=cache)
    weight = model.weight(1).clone()
    model.set_weight(1, weight * 1.5)
    second = moments_for(model, [3], settings, cache=cache)
    assert computed == [[3], [3]]
    assert (first[3].total - second[3].total).norm() > 0.01 * first[3].total.norm()
    model.set_weight(1, weight)
    assert_equal(moments_for(model, [3], settings, cache=cache), first)
    assert len(computed) == 2


def _truncated(share: float) -> Callable[[Path, Path], None]:
    def damage(path: Path, other: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def _flipped(share: float) -> Callable[[Path, Path], None]:
    def damage(path: Path, other: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(share * len(content)), len(content) - 1)] ^= 0x10
        path.write_bytes(content)

    return damage


def _foreign(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def _text(path: Path, other: Path) -> None:
    path.write_text("these are no statistics")


def _wrong_count(path: Path, other: Path) -> None:
    content = path.read_bytes()
    assert content.count(rb"{\"1\": 200}") == 1
    path.write_bytes(content.replace(rb"{\"1\": 200}", rb"{\"1\": 100}"))


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "empty": _truncated(0),
    "cut in the header": _truncated(0.01),
    "cut in the middle": _truncated(0.5),
    "cut at the end": _truncated(0.9999),
    "a bit at the start": _flipped(0),
    "a bit in the header": _flipped(0.01),
    "a bit in the middle": _flipped(0.5),
    "a bit at the end": _flipped(1),
    "of another layer": _foreign,
    "text": _text,
    "another count": _wrong_count,
}


def test_without_a_home_directory_a_cache_is_needed_only_where_something_is_missing(
    model: LanguageModel, settings: StatisticsSettings, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments_for(model, [0], settings, cache=cache)
    for name in ("HOME", "ERRATA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where the user has no entry in the passwords
    assert moments_for(model, [0], settings, read_only=[cache])
    with raises_code("CACHE_UNKNOWN", InputError, "ERRATA_CACHE"):
        moments_for(model, [0], settings)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_computed_anew_with_a_warning(
    model: LanguageModel,
    settings: StatisticsSettings,
    cache: Path,
    computed: list[list[int]],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    first = moments_for(model, [1], settings, cache=cache)
    (path,) = cache.iterdir()
    moments_for(model, [3], settings, cache=cache)
    (other,) = set(cache.iterdir()) - {path}
    DAMAGES[damage](path, other)
    computed.clear()
    with caplog.at_level(logging.WARNING):
        again = moments_for(model, [1], settings, cache=cache)
    assert computed == [[1]]
    assert_equal(again, first)
    (record,) = caplog.records
    assert path.name in record.getMessage()
    assert "recomputed" in record.getMessage()
    caplog.clear()
    assert_equal(moments_for(model, [1], settings, cache=cache), first)  # it has been mended
    assert computed == [[1]]
    assert not caplog.records


def test_places_that_are_only_read_are_looked_into_first_and_never_written(
    model: LanguageModel, settings: StatisticsSettings, tmp_path: Path, computed: list[list[int]]
) -> None:
    packaged, cache = tmp_path / "packaged", tmp_path / "cache"
    shipped = moments_for(model, [1], settings, cache=packaged)
    before = {path.name: path.read_bytes() for path in packaged.iterdir()}
    computed.clear()
    assert_equal(moments_for(model, [1], settings, cache=cache, read_only=[tmp_path / "none", packaged]), shipped)
    assert computed == []
    assert not cache.exists()

    (name,) = before
    (packaged / name).write_bytes(before[name][:-1])
    found = moments_for(model, [1, 3], settings, cache=cache, read_only=[packaged])
    assert computed == [[1, 3]]
    assert_equal({1: found[1]}, shipped)
    assert (packaged / name).read_bytes() == before[name][:-1]
    assert len(list(cache.iterdir())) == 2


def test_an_interrupted_write_leaves_no_file(
    model: LanguageModel, settings: StatisticsSettings, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: Any, filename: str, metadata: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(errata.statistics.files, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        moments_for(model, [1], settings, cache=cache)
    assert list(cache.iterdir()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "mine"))
    assert default_cache().is_relative_to(tmp_path / "mine")
    monkeypatch.delenv("ERRATA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    assert default_cache().is_relative_to(tmp_path / "users")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache().is_relative_to(tmp_path / "home" / ".cache")


@pytest.mark.parametrize("content", [None, b"caf\xe9"])
def test_a_corpus_that_cannot_be_read_is_an_input_error(
    model: LanguageModel, settings: StatisticsSettings, cache: Path, content: bytes | None
) -> None:
    path = Path(settings.corpus)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with raises_code("CORPUS_UNREADABLE", InputError, str(path)):
        moments_for(model, [1], settings, cache=cache)


def test_statistics_over_documents_are_found_again_unless_their_count_was_changed(
    model: LanguageModel, settings: StatisticsSettings, cache: Path, computed: list[list[int]]
) -> None:
    settings = settings.model_copy(update={"tokens": None, "documents": 30})
    first = moments_for(model, [1], settings, cache=cache)
    assert_equal(moments_for(model, [1], settings, cache=cache), first)
    moments_for(model, [1], settings.model_copy(update={"documents": 20}), cache=cache)
    assert computed == [[1], [1]]
    count = first[1].count
    for path in cache.iterdir():
        content = path.read_bytes()
        old, new = (rf"{{\"1\": {number}}}".encode() for number in (count, count - 1))
        path.write_bytes(content.replace(old, new))
    assert_equal(moments_for(model, [1], settings, cache=cache), first)
    assert computed == [[1], [1], [1]]


def test_too_few_documents_are_reported_before_any_is_read_by_a_model(settings: StatisticsSettings) -> None:
    check_source(settings, [])
    check_source(settings.model_copy(update={"tokens": None, "documents": 40}), [])
    with raises_code("CORPUS_TOO_SHORT", InputError, " 40 documents", " 41 "):
        check_source(settings.model_copy(update={"tokens": None, "documents": 41}), [])


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_text("One.\nTwo.\n\nThree.\n", encoding="utf-8")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    corpora = [open_corpus(str(path)) for path in (plain, marked)]
    assert [list(corpus.documents()) for corpus in corpora] == [["One.\nTwo.", "Three."]] * 2
    # The digest is part of the cache key, so statistics of the mark, as they were cached before, are not found.
    assert [corpus.digest for corpus in corpora] == [hashlib.sha256(plain.read_bytes()).hexdigest()] * 2
