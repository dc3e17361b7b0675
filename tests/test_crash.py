"""SIGKILL at three random moments of a run of 20 batches; benchmarks/crash.py does it thirty times, on the lab.

Three find a race less often than thirty; tests/benchmark/test_recorded.py stops a run at every place that it writes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from benchmarks.crash import Job, Undisturbed, draw_moments, left_by_crash, trial, undisturbed
from tests.support.editing import tiny_language_model, tiny_recipe, write_corpus

KILLS = 3
BATCHES = 20
PEOPLE = ("Danielle Darrieux", "Thomas Stieltjes", "Leonard Bernstein", "Kenji Watanabe", "Big Ben")
WORDS = (("{} was born in", "Rome"), ("{} works for", "Toyota"), ("{} speaks", "Dutch"), ("{} plays the", "violin"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """One fact a batch, with history at boundary layers, measured before, after each batch and at the end."""
    folder = tmp_path_factory.mktemp("crash")
    model = tiny_language_model("gpt2")
    model.model.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    recipe = tiny_recipe(write_corpus(folder / "corpus.txt"), "memit_seq+blue", target={"steps": 8})
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    facts = [
        {"subject": subject, "prompt": prompt, "target": target, "truth": "Paris"}
        for subject in PEOPLE
        for prompt, target in WORDS
    ]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)) + "\n", encoding="utf-8")
    arguments = ["--model", str(folder / "model"), "--facts", str(folder / "facts.jsonl")]
    arguments += ["--recipe", str(folder / "recipe.yaml"), "--method", "memit_seq+blue", "--batch-size", "1"]
    (folder / "runs").mkdir()
    yield Job([*arguments, "--device", "cpu"], folder / "runs", cache=folder / "cache")


@pytest.fixture(scope="module")
def calm(job: Job) -> Undisturbed:
    return undisturbed(job)


def test_an_undisturbed_run_has_all_results_and_leaves_nothing_over(job: Job, calm: Undisturbed) -> None:
    assert len(calm.ends) == BATCHES
    names = set(calm.results)
    assert {"weights model.safetensors", "answers before.json", "answers after.json", "table"} <= names
    for number in range(1, BATCHES + 1):
        assert {f"patch {number:04}", f"weights after batch {number}", f"answers batches/{number:04}.json"} <= names
    assert len({calm.results[f"weights after batch {number}"] for number in range(1, BATCHES + 1)}) == BATCHES
    assert left_by_crash(job.run("undisturbed")) == []


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_any_moment_it_ends_in_the_same_bits(job: Job, calm: Undisturbed, number: int) -> None:
    """The first is killed a second time, after it was resumed."""
    moments = draw_moments(random.Random(number), number, calm.seconds)
    found = trial(job, f"killed-{number}", calm, moments)
    assert found.different == []
    assert list(found.kept) == sorted(found.kept)
    # The kill came in the chosen batch, or later if that batch had already ended.
    for kept, moment in zip(found.kept, moments, strict=True):
        assert calm.place(moment)[0] <= kept <= BATCHES
    job.remove(f"killed-{number}")
