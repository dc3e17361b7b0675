"""What a model is asked besides its facts: other subjects and prose, from the lab or from the user's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from errata.benchmark.sequential import Examination
from errata.errors import Fault, FaultsError, InputError
from errata.evaluation.recall import absent
from errata.facts import Fact, FactSet, Question
from errata.verbs.terminal import console

UNTOUCHED = 300
PROSE = 60


def examination_for(
    facts: FactSet, *, lab: bool, untouched: Sequence[tuple[str, Question]] | None, seed: int
) -> Examination:
    """The facts, questions about subjects that no fact edits, and prose.

    Args:
        lab: whether the model is the lab's or made from it; then its world and its held-out prose are used.
        untouched: questions of the user's, instead of the world's.
    """
    questions = untouched or []
    if lab:
        from errata.lab.package import lab_world
        from errata.lab.tasks import untouched_questions
        from errata.lab.texts import held_out_prose

        if untouched is None:
            questions = untouched_questions(lab_world(), [fact.subject for fact in facts], UNTOUCHED, seed=seed)
        return Examination(facts, questions, held_out_prose(PROSE))
    return Examination(facts, questions, shipped_sentences())


def show_absent(facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]]) -> None:
    """Say which metrics cannot be told, and why; metrics that go by one reason stand on one line."""
    reasons: dict[str, list[str]] = {}
    for metric, reason in absent(facts, untouched).items():
        reasons.setdefault(reason, []).append(metric.replace("_", " "))
    for reason, metrics in reasons.items():
        console().print(f"Absent: {', '.join(metrics)} ({reason}).", highlight=False, markup=False)


def shipped_sentences() -> list[str]:
    """The fixed, mixed set of sentences that perplexity is measured on for models other than the lab's."""
    text = (resources.files("errata") / "evaluation" / "sentences.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def read_questions(path: Path | None) -> list[tuple[str, Question]] | None:
    """Questions from JSONL of {"prompt", "answer"}, each a cluster of its own; None without a path.

    Raises:
        InputError: if the file cannot be read.
        FaultsError: every bad line.
    """
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", remedy="Give a UTF-8 JSONL file") from error
    questions: list[tuple[str, Question]] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            question = Question(record["prompt"], record["answer"], record.get("joiner"))
            questions.append((f"{path.name}:{number}", question))
        except (ValueError, TypeError, KeyError, InputError) as error:
            faults.append(Fault(f"{path}:{number}", f"not a question ({error})", 'Write {"prompt": …, "answer": …}'))
    if not questions and not faults:
        faults.append(Fault(str(path), "no question in it", 'Write one {"prompt": …, "answer": …} a line'))
    if faults:
        raise FaultsError(str(path), faults)
    return questions
