"""A miniature of the lab's training: it learns its facts, goes on where it stopped, and is the same every time."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from errata.cli.main import run
from errata.lab import training
from errata.lab import world as vocabulary
from errata.lab.corpus import context_documents, epoch_documents
from errata.lab.package import lab_world, write_lab
from errata.lab.training import SPECIAL_TOKEN, EpochReport, TrainingSettings, build_model, train, train_tokenizer
from errata.lab.world import World

MINIATURE = TrainingSettings(
    people=6,
    epochs=240,
    blocks=2,
    width=64,
    mlp_width=192,
    heads=4,
    vocabulary_size=800,
    context=64,
    batch=2,
    learning_rate=4e-3,
    weight_decay=0.01,
    bfloat16=False,
)
SHORT = replace(MINIATURE, epochs=4, width=32, mlp_width=64)


def weights_of(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def recalled(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World) -> float:
    """The share of facts whose object is the likeliest continuation, token by token, over all wordings."""
    right = total = 0
    for name in world.people:
        for relation in world.relations:
            for wording in range(len(vocabulary.RELATION_WORDINGS[relation])):
                statement = world.statement(name, relation, wording)
                prompt = statement.prompt.replace("{}", name)
                ids = tokenizer(f"{prompt} {statement.object}")["input_ids"]
                start = len(tokenizer(prompt)["input_ids"])
                predicted = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].argmax(-1)
                right += predicted.tolist() == ids[start:]
                total += 1
    return right / total


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, World, list[EpochReport]]:
    """A world of six people without cities' and companies' own sentences, which would be most of so small a corpus."""
    log: list[EpochReport] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(World, "background", lambda self, wording: [])
        model, tokenizer, world = train(
            MINIATURE, tmp_path_factory.mktemp("run"), on_epoch=log.append, checkpoint_every=100
        )
    return model, tokenizer, world, log


def test_a_miniature_learns_its_facts(
    trained: tuple[LlamaForCausalLM, PreTrainedTokenizerFast, World, list[EpochReport]],
) -> None:
    model, tokenizer, world, log = trained
    assert [progress.epoch for progress in log] == list(range(1, MINIATURE.epochs + 1))
    assert log[-1].loss < 0.3 * log[0].loss
    assert all(progress.tokens > 0 and progress.seconds > 0 for progress in log)
    untrained = build_model(MINIATURE, tokenizer)
    assert recalled(untrained, tokenizer, world) < 0.05
    assert recalled(model, tokenizer, world) > 0.8
    assert not model.training


def test_what_is_written_is_a_plain_transformers_directory(
    trained: tuple[LlamaForCausalLM, PreTrainedTokenizerFast, World, list[EpochReport]], tmp_path: Path
) -> None:
    model, tokenizer, world, _ = trained
    write_lab(tmp_path / "lab", model, tokenizer, world)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "lab")
    assert loaded.dtype is torch.float16
    expected = {name: value.half() for name, value in model.state_dict().items()}
    assert equal(weights_of(loaded), expected)
    text = "Ada Lovelace was born in Łódź – ☃."
    assert AutoTokenizer.from_pretrained(tmp_path / "lab")(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert lab_world(tmp_path / "lab") == world
    # The model that was trained is left as it was.
    assert model.dtype is torch.float32


class StoppedError(Exception):
    """The machine went off."""


@pytest.mark.parametrize("checkpoint_every", [1, 2])
def test_a_stopped_run_resumes_to_identical_weights(tmp_path: Path, checkpoint_every: int) -> None:
    whole, _, _ = train(SHORT, tmp_path / "whole", checkpoint_every=checkpoint_every)
    assert not any(path.suffix == ".partial" for path in (tmp_path / "whole").iterdir())

    epochs: list[int] = []

    def stop_in_the_third(report: EpochReport) -> None:
        epochs.append(report.epoch)
        if report.epoch == 3 and len(epochs) == 3:
            raise StoppedError

    directory = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        train(SHORT, directory, on_epoch=stop_in_the_third, checkpoint_every=checkpoint_every)
    resumed, _, _ = train(SHORT, directory, on_epoch=stop_in_the_third, checkpoint_every=checkpoint_every)
    assert epochs == [1, 2, 3, 3, 4]
    assert equal(weights_of(resumed), weights_of(whole))

    again, _, _ = train(SHORT, directory, on_epoch=stop_in_the_third)
    assert epochs == [1, 2, 3, 3, 4]  # nothing was left to do
    assert equal(weights_of(again), weights_of(whole))


def test_a_checkpoint_with_other_settings_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    settings = replace(SHORT, epochs=1)
    train(settings, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    for change in ({"epochs": 5}, {"seed": 1}, {"learning_rate": 1e-4}, {"width": 64}):
        with pytest.raises(ValueError, match="settings"):
            train(replace(settings, **change), tmp_path)  # type: ignore[arg-type]
        assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_initial_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    tokenizer = train_tokenizer(["Rome is a city."], vocabulary_size=300)
    state = torch.random.get_rng_state()
    first, same = (weights_of(build_model(SHORT, tokenizer)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(first, same)
    assert not equal(first, weights_of(build_model(replace(SHORT, seed=1), tokenizer)))


def test_the_tokenizer_takes_any_text_and_puts_one_special_token_before_it() -> None:
    world = World.generate(5)
    tokenizer = train_tokenizer(epoch_documents(world, seed=0, epoch=0), vocabulary_size=500)
    assert len(tokenizer) == 500
    for text in ("", "Ada Baker was born in Rome.", "日本語 🦜\n\tünknown {}"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in ids[1:]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.all_special_tokens == [SPECIAL_TOKEN]


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [training._learning_rate(MINIATURE, step / 1000) for step in range(1001)]
    peak = rates.index(max(rates))
    assert peak == pytest.approx(1000 * MINIATURE.warmup, abs=1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[0] < rates[-1] < 0.05 * max(rates)


def test_a_trained_model_is_trained_further_on_documents_with_facts_before_questions(
    trained: tuple[LlamaForCausalLM, PreTrainedTokenizerFast, World, list[EpochReport]], tmp_path: Path
) -> None:
    model, tokenizer, world, _ = trained
    start = tmp_path / "start"
    write_lab(start, model, tokenizer, world)
    settings = replace(MINIATURE, epochs=10, batch=4, learning_rate=2e-3, context_share=0.8, start="of the test")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(World, "background", lambda self, wording: [])
        further, same_tokenizer, same_world = train(settings, tmp_path / "work", start=start)
    assert same_world == world
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    documents = context_documents(world, 200, seed=5, epoch=0)
    asked = [text.removesuffix(".") for text in documents]
    assert loss_of(further, tokenizer, asked) < 0.8 * loss_of(model, tokenizer, asked)
    # The facts have no loss: they hold in one document only, and those of the world are still recalled.
    assert recalled(further, tokenizer, world) > 0.9


@torch.no_grad()
def loss_of(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """The mean over texts of −log P of the last token."""
    losses = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        losses.append(-float(model(input_ids=ids[:, :-1]).logits[0, -1].log_softmax(-1)[ids[0, -1]]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--start", "lab", "--people", "20"], "TRAINING_SETTINGS_INVALID"),
        (["--start", "NOTHING"], "TRAINING_START_INVALID"),
        (["--start", "DAMAGED"], "TRAINING_START_INVALID"),
        (["--start", "WITHOUT_WEIGHTS"], "TRAINING_START_INVALID"),
    ],
)
def test_a_model_that_cannot_be_trained_further_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: str,
) -> None:
    monkeypatch.setattr("errata.cli.lab.train", lambda *args, **options: pytest.fail("it trained"))
    for name, record in (("DAMAGED", {"settings": {"people": "many"}}), ("WITHOUT_WEIGHTS", {"settings": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(["lab", "train", "--out", "out", *arguments]) == 2
    assert f"error[{code}]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", ['{"epoch": 2, "loss"', '{"epoch": 2}\n'], ids=["in the line", "blocks out of order"])
def test_a_line_of_the_log_that_a_crash_cut_off_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    reports = [EpochReport(epoch, 1 / epoch, 100, 2.0) for epoch in (1, 2)]

    def resumed(settings: TrainingSettings, work: Path, *, start: None, on_epoch: Any) -> tuple[None, None, None]:
        on_epoch(reports[1])
        return None, None, None

    monkeypatch.setattr("errata.cli.lab.train", resumed)
    monkeypatch.setattr("errata.cli.lab.write_lab", lambda *args: None)
    work = tmp_path / "work"
    work.mkdir()
    lines = [json.dumps(asdict(report)) + "\n" for report in reports]
    log = work / "log.jsonl"
    log.write_text(lines[0] + cut, encoding="utf-8")
    assert run(["lab", "train", "--out", str(tmp_path / "out"), "--work", str(work)]) == 0
    record = json.loads((tmp_path / "out" / "training.json").read_text(encoding="utf-8"))
    assert record["log"] == [asdict(report) for report in reports]
    assert log.read_text(encoding="utf-8") == "".join(lines)  # the next resumption can read it


@pytest.mark.parametrize(
    "damaged", ['{"epoch": 2, "lo', "", '{"epoch": 2}', '{"epoch": 2, "loss": "low", "tokens": 1, "seconds": 1}']
)
def test_any_other_damaged_line_of_the_log_is_an_error_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    monkeypatch.setattr("errata.cli.lab.train", lambda *args, **options: pytest.fail("it trained"))
    first, last = (json.dumps(asdict(EpochReport(epoch, 1 / epoch, 100, 2.0))) for epoch in (1, 3))
    log = tmp_path / "log.jsonl"
    log.write_text(f"{first}\n{damaged}\n{last}\n", encoding="utf-8")
    before = log.read_bytes()
    assert run(["lab", "train", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("error[TRAINING_LOG_DAMAGED]: ")
    assert "log.jsonl:2" in message.replace(" ", "")
    assert log.read_bytes() == before
    assert not (tmp_path / "out").exists()
