"""Recipes: every shipped recipe is valid, all errors in a recipe are reported together, with their places."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import errata.editing.contexts
import errata.editing.recipe
import errata.editing.shaping
import errata.editing.solvers
import errata.editing.target_loss
from errata.cli.model_options import recipe_name
from errata.editing.methods import METHODS, method_named
from errata.editing.recipe import check_recipe, parse_recipe, read_recipe, shipped_recipe
from errata.editing.recipe_files import shipped_file, shipped_names
from errata.editing.shaping import Prune
from errata.editing.solvers import (
    Equality,
    LeastSquares,
    Neurons,
    NullSpace,
    RankOne,
)
from errata.errors import Fault, FaultsError, InputError
from errata.statistics.settings import Settings, StatisticsSettings

from tests.support.errors import raises_code

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
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


def faults_of(text: str, method: str = "memit") -> dict[str, Fault]:
    """Where -> the fault."""
    with pytest.raises(FaultsError) as caught:
        parse_recipe(text, method, source="file.yaml")
    assert "file.yaml" in str(caught.value)
    for fault in caught.value.faults:
        assert str(fault) in str(caught.value)
    return {fault.where.removeprefix("file.yaml").removeprefix(": "): fault for fault in caught.value.faults}


def codes_of(text: str, method: str = "memit") -> dict[str, str]:
    """Where -> the code of the fault."""
    return {where: fault.code for where, fault in faults_of(text, method).items()}


def shipped() -> list[tuple[str, str]]:
    """(model, method) of every shipped recipe."""
    return [(model, method) for model in shipped_names() for method in shipped_file(model).names]


def test_the_labs_recipe_agrees_with_every_method(subtests: pytest.Subtests) -> None:
    for name in NAMES:
        with subtests.test(name):
            recipe, row = shipped_recipe("lab", name), method_named(name)
            assert (recipe.method, recipe.model) == (name, "lab")
            assert (recipe.site, recipe.schedule) == (row.site, row.schedule)
            assert (recipe.target.kind, recipe.solver.kind) == (row.target["kind"], row.solver["kind"])
            assert getattr(recipe.solver, "history", None) == row.solver.get("history")
            assert [entry.kind for entry in recipe.shaping] == [entry["kind"] for entry in row.shaping]


def test_every_shipped_recipe_is_valid_and_names_its_source(subtests: pytest.Subtests) -> None:
    for model, method in shipped():
        with subtests.test(f"{model} {method}"):
            recipe = shipped_recipe(model, method)
            assert recipe.method == method
            assert recipe.source
            written = [step.layer for step in recipe.steps]
            if method.endswith("+blue"):
                assert written == [recipe.layers[0], recipe.layers[-1]]
            assert parse_recipe(recipe.to_yaml(), method, source="again") == recipe


def test_a_shipped_recipe_is_found_by_the_last_part_of_the_name(subtests: pytest.Subtests) -> None:
    for model in ("LAB", "somewhere/Lab", "a/b/lab/"):
        with subtests.test(model):
            assert shipped_recipe(model, "memit") == shipped_recipe("lab", "memit"), model


def test_the_models_with_recipes_are_listed_for_a_model_without_one() -> None:
    with raises_code("RECIPE_MISSING", InputError, "'unheard-of'", ", lab, ", "--recipe"):
        shipped_recipe("unheard-of", "memit")


def test_methods_are_laid_over_what_is_common_and_blue_over_its_base() -> None:
    text = yaml.safe_dump(VALID)
    memit, blue = (parse_recipe(text, name, source="x") for name in ("memit", "memit+blue"))
    assert isinstance(memit.solver, LeastSquares)
    assert isinstance(blue.solver, LeastSquares)
    assert (memit.solver.ridge, memit.target.steps, memit.schedule) == (10, 10, "even")
    assert (blue.solver.ridge, blue.target.steps, blue.schedule) == (20, 5, "boundary")
    assert blue.target.learning_rate == memit.target.learning_rate == 0.1
    alphaedit = parse_recipe(text, "alphaedit+blue", source="x")
    assert alphaedit.solver == NullSpace(kind="null_space", threshold=0.02, l2=1, history=True)
    assert alphaedit.schedule == "boundary"


def test_the_boundary_schedule_of_blue_is_not_overwritten() -> None:
    text = with_value("schedule", "sqrt")
    assert parse_recipe(text, "memit", source="x").schedule == "sqrt"
    assert parse_recipe(text, "memit+blue", source="x").schedule == "boundary"


def test_yaml_round_trip(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for name in ("memit", "memit+blue", "alphaedit"):
        with subtests.test(name):
            recipe = parse_recipe(with_value("contexts", {"openers": ["Ünd", "{}"], "seed": 3}), name, source="x")
            assert recipe.contexts.openers == ("Ünd", "{}")
            path = tmp_path / "recipe.yaml"
            path.write_text(recipe.to_yaml(), encoding="utf-8")
            assert read_recipe(path, name) == recipe


def test_what_yaml_1_1_reads_as_a_number_is_refused(subtests: pytest.Subtests) -> None:
    sexagesimal = with_value("batch_size", 7).replace("batch_size: 7", "batch_size: 1:30")
    assert codes_of(sexagesimal) == {"batch_size": "RECIPE_VALUE_INVALID"}
    recipe = parse_recipe(with_value("batch_size", 7).replace("batch_size: 7", "batch_size: 010"), "memit", source="x")
    assert recipe.batch_size == 10
    rate = with_value("target/learning_rate", 7).replace("learning_rate: 7", "learning_rate: 1e-3")
    assert parse_recipe(rate, "memit", source="x").target.learning_rate == 0.001
    for name in ("1e5", "0o17", "1:30", "yes", "010", "~", "0x1f"):
        with subtests.test(name):
            named = parse_recipe(
                with_value("model", name).replace(f"model: {name}", f"model: '{name}'"), "memit", source="x"
            )
            assert parse_recipe(named.to_yaml(), "memit", source="x").model == name


def test_a_written_recipe_is_for_its_own_method_only(subtests: pytest.Subtests) -> None:
    """It holds one solver and one history; another method's name over them would say what was not done."""
    written = parse_recipe(yaml.safe_dump(VALID), "memit", source="x").to_yaml()
    for other in ("alphaedit", "memit_seq", "memit+blue"):
        with subtests.test(other), raises_code("RECIPE_OF_OTHER_METHOD", InputError, "'memit'", repr(other)):
            parse_recipe(written, other, source="written.yaml")


