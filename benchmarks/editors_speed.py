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
import math
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

from errata.editors.contract import Answerer, Edit, KnowledgeEditor
from errata.editors.hook_editor import TrainingRows
from errata.editors.registry import EDITORS, make_editor
from errata.facts.fact import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.models.language_model import LanguageModel
from errata.models.row_replay import RowReplay
from errata.utils.progress import silent
from errata.utils.provenance import software_versions

TOLERANCE = 0.02  # of the loss of a fact after both edits, in nats


@dataclass(frozen=True, slots=True)
class Case:
    """How an editor is measured.

    Attributes:
        plain: its plain loop; None: only queries are measured.
        share: the number of facts of the plain loop in units of ``--reference-facts``, as some loops are slow. Infinite
            (all facts) where its time does not grow in proportion to their number.
        queries: whether it acts at queries; editors of weights add nothing to them.
        settings: other than the defaults: where only queries are measured, training ends after a step.
    """

    plain: Callable[[Any, Sequence[Fact]], plain.LossOf] | None = None
    share: float = 1.0
    queries: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "grace": Case(plain.grace),
    "elder": Case(plain.elder, share=0.5),
    "wise": Case(plain.wise, share=0.3),
    "ft_bf": Case(plain.ft_bf, queries=False),
    "lora": Case(plain.lora, share=0.5, queries=False),
    "ultra": Case(plain.ultra, share=math.inf, queries=False),
    "retrieval": Case(),
    "melo": Case(settings={"steps": 1}),
    "memoir": Case(settings={"steps": 1}),
    "t_patcher": Case(settings={"steps": 60}),
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
        left_out: prompts that do not count, since the editor acts on them though it should not.
    """

    model: float
    edited: float
    ratio: float
    left_out: int


Clock: TypeAlias = Callable[[], float]


def learning(
    model: LanguageModel, name: str, facts: Sequence[Fact], count: int, clock: Clock
) -> tuple[Learning, KnowledgeEditor, Edit]:
    """Edit ``facts``, and, in the model as it was, the first ``count`` of them alone for their losses.

    Returns:
        the editor and its edit of all facts, which is in.
    """
    case = CASES[name]

    def fresh() -> KnowledgeEditor:
        return make_editor(name, model, case.settings, silent)

    warm = fresh()
    warm.remove(warm.apply(facts[:1]))
    editor = fresh()
    with counting() as evaluations:
        started = clock()
        edit = editor.apply(facts)
        seconds = clock() - started
    memory = peak()
    losses: list[float] = []
    if case.plain is not None:
        editor.remove(edit)
        few = fresh()
        other = few.apply(facts[:count])
        scores = few.view().score([fact.pair(fact.target) for fact in facts[:count]])
        losses = [-score.log_probability for score in scores]
        few.remove(other)
        editor.restore(edit)
    return Learning(seconds, evaluations[0], losses, memory), editor, edit


def plain_learning(model: LanguageModel, name: str, facts: Sequence[Fact], clock: Clock) -> Learning:
    """The plain loop on ``facts``."""
    case = CASES[name]
    assert case.plain is not None
    few = {"steps": 1} if "steps" in EDITORS[name].settings.model_fields else {}
    case.plain(make_editor(name, model, {**case.settings, **few}, silent), facts[:1])  # warm-up
    with counting_passes(model) as passes:
        started = clock()
        loss_of = case.plain(make_editor(name, model, case.settings, silent), facts)
        seconds = clock() - started
    memory = peak()
    with torch.no_grad():
        return Learning(seconds, passes[0], [float(loss_of(fact)) for fact in facts], memory)


@contextmanager
def counting() -> Iterator[list[int]]:
    """Counts the rows of which errata's editors evaluate the loss with its gradient."""
    count = [0]
    with ExitStack() as stack:
        for kind, method, place in ((TrainingRows, "losses", 1), (RowReplay, "_losses", 1)):
            own = getattr(kind, method)

            def counted(self: Any, *args: Any, own: Any = own, place: int = place, **more: Any) -> Any:
                count[0] += len(args[place]) * torch.is_grad_enabled()
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


