"""Every editor fulfils the contract: atomic, reversible bit for bit, restorable, independent of batches and padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from errata.editing.methods import METHOD_NAMES
from errata.editors.contract import Answerer, Edit, EditedBatch, KnowledgeEditor
from errata.editors.locate_then_edit import LocateThenEdit
from errata.editors.registry import EDITORS, LOCATE_THEN_EDIT, editor_named
from errata.editors.table import ABILITIES, EDITOR_NAMES, EDITOR_ROWS, EditorSettings
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.utils.progress import silent

from tests.support.editing import FACTS, tiny_language_model, tiny_recipe, write_corpus
from tests.support.editors import VIEWS, MemoryEdit, MemoryEditor
from tests.support.extending import extending_page
from tests.support.trained import trained_file

FIRST, SECOND = FACTS[:2], FACTS[2:4]
CONTROLS = ("The river runs through the", "Big Ben was moved to", "I think that")


@dataclass(frozen=True)
class Case:
    """An editor under test, how to make another one of the same kind, and how to load its edits."""

    make: Callable[[], Any]
    load: Callable[[Path], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("editors")


def _with_classifier(folder: Path) -> dict[str, Any]:
    return {"embedder": {"kind": "trained", "file": str(trained_file("serac", folder))}}


def _with_network(folder: Path) -> dict[str, Any]:
    return {"network": str(trained_file("mend", folder)), "batch_size": 2}


def _with_rewriter(folder: Path) -> dict[str, Any]:
    return {"rewriter": str(trained_file("post_edit", folder))}


def _with_network_of_sequences(folder: Path) -> dict[str, Any]:
    return {"network": str(trained_file("rledit", folder)), "batch_size": 2}


_FEW = {"steps": 4, "batch_size": 2}
# Name in the registry -> the methods to test, or the settings of an editor without a recipe; None for its defaults. A
# function makes the settings in a folder, where it may write a trained part.
SETTINGS: dict[str, tuple[Any, ...]] = {
    LOCATE_THEN_EDIT: ("memit", "alphaedit+blue"),
    "elder": ({"learning_rate": 0.02, "steps": 5, "cosine": 0.9},),
    "grace": ({"steps": 5},),
    "memoir": ({"steps": 5, "columns": 12, "threshold": 0.9},),
    "wise": ({"steps": 8, "layer": 2, "outside_prompts": 2, "mask": 1.0, "share": 1.0, "learning_rate": 0.1},),
    "melo": ({"learning_rate": 0.05, "steps": 4},),
    "t_patcher": ({"steps": 10, "key_rate": 0.25, "value_rate": 1.0, "tokens": 128},),
    "ft": (_FEW,),
    "ft_l": ({**_FEW, "anchor": "run"},),
    "ft_m": (_FEW,),
    "ft_bf": ({**_FEW, "mini_batch": 1},),
    "lora": tuple(
        {**_FEW, "layers": (1, 3), "sequence": sequence, "modules": modules}
        for sequence, modules in (
            ("stack", "down_proj"),
            ("again", "down_proj"),
            ("replay", "down_proj"),
            ("stack", "qv"),
        )
    ),
    "retrieval": (None,),
    "mend": (_with_network,),
    "rledit": (_with_network_of_sequences,),
    "serac": (_with_classifier,),
    "substitute": (None,),
    "post_edit": (_with_rewriter,),
    "simie": ({"batch_size": 2, "layer": 2, "target": {"learning_rate": 0.3, "steps": 3}},),
    "ultra": ({"batch_size": 2, "layers": (2, 3)},),
    "stable": ({"batch_size": 2, "layers": (2, 3), "pooled": True},),
    "kn": ({"batch_size": 2, "steps": 3},),
}
CASES = [(name, method) for name in EDITORS for method in SETTINGS[name]]
FROM_THE_PAGE = "docs/extending.md"


def named(param: Any) -> str:
    """The case in the names of tests: equal in every process, so without a function's address."""
    if isinstance(param, str):
        return param
    name, method = param
    return f"{name}-{method.__name__.strip('_') if callable(method) else method}"


