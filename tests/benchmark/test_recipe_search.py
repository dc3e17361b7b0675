"""The search of a recipe: what it tries, that it can be stopped and gone on with, and what it says of its findings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from errata.benchmark import recipe_search
from errata.benchmark import recipe_search as recipe_numbers
from errata.benchmark import sequence as sequential
from errata.benchmark.recipe_search import (
    RecipeSearch,
    SearchResult,
    Try,
    append_to_journal,
    automatic_file,
    laid_over,
    layers_by_depth,
    read_journal,
    starting_recipe,
    unsearched_recipe,
    with_boundary,
)
from errata.benchmark.sequence import EvaluationResult, EvaluationSet
from errata.editing.contexts import ContextSettings
from errata.editing.methods import METHODS, method_named
from errata.editing.recipe import Recipe, parse_recipe
from errata.editing.solvers.least_squares import RIDGES
from errata.errors import EditError, ErrataError, InputError
from errata.evaluation import controls as known_facts
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Question
from errata.models.language_model import LanguageModel
from errata.results.metrics import CONTROLS

from tests.support.editing import (
    FACTS,
    assert_same_bits,
    parameter_bits,
    tiny_language_model,
    write_corpus,
)
from tests.support.errors import raises_code


def search_of(
    folder: Path,
    journal: Path,
    model: LanguageModel,
    method: str = "memit",
    examination: EvaluationSet | None = None,
    **options: Any,
) -> RecipeSearch:
    """A search of few, short tries; ``folder`` holds the corpus and the cache of key statistics."""
    statistics = {"corpus": str(folder / "corpus.txt"), "tokens": 600, "length": 64}
    base = starting_recipe("tiny", method_named(method), (1, 2, 3), 64, statistics, batch_size=2)
    base = laid_over(base, {"target": {"steps": 3}, "contexts": {"openers": ("The",), "tokens": (5,)}})
    facts = examination or EvaluationSet(FACTS[:4])
    return RecipeSearch(model, base, (1, 2, 3), facts, journal, cache=folder / "cache", batch_size=2, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_corpus(folder / "corpus.txt")
    return folder


@pytest.fixture
def make_search(folder: Path, tmp_path: Path) -> Callable[..., RecipeSearch]:
    return partial(search_of, folder, tmp_path / "tries.jsonl")


@pytest.fixture(scope="module")
def searched(folder: Path) -> tuple[SearchResult, list[str]]:
    """A complete search of MEMIT's numbers, and the lines of its journal."""
    journal, model = folder / "complete.jsonl", tiny_language_model("llama")
    before = parameter_bits(model)
    found = search_of(folder, journal, model).run()
    assert_same_bits(parameter_bits(model), before)
    return found, journal.read_text(encoding="utf-8").splitlines(keepends=True)


def test_a_search_ends_with_a_recipe_whose_numbers_have_reasons(searched: tuple[SearchResult, list[str]]) -> None:
    found, _ = searched
    assert found.complete
    assert set(found.reasons) == {"learning_rate", "solver", "clamp"}
    for number in found.reasons:
        tries = [tried for tried in found.tries if tried.parameter == number]
        most = max(tried.score for tried in tries)
        enough = most - recipe_search.ENOUGH[number]
        best = next(tried for tried in tries if tried.score >= enough)  # what changes least
        assert found.reasons[number].startswith(best.description)
        assert laid_over(found.recipe, best.value) == found.recipe  # it is in the recipe
    columns = tiny_language_model("llama").weight(1).shape[1]
    ridges = [tried.value["solver"]["ridge"] for tried in found.tries if tried.parameter == "solver"]
    assert ridges == [ridge * columns for ridge in RIDGES]
    assert all(math.isfinite(tried.score) for tried in found.tries)


