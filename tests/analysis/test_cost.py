"""What a study costs by calculation, against counted operations and the bytes of real tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from errata.analysis.cost import (
    Machine,
    SearchRow,
    SearchRows,
    buckets_of,
    search_flops,
    search_memory,
    weight_shift_cost,
)
from errata.analysis.study import AnalysisSettings
from errata.editing.contexts import generate_prefixes
from errata.editing.preparation import prepare
from errata.editing.recipe import shipped_recipe
from errata.editing.search_groups import ROWS_AT_ONCE, TOKENS_AT_ONCE, GroupLimits
from errata.editing.search_prompts import SearchPrompts
from errata.editing.target_search import find_targets
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel, Site
from errata.models.loading import Outline
from errata.models.replay import pass_cost
from errata.models.size import ModelSize
from errata.statistics.moments import key_moments

from tests.support.editing import FACTS, corpus_texts, tiny_language_model, tiny_recipe, write_corpus

CPU_LIMITS = GroupLimits(ROWS_AT_ONCE, TOKENS_AT_ONCE)
MACHINE = Machine(flops=1e12, double_flops=1e11)


def typical_rows(
    facts: int, *, contexts: int, context: int, before: int, replayed: int, wanted: int, about: int
) -> SearchRows:
    """The rows of facts that are all alike.

    Args:
        contexts: the bare prompt included.
        context: tokens of a prefix.
        before: tokens of a prompt before the subject's last, none of them shared.
        replayed: tokens from there to the last but one of the target.
        wanted: tokens of the target.
        about: tokens of ``{subject} is a`` before the subject's last.
    """
    size = max(1, ROWS_AT_ONCE // (contexts + 1))
    row = [
        SearchRow(before + (context if kind else 0), replayed, wanted, context if kind else 0, kind)
        for kind in range(contexts)
    ]
    row.append(SearchRow(about, 1, 1, 0, contexts))
    counts = [min(size, facts - start) for start in range(0, facts, size)]
    return SearchRows(facts, tuple(buckets_of(row * count) for count in counts))


def counted(model: LanguageModel) -> FlopCounterMode:
    """A counter; the CPU's fused attention is not in its table, so attention is made of plain products."""
    model.model.set_attn_implementation("eager")
    return FlopCounterMode(display=False)