def test_an_unknown_key_is_named_with_the_nearest(subtests: pytest.Subtests) -> None:
    for path, near in {
        "layer": "layers",
        "batchsize": "batch_size",
        "target/learning_rat": "learning_rate",
        "contexts/opener": "openers",
        "statistics/token": "tokens",
        "methods/memit/solver/rigde": "ridge",
    }.items():
        with subtests.test(path):
            fault = faults_of(with_value(path, 1))[path.removeprefix("methods/memit/").replace("/", ".")]
            assert fault.code == "RECIPE_KEY_UNKNOWN"
            assert f"Did you mean {near!r}?" in fault.remedy


def test_the_other_solvers_keys_are_unknown_here() -> None:
    fault = faults_of(with_value("methods/alphaedit/solver/ridge", 1), "alphaedit")["solver.ridge"]
    assert fault.code == "RECIPE_KEY_UNKNOWN"
    assert all(key in fault.remedy for key in ("threshold", "l2", "shares", "history"))


def test_an_unknown_method_in_the_file_is_a_fault_even_if_another_is_requested() -> None:
    fault = faults_of(with_value("methods/memmit", {}))["methods.memmit"]
    assert fault.code == "METHOD_UNKNOWN"
    assert "Did you mean 'memit'?" in fault.remedy


