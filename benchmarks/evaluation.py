"""Speed of evaluating the embedded model: in batches, compared with one record and with one fact at a time.

All three run in this process with the same threads on the same facts, by the same functions, and with a KV cache: one
record (prompt) at a time means batches of one row, one fact at a time means one call per fact, whose prompts form a
batch. The results must be identical; otherwise the script stops.

    python benchmarks/evaluation.py --facts 100
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from errata.evaluation.free_running import FreeSettings, evaluate_free
from errata.evaluation.recall import evaluate_facts
from errata.evaluation.texts import TextSettings, evaluate_fluency, write_texts
from errata.facts.fact import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import CACHE_BUDGET, TOKEN_BUDGET, LanguageModel
from errata.results.records import Record
from errata.utils.provenance import software_versions

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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=100, help="number of facts (100)")
    parser.add_argument("--threads", type=int, default=2, help="threads (2)")
    parser.add_argument("--repeats", type=int, default=2, help="repetitions; the fastest counts (2)")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time of this process: for a busy machine")
    parser.add_argument("--seed", type=int, default=0, help="seed of the facts (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
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