def llama_3_8b() -> ModelSize:
    """By its published configuration alone."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return ModelSize.of(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("layer", [0, 3, 4])
def test_operations_of_a_search_are_those_that_are_counted(tmp_path: Path, family: str, layer: int) -> None:
    model = tiny_language_model(family)
    recipe = tiny_recipe(write_corpus(tmp_path / "corpus.txt"))
    prefixes = generate_prefixes(model, recipe.contexts)
    rows = SearchRows.of(model.tokenizer, FACTS, recipe.contexts, prefixes, pass_cost(model), CPU_LIMITS)
    settings = recipe.target.model_copy(update={"steps": 5, "stop_loss": 0.0})
    with counted(model) as counter:
        find_targets(model, FACTS, prefixes, layer, Site.BLOCK, settings)
    expected = search_flops(ModelSize.of(model.model), rows, layer, 5)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_operations_of_a_search_on_the_lab_before_its_prefixes_are_there() -> None:
    model, recipe = LanguageModel.load("lab"), shipped_recipe("lab", "memit")
    facts = list(lab_facts(lab_world(), 5, seed=0))
    rows = SearchRows.of(
        Outline.load("lab").tokenizer, facts, recipe.contexts, pass_cost=pass_cost(model), limits=CPU_LIMITS
    )
    prefixes = generate_prefixes(model, recipe.contexts)
    settings = recipe.target.model_copy(update={"steps": 3, "stop_loss": 0.0})
    with counted(model) as counter:
        find_targets(model, facts, prefixes, 2, Site.BLOCK, settings)
    expected = search_flops(Outline.load("lab").size, rows, 2, 3)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "opt", "gemma2"])
def test_sizes_need_no_weights(family: str) -> None:
    model = tiny_language_model(family)
    with torch.device("meta"):
        empty = ModelSize.of(AutoModelForCausalLM.from_config(model.model.config))
    assert empty == ModelSize.of(model.model)
    assert (empty.mlp_width, empty.width) == tuple(model.weight(0).shape)[::-1]
    assert empty.parameters == sum(parameter.numel() for parameter in model.model.parameters())


def test_llama_3_8b_has_its_published_number_of_parameters() -> None:
    assert llama_3_8b().parameters == 8_030_261_248


def test_statistics_and_factors_are_as_large_as_real_ones(tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    corpus = write_corpus(tmp_path / "corpus.txt")
    size, rows = (
        ModelSize.of(model.model),
        typical_rows(2, contexts=3, context=6, before=3, replayed=4, wanted=2, about=2),
    )
    for method in ("memit", "alphaedit", "memit_seq"):
        recipe = tiny_recipe(corpus, method, solver={"threshold": 1e9} if method == "alphaedit" else {})
        cost = weight_shift_cost(size, recipe, AnalysisSettings(count=2, sizes=(1,)), rows, rows, width=4)
        weights, moments, kept = list(cost.memory.values())[:3]
        assert weights == sum(part.numel() * part.element_size() for part in model.model.parameters())
        found = key_moments(model, recipe.layers, corpus_texts(), recipe.statistics)
        assert moments == sum(moment.total.numel() * moment.total.element_size() for moment in found.values())
        states = prepare(model, recipe, recipe.layers, cache=tmp_path / "cache").solvers.values()
        tensors = [value for state in states for value in vars(state).values() if isinstance(value, Tensor)]
        assert kept == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_operations_of_the_statistics_are_those_that_are_counted(tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    texts = [" ".join(corpus_texts()[start : start + 8]) for start in range(0, 200, 8)]
    recipe = tiny_recipe(write_corpus(tmp_path / "corpus.txt", texts), statistics={"tokens": 640, "length": 64})
    rows = typical_rows(2, contexts=3, context=6, before=3, replayed=4, wanted=2, about=2)
    size = ModelSize.of(model.model)
    cost = weight_shift_cost(size, recipe, AnalysisSettings(count=2, sizes=(1,)), rows, rows, width=4)
    with counted(model) as counter:
        key_moments(model, recipe.layers, texts, recipe.statistics)
    stage = cost.stages[0]
    assert stage.double_flops == 0  # products are in float32
    assert counter.get_total_flops() == pytest.approx(stage.flops, rel=0.02)


def test_what_a_search_keeps_for_its_gradient(tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    model.model.set_attn_implementation("sdpa")
    recipe = tiny_recipe(write_corpus(tmp_path / "corpus.txt"))
    prefixes = generate_prefixes(model, recipe.contexts)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    facts = SearchPrompts(model, FACTS, prefixes, 1, (Site.BLOCK,))
    delta = torch.zeros_like(facts.origin).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answers = facts.answers(delta)
    assert answers.nll.requires_grad
    for parameter in model.model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    rows = SearchRows.of(model.tokenizer, FACTS, recipe.contexts, prefixes, pass_cost(model))
    size = ModelSize.of(model.model)
    found = search_memory(size, rows, 1, 4)
    logits = (
        sum(bucket.wanted for bucket in rows.largest) * size.vocabulary * 4
    )  # log-probabilities, of what is counted
    assert sum(kept.values()) == pytest.approx(found.activations + logits, rel=0.25)


def test_a_study_of_llama_3_8b_is_calculated_from_numbers_alone() -> None:
    recipe = shipped_recipe("meta-llama-3-8b", "memit")
    rows = typical_rows(100, contexts=6, context=10, before=6, replayed=5, wanted=2, about=3)
    settings = AnalysisSettings(count=100, batch_size=100)
    cost = weight_shift_cost(llama_3_8b(), recipe, settings, rows, rows, width=2, tokens=70_000_000)
    assert cost.peak == max(cost.statistics, cost.preparing, cost.searching)
    assert 2**30 * 40 < cost.peak < 2**30 * 80
    names = [stage.name for stage in cost.stages]
    assert cost.seconds(MACHINE) == pytest.approx(sum(stage.seconds(MACHINE) for stage in cost.stages))
    faster = Machine(2 * MACHINE.flops, 2 * MACHINE.double_flops)
    assert cost.seconds(faster) == pytest.approx(cost.seconds(MACHINE) / 2)
    text = cost.table(MACHINE)
    assert all(name in text for name in (*names, *cost.memory, *cost.assumptions))
    assert "70,000,000 tokens" in text
    half = weight_shift_cost(
        llama_3_8b(), recipe, settings.model_copy(update={"earlier": (0,)}), rows, rows, width=2, tokens=70_000_000
    )
    parts, fewer = ({stage.name: stage.flops for stage in one.stages} for one in (cost, half))
    assert parts["targets of the probe facts"] == pytest.approx(5 * fewer["targets of the probe facts"])
    assert fewer["earlier batches"] == 0


def test_many_facts_are_searched_in_turn() -> None:
    numbers = {"contexts": 6, "context": 10, "before": 6, "replayed": 5, "wanted": 2, "about": 3}
    size, some, many = llama_3_8b(), typical_rows(146, **numbers), typical_rows(292, **numbers)
    assert search_memory(size, many, 4, 2) == search_memory(size, some, 4, 2)
    assert search_flops(size, many, 4, 25) == pytest.approx(2 * search_flops(size, some, 4, 25))