def test_all_faults_are_reported_together() -> None:
    data = yaml.safe_load(yaml.safe_dump(VALID))
    del data["statistics"]["tokens"]
    data["target"] |= {"steps": 0, "clam": 1}
    data["layers"] = "all"
    data["methods"] |= {"memit": {"solver": {"ridge": -1}}, "rom": {}}
    faults = faults_of(yaml.safe_dump(data))
    assert {where: fault.code for where, fault in faults.items()} == {
        "statistics.tokens": "RECIPE_KEY_MISSING",
        "target.steps": "RECIPE_VALUE_INVALID",
        "target.clam": "RECIPE_KEY_UNKNOWN",
        "layers": "RECIPE_VALUE_INVALID",
        "solver.ridge": "RECIPE_VALUE_INVALID",
        "methods.rom": "METHOD_UNKNOWN",
    }
    assert "Got 0" in faults["target.steps"].remedy
    assert "Got -1" in faults["solver.ridge"].remedy


WRONG_VALUES: list[tuple[str, Any]] = [  # each wrong alone
    ("contexts/chat", "no"),
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
    ("layers", [1, 1.5]),
    ("layers", [True, 2]),
    ("layers", [0.0, 2]),
    ("layers", ["1", 2]),
    ("batch_size", 8.0),
    ("batch_size", "8"),
    ("batch_size", True),
    ("target/learning_rate", True),
    ("target/learning_rate", "0.5"),
    ("target/relative_rate", 1),
    ("methods/memit/solver/history", "yes"),
    ("layers", 3),
    ("site", "attention"),
    ("schedule", "random"),
    ("model", None),
]
WRONG_TOGETHER: list[tuple[str, Any, str]] = [  # "" is the recipe as a whole: what holds between its keys
    ("layers", [1, 1], "layers"),
    ("layers", [3, 1], "layers"),
    ("layers", [-1, 1], "layers"),
    ("schedule", "single", ""),  # of three layers
]


def test_wrong_values_are_refused(subtests: pytest.Subtests) -> None:
    for path, value in WRONG_VALUES:
        with subtests.test(f"{path} {value!r}"):
            ((where, code),) = codes_of(with_value(path, value)).items()
            assert code == "RECIPE_VALUE_INVALID"
            assert where.split(".")[0] == path.removeprefix("methods/memit/").split("/")[0]
    for path, value, place in WRONG_TOGETHER:
        with subtests.test(f"{path} {value!r}"):
            assert codes_of(with_value(path, value)) == {place: "RECIPE_CONTRADICTION"}


def test_a_missing_key_is_named(subtests: pytest.Subtests) -> None:
    for missing in ("model", "layers", "statistics"):
        with subtests.test(missing):
            data = {key: value for key, value in VALID.items() if key != missing}
            assert codes_of(yaml.safe_dump(data)) == {missing: "RECIPE_KEY_MISSING"}


def test_a_missing_target_is_named_by_the_keys_that_the_row_leaves_open() -> None:
    data = {key: value for key, value in VALID.items() if key != "target"}
    keys = ("target.learning_rate", "target.steps")
    assert codes_of(yaml.safe_dump(data)) == dict.fromkeys(keys, "RECIPE_KEY_MISSING")


def test_a_missing_solver_entry_is_named() -> None:
    data = VALID | {"methods": {}}
    keys = ("solver.threshold", "solver.l2")
    assert codes_of(yaml.safe_dump(data), "alphaedit") == dict.fromkeys(keys, "RECIPE_KEY_MISSING")


def test_faults_name_the_line_of_the_place_that_counts() -> None:
    text = "layers: [3, 1]\nsolver: {ridge: 1}\ntarget:\n  steps: 0\nmethods:\n  memit:\n    solver: {ridge: -1}\n"
    with pytest.raises(FaultsError) as caught:
        parse_recipe(text, "memit+blue", source="x")
    lines = {fault.where: fault.line for fault in caught.value.faults}
    assert lines["x: layers"] == 1
    assert lines["x: target.steps"] == 4
    assert lines["x: target.learning_rate"] == 3  # missing in this section
    assert lines["x: solver.ridge"] == 7
    assert "x: target.steps (line 4): " in str(caught.value)


