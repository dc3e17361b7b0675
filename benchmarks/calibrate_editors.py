"""How well radii and thresholds of editors that change activations separate, calibrated on facts that are not edited.

    python benchmarks/calibrate_editors.py --model lab
    python benchmarks/calibrate_editors.py --model DIR --held-out counterfact=tuning.json \\
        --facts counterfact=tables.json

For each editor: the calibrated value with its two rates on the held-out facts; and, with that value, the shares of own
prompts, paraphrases and other questions (own, neighbours, unrelated) of the edited facts that get a fact. All but
``elder`` decide by the unedited model, so their edits are trained for one step only. ``tune_editors.py split`` makes
the two files.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from common import markdown_table

from errata.datasets.reading import read_dataset
from errata.editors.calibration import LAB
from errata.editors.registry import make_editor
from errata.facts.fact import Fact
from errata.facts.files import write_facts
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.runs.loading import load_model
from errata.utils.progress import silent

EDITORS = ("grace", "melo", "memoir", "elder")
LAB_SEED = 960


def facts_of(source: str, neighbours: int) -> list[Fact]:
    name, _, path = source.partition("=")
    return [replace(fact, neighbours=fact.neighbours[:neighbours]) for fact in read_dataset(name, path).facts.facts]


def share(values: Sequence[bool]) -> str:
    return f"{100 * sum(values) / len(values):.0f}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--held-out", help="DATASET=FILE; for lab its own")
    parser.add_argument("--facts", help="DATASET=FILE; for lab those of seed 960")
    parser.add_argument("--count", type=int, default=25, help="facts to edit")
    parser.add_argument("--neighbours", type=int, default=4, help="of each fact, at most")
    parser.add_argument("--editors", default=",".join(EDITORS))
    options = parser.parse_args()
    model, rows = load_model(options.model), []
    with TemporaryDirectory() as folder:
        source = LAB
        facts = lab_facts(lab_world(), options.count, seed=LAB_SEED)
        if options.facts:
            source = str(Path(folder) / "held_out.jsonl")
            write_facts(facts_of(options.held_out, options.neighbours), Path(source))
            facts = facts_of(options.facts, options.neighbours)[: options.count]
        for name in options.editors.split(","):
            started = time.process_time()
            changes = {} if name == "elder" else {"steps": 1}
            editor = make_editor(name, model, {**changes, "calibration": source}, silent)
            state = editor.prepared(editor.empty, facts)  # type: ignore[attr-defined]
            seconds = time.process_time() - started
            editor.apply(facts)
            used = editor.view().used
            other = [entry.prompt for fact in facts for entry in (*fact.own, *fact.neighbours, *fact.unrelated)]
            asked = [text for fact in facts for text in fact.paraphrases]
            owners = [fact.id for fact in facts for _ in fact.paraphrases]
            own = zip(facts, used([fact.text for fact in facts]), strict=True)
            found = state.calibration
            cells = [
                f"{100 * found.hit_rate:.0f}",
                f"{100 * found.refusal_rate:.0f}",
                share([fact.id in got for fact, got in own]),
                share([owner in got for owner, got in zip(owners, used(asked), strict=True)]),
                share([not got for got in used(other)]),
            ]
            rows.append((f"`{name}`", f"{found.threshold:.3g}", *cells, f"{seconds:.1f}"))
            print(rows[-1], found, flush=True)
    head = ["editor", "value", "hits, %", "refusals, %", "own, %", "hits, edited, %", "refusals, edited, %", "CPU s"]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
