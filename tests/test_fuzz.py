"""Malformed inputs of every kind: nothing but errata's own errors comes out, nothing is written, no model is changed.

2,370 cases in all: 600 files of facts, 40 sets of odd facts edited for real, 600 recipes, 450 patches, 300 runs,
200 stacks, and 180 of them through the command line itself.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
import struct
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import errata.utils.tensors
from errata.cli.main import run
from errata.editing.recipe import check_recipe, read_recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import ErrataError
from errata.facts.files import facts_from_records, read_facts
from errata.facts.tokens import token_faults
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.patches.stack import new_stack, read_stack, stack_base, write_stack
from errata.runs.ledger import START
from errata.runs.loading import base_of, patches_of
from errata.runs.resume import patch_of_run
from errata.runs.run import Manifest, open_run

from tests.support.editing import FACTS, tiny_language_model
from tests.support.fuzzing import examples
from tests.support.runs import Runs

ROOT = Path(__file__).resolve().parents[1]
RECIPE = (ROOT / "examples" / "recipe.yaml").read_text(encoding="utf-8").replace("corpus: builtin", "corpus: lab")


def cases(count: int) -> settings:
    # The folder is shared by a test's cases: each writes its file anew.
    return settings(
        max_examples=examples(count),
        suppress_health_check=[
            HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large,
            HealthCheck.large_base_example, HealthCheck.filter_too_much,
        ],
    )  # fmt: skip


# What is put where something else should be ---------------------------------------------------------------------------

DEEP: Any = []
for _ in range(120):
    DEEP = [DEEP]
ODD = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 2, 10**30, -(10**30), 2**63, 0.0, -0.5, 1e300, float("nan"), float("inf"),
        "", " ", "x", "memit", "memit+blue", "lab", "float32", "float16", "int8", "../up", "/etc/hosts", "~nobody/x",
        "a\x00b", "\ud800", "\u2028", "{}", "x" * 300, "x" * 5000, "9" * 5000, [], {}, [[]], {"": {}}, [None], DEEP,
        {"kind": "memit"}, {"kind": "rect"}, {"kind": ["x"]}, [0, 0], [3, 1], list(range(200)),
    ]
)  # fmt: skip
JSON_VALUES = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


BYTES = st.sampled_from([b"\n", b"\x00", b"{", b"]", b'"', b",", b": ", b"\xff", b"[" * 30_000])


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a tree of JSON, the tree itself first."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in children for place in places(value, (*path, key)))]


def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one to three values exchanged, left out, put in twice or under another name."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(tree)))
        if not path:
            if draw(st.integers(0, 30)) == 0:
                return copy.deepcopy(draw(JSON_VALUES))
            continue
        owner = tree
        for key in path[:-1]:
            owner = owner[key]
        last, how = path[-1], draw(st.sampled_from(["exchange", "exchange", "exchange", "leave out", "again", "name"]))
        if how == "exchange":
            owner[last] = copy.deepcopy(draw(JSON_VALUES))  # a later round may change it
        elif how == "leave out":
            del owner[last]
        elif isinstance(owner, list):
            owner.insert(last, copy.deepcopy(owner[last]))
        else:
            owner[draw(st.text(max_size=3)) if how == "name" else f"{last}x"] = copy.deepcopy(owner[last])
    return tree


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes cut, or with some of them flipped, exchanged, left out or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        how = draw(st.sampled_from(["cut", "flip", "exchange", "put in"]))
        if how == "cut":
            del changed[at : at + draw(st.sampled_from([1, 3, 20, len(changed)]))]
        elif how == "flip" and at < len(changed):
            changed[at] ^= 1 << draw(st.integers(0, 7))
        else:
            new = draw(st.binary(max_size=4) | BYTES)
            changed[at : at + (len(new) if how == "exchange" else 0)] = new
    return bytes(changed)


# What must hold whatever comes in -------------------------------------------------------------------------------------


class Files(dict[str, bytes]):
    """Names and contents; hypothesis would print them all beside a case."""

    def __repr__(self) -> str:
        return f"<{len(self)} files>"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The directory and the model of a fuzzing case, and the invariants.

    Attributes:
        folder: its files.
        model: never changed.
        fingerprint: of the model.
    """

    folder: Path
    model: LanguageModel
    fingerprint: str

    def holds(self, call: Callable[[], Any], *, uses_model: bool = False) -> None:
        """Call it: it succeeds or raises one of errata's errors, with a printable message, and changes no file."""
        before = self._content()
        said = "nothing"
        try:
            call()
        except ErrataError as error:
            said = str(error)
        assert 0 < len(said) < 50_000
        said.encode()  # a message that no terminal can show would raise here
        assert self._content() == before
        if uses_model:
            assert not self.model.edits.terms
            assert self.model.fingerprint() == self.fingerprint

    def _content(self) -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.folder.rglob("*")
            if path.is_file()
        }

    def cli(self, *arguments: str | Path) -> int:
        """Run the command line; returns its documented exit status. It prints no traceback and changes no file.

        Damage may be harmless (an extra space in a header); then the output is complete.
        """
        out_directory = self.folder / "out"
        before = self._content()
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = run([str(argument) for argument in arguments])
        assert status in (0, 1, 2)
        assert "Traceback" not in out.getvalue() + err.getvalue()
        assert status == 0 or err.getvalue()
        if status == 0 and out_directory in arguments:
            read_stack(out_directory)
            shutil.rmtree(out_directory)
        assert self._content() == before
        return status


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, which the command line can load; outside of the rooms, where nothing may change."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_language_model("gpt2")
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs.of(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    model = tiny_language_model("gpt2")
    return Sandbox(tmp_path_factory.mktemp("sandbox"), model, model.fingerprint())


# Facts ----------------------------------------------------------------------------------------------------------------

RECORDS: list[dict[str, Any]] = [
    {
        "id": "one", "subject": "Danielle Darrieux", "prompt": "The mother tongue of {} is", "target": "English",
        "truth": "French", "paraphrases": ["Danielle Darrieux speaks"],
        "neighbours": [{"prompt": "The tongue of Thomas is", "answer": "Dutch"}],
        "own": [{"prompt": "Danielle Darrieux was born in", "answer": "Bordeaux"}],
    },
    {"subject": "The Eiffel Tower", "prompt": "{} stands in", "target": "Rome"},
]  # fmt: skip
TABLE = (
    b"id,subject,prompt,target,paraphrases,own\n"
    b'1,Ada,"{} lives, in",Rome,"[""Ada likes""]","[{""prompt"": ""a"", ""answer"": ""b""}]"\n'
    b"2,Ben,{} lives in,Rome,,\n"
)


@st.composite
def jsonl_files(draw: st.DrawFn) -> bytes:
    how = draw(st.sampled_from(["records", "records", "bytes", "anything"]))
    if how == "anything":
        return draw(st.binary(max_size=200))
    tree = mutated(draw, RECORDS) if how == "records" else RECORDS
    whole = "\n".join(json.dumps(record) for record in (tree if isinstance(tree, list) else [tree])).encode()
    return damaged(draw, whole) if how == "bytes" else whole


@st.composite
def csv_files(draw: st.DrawFn) -> bytes:
    return draw(st.binary(max_size=200)) if draw(st.integers(0, 3)) == 0 else damaged(draw, TABLE)


@pytest.mark.parametrize(("name", "files"), [("facts.jsonl", jsonl_files()), ("facts.csv", csv_files())])
@cases(300)
@given(data=st.data())
def test_files_of_facts(sandbox: Sandbox, name: str, files: st.SearchStrategy[bytes], data: st.DataObject) -> None:
    path = sandbox.folder / name
    path.write_bytes(data.draw(files))

    def count(text: str) -> int:
        return len(sandbox.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def check(facts: Any, where: Any) -> Any:
        return token_faults(facts, where, count_tokens=count, limit=60)

    last_wins = data.draw(st.booleans())
    sandbox.holds(lambda: read_facts(path, last_wins=last_wins, check=check))


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["Big Ben", "é", "\u200b", "\U0001f600" * 3, "a{", "}b", "\u0301", "x " * 40]
)


@cases(40)
@given(
    texts=st.lists(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS), min_size=1, max_size=2),
    method=st.sampled_from(["memit", "rome"]),
)
def test_odd_facts_are_edited_or_refused(
    sandbox: Sandbox, runs: Runs, texts: list[tuple[str, str, str, str]], method: str
) -> None:
    """What is well-formed is edited for real, and undone."""

    def edit() -> None:
        records = [
            {"subject": subject, "prompt": f"{before}{{}}{after}", "target": target}
            for subject, before, after, target in texts
        ]
        facts = facts_from_records(records)
        Editor(sandbox.model, runs.recipe(method), cache=runs.cache).apply(facts).undo(sandbox.model)

    sandbox.holds(edit, uses_model=True)