def test_an_unknown_method_is_refused() -> None:
    with raises_code("METHOD_UNKNOWN", InputError, "Did you mean 'memit'"):
        parse_recipe(yaml.safe_dump(VALID), "memitt", source="x")


def test_text_that_is_no_recipe_is_refused(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for text, code in {
        "a: [1, 2": "YAML_INVALID",
        "a: b: c": "YAML_INVALID",
        "!!python/object/apply:os.getcwd []": "YAML_INVALID",
        "": "RECIPE_NOT_MAPPING",
        "- 1\n- 2": "RECIPE_NOT_MAPPING",
        "just words": "RECIPE_NOT_MAPPING",
        "methods: [memit]": "RECIPE_NOT_MAPPING",
    }.items():
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        with subtests.test(repr(text)), raises_code(code, InputError, "recipe.yaml"):
            read_recipe(path, "memit")
    assert codes_of(with_value("methods/memit", 3))["methods.memit"] == "RECIPE_NOT_MAPPING"


def test_keys_that_are_no_words_are_refused() -> None:
    text = with_value("target", {1: 2, "learning_rate": 0.1, "steps": 2})
    assert codes_of(text) == {"target.1": "RECIPE_VALUE_INVALID"}


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, subtests: pytest.Subtests) -> None:
    (tmp_path / "latin.yaml").write_bytes("model: é".encode("latin-1"))
    for name in ("missing.yaml", "latin.yaml", "."):
        with subtests.test(name), raises_code("RECIPE_UNREADABLE", InputError, str(tmp_path / name)):
            read_recipe(tmp_path / name, "memit")


def test_a_recipe_is_frozen() -> None:
    recipe = shipped_recipe("lab", "memit")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.batch_size = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.target.steps = 3  # type: ignore[misc]


def test_every_field_says_what_it_is() -> None:
    editing = errata.editing
    modules = (editing.recipe, editing.contexts, editing.solvers, editing.shaping, editing.target_loss)
    values = [value for module in modules for value in vars(module).values()]
    models = [value for value in values if isinstance(value, type) and issubclass(value, Settings)]
    assert len(models) > 14
    for model in models:
        for name, field in model.model_fields.items():
            described_elsewhere = hasattr(field.annotation, "model_fields") or name in ("solver", "kind", "target")
            assert field.description or described_elsewhere, name


def test_the_order_of_layers_is_reported_with_the_other_faults() -> None:
    codes = codes_of("layers: [3, 1]\ntarget: {stepz: 3}\n")
    assert (codes["layers"], codes["target.stepz"]) == ("RECIPE_CONTRADICTION", "RECIPE_KEY_UNKNOWN")


def test_a_corpus_counts_from_the_recipes_file(tmp_path: Path) -> None:
    recipe = shipped_recipe("lab", "memit")
    recipe = recipe.model_copy(update={"statistics": recipe.statistics.model_copy(update={"corpus": "text/own.txt"})})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    read = read_recipe(tmp_path / "recipe.yaml", "memit")
    assert read.statistics.corpus == str(tmp_path.resolve() / "text" / "own.txt")


# Choices that do not go together --------------------------------------------------------------------------------------


WITHOUT_MEANING: list[tuple[str, dict[str, Any], str]] = [
    ("memit", {"schedule": "single"}, "'single' writes one layer"),
    ("memit", {"schedule": "replay", "layers": [2]}, "carries the first layer's target to later ones"),
    ("memit", {"schedule": "replay", "target": {"weights": "original"}}, "derives later targets from the current"),
    ("pmet", {"site": "block"}, "searched at the MLP's output"),
    ("memit", {"shaping": [{"kind": "norm_cap"}, {"kind": "norm_cap"}]}, "duplicate shaping"),
    ("memit", {"shaping": [{"kind": "rect"}, {"kind": "prune"}]}, "use only one of them"),
    ("rome+blue", {"rounds": {"count": 2, "least": 0, "most": 9}}, "one after another"),
    ("nse", {"rounds": {"count": 2, "least": 5.0, "most": 1.0}}, "must be larger"),
    ("alphaedit", {"solver": {"shares": True}}, "are two units"),
    ("alphaedit", {"solver": {"shares": True, "relative": False, "threshold": 1.5}}, "at most 1"),
]


