"""What the cells of a benchmark have in common and no file of it holds: a model's weights, the text for key statistics.
The first cell that reads one notes its digest; later cells must find the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from errata.errors import InputError
from errata.locking import in_turn
from errata.output import write_text
from errata.reading import reason_of

Kind = Literal["weights", "text"]
_CALLED: dict[Kind, str] = {"weights": "the model", "text": "the text for key statistics"}

_REMEDY = "Put it back as it was, or begin anew with another --out"


def pin(bench: Path, kind: Kind, name: str, digest: str) -> None:
    """Note what is found, or compare it with what an earlier cell has found.

    Args:
        bench: the benchmark's directory.
        name: what the grid calls it.
        digest: of what stands behind the name now.

    Raises:
        InputError: if it is not what the benchmark began with; names what differs.
    """
    path = bench / "pinned" / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    with in_turn(path.with_suffix(".lock"), f"the benchmark {bench}"):
        if not path.exists():
            write_text(path, json.dumps({"name": name, "digest": digest}, ensure_ascii=False) + "\n")
    try:
        known = str(json.loads(path.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be used: {reason_of(error)}", remedy=_REMEDY) from error
    if known != digest:
        raise InputError(
            f"{_CALLED[kind]} {name!r} ({kind} {digest[:12]}…) is not what other cells of {bench} began with "
            f"({known[:12]}…)",
            remedy=_REMEDY,
        )
