"""Optional packages: one way to look for them, and the extra that is named has them; the list of fast tests."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from errata.errors import MissingExtraError
from errata.utils.optional import require

from tests.support.longest import LONGEST

ROOT = Path(__file__).resolve().parents[1]


def in_extras() -> dict[str, set[str]]:
    """Each extra's distributions, in their canonical spelling."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        extra: {canonical(re.split(r"[\[<>=~! ;]", entry)[0]) for entry in entries}
        for extra, entries in project["optional-dependencies"].items()
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_feature_names_an_extra_that_has_its_packages() -> None:
    extras, distributions = in_extras(), packages_distributions()
    asked = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        own = "find_spec" in source and "MissingExtraError" in source
        assert own == (file.name == "optional.py"), f"{file}: use errata.utils.optional.require"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                _, extra, *packages = [ast.literal_eval(argument) for argument in node.args]
                asked.append((file.name, extra, packages))
    assert len(asked) >= 10
    for name, extra, packages in asked:
        for package in packages:
            found = distributions.get(package, [package])  # of its own name, if it is not installed
            assert {canonical(each) for each in found} & extras[extra], (name, extra, package)


def test_a_missing_package_is_reported() -> None:
    require("this test", "test", "pytest", "errata")
    with pytest.raises(MissingExtraError, match=r"this test.*errata\[plots\]"):
        require("this test", "plots", "errata", "no_such_package")


def path_of(line: str) -> Path:
    return ROOT / line.partition("::")[0]


def test_the_fast_tier_names_tests_that_exist() -> None:
    """`make test-fast` runs what tests/fast.txt lists; pytest itself refuses names that a file does not have."""
    lines = (ROOT / "tests" / "fast.txt").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(set(lines))
    assert len(lines) > 40
    missing = [line for line in [*lines, *(f"tests/{name}" for name in LONGEST)] if not path_of(line).exists()]
    assert not missing
    assert "@tests/fast.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")
