"""Imports point one way. The source is read, not run: a lazy import inside a function counts as much as one on top."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "errata"

PURE = frozenset({"solvers", "schedules", "shaping"})
FACTS = frozenset(
    {
        "conflicts",
        "facts",
        "facts_columns",
        "facts_foreign",
        "facts_formats",
        "facts_io",
        "facts_json",
        "facts_rules",
        "facts_tokens",
    }
    | {"joining"}
)
TOOLS = frozenset(
    {"cache", "extras", "hub", "in_place", "locking", "output", "progress", "reading", "streams", "visible"}
)  # small helps, which know nothing but the errors

# Rooms, lowest first: a room imports from its own layer and from those below. A new room needs a place here.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    PURE | TOOLS,
    FACTS | {"methods", "recipe", "recipe_check", "recipe_faults", "recipe_files", "recipe_settings", "recipe_yaml"},
    frozenset({"models", "datasets"}),
    frozenset({"statistics"}),
    frozenset({"targets", "evaluation", "lab"}),
    frozenset({"factors", "lora", "lora_factors", "lora_facts", "patch", "patch_file", "tracing", "locate"}),
    frozenset({"batch_record", "edit", "edit_batch", "preparation", "rebuild", "run_shaping", "stack"})
    | {"automatic_controls", "known_facts", "layer_scan"},
    frozenset({"ledger", "loading", "restore", "run_creation", "run_directory", "run_manifest"}),
    frozenset({"beyond"}),
    frozenset({"benchmark", "analysis"}),
    frozenset({"report"}),
    frozenset({"errata"}),  # the package's own __init__: the public names
    frozenset({"verbs"}),
    frozenset({"cli", "app", "__main__"}),
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}

# Rooms that may see less than what lies below them.
SEES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(PURE, PURE | {"errors"}),
    **dict.fromkeys(TOOLS, TOOLS | {"errors"}),
    **dict.fromkeys(FACTS, FACTS | TOOLS | {"errors"}),
    "datasets": FACTS | TOOLS | {"errors", "datasets"},
    "evaluation": frozenset({"errors", "facts", "facts_rules", "joining", "models", "datasets", "statistics"})
    | {"evaluation"}
    | TOOLS,
    "lab": frozenset({"errors", "facts", "models", "statistics", "lab"}) | TOOLS,
}

# Third-party packages: for the pure rooms those that they may import, for facts those that they may not.
PURE_PACKAGES = frozenset({"torch", "jaxtyping"})
NOT_FOR_FACTS = frozenset({"torch", "transformers", "tokenizers"})

# The embedded model is a guest: loaded on demand by these, and on top by the command line only.
# (`datasets.lab` draws facts from its world, so that it is named as any other data set.)
LAB_USERS = frozenset({"errata.datasets.lab", "errata.models.outline", "errata.statistics.corpus"})
LAB_HOSTS = frozenset({"errata.cli", "errata.cli.main", "errata.app"})

PICKLES = frozenset({"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
PICKLING_CALLS = frozenset({"torch.load", "torch.save"})
GLOBAL_SEEDS = frozenset(
    {
        "torch.manual_seed",
        "torch.seed",
        "torch.cuda.manual_seed",
        "torch.cuda.manual_seed_all",
        "random.seed",
        "numpy.random.seed",
        "np.random.seed",
        "transformers.set_seed",
        "set_seed",
    }
)


@dataclass(frozen=True, slots=True)
class Import:
    """One module imports another, at a line; lazy when inside a function."""

    importer: str
    imported: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


def room_of(module: str) -> str:
    """``errata.models.prompts`` lives in ``models``; the package's own ``__init__`` in ``errata``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def is_within(module: str, places: Iterable[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def imports_of(module: str, source: str, known: Mapping[str, bool]) -> Iterator[Import]:
    """The imports of a module's source; ``known`` says of each of errata's modules whether it is a package."""
    package = module if known[module] else module.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if lazy and whole == "errata.__version__":
                    continue  # a record may say which version made it
                yield Import(module, whole if whole in known else base, node.lineno, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(source), lazy=False)


def layering_fault(entry: Import) -> str | None:
    """What is wrong with an import between rooms, or with a room's import of another package."""
    room, top = room_of(entry.importer), entry.imported.split(".")[0]
    if room not in RANK:
        return f"{entry.importer}: the room {room!r} has no place in LAYERS"
    if top in PICKLES:
        return f"{entry}: no pickle anywhere"
    if top != "errata":
        if room in PURE and top not in PURE_PACKAGES and top not in sys.stdlib_module_names:
            return f"{entry}: {room} is pure algebra"
        if room in FACTS and top in NOT_FOR_FACTS:
            return f"{entry}: facts know neither tokenizers nor torch"
        return None
    other = room_of(entry.imported)
    if other not in RANK:
        return f"{entry}: the room {other!r} has no place in LAYERS"
    if other == "lab" and room != "lab":
        if is_within(entry.importer, LAB_HOSTS) or (is_within(entry.importer, LAB_USERS) and entry.lazy):
            return None
        return f"{entry}: the lab is imported inside functions only, by {', '.join(sorted(LAB_USERS))}"
    if other not in SEES.get(room, RANK):
        return f"{entry}: {room} sees only {', '.join(sorted(SEES[room]))}"
    if RANK[other] > RANK[room]:
        return f"{entry}: {other} lies above {room}"
    return None