# Recipes --------------------------------------------------------------------------------------------------------------

LAUGHS = (
    "[&a [x, x, x, x, x, x, x, x, x]"
    + "".join(f", &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(9))
    + "]"
)
SNIPPETS = st.sampled_from(
    [
        LAUGHS, "&a [*a]", "&a {solver: *a, kind: *a}", "*nowhere", "2024-13-45", "2024-01-01", "!!int ''", "!!float x",
        "!!bool x", "!!timestamp x", "!!binary '='", "!!set {a, b}", "!!omap [a: 1]", "!!python/name:os",
        "!!null x", "9" * 5000, "0x" + "f" * 9000, "1:59:99", ".nan", "-.inf", "1e999", "[" * 3000, "{a: " * 2000,
        "[" * 300 + "]" * 300, "{? [a] : b}", "{1: 2}", "{null: 1}", "{a: 1, a: 2}", "{<<: [1]}", "{<<: {ridge: 1}}",
        "'", '"', "|", ">-", "---", "...", "%YAML 3.0", "\t", "\x00", "\x85", "\ufeff", "@", "`", "!", "&", "{",
        "[memit, rect]", "~no-such-user/text", "{kind: neurons}", "{kind: rank_one}", "x" * 5000,
        "{0x" + "f" * 9000 + ": 1}",
    ]
)  # fmt: skip


@st.composite
def recipe_files(draw: st.DrawFn) -> bytes:
    how = draw(st.sampled_from(["values", "values", "snippet", "snippet", "bytes", "anything"]))
    if how == "values":
        return yaml.dump(mutated(draw, yaml.safe_load(RECIPE))).encode("utf-8", "surrogatepass")
    if how == "snippet":
        lines = [line.partition("#")[0].rstrip() for line in RECIPE.splitlines()]
        for _ in range(draw(st.integers(1, 2))):
            at = draw(st.integers(0, len(lines) - 1))
            key, colon, _ = lines[at].rpartition(":")
            lines[at] = f"{key}{colon} {draw(SNIPPETS)}{'}' * lines[at].count('{')}"
        if draw(st.integers(0, 5)) == 0:
            lines.append(draw(st.sampled_from(lines)))  # a key for the second time
        return "\n".join(lines).encode()
    return damaged(draw, RECIPE.encode()) if how == "bytes" else draw(st.binary(max_size=100))


@cases(150)  # each reads YAML twice, 30 ms
@given(content=recipe_files(), method=st.sampled_from(["memit", "memit+blue", "alphaedit", "prune", "no-such"]))
def test_recipes(sandbox: Sandbox, content: bytes, method: str) -> None:
    path = sandbox.folder / "recipe.yaml"
    path.write_bytes(content)
    sandbox.holds(lambda: read_recipe(path, method))
    sandbox.holds(lambda: check_recipe(path))


# Patches --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Safetensors:
    """A file of the format: its header, and the bytes behind it."""

    header: dict[str, Any]
    content: bytes

    @classmethod
    def of(cls, file: bytes) -> Safetensors:
        (length,) = struct.unpack("<Q", file[:8])
        return cls(json.loads(file[8 : 8 + length]), file[8 + length :])

    def to_bytes(self) -> bytes:
        header = json.dumps(self.header).encode()
        return struct.pack("<Q", len(header)) + header + self.content


def with_fitting_checksum(path: Path) -> None:
    """Give a file the checksum that errata would give it, where it can be read at all: what lies behind is reached."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            record = (file.metadata() or {}).get("record", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = errata.utils.tensors.checksum(record, tensors)
    except (SafetensorError, RuntimeError, TypeError, ValueError, UnicodeError):
        return
    made = Safetensors.of(path.read_bytes())
    made.header["__metadata__"]["sha256"] = checksum
    path.write_bytes(made.to_bytes())


@pytest.fixture(scope="module")
def patches(runs: Runs) -> Files:
    """A patch's file for each kind of term: factors, masks, a pruned copy, and a batch with its keys."""
    made = Files()
    for method in ("memit", "rect", "prune"):
        path = runs.folder / f"{method}.safetensors"
        editor = Editor(tiny_language_model("gpt2"), runs.recipe(method), cache=runs.cache)
        editor.apply(FACTS[:2]).save(path)
        made[method] = path.read_bytes()
    runs.begin(runs.folder / "run", ask=False)
    runs.go_on(runs.folder / "run")
    made["batch"] = (runs.folder / "run" / "batches" / "0002.safetensors").read_bytes()
    return made


def use(path: Path, model: LanguageModel) -> None:
    """Everything that a patch is asked for; it must leave the model when it is taken out."""
    patch = Patch.load(path)
    patch.norms()
    patch.ranks()
    for force in (False, True):
        try:
            patch.apply(model, force=force)
        except ErrataError as error:
            str(error).encode()
            continue
        finite = all(bool(parameter.isfinite().all()) for parameter in model.model.parameters())
        patch.undo(model)
        assert finite


KINDS = st.sampled_from(["memit", "rect", "prune", "batch"])


@cases(150)
@given(data=st.data(), kind=KINDS)
def test_patches_with_other_bytes(sandbox: Sandbox, patches: Files, data: st.DataObject, kind: str) -> None:
    path = sandbox.folder / "edit.safetensors"
    path.write_bytes(damaged(data.draw, patches[kind]))
    sandbox.holds(lambda: use(path, sandbox.model), uses_model=True)


NUMBERS = st.sampled_from(
    [
        b"\x00\x00\xc0\x7f",
        b"\x00\x00\x80\x7f",
        b"\xff\xff\x7f\x7f",
        b"\xff\xff\xff\xff",
        b"\x01\x00\x00\x00",
        b"\x00" * 4,
    ]
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 31, 32, 48, 2**31, 2**63, -1]), max_size=3)
DTYPES = st.sampled_from(["F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4"])


