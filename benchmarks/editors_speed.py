"""Speed of editors: how fast they learn compared with the plain published loops, and what they add to a query.

*Learning*: seconds to edit all facts, beside the plain loop (``editors_plain.py``: one fact a forward pass, the whole
model, nothing remembered). The plain loop edits fewer facts; its time is scaled by the number of evaluations of a
fact's loss. Both use the editor's default settings, float32 and the same threads, each in a process of its own whose
peak memory is reported. The losses of the plain loop's facts after both edits must agree, or the script fails.

*Queries*: questions about things that were not edited, asked of the model and of the edited model in turns, in one
process. A prompt is one forward pass without a cache, a token one of a text that is generated with a KV cache. Texts
must be equal. For comparison, the same for prompts of edited facts, which an editor may change.

    python benchmarks/editors_speed.py             SmolLM2, a hundred facts
    python benchmarks/editors_speed.py --quick
    python benchmarks/editors_speed.py --model lab --facts 20 --editors grace,retrieval
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from common import markdown_table, write_json

# tests/reference is not part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import editors_plain as plain

from errata.editors.contract import Answerer, KnowledgeEditor
from errata.editors.hook_editor import TrainingRows
from errata.editors.registry import make_editor
from errata.facts.fact import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.models.language_model import LanguageModel
from errata.models.row_replay import RowReplay
from errata.utils.progress import silent
from errata.utils.provenance import software_versions

LIMIT = 1.1  # of the time of a query that is not changed, in units of the unedited model's
RATIO = 5.0  # least ratio to a plain loop
TOLERANCE = 0.02  # of the loss of a fact after both edits, in nats


@dataclass(frozen=True, slots=True)
class Case:
    """How an editor is measured.

    Attributes:
        plain: its plain loop; None: only queries are measured.
        reference: the number of facts of the plain loop, as a divisor of ``--reference-facts``: some are slow.
        queries: whether it acts at queries; editors of weights add nothing to them.
        settings: other than the defaults: where only queries are measured, training ends after a step.
    """

    plain: Callable[[Any, Sequence[Fact]], plain.LossOf] | None = None
    divisor: int = 1
    queries: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "grace": Case(plain.grace),
    "elder": Case(plain.elder, divisor=2),
    "ft_bf": Case(plain.ft_bf, queries=False),
    "lora": Case(plain.lora, divisor=2, queries=False),
    "ultra": Case(plain.ultra, queries=False),
    "retrieval": Case(),
    "melo": Case(settings={"steps": 1}),
    "memoir": Case(settings={"steps": 1}),
    "t_patcher": Case(settings={"steps": 1}),
}


# Measurements, each in a process of its own


@dataclass(frozen=True, slots=True)
class Learning:
    """Of one editor or plain loop.

    Attributes:
        seconds: for all of its facts.
        evaluations: of the loss of a fact with its gradient.
        losses: after the edit, −log P per token of each of the plain loop's facts.
        memory: peak of the process, in MiB.
    """

    seconds: float
    evaluations: int
    losses: list[float]
    memory: float


@dataclass(frozen=True, slots=True)
class Queries:
    """Milliseconds, medians: of the model, and of the edited model; and the median of their ratios.

    Attributes:
        changed: how many of the prompts the editor acts on.
    """

    model: float
    edited: float
    ratio: float
    changed: int


Clock: TypeAlias = Callable[[], float]


def learning(
    model: LanguageModel, name: str, facts: Sequence[Fact], count: int, clock: Clock
) -> tuple[Learning, KnowledgeEditor]:
    """Edit ``facts`` and report; then, in the model as it was, the first ``count`` alone for their losses."""
    settings = CASES[name].settings
    warm = make_editor(name, model, settings, silent)
    warm.remove(warm.apply(facts[:1]))
    editor = make_editor(name, model, settings, silent)
    with counting() as evaluations:
        started = clock()
        edit = editor.apply(facts)
        seconds = clock() - started
    memory = peak()
    losses: list[float] = []
    if CASES[name].plain is not None:
        if count < len(facts):
            editor.remove(edit)
            few = make_editor(name, model, settings, silent)
            other = few.apply(facts[:count])
        answerer = few.view() if count < len(facts) else editor.view()
        losses = [-score.log_probability for score in answerer.score([fact.pair(fact.target) for fact in facts[:count]])]
        if count < len(facts):
            few.remove(other)
            editor.restore(edit)
    return Learning(seconds, evaluations[0], losses, memory), editor


def plain_learning(model: LanguageModel, name: str, facts: Sequence[Fact], clock: Clock) -> Learning:
    """The plain loop on ``facts``."""
    loop = CASES[name].plain
    assert loop is not None
    make: Any = make_editor
    loop(make(name, model, {"steps": 1} if "steps" in default_settings(name) else {}, silent), facts[:1])
    with counting_passes(model) as passes:
        started = clock()
        loss_of = loop(make(name, model, {}, silent), facts)
        seconds = clock() - started
    memory = peak()
    with torch.no_grad():
        return Learning(seconds, passes[0], [float(loss_of(fact)) for fact in facts], memory)


@contextmanager
def counting() -> Iterator[list[int]]:
    """Counts the rows of which errata's editors evaluate the loss."""
    count = [0]
    with ExitStack() as stack:
        for kind, method, place in ((TrainingRows, "losses", 1), (RowReplay, "_losses", 1)):
            own = getattr(kind, method)

            def counted(self: Any, *args: Any, own: Any = own, place: int = place, **more: Any) -> Any:
                count[0] += len(args[place])
                return own(self, *args, **more)

            setattr(kind, method, counted)
            stack.callback(setattr, kind, method, own)
        yield count


