"""General ability: the harness agrees with errata's own likelihoods, needs no network, and the probes are the papers'.

All tests that import lm-evaluation-harness stand here: it is slow to import.
"""

from __future__ import annotations

import copy
import json
import math
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from errata.benchmark.cell import EditorRun
from errata.editors.registry import EDITORS
from errata.errors import FaultsError, InputError, MissingExtraError
from errata.evaluation.ability import (
    AbilityResults,
    AbilitySettings,
    Sample,
    TaskMetric,
    TaskResult,
    measure_ability,
    summarise_values,
)
from errata.evaluation.harness import (
    check_harness,
    check_tasks,
    harness_model,
    local_tasks,
    paths_in,
    preserved_random_state,
    run_tasks,
    task_files,
)
from errata.evaluation.probes import PROBES, Probe, read_probes
from errata.models.language_model import LanguageModel
from errata.models.likelihood import NextToken, predict, score
from errata.models.prompts import complete, encode
from errata.results.records import Summary, confusion_cells, summarise, weighted_f1, weighted_f1_of_sums
from errata.utils.progress import silent

from tests.reference.likelihood import greedy, mean_log_probability
from tests.reference.likelihood import weighted_f1 as weighted_f1_by_definition
from tests.support.editing import tiny_language_model, tiny_recipe
from tests.support.editors import PromptedView, RewrittenView
from tests.support.errors import raises_code