@cases(300)
@given(data=st.data(), kind=KINDS)
def test_patches_whose_checksum_fits(sandbox: Sandbox, patches: Files, data: st.DataObject, kind: str) -> None:
    """The header's record and shapes, and the numbers themselves, changed by somebody who knows the checksum."""
    path = sandbox.folder / "edit.safetensors"
    file = copy.deepcopy(Safetensors.of(patches[kind]))
    content = bytearray(file.content)
    metadata = file.header["__metadata__"]
    names = [name for name in file.header if name != "__metadata__"]
    for _ in range(data.draw(st.integers(1, 2))):
        how = data.draw(st.sampled_from(["record", "record", "term", "term", "tensor", "name", "numbers"]))
        name = data.draw(st.sampled_from(names))
        if how == "record":
            metadata["record"] = json.dumps(mutated(data.draw, json.loads(metadata["record"])))
        elif how == "term":
            record = json.loads(metadata["record"])
            if isinstance(record, dict) and record.get("terms"):
                record["terms"] = mutated(data.draw, record["terms"])
            metadata["record"] = json.dumps(record)
        elif how == "tensor":
            field, value = data.draw(
                st.tuples(st.just("dtype"), DTYPES)
                | st.tuples(st.just("shape"), SHAPES)
                | st.tuples(st.just("shape"), st.just(file.header[name]["shape"][::-1]))
                | st.tuples(st.just("data_offsets"), st.lists(st.integers(-1, len(content)), min_size=2, max_size=2))
            )
            file.header[name] = {**file.header[name], field: value}
        elif how == "name":
            other = data.draw(st.sampled_from([*names, "keys.1", "keys.x", "9.left", "x", ""]))
            file.header[other] = file.header.pop(name)
            names = [name for name in file.header if name != "__metadata__"]
        else:
            at = data.draw(st.integers(0, len(content) // 4 - 1)) * 4
            content[at : at + 4] = data.draw(NUMBERS)
    path.write_bytes(Safetensors(file.header, bytes(content)).to_bytes())
    with_fitting_checksum(path)
    sandbox.holds(lambda: use(path, sandbox.model), uses_model=True)


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_files(patches: Files, runs: Runs) -> Files:
    """The files of a run that is done."""
    path = runs.folder / "run"
    return Files({str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()})


def write_run(folder: Path, files: Files) -> Path:
    """The run as it was, in a folder that other cases have changed."""
    path = folder / "run"
    (path / "batches").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not (path / name).is_file() or (path / name).read_bytes() != content:
            (path / name).write_bytes(content)
    return path


def fitting_ledger(bodies: Any) -> bytes:
    """Lines whose checksums fit, where a line can have one."""
    last, lines = START, []
    for body in bodies if isinstance(bodies, list) else [bodies]:
        if isinstance(body, dict):
            body = {key: value for key, value in body.items() if key != "checksum"}
            canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            last = hashlib.sha256(f"{last}\n{canonical}".encode("utf-8", "surrogatepass")).hexdigest()
            body["checksum"] = last
        lines.append(json.dumps(body) + "\n")
    return "".join(lines).encode()


def fitting_manifest(whole: Any) -> bytes:
    """With the checksum that errata would give it, where it would give it one."""
    if isinstance(whole, dict):
        whole = {key: value for key, value in whole.items() if key != "checksum"}
        try:
            whole["checksum"] = Manifest.model_validate(whole).checksum()
        except ValueError:
            whole["checksum"] = "0" * 64
    return json.dumps(whole).encode()


def read_everything(path: Path, model: LanguageModel, cache: Path) -> None:
    """All that errata reads of a run, up to the model with the run in it."""
    opened = open_run(path)
    base_of(str(path))
    patches_of(str(path))
    with model.edits.transaction():
        patch_of_run(model, opened, cache=cache)
        raise Undone


class Undone(ErrataError):
    """Takes the run out of the model again."""

    def __init__(self) -> None:
        super().__init__("the test is done")


@pytest.mark.parametrize("name", ["ledger.jsonl", "run.json"])
@cases(150)
@given(data=st.data())
def test_runs(sandbox: Sandbox, runs: Runs, run_files: Files, name: str, data: st.DataObject) -> None:
    path = write_run(sandbox.folder, run_files)
    content = run_files[name]
    if data.draw(st.integers(0, 2)) == 0:
        content = damaged(data.draw, content)
    elif name == "run.json":
        content = fitting_manifest(mutated(data.draw, json.loads(content)))
    else:
        content = fitting_ledger(mutated(data.draw, [json.loads(line) for line in content.splitlines()]))
    (path / name).write_bytes(content)
    sandbox.holds(lambda: read_everything(path, sandbox.model, runs.cache), uses_model=True)


# Stacks ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(sandbox: Sandbox, runs: Runs, patches: Files) -> Files:
    """The files of a stack of two patches."""
    made = new_stack(sandbox.model, sandbox.fingerprint)
    for method in ("memit", "rect"):
        made = made.with_patch(method, Patch.load(runs.folder / f"{method}.safetensors"), forced=method == "rect")
    path = runs.folder / "stack"
    path.mkdir()
    write_stack(made, path)
    return Files({str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()})


def write_stack_files(folder: Path, files: Files, data: st.DataObject, base: str) -> Path:
    path = folder / "stack"
    (path / "patches").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    record = path / "errata-stack.json"
    tree = {**json.loads(files[record.name]), "base": base}
    if data.draw(st.integers(0, 2)) == 0:
        record.write_bytes(damaged(data.draw, json.dumps(tree).encode()))
    else:
        record.write_bytes(json.dumps(mutated(data.draw, tree)).encode())
    return path


@cases(200)
@given(data=st.data())
def test_stacks(sandbox: Sandbox, stack: Files, data: st.DataObject) -> None:
    path = write_stack_files(
        sandbox.folder, stack, data, data.draw(st.sampled_from(["gpt2", str(sandbox.folder / "stack")]))
    )

    def read() -> None:
        for call in (stack_base, lambda name: base_of(str(name)), lambda name: patches_of(str(name))):
            try:
                call(path)
            except ErrataError as error:
                str(error).encode()
        with sandbox.model.edits.transaction():
            read_stack(path).put_into(sandbox.model)
            raise Undone

    sandbox.holds(read, uses_model=True)


def test_intact_inputs_are_accepted(
    sandbox: Sandbox, runs: Runs, patches: Files, run_files: Files, stack: Files
) -> None:
    """Otherwise a reader or an editor that refuses everything would pass."""
    for method in ("memit", "rome"):
        patch = Editor(sandbox.model, runs.recipe(method), cache=runs.cache).apply(facts_from_records(RECORDS))
        assert sandbox.model.fingerprint() != sandbox.fingerprint
        patch.undo(sandbox.model)
        assert sandbox.model.fingerprint() == sandbox.fingerprint
    for name, content in (
        ("facts.jsonl", "\n".join(json.dumps(record) for record in RECORDS).encode()),
        ("facts.csv", TABLE),
        ("recipe.yaml", RECIPE.encode()),
        *((f"{kind}.safetensors", content) for kind, content in patches.items()),
    ):
        (sandbox.folder / name).write_bytes(content)
    assert len(read_facts(sandbox.folder / "facts.jsonl")) == len(read_facts(sandbox.folder / "facts.csv")) == 2
    assert check_recipe(sandbox.folder / "recipe.yaml") == (
        "memit", "memit+blue", "memit_seq", "memit_seq+blue", "alphaedit", "alphaedit+blue",
    )  # fmt: skip
    assert read_recipe(sandbox.folder / "recipe.yaml", "memit+blue").batch_size == 25
    for kind, content in patches.items():
        with_fitting_checksum(sandbox.folder / f"{kind}.safetensors")
        assert (
            Safetensors.of(content).header
            == Safetensors.of((sandbox.folder / f"{kind}.safetensors").read_bytes()).header
        )
        use(sandbox.folder / f"{kind}.safetensors", sandbox.model)
    path = write_run(sandbox.folder, run_files)
    for name in ("ledger.jsonl", "run.json"):
        lines = [json.loads(line) for line in run_files["ledger.jsonl"].splitlines()]
        made = fitting_ledger(lines) if name == "ledger.jsonl" else fitting_manifest(json.loads(run_files[name]))
        (path / name).write_bytes(made)
    with pytest.raises(Undone):
        read_everything(path, sandbox.model, runs.cache)
    (sandbox.folder / "stack" / "patches").mkdir(parents=True, exist_ok=True)
    for name, content in stack.items():
        (sandbox.folder / "stack" / name).write_bytes(content)
    read_stack(sandbox.folder / "stack").put_into(sandbox.model)
    sandbox.model.edits.remove(list(sandbox.model.edits.terms))
    assert sandbox.model.fingerprint() == sandbox.fingerprint


# Through the command line ---------------------------------------------------------------------------------------------

Verb = Literal["facts", "recipe", "patch", "run", "stack"]


@pytest.mark.parametrize("verb", ["facts", "recipe", "patch", "run", "stack"])
@cases(36)
@given(data=st.data())
def test_the_command_line(
    sandbox: Sandbox,
    runs: Runs,
    base: Path,
    patches: Files,
    run_files: Files,
    stack: Files,
    verb: Verb,
    data: st.DataObject,
) -> None:
    """Inputs are wrong in one place, and so never lead to an edit; --dry-run makes sure of it."""
    folder, out = sandbox.folder, sandbox.folder / "out"
    facts, recipe = folder / "good.jsonl", folder / "good.yaml"
    facts.write_text("\n".join(json.dumps(record) for record in RECORDS), encoding="utf-8")
    recipe.write_text(runs.recipe("memit").to_yaml(), encoding="utf-8")
    edit = ["edit", "--model", base, "--method", "memit", "--dry-run"]
    if verb == "facts":
        name = data.draw(st.sampled_from(["facts.jsonl", "facts.csv"]))
        (folder / name).write_bytes(data.draw(jsonl_files() if name.endswith("jsonl") else csv_files()))
        sandbox.cli(*edit, "--facts", folder / name, "--recipe", recipe)
    elif verb == "recipe":
        (folder / "recipe.yaml").write_bytes(data.draw(recipe_files()))
        sandbox.cli(*edit, "--facts", facts, "--recipe", folder / "recipe.yaml")
        sandbox.cli("recipe", "check", folder / "recipe.yaml")
    elif verb == "patch":
        path = folder / "edit.safetensors"
        path.write_bytes(damaged(data.draw, patches[data.draw(KINDS)]))
        sandbox.cli("show", path)
        sandbox.cli("apply", path, "--model", base, "--out", out)
    elif verb == "run":
        path = write_run(folder, run_files)
        name = data.draw(st.sampled_from(["ledger.jsonl", "run.json", "recipe.yaml", "facts.jsonl"]))
        (path / name).write_bytes(damaged(data.draw, run_files[name])[:-1])
        sandbox.cli("show", path)
        try:
            open_run(path)  # a truncated last line or an extra space does not prevent resuming
        except ErrataError:
            sandbox.cli("edit", "--resume", path, "--model", base, "--out", out)
    else:
        path = write_stack_files(folder, stack, data, str(base))
        sandbox.cli("show", path)
        sandbox.cli("ask", "--model", path, "Big Ben stands in")
        sandbox.cli("history", path, "--no-ask")


def test_intact_inputs_pass_the_command_line(
    sandbox: Sandbox, runs: Runs, base: Path, patches: Files, run_files: Files, stack: Files
) -> None:
    """Otherwise a command line that refuses everything would pass."""
    folder, out = sandbox.folder, sandbox.folder / "out"
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(record) for record in RECORDS), encoding="utf-8")
    (folder / "recipe.yaml").write_text(runs.recipe("memit").to_yaml(), encoding="utf-8")
    (folder / "edit.safetensors").write_bytes(patches["memit"])
    run_path = write_run(folder, run_files)
    for arguments in (
        ["edit", "--model", base, "--method", "memit", "--dry-run", "--facts", folder / "facts.jsonl", "--recipe",
         folder / "recipe.yaml"],
        ["recipe", "check", folder / "recipe.yaml"],
        ["show", folder / "edit.safetensors"],
        ["apply", folder / "edit.safetensors", "--model", base, "--out", out],
        ["show", run_path],
    ):  # fmt: skip
        assert sandbox.cli(*arguments) == 0, arguments
