"""Radii and thresholds chosen on facts that are not edited: the best of those tried, in the file, and restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editors.calibration import Calibration, TrialMemory, best_trial, trial_memories
from errata.editors.edit_file import StoredEdit
from errata.editors.elder import Elder
from errata.editors.hook_editor import ReadMemory, unrelated_prompts
from errata.editors.memoir import mask_of
from errata.editors.registry import make_editor
from errata.facts.fact import Fact, Question
from errata.facts.files import write_facts
from errata.models.language_model import LanguageModel
from errata.utils.progress import silent

from tests.reference import elder, grace, melo, memoir
from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code

NAMES = ("Thomas Stieltjes", "The crowd", "The river", "Kenji", "Rome", "Madrid", "Bordeaux")
PLACES = ("Paris", "Rome", "London", "Madrid", "Paris", "Nagoya", "Rome")
# Editor -> the setting that is calibrated, and settings for the tiny model.
CALIBRATED: dict[str, tuple[str, dict[str, Any]]] = {
    "grace": ("epsilon", {"steps": 1}),
    "melo": ("radius", {"steps": 1, "batch_size": 2}),
    "memoir": ("threshold", {"steps": 1, "columns": 12}),
    "elder": ("threshold", {"steps": 5}),
}


def held_out_facts() -> list[Fact]:
    return [
        Fact(
            f"held {number}", name, "{} was born in", place,
            paraphrases=(f"You know that {name} was born in", f"I think that {name} was born in"),
            own=(Question(f"{name} plays the", "piano"),),
            neighbours=(Question("Big Ben was born in", "Rome"), Question("The rain runs through", "Paris")),
        )
        for number, (name, place) in enumerate(zip(NAMES, PLACES, strict=True))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model("llama")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("held") / "held_out.jsonl"
    write_facts(held_out_facts(), path)
    return str(path)


def mean_of(found: Calibration) -> float:
    return (found.hit_rate + found.refusal_rate) / 2


# The facts


def test_edited_and_asked_subjects_are_left_out() -> None:
    held_out = held_out_facts()
    edited = replace(
        FACTS[0], subject="Rome", paraphrases=("Kenji is from",), neighbours=(Question("Madrid is", "a city"),)
    )
    for count in (1, 3, 20):
        facts = [edited, *(Fact(f"e{number}", f"Zq{number}", "{} is", "x") for number in range(count - 1))]
        memories = trial_memories(held_out, facts)
        named = {memory.facts[place].subject for memory in memories for place, _ in memory.paraphrases}
        assert named == {"Thomas Stieltjes", "The crowd", "The river", "Bordeaux"}
        assert {len(memory.facts) for memory in memories} == {count}
        asked = [memory.facts[place].id for memory in memories for place, _ in memory.paraphrases]
        assert len(asked) == 8
        for memory in memories:
            assert len({fact.id for fact in memory.facts}) == count
            for place, text in memory.paraphrases:
                assert memory.facts[place].subject in text
    two = trial_memories(held_out, [edited], most=2)
    assert [memory.facts[0].subject for memory in two] == ["Thomas Stieltjes", "The crowd"]
    with raises_code("CALIBRATION_IMPOSSIBLE"):
        trial_memories([replace(fact, paraphrases=()) for fact in held_out], [edited])


def test_the_first_of_the_best_is_taken() -> None:
    memory = TrialMemory(tuple(held_out_facts()[:2]), ((0, "a"), (1, "b")), ("c", "d", "e"))
    trials: list[tuple[float, list[Sequence[Sequence[int]]]]] = [
        (0.1, [[(), (), (), (), ()]]),  # 0, 3/3
        (0.2, [[(1,), (0,), (), (), ()]]),  # wrong facts are no hits
        (0.3, [[(0, 1), (), (), (), (1,)]]),  # 1/2, 2/3
        (0.4, [[(0,), (1,), (), (1,), (1,)]]),  # 2/2, 1/3
        (0.5, [[(0,), (1,), (1,), (), (1,)]]),
    ]
    assert best_trial([memory], trials) == Calibration(0.4, 1.0, 1 / 3, 2, 2, 3)
    assert best_trial([memory], trials[:3]) == Calibration(0.3, 0.5, 2 / 3, 2, 2, 3)
    assert best_trial([memory], trials[:2]).threshold == 0.1


# The twins


def hand_made(*, facts: int, width: int, noise: float, seed: int) -> tuple[ReadMemory, TrialMemory]:
    """Facts at random places, paraphrases near them, other questions further away."""
    generator = torch.Generator().manual_seed(seed)

    def near(places: Tensor, size: float) -> Tensor:
        return places + size * torch.randn(places.shape, generator=generator)

    own = torch.randn(facts, width, generator=generator)
    asked = torch.cat([near(own, noise), near(own, noise), near(own, 2.5 * noise), near(own, 4 * noise)])
    labels = tuple((number % 3,) for number in range(facts))
    known = tuple(Fact(f"f{number}", f"n{number}", "{} is", "x") for number in range(facts))
    texts = [str(number) for number in range(4 * facts)]
    paraphrases = tuple((number % facts, text) for number, text in enumerate(texts[: 2 * facts]))
    return ReadMemory(known, own, labels, asked), TrialMemory(known, paraphrases, tuple(texts[2 * facts :]))


@pytest.mark.parametrize("name", ["grace", "melo"])
@pytest.mark.parametrize(("width", "noise"), [(30, 0.05), (4, 0.3)])
def test_the_radius_is_the_best_of_brute_force(model: LanguageModel, name: str, width: int, noise: float) -> None:
    made = [hand_made(facts=6, width=width, noise=noise, seed=seed) for seed in range(2)]
    editor = make_editor(name, model, {f"relative_{CALIBRATED[name][0]}": False}, silent)
    trials = list(editor.trials([read for read, _ in made]))  # type: ignore[attr-defined]
    found = best_trial([memory for _, memory in made], trials)

    def mean_at(radius: float) -> float:
        hits, refusals = 0, 0
        for read, memory in made:
            points = read.own.double().tolist()
            twin = grace.book if name == "grace" else melo.clusters
            rows = twin(points, read.labels, radius)
            for number, query in enumerate(read.asked.double().tolist()):
                if name == "grace":
                    key = grace.hit(rows, query)
                    got = [] if key is None else rows[key][3]
                else:
                    point = melo.hit(rows, points, query)
                    got = [] if point is None else [point]
                if number < len(memory.paraphrases):
                    hits += memory.paraphrases[number][0] in got
                else:
                    refusals += not got
        return hits / 24 / 2 + refusals / 24 / 2

    assert mean_of(found) == pytest.approx(mean_at(found.threshold))
    tried = [value for value, _ in trials]
    assert tried == sorted(tried)
    assert mean_of(found) == pytest.approx(max(map(mean_at, tried)))
    if width == 30:  # balls that do not meet: only the distances of questions matter, and all are tried or are close
        assert mean_of(found) >= max(mean_at(0.05 * step) for step in range(1, 30)) - 0.03
        assert mean_of(found) > 0.9


def test_the_overlap_is_the_best_of_brute_force(model: LanguageModel) -> None:
    editor = make_editor("memoir", model, {"columns": 12}, silent)
    centre = editor.read_alone(unrelated_prompts(model)).mean(0)  # type: ignore[attr-defined]
    read, memory = hand_made(facts=9, width=len(centre), noise=0.3, seed=0)
    found = best_trial([memory], editor.trials([read]))  # type: ignore[attr-defined]
    order = torch.arange(len(centre))  # a permutation changes no overlap
    own, asked = ([memoir.mask(query, centre, 12, order) for query in part] for part in (read.own, read.asked))

    def mean_at(threshold: float) -> float:
        hits, refusals = 0, 0
        for number, mask in enumerate(asked):
            shares = [sum(a and b for a, b in zip(mask, other, strict=True)) / 12 for other in own]
            got = shares.index(max(shares)) if max(shares) >= threshold else None
            if number < len(memory.paraphrases):
                hits += got == memory.paraphrases[number][0]
            else:
                refusals += got is None
        return hits / 18 / 2 + refusals / 18 / 2

    assert mean_of(found) == pytest.approx(mean_at(found.threshold))
    least = editor._least  # type: ignore[attr-defined]
    assert found.threshold >= least
    steps = [least + step * (1 - least) / 60 for step in range(61)]
    assert mean_of(found) == pytest.approx(max(map(mean_at, steps)))
    assert 0.5 < mean_of(found) < 1
    assert mask_of(read.own, centre, 12, 0).shape == (9, len(centre))


def test_codes_are_those_of_routers_trained_by_the_guidance_alone(model: LanguageModel) -> None:
    editor = make_editor("elder", model, {"steps": 8, "learning_rate": 0.02, "batch_size": 4}, silent)
    assert isinstance(editor, Elder)
    start = editor._begun()
    read, memory = hand_made(facts=9, width=len(start.centre), noise=0.1, seed=0)
    trials = list(editor.trials([read]))
    assert [value for value, _ in trials] == [float(value) for value in range(2, 2 * len(trials) + 1, 2)]
    found = best_trial([memory], trials)
    means = []
    for threshold, (got,) in trials:
        state = editor._tied(start, read, int(threshold))
        assert torch.equal(state.parameters["A"], start.parameters["A"])
        scaled = (read.asked - start.centre) / start.scales[0]
        codes = [elder.code(state.parameters, query, 2) for query in state.queries]
        hits = refusals = 0
        for number, query in enumerate(scaled):
            distances = [elder.distance(elder.code(state.parameters, query, 2), code) for code in codes]
            inside = min(distances) < threshold
            assert bool(got[number]) == inside
            if number < len(memory.paraphrases):
                hits += memory.paraphrases[number][0] in got[number]
            else:
                refusals += not inside
        means.append(hits / 18 / 2 + refusals / 18 / 2)
    assert mean_of(found) == pytest.approx(max(means))
    # The guidance ties every fact of the last batch to its allocation.
    tied = editor._tied(start, read, 2)
    assert torch.equal(editor._router(tied, 2).codes[-1], tied.allocations[-1])


# The editors


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_value_is_in_the_file_and_in_force(model: LanguageModel, source: str, name: str, tmp_path: Path) -> None:
    setting, settings = CALIBRATED[name]
    editor = make_editor(name, model, {**settings, "calibration": source}, silent)
    assert editor.calibration is None  # type: ignore[attr-defined]
    first = editor.apply(FACTS[:3])
    found = editor.calibration  # type: ignore[attr-defined]
    assert (found.facts, found.positives) == (3, 2 * len(NAMES))
    assert 0.5 <= mean_of(found) <= 1
    view = editor.view()
    assert view.used([fact.text for fact in FACTS[:3]]) == [(fact.id,) for fact in FACTS[:3]]
    # Later edits keep it, and files bring it back.
    second = editor.apply(FACTS[3:4])
    assert editor.calibration == found  # type: ignore[attr-defined]
    other = make_editor(name, model, {**settings, "calibration": "not read"}, silent)
    for number, edit in enumerate((first, second)):
        edit.save(tmp_path / str(number))
        loaded = StoredEdit.load(tmp_path / str(number))
        assert loaded.state["calibration"]["threshold"] == found.threshold
        with pytest.raises(Exception, match="same settings"):
            other.restore(loaded)
    again = make_editor(name, model, {**settings, "calibration": source}, silent)
    for number in range(2):
        again.restore(StoredEdit.load(tmp_path / str(number)))
    assert again.calibration == found  # type: ignore[attr-defined]
    assert again.fingerprint() == editor.fingerprint()
    # The rates are those of editors that have the value as a setting, and the facts of a memory.
    if name != "elder":  # its codes depend on what else is trained
        hits = refusals = negatives = 0
        for memory in trial_memories(held_out_facts(), FACTS[:3]):
            fixed = make_editor(name, model, {**settings, setting: found.threshold}, silent)
            fixed.apply(memory.facts)
            used = fixed.view().used(memory.questions)
            count = len(memory.paraphrases)
            hits += sum(memory.facts[p].id in got for (p, _), got in zip(memory.paraphrases, used[:count], strict=True))
            refusals += sum(not got for got in used[count:])
            negatives += len(memory.others)
        assert (hits / found.positives, refusals / negatives) == (found.hit_rate, found.refusal_rate)
    # Without any edit nothing is left of it; a calibration that fails leaves everything as it was.
    editor.remove(second)
    editor.remove(first)
    assert editor.fingerprint() == make_editor(name, model, {**settings, "calibration": source}, silent).fingerprint()
    with raises_code("CALIBRATION_IMPOSSIBLE"):
        editor.apply([replace(fact, paraphrases=()) for fact in held_out_facts()])
    assert editor.view().used([FACTS[0].text]) == [()]


def test_queries_that_separate_poorly_are_reported(
    model: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "held_out.jsonl"
    held_out = held_out_facts()
    alike = [tuple(Question(text, "x") for text in fact.paraphrases) for fact in held_out]
    write_facts([replace(fact, neighbours=own) for fact, own in zip(held_out, alike, strict=True)], path)
    editor = make_editor("grace", model, {"steps": 1, "calibration": str(path)}, silent)
    editor.apply(FACTS[:3])
    assert "3 facts" in caplog.messages[-1]
