"""What a model is asked besides its facts: other subjects and prose, from the lab or from the user's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from errata.benchmark.sequence import Examination
from errata.cli.terminal import tell
from errata.errors import Fault, FaultsError, InputError
from errata.evaluation.outcomes import derived
from errata.facts.fact import FactSet, Question
from errata.results.metrics import CONTROLS
from errata.utils.files import file_text, reason_of

UNTOUCHED = 300
PROSE = 60
_SOURCE = {str(metric): accuracy for accuracy in CONTROLS for metric in derived(accuracy)}


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
        from errata.lab.corpus import held_out_prose
        from errata.lab.package import lab_world
        from errata.lab.tasks import untouched_questions

        if untouched is None:
            questions = untouched_questions(lab_world(), [fact.subject for fact in facts], UNTOUCHED, seed=seed)
        return Examination(facts, questions, held_out_prose(PROSE))
    return Examination(facts, questions, shipped_sentences())


def show_absent(absent: Mapping[str, str]) -> None:
    """Say which metrics are missing, and why; metrics with the same reason are on one line. What is derived from an
    accuracy is not named where that is missing for the same reason.

    Args:
        absent: metric -> reason.
    """
    reasons: dict[str, list[str]] = {}
    for metric, reason in absent.items():
        if absent.get(_SOURCE.get(metric, "")) != reason:
            reasons.setdefault(reason, []).append(metric.replace("_", " "))
    for reason, metrics in reasons.items():
        tell(f"Absent: {', '.join(metrics)} ({reason}).")


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
        lines = file_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}", remedy="Give a UTF-8 JSONL file") from error
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