def test_a_stopped_search_is_resumed(
    make_search: Callable[..., RecipeSearch],
    searched: tuple[SearchResult, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, lines = searched
    search = make_search(tiny_language_model("llama"))
    assert len(lines) == len({json.loads(line)["key"] for line in lines})
    # Stopped while it wrote the eighth try.
    search.journal.write_text("".join(lines[:7]) + lines[7][:20], encoding="utf-8")
    tried: list[Recipe] = []
    original = RecipeSearch._edit_score

    def counted(self: RecipeSearch, recipe: Recipe, before: Any) -> float:
        tried.append(recipe)
        return original(self, recipe, before)

    monkeypatch.setattr(RecipeSearch, "_edit_score", counted)
    found = search.run()
    assert found.recipe == expected.recipe
    assert [one.score for one in found.tries] == [one.score for one in expected.tries]
    assert len(tried) == len(lines) - 7
    assert len(read_journal(search.journal)) == len(lines)


def test_when_time_is_up_the_best_so_far_is_taken(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search(tiny_language_model("llama"), seconds=1e6)
    left = iter([False] * 12)

    def score(self: RecipeSearch, recipe: Recipe, before: Any) -> float:
        return -abs(recipe.target.learning_rate - 0.2)

    monkeypatch.setattr(RecipeSearch, "_edit_score", score)
    monkeypatch.setattr(RecipeSearch, "_out_of_time", lambda self: next(left, True))
    found = search.run()
    assert not found.complete
    assert [tried.parameter for tried in found.tries] == ["learning_rate"] * 10 + ["solver"] * 2
    assert found.reasons["clamp"] == "not searched: no time was left"


def test_without_any_time_there_is_no_recipe(make_search: Callable[..., RecipeSearch]) -> None:
    with raises_code("SEARCH_OUT_OF_TIME"):
        make_search(tiny_language_model("llama"), seconds=-1.0).run()


def test_where_every_try_fails_there_is_no_recipe(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: RecipeSearch, recipe: Recipe, before: Any) -> float:
        raise EditError("no")

    monkeypatch.setattr(RecipeSearch, "_edit_score", fail)
    with raises_code("SEARCH_FAILED", ErrataError, " 16 "):
        make_search(tiny_language_model("llama")).run()


def test_every_number_is_searched_by_what_the_edit_does(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate too: the best one here is neither the first nor the starting one."""

    def score(self: RecipeSearch, recipe: Recipe, before: Any) -> float:
        return -abs(recipe.target.learning_rate - 0.25) - abs(recipe.target.clamp - 1.5)

    monkeypatch.setattr(RecipeSearch, "_edit_score", score)
    found = make_search(tiny_language_model("llama")).run()
    # Of the list 0.2 is the best, √(0.2 · 0.3) is nearer.
    assert (found.recipe.target.learning_rate, found.recipe.target.relative_rate) == (0.2449, True)
    assert found.reasons["learning_rate"].endswith("0.1732 · ‖h‖/√d, 0.2449 · ‖h‖/√d")
    assert found.recipe.target.clamp == 1.5


def test_every_kind_of_control_question_counts(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of the facts that come with errata."""
    model = tiny_language_model("llama")
    with monkeypatch.context() as patched:  # as of a model that knows all of them
        patched.setattr(
            type(model), "score", lambda model, pairs, **options: [SimpleNamespace(correct=True)] * len(pairs)
        )
        facts = known_facts.facts_to_scan(model, 8)
    asked = {record.metric for record in evaluate_facts(model, facts)}
    controls = sorted(asked & set(CONTROLS))
    assert controls == ["specificity_accuracy"]
    means = {"efficacy_accuracy": 1.0, "generalisation_accuracy": 0.8, "specificity_accuracy": 0.3}
    rows = [{"metric": metric, "when": "after", "mean": mean} for metric, mean in means.items()]
    end = SimpleNamespace(rows=rows, patch=SimpleNamespace(undo=lambda model: None))
    monkeypatch.setattr(recipe_search, "run_sequence", lambda *arguments, **options: end)
    search = make_search(model)
    assert search._edit_score(search.base, EvaluationResult([], None)) == pytest.approx(0.7)


def test_a_number_with_which_nothing_can_be_edited_is_not_taken(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = tiny_language_model("llama").weight(1).shape[1]

    def score(self: RecipeSearch, recipe: Recipe, before: Any) -> float:
        assert recipe.solver.kind == "least_squares"
        if recipe.solver.ridge < columns:
            raise EditError("no")
        return -recipe.solver.ridge - recipe.target.clamp

    monkeypatch.setattr(RecipeSearch, "_edit_score", score)
    search = make_search(tiny_language_model("llama"))
    found = search.run()
    assert found.recipe.solver.ridge == columns  # type: ignore[union-attr]
    rates = len(recipe_numbers.LEARNING_RATES) + 2  # of equal ones the default stays, which has a middle on each side
    assert len(found.tries) == rates + len(RIDGES) + len(recipe_numbers.CLAMPS)
    assert found.recipe.target.clamp == 0.75
    assert -math.inf in [tried.score for tried in found.tries]
    assert read_journal(search.journal)  # also with a score that JSON has no number for


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_every_row_has_a_start(row: Any) -> None:
    statistics = {"corpus": "lab", "tokens": 10, "length": 10}
    base = starting_recipe("m", row, (2, 3), 100, statistics, batch_size=5)
    assert base.method == row.name
    assert base.layers == ((3,) if row.schedule == "single" else (2, 3))
    assert recipe_numbers.solver_candidates(base.solver, 100)


def test_the_start_of_every_solver_takes_about_as_much_of_an_edit() -> None:
    """λ, ε and L2 of the start are in one unit: what an ordinary key has, in the space that is solved in."""
    statistics = {"corpus": "lab", "tokens": 10, "length": 10}
    starts = {row.name: starting_recipe("m", row, (2, 3), 100, statistics, batch_size=5).solver for row in METHODS}
    moment = torch.diag(torch.linspace(0.01, 1.0, 100, dtype=torch.float64) ** 2)
    moment[-1, -1] = 100.0  # a sink
    key = moment.diagonal().sqrt()[:, None]
    taken = {}
    for name, settings in starts.items():
        if settings.kind != "rank_one":
            one = key if settings.kind != "equality" else torch.cat([key, torch.zeros_like(key)], dim=1)
            residuals = torch.ones(1, one.shape[1], dtype=torch.float64)
            taken[name] = float((settings.prepare(moment).solve(one, residuals).dense() @ key).squeeze())
    assert taken.pop("alphaedit") == pytest.approx(1 / 3, rel=1e-6)
    assert taken == pytest.approx(dict.fromkeys(taken, 0.5), rel=1e-6)


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tries.jsonl"
    append_to_journal(path, "a", Try("clamp", {}, "1", 0.5, 1.0))
    path.write_text("nonsense\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with raises_code("SEARCH_JOURNAL_DAMAGED", InputError, "tries.jsonl:1 "):
        read_journal(path)


def test_the_file_says_how_each_number_was_found_and_holds_for_the_method_with_and_without_blue(
    make_search: Callable[..., RecipeSearch], searched: tuple[SearchResult, list[str]]
) -> None:
    found = {"memit": searched[0], "emmet": make_search(tiny_language_model("llama"), "emmet").run()}
    text = automatic_file("tiny", (1, 2, 3), "as traced", found)
    assert "# layers: as traced" in text
    for name, end in found.items():
        for reason in end.reasons.values():
            assert reason in text
        assert text.count(f"# {name}, ") == 3
        recipe = parse_recipe(text, name, source="auto.yaml")
        assert recipe.target == end.recipe.target
        assert recipe.solver == end.recipe.solver
        assert recipe.layers == ((3,) if name == "emmet" else (1, 2, 3))
        assert recipe.source.startswith("automatic: errata recipe auto, on held-out facts")
        blue = parse_recipe(text, f"{name}+blue", source="auto.yaml")
        assert (blue.layers, blue.schedule, blue.solver) == ((1, 2, 3), "boundary", end.recipe.solver)


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_without_a_search_there_are_scale_free_defaults_that_say_so(row: Any) -> None:
    statistics = {"corpus": "lab", "tokens": 10, "length": 10}
    found = unsearched_recipe("m", row, layers_by_depth(32), 14336, statistics)
    assert found.recipe.target.relative_rate
    if row.solver["kind"] == "least_squares":
        assert found.recipe.solver.ridge == 14336  # type: ignore[union-attr]
    text = automatic_file("m", layers_by_depth(32), "by depth", {row.name: found})
    assert "tried on no fact of this model" in text
    for name in (row.name, f"{row.name}+blue"):
        assert parse_recipe(text, name, source="x").layers[-1] == 8
    assert layers_by_depth(32) == (4, 5, 6, 7, 8)
    assert layers_by_depth(2) == (0,)


def test_tries_of_other_weights_or_questions_are_not_taken(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Recipe] = []

    def score(self: RecipeSearch, recipe: Recipe, before: Any) -> float:
        tried.append(recipe)
        return 0.5

    monkeypatch.setattr(RecipeSearch, "_edit_score", score)
    make_search(tiny_language_model("llama")).run()
    count = len(tried)
    make_search(tiny_language_model("llama")).run()
    assert len(tried) == count
    make_search(tiny_language_model("llama", seed=1)).run()
    assert len(tried) == 2 * count
    asked = EvaluationSet(FACTS[:4], [("a", Question("The capital of France is", "Paris"))])
    make_search(tiny_language_model("llama"), examination=asked).run()
    assert len(tried) == 3 * count


def test_a_failed_evaluation_leaves_no_edit(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    original, calls = sequential.measure, []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise EditError("a number that is none")
        return original(*arguments, **options)

    monkeypatch.setattr(sequential, "measure", failing)
    found = make_search(model).run()
    assert -math.inf in [one.score for one in found.tries]
    assert_same_bits(parameter_bits(model), before)
    assert not model.edits.terms


def test_tries_share_what_only_their_solver_decides_and_score_the_same(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    original = recipe_search.prepare

    def counted(model: Any, recipe: Recipe, layers: Any, **options: Any) -> Any:
        made.append(recipe.solver)
        return original(model, recipe, layers, **options)

    with monkeypatch.context() as patched:
        patched.setattr(recipe_search, "prepare", counted)
        shared = make_search(tiny_language_model("llama"), "alphaedit").run()
    assert len(made) < len({tried.description for tried in shared.tries}) / 2
    assert all(one != other for one, other in pairwise(made))
    shared_scores = [tried.score for tried in shared.tries]
    search = make_search(tiny_language_model("llama"), "alphaedit")
    search.journal.unlink()
    monkeypatch.setattr(RecipeSearch, "_prepare", lambda self, recipe: None)  # each try on its own
    assert [tried.score for tried in search.run().tries] == shared_scores


def test_rows_of_one_layer_are_searched_with_all_critical_layers_for_blue(
    make_search: Callable[..., RecipeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[tuple[str, tuple[int, ...]]] = []
    original = recipe_search.run_sequence

    def noted(model: Any, recipe: Recipe, *arguments: Any, **options: Any) -> Any:
        run.append((recipe.schedule, recipe.layers))
        return original(model, recipe, *arguments, **options)

    monkeypatch.setattr(recipe_search, "run_sequence", noted)
    make_search(tiny_language_model("llama"), "emmet").run()
    assert set(run) == {("single", (3,)), ("boundary", (1, 2, 3))}


def test_blue_of_nse_finds_targets_on_current_weights_and_contexts_stay_with_their_method() -> None:
    statistics = {"corpus": "lab", "tokens": 10, "length": 10}
    rows = {name: method_named(name) for name in ("rome", "memit", "nse")}
    found = {name: unsearched_recipe("m", row, (1, 2), 64, statistics) for name, row in rows.items()}
    text = automatic_file("m", (1, 2), "given", found)
    assert "# nse, share: 1, all neurons; not searched" in text
    assert "# nse, rounds: 2, each for all facts; not searched" in text
    assert parse_recipe(text, "nse", source="x").target.weights == "original"
    assert parse_recipe(text, "nse+blue", source="x").target.weights == "current"
    assert with_boundary(found["nse"].recipe, (1, 2)).target.weights == "current"
    assert parse_recipe(text, "memit", source="x").contexts == ContextSettings()
    assert parse_recipe(text, "rome", source="x").contexts.keys == "mean"


def test_a_line_cut_off_inside_a_character_is_left_out_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tries.jsonl"
    for key in ("a", "b"):
        append_to_journal(path, key, Try("solver", {}, "λ = 1", 0.5, 1.0))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex("λ".encode()) + 1])
    assert set(read_journal(path)) == {"a"}
    append_to_journal(path, "c", Try("solver", {}, "λ = 2", 0.5, 1.0))
    assert set(read_journal(path)) == {"a", "c"}