def test_combinations_without_a_meaning_are_refused_with_the_reason(subtests: pytest.Subtests) -> None:
    for method, changes, reason in WITHOUT_MEANING:
        data = shipped_recipe("lab", method).model_dump(mode="json")
        for name, value in changes.items():
            data[name] = {**data[name], **value} if isinstance(value, dict) and data[name] else value
        with subtests.test(f"{method} {changes}"):
            (fault,) = faults_of(yaml.safe_dump(data), method).values()
            assert fault.code == "RECIPE_CONTRADICTION"
            assert reason in fault.what


def test_a_key_that_is_named_like_a_kind_is_reported_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("target: {memit: 1}\n", encoding="utf-8")
    with pytest.raises(FaultsError) as caught:
        check_recipe(path, "memit")
    assert any(
        fault.where.endswith("target.memit") and fault.code == "RECIPE_KEY_UNKNOWN" for fault in caught.value.faults
    )


def test_keys_are_checked_although_the_method_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("method: memitt\nlayers: [4, x]\nbatch_siz: 3\n", encoding="utf-8")
    with pytest.raises(FaultsError) as caught:
        check_recipe(path)
    assert sorted((fault.line, fault.code) for fault in caught.value.faults) == [
        (1, "METHOD_UNKNOWN"),
        (2, "RECIPE_VALUE_INVALID"),
        (3, "RECIPE_KEY_UNKNOWN"),
    ]
    # The keys of a solver depend on the method, so those of an unknown one are not judged.
    path.write_text("method: alphaedti\nsolver: {threshold: 0.02, l2: 10.0}\n", encoding="utf-8")
    with pytest.raises(FaultsError) as caught:
        check_recipe(path)
    assert [fault.code for fault in caught.value.faults] == ["METHOD_UNKNOWN"]
    path.write_text("method: memitt\n", encoding="utf-8")
    with raises_code("METHOD_UNKNOWN", InputError, "Did you mean 'memit'"):
        read_recipe(path, "memit")


def test_another_kind_takes_nothing_from_the_rows_own() -> None:
    data = VALID | {"methods": {"memit": {"solver": {"kind": "equality", "ridge": 2}}}}
    recipe = parse_recipe(yaml.safe_dump(data), "memit", source="x")
    assert isinstance(recipe.solver, Equality)
    assert recipe.solver.ridge == 2


def test_as_published_changes_what_published_numbers_depend_on() -> None:
    prune, faulty = (shipped_recipe("lab", "prune", as_published=flag) for flag in (False, True))
    assert prune.shaping == (Prune(kind="prune", on_top=False),)
    assert faulty == prune.model_copy(update={"shaping": (Prune(kind="prune", on_top=True),)})
    blue, cached = (shipped_recipe("lab", "memit+blue", as_published=flag) for flag in (False, True))
    assert (blue.target.weights, cached.target.weights) == ("current", "original")
    with raises_code("NOTHING_AS_PUBLISHED"):
        shipped_recipe("lab", "memit", as_published=True)


def test_as_published_depends_on_schedule_and_shaping_not_on_the_method(subtests: pytest.Subtests) -> None:
    choices = {"schedule": "boundary", "shaping": [{"kind": "norm_cap"}, {"kind": "prune"}]}
    for method in ("memit", "memit+blue", "prune", "prune+blue"):
        with subtests.test(method):
            chosen = shipped_recipe("lab", method).with_choices(choices)
            target = chosen.target.model_copy(update={"weights": "original"})
            shaping = (chosen.shaping[0], Prune(kind="prune", on_top=True))
            assert chosen.as_published() == chosen.model_copy(update={"target": target, "shaping": shaping})
            with raises_code("NOTHING_AS_PUBLISHED"):
                chosen.with_choices({"schedule": "even", "shaping": []}).as_published()