@pytest.fixture(params=[*CASES, *VIEWS, FROM_THE_PAGE], ids=named)
def case(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    if isinstance(request.param, str) and request.param in VIEWS:
        return Case(lambda: MemoryEditor(tiny_language_model("llama"), request.param), MemoryEdit.load)
    if request.param == FROM_THE_PAGE:
        page = extending_page()
        return Case(lambda: page["ContextEditor"](tiny_language_model("llama")), page["StoredEdit"].load)
    name, method = request.param
    monkeypatch.setenv("ERRATA_CACHE", str(folder / "cache"))
    recipe = tiny_recipe(write_corpus(folder / "corpus.txt"), method) if isinstance(method, str) else None
    settings = recipe.model_dump(mode="json") if recipe else method(folder) if callable(method) else method or {}
    kind = editor_named(name)
    found = Case(lambda: kind.make(tiny_language_model("llama"), settings, silent), kind.load)
    if "old" in getattr(kind.settings.model_validate(settings), "needs", ()):
        facts = with_old_objects()
        for constant, value in (("FACTS", facts), ("FIRST", facts[:2]), ("SECOND", facts[2:4])):
            monkeypatch.setitem(globals(), constant, value)
    return found


@dataclass(frozen=True)
class Edited:
    """An editor with one edit, for tests that only read, and what it answered before."""

    editor: Any
    edit: Any
    before: list[Any]


@pytest.fixture(scope="module")
def made() -> dict[str, Edited]:
    return {}


@pytest.fixture
def edited(case: Case, made: dict[str, Edited], request: pytest.FixtureRequest) -> Edited:
    """Made once for all tests of a case."""
    name = request.node.callspec.id
    if name not in made:
        editor = case.make()
        before = answers(editor)
        made[name] = Edited(editor, editor.apply(FIRST), before)
    return made[name]


@cache
def with_old_objects() -> tuple[Fact, ...]:
    """The facts with what the unedited model answers as their old objects, and with another wording."""
    answers = tiny_language_model("llama").continue_texts([fact.text for fact in FACTS], new_tokens=4)
    return tuple(
        replace(fact, old=answer.strip(), paraphrases=(f"I think that {fact.text}",))
        for fact, answer in zip(FACTS, answers, strict=True)
    )


def test_every_editor_has_its_name_and_others_are_refused() -> None:
    assert EDITORS[LOCATE_THEN_EDIT] is editor_named(LOCATE_THEN_EDIT)
    with pytest.raises(InputError) as caught:
        editor_named("locate-then-edit")
    assert caught.value.code == "EDITOR_UNKNOWN"
    assert LOCATE_THEN_EDIT in caught.value.remedy


def test_the_table_describes_every_editor_of_the_registry() -> None:
    assert set(EDITORS) == {LOCATE_THEN_EDIT, *EDITOR_NAMES}
    assert not set(EDITOR_NAMES) & set(METHOD_NAMES)
    for row in EDITOR_ROWS:
        assert issubclass(EDITORS[row.name].settings, EditorSettings), row.name
        EDITORS[row.name].settings()  # no setting needs a value
        assert row.title, row.name
        assert row.paper, row.name


def answers(editor: KnowledgeEditor) -> list[Any]:
    """Everything the view says about edited and other prompts; equal only if equal bit for bit."""
    view = editor.view()
    prompts = [*(fact.text for fact in FACTS[:4]), *CONTROLS]
    said: list[Any] = list(view.continue_texts(prompts, new_tokens=4))
    if "likelihood" in view.abilities:
        said += view.score([fact.pair(fact.target) for fact in FACTS[:4]])
        said += view.next_token_log_probabilities(prompts).tolist()
    return said


def test_protocols(edited: Edited, tmp_path: Path) -> None:
    editor, edit = edited.editor, edited.edit
    for row in EDITOR_ROWS:
        if row.name == editor.method:
            assert (editor.view().abilities, editor.undo) == (ABILITIES[row.where], row.undo)
    assert isinstance(editor, KnowledgeEditor)
    assert isinstance(editor.view(), Answerer)
    assert isinstance(edit, Edit)
    assert edit.facts == tuple(FIRST)
    assert edit.stored_bytes > 0
    edit.save(tmp_path / "edit.safetensors")
    assert (tmp_path / "edit.safetensors").stat().st_size >= edit.stored_bytes


def test_edit_changes_answers_of_its_facts_only_if_triggered(edited: Edited) -> None:
    view = edited.editor.view()
    assert answers(edited.editor) != edited.before
    used = view.used([FIRST[0].text, CONTROLS[0]])
    assert len(used) == 2
    assert used[1] == ()
    if "rolling" not in view.abilities:  # a trigger decides: whatever it does not hit is as before
        assert used[0] == (FIRST[0].id,)
        assert view.continue_texts([CONTROLS[0]], new_tokens=4) == [edited.before[4]]


def test_apply_is_atomic(case: Case) -> None:
    editor = case.make()
    before, said = editor.fingerprint(), answers(editor)
    for failure in (ValueError, KeyboardInterrupt):
        batches = 0

        def fail(batch: EditedBatch, failure: type[BaseException] = failure) -> None:
            nonlocal batches
            assert isinstance(batch, EditedBatch)
            batches += len(batch.facts)
            if batches == len(FACTS[:4]):
                raise failure

        with pytest.raises(failure):
            editor.apply(FACTS[:4], on_batch=fail)
        assert editor.fingerprint() == before
        assert answers(editor) == said
    # It is as good as new: the next edit is that of an editor that never failed.
    other = case.make()
    editor.apply(SECOND)
    other.apply(SECOND)
    assert answers(editor) == answers(other)
    assert editor.fingerprint() == other.fingerprint()


def test_remove_is_bit_for_bit(case: Case) -> None:
    editor = case.make()
    states = [(editor.fingerprint(), answers(editor))]
    edits = []
    for facts in (FIRST, SECOND):
        edits.append(editor.apply(facts))
        states.append((editor.fingerprint(), answers(editor)))
    assert len({fingerprint for fingerprint, _ in states}) == 3
    editor.remove(edits[1])
    assert (editor.fingerprint(), answers(editor)) == states[1]
    with pytest.raises(InputError):
        editor.remove(edits[1])
    assert (editor.fingerprint(), answers(editor)) == states[1]
    editor.remove(edits[0])
    assert (editor.fingerprint(), answers(editor)) == states[0]
    for edit, state in zip(edits, states[1:], strict=True):
        editor.restore(edit)
        assert editor.fingerprint() == state[0]
    if editor.undo == "any":
        editor.remove(edits[0])
        editor.remove(edits[1])
        assert (editor.fingerprint(), answers(editor)) == states[0]


def test_saved_loaded_and_restored_is_the_same(case: Case, tmp_path: Path) -> None:
    editor = case.make()
    for number, facts in enumerate((FIRST, SECOND)):
        editor.apply(facts).save(tmp_path / f"{number}")
    loaded = [case.load(tmp_path / f"{number}") for number in range(2)]
    other = case.make()
    empty = other.fingerprint()
    with pytest.raises(InputError):  # it was made on top of the first
        other.restore(loaded[1])
    assert other.fingerprint() == empty
    for edit in loaded:
        other.restore(edit)
    assert other.fingerprint() == editor.fingerprint()
    assert answers(other) == answers(editor)
    for edit in reversed(loaded):
        other.remove(edit)
    assert other.fingerprint() == empty


def test_scores_do_not_depend_on_batches_and_padding(edited: Edited) -> None:
    view = edited.editor.view()
    pairs = [
        *(fact.pair(fact.target) for fact in FACTS[:3]),
        (FACTS[0].text, "a much longer target than the others have"),
        *((prompt, "river") for prompt in CONTROLS),
    ]
    prompts = [pair[0] for pair in pairs]
    together = view.continue_texts(prompts, new_tokens=5)
    assert together == [view.continue_texts([prompt], new_tokens=5)[0] for prompt in prompts]
    assert together[::-1] == view.continue_texts(prompts[::-1], new_tokens=5)
    if "likelihood" not in view.abilities:
        with pytest.raises(InputError):
            view.score(pairs)
        return
    whole = view.score(pairs)
    for others in (
        view.score(pairs[::-1])[::-1],
        view.score(pairs, token_budget=1),
        [view.score([p])[0] for p in pairs],
    ):
        for found, expected in zip(others, whole, strict=True):
            assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
            assert found.likeliest == expected.likeliest


def test_the_next_token_is_that_of_scores_and_texts(edited: Edited) -> None:
    view = edited.editor.view()
    prompts = [FACTS[0].text, *CONTROLS]
    if "likelihood" not in view.abilities:
        with pytest.raises(InputError):
            view.next_token_log_probabilities(prompts)
        return
    found = view.next_token_log_probabilities(prompts)
    assert found.exp().sum(1).tolist() == pytest.approx([1.0] * len(prompts), abs=1e-4)
    alone = [view.next_token_log_probabilities([prompt])[0] for prompt in prompts]
    for row, other, score in zip(found, alone, view.score([(prompt, "river") for prompt in prompts]), strict=True):
        assert row.tolist() == pytest.approx(other.tolist(), abs=1e-4)
        assert int(row.argmax()) == score.likeliest[0]


def test_joiner_is_for_pairs_without_one() -> None:
    model = tiny_language_model("gpt2")
    view: LanguageModel = model
    assert view.score([("The capital of", "Italy")], joiner="") == view.score([("The capital of", "Italy", "")])
    assert view.score([("The capital of", "Italy", " ")], joiner="") == view.score([("The capital of", "Italy", " ")])
    assert view.score([("The capital of", "Italy")]) == view.score([("The capital of", "Italy")], joiner=" ")


def test_edits_of_other_editors_are_refused() -> None:
    model = tiny_language_model("gpt2")
    edit = MemoryEditor(model, "prompt").apply(FIRST)
    editor = LocateThenEdit(model, tiny_recipe(Path("unread")))
    for refuse in (editor.remove, editor.restore):
        with pytest.raises(InputError) as error:
            refuse(edit)
        assert error.value.code == "EDIT_OF_ANOTHER_EDITOR"
