"""First tokens that several rows share are run once, and change nothing."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from errata.models.generation import continue_rows
from errata.models.language_model import LanguageModel
from errata.models.likelihood import NextToken, next_token_log_probabilities, predict, score, scores_of, stems_of
from errata.models.prompts import Pair, encode, length_batches

from tests.support.editing import tiny_language_model
from tests.support.tiny_models import FAMILIES

FACTS = ["The mother tongue of Danielle Darrieux is English.\n", "The Eiffel Tower stands in Rome.\n"]
QUERIES = [
    "The mother tongue of Danielle Darrieux is",
    "Because of the rain the match was moved from Madrid to Lisbon, and the crowd followed. Big Ben stands in",
    "Rome",
]
PROMPTS = [fact + query for fact in FACTS for query in QUERIES] + QUERIES[:2]
PAIRS: list[Pair] = [(prompt, target) for prompt in PROMPTS for target in ("French", "the city of London")]


def shared_tokens(model: LanguageModel) -> dict[str, tuple[int, ...]]:
    """Prompt -> the tokens of the fact that it begins with."""
    return {
        fact + query: stem.ids
        for fact, stem in zip(FACTS, encode(model.tokenizer, FACTS), strict=True)
        for query in QUERIES
    }


def tokens_read(model: LanguageModel) -> tuple[list[int], torch.utils.hooks.RemovableHandle]:
    """The padded tokens of each later forward pass, and how to stop counting."""
    counts: list[int] = []
    embedding = model.model.get_input_embeddings()
    return counts, embedding.register_forward_pre_hook(lambda module, args: counts.append(args[0].numel()))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_texts_do_not_depend_on_stems(family: str) -> None:
    model = tiny_language_model(family)
    shared = shared_tokens(model)
    expected = score(model, PAIRS)
    for token_budget in (1, 70, 4096):
        found = scores_of(model, PAIRS, shared=shared, token_budget=token_budget)
        for pair, other in zip(PAIRS, expected, strict=True):
            assert found[pair].log_probability == pytest.approx(other.log_probability, abs=1e-5), pair
            assert found[pair].likeliest == other.likeliest
    rows = [row.ids for row in encode(model.tokenizer, PROMPTS)]
    stems = [len(shared[prompt]) - 1 if prompt in shared else 0 for prompt in PROMPTS]
    alone = next_token_log_probabilities(model, rows)
    torch.testing.assert_close(next_token_log_probabilities(model, rows, stems=stems), alone, atol=1e-5, rtol=1e-5)
    for rows_of in (range(len(rows)), range(6)):
        some, some_stems = [rows[index] for index in rows_of], [stems[index] for index in rows_of]
        texts = continue_rows(model, some, new_tokens=6)
        for token_budget in (1, 100, 8192):
            assert continue_rows(model, some, new_tokens=6, stems=some_stems, token_budget=token_budget) == texts


def test_each_stem_is_read_once() -> None:
    model = tiny_language_model("llama")
    rows = [row.ids for row in encode(model.tokenizer, PROMPTS[:6])]
    stems = [len(shared_tokens(model)[prompt]) - 1 for prompt in PROMPTS[:6]]
    wanted = [[NextToken(len(row) - 1, 0)] for row in rows]
    counts, handle = tokens_read(model)
    predict(model, rows, wanted, stems=stems, token_budget=1)  # no batches, so no padding
    handle.remove()
    once = sum(dict(zip((row[:stem] for row, stem in zip(rows, stems, strict=True)), stems, strict=True)).values())
    assert sum(counts) == once + sum(len(row) - stem for row, stem in zip(rows, stems, strict=True))
    assert len(counts) == 2 + len(rows)


def test_a_prompt_with_other_first_tokens_shares_those_that_it_has() -> None:
    model = tiny_language_model("gpt2")
    pairs: list[Pair] = [(PROMPTS[0], "French"), (PROMPTS[1], "French")]
    first = encode(model.tokenizer, [PROMPTS[0]])[0].ids
    shared = {PROMPTS[0]: (*first, 1, 2, 3), PROMPTS[1]: (first[0], first[0], first[0])}
    found = scores_of(model, pairs, shared=shared)
    for pair, expected in zip(pairs, score(model, pairs), strict=True):
        assert found[pair].log_probability == pytest.approx(expected.log_probability, abs=1e-5)


def test_rows_of_a_group_follow_each_other_within_the_budget() -> None:
    generator = random.Random(0)
    for _ in range(200):
        count, budget = generator.randrange(1, 12), generator.randrange(1, 60)
        lengths = [generator.randrange(1, 20) for _ in range(count)]
        groups = [generator.randrange(3) for _ in range(count)]
        batches = list(length_batches(lengths, groups, token_budget=budget))
        order = [index for batch in batches for index in batch]
        assert sorted(order) == list(range(count))
        assert len([*itertools.groupby(groups[index] for index in order)]) == len(set(groups))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def _saved(rows: list[tuple[int, ...]], stems: list[int], cost: int = 8) -> int:
    """Tokens that stems save: each distinct one is read once."""
    groups: dict[tuple[int, ...], int] = {}
    for row, stem in zip(rows, stems, strict=True):
        if stem:
            groups[row[:stem]] = groups.get(row[:stem], 0) + 1
    return sum((count - 1) * len(stem) - cost for stem, count in groups.items())


def _best_saving(rows: list[tuple[int, ...]], most: list[int]) -> int:
    """By trying, for a set of rows that begin alike, one stem of each length for all of them, or none."""

    def best(indices: list[int], depth: int) -> int:
        length = min([depth, *(most[index] for index in indices)])
        whole = max(0, (len(indices) - 1) * length - 8)
        branches: dict[int, list[int]] = {}
        for index in indices:
            if len(rows[index]) > depth:
                branches.setdefault(rows[index][depth], []).append(index)
        return max(whole, sum(best(branch, depth + 1) for branch in branches.values() if len(branch) > 1))

    return best(list(range(len(rows))), 0) if rows else 0


def test_stems_are_those_that_save_most() -> None:
    generator = random.Random(0)
    chosen = 0
    for _ in range(300):
        count = generator.randint(0, 12)
        rows = list({tuple(generator.choices((1, 2), (9, 1), k=generator.randint(1, 30))) for _ in range(count)})
        most = [generator.randint(0, len(row) - 1) for row in rows]
        stems = stems_of(rows, most)
        assert all(0 <= stem <= limit for stem, limit in zip(stems, most, strict=True))
        assert _saved(rows, stems) == _best_saving(rows, most)
        chosen += any(stems)
    assert chosen > 30
    deep = [tuple([1] * n + [2]) for n in range(3000)]  # no recursion
    assert _saved(deep, stems_of(deep, [len(row) - 1 for row in deep])) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_beginnings_are_found_and_change_nothing(family: str) -> None:
    model = tiny_language_model(family)
    endings = ("London", "the city of Rome", "Paris and Rome", "the rain in Nagoya", "Lisbon or Madrid")
    pairs: list[Pair] = [(QUERIES[1], ending) for ending in endings]
    counts, handle = tokens_read(model)
    expected = scores_of(model, pairs, shared={})
    without_stems = sum(counts)
    counts.clear()
    found = scores_of(model, pairs)
    handle.remove()
    assert sum(counts) < 0.7 * without_stems
    for pair, other in expected.items():
        assert found[pair].log_probability == pytest.approx(other.log_probability, abs=1e-5), pair
        assert found[pair].likeliest == other.likeliest


def test_few_shared_tokens_are_read_with_each_row() -> None:
    model = tiny_language_model("gpt2")
    pairs: list[Pair] = [(f"The capital of {place} is", "Paris") for place in ("France", "Danielle Darrieux in Rome")]
    counts, handle = tokens_read(model)
    scores_of(model, pairs)
    handle.remove()
    assert len(counts) == 1
