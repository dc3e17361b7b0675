"""Speed of evaluating the embedded model: in batches, compared with one record and with one fact at a time.

All three run in this process with the same threads on the same facts, by the same functions, and with a KV cache: one
record (prompt) at a time means batches of one row, one fact at a time means one call per fact, whose prompts form a
batch. The results must be identical; otherwise the script stops.

    python benchmarks/evaluation.py --facts 100

With ``--counterfact FILE`` recall is compared with the published evaluation instead (``tests/reference/recall.py``: one
fact at a time, all its prompts with both answers in one batch, logits at every position), on a real model:

    python benchmarks/evaluation.py --counterfact counterfact.json --model smollm2-135m-instruct --facts 100
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from errata.datasets.reading import read_dataset
from errata.evaluation.free_running import FreeSettings, evaluate_free
from errata.evaluation.recall import evaluate_facts
from errata.evaluation.texts import TextSettings, evaluate_fluency, write_texts
from errata.facts.fact import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import CACHE_BUDGET, TOKEN_BUDGET, LanguageModel
from errata.models.likelihood import plan_of
from errata.models.prompts import Pair, complete
from errata.results.records import Record
from errata.utils.provenance import software_versions

# tests/reference is not part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reference import recall as published

Clock = Callable[[], float]
Evaluation = Callable[[Sequence[Fact], int | None], list[Record]]
"""Of facts, with a budget of padded tokens for one batch; None is the default."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for all facts; the fastest of the repetitions."""

    what: str
    records: int
    batched: float
    one_fact: float
    one_record: float

    @property
    def over_facts(self) -> float:
        return self.one_fact / self.batched

    @property
    def over_records(self) -> float:
        return self.one_record / self.batched


def fastest(work: Callable[[], list[Record]], repeats: int, clock: Clock) -> tuple[list[Record], float]:
    seconds = []
    records: list[Record] = []
    for _ in range(repeats):
        started = clock()
        records = work()
        seconds.append(clock() - started)
    return records, min(seconds)


def measure(what: str, evaluation: Evaluation, facts: Sequence[Fact], repeats: int, clock: Clock) -> Timing:
    evaluation(facts[:2], None)  # warm-up
    records, batched = fastest(lambda: evaluation(facts, None), repeats, clock)
    alone, one_fact = fastest(lambda: [record for fact in facts for record in evaluation([fact], None)], repeats, clock)
    single, one_record = fastest(lambda: evaluation(facts, 1), repeats, clock)
    for other in (alone, single):
        if sorted(map(str, other)) != sorted(map(str, records)):
            raise SystemExit(f"{what}: batches change the results")
    return Timing(what, len(records), batched, one_fact, one_record)


def evaluations(model: LanguageModel) -> dict[str, Evaluation]:
    free = FreeSettings(contexts=("bare",))

    def written(facts: Sequence[Fact], budget: int | None) -> list[Record]:
        return evaluate_fluency(write_texts(model, facts, TextSettings(), token_budget=budget or CACHE_BUDGET))

    return {
        "recall": lambda facts, budget: evaluate_facts(model, facts, token_budget=budget or TOKEN_BUDGET),
        "free running": lambda facts, budget: evaluate_free(model, facts, free, token_budget=budget or CACHE_BUDGET),
        "fluency": written,
    }


def compare_with_published(options: argparse.Namespace) -> None:
    """Time recall and the published evaluation of the same facts; stops if a value differs."""
    model = LanguageModel.load(options.model, dtype=torch.float32, device="cpu")
    facts = read_dataset("counterfact", options.counterfact).facts.facts[: options.facts]
    clock = time.process_time if options.cpu_time else time.perf_counter
    evaluate_facts(model, facts[:1])
    published.evaluate(model, facts[0])
    began = clock()
    records = evaluate_facts(model, facts)
    ours = clock() - began
    began = clock()
    theirs = [published.evaluate(model, fact) for fact in facts]
    seconds = clock() - began
    ours_by_kind: dict[str, list[float]] = defaultdict(list)
    for record in records:
        ours_by_kind[record.metric].append(record.value)
    theirs_by_kind: dict[str, list[float]] = defaultdict(list)
    for fact, (found, _) in zip(facts, theirs, strict=True):
        for prompt, answered in found.items():
            near = prompt != fact.text and prompt not in fact.paraphrases
            kind = "specificity" if near else "efficacy" if prompt == fact.text else "generalisation"
            better = answered.old < answered.new if near else answered.new < answered.old
            theirs_by_kind[f"{kind}_success"].append(float(better))
            theirs_by_kind[f"{kind}_accuracy"].append(float(answered.correct))
    for metric, values in theirs_by_kind.items():
        if values != ours_by_kind[metric]:
            raise SystemExit(f"{metric}: errata's values differ from the published evaluation's")
    pairs = list(dict.fromkeys(pair for fact in facts for pair in pairs_of(fact)))
    rows = plan_of(pairs, complete(model.tokenizer, pairs)).rows
    read = sum(count for _, count in theirs)
    print(
        f"{options.model}, {len(facts)} facts, {torch.get_num_threads()} threads, {len(records)} equal values: "
        f"published {seconds:.1f} s ({read:,} tokens with padding, the head at all of them), errata {ours:.1f} s "
        f"({sum(map(len, rows)):,} tokens, the head where an answer is read): {seconds / ours:.1f} ×"
    )


def pairs_of(fact: Fact) -> list[Pair]:
    """All prompts with both answers."""
    prompts = [fact.text, *fact.paraphrases, *(near.prompt for near in fact.neighbours)]
    return [fact.pair(answer, prompt) for prompt in prompts for answer in (fact.target, str(fact.old))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=100, help="number of facts (100)")
    parser.add_argument("--threads", type=int, default=2, help="threads (2)")
    parser.add_argument("--repeats", type=int, default=2, help="repetitions; the fastest counts (2)")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time of this process: for a busy machine")
    parser.add_argument("--seed", type=int, default=0, help="seed of the facts (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to this file")
    parser.add_argument("--counterfact", type=Path, metavar="FILE", help="compare with the published evaluation")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="for --counterfact")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.counterfact is not None:
        compare_with_published(options)
        return
    model = LanguageModel.load("lab", dtype=torch.float32, device="cpu")
    facts = [
        replace(fact, generation=(fact.text,)) for fact in lab_facts(lab_world(), options.facts, seed=options.seed)
    ]
    clock = time.process_time if options.cpu_time else time.perf_counter
    measurements = [
        measure(what, evaluation, facts, options.repeats, clock) for what, evaluation in evaluations(model).items()
    ]
    print(
        f"{options.facts} facts of the lab, {torch.get_num_threads()} threads, fastest of {options.repeats}, "
        f"{'CPU' if options.cpu_time else 'wall'} time"
    )
    print(
        f"{'':<14}{'records':>9}{'batched (s)':>13}{'one fact (s)':>16}{'ratio':>8}{'one record (s)':>16}{'ratio':>8}"
    )
    for row in measurements:
        print(
            f"{row.what:<14}{row.records:>9}{row.batched:>13.3f}{row.one_fact:>16.3f}{row.over_facts:>7.1f}×"
            f"{row.one_record:>16.3f}{row.over_records:>7.1f}×"
        )
    if options.json is not None:
        whole = {
            "facts": options.facts,
            "threads": options.threads,
            "cpu_time": options.cpu_time,
            "versions": software_versions(),
            "measurements": [
                {**asdict(row), "over_facts": row.over_facts, "over_records": row.over_records} for row in measurements
            ],
        }
        options.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