@contextmanager
def counting_passes(model: LanguageModel) -> Iterator[list[int]]:
    """Counts the forward passes with gradients, of one row each."""
    count = [0]

    def note(module: torch.nn.Module, args: Any) -> None:
        count[0] += torch.is_grad_enabled()

    handle = model.model.register_forward_pre_hook(note)
    try:
        yield count
    finally:
        handle.remove()


def default_settings(name: str) -> frozenset[str]:
    from errata.editors.registry import EDITORS

    return frozenset(EDITORS[name].settings.model_fields)


def peak() -> float:
    """The peak memory of this process, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_turns(
    model: LanguageModel,
    edited: Answerer,
    prompts: Sequence[str],
    ask: Callable[[Answerer, str], Any],
    per: int,
    clock: Clock,
) -> Queries:
    """Each prompt to both, in an order that alternates; seconds are divided by ``per``."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for number, prompt in enumerate(prompts):
        for which in (0, 1) if number % 2 else (1, 0):
            answerer: Answerer = edited if which else model
            started = clock()
            ask(answerer, prompt)
            times[which].append(1000 * (clock() - started) / per)
    ratios = [its / own for own, its in zip(times[0], times[1], strict=True)]
    # Only now: an editor may remember the prompts that it was asked about.
    changed = sum(bool(facts) for facts in edited.used(prompts))
    return Queries(statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios), changed)


def queries(
    model: LanguageModel, edited: Answerer, prompts: Sequence[str], tokens: int, clock: Clock, *, equal: bool
) -> dict[str, Queries]:
    """Half of the prompts as one pass each, half as the beginnings of texts.

    Raises:
        SystemExit: if answers should be equal and are not.
    """
    half = len(prompts) // 2

    def next_token(answerer: Answerer, prompt: str) -> torch.Tensor:
        return answerer.next_token_log_probabilities([prompt])

    def text(answerer: Answerer, prompt: str) -> str:
        return answerer.continue_texts([prompt], new_tokens=tokens, end_at_eos=False)[0]

    for answerer in (model, edited):  # warm-up, with a prompt that is not measured
        text(answerer, "Once upon a time")
    found = {
        "prompt": in_turns(model, edited, prompts[:half], next_token, 1, clock),
        "token": in_turns(model, edited, prompts[half:], text, tokens, clock),
    }
    if equal:
        missed = [prompt for prompt, facts in zip(prompts, edited.used(prompts), strict=True) if not facts]
        if any(text(model, prompt) != text(edited, prompt) for prompt in missed[-2:]):
            raise SystemExit("the answer to a question that is not changed differs")
    return found


