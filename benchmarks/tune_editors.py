"""Try settings of editors on facts that no table uses: what took, what it did to other answers.

A try is an editor with settings over those of the model's recipe, in YAML's flow style:

    python benchmarks/tune_editors.py --model lab "ultra" "lora {learning_rate: 1.0e-4}" --out tries.jsonl
    python benchmarks/tune_editors.py --model DIR --facts counterfact=tuning.json --count 50 --batch-size 25 \\
        --untouched known.jsonl --neighbours 4 "ft {learning_rate: 0.003, layer: 6}" --out tries.jsonl

Each try edits all facts, in batches of ``--batch-size`` unless it sets ``batch_size``, measures, and removes the edit.
``defaults`` instead of ``{…}`` ignores the recipe. Tries that are in the file already are skipped. ``--table`` prints
the file as a table. ``split FILE OUT`` cuts a JSON file of records into 60 for tuning (``OUT/tuning.json``) and the
rest for tables (``OUT/tables.json``).

Facts of ``lab`` are those of seed 960; seeds from 900 on are for tuning. Control questions are those among the given
ones (for ``lab``: 300 about other people) that the unedited model answers correctly.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from common import lab_evaluation_set, markdown_table

from errata.benchmark.sequence import EvaluationSet
from errata.benchmark.trials import Baseline, Candidate, measure_baseline, run_trial
from errata.cli.bench_plan import default_prose
from errata.cli.recipe_options import read_settings_for
from errata.datasets.reading import read_dataset
from errata.editors.contract import KnowledgeEditor
from errata.editors.registry import changed_settings, editor_named, make_editor
from errata.editors.table import EDITOR_ROWS, EditorSettings
from errata.facts.fact import Question
from errata.models.language_model import LanguageModel
from errata.results.metrics import Metric
from errata.runs.loading import load_model
from errata.utils.progress import Report

LAB_SEED = 960
SPLIT_SEED = 15
TUNING = 60
TEXTS = 20  # for split perplexity
COLUMNS = {
    "took, %": Metric.EFFICACY_ACCURACY,
    "other wordings, %": Metric.GENERALISATION_ACCURACY,
    "neighbours, %": None,  # the old answer is likelier, or for lab (which knows them all) right
    "same subject, %": Metric.SAME_SUBJECT_ACCURACY,
    "known facts still right, %": Metric.UNTOUCHED_ACCURACY,
    "split perplexity": Metric.SPLIT_PERPLEXITY_RATIO,
}


def split(source: Path, out: Path) -> None:
    """Write ``tuning.json`` and ``tables.json``, disjoint parts of the same form."""
    records = json.loads(source.read_text(encoding="utf-8"))
    random.Random(SPLIT_SEED).shuffle(records)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("tuning.json", records[:TUNING]), ("tables.json", records[TUNING:])):
        (out / name).write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")
        print(f"{out / name}: {len(part)} records")


def evaluation_set_of(options: argparse.Namespace) -> EvaluationSet:
    if options.model == "lab":
        found = lab_evaluation_set(options.count, LAB_SEED)
        facts, untouched, prose = found.facts, found.untouched, default_prose(lab=True)
    else:
        name, _, path = options.facts.partition("=")
        facts = read_dataset(name, path).facts.facts[: options.count]
        lines = [json.loads(line) for line in options.untouched.read_text(encoding="utf-8").splitlines()]
        untouched = [(str(place), Question(line["prompt"], line["answer"])) for place, line in enumerate(lines)]
        prose = default_prose(lab=False)
    facts = [replace(fact, neighbours=fact.neighbours[: options.neighbours]) for fact in facts]
    return EvaluationSet(facts, untouched, prose[:TEXTS])


def prepared(model: LanguageModel, options: argparse.Namespace) -> tuple[EvaluationSet, Baseline]:
    """The evaluation set with known control questions, and the unedited model's answers."""
    everything = evaluation_set_of(options)
    before = measure_baseline(model, replace(everything, facts=everything.facts[:1], prose=()))
    right = {
        record.prompt
        for record in before.result.records
        if record.metric == Metric.UNTOUCHED_ACCURACY and record.value == 1
    }
    known = [(name, question) for name, question in everything.untouched if question.prompt in right][: options.known]
    chosen = replace(everything, untouched=known)
    return chosen, measure_baseline(model, chosen)


