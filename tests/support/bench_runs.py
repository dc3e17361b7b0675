"""Made-up runs of a benchmark: directories as ``errata bench`` leaves them, with numbers of no model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.results.records import Row, When, write_results

METHODS = ("memit", "memit+blue [layers=4,5]", "alphaedit", "alphaedit+blue")
# What each method keeps of what it had taken, by the end.
_KEPT = (0.55, 0.92, 0.78, 0.97)
_SHARES = (
    "efficacy_accuracy", "efficacy_success", "generalisation_accuracy", "portability_accuracy", "specificity_accuracy",
    "same_subject_accuracy", "untouched_accuracy", "unrelated_agreement", "free_efficacy_contained",
    "free_efficacy_exact", "free_generalisation_contained", "free_locality_neighbours", "free_locality_unrelated",
    "free_locality_untouched", "reversal_accuracy",
)  # fmt: skip
_BEFORE = {"specificity_accuracy": 0.93, "same_subject_accuracy": 0.95, "untouched_accuracy": 0.96}
_OTHERS = (
    "specificity_accuracy",
    "same_subject_accuracy",
    "untouched_accuracy",
    "unrelated_agreement",
    "free_locality_neighbours",
    "free_locality_unrelated",
    "free_locality_untouched",
)


@dataclass(frozen=True, slots=True)
class MadeUp:
    """What a made-up run is of; ``fact_texts`` are (id, prompt, new answer, old answer), used again and again."""

    methods: Sequence[str] = METHODS
    data: Sequence[str] = ("counterfact",)
    model: str = "lab"
    seeds: int = 3
    facts: int = 200
    batch: int = 20
    fact_texts: Sequence[tuple[str, str, str, str]] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


def row(method: str, metric: str, when: When, mean: float, *, n: int = 200, **more: Any) -> Row:
    """A row with the interval of a share over ``n`` facts."""
    half = 1.96 * math.sqrt(max(mean * (1 - mean), 0.0004) / n) if 0 <= mean <= 1 else 0.02 * mean
    low, high = (max(0.0, mean - half), min(1.0, mean + half)) if 0 <= mean <= 1 else (mean - half, mean + half)
    return Row(method=method, metric=metric, when=when, mean=mean, low=low, high=high, n=n, **more)


def write_run(directory: Path, made_up: MadeUp | None = None) -> Path:
    """Write ``summary.json``, ``grid.json`` and ``records.parquet``; gives the directory."""
    made_up = made_up or MadeUp()
    directory.mkdir(parents=True, exist_ok=True)
    cells = [
        {"id": f"{made_up.model}-{data}-{method}-{seed}", "model": made_up.model, "data": data, "method": method,
         "seed": seed, "status": "done", "seconds": 312.5 + 10 * seed, "failure": None, "collapsed_at": None}
        for data in made_up.data for method in made_up.methods for seed in range(made_up.seeds)
    ]  # fmt: skip
    about = {
        "command": "errata bench --model lab --data counterfact --methods " + ",".join(made_up.methods),
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"errata": "0.1.0", "torch": "2.13.0"},
        "grid": {"models": [made_up.model], "data": list(made_up.data), "seeds": made_up.seeds},
        "recipes": {method: {"method": method, "layers": [4, 5], "ridge": 0.1} for method in made_up.methods},
        "absent": {made_up.data[0]: {"consistency": "no --references were given"}},
        "cells": cells,
        "notes": [],
        **made_up.about,
    }
    write_results(directory / "summary.json", rows_of(made_up), about)
    (directory / "grid.json").write_text(json.dumps(about["grid"]), encoding="utf-8")
    write_records(directory / "records.parquet", records_of(made_up, cells))
    return directory


def rows_of(made_up: MadeUp) -> list[Row]:
    """Before, right after, during and after, of every method on every data set."""
    rows = []
    for data in made_up.data:
        where = {"model": made_up.model, "data": data}
        for index, method in enumerate(made_up.methods):
            kept, n = _KEPT[index % len(_KEPT)], made_up.facts
            for place, metric in enumerate(_SHARES):
                before = _BEFORE.get(metric, 0.0)
                if metric in _BEFORE or metric.startswith("efficacy"):
                    rows.append(row(method, metric, "before", before, n=n, **where))
                high = 0.99 - 0.03 * place if metric not in _OTHERS else 0.94 - 0.01 * index
                rows.append(row(method, metric, "right_after", high, n=n, **where))
                rows.append(row(method, metric, "after", high * kept, n=n, edits=made_up.facts, **where))
            rows.append(Row(method=method, metric="perplexity_ratio", when="before", mean=1.0, low=1.0, high=1.0, n=64,
                            model=made_up.model, data=data))  # fmt: skip
            rows.append(row(method, "perplexity_ratio", "after", 1 + 2.5 * (1 - kept), n=64, **where))
            rows.append(row(method, "drift_kl_neighbours", "after", 1.2 * (1 - kept), n=n, **where))
            rows.append(row(method, "fluency", "after", 590 + 10 * kept, n=n, **where))
            rows.append(row(method, "ability:hellaswag:acc", "after", 0.3 + 0.1 * kept, n=100, **where))
            rows.append(row(method, "something_new", "after", 12.5 + index, n=n, **where))
            seconds = row(method, "seconds_per_edit", "after", 0.41 + 0.3 * index, n=n, **where)
            rows.append(Row(**{**seconds, "low": None, "high": None}))
            for edits in range(made_up.batch, made_up.facts + 1, made_up.batch):
                done = edits / made_up.facts
                for metric, mean in (
                    ("efficacy_accuracy_first", 0.99 * (1 - done * (1 - kept) * 1.2)),
                    ("efficacy_accuracy_last", 0.99 - 0.05 * done * (1 - kept)),
                    ("efficacy_accuracy", 0.99 * (1 - done * (1 - kept))),
                    ("untouched_accuracy", 0.96 * (1 - 0.6 * done * (1 - kept))),
                    ("perplexity_ratio", 1 + 2.5 * done**2 * (1 - kept)),
                    ("weight_norm_ratio", 0.02 + 0.2 * done * (1 - 0.5 * kept)),
                ):
                    rows.append(row(method, metric, "during", mean, n=64, edits=edits, **where))
    return rows


def records_of(made_up: MadeUp, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per prompt, of every cell that was done."""
    chance = random.Random(0)
    texts = made_up.fact_texts or [
        (f"fact-{number}", f"The capital of Land {number} is", f"New Town {number}", f"Old Town {number}")
        for number in range(made_up.facts)
    ]
    lines = []
    for cell in cells:
        kept = _KEPT[made_up.methods.index(cell["method"]) % len(_KEPT)]
        where = {key: cell[key] for key in ("model", "data", "method", "seed")} | {"cell": cell["id"]}
        for number in range(made_up.facts):
            fact, prompt, new, old = texts[number % len(texts)]
            fact = fact if number < len(texts) else f"{fact}/{number}"
            taken = chance.random() < 0.97
            stays = taken and chance.random() < kept
            moments = (("before", 0, False), ("right_after", number, taken), ("after", made_up.facts, stays))
            for metric, asked in (
                ("efficacy_accuracy", prompt),
                ("efficacy_success", prompt),
                ("generalisation_accuracy", f"Everybody knows: {prompt}"),
            ):
                about = {**where, "fact": fact, "metric": metric, "prompt": asked, "expected": new}
                for when, edits, says in moments:
                    lines.append(about | _answer(when, edits, says, new if says else old))
        for number in range(made_up.facts // 10):
            about = {**where, "fact": f"other-{number}", "metric": "untouched_accuracy"}
            about |= {"prompt": f"River {number} flows into", "expected": "the sea"}
            still = chance.random() < kept
            lines.append(about | _answer("before", 0, True, "the sea"))
            lines.append(about | _answer("after", made_up.facts, still, "the sea" if still else "a lake"))
    return lines


def _answer(when: str, edits: int, right: bool, said: str) -> dict[str, Any]:
    return {"when": when, "edits": edits, "value": float(right), "said": said}


def write_records(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write ``records.parquet``."""
    import pyarrow  # slow, so not while tests are collected
    import pyarrow.parquet

    schema = pyarrow.schema(
        [(name, pyarrow.string()) for name in ("cell", "model", "data", "method")]
        + [("seed", pyarrow.int64()), ("when", pyarrow.string()), ("edits", pyarrow.int64())]
        + [(name, pyarrow.string()) for name in ("fact", "metric", "prompt", "expected")]
        + [("value", pyarrow.float64()), ("said", pyarrow.string())]
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(lines), schema=schema), path)