# Published numbers ----------------------------------------------------------------------------------------------------


def is_measured(model: str, method: str) -> bool:
    return shipped_recipe(model, method).source.startswith("measured")


def test_automatic_recipes_are_marked_and_their_numbers_have_no_scale(subtests: pytest.Subtests) -> None:
    automatic = [entry for entry in shipped() if shipped_recipe(*entry).is_automatic]
    families = {model.split("-")[0].rstrip("0123456789.") for model, _ in automatic}
    assert families == {"qwen", "mistral", "gemma", "phi"}, "the families without published recipes"
    for model, method in automatic:
        with subtests.test(f"{model} {method}"):
            recipe = shipped_recipe(model, method)
            assert "tried on no fact of this model" in recipe.source
            assert recipe.target.relative_rate
            assert getattr(recipe.solver, "shares", True)
    for model in {model for model, _ in automatic}:
        text = (Path(errata.__file__).parent / "recipes" / f"{model}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# AUTOMATIC")
        assert "not verified here" in text


@pytest.mark.parametrize("model", ["lab", "smollm2-135m-instruct", "gemma-3-270m"])
def test_models_that_anyone_can_try_have_numbers_for_every_row(model: str) -> None:
    assert set(shipped_file(model).names) == set(NAMES)
    recipes = [shipped_recipe(model, name) for name in NAMES]
    assert all(is_measured(model, name) for name in NAMES)
    ends = {(recipe.layers[0], recipe.layers[-1]) for recipe in recipes if recipe.schedule == "boundary"}
    assert len(ends) == 1, "boundary updates of every row write the same two layers"
    assert {recipe.statistics.corpus for recipe in recipes} == {"lab" if model == "lab" else "builtin"}


def test_a_hub_name_finds_the_measured_recipe(subtests: pytest.Subtests) -> None:
    for name, file in {
        "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m-instruct",
        "HuggingFaceTB/SmolLM2-135M": "smollm2-135m-instruct",
        "google/gemma-3-270m-it": "gemma-3-270m",
    }.items():
        with subtests.test(name):
            assert shipped_file(name).source == f"recipes/{file}.yaml"


def test_a_directory_of_any_name_finds_its_recipe_by_its_shape(tmp_path: Path) -> None:
    shape = dict(shipped_file("smollm2-135m-instruct").shape)
    directory = tmp_path / "model-v2"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**shape, "rms_norm_eps": 1e-5}), encoding="utf-8")
    assert recipe_name(str(directory)) == "smollm2-135m-instruct"
    (directory / "config.json").write_text(json.dumps({**shape, "num_hidden_layers": 24}), encoding="utf-8")
    assert recipe_name(str(directory)) == str(directory), "another size is another model"
    multimodal = {"model_type": "gemma3", "text_config": dict(shipped_file("gemma-3-270m").shape)}
    (directory / "config.json").write_text(json.dumps(multimodal), encoding="utf-8")
    assert recipe_name(str(directory)) == "gemma-3-270m"


def test_a_shape_that_is_no_mapping_is_refused() -> None:
    assert codes_of(with_value("shape", [30])) == {"shape": "RECIPE_NOT_MAPPING"}


def test_published_recipes_have_the_numbers_of_the_file_that_they_name(subtests: pytest.Subtests) -> None:
    """published.json holds the authors' files as they were read, under the very names that recipes give as sources."""
    published = [entry for entry in shipped() if not (is_measured(*entry) or shipped_recipe(*entry).is_automatic)]
    assert len(published) > 60
    for model, method in published:
        with subtests.test(f"{model} {method}"):
            check_published(model, method)


