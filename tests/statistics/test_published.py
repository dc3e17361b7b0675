"""Published .npz statistics: read as the authors' code writes them, checked, and used in an edit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.statistics.corpus import open_corpus
from errata.statistics.files import read_statistics_file, write_statistics
from errata.statistics.moments import SecondMoment, key_moments
from errata.statistics.published import import_published
from errata.statistics.settings import StatisticsSettings
from errata.statistics.store import moments_for

from tests.support.editing import tiny_language_model
from tests.support.errors import raises_code

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model("gpt2")


@pytest.fixture(scope="module")
def moments(model: LanguageModel) -> dict[int, SecondMoment]:
    settings = StatisticsSettings(corpus="builtin", tokens=6000, length=64)
    return key_moments(model, LAYERS, open_corpus("builtin").documents(), settings)


def published(folder: Path, layer: int, moment: SecondMoment, dtype: Any = np.float32, **changes: Any) -> Path:
    """A file as ``numpy.savez`` writes the state of the authors' ``CombinedStat(mom2=SecondMoment())``."""
    path = folder / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz"
    state = {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": moment.count,
        "mom2.mom2": moment.total.numpy().astype(dtype),
        "sample_size": 100000,
    }
    state |= changes
    np.savez(path, **{name: value for name, value in state.items() if value is not None})
    return path


def test_published_statistics_are_read_and_used(
    model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path
) -> None:
    paths = [published(tmp_path, layer, moments[layer]) for layer in LAYERS]
    content = import_published(model, paths)
    assert list(content.moments) == list(LAYERS)
    assert content.key.documents == 100000
    file = tmp_path / "imported.safetensors"
    write_statistics(file, content)
    assert read_statistics_file(file).is_imported
    found = moments_for(model, LAYERS, StatisticsSettings(file=str(file)), cache=tmp_path / "cache")
    for layer in LAYERS:
        assert found[layer].count == moments[layer].count
        assert torch.allclose(found[layer].mean, moments[layer].mean, rtol=1e-6, atol=1e-6)
        assert torch.equal(found[layer].total, found[layer].total.T)
    assert not (tmp_path / "cache").exists()
    # A name that was changed needs the layer.
    other = paths[0].rename(tmp_path / "first.npz")
    assert list(import_published(model, [other], layers=[1]).moments) == [1]
    with raises_code("STATISTICS_PUBLISHED_UNREADABLE", InputError, "first.npz"):
        import_published(model, [other])


def _asymmetric(total: np.ndarray) -> np.ndarray:
    changed = total.copy()
    changed[0, 1] += 0.1 * np.abs(total).max()
    return changed


def _indefinite(total: np.ndarray) -> np.ndarray:
    return (total - 0.1 * np.trace(total) / len(total) * np.eye(len(total))).astype(total.dtype)


def _not_finite(total: np.ndarray) -> np.ndarray:
    changed = total.copy()
    changed[2, 2] = np.nan
    return changed


def _permuted(total: np.ndarray) -> np.ndarray:
    order = np.roll(np.arange(len(total)), 7)
    return total[order][:, order]


WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "asymmetric": _asymmetric,
    "indefinite": _indefinite,
    "not finite": _not_finite,
    "other neurons": _permuted,
    "a mean": lambda total: total / 6000,
    "a centred or inverted matrix": lambda total: np.linalg.inv(total + np.eye(len(total), dtype=total.dtype)),
    "another width": lambda total: total[:-1, :-1],
    "integers": lambda total: total.astype(np.int64),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_are_no_sums_of_this_model_is_refused(
    model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path, wrong: str
) -> None:
    total = WRONG[wrong](moments[1].total.numpy().astype(np.float32))
    path = published(tmp_path, 1, moments[1], **{"mom2.mom2": total})
    with raises_code("STATISTICS_PUBLISHED_WRONG", InputError, path.name):
        import_published(model, [path])


@pytest.mark.parametrize("count", [0, -1, 1.5, np.nan])
def test_a_wrong_count_is_refused(
    model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path, count: float
) -> None:
    path = published(tmp_path, 1, moments[1], **{"mom2.count": count})
    with raises_code("STATISTICS_PUBLISHED_WRONG", InputError, path.name):
        import_published(model, [path])


def test_statistics_of_another_layer_are_refused(
    model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path
) -> None:
    path = published(tmp_path, 3, moments[1])  # those of layer 1
    with raises_code("STATISTICS_PUBLISHED_WRONG", InputError, "correlation"):
        import_published(model, [path])


def test_statistics_of_another_module_are_refused(
    model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path
) -> None:
    path = published(tmp_path, 1, moments[1])
    path = path.rename(tmp_path / "transformer.h.1.mlp.c_fc_float32_mom2_100000.npz")
    with raises_code("STATISTICS_PUBLISHED_WRONG", InputError, "c_fc"):
        import_published(model, [path])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", None])
def test_other_files_are_refused(model: LanguageModel, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz"
    if content is not None:
        path.write_bytes(content)
    with raises_code("STATISTICS_PUBLISHED_UNREADABLE", InputError, path.name):
        import_published(model, [path])


@pytest.mark.parametrize("lacking", ["mom2.mom2", "mom2.count"])
def test_files_without_sums_are_refused(
    model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path, lacking: str
) -> None:
    path = published(tmp_path, 1, moments[1], **{lacking: None})
    with raises_code("STATISTICS_PUBLISHED_UNREADABLE", InputError, lacking):
        import_published(model, [path])


class _Harmful:
    """What would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_executed(model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path) -> None:
    created = tmp_path / "created"
    harmful = np.array([_Harmful(created)], dtype=object)
    path = published(tmp_path, 1, moments[1], **{"mom2.count": harmful})
    with raises_code("STATISTICS_PUBLISHED_UNREADABLE", InputError, path.name):
        import_published(model, [path])
    assert not created.exists()
    path.write_bytes(pickle.dumps(_Harmful(created)))
    with raises_code("STATISTICS_PUBLISHED_UNREADABLE", InputError, path.name):
        import_published(model, [path])
    assert not created.exists()


def test_a_bomb_is_not_unpacked(model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path) -> None:
    path = tmp_path / "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz"
    np.savez_compressed(path, **{"mom2.mom2": np.zeros((3000, 3000)), "mom2.count": 10})
    with raises_code("STATISTICS_PUBLISHED_WRONG", InputError, "bytes"):
        import_published(model, [path])


def test_layers_and_files_must_go_together(
    model: LanguageModel, moments: dict[int, SecondMoment], tmp_path: Path
) -> None:
    path = published(tmp_path, 1, moments[1])
    with raises_code("LAYERS_INVALID", InputError):
        import_published(model, [path], layers=[1, 3])
    with raises_code("LAYERS_INVALID", InputError):
        import_published(model, [path, path])
