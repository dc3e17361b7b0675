"""What tests of studies share."""

from __future__ import annotations

import pytest

from errata.analysis import findings as findings_module


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts' rule, but for how many values it takes."""
    monkeypatch.setattr(findings_module, "ENOUGH", 2)