def check_published(model: str, method: str) -> None:
    entry = shipped_file(model).entries[method]
    published = PUBLISHED[entry["source"].removeprefix("third party: ")]
    recipe = shipped_recipe(model, method)
    target, solver = recipe.target, recipe.solver
    layers = published["layers"]
    assert list(recipe.layers if recipe.schedule != "boundary" else (recipe.layers[0], recipe.layers[-1])) == layers
    assert target.learning_rate == published["v_lr"]
    assert target.steps == published["v_num_grad_steps"]
    assert target.weight_decay == published["v_weight_decay"]
    assert target.clamp == published["clamp_norm_factor"]
    assert target.kl_factor == published["kl_factor"]
    assert published["mom2_dataset"] == "wikipedia"
    assert (recipe.statistics.documents, recipe.statistics.tokens) == (published["mom2_n_samples"], None)
    if isinstance(solver, LeastSquares | Neurons):
        assert solver.ridge == published["mom2_update_weight"]
    if isinstance(solver, Neurons):
        assert solver.share == published["neuron_threshold"]
        assert recipe.rounds is not None
        assert recipe.rounds.count == published["max_iterations"] - 1, "their last one only looks"
        assert (recipe.rounds.least, recipe.rounds.most) == (published["alpha"], published["upper_bound"])
    if isinstance(solver, NullSpace):
        assert (solver.threshold, solver.l2, solver.relative) == (
            published["nullspace_threshold"],
            published["L2"],
            False,
        )
    if isinstance(solver, Equality):
        assert solver.ridge == pytest.approx(published["emmet_lambda"] * published["mom2_update_weight"])
        assert solver.ridge_of_one == 0
    if isinstance(solver, RankOne):
        assert solver.moment == ("measured" if published["mom2_adjustment"] else "identity")
        assert published["context_template_length_params"] == [[5, 10], [10, 10]]
        assert (recipe.contexts.per_opener, recipe.contexts.tokens) == (2, (5, 10))


IN_WORDS: list[tuple[str, str, str, object]] = [
    ("gpt2-xl", "memit", "solver.ridge", 20000),
    ("gpt2-xl", "memit", "layers", (13, 14, 15, 16, 17)),
    ("gpt2-xl", "pmet+blue", "solver.ridge", 10000),
    ("gpt2-xl", "pmet", "target.clamp", 2),
    ("gpt2-xl", "emmet", "solver.ridge", 100),
    ("gpt2-xl", "alphaedit", "solver.l2", 10),
    ("gpt2-xl", "alphaedit+blue", "solver.l2", 80),
    ("gpt2-xl", "nse", "rounds.least", 35),
    ("gpt2-xl", "nse", "rounds.count", 2),
    ("gpt2-xl", "rome", "layers", (17,)),
    ("gpt2-xl", "rome", "solver.moment", "measured"),
    ("gpt-j-6b", "memit+blue", "layers", (3, 4, 5, 6, 7, 8)),
    ("gpt-j-6b", "alphaedit+blue", "solver.l2", 95),
    ("gpt-j-6b", "pmet", "solver.ridge", 6000),
    ("gpt-j-6b", "pmet", "target.kl_factor", 1),
    ("gpt-j-6b", "pmet+blue", "solver.ridge", 1000),
    ("gpt-j-6b", "nse", "solver.share", 0.8),
    ("llama-3-8b-instruct", "alphaedit+blue", "solver.l2", 1),
    ("llama-3-8b-instruct", "alphaedit+blue", "solver.threshold", 0.02),
    ("llama-3-8b-instruct", "memit", "target.learning_rate", 0.1),
    ("llama-3-8b-instruct", "nse", "rounds.most", 50),
    ("llama-3-8b-instruct", "rome", "solver.moment", "identity"),
    ("llama-2-7b-hf", "memit", "target.clamp", 4),
    ("llama-2-7b-hf", "memit", "target.weight_decay", 0.001),
]


def test_some_published_numbers_in_words(subtests: pytest.Subtests) -> None:
    for model, method, path, value in IN_WORDS:
        with subtests.test(f"{model} {method} {path}"):
            assert attrgetter(path)(shipped_recipe(model, method)) == value


