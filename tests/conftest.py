"""What all tests share. ``errata`` is not imported here: pytest checks its annotations only if it is imported later."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports transformers or tokenizers: no test may wait for a network, and workers fork.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

# The first call into torch is slow and would trip the deadline; a failure seen in CI must be seen at home.
settings.register_profile("errata", deadline=None, derandomize=True, database=None)
settings.load_profile("errata")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data sets: ``ERRATA_TEST_DATA``, or ``../shared/data`` beside the repository."""
    folder = REPOSITORY / os.environ.get("ERRATA_TEST_DATA", "../shared/data")
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set ERRATA_TEST_DATA to the folder that holds it")
    return folder.resolve()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The directory of SmolLM2-135M-Instruct in float32, for tests marked ``real``. A test must not write there.

    It is what ``ERRATA_SMOLLM2`` names, else what ``errata models get smollm2-135m-instruct`` has put into the cache
    (``make test`` runs that).
    """
    if given := os.environ.get("ERRATA_SMOLLM2"):
        folder = Path(given).resolve()
        if not (folder / "config.json").is_file():
            pytest.fail(f"ERRATA_SMOLLM2 names {folder}, which holds no config.json")
        return folder
    from errata.models.loading import source_of
    from errata.models.small_models import small_model

    model = small_model("smollm2-135m-instruct")
    if model.here is None:
        pytest.skip(f"SmolLM2 is not here: errata models get {model.name} (it could not be downloaded, or was not)")
    return Path(source_of(model.name))
