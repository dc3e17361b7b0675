"""What tests of runs on disk share: small runs of tiny models, started and resumed as separate processes would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from errata.benchmark.sequence import EvaluationSet, RecordedResult, evaluation_set_record, run_recorded
from errata.editing.recipe import Recipe
from errata.facts.fact import FactSet, Question
from errata.models.language_model import LanguageModel
from errata.models.weights import LowRankTerm, SparseTerm, Term
from errata.patches.patch import supported_dtype_name
from errata.results.records import Row
from errata.runs.run import RunDirectory, create_run, open_run
from errata.statistics.corpus import open_corpus

from tests.support.editing import FACTS, tiny_language_model, tiny_recipe, write_corpus

BATCHES = 3  # of two facts
ASKED = FactSet(
    tuple(
        replace(fact, old="Paris", paraphrases=(f"Everybody knows of {fact.subject} that it is in",)) for fact in FACTS
    )
)
EXAMINATION = EvaluationSet(
    ASKED,
    [("crowd", Question("The crowd runs through the", "river")), ("rain", Question("The rain is", "Lisbon"))],
    ["The river runs through the city.", "I think that the piano is what she plays."],
)


@dataclass(frozen=True, slots=True)
class Runs:
    """Begins runs and goes on with them; ``folder`` holds the corpus and the cache of key statistics."""

    folder: Path

    @classmethod
    def of(cls, folder: Path) -> Runs:
        write_corpus(folder / "corpus.txt")
        return cls(folder)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def recipe(self, method: str = "memit_seq+blue") -> Recipe:
        return tiny_recipe(self.folder / "corpus.txt", method, target={"steps": 3})

    def begin(self, path: Path, method: str = "memit_seq+blue", *, ask: bool = True) -> RunDirectory:
        model, recipe = tiny_language_model("gpt2"), self.recipe(method)
        return create_run(
            path,
            model="gpt2",
            fingerprint=model.fingerprint(),
            dtype=supported_dtype_name(model.dtype),
            lab=False,
            recipe=recipe,
            facts=ASKED,
            corpus=open_corpus(recipe.statistics.corpus).digest if recipe.needs_statistics else "",
            seed=0,
            examination=evaluation_set_record(EXAMINATION) if ask else None,
        )

    def go_on(self, path: Path, model: LanguageModel | None = None) -> tuple[LanguageModel, RecordedResult]:
        """As a new process does: the run is read, the model loaded (here: made) anew."""
        model = model or tiny_language_model("gpt2")
        return model, run_recorded(model, open_run(path), cache=self.cache)


class Stop(BaseException):
    """Ends a run at some point; nothing in errata can expect it."""


@contextmanager
def failing(
    owner: Any, name: str, error: BaseException, *, call: int, afterwards: bool = False
) -> Iterator[Callable[[], int]]:
    """The ``call``-th call (from 1) of something raises, before or after it has done its work; tells how many were."""
    original = getattr(owner, name)
    calls = 0

    def replacement(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return original(*args, **kwargs)
        if afterwards:
            original(*args, **kwargs)
        raise error

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, replacement)
        yield lambda: calls


def content_of(path: Path) -> dict[str, bytes]:
    """Every file of a run and its bytes, but for the lock, which says who was here last, and the log."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("lock", "log.txt")
    }


def tensors_of(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of every batch's file: factors, and keys that later batches keep."""
    return {file.name: load_file(file) for file in sorted((path / "batches").glob("*.safetensors"))}


def timeless(rows: list[Row]) -> list[Row]:
    """The rows but for the one that tells how long it took."""
    return [row for row in rows if row["metric"] != "seconds_per_edit"]


def assert_same_run(found: Path, expected: Path) -> None:
    """The same tensors in every batch, the same weights after each, the same answers: all but times."""
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].keys() == theirs[name].keys()
        assert all(torch.equal(ours[name][key], theirs[name][key]) for key in theirs[name])
    lines = [
        [(entry.kind, {**entry.fields, "seconds": 0, "patch": ""}) for entry in open_run(path).ledger.entries]
        for path in (found, expected)
    ]
    assert lines[0] == lines[1]


def assert_same_result(found: RecordedResult, expected: RecordedResult) -> None:
    assert timeless(found.rows) == timeless(expected.rows)
    assert found.left_alone == expected.left_alone
    assert_same_terms(found.patch.terms, expected.patch.terms)
    ours, theirs = (replace(result.patch, terms=(), created="") for result in (found, expected))
    assert asdict(ours) == asdict(theirs)


def assert_same_terms(found: tuple[Term, ...], expected: tuple[Term, ...]) -> None:
    assert [(type(term), term.layer) for term in found] == [(type(term), term.layer) for term in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(ours, SparseTerm) and isinstance(theirs, SparseTerm):
            assert torch.equal(ours.values, theirs.values)
            assert torch.equal(ours.mask, theirs.mask)
        else:
            assert isinstance(ours, LowRankTerm)
            assert isinstance(theirs, LowRankTerm)
            assert torch.equal(ours.left, theirs.left)
            assert torch.equal(ours.right, theirs.right)
