"""benchmarks/sinks_and_spectra.py on a tiny model, against plain hooks and a matrix with a known spectrum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.errors import InputError
from errata.models.language_model import Site
from errata.statistics.moments import SecondMoment

from benchmarks.sinks_and_spectra import main, moments_of, spectrum_row
from tests.support.editing import read_whole, tiny_language_model, write_corpus

LAYERS = (1, 2)


def table(text: str) -> list[list[str]]:
    """Cells of the lines of numbers."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_moments_are_those_of_a_plain_pass_and_first_tokens_apart(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    texts = ["The river runs through the city.", "Kenji Watanabe plays the piano in Rome.", "The rain is in London."]
    corpus = write_corpus(tmp_path / "corpus.txt", texts)
    rows = [list(model.tokenizer(text)["input_ids"])[:6] for text in texts]
    tokens = sum(map(len, rows)) - 2  # the last document is cut by two tokens more
    rows[-1] = rows[-1][:-2]
    found = moments_of(model, LAYERS, str(corpus), tokens=tokens, length=6)
    for layer in LAYERS:
        keys = [read_whole(model, row)[Site.KEY, layer].double() for row in rows]
        first, inside = torch.cat([key[:1] for key in keys]), torch.cat([key[1:] for key in keys])
        assert (found[layer].first.count, found[layer].inside.count) == (3, tokens - 3)
        torch.testing.assert_close(found[layer].first.total, first.T @ first, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[layer].inside.total, inside.T @ inside, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[layer].whole.total, found[layer].first.total + found[layer].inside.total)
    with pytest.raises(InputError):
        moments_of(model, LAYERS, str(corpus), tokens=1000, length=6)


def test_a_known_spectrum_is_found() -> None:
    values = torch.tensor([0.01, 0.01, 0.03, 0.07, 0.5, 0.5, 0.88, 8.0], dtype=torch.float64)  # their mean is 1.25
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    cells = spectrum_row(3, SecondMoment(10 * basis @ values.diag() @ basis.T, count=10))
    assert cells == ["3", "1.2500", "0.06", "6", "80 %", "50 %", "1.2 %", "25 %", "500.00"]


def test_cosines_of_first_tokens_are_those_of_plain_hooks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_language_model("gpt2")
    model.model.save_pretrained(tmp_path / "small")
    model.tokenizer.save_pretrained(tmp_path / "small")
    corpus = write_corpus(tmp_path / "corpus.txt")
    subjects, others, lead = ["The", "Danielle"], ["Because", "A", "I"], "It"
    words = ["--subjects", *subjects, "--others", *others, "--also", lead]
    arguments = ["keys", str(tmp_path / "small"), "--layers", "1", "2", *words]
    main([*arguments, "--text", str(corpus), "--tokens", "300", "--device", "cpu"])
    shown = table(capsys.readouterr().out)
    moments = moments_of(model, LAYERS, str(corpus), tokens=300, length=64)
    for layer, cells in zip(LAYERS, shown, strict=True):

        def keys(texts: list[str], layer: int = layer) -> torch.Tensor:
            rows = [read_whole(model, model.tokenizer(text)["input_ids"]) for text in texts]
            return torch.stack([row[Site.KEY, layer][-1] for row in rows]).double()

        def cosines(texts: list[str], layer: int = layer) -> torch.Tensor:
            pairs = [(one, other) for one in keys(texts, layer) for other in keys(others, layer)]
            return torch.stack([torch.cosine_similarity(one, other, dim=0) for one, other in pairs])

        bare = cosines(subjects)
        means = [cosines([f"{before}{word}" for word in subjects]).mean() for before in ("\n", lead)]
        size = keys(subjects).square().sum(1).mean().sqrt() / moments[layer].inside.mean.trace().sqrt()
        expected = [float(value) for value in (bare.min(), bare.mean(), bare.max(), *means, size)]
        assert cells[0] == str(layer)
        assert [float(cell) for cell in cells[1:6]] == pytest.approx(expected[:5], abs=0.0051)
        assert float(cells[6]) == pytest.approx(expected[5], abs=0.051)


def test_words_that_are_no_first_token_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_language_model("gpt2")
    model.model.save_pretrained(tmp_path / "small")
    model.tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(SystemExit):
        main(["keys", str(tmp_path / "small"), "--layers", "1", "--subjects", "Danielle Darrieux", "--device", "cpu"])
    assert "Danielle Darrieux" in capsys.readouterr().err
