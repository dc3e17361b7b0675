"""Recipes: what ships is valid for every method, what is wrong is told at once and in the user's words."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import errata.recipe
from errata.errors import FaultsError, InputError
from errata.methods import METHODS, method_named
from errata.recipe import (
    EqualitySettings,
    LeastSquaresSettings,
    NullSpaceSettings,
    PruneSettings,
    Recipe,
    parse_recipe,
    read_recipe,
    shipped_recipe,
)

NAMES = [name for row in METHODS for name in (row.name, f"{row.name}+blue")]
VALID: dict[str, Any] = {
    "model": "tiny",
    "layers": [1, 2, 3],
    "target": {"learning_rate": 0.1, "steps": 10},
    "statistics": {"corpus": "lab", "tokens": 100, "length": 32},
    "methods": {
        "memit": {"solver": {"ridge": 10}},
        "memit+blue": {"solver": {"ridge": 20}, "target": {"steps": 5}},
        "alphaedit": {"solver": {"threshold": 0.02, "l2": 1}},
    },
}


def with_value(path: str, value: Any) -> str:
    """VALID as YAML with one value replaced or added; ``path`` is dotted."""
    data = yaml.safe_load(yaml.safe_dump(VALID))
    *folders, last = path.split("/")
    place = data
    for name in folders:
        place = place.setdefault(name, {})
    place[last] = value
    return yaml.safe_dump(data, allow_unicode=True)


def faults_of(text: str, method: str = "memit") -> dict[str, str]:
    """Where -> the whole fault."""
    with pytest.raises(FaultsError) as caught:
        parse_recipe(text, method, source="file.yaml")
    assert "file.yaml" in str(caught.value)
    for fault in caught.value.faults:
        assert str(fault) in str(caught.value)
    return {fault.where.removeprefix("file.yaml: "): str(fault) for fault in caught.value.faults}


@pytest.mark.parametrize("name", NAMES)
def test_the_labs_recipe_holds_for_every_method(name: str) -> None:
    recipe, row = shipped_recipe("lab", name), method_named(name)
    assert recipe.method == name
    assert recipe.model == "lab"
    assert (recipe.site, recipe.schedule) == (row.site, row.schedule)
    assert (recipe.target.kind, recipe.solver.kind) == (row.target["kind"], row.solver["kind"])
    assert getattr(recipe.solver, "history", None) == row.solver.get("history")
    assert [entry.kind for entry in recipe.shaping] == [entry["kind"] for entry in row.shaping]
    assert parse_recipe(recipe.to_yaml(), name, source="again") == recipe


def test_every_shipped_file_is_valid_for_every_method_that_it_names() -> None:
    folder = resources.files("errata") / "recipes"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    assert files
    for file in files:
        for name in yaml.safe_load(file.read_text(encoding="utf-8"))["methods"]:
            assert shipped_recipe(file.name.removesuffix(".yaml"), name).method == name


@pytest.mark.parametrize("model", ["LAB", "somewhere/Lab", "a/b/lab/"])
def test_a_shipped_recipe_goes_by_the_last_part_of_the_name(model: str) -> None:
    assert shipped_recipe(model, "memit") == shipped_recipe("lab", "memit")


def test_a_model_without_a_recipe_is_told_which_there_are() -> None:
    with pytest.raises(InputError, match=r"no recipe comes with errata for 'unheard-of'.*lab.*--recipe"):
        shipped_recipe("unheard-of", "memit")


def test_methods_are_laid_over_what_is_common_and_blue_over_its_base() -> None:
    text = yaml.safe_dump(VALID)
    memit, blue = (parse_recipe(text, name, source="x") for name in ("memit", "memit+blue"))
    assert isinstance(memit.solver, LeastSquaresSettings)
    assert isinstance(blue.solver, LeastSquaresSettings)
    assert (memit.solver.ridge, memit.target.steps, memit.schedule) == (10, 10, "even")
    assert (blue.solver.ridge, blue.target.steps, blue.schedule) == (20, 5, "boundary")
    assert blue.target.learning_rate == memit.target.learning_rate == 0.1
    alphaedit = parse_recipe(text, "alphaedit+blue", source="x")
    assert alphaedit.solver == NullSpaceSettings(kind="null_space", threshold=0.02, l2=1, history=True)
    assert alphaedit.schedule == "boundary"


def test_the_boundary_schedule_of_blue_is_not_overwritten() -> None:
    text = with_value("schedule", "sqrt")
    assert parse_recipe(text, "memit", source="x").schedule == "sqrt"
    assert parse_recipe(text, "memit+blue", source="x").schedule == "boundary"


@pytest.mark.parametrize("name", ["memit", "memit+blue", "alphaedit"])
def test_yaml_there_and_back(tmp_path: Path, name: str) -> None:
    recipe = parse_recipe(with_value("contexts", {"openers": ["Ünd", "{}"], "seed": 3}), name, source="x")
    assert recipe.contexts.openers == ("Ünd", "{}")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(path, name) == recipe


def test_a_written_recipe_is_for_its_own_method_only() -> None:
    """It holds one solver and one history; another method's name over them would say what was not done."""
    written = parse_recipe(yaml.safe_dump(VALID), "memit", source="x").to_yaml()
    for other in ("alphaedit", "memit_seq", "memit+blue"):
        with pytest.raises(InputError, match="memit"):
            parse_recipe(written, other, source="written.yaml")


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("layer", "layers"),
        ("batchsize", "batch_size"),
        ("target/learning_rat", "learning_rate"),
        ("contexts/opener", "openers"),
        ("statistics/token", "tokens"),
        ("methods/memit/solver/rigde", "ridge"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(path: str, near: str) -> None:
    where = path.removeprefix("methods/memit/").replace("/", ".")
    message = faults_of(with_value(path, 1))[where]
    assert "unknown key" in message
    assert f"Did you mean {near!r}?" in message


def test_the_other_solvers_keys_are_unknown_here() -> None:
    faults = faults_of(with_value("methods/alphaedit/solver/ridge", 1), "alphaedit")
    assert "threshold, l2, relative, history" in faults["solver.ridge"]


def test_an_unknown_method_in_the_file_is_a_fault_even_if_another_is_asked_for() -> None:
    faults = faults_of(with_value("methods/memmit", {}))
    assert "Did you mean 'memit'?" in faults["methods.memmit"]


def test_all_faults_are_told_at_once() -> None:
    data = yaml.safe_load(yaml.safe_dump(VALID))
    del data["statistics"]["tokens"]
    data["target"] |= {"steps": 0, "clam": 1}
    data["layers"] = "all"
    data["methods"] |= {"memit": {"solver": {"ridge": -1}}, "rom": {}}
    faults = faults_of(yaml.safe_dump(data))
    assert set(faults) == {"statistics.tokens", "target.steps", "target.clam", "layers", "solver.ridge", "methods.rom"}
    assert "Add this key" in faults["statistics.tokens"]
    assert "Got 0" in faults["target.steps"]
    assert "Got -1" in faults["solver.ridge"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("target/learning_rate", float("nan")),
        ("target/learning_rate", float("inf")),
        ("target/learning_rate", 0),
        ("target/clamp", -0.5),
        ("target/kl_factor", float("nan")),
        ("target/weight_decay", -1),
        ("target/stop_loss", float("inf")),
        ("target/steps", 2.5),
        ("target/steps", "many"),
        ("target/steps", None),
        ("target", 3),
        ("contexts/top_k", 0),
        ("contexts/openers", "The"),
        ("contexts/seed", -1),
        ("statistics/tokens", 0),
        ("statistics/corpus", 7),
        ("statistics/special_tokens", "perhaps"),
        ("methods/memit/solver/ridge", float("nan")),
        ("methods/memit/solver/ridge", "strong"),
        ("methods/memit/solver/history", []),
        ("methods/memit/solver/kind", "gauss"),
        ("batch_size", 0),
        ("layers", []),
        ("layers", [1, 1]),
        ("layers", [3, 1]),
        ("layers", [-1, 1]),
        ("layers", [1, 1.5]),
        ("layers", 3),
        ("site", "attention"),
        ("schedule", "random"),
        ("schedule", "single"),  # of three layers
        ("model", None),
    ],
)
def test_wrong_values_are_refused(path: str, value: Any) -> None:
    faults = faults_of(with_value(path, value))
    assert faults
    for where in faults:  # "" is the recipe as a whole: what holds between its keys
        assert where == "" or path.removeprefix("methods/memit/").split("/")[0] == where.split(".")[0]


