"""Control questions from JSON Lines files."""

from __future__ import annotations

import io
import json
from pathlib import Path

from errata.errors import Fault, FaultsError, InputError
from errata.facts.fact import Question
from errata.utils.files import read_text


def text_lines(path: Path, subject: object, *, remedy: str) -> list[str]:
    """The lines of a UTF-8 file. Only LF, CR LF and CR end a line: texts may contain other separators, such as U+2028.

    Raises:
        InputError: as ``read_text``, with its arguments.
    """
    text = read_text(path, subject, remedy=remedy, code="FILE_UNREADABLE")
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]


def read_questions(path: Path | None) -> list[tuple[str, Question]] | None:
    """Read questions from JSONL of {"prompt", "answer"}, each its own bootstrap cluster; None without a path.

    Raises:
        InputError: if the file cannot be read.
        FaultsError: for every invalid line.
    """
    if path is None:
        return None
    lines = text_lines(path, path, remedy="Give a UTF-8 JSONL file")
    questions: list[tuple[str, Question]] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            question = Question(record["prompt"], record["answer"], record.get("joiner"))
            questions.append((f"{path.name}:{number}", question))
        except (ValueError, TypeError, KeyError, RecursionError, InputError) as error:
            what, remedy = f"not a question ({error})", 'Write {"prompt": …, "answer": …}'
            faults.append(Fault(f"{path}:{number}", what, remedy, code="QUESTION_INVALID"))
    if not questions and not faults:
        remedy = 'Write one {"prompt": …, "answer": …} per line'
        faults.append(Fault(str(path), "the file contains no questions", remedy, code="QUESTIONS_EMPTY"))
    if faults:
        raise FaultsError(str(path), faults)
    return questions
