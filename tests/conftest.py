"""What all tests share. No module of ``errata`` is imported at the top: its annotations would not be checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import runtime_checkable

# Before anything imports transformers or tokenizers: no test may wait for a network, and workers fork.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from pydantic import ValidationInfo

import tests.support.checking  # noqa: F401  (jaxtyping finds the checker by its name)
from tests.support.fuzzing import examples
from tests.support.longest import LONGEST

REPOSITORY = Path(__file__).resolve().parents[1]


def modules_with_shapes() -> list[str]:
    """The modules of errata that annotate the shapes of arrays."""
    (package,) = find_spec("errata").submodule_search_locations  # type: ignore[union-attr, misc]
    files = [path for path in Path(package).rglob("*.py") if "from jaxtyping import" in path.read_text("utf-8")]
    parts = [path.relative_to(Path(package).parent).with_suffix("").parts for path in files]
    return [".".join(names).removesuffix(".__init__") for names in parts]


# Annotations are checked at each call while tests run: `shapes` those of modules with shapes, which mypy cannot check;
# `all` (slower) those of every module. Two names of the checker, because jaxtyping caches what it has compiled by the
# name, also of modules that it leaves alone.
CHECKED: dict[str, tuple[Callable[[], list[str]], str]] = {
    "none": (list, "tests.support.checking.checked_everywhere"),
    "shapes": (modules_with_shapes, "tests.support.checking.checked"),
    "all": (lambda: ["errata"], "tests.support.checking.checked_everywhere"),
}
runtime_checkable(ValidationInfo)  # a protocol of pydantic's that validators name; beartype must be able to check it
modules, checker = CHECKED[os.environ.get("ERRATA_CHECKED", "shapes")]
install_import_hook(modules(), checker)

# The first call into torch is slow and would trip the deadline; a failure seen in CI must be seen at home.
settings.register_profile("errata", deadline=None, derandomize=True, database=None, max_examples=examples(100))
settings.load_profile("errata")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    place = {REPOSITORY / "tests" / name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


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