@pytest.mark.parametrize("missing", ["model", "layers", "statistics"])
def test_a_missing_key_is_named(missing: str) -> None:
    data = {key: value for key, value in VALID.items() if key != missing}
    assert "Add this key" in faults_of(yaml.safe_dump(data))[missing]


def test_a_missing_target_is_named_by_what_the_row_does_not_know() -> None:
    data = {key: value for key, value in VALID.items() if key != "target"}
    assert set(faults_of(yaml.safe_dump(data))) == {"target.learning_rate", "target.steps"}


def test_a_missing_solver_entry_is_named() -> None:
    data = VALID | {"methods": {}}
    assert set(faults_of(yaml.safe_dump(data), "alphaedit")) == {"solver.threshold", "solver.l2"}


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'memit'"):
        parse_recipe(yaml.safe_dump(VALID), "memitt", source="x")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [1, 2", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
        ("", "holds no mapping"),
        ("- 1\n- 2", "holds no mapping"),
        ("just words", "holds no mapping"),
        ("methods: [memit]", "is no mapping"),
        ("methods: {memit: 3}", "is no mapping"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=what) as caught:
        read_recipe(path, "memit")
    assert "recipe.yaml" in str(caught.value)


def test_keys_that_are_no_words_are_refused() -> None:
    assert faults_of(with_value("target", {1: 2, "learning_rate": 0.1, "steps": 2}))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("model: é".encode("latin-1"))
    for name in ("missing.yaml", "latin.yaml", "."):
        with pytest.raises(InputError, match="cannot be read"):
            read_recipe(tmp_path / name, "memit")


def test_a_recipe_is_frozen() -> None:
    recipe = shipped_recipe("lab", "memit")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.batch_size = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.target.steps = 3  # type: ignore[misc]


def test_every_field_says_what_it_is() -> None:
    settings = Recipe.__mro__[1]
    models = [
        value for value in vars(errata.recipe).values() if isinstance(value, type) and issubclass(value, settings)
    ]
    assert len(models) > 14
    for model in models:
        for name, field in model.model_fields.items():
            described_elsewhere = hasattr(field.annotation, "model_fields") or name in ("solver", "kind", "target")
            assert field.description or described_elsewhere, name


def test_the_order_of_layers_is_told_with_the_other_faults() -> None:
    with pytest.raises(FaultsError) as caught:
        parse_recipe("layers: [3, 1]\ntarget: {stepz: 3}\n", "memit", source="mine.yaml")
    assert any("ascending" in fault.what for fault in caught.value.faults)
    assert any("stepz" in fault.where for fault in caught.value.faults)


def test_a_corpus_counts_from_the_recipes_file(tmp_path: Path) -> None:
    recipe = shipped_recipe("lab", "memit")
    recipe = recipe.model_copy(update={"statistics": recipe.statistics.model_copy(update={"corpus": "text/own.txt"})})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    read = read_recipe(tmp_path / "recipe.yaml", "memit")
    assert read.statistics.corpus == str(tmp_path.resolve() / "text" / "own.txt")


# Choices that do not go together --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("memit", {"schedule": "single"}, "'single' writes one layer"),
        ("memit", {"schedule": "replay", "layers": [2]}, "carries the first layer's target to later ones"),
        ("memit", {"schedule": "replay", "target": {"weights": "original"}}, "reads later targets off the current"),
        ("pmet", {"site": "block"}, "searched at the MLP's output"),
        ("memit", {"shaping": [{"kind": "norm_cap"}, {"kind": "norm_cap"}]}, "stands there twice"),
        ("memit", {"shaping": [{"kind": "rect"}, {"kind": "prune"}]}, "take one of them"),
        ("rome+blue", {"rounds": {"count": 2, "least": 0, "most": 9}}, "one after another"),
    ],
)
def test_combinations_without_a_meaning_are_refused_with_the_reason(
    method: str, changes: dict[str, Any], reason: str
) -> None:
    recipe = shipped_recipe("lab", method)
    data = recipe.model_dump(mode="json")
    for name, value in changes.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) and data[name] else value
    with pytest.raises(ValidationError, match=reason):
        Recipe.model_validate(data)


def test_another_kind_takes_nothing_from_the_rows_own() -> None:
    data = VALID | {"methods": {"memit": {"solver": {"kind": "equality", "ridge": 2}}}}
    recipe = parse_recipe(yaml.safe_dump(data), "memit", source="x")
    assert isinstance(recipe.solver, EqualitySettings)
    assert recipe.solver.ridge == 2


def test_as_published_changes_what_published_numbers_depend_on() -> None:
    prune, faulty = (shipped_recipe("lab", "prune", as_published=flag) for flag in (False, True))
    assert prune.shaping == (PruneSettings(kind="prune", on_top=False),)
    assert faulty == prune.model_copy(update={"shaping": (PruneSettings(kind="prune", on_top=True),)})
    blue, cached = (shipped_recipe("lab", "memit+blue", as_published=flag) for flag in (False, True))
    assert (blue.target.weights, cached.target.weights) == ("current", "original")
    with pytest.raises(InputError, match="no published number of 'memit' depends on a fault"):
        shipped_recipe("lab", "memit", as_published=True)