def measured(job: str, options: argparse.Namespace, model: LanguageModel) -> dict[str, Any]:
    """The result of a job, ``NAME`` or ``NAME:plain``, as JSON."""
    name, _, part = job.partition(":")
    clock = time.process_time if options.cpu_time else time.perf_counter
    world = lab_world()
    facts = lab_facts(world, options.facts, seed=0)
    count = max(1, min(options.reference_facts // CASES[name].divisor, options.facts))
    if part == "plain":
        return asdict(plain_learning(model, name, facts[:count], clock))
    learnt, editor = learning(model, name, facts, count, clock)
    result: dict[str, Any] = asdict(learnt)
    if CASES[name].queries and options.queries:
        others = untouched_questions(world, [fact.subject for fact in facts], 2 * options.queries, seed=0)
        prompts = [question.prompt for _, question in others]
        own = [fact.text for fact in facts][: 2 * options.queries]
        for which, texts in (("unchanged", prompts), ("own", own)):
            found = queries(model, editor.view(), texts, options.tokens, clock, equal=which == "unchanged")
            result[which] = {kind: asdict(times) for kind, times in found.items()}
    return result


# The tables


Run: TypeAlias = Callable[[str, argparse.Namespace], dict[str, Any]]


def in_process_of_its_own(job: str, options: argparse.Namespace) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *sys.argv, "--job", job], stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        sys.exit(f"{job} failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def learning_row(name: str, own: Mapping[str, Any], loop: Mapping[str, Any], facts: int) -> tuple[list[str], bool]:
    """A row of the table, and whether the results agree."""
    scaled = loop["seconds"] * own["evaluations"] / loop["evaluations"]
    apart = max(abs(a - b) for a, b in zip(own["losses"], loop["losses"], strict=True))
    row = [
        name,
        f"{own['seconds']:.1f}",
        str(own["evaluations"]),
        f"{loop['seconds']:.1f} ({len(loop['losses'])} facts, {loop['evaluations']})",
        f"{scaled:.1f}",
        f"{scaled / own['seconds']:.1f} ×",
        f"{own['memory']:.0f} / {loop['memory']:.0f}",
        f"{apart:.4f}",
    ]
    return row, apart <= TOLERANCE


def query_row(name: str, own: Mapping[str, Any]) -> list[str]:
    cells = [name]
    for which in ("unchanged", "own"):
        for kind in ("prompt", "token"):
            times = own[which][kind]
            cells.append(f"{times['model']:.1f} → {times['edited']:.1f} ms, {100 * (times['ratio'] - 1):+.0f} %")
    return [*cells, f"{own['unchanged']['prompt']['changed'] + own['unchanged']['token']['changed']}"]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or directory (smollm2-135m-instruct)")
    parser.add_argument("--facts", type=int, default=100, help="facts to edit, of the lab's world (100)")
    parser.add_argument("--reference-facts", type=int, default=10, help="facts of the plain loops, half for slow ones (10)")
    parser.add_argument("--editors", default=",".join(CASES), help="names, with commas (all)")
    parser.add_argument("--queries", type=int, default=20, help="queries of each kind; 0: do not measure them (20)")
    parser.add_argument("--tokens", type=int, default=8, help="new tokens of a text (8)")
    parser.add_argument("--threads", type=int, default=2, help="threads (2)")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time of the process: for a busy machine")
    parser.add_argument("--quick", action="store_true", help="8 facts, 2 of the plain loops, 6 queries")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to this file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.facts, options.reference_facts, options.queries = 8, 2, 6
    if unknown := set(options.editors.split(",")) - set(CASES):
        parser.error(f"unknown editors: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    return options


def main(argv: Sequence[str] | None = None, run: Run = in_process_of_its_own) -> None:
    options = arguments(argv)
    if options.job:
        torch.set_num_threads(options.threads)
        model = LanguageModel.load(options.model, dtype=torch.float32, device="cpu")
        print(json.dumps(measured(options.job, options, model)))
        return
    names = options.editors.split(",")
    found: dict[str, dict[str, Any]] = {}
    learnt, asked, agree = [], [], True
    for name in names:
        found[name] = run(name, options)
        if CASES[name].plain is not None:
            loop = found[name]["plain"] = run(f"{name}:plain", options)
            row, same = learning_row(name, found[name], loop, options.facts)
            learnt.append(row)
            agree &= same
        if "unchanged" in found[name]:
            asked.append(query_row(name, found[name]))
    print(f"{options.model}, {options.facts} facts, float32, {options.threads} threads")
    if learnt:
        head = ["editor", "seconds", "evaluations", "plain loop, seconds", "scaled", "ratio", "peak MiB", "losses differ by"]
        print(f"\n{markdown_table(head, learnt)}")
    if asked:
        head = ["editor", "prompt, unchanged", "token, unchanged", "prompt, own", "token, own", "changed"]
        print(f"\n{markdown_table(head, asked)}")
    write_json(options.json, {"options": vars(options) | {"json": None}, "versions": software_versions(), "found": found})
    if not agree:
        sys.exit(f"the losses after an edit and its plain loop differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
