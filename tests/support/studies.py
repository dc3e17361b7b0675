"""Made-up studies: directories as ``errata analyse`` leaves them, with numbers of no model."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.analysis.findings import Claim, Figure, Finding, Findings, Label, Panel, PlanePoint, Series, mean_row
from errata.analysis.studies import FORMAT, RESULT, ROWS, STUDY, StudyResult, csv_of

KINDS = ("spread", "sqrt-spread", "computed")
METHODS = ("memit", "memit+blue", "alphaedit", "alphaedit+blue")
IDENTITY = {
    "model": "lab",
    "fingerprint": "0123456789abcdef",
    "recipe": {"method": "memit", "layers": [0, 1, 2]},
    "recipes": {"memit+blue": {"method": "memit+blue", "layers": [0, 2]}},
    "settings": {"count": 30, "seeds": [0]},
    "materials": {"0": "0123456789abcdef.json"},
}
COMMAND = "errata analyse made-up --model lab --out runs/analysis/made-up"


def result(name: str = "made-up", findings: Findings | None = None, **about: Any) -> StudyResult:
    """A finished study; ``about`` replaces the usual values."""
    defaults = {
        "title": f"Study {name}",
        "shows": "What nobody measured.",
        "units": "Probability.",
        "source": "nowhere",
        "created": "2026-01-02T03:04:05+00:00",
        "command": COMMAND,
        "versions": {"errata": "0.1.0", "torch": "2.13.0"},
        "identity": {"study": name, **IDENTITY},
        "device": "cpu",
        "dtype": "float32",
        "seconds": 75.0,
    }
    return StudyResult(findings or made_up_findings(), {**defaults, **about})


def made_up_findings() -> Findings:
    """Rows of three kinds over eight layers; claims of all verdicts; figures of all kinds."""
    rows = [row_of(kind, layer) for kind in KINDS for layer in range(8)]
    claims = [
        Claim("Spreading loses.", "holds", "0.31 [0.25, 0.37]"),
        Claim("It loses more further away.", "does not hold", "−0.01 [−0.02, −0.005]"),
        Claim("It loses with every batch.", "undecided", "0.02 [−0.01, 0.05]"),
    ]
    points = [PlanePoint("states", {"layer": 0}, 0.5, 1.5)]
    return Findings(rows, claims, [lines(), mixed(), cloud()], points, {"spread × first layer only": "it is computed"})


def row_of(kind: str, layer: int) -> Finding:
    chance = random.Random(f"{kind}{layer}")
    values = [chance.gauss(0.2 + 0.05 * layer + 0.1 * KINDS.index(kind), 0.1) for _ in range(30)]
    where: dict[str, Label] = {"residual": kind, "layer": layer}
    return mean_row("contribution", "probability", where, values)


def line(label: str, xs: tuple[Label, ...], scale: float = 1.0) -> Series:
    chance = random.Random(label)
    y = [scale * (0.2 + 0.6 * chance.random()) for _ in xs]
    return Series(label, xs, y, [0.8 * value for value in y], [1.15 * value for value in y])


def lines() -> Figure:
    """One panel with lines over layers."""
    series = [line(kind, tuple(range(8))) for kind in KINDS]
    return Figure("lines", "Lines over layers.", [Panel("Lines", "layer", "P(o) (probability)", series)])


def mixed() -> Figure:
    """Five panels: lines on logarithmic axes, long lines, bars, bars with long names, lines over names."""
    names = ("efficacy_accuracy", "generalisation_accuracy", "untouched_accuracy", "perplexity_ratio")
    return Figure(
        "mixed",
        "All kinds beside each other.",
        [
            Panel("‖ΔW‖ of batches, beside its bound", "facts in a batch", "‖ΔW_computed − ΔW_spread‖ (Frobenius norm)",
                  [line(kind, (1, 10, 100, 1000), 10.0 ** (3 * place)) for place, kind in enumerate(KINDS)],
                  log_x=True, log_y=True),
            Panel("Singular values of the total change", "index of the singular value", "singular value",
                  [Series(method, range(1, 60), [40 / (x + 3 * place) for x in range(1, 60)],
                          [35 / (x + 3 * place) for x in range(1, 60)], [44 / (x + 3 * place) for x in range(1, 60)])
                   for place, method in enumerate(METHODS)], log_y=True),
            Panel("Quality with one layer", "metric", "accuracy (share of facts)",
                  [line(kind, names) for kind in ("spread", "computed")], kind="bars"),
            Panel("Steps until convergence at each critical layer, after the earlier ones were written", "layer",
                  "optimisation steps", [line(method, (3, 4, 5), 25) for method in METHODS], kind="bars"),
            Panel("Differences", "layer", "difference of accuracies (percentage points)",
                  [Series("computed", (13, 14, 15, 16, 17), (-3e-5, 2e-5, 4e-5, 1e-5, 0.0))]),
        ],
    )  # fmt: skip


def cloud(count: int = 1500) -> Figure:
    """Two panels with clouds: few points, and more than are kept as vectors."""

    def some(label: str, many: int, middle: float) -> Series:
        chance = random.Random(f"{label}{many}")
        return Series(
            label, [chance.gauss(middle, 1) for _ in range(many)], [chance.gauss(middle, 2) for _ in range(many)]
        )

    labels = {"before": 0.0, "memit": 2.0, "memit+blue": 1.0}
    return Figure(
        "cloud",
        "Hidden states in two dimensions.",
        [
            Panel("Few", "first principal component", "second principal component",
                  [some(label, 20, middle) for label, middle in labels.items()], kind="points"),
            Panel("Many", "first principal component", "second principal component",
                  [some(label, count, middle) for label, middle in labels.items()], kind="points"),
        ],
    )  # fmt: skip


def write_study(directory: Path, found: StudyResult, *, finished: bool = True) -> Path:
    """Write a study as ``run_study`` does; gives the directory."""
    (directory / "pieces").mkdir(parents=True)
    record: Mapping[str, Any] = {
        "format": FORMAT, **{key: found.about[key] for key in ("created", "command", "versions", "identity")}
    }  # fmt: skip
    (directory / STUDY).write_text(json.dumps(record), encoding="utf-8")
    if finished:
        whole = {"format": FORMAT, "findings": found.findings.to_record(), "about": found.about}
        (directory / RESULT).write_text(json.dumps(whole), encoding="utf-8")
        (directory / ROWS).write_text(csv_of(found.findings), encoding="utf-8")
    return directory
