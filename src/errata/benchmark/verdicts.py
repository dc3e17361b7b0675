"""A judge whose verdicts are kept as they come, and whose outage is a failure: what was not judged because nobody
answered is no result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from errata.benchmark.cell_spec import damaged
from errata.errors import ErrataError
from errata.evaluation.judge import HttpJudge
from errata.evaluation.judging import Case, Verdict
from errata.output import write_text

_AT_ONCE: Final = 200  # cases between two writings of the file: what is killed loses no more of them


class KeptJudge:
    """Asks a judge what it has not been asked before; see ``Judge``.

    Args:
        path: a file of verdicts, which is made if it is not there.
    """

    def __init__(self, judge: HttpJudge, path: Path) -> None:
        self._judge, self._path = judge, path

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """A verdict for each case, in their order.

        Raises:
            ErrataError: if the judge has given up. The verdicts that it gave are kept, so that the next attempt asks
                the others alone.
            InputError: if the file is damaged, or the key is not there.
        """
        known = self._read()
        asked = [case for case in dict.fromkeys(cases) if case not in known]
        found: dict[Case, Verdict] = {}
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            found |= zip(some, self._judge.judge(some), strict=True)
            known |= {case: found[case].correct for case in some if found[case].correct is not None}
            entries = [{**asdict(case), "correct": correct} for case, correct in known.items()]
            write_text(self._path, json.dumps(entries, ensure_ascii=False) + "\n")
            if self._judge.gave_up:
                settings = self._judge.settings
                left = sum(case not in known for case in asked)
                raise ErrataError(
                    f"the judge {settings.model!r} at {settings.base_url} gave up: {self._judge.gave_up}; "
                    f"{left} of {len(set(cases))} answers have no verdict",
                    remedy="When it answers again: errata bench --retry, which asks for those alone",
                )
        return [found[case] if case in found else Verdict(known[case]) for case in cases]

    def _read(self) -> dict[Case, bool | None]:
        if not self._path.is_file():
            return {}
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            return {
                Case(entry["question"], tuple(entry["accepted"]), entry["answer"]): bool(entry["correct"])
                for entry in entries
            }
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise damaged(self._path, error) from error