def settings_of(text: str, options: argparse.Namespace) -> tuple[str, EditorSettings]:
    """The editor and the settings of a try."""
    name, _, rest = text.partition(" ")
    plain = rest.startswith("defaults")
    changes = yaml.safe_load(rest.removeprefix("defaults")) or {}
    kind = editor_named(name).settings
    base = kind() if plain else read_settings_for(name, options.model, None)
    assert isinstance(base, EditorSettings)
    return name, changed_settings(name, base, {"batch_size": options.batch_size, **changes})


def candidate_of(name: str, settings: EditorSettings) -> Candidate:
    record = settings.model_dump(mode="json")

    def make(model: LanguageModel, report: Report) -> KnowledgeEditor:
        return make_editor(name, model, record, report)

    where = next(row.where for row in EDITOR_ROWS if row.name == name)
    return Candidate(name, where, make, record)


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def key_of(text: str, options: argparse.Namespace) -> list[Any]:
    return [text, options.model, options.facts, options.count, options.batch_size, options.neighbours, options.known]


def shown(line: dict[str, Any]) -> list[str]:
    """A row of the table."""
    cells = [line["try"]]
    for column, metric in COLUMNS.items():
        if metric is None:
            metric = Metric.SPECIFICITY_ACCURACY if line["key"][1] == "lab" else Metric.SPECIFICITY_SUCCESS
        found = line["numbers"].get(metric)
        value = None if found is None else found["mean"]
        if value is None:
            cells.append("–")
        else:
            cells.append(f"× {value:.4g}" if column == "split perplexity" else f"{100 * value:.0f}")
    return [*cells, f"{line['seconds_per_fact']:.2f}", line["failure"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tries", nargs="*")
    parser.add_argument("--model", default="lab")
    parser.add_argument("--facts", default="", help="DATASET=FILE")
    parser.add_argument("--untouched", type=Path, help="JSON lines with prompt and answer")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--neighbours", type=int, default=5, help="of each fact, at most")
    parser.add_argument("--known", type=int, default=60, help="control questions, at most")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.tries[:1] == ["split"]:
        split(*map(Path, options.tries[1:]))
        return
    done = {json.dumps(line["key"]) for line in lines_of(options.out)} if options.out else set()
    tries = [text for text in options.tries if json.dumps(key_of(text, options)) not in done]
    if tries:
        run(tries, options)
    if options.table:
        head = ["editor, setting", *COLUMNS, "seconds a fact", ""]
        print(markdown_table(head, [shown(line) for line in lines_of(options.out)]))


def run(tries: Sequence[str], options: argparse.Namespace) -> None:
    chosen = [settings_of(text, options) for text in tries]  # invalid ones fail before anything is computed
    model = load_model(options.model)
    evaluation_set, baseline = prepared(model, options)
    print(f"{len(evaluation_set.facts)} facts, {len(evaluation_set.untouched)} known answers", file=sys.stderr)
    for text, (name, settings) in zip(tries, chosen, strict=True):
        started = time.process_time()
        trial = run_trial(model, candidate_of(name, settings), evaluation_set, baseline)
        line = {
            "key": key_of(text, options), "try": text, "settings": settings.model_dump(mode="json"),
            "numbers": {metric: asdict(found) for metric, found in trial.numbers.items()},
            "seconds_per_fact": trial.seconds_per_fact, "failure": trial.failure,
            "cpu_seconds": time.process_time() - started,
        }  # fmt: skip
        print(" | ".join(shown(line)), f"{line['cpu_seconds']:.0f} s", flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
