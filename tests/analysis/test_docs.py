"""What docs/analysis.md says of each study is what the study says of itself."""

from __future__ import annotations

from pathlib import Path

from errata.analysis.findings import VERDICT_RULE
from errata.analysis.studies import STUDIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"


def test_every_study_is_documented_with_what_it_shows_its_units_and_its_source() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert VERDICT_RULE in page
    for study in STUDIES.values():
        assert f"## {study.name}: " in page
        for text in (study.shows, study.units, study.source):
            assert " ".join(text.split()) in page, study.name
        for option in study.uses:
            assert f"`--{option.replace('measures', 'measure').replace('_', '-')}`" in page
