"""Five runs killed with SIGKILL at random moments and resumed: the weights are those of the undisturbed run.

The thirty on the embedded model are ``python benchmarks/crash.py``; its figures stand in docs/crash.md.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from errata.facts import Fact
from errata.facts_io import write_facts

from benchmarks.crash import Command, kill_and_resume
from tests.support.editing import FACTS, tiny_language_model, tiny_recipe, write_corpus

# The package is found in a subprocess as it is here.
PATHS = ":".join(path for path in sys.path if path)


def test_killed_runs_come_out_bit_for_bit(tmp_path: Path) -> None:
    method = "memit_seq+blue"  # with a history, which has to survive too
    model = tiny_language_model("llama")
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    words = {word for fact in FACTS for word in fact.subject.split()} | {"Paris", "Madrid", "Lisbon", "London"}
    texts = [(word, prompt) for word in sorted(words) for prompt in ("is", "in")][:20]
    facts = [Fact(f"{word} {prompt}", word, f"{{}} {prompt}", "Rome") for word, prompt in texts]
    write_facts(facts, tmp_path / "facts.jsonl")
    recipe = tiny_recipe(write_corpus(tmp_path / "corpus.txt"), method)
    sections = recipe.model_dump(mode="json", exclude={"method", "source"})
    entries = {method.removesuffix("+blue"): {}, method: {}}
    text = json.dumps({**sections, "source": "made for this test", "methods": entries})
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    edit = ["--model", str(tmp_path / "model"), "--facts", str(tmp_path / "facts.jsonl"), "--method", method,
            "--recipe", str(tmp_path / "recipe.yaml"), "--batch-size", "1", "--no-evaluate"]  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", "ERRATA_CACHE": str(tmp_path / "cache"), "PYTHONPATH": PATHS}
    trials = kill_and_resume(Command(edit, environment), tmp_path, 5, random.Random(0))
    assert [trial.identical for trial in trials] == [True] * 5
    assert any(0 < trial.batches < 20 for trial in trials)  # some were killed in the middle