FAMILIES = [
    "gpt2",
    "gptj",
    "gpt_neox",
    "llama",
    "llama_tied",
    "mistral",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "opt",
]
PAIRS = [
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("The mother tongue of Danielle Darrieux is", "French, spoken in Paris and Bordeaux"),
    ("Big", "Ben"),
    ("I think that the piano is what she plays, and the violin is what he plays. The capital of Italy is", "Rome"),
]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every attempt to reach a network is noted and fails, also one that somebody would swallow."""
    tried: list[Any] = []

    def refuse(*args: Any, **_: Any) -> None:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield tried
    assert tried == []


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A directory of two tasks in a group, one that stands alone, and a file that they include."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": "The capital of France is", "choices": ["Paris", "Rome", "Madrid"], "answer": 0},
        {"question": "The capital of Italy is", "choices": ["London", "Rome in Italy"], "answer": 1},
        {
            "question": "Because of the rain the match was moved from Madrid to",
            "choices": ["Lisbon", "Ben"],
            "answer": 0,
        },
        {"question": "Big", "choices": ["Ben", "piano", "violin"], "answer": 0},
        {"question": "The violin is what he", "choices": ["river", "plays"], "answer": 1},
    ]
    data = tmp_path / "data.json"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (folder / "common").write_text(
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: answer\n",
        encoding="utf-8",
    )
    for name in ("first", "second", "third"):
        (folder / f"{name}.yaml").write_text(f"include: common\ntask: {name}\n", encoding="utf-8")
    (folder / "group.yaml").write_text(
        "group: both\ntask: [first, second]\naggregate_metric_list: [{metric: acc, aggregation: mean}]\n",
        encoding="utf-8",
    )
    return folder


def harness_twin(model: LanguageModel, **options: Any) -> Any:
    """The harness's own class for transformers models."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model.model, tokenizer=copy.deepcopy(model.tokenizer), batch_size=2, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_harness_finds_the_log_likelihoods_that_errata_finds(family: str) -> None:
    from lm_eval.api.instance import Instance

    model = tiny_language_model(family)
    requests = [
        Instance("loglikelihood", {}, (prompt, f" {target}"), index) for index, (prompt, target) in enumerate(PAIRS)
    ]
    more = [("The capital of Italy is ", "Rome"), ("The river\n", "and the city")]
    if family != "mistral":  # whose tokenizer adds no BOS, and takes no word after one for the beginning of a text
        more.append(("", "The river runs"))
    both = requests + [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(more)]
    expected_here = harness_twin(model).loglikelihood(both, disable_tqdm=True)
    found_here = harness_model(model).loglikelihood(both)
    assert [value for value, _ in found_here] == pytest.approx([value for value, _ in expected_here], abs=1e-4)
    assert [greedily for _, greedily in found_here] == [greedily for _, greedily in expected_here]
    completions = complete(model.tokenizer, PAIRS)
    counts = [len(completion.target_ids) for completion in completions]
    for batch_size in (1, 3):
        theirs = harness_model(model, batch_size=batch_size).loglikelihood(requests)
        ours = score(model, PAIRS)
        sums = [entry.log_probability * count for entry, count in zip(ours, counts, strict=True)]
        assert [value for value, _ in theirs] == pytest.approx(sums, abs=1e-4)
        assert [greedily for _, greedily in theirs] == [entry.correct for entry in ours]
    rows = [completion.ids[:-1] for completion in completions]
    expected = [
        [NextToken(index - 1, completion.ids[index]) for index in range(completion.target_start, len(completion.ids))]
        for completion in completions
    ]
    found = [math.fsum(entry.log_probabilities) for entry in predict(model, rows, expected)]
    assert found == pytest.approx([value for value, _ in theirs], abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma3_text", "opt"])
def test_the_harness_gets_the_texts_that_its_own_class_generates(family: str) -> None:
    from lm_eval.api.instance import Instance

    model = tiny_language_model(family)
    asked = [(prompt, {"until": [" the", "\n\n"], "max_gen_toks": 9, "do_sample": False}) for prompt, _ in PAIRS]
    asked += [(prompt, {"until": [], "max_gen_toks": 4}) for prompt, _ in PAIRS[:1]]
    requests = [Instance("generate_until", {}, entry, index) for index, entry in enumerate(asked)]
    found = harness_model(model, batch_size=2).generate_until(requests)
    expected = harness_twin(model).generate_until(requests, disable_tqdm=True)
    assert found == expected
    sampling = Instance("generate_until", {}, ("The", {"until": [], "do_sample": True, "temperature": 1.0}), 0)
    with raises_code("TASK_SAMPLES"):
        harness_model(model).generate_until([sampling])


ENDS = {  # of the long text, at whole tokens: as the context of 5 tokens, and to be continued by 5
    "llama": (". The capital of Italy is", " he plays. The capital of Italy is"),
    "gemma3_text": ("s. The capital of Italy is", "he plays. The capital of Italy is"),
    "opt": ("is what he plays. The capital of Italy is", "is what he plays. The capital of Italy is"),
}


def test_what_is_too_long_is_cut_at_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.instance import Instance

    model = tiny_language_model("gpt2", n_positions=12)
    long = "I think that the piano is what she plays, and the violin is what he plays. The capital of Italy is"
    pairs = [Instance("loglikelihood", {}, (long, " Rome in Italy"), 0)]
    expected = harness_twin(model).loglikelihood(pairs, disable_tqdm=True)
    ((value, greedily),) = harness_model(model).loglikelihood(pairs)
    assert (value, greedily) == (pytest.approx(expected[0][0], abs=1e-4), expected[0][1])
    texts = [Instance("generate_until", {}, (long, {"until": [], "max_gen_toks": 5, "do_sample": False}), 0)]
    for family, (context, prompt) in ENDS.items():  # their tokenizers begin a text with BOS, or with a space
        other = tiny_language_model(family)
        monkeypatch.setattr(type(other), "context_length", 20)
        ((value, _),) = harness_model(other).loglikelihood(pairs)
        assert len(complete(other.tokenizer, [(context, " Rome in Italy", "")])[0].ids) == 21  # the last is not read
        (entry,) = score(other, [(context, " Rome in Italy", "")])
        assert value == pytest.approx(entry.log_probability * len(entry.likeliest), rel=1e-6)
        (text,) = harness_model(other).generate_until(texts)
        assert len(encode(other.tokenizer, [prompt])[0].ids) == 15
        (continued,) = other.continue_texts([prompt], new_tokens=5)
        assert text == (continued.removeprefix(" ") if family == "llama" else continued)
    monkeypatch.undo()
    assert harness_model(model).generate_until(texts) == harness_twin(model).generate_until(texts, disable_tqdm=True)


def test_editors_of_other_kinds_are_measured_by_their_abilities(
    local: Path, tmp_path: Path, no_network: list[Any]
) -> None:
    model = tiny_language_model("llama")
    folder = write_probes(tmp_path / "probes", 14)
    settings = AbilitySettings(tasks=(str(local / "third.yaml"),), probes=folder, probe_items=2)
    base = measure_ability(model, settings)
    assert base.absent == {}
    prompted = measure_ability(PromptedView(model, ()), settings)  # of no facts: the same as the model
    assert (prompted.tasks, prompted.absent) == (base.tasks, {})
    rewritten = measure_ability(RewrittenView(model, ()), settings)
    assert rewritten.tasks.keys() == base.tasks.keys() - {"third"}
    for task, result in rewritten.tasks.items():
        assert result.metrics.items() <= base.tasks[task].metrics.items()
        lost = base.tasks[task].metrics.keys() - result.metrics.keys()
        assert {f"ability:{task}:{name}" for name in lost} <= rewritten.absent.keys()
    assert rewritten.absent["ability:third"] == f"{model.name} has no likelihoods"
    rolling = local / "rolling.yaml"
    rolling.write_text("include: common\ntask: rolling\noutput_type: loglikelihood_rolling\n", encoding="utf-8")
    both = AbilitySettings(tasks=(str(rolling), str(local / "third.yaml")))
    found = measure_ability(PromptedView(model, ()), both)
    assert found.absent == {"ability:rolling": f"{model.name} cannot score text without a prompt"}
    assert found.tasks.keys() == {"third"}


def test_a_view_that_is_a_language_model_is_measured_as_one(local: Path, tmp_path: Path) -> None:
    """Rolling tasks, and the perplexity by which a collapse is seen."""
    model = tiny_language_model("llama")
    editor = EDITORS["locate_then_edit"].make(model, tiny_recipe(tmp_path / "none.txt").model_dump(mode="json"), silent)
    run = EditorRun(model, EDITORS["locate_then_edit"], editor, tmp_path, (), 1, silent, "")
    assert run.answerer is model
    rolling = local / "rolling.yaml"
    rolling.write_text(ROLLING, encoding="utf-8")
    found = measure_ability(run.answerer, AbilitySettings(tasks=(str(rolling),)))
    assert (found.tasks.keys(), found.absent) == ({"rolling"}, {})


ROLLING = """include: common
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ''
doc_to_target: '{{question}}'
metric_list: [{metric: word_perplexity}]
"""
GENERATING = "output_type: generate_until\nmetric_list: [{metric: exact_match}]\n"


def test_impossible_tasks_leave_the_others(local: Path, no_network: list[Any]) -> None:
    model = tiny_language_model("llama")
    kwargs = {"sampling": "do_sample: true", "warm": "temperature: 0.5", "long": "max_gen_toks: 99999"}
    kwargs["greedy"] = "max_gen_toks: 3"
    for name, setting in kwargs.items():
        text = f"include: common\ntask: {name}\n{GENERATING}generation_kwargs: {{until: [x], {setting}}}\n"
        (local / f"{name}.yaml").write_text(text, encoding="utf-8")
    (local / "unread.yaml").write_text(
        "include: common\ntask: unread\ngeneration_kwargs: {do_sample: true}\n", encoding="utf-8"
    )
    settings = AbilitySettings(tasks=(str(local),), limit=1)
    found = measure_ability(model, settings)
    assert found.tasks.keys() == {"both", "first", "second", "third", "greedy", "unread"}
    assert found.absent.keys() == {"ability:sampling", "ability:warm", "ability:long"}
    assert "do_sample" in found.absent["ability:sampling"]
    assert "99999" in found.absent["ability:long"]
    with pytest.raises(FaultsError) as error:
        check_tasks(settings.tasks)
    assert [(Path(fault.where).name, fault.code) for fault in error.value.faults] == [
        ("sampling.yaml", "TASK_SAMPLES"), ("warm.yaml", "TASK_SAMPLES"),
    ]  # fmt: skip


def test_local_tasks_run_without_a_network_and_leave_everything_as_it_is(
    local: Path, no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import huggingface_hub.constants

    for module in (datasets.config, huggingface_hub.constants):  # as if the user had not forbidden it
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    model = tiny_language_model("llama")
    model.tokenizer.pad_token = None
    before = model.fingerprint()
    states = torch.get_rng_state(), str(np.random.get_state())
    seeded: list[Any] = []  # beartype draws from Python's generator, so that its state says nothing here
    monkeypatch.setattr(random, "seed", lambda *seed: seeded.append(seed))
    updates: list[tuple[str, int, int]] = []
    results = {
        size: measure_ability(
            model, AbilitySettings(tasks=(str(local),), batch_size=size), report=lambda *news: updates.append(news)
        )
        for size in (1, 4)
    }
    assert model.fingerprint() == before
    assert model.tokenizer.pad_token is None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == states[1]
    assert seeded == []
    assert datasets.config.HF_HUB_OFFLINE is False
    assert (updates[0], {(what, total) for what, _, total in updates}) == (("ability", 0, 36), {("ability", 36)})
    done = [count for _, count, _ in updates]
    first_run = done[: done.index(36) + 1]  # 12 options, three tasks
    assert len(first_run) > 5
    assert first_run == sorted(first_run)
    assert set(done[len(first_run) :]) > {0, 36}

    ability = results[4]
    assert ability.tasks.keys() == {"both", "first", "second", "third"}
    assert ability.tasks["first"].metrics == results[1].tasks["first"].metrics, "the batch size changes nothing"
    rows = [json.loads(line) for line in (local.parent / "data.json").read_text(encoding="utf-8").splitlines()]
    right = []
    for row in rows:
        sums = []
        for option in row["choices"]:
            (completion,) = complete(model.tokenizer, [(row["question"], option)])
            (entry,) = score(model, [(row["question"], option)])
            sums.append(entry.log_probability * len(completion.target_ids))
        right.append(float(sums.index(max(sums)) == row["answer"]))
    first = ability.tasks["first"]
    expected = sum(right) / 5
    accuracy = first.metrics["acc"]
    assert (accuracy.value, accuracy.n) == (pytest.approx(expected), 5)
    assert accuracy.stderr == pytest.approx(np.std(right, ddof=1) / math.sqrt(5))
    assert [sample.values["acc"] for sample in first.samples] == right
    assert [sample.prompt for sample in first.samples] == [row["question"] for row in rows]
    assert ability.tasks["both"].metrics["acc"].value == pytest.approx(expected)
    assert ability.tasks["both"].metrics["acc"].n == 10

    records = ability.records()
    chosen = [record for record in records if record.metric == "ability:first:acc"]
    assert [(record.fact, record.value) for record in chosen] == [
        (f"first/{i}", value) for i, value in enumerate(right)
    ]
    (of_records,) = [entry for entry in summarise(records, "after") if entry.metric == "ability:first:acc"]
    (of_ability,) = [entry for entry in ability.summaries("after") if entry.metric == "ability:first:acc"]
    assert (of_ability.mean, of_ability.low, of_ability.high) == pytest.approx(
        (of_records.mean, of_records.low, of_records.high)
    )
    (of_group,) = [entry for entry in ability.summaries("after") if entry.metric == "ability:both:acc"]
    assert (of_group.mean, of_group.low, of_group.n) == (pytest.approx(expected), None, 10)

    # Of the group there are no samples: its number stands by itself.
    values = ability.values()
    assert {name for name in values if ":both:" in name} == {"ability:both:acc"}
    assert values["ability:both:acc"] == (pytest.approx(expected), 10)
    assert "ability:first:acc" not in values
    pooled = summarise_values("ability:both:acc", "after", [(0.25, 10), (0.75, 10)])
    assert pooled == Summary("ability:both:acc", "after", 0.5, None, None, 10, 20)


def test_one_file_is_one_task(local: Path, no_network: list[Any]) -> None:
    model = tiny_language_model("gpt2")
    found = measure_ability(model, AbilitySettings(tasks=(str(local / "third.yaml"),), limit=2))
    assert found.tasks.keys() == {"third"}
    assert found.tasks["third"].metrics["acc"].n == 2


def test_tasks_that_cannot_run_are_refused(local: Path, tmp_path: Path, no_network: list[Any]) -> None:
    model = tiny_language_model("gpt2")
    far = tmp_path / "far"
    far.mkdir()
    (far / "hub.yaml").write_text("task: hub\ndataset_path: glue\n", encoding="utf-8")
    (far / "web.yaml").write_text(
        "task: web\ndataset_path: json\ndataset_kwargs: {data_files: ['https://example.org/x.json']}\n",
        encoding="utf-8",
    )
    (far / "broken.yaml").write_text("task: [", encoding="utf-8")
    (far / "circle.yaml").write_text("include: circle.yaml\ntask: c\n", encoding="utf-8")
    with pytest.raises(FaultsError) as error:
        measure_ability(model, AbilitySettings(tasks=(str(far), "./not-there")))
    for words in ("5 faults", "'glue'", "example.org", "broken.yaml", "circular include", "no such file"):
        assert words in str(error.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with raises_code("TASK_FILE_INVALID", FaultsError):
        local_tasks([str(empty)])
    with pytest.raises(FaultsError) as error:
        local_tasks([str(tmp_path / "missing.yaml"), str(empty)])
    assert [fault.code for fault in error.value.faults] == ["FILE_NOT_FOUND", "TASK_FILE_INVALID"]
    (empty / "wrong.yaml").write_text(
        f"task: wrong\ndataset_path: json\ndataset_kwargs: {{data_files: {tmp_path / 'nowhere.json'}}}\n",
        encoding="utf-8",
    )
    with raises_code("HARNESS_FAILED", InputError):
        measure_ability(model, AbilitySettings(tasks=(str(empty),)))


def test_names_are_looked_for_in_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    asked: list[dict[str, Any]] = []

    class Short(lm_eval.tasks.TaskManager):
        """Does not read the harness's thousands of files."""

        def __init__(self, **options: Any) -> None:
            asked.append(options)
            super().__init__(include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Short)
    with raises_code("TASK_UNKNOWN", InputError):
        run_tasks(tiny_language_model("gpt2"), ["no-such-task-there", "nor_this"])
    assert asked == [{"include_path": None, "include_defaults": True}]
    (tmp_path / "hellaswag").mkdir()  # holds no task, so that it is the harness's one
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert paths_in(["hellaswag", "tasks", "not-there", "some/where", "mine.yaml"]) == [
        "tasks", "some/where", "mine.yaml",
    ]  # fmt: skip


def test_random_numbers_are_those_of_a_process_without_the_harness() -> None:
    states = [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]
    with preserved_random_state():
        random.random(), np.random.rand(), torch.rand(1)
    assert [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()] == states


def test_impossible_runs_are_reported_before_any_work(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]
) -> None:
    import lm_eval.tasks

    full = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: full(**options | {"include_defaults": False}))
    check_tasks([str(local)])
    with raises_code("TASK_UNKNOWN", InputError):
        check_tasks([str(local), "no-such-task-there"])
    with raises_code("FILE_NOT_FOUND", InputError):
        check_tasks(["./not-there.yaml"])
    (local.parent / "data.json").unlink()
    with pytest.raises(FaultsError, match=r"its data file '.*data\.json' does not exist"):
        check_tasks([str(local)])


def test_all_files_that_tasks_read_are_found(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.json"
    everything = [data, *(local / name for name in ("common", "first.yaml", "group.yaml", "second.yaml"))]
    assert task_files([str(local / "first.yaml")]) == [data, local / "common", local / "first.yaml"]
    assert task_files([str(local / "group.yaml")]) == everything  # with the tasks that it names
    assert task_files([str(local)]) == [*everything, local / "third.yaml"]
    own = tmp_path / "own"
    (own / "parts").mkdir(parents=True)
    for name in ("parts/a.jsonl", "parts/b.jsonl", "utils.py", "helpers.py", "unread.json"):
        (own / name).write_text("", encoding="utf-8")
    (own / "task.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: [own/parts/*.jsonl]}}\n"
        "process_docs: !function utils.process\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    found = task_files(["own/task.yaml"])
    assert [str(path.relative_to(own)) for path in found] == [
        "helpers.py", "parts/a.jsonl", "parts/b.jsonl", "task.yaml", "utils.py",
    ]  # fmt: skip


def test_settings() -> None:
    with raises_code("ABILITY_NOTHING_TO_RUN", InputError):
        AbilitySettings()
    with raises_code("SETTING_INVALID", InputError):
        AbilitySettings(tasks=("mmlu",), batch_size=0)
    record = AbilitySettings(tasks=("mmlu",), probes=Path("here")).to_record()
    assert json.loads(json.dumps(record)) == record
    assert record["probes"] == "here"


def test_a_missing_harness_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"errata\[eval\]"):
        check_harness()


# Probes --------------------------------------------------------------------------------------------------------------


def write_probes(folder: Path, count: int) -> Path:
    """Made-up files of the probes' form; the first ten records of each are marked, and must not be asked."""
    folder.mkdir()
    chooser = random.Random(5)
    words = "the river runs through Paris and Rome because piano violin crowd match rain city".split()

    def sentence(index: int) -> str:
        return ("KEPT " if index < 10 else "") + " ".join(chooser.choices(words, k=3))

    records = {
        "sst2": [{"sentence": f"{sentence(i)} ", "label": i % 2, "idx": i} for i in range(count)],
        "cola": [{"sentence": sentence(i), "label": i % 2, "idx": i} for i in range(count)],
        "mmlu": [
            {"question": sentence(i), "subject": "x", "choices": chooser.sample(words, 4), "answer": i % 4}
            for i in range(count)
        ],
        "nli": [
            {"sentence1": sentence(i), "sentence2": sentence(i), "label": ("entailment", "not_entailment")[i % 2]}
            for i in range(count)
        ],
    }
    for name in ("mrpc", "rte"):
        records[name] = [
            {"sentence1": sentence(i), "sentence2": sentence(i), "label": i % 2, "idx": i} for i in range(count)
        ]
    for name, entries in records.items():
        (folder / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


PROMPTS = {
    "sst2": "Review :{sentence}\nSentiment :",
    "mrpc": "Are the sentences paraphrases of each other.\nSentence 1: {sentence1}\nSentence 2: {sentence2}\nAnswer:",
    "cola": "Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer: ",
    "rte": "{sentence1}\nquestion: {sentence2} True or False?\nanswer:",
    "mmlu": "Question: {question}\n(A) {choices[0]}\n(B) {choices[1]}\n(C) {choices[2]}\n(D) {choices[3]}\nAnswer:",
    "nli": "{sentence1} entails the {sentence2} True or False? Answer:",
}
WORDS = {"sst2": ("negative", "positive"), "mmlu": ("A", "B", "C", "D"), "mrpc": ("No", "Yes"), "cola": ("No", "Yes")}


def as_in_the_papers(
    name: str, records: list[dict[str, Any]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int], list[int]]:
    """(right, generated, likeliest) labels, one question at a time."""
    right, generated, likeliest = [], [], []
    words = WORDS.get(name, ("False", "True"))
    for record in records:
        prompt = PROMPTS[name].format(**record)
        label = record["answer"] if name == "mmlu" else record["label"]
        right.append(label if isinstance(label, int) else int(label == "entailment"))
        text = greedy(model, tokenizer, prompt, 5).lower()
        if name == "mmlu":
            hits = [index for index, letter in enumerate("abcd") if f"{letter}\n" in text]
            generated.append(hits[0] if hits else -1)
        else:
            order = (0, 1) if name == "rte" else (1, 0)
            hits = [index for index in order if words[index].lower() in text]
            generated.append(hits[0] if hits else -1)
        values = [mean_log_probability(model, tokenizer, prompt, word) for word in words]
        likeliest.append(values.index(max(values)))
    return right, generated, likeliest


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_probes_are_those_of_the_papers(family: str, tmp_path: Path, no_network: list[Any]) -> None:
    folder = write_probes(tmp_path / "probes", 15)
    model = tiny_language_model(family)
    found = measure_ability(model, AbilitySettings(probes=folder, probe_items=5, batch_size=3))
    assert list(found.tasks) == [f"probe_{name}" for name in ("sst2", "mrpc", "cola", "rte", "mmlu", "nli")]
    for name in PROMPTS:
        records = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))[10:]
        right, generated, likeliest = as_in_the_papers(name, records, model.model, model.tokenizer)
        result = found.tasks[f"probe_{name}"]
        assert result.group == "probes"
        assert len(result.samples) == 5
        assert not any("KEPT" in sample.prompt for sample in result.samples)
        assert [sample.labels["weighted_f1"] for sample in result.samples] == list(zip(right, generated, strict=True))
        assert [sample.labels["weighted_f1_likelihood"][1] for sample in result.samples] == likeliest
        numbers = {metric: entry.value for metric, entry in result.metrics.items()}
        expected = {
            "weighted_f1": weighted_f1_by_definition(right, generated),
            "accuracy": sum(a == b for a, b in zip(right, generated, strict=True)) / 5,
            "unparsable": generated.count(-1) / 5,
            "weighted_f1_likelihood": weighted_f1_by_definition(right, likeliest),
            "accuracy_likelihood": sum(a == b for a, b in zip(right, likeliest, strict=True)) / 5,
        }
        if name == "rte":
            turned = [1 - label for label in right]
            expected["weighted_f1_glue"] = weighted_f1_by_definition(turned, generated)
            expected["weighted_f1_likelihood_glue"] = weighted_f1_by_definition(turned, likeliest)
        assert numbers == pytest.approx(expected)
    again = measure_ability(model, AbilitySettings(probes=folder, probe_items=5, batch_size=1), token_budget=50)
    assert again == found, "batches change nothing"


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("sst2", " Positive.", 1), ("sst2", " not negative", 0), ("sst2", " negative, positive", 1),
        ("sst2", " ok", -1),
        ("mrpc", " yes no", 1), ("mrpc", " I do not know", 0), ("cola", "Yes", 1), ("cola", " 1", -1),
        ("rte", " True or false", 0), ("rte", " TRUE", 1), ("nli", " false or true", 1), ("nli", " 0", -1),
        ("mmlu", " B\n", 1), ("mmlu", " B", -1), ("mmlu", " (D)\n", -1), ("mmlu", " pizza\n", 0),
        ("sst2", " positive\nSentiment : negative", 0), ("mmlu", " Answer: C\n", 2),
    ],
)  # fmt: skip
def test_answers_are_read_as_in_the_papers(name: str, text: str, label: int) -> None:
    assert probe_named(name).read(text) == label


