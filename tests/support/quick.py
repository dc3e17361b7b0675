"""The lab's shipped recipe with few steps, for tests of commands that need an edit but not a good one."""

from __future__ import annotations

from pathlib import Path

import errata


def quick_recipe(folder: Path, steps: int = 4) -> str:
    """Write the recipe; gives its path. With ten steps the facts are recalled."""
    text = (Path(errata.__file__).parent / "recipes" / "lab.yaml").read_text(encoding="utf-8")
    assert "steps: 25" in text
    path = folder / "quick.yaml"
    path.write_text(text.replace("steps: 25", f"steps: {steps}"), encoding="utf-8")
    return str(path)
