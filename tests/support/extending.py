"""The Python blocks of docs/extending.md, executed in order as one module."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@cache
def extending_page() -> dict[str, Any]:
    """The names that the blocks define."""
    module = ModuleType("extending_page")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        exec(compile(block, str(PAGE), "exec"), vars(module))
    return vars(module)
