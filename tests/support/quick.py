"""The lab's shipped recipe with few steps, for tests of commands that need an edit but not a good one."""

from __future__ import annotations

from pathlib import Path

import errata


def quick_recipe(folder: Path, steps: int = 4, tokens: int = 50_000) -> str:
    """Write the recipe; gives its path. With ten steps the facts are recalled.

    Args:
        tokens: of text for key statistics. Those of 50,000 tokens are shipped for ``lab`` itself; for its copies and
            edited versions they take seconds, and fewer tokens will do.
    """
    text = (Path(errata.__file__).parent / "recipes" / "lab.yaml").read_text(encoding="utf-8")
    assert "steps: 25" in text
    assert "tokens: 50000" in text
    path = folder / "quick.yaml"
    changed = text.replace("steps: 25", f"steps: {steps}").replace("tokens: 50000", f"tokens: {tokens}")
    path.write_text(changed, encoding="utf-8")
    return str(path)