def call_faults(module: str, source: str) -> list[str]:
    """Calls that pickle, or that seed a generator of the whole process outside ``with torch.random.fork_rng()``."""

    def walk(node: ast.AST, forked: bool) -> Iterator[str]:
        if isinstance(node, ast.With | ast.AsyncWith):
            forked = forked or any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in PICKLING_CALLS:
                yield f"{module}, line {node.lineno}: {called} pickles; use safetensors"
            if called in GLOBAL_SEEDS and not forked:
                yield f"{module}, line {node.lineno}: {called} seeds the whole process; pass a torch.Generator"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, forked)

    return list(walk(ast.parse(source), forked=False))


def cycle_among(entries: Iterable[Import]) -> list[str]:
    """A circle of modules that import each other on top, or nothing."""
    graph: dict[str, set[str]] = {}
    for entry in entries:
        if not entry.lazy and entry.imported != entry.importer:
            graph.setdefault(entry.importer, set()).add(entry.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def read_sources() -> tuple[dict[str, str], dict[str, bool]]:
    """Every module of the package: its source, and whether it is a package."""
    sources, known = {}, {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[module], known[module] = path.read_text(encoding="utf-8"), parts[-1] == "__init__"
    return sources, known


SOURCES, KNOWN = read_sources()


def test_the_package_was_found() -> None:
    assert {"errata", "errata.errors"} <= SOURCES.keys()


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_one_way(module: str) -> None:
    faults = [layering_fault(entry) for entry in imports_of(module, SOURCES[module], KNOWN)]
    assert [fault for fault in faults if fault] == []


@pytest.mark.parametrize("module", SOURCES)
def test_no_pickling_and_no_global_seed(module: str) -> None:
    assert call_faults(module, SOURCES[module]) == []


def test_no_circle_of_imports() -> None:
    entries = [entry for module, source in SOURCES.items() for entry in imports_of(module, source, KNOWN)]
    assert cycle_among(entry for entry in entries if entry.imported in KNOWN) == []


def faults_in(module: str, source: str) -> list[str]:
    """The faults of one made-up module in a made-up house."""
    rooms = {f"errata.{room}": False for room in RANK if room != "errata"}
    house = {"errata": True, **rooms, "errata.models": True, "errata.models.language_model": False, module: False}
    return [fault for entry in imports_of(module, source, house) if (fault := layering_fault(entry))]


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("errata.models.prompts", "from errata.editors.locate_then_edit import Editor", "edit lies above models"),
        ("errata.models.prompts", "from errata import edit", "edit lies above models"),
        ("errata.models.prompts", "from ..edit import Editor", "edit lies above models"),
        ("errata.models.prompts", "def f():\n    import errata.cli.main", "cli lies above models"),
        ("errata.editors.locate_then_edit", "from errata import Editor", "errata lies above edit"),
        ("errata.patches.patch", "from errata import __version__", "errata lies above patch"),
        ("errata.editing.solvers.base", "import transformers", "pure algebra"),
        ("errata.editing.shaping", "from errata.models.language_model import LanguageModel", "shaping sees only"),
        ("errata.evaluation.recall", "from errata.editing.methods import METHODS", "evaluation sees only"),
        ("errata.evaluation.recall", "from errata.editing.recipe import Recipe", "evaluation sees only"),
        ("errata.facts.fact", "import torch", "neither tokenizers nor torch"),
        ("errata.statistics.store", "import pickle", "no pickle"),
        ("errata.attic", "import math", "no place in LAYERS"),
        ("errata.cli.main", "from errata.attic import old", "no place in LAYERS"),
        ("errata.models.language_model", "from errata.lab import load", "inside functions only"),
        ("errata.models.prompts", "def f():\n    from errata.lab import load", "inside functions only"),
        ("errata.lab.training", "from errata.targets import optimise", "lab sees only"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str, words: str) -> None:
    faults = faults_in(module, source)
    assert len(faults) == 1
    assert words in faults[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errata.models.outline", "def load():\n    from errata.lab import weights"),
        ("errata.cli.main", "def lab():\n    from errata.lab.training import train"),
        ("errata.cli.main", "from errata import __version__"),
        ("errata.patches.patch", "def versions():\n    from errata import __version__"),
        (
            "errata.editing.solvers.base",
            "import math, torch\nfrom jaxtyping import Float\nfrom errata.errors import EditError",
        ),
        (
            "errata.editors.locate_then_edit",
            "from errata.editing.target_loss import optimise_targets\nfrom . import patch",
        ),
        ("errata.report.tables", "from errata.results.records import Record\nimport rich"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert faults_in(module, source) == []


def test_wrong_calls_are_seen() -> None:
    source = "torch.manual_seed(0)\nwith torch.random.fork_rng():\n    torch.manual_seed(0)\nx = torch.load('x')\n"
    faults = call_faults("errata.editors.locate_then_edit", source)
    assert [fault.split(":")[0] for fault in faults] == [
        "errata.editors.locate_then_edit, line 1",
        "errata.editors.locate_then_edit, line 4",
    ]


def test_a_circle_is_seen_unless_lazy() -> None:
    there, back = Import("errata.a", "errata.b", 1, lazy=False), Import("errata.b", "errata.a", 1, lazy=False)
    assert set(cycle_among([there, back])) == {"errata.a", "errata.b"}
    assert cycle_among([there, Import("errata.b", "errata.a", 1, lazy=True)]) == []