def peak() -> float:
    """The peak memory of this process, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_turns(
    model: LanguageModel, edited: Answerer, prompts: Sequence[str], asking: Asking, clock: Clock, *, unchanged: bool
) -> Queries:
    """Ask both each prompt, in an order that alternates.

    Args:
        unchanged: leave out prompts on which the editor acts; check of one that is left that the answers are equal.
    """
    times: list[tuple[float, float]] = []
    for number, prompt in enumerate(prompts):
        taken = {}
        for edits in (False, True) if number % 2 else (True, False):
            answerer: Answerer = edited if edits else model
            started = clock()
            asking.ask(answerer, prompt)
            taken[edits] = 1000 * (clock() - started) / asking.tokens
        times.append((taken[False], taken[True]))
    # Only now: an editor may remember the prompts that it was asked.
    acts = [unchanged and bool(facts) for facts in edited.used(prompts)]
    left = [pair for pair, out in zip(times, acts, strict=True) if not out]
    if not left:
        return Queries(math.nan, math.nan, math.nan, len(prompts))
    if unchanged:
        prompt = prompts[acts.index(False)]
        if asking.ask(model, prompt) != asking.ask(edited, prompt):
            raise SystemExit(f"the answer to a question that is not changed differs: {prompt!r}")
    own, its = (statistics.median(pair[which] for pair in left) for which in (0, 1))
    return Queries(own, its, statistics.median(b / a for a, b in left), sum(acts))


@dataclass(frozen=True, slots=True)
class Asking:
    """A kind of query.

    Attributes:
        ask: returns the answer.
        tokens: passes that it takes.
    """

    ask: Callable[[Answerer, str], object]
    tokens: int


def queries(
    model: LanguageModel, edited: Answerer, prompts: Sequence[str], tokens: int, clock: Clock, *, unchanged: bool
) -> dict[str, Queries]:
    """Half of the prompts as one pass each, half as the beginnings of texts."""
    half = len(prompts) // 2
    asking = {
        "prompt": Asking(lambda answerer, prompt: answerer.next_token_log_probabilities([prompt]).tolist(), 1),
        "token": Asking(
            lambda answerer, prompt: answerer.continue_texts([prompt], new_tokens=tokens, end_at_eos=False), tokens
        ),
    }
    for answerer in (model, edited):  # warm-up, with a prompt that is not measured
        asking["token"].ask(answerer, "Once upon a time")
    parts = {"prompt": prompts[:half], "token": prompts[half:]}
    return {
        kind: in_turns(model, edited, part, asking[kind], clock, unchanged=unchanged) for kind, part in parts.items()
    }


def measured(job: str, options: argparse.Namespace, model: LanguageModel) -> dict[str, Any]:
    """The result of a job, ``NAME`` or ``NAME:plain``, as JSON."""
    name, _, part = job.partition(":")
    clock = time.process_time if options.cpu_time else time.perf_counter
    world = lab_world()
    facts = lab_facts(world, options.facts, seed=0)
    count = int(max(1, min(options.reference_facts * CASES[name].share, options.facts)))
    if part == "plain":
        return asdict(plain_learning(model, name, facts[:count], clock))
    learnt, editor, edit = learning(model, name, facts, count, clock)
    result: dict[str, Any] = asdict(learnt)
    if CASES[name].queries and options.queries:
        others = untouched_questions(world, [fact.subject for fact in facts], 2 * options.queries, seed=0)
        prompts = [question.prompt for _, question in others]
        own = [text for fact in facts for text in (fact.text, *fact.paraphrases)]
        for which, texts in (("unchanged", prompts), ("own", own[: 2 * options.queries])):
            found = queries(model, editor.view(), texts, options.tokens, clock, unchanged=which == "unchanged")
            result[which] = {kind: asdict(times) for kind, times in found.items()}
    editor.remove(edit)
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
            change = f"{times['model']:.1f} → {times['edited']:.1f} ms, {100 * (times['ratio'] - 1):+.0f} %"
            cells.append("–" if math.isnan(times["ratio"]) else change)
    return [*cells, str(sum(times["left_out"] for times in own["unchanged"].values()))]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or directory (smollm2-135m-instruct)")
    parser.add_argument("--facts", type=int, default=100, help="facts to edit, of the lab's world (100)")
    parser.add_argument(
        "--reference-facts", type=int, default=10, help="facts of the plain loops, half for slow ones (10)"
    )
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
        head = [
            "editor",
            "seconds",
            "evaluations",
            "plain loop, seconds",
            "scaled",
            "ratio",
            "peak MiB",
            "losses differ by",
        ]
        print(f"\n{markdown_table(head, learnt)}")
    if asked:
        head = ["editor", "prompt, unchanged", "token, unchanged", "prompt, own", "token, own", "left out"]
        print(f"\n{markdown_table(head, asked)}")
    write_json(
        options.json, {"options": vars(options) | {"json": None}, "versions": software_versions(), "found": found}
    )
    if not agree:
        sys.exit(f"the losses after an edit and its plain loop differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