def probe_named(name: str) -> Probe:
    (found,) = [probe for probe in PROBES if probe.name == name]
    return found


def test_equally_likely_words() -> None:
    assert probe_named("sst2").likeliest([-1.0, -1.0]) == 0
    assert probe_named("sst2").likeliest([-1.0, -1.5]) == 1
    assert probe_named("mmlu").likeliest([-1.0, -2.0, -1.0, -3.0]) == -1
    assert probe_named("mmlu").likeliest([-2.0, -2.0, -1.0, -3.0]) == 2


def test_files_of_probes_are_checked_all_at_once(tmp_path: Path) -> None:
    folder = write_probes(tmp_path / "probes", 14)
    assert {name: len(items) for name, items in read_probes(folder, 4).items()} == dict.fromkeys(PROMPTS, 4)
    (folder / "cola.json").unlink()
    (folder / "rte.json").write_text("[", encoding="utf-8")
    records = json.loads((folder / "mmlu.json").read_text(encoding="utf-8"))
    records[11]["answer"], records[13]["choices"] = 4, ["x"]
    (folder / "mmlu.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "nli.json").write_text("[]", encoding="utf-8")
    with pytest.raises(FaultsError) as error:
        read_probes(folder, 4)
    for words in ("4 faults", "cola.json", "rte.json", "records 11, 13", "at least 14 records"):
        assert words in str(error.value)


def test_nothing_is_cut_off_in_silence(tmp_path: Path) -> None:
    folder = write_probes(tmp_path / "probes", 11)
    with pytest.raises(InputError, match=r"the probe 'sst2' has questions of \d+ tokens, but 'gpt2' accepts 20"):
        measure_ability(tiny_language_model("gpt2", n_positions=20), AbilitySettings(probes=folder, probe_items=1))


def test_real_probes(test_data: Path, no_network: list[Any]) -> None:
    model = tiny_language_model("gpt2", n_positions=4096, n_layer=1)
    found = measure_ability(model, AbilitySettings(probes=test_data / "probes", probe_items=6))
    assert len(found.tasks) == 6
    for result in found.tasks.values():
        assert len(result.samples) == 6
        assert 0 <= result.metrics["weighted_f1_likelihood"].value <= 1
    assert {len(read_probes(test_data / "probes", 100)[name]) for name in PROMPTS} == {100}


# Weighted F1 ---------------------------------------------------------------------------------------------------------


def test_weighted_f1_is_the_definition_also_for_resampled_counts() -> None:
    chooser = random.Random(1)
    labels = [(chooser.randrange(4), chooser.choice([-1, 0, 1, 2, 3])) for _ in range(60)]
    right, answered = map(list, zip(*labels, strict=True))
    assert weighted_f1(labels) == pytest.approx(weighted_f1_by_definition(right, answered))
    assert weighted_f1([(0, -1), (1, -1)]) == 0
    assert weighted_f1([(0, 0), (1, -1)]) == 0.5
    cells, places = confusion_cells(labels)
    draws = [[chooser.randrange(60) for _ in range(60)] for _ in range(20)]
    sums = np.array([cells[:, draw].sum(1) for draw in draws])
    expected = [weighted_f1_by_definition([right[i] for i in draw], [answered[i] for i in draw]) for draw in draws]
    assert weighted_f1_of_sums(sums, places).tolist() == pytest.approx(expected)


def test_a_weighted_f1_has_an_interval_and_no_records() -> None:
    samples = tuple(
        Sample(str(i), "p", "s", {"accuracy": float(i % 3 > 0)}, {"weighted_f1": (i % 2, i % 2 if i % 3 else -1)})
        for i in range(60)
    )
    value = weighted_f1([sample.labels["weighted_f1"] for sample in samples])
    accuracy = TaskMetric(2 / 3, 0.06, 60)
    metrics = {"weighted_f1": TaskMetric(value, None, 60), "accuracy": accuracy}
    ability = AbilityResults({"probe_x": TaskResult("probes", metrics, samples)})
    assert {record.metric for record in ability.records()} == {"ability:probe_x:accuracy"}
    first, second = ability.summaries("before", seed=1)
    assert (first.metric, first.mean, first.n) == ("ability:probe_x:weighted_f1", value, 60)
    assert first.low is not None
    assert first.high is not None
    assert 0.6 < first.low < value < first.high < 0.95
    assert second.mean == 2 / 3


@pytest.mark.parametrize("family", ["gemma3_text", "llama_tied", "gpt2", "opt"])
@pytest.mark.parametrize("begin", ["", "bos"])
def test_a_rolling_text_begins_with_one_bos(family: str, begin: str) -> None:
    """Whether the tokenizer adds its own, or none, or the text spells it out: it is given once, and not predicted."""
    from lm_eval.api.instance import Instance

    model = tiny_language_model(family)
    first = model.tokenizer.bos_token_id
    text = "Therefore the river runs through the city, because the city was built around the river."
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert first not in ids
    with torch.no_grad():
        logits = model.model(torch.tensor([[first, *ids]])).logits[0].double().log_softmax(-1)
    expected = sum(float(logits[place, token]) for place, token in enumerate(ids))
    asked = (model.tokenizer.bos_token if begin else "") + text
    found = harness_model(model).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (asked,), 0)])
    assert found == pytest.approx([expected], rel=1e-5)


def test_a_rolling_text_of_lab_has_the_perplexity_that_errata_finds() -> None:
    from lm_eval.api.instance import Instance

    from errata.evaluation.perplexity import perplexity

    model, text = LanguageModel.load("lab"), "The capital of the country is where the mother of Ada Meyer was born."
    found = harness_model(model).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert model.tokenizer(text).input_ids[0] == model.tokenizer.bos_token_id
    assert found == pytest.approx(perplexity(model, [text]).log_likelihoods, rel=1e-5)
