"""Grids: what a file means, what is wrong with one, and what their combinations come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.benchmark.grid import (
    DataEntry,
    Grid,
    ModelEntry,
    Variant,
    grid_of,
    read_grid,
    valid_part,
    variants,
    with_absolute_paths,
)
from errata.benchmark.measurements import check_measurements
from errata.cli.bench_plan import absolute_corpus, plan_of
from errata.editing.recipe import shipped_recipe
from errata.errors import FaultsError, InputError

from tests.support.errors import raises_code

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "grid.yaml"


def test_names_and_numbers_stand_for_what_they_mean(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "models: lab\ndata: [lab, 'jsonl=facts.jsonl', {name: zsre-alt, untouched: u.jsonl}]\n"
        "methods: [memit]\nseeds: 2\nedits: 5\n",
        encoding="utf-8",
    )
    grid = grid_of(read_grid(path), str(path))
    assert grid.models == (ModelEntry(name="lab"),)
    # Paths count from the file, wherever the user stands.
    assert grid.data[1] == DataEntry(name="jsonl", path=str(tmp_path / "facts.jsonl"))
    assert grid.data[2].untouched == str(tmp_path / "u.jsonl")
    assert (grid.data[2].label, DataEntry(name="my/facts.csv").label) == ("zsre-alt", "facts.csv")
    whole = {
        "models": [{"name": "mine", "corpus": "text.txt", "recipe": "numbers.yaml"}, "lab", "org/name"],
        "data": "facts.csv",
        "prose": "me-ppl=prose.json",
        "measures": {"options": {"texts": {"references": "r.jsonl"}, "ability": {"tasks": ["own.yaml", "piqa"]}}},
    }
    for name in ("mine", "text.txt", "own.yaml"):
        (tmp_path / name).mkdir()
    found = with_absolute_paths(whole, tmp_path)
    assert [model["name"] for model in found["models"]] == [str(tmp_path / "mine"), "lab", "org/name"]
    assert found["models"][0]["corpus"] == str(tmp_path / "text.txt")
    assert found["models"][0]["recipe"] == str(tmp_path / "numbers.yaml")
    assert found["data"] == [{"name": str(tmp_path / "facts.csv")}]
    assert found["prose"] == f"me-ppl={tmp_path / 'prose.json'}"
    assert found["measures"]["options"] == {
        "texts": {"references": str(tmp_path / "r.jsonl")},
        "ability": {"tasks": [str(tmp_path / "own.yaml"), "piqa"]},
    }
    assert grid.seeds == (0, 1)
    assert (grid.batch_size, grid.collapse) == (100, 1.5)


def test_paths_may_contain_equals_signs(tmp_path: Path) -> None:
    """Only ``NAME=FILE`` of a known data set is split."""
    folder = tmp_path / "runs" / "lr=0.1"
    folder.mkdir(parents=True)
    (folder / "facts.jsonl").touch()
    data = {"data": ["runs/lr=0.1/facts.jsonl", "jsonl=runs/lr=0.1/facts.jsonl"], "prose": "runs/lr=0.1/prose.txt"}
    found = with_absolute_paths({"models": ["runs/lr=0.1", "a=b"], **data}, tmp_path)
    grid = grid_of({**found, "methods": ["memit"], "edits": 1}, "grid.yaml")
    assert grid.models == (ModelEntry(name=str(folder)), ModelEntry(name="a=b"))
    assert grid_of({"models": "a=b", "methods": ["memit"], "edits": 1}, "grid.yaml").models[0].name == "a=b"
    path = str(folder / "facts.jsonl")
    assert grid.data == (DataEntry(name=path), DataEntry(name="jsonl", path=path))
    assert grid.prose == str(folder / "prose.txt")


def test_everything_wrong_is_reported_together_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    lines = ["methods: [memit, memitt]", "edits: 0", "seeds: [1, 1]", "batchsize: 3", "collapse: 0.5"]
    text = "\n".join([*lines, "models:", "  - dtype: float32", ""])
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FaultsError) as caught:
        grid_of(read_grid(path), "grid.yaml", text=text)
    faults = {fault.where.removeprefix("grid.yaml: "): fault for fault in caught.value.faults}
    assert {where: (fault.line, fault.code) for where, fault in faults.items()} == {
        "edits": (2, "GRID_INVALID"),
        "seeds": (3, "GRID_INVALID"),
        "batchsize": (4, "GRID_INVALID"),
        "collapse": (5, "GRID_INVALID"),
        "models.0.name": (7, "GRID_INVALID"),
        "methods": (None, "METHOD_UNKNOWN"),
    }
    assert len(caught.value.faults) == len(faults)
    for where, name in (
        ("edits", "got 0"),
        ("collapse", "got 0.5"),
        ("batchsize", "models, data"),
        ("methods", "memitt"),
    ):
        assert name in str(faults[where])
    with raises_code("GRID_INVALID", FaultsError, "grid.yaml: seeds: "):
        grid_of({"methods": ["memit"], "edits": 1, "seeds": [1, 1]}, "grid.yaml")


def test_what_is_right_of_a_grid_stays_when_something_is_wrong() -> None:
    whole = {"models": ["lab"], "data": ["lab", "zsre-alt"], "methods": ["memit"], "edits": 7, "seeds": 2}
    assert valid_part(whole) == grid_of(whole, "grid.yaml")
    part = valid_part({**whole, "methods": ["memit", "mmit"], "edits": "many", "batchsize": 3, "models": [{"no": 1}]})
    assert part is not None
    assert (part.models, part.methods, part.edits, part.seeds) == ((), ("memit",), 1, (0, 1))
    assert [entry.name for entry in part.data] == ["lab", "zsre-alt"]
    part = valid_part({"methods": ["mmit"], "seeds": "x"})
    assert part is not None
    assert (part.methods, part.seeds) == ((), (0, 1, 2))
    assert valid_part({**whole, "vary": {"layers": []}}) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "GRID_UNREADABLE"), ("- a\n", "GRID_UNREADABLE"), ("methods: [", "YAML_INVALID"), ("\x00", "YAML_INVALID")],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, text: str, code: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    with raises_code(code, InputError, str(path)):
        read_grid(path)
    with raises_code("GRID_UNREADABLE", InputError, str(tmp_path / "none.yaml")):
        read_grid(tmp_path / "none.yaml")


def test_every_combination_is_a_variant_of_its_own_name() -> None:
    vary = {"layers": ([0], [0, 1]), "solver.history": (True, False)}
    grid = Grid(methods=("memit", "alphaedit"), vary=vary, edits=1)
    found = list(variants(grid))
    assert len(found) == 8
    assert len({variant.label for variant in found}) == 8
    assert found[2].label == "memit [layers=0/1, solver.history=True]"
    assert next(variants(Grid(methods=("rome",), edits=1))).label == "rome"


def test_a_variant_changes_the_fields_that_it_names_and_no_other() -> None:
    recipe = shipped_recipe("lab", "memit")
    choices = {"solver.history": True, "solver.ridge": 7.0, "schedule": "boundary", "layers": [0, 2]}
    changed = Variant("memit", choices).applied(recipe)
    assert (changed.solver.history, changed.solver.ridge) == (True, 7.0)  # type: ignore[union-attr]
    assert (changed.schedule, changed.layers) == ("boundary", (0, 2))
    same = {"solver", "schedule", "layers", "source"}
    assert changed.model_dump(exclude=same) == recipe.model_dump(exclude=same)
    for name, shown in (("solver.l2", "'l2'"), ("solved.l2", "'solved.l2'"), ("schedule.x", "'schedule.x'")):
        with raises_code("RECIPE_FIELD_UNKNOWN", InputError, shown):
            Variant("memit", {name: 1}).applied(recipe)
    with raises_code("RECIPE_CONTRADICTION", FaultsError, "'single'"):
        Variant("memit", {"schedule": "single"}).applied(recipe)


def test_the_example_is_a_full_factorial_with_its_undefined_combinations_named() -> None:
    plan = plan_of(grid_of(read_grid(EXAMPLE), str(EXAMPLE)))
    labels = list(dict.fromkeys(spec.label for spec in plan.specs))
    assert len(labels) + len(plan.undefined) == 2 * 3 * 3 * 2
    assert len(plan.specs) == 3 * len(labels)
    assert len(plan.undefined) == 4  # replay with one layer
    assert all("replay" in entry.reason for entry in plan.undefined)
    assert len({spec.key for spec in plan.specs}) == len(plan.specs)
    # Methods of one seed edit the same facts; seeds edit others.
    assert len({spec.material for spec in plan.specs}) == 3
    for material in plan.materials.values():
        assert len(material.facts) == 100
        assert {cluster for cluster, _ in material.untouched}.isdisjoint(fact.subject for fact in material.facts)
    assert {spec.recipe.contexts.seed for spec in plan.specs if spec.seed == 2} == {2}


def test_faults_of_models_data_and_recipes_are_reported_together(tmp_path: Path) -> None:
    grid = Grid(
        models=(ModelEntry(name="lab", device="abacus"),),
        data=(DataEntry(name="jsonl", path=str(tmp_path / "none.jsonl")),),
        methods=("memit",),
        vary={"solver.l2": (1.0,)},
        edits=3,
        measures={"parts": ["mood"]},  # type: ignore[arg-type]
    )
    with pytest.raises(FaultsError) as caught:
        plan_of(grid)
    expected = (("MEASUREMENT_UNKNOWN", "'mood'"), ("DEVICE_UNAVAILABLE", "abacus"), ("FACTS_UNREADABLE", "none.jsonl"))
    for fault, (code, name) in zip(caught.value.faults, expected, strict=True):
        assert fault.code == code
        assert name in str(fault)
    with raises_code("COMBINATION_INVALID", FaultsError, "memit [solver.l2=1.0]"):
        plan_of(Grid(methods=("memit",), vary={"solver.l2": (1.0,)}, edits=3))


def test_what_tables_could_not_tell_apart_is_refused() -> None:
    for entries, name in (
        ({"models": [{"name": "lab", "recipe": "a.yaml"}, {"name": "lab", "recipe": "b.yaml"}]}, "models"),
        ({"data": ["a/facts.jsonl", "b/facts.jsonl"]}, "data"),
        ({"vary": {"layers": [[0], [0]]}}, "vary.layers"),
    ):
        with raises_code("GRID_INVALID", FaultsError, f"grid.yaml: {name} "):
            grid_of({"methods": ["memit"], "edits": 1, **entries}, "grid.yaml")
    for vary, name in (({"layers": []}, "vary.layers"), ({"contexts.seed": [1, 2]}, "contexts.seed")):
        with raises_code("GRID_INVALID", FaultsError, f"grid.yaml: {name} "):
            grid_of({"methods": ["memit"], "edits": 1, "vary": vary}, "grid.yaml")


def test_a_varied_batch_size_is_the_one_that_runs() -> None:
    specs = plan_of(Grid(methods=("memit",), vary={"batch_size": (2, 5)}, edits=3, batch_size=3, seeds=(0,))).specs
    assert [(spec.label, spec.recipe.batch_size) for spec in specs] == [
        ("memit [batch_size=2]", 2),
        ("memit [batch_size=5]", 5),
    ]
    (plain,) = plan_of(Grid(methods=("memit",), edits=3, batch_size=3, seeds=(0,))).specs
    assert plain.recipe.batch_size == 3


@pytest.mark.parametrize(
    ("part", "options", "code", "name"),
    [
        ("ability", {"tasks": "mmlu"}, "MEASUREMENT_SETTING_INVALID", "tasks"),
        ("ability", {"tasks": ["x"], "probe_items": "ten"}, "MEASUREMENT_SETTING_INVALID", "probe_items"),
        ("ability", {}, "ABILITY_NOTHING_TO_RUN", "'ability'"),
        ("ability", {"tasks": ["none/task.yaml"]}, "FILE_NOT_FOUND", "none/task.yaml"),
        ("ability", {"probes": "none"}, "JSON_INVALID", "sst2.json"),
        ("free", {"wilder": True}, "MEASUREMENT_SETTING_INVALID", "wilder"),
        ("side", {"options": 1}, "SETTING_INVALID", "options"),
        ("drift", {"x": 1}, "MEASUREMENT_SETTING_UNKNOWN", "got x"),
        ("texts", {"references": "none.jsonl"}, "FILE_UNREADABLE", "none.jsonl"),
    ],
)
def test_wrong_settings_of_a_measurement_are_reported_before_any_work(
    part: str, options: dict[str, object], code: str, name: str
) -> None:
    with raises_code(code, FaultsError, name):
        check_measurements([part], {part: options})


def test_settings_of_what_is_not_measured_are_refused() -> None:
    with raises_code("MEASUREMENT_UNUSED_SETTINGS", FaultsError, "measures.options.free"):
        check_measurements(["drift"], {"free": {"wild": True}})


def test_names_of_corpora_are_not_paths() -> None:
    assert [absolute_corpus(name) for name in ("lab", "builtin", "text.txt")] == [
        "lab", "builtin", str(Path("text.txt").absolute()),
    ]  # fmt: skip


def test_directories_named_like_something_in_errata_or_the_harness_do_not_replace_it(tmp_path: Path) -> None:
    for name in ("lab", "builtin", "piqa"):
        (tmp_path / name).mkdir()
    options = {"ability": {"tasks": ["piqa"]}}
    found = with_absolute_paths({"models": ["lab"], "measures": {"parts": [], "options": options}}, tmp_path)
    assert found["models"] == [{"name": "lab"}]
    assert found["measures"]["options"] == options
    found = with_absolute_paths({"models": [{"name": "lab", "corpus": "builtin"}]}, tmp_path)
    assert found["models"] == [{"name": "lab", "corpus": "builtin"}]
    (tmp_path / "piqa" / "own.yaml").write_text("task: own\n", encoding="utf-8")
    found = with_absolute_paths({"measures": {"parts": [], "options": options}}, tmp_path)
    assert found["measures"]["options"] == {"ability": {"tasks": [str(tmp_path / "piqa")]}}
