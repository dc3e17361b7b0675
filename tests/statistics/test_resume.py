"""Interrupted statistics: a process that is killed loses at most a chunk, and the rest gives the same bits."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from errata.errors import InputError
from errata.statistics.moments import Progress, SecondMoment, chunks_of, key_moments
from errata.statistics.settings import StatisticsSettings
from errata.statistics.store import moments_for

from tests.support.editing import corpus_texts, tiny_language_model, write_corpus
from tests.support.errors import raises_code

LAYERS = (1, 3)
CHUNK = 200
TOKENS = 1500


@pytest.fixture
def settings(tmp_path: Path) -> StatisticsSettings:
    return StatisticsSettings(corpus=str(write_corpus(tmp_path / "corpus.txt")), tokens=TOKENS, length=16)


def assert_same_bits(found: dict[int, SecondMoment], expected: dict[int, SecondMoment]) -> None:
    for layer in LAYERS:
        assert found[layer].count == expected[layer].count
        assert torch.equal(found[layer].total, expected[layer].total)


_KILLED = """
import os, signal, sys
from pathlib import Path
from errata.statistics.settings import StatisticsSettings
from errata.statistics.store import moments_for
from tests.support.editing import tiny_language_model

read = 0

def on_read(count):
    global read
    read += count
    if read >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

settings = StatisticsSettings(corpus=sys.argv[1], tokens=1500, length=16)
moments_for(
    tiny_language_model("llama"), (1, 3), settings, cache=Path(sys.argv[2]), between_saves=0.0, chunk_tokens=200,
    on_read=on_read,
)
"""


def _kill(settings: StatisticsSettings, cache: Path, after: int) -> None:
    command: Sequence[str] = (sys.executable, "-c", _KILLED, settings.corpus, str(cache), str(after))
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL


def test_a_killed_process_is_continued_with_the_same_bits(settings: StatisticsSettings, tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    whole = moments_for(model, LAYERS, settings, cache=tmp_path / "whole", chunk_tokens=CHUNK)
    cache = tmp_path / "cache"
    _kill(settings, cache, 700)
    (unfinished,) = cache.glob("unfinished-*")
    before = unfinished.read_bytes()
    _kill(settings, cache, 1200)  # once more, from there
    assert unfinished.read_bytes() != before
    counts: list[int] = []
    found = moments_for(
        model, LAYERS, settings, cache=cache, between_saves=0.0, chunk_tokens=CHUNK, on_read=counts.append
    )
    assert_same_bits(found, whole)
    assert counts[0] >= 1200 - 2 * CHUNK  # what was done is reported at once, and not done again
    assert sum(counts) == TOKENS
    assert not list(cache.glob("unfinished-*"))
    assert len(list(cache.iterdir())) == 2
    assert_same_bits(moments_for(model, LAYERS, settings, cache=cache), whole)


def test_sums_of_another_text_are_not_continued(
    settings: StatisticsSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, cache = tiny_language_model("llama"), tmp_path / "cache"
    _kill(settings, cache, 700)
    (unfinished,) = cache.glob("unfinished-*")
    content = unfinished.read_bytes()
    unfinished.write_bytes(content[:-1])
    with caplog.at_level(logging.WARNING):
        found = moments_for(model, LAYERS, settings, cache=cache, chunk_tokens=CHUNK)
    assert [unfinished.name in record.getMessage() for record in caplog.records] == [True]
    assert_same_bits(found, moments_for(model, LAYERS, settings, cache=tmp_path / "other", chunk_tokens=CHUNK))
    # Another text, or other layers, have their own.
    unfinished.write_bytes(content)
    write_corpus(Path(settings.corpus), corpus_texts()[::-1])
    moments_for(model, LAYERS, settings, cache=cache, chunk_tokens=CHUNK)
    assert unfinished.read_bytes() == content


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_rest_after_any_chunk_gives_the_same_bits(family: str) -> None:
    model, texts = tiny_language_model(family), corpus_texts()
    settings = StatisticsSettings(corpus="builtin", tokens=TOKENS, length=16, special_tokens=False)
    states: list[Progress] = []

    def keep(progress: Progress) -> None:
        copies = {layer: SecondMoment(found.total.clone(), found.count) for layer, found in progress.moments.items()}
        states.append(Progress(progress.documents, progress.missing, copies))

    whole = key_moments(model, LAYERS, texts, settings, chunk_tokens=CHUNK, on_chunk=keep)
    assert len(states) > 5
    assert states[-1].missing == 0
    for state in states[:-1]:
        rest = key_moments(model, LAYERS, texts, settings, chunk_tokens=CHUNK, start=state)
        assert_same_bits(rest, whole)


def test_chunks_cover_the_text_once_in_order() -> None:
    model, texts = tiny_language_model("llama"), corpus_texts()
    settings = StatisticsSettings(corpus="builtin", documents=150, length=6)
    chunks = list(chunks_of(model, texts, settings, chunk_tokens=100))
    rows = [row for chunk in chunks for row in chunk.rows]
    assert rows == [tuple(model.tokenizer(text)["input_ids"][:6]) for text in texts[:150]]
    assert sum(chunk.counted for chunk in chunks) == sum(map(len, rows))
    assert [chunk.documents for chunk in chunks] == sorted(chunk.documents for chunk in chunks)
    assert chunks[-1].documents == 150
    assert all(sum(map(len, chunk.rows)) >= 100 for chunk in chunks[:-1])
    later = list(chunks_of(model, texts, settings, chunk_tokens=100, documents=chunks[1].documents,
                           missing=chunks[1].missing))  # fmt: skip
    assert later == chunks[2:]
    with raises_code("CORPUS_TOO_SHORT", InputError):
        list(chunks_of(model, texts[:100], settings))


def test_products_in_float32_are_close_to_those_in_float64() -> None:
    """Wider than a block of columns, longer than a block of rows, and with a few huge keys."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(5000, 1500, generator=generator) * torch.rand(1500, generator=generator) ** 2
    keys[::500] *= 100
    single, double = SecondMoment.zeros(1500), SecondMoment.zeros(1500)
    single.add(keys)
    double.add(keys.double())
    exact = keys.double().T @ keys.double()
    assert torch.allclose(double.total, exact, rtol=1e-12, atol=1e-12 * float(exact.max()))
    assert float((single.total - exact).norm() / exact.norm()) < 1e-6
    assert torch.equal(single.total, single.total.T)
    assert single.count == double.count == 5000
