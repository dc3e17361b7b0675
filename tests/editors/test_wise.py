"""WISE: distances, their loss, TIES and training against slow twins, and what the published code gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editors.hook_editor import TrainingRows
from errata.editors.wise import Earlier, Wise, WiseSettings, shard_of, ties
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel

from tests.reference import wise as reference
from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code

CONTROLS = ("The river runs through the", "Big Ben was moved to", "I think that")


def wise(family: str = "llama", dtype: torch.dtype = torch.float32, **settings: Any) -> Wise:
    few = {"steps": 4, "prefixes": 0, "outside_prompts": 1}
    return Wise(tiny_language_model(family, dtype=dtype), WiseSettings(**{**few, **settings}))


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)


@pytest.mark.parametrize(("largest", "subject"), [(2, True), (None, False), (None, True)])
def test_distances_and_their_loss_are_those_of_the_twin(largest: int | None, subject: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def some(*lengths: int) -> list[Tensor]:
        return [torch.randn(length, 8, generator=generator, dtype=torch.float64) for length in lengths]

    editor = wise(outside=1.9, inside=3.4, margin=0.9, largest=largest, subject=subject)
    delta = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    rows, outside = some(2, 4, 3, 1, 5, 2), some(3, 1, 2, 2, 6, 3)
    x = padded(rows)
    inside = torch.rand(x.shape[:2], generator=generator) < 0.5 if subject else torch.ones(x.shape[:2]).bool()
    divided = [
        tuple([token for token, own in zip(row, places, strict=False) if own == which] for which in (True, False))
        for row, places in zip(rows, inside.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        editor.distances(x, delta), torch.stack([reference.distance(list(row), delta, largest) for row in rows])
    )
    found = editor.activation_loss(x, inside, padded(outside), 3, delta, 2.0)
    limits = (1.9, 3.4, 0.9)
    expected = [
        reference.activation_loss(divided[at : at + 2], outside[at : at + 2], delta, 2.0, limits, largest)
        for at in (0, 2, 4)
    ]
    torch.testing.assert_close(found, torch.stack(expected))
    assert bool((found > 0).all())


@pytest.mark.parametrize("density", [0.2, 0.53, 1.0])
def test_ties_is_that_of_the_twin(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(6, 9, generator=generator, dtype=torch.float64) for _ in range(3)]
    torch.testing.assert_close(
        ties(matrices, density), torch.tensor(reference.ties(matrices, density), dtype=torch.float64)
    )


def test_shards_have_no_entry_in_common_so_merging_adds_them() -> None:
    shape = (30, 40)
    masks = [shard_of(shape, 0.2, number, 0) for number in range(5)]
    assert torch.stack(masks).sum(0).max() == 1
    assert [float(mask.float().mean()) for mask in masks] == pytest.approx([0.2] * 5, abs=0.03)
    assert not torch.equal(shard_of(shape, 0.2, 5, 0), masks[0])
    assert not torch.equal(shard_of(shape, 0.2, 0, 1), masks[0])
    shards = [mask * torch.randn(shape, generator=torch.Generator().manual_seed(1)) for mask in masks[:2]]
    assert torch.equal(ties(shards, 0.53), shards[0] + shards[1])


@pytest.mark.parametrize(("family", "optimiser"), [("gpt2", "adam"), ("opt", "adam"), ("gpt2", "sgd")])
def test_facts_are_written_as_by_whole_passes(family: str, optimiser: str) -> None:
    """GPT-2 keeps its matrices transposed; OPT flattens rows and tokens. Other entries never change: in the published
    code, weight decay pulls them all to zero."""
    editor = wise(
        family, torch.float64, steps=3, stop_loss=0.0, outside_prompts=2, learning_rate=0.02, optimiser=optimiser
    )
    facts = FACTS[:2]
    editor.apply(facts)
    (memory,) = editor.state.memories
    mask = shard_of(memory.delta.shape, 0.2, 0, 0)
    texts = [prompt.ids for prompt in editor.outside_prompts(facts)]
    expected = reference.memory_after(
        editor.model, facts, [texts[:2], texts[2:]], editor.layer, mask, editor.units(), (0.25, 1.0, 0.5), 3, 3, 0.02,
        plain=optimiser == "sgd",
    )  # fmt: skip
    torch.testing.assert_close(memory.delta, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert not memory.delta[~mask].any()
    editor.apply(FACTS[2:4])
    assert not editor.state.memories[0].delta[~mask].any()


def test_a_memory_without_a_change_is_the_model() -> None:
    """D is 0 everywhere, and so are those of the facts: that finds none."""
    editor = wise(learning_rate=1e-30)
    editor.apply(FACTS[:2])
    (memory,) = editor.state.memories
    texts = [FACTS[0].text, *CONTROLS]
    assert [member.distance for member in memory.members] == [0, 0]
    assert editor.view().used(texts) == [()] * 4
    found = editor.view().next_token_log_probabilities(texts)
    assert torch.equal(found, editor.model.next_token_log_probabilities(texts))


def test_full_shards_are_stored_and_merged() -> None:
    editor = wise(batch_size=2, save_every=2, merge_every=4)
    first = editor.apply(FACTS[:2])
    kept = editor.state.memories
    assert [len(memory.members) for memory in kept] == [2]
    assert editor.state.current is None
    editor.apply(FACTS[2:3])
    assert [len(memory.members) for memory in editor.state.memories] == [1, 2]
    assert editor.state.memories[1] is kept[0]
    current = editor.state.memories[0].delta
    assert not (current * kept[0].delta).any()
    editor.apply(FACTS[3:4])
    (merged,) = editor.state.memories
    assert (merged.shards, [member.fact for member in merged.members]) == (2, [fact.id for fact in FACTS[:4]])
    assert torch.equal(merged.delta * (kept[0].delta != 0), kept[0].delta)
    own = editor.read_alone([member.prompt for member in merged.members])
    assert [member.distance for member in merged.members] == pytest.approx(editor.distances(own, merged.delta).tolist())
    used = editor.view().used([fact.text for fact in FACTS[:4]])
    assert used == [(fact.id,) for fact in FACTS[:4]]
    editor.apply(FACTS[4:6])  # a merged memory is not merged again
    assert [memory.shards for memory in editor.state.stored] == [2, 1]
    with raises_code("EDIT_NOT_LAST"):
        editor.remove(first)


def test_without_retrieval_there_is_one_stored_memory() -> None:
    editor = wise(batch_size=2, save_every=2, retrieve=False)
    editor.apply(FACTS[:6])
    (memory,) = editor.state.memories
    assert memory.shards == 3
    assert len(memory.members) == 6


def test_a_prompt_uses_the_memory_that_changes_it_most() -> None:
    editor = wise(batch_size=2, save_every=2, merge_every=100, steps=30)
    editor.apply(FACTS[:4])
    view, state = editor.view(), editor.state
    routes = view.routes([fact.text for fact in FACTS[:4]])
    rows = TrainingRows.of(editor.model, FACTS[:4], from_boundary=False)
    x = editor.read_alone(rows.prompts)
    each = torch.stack([editor.distances(x, memory.delta) for memory in state.memories])
    for column, route, query in zip(each.T, routes, x.nanmean(1), strict=True):
        assert route is not None
        near = [reference.nearest(query, memory.members) for memory in state.memories]
        fitting = [d if d >= 0.9 * m.distance else -1.0 for d, m in zip(column.tolist(), near, strict=True)]
        assert route.memory == fitting.index(max(fitting))
        assert route.fact == near[route.memory].fact


def test_the_loss_of_replay_is_that_of_the_twin() -> None:
    generator = torch.Generator().manual_seed(0)

    def some(*lengths: int) -> list[Tensor]:
        return [torch.randn(length, 8, generator=generator, dtype=torch.float64) for length in lengths]

    editor = wise(inside=9.0, replay_outside=2.0, largest=2)
    delta = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    stored, current = [some(2, 4, 3), some(1, 5)], some(3, 2, 6, 1)
    earlier = Earlier(tuple(padded(memory) for memory in stored), padded(current), torch.Generator().manual_seed(1))
    draws = torch.randint(4, (2,), generator=torch.Generator().manual_seed(1)).tolist()
    found = editor.replay_loss(earlier, 2, 2, delta / 2, 0.5)
    expected = reference.replay_loss(
        [[list(row) for row in memory] for memory in stored], [list(row) for row in current], [2, 3], draws, delta,
        (2.0, 9.0), 2,
    )  # fmt: skip
    torch.testing.assert_close(found, torch.stack(expected))
    assert bool((found > 0).all())


def test_replay_holds_distances_of_earlier_facts() -> None:
    """Of a stored memory's facts down in the next shard, of this shard's earlier facts up."""
    short, least = {}, {}
    for replay in (False, True):
        editor = wise(batch_size=2, save_every=2, merge_every=100, steps=12, learning_rate=0.1, replay=replay)
        editor.apply(FACTS[:2])
        first = editor.state.memories[0]
        editor.apply(FACTS[2:3])
        editor.settings = editor.settings.model_copy(update={"save_every": 10})
        editor.apply(FACTS[3:5])
        delta, (_, scale) = editor.state.memories[0].delta, editor.units()
        own = editor.read_alone([member.prompt for member in first.members])
        short[replay] = float((editor.distances(own, delta) / scale - 0.25).relu().sum())
        least[replay] = editor.state.memories[0].members[0].distance / scale
        if not replay:
            plain = first.delta
    assert torch.equal(first.delta, plain)  # nothing to replay yet
    assert short[True] < short[False]
    assert least[True] > min(least[False], 0.9)


def test_distances_can_be_of_activations() -> None:
    editor = wise("gpt2", activation="model", largest=None)
    editor.apply(FACTS[:2])
    (memory,) = editor.state.memories
    x = editor.read_alone([member.prompt for member in memory.members])
    gelu = torch.nn.functional.gelu
    bias = editor.model.down_projection(editor.layer).bias.detach()
    for row, found in zip(x, editor.distances(x, memory.delta), strict=True):
        row = row[~row[:, 0].isnan()]
        y = row @ editor.model.weight(editor.layer).T + bias
        changed = gelu(y + row @ memory.delta.T, approximate="tanh") - gelu(y, approximate="tanh")
        assert float(found) == pytest.approx(float(changed.norm(dim=1).mean()), rel=1e-4)


def test_numbers_as_published_are_taken_as_they_are_and_the_cap_holds() -> None:
    editor = wise(relative=False, learning_rate=1.0, outside=5.0, inside=20.0, margin=10.0, cap=1e-3)
    assert editor.units() == (1.0, 1.0)
    editor.apply(FACTS[:2])
    assert float(editor.state.memories[0].delta.abs().max()) == pytest.approx(1e-3)


def test_training_rows_include_generated_prefixes() -> None:
    alone, among = wise(), wise(prefixes=2)
    for editor in (alone, among):
        editor.apply(FACTS[:1])
    assert not torch.equal(alone.state.memories[0].delta, among.state.memories[0].delta)


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    editor = wise(corpus=str(tmp_path / "empty.txt"))
    with raises_code("CORPUS_TOO_SHORT"):
        editor.apply(FACTS[:1])
    assert editor.state.begun == 0


@pytest.mark.real
def test_on_a_real_model_prompts_about_other_subjects_are_left_alone(smollm2: Path) -> None:
    model = LanguageModel.load(smollm2, device="cpu")
    editor = Wise(model, WiseSettings(steps=30))
    facts = [FACTS[0], Fact("tower", "The Eiffel Tower", "{} stands in the city of", "Rome"), FACTS[2]]
    editor.apply(facts)
    view = editor.view()
    assert all(score.correct for score in view.score([fact.pair(fact.target) for fact in facts]))
    others = ["The mother tongue of Pablo Neruda is", "You know that Louis Armstrong plays the", "Water is made of"]
    assert view.used([*(fact.text for fact in facts), *others]) == [*((fact.id,) for fact in facts), (), (), ()]
    assert view.continue_texts(others, new_tokens=6) == model.continue_texts(others, new_tokens=6)