def test_statistics_as_published_are_over_documents_of_a_text_that_the_user_supplies(subtests: pytest.Subtests) -> None:
    lengths = {"gpt2-xl": 1024, "gpt-j-6b": 2048, "llama-3-8b-instruct": 4096, "llama-2-7b-hf": 4096}
    for model, length in lengths.items():
        with subtests.test(model):
            expected = StatisticsSettings(corpus="wikipedia.txt", documents=100000, length=length)
            assert shipped_recipe(model, "memit").statistics == expected


SPELLINGS = [
    ("openai-community/gpt2-xl", "openai-community/gpt2-xl"),
    ("gpt2-xl", "openai-community/gpt2-xl"),
    ("EleutherAI/gpt-j-6B", "EleutherAI/gpt-j-6b"),
    ("./models/gpt-j-6B/", "EleutherAI/gpt-j-6b"),
    ("EleutherAI_gpt-j-6B", "EleutherAI/gpt-j-6b"),
    ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct"),
    ("Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct"),
    ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
    ("Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
    ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
    ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"),
    ("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-hf"),
]


def test_common_spellings_find_their_recipe(subtests: pytest.Subtests) -> None:
    for name, model in SPELLINGS:
        with subtests.test(name):
            assert shipped_recipe(name, "memit").model == model


def test_no_two_files_share_a_name() -> None:
    names = [*shipped_names(), *(other for name in shipped_names() for other in shipped_file(name).also)]
    assert len(names) == len(set(names))


def test_a_method_without_published_numbers_for_a_model_is_refused_with_those_that_have_some() -> None:
    with raises_code("RECIPE_MISSING", InputError, "'nse+blue'", "'gpt2-xl'", " has rome, r_rome", "--recipe"):
        shipped_recipe("gpt2-xl", "nse+blue")
    with raises_code("RECIPE_MISSING", InputError, "'alphaedit+blue'", "llama-3-8b-instruct"):
        shipped_recipe("meta-llama/Meta-Llama-3-8B", "alphaedit+blue")
    with raises_code("METHOD_UNKNOWN", InputError, "Did you mean 'memit'"):
        shipped_recipe("gpt2-xl", "memitt")


def test_the_nearest_name_is_suggested_for_a_misspelt_model() -> None:
    with raises_code("RECIPE_MISSING", InputError, "Did you mean 'gpt2-xl'?"):
        shipped_recipe("gpt2-x1", "memit")


def test_a_source_is_laid_over_like_everything_else() -> None:
    data = yaml.safe_load(with_value("source", "the file"))
    data["methods"]["memit"]["source"] = "the entry"
    text = yaml.safe_dump(data)
    assert parse_recipe(text, "memit+blue", source="x").source == "the entry"
    assert parse_recipe(text, "alphaedit", source="x").source == "the file"
    assert parse_recipe(yaml.safe_dump(VALID), "memit", source="x").source == ""


def test_statistics_count_either_tokens_or_documents(subtests: pytest.Subtests) -> None:
    for changes, where, code in (
        ({"documents": 5}, "statistics.tokens", "RECIPE_CONTRADICTION"),
        ({"tokens": None}, "statistics.tokens", "RECIPE_KEY_MISSING"),
        ({"tokens": None, "documents": 0}, "statistics.documents", "RECIPE_VALUE_INVALID"),
    ):
        with subtests.test(str(changes)):
            assert codes_of(with_value("statistics", VALID["statistics"] | changes)) == {where: code}, changes


def test_other_names_of_a_model_are_a_list_of_words(subtests: pytest.Subtests) -> None:
    for also in ("gpt2", [1], {"a": 1}):
        with subtests.test(repr(also)):
            assert codes_of(with_value("also", also)) == {"also": "RECIPE_VALUE_INVALID"}, also


def test_whether_a_recipe_needs_statistics(subtests: pytest.Subtests) -> None:
    for method, needed in (("rome", False), ("memit", True), ("alphaedit", True)):
        with subtests.test(method):
            assert shipped_recipe("llama-3-8b-instruct", method).needs_statistics == needed
