"""What all editors by hooks share: the prompt alone decides, and what it decides is the same however rows are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editors.edit_file import StoredEdit
from errata.editors.hook_editor import HookEditor
from errata.editors.registry import EDITORS
from errata.editors.routed import Hooked, Prompt, Queries, Routed, prompts_of
from errata.editors.table import EDITOR_ROWS
from errata.models.generation import continue_rows
from errata.models.language_model import LanguageModel
from errata.models.likelihood import next_token_log_probabilities
from errata.models.prompts import encode, pad
from errata.models.row_hooks import RowPass, positions_of
from errata.models.weights import LowRankTerm
from errata.utils.progress import silent

from tests.support.editing import FACTS, assert_same_bits, parameter_bits, tiny_language_model
from tests.support.errors import raises_code

FIRST, SECOND = FACTS[:3], FACTS[3:]
CONTROLS = ("The river runs through the", "Big Ben was moved to", "I think that")
# Settings for tiny models, and the query of each test: the last token in one family, the mean in another.
SETTINGS: dict[str, dict[str, Any]] = {
    "elder": {"learning_rate": 0.02, "steps": 5, "batch_size": 2, "cosine": 0.9},
    "grace": {"steps": 5, "batch_size": 2},
    "memoir": {"learning_rate": 6.0, "steps": 8, "batch_size": 2, "columns": 12, "threshold": 0.9},
    "melo": {"learning_rate": 0.08, "steps": 5, "batch_size": 2},
    "t_patcher": {"steps": 20, "batch_size": 4, "value_rate": 1.0, "tokens": 128},
    "wise": {"steps": 10, "batch_size": 2, "outside_prompts": 2, "mask": 1.0, "share": 1.0},
}
EVERY_TOKEN = {"t_patcher"}  # these decide at each token by its own activation, also in answers
QUERIES = {"gpt2": "prompt_last", "opt": "prompt_mean", "gemma2": "prompt_last"}
# What an editor stores does not depend on the family.
OF_STATES = [("elder", "gpt2"), ("grace", "opt"), ("memoir", "gemma2"), ("melo", "gpt2"), ("t_patcher", "opt"),
             ("wise", "gemma2")]  # fmt: skip
CASES = [(name, family) for name in ("elder", "grace", "memoir") for family in QUERIES] + OF_STATES[3:]


def test_every_editor_by_hooks_is_tested_here() -> None:
    assert {row.name for row in EDITOR_ROWS if row.where == "hooks"} == set(SETTINGS) == {name for name, _ in CASES}


def make(name: str, family: str, **changes: Any) -> HookEditor[Any, Any]:
    query = {"query": QUERIES[family]} if "query" in EDITORS[name].settings.model_fields else {}
    settings = {**SETTINGS[name], **query, **changes}
    editor = EDITORS[name].make(tiny_language_model(family), settings, silent)
    assert isinstance(editor, HookEditor)
    return editor


@cache
def edited(name: str, family: str) -> HookEditor[Any, Any]:
    """An editor with one edit, for tests that only read."""
    editor = make(name, family)
    editor.apply(FIRST)
    return editor


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(params=OF_STATES, ids="-".join)
def of_state(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def editor(case: tuple[str, str]) -> HookEditor[Any, Any]:
    return edited(*case)


@pytest.fixture(params=[case for case in CASES if case[0] not in EVERY_TOKEN], ids="-".join)
def by_prompt(request: pytest.FixtureRequest) -> HookEditor[Any, Any]:
    """One that decides on the prompt alone."""
    return edited(*request.param)


def prompts(texts: Sequence[str], model: LanguageModel) -> list[Prompt]:
    return prompts_of(model.tokenizer, texts, encode(model.tokenizer, texts))


def logits_of(
    view: Hooked, texts: Sequence[str], extra: Sequence[Sequence[int]], *, left: bool, hooked: bool
) -> Tensor:
    """The logits of rows, each a prompt with more tokens, at all positions of the tokens, row after row."""
    model = view.model
    encoded = encode(model.tokenizer, texts)
    batch = pad([[*row.ids, *more] for row, more in zip(encoded, extra, strict=True)], left=left, device=model.device)
    hooks = view.hooks(texts, encoded)
    with torch.no_grad():
        if not hooked:
            logits = model.model(**batch.inputs(), use_cache=False).logits
        else:
            with hooks(RowPass(tuple(range(len(texts))), positions_of(batch))):
                logits = model.model(**batch.inputs(), use_cache=False).logits
    return torch.cat([logits[row][batch.attention_mask[row].bool()] for row in range(len(texts))])


# (a) ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
def test_rows_without_a_route_are_the_models_own_bit_for_bit(editor: HookEditor[Any, Any], left: bool) -> None:
    view = editor.view()
    texts = [CONTROLS[0], FIRST[0].text, CONTROLS[1], FIRST[1].text, CONTROLS[2]]
    assert [bool(used) for used in view.used(texts)] == [False, True, False, True, False]
    extra = [[20, 21, 22], [23], [24, 25], [], []]
    lengths = [len(row.ids) + len(more) for row, more in zip(encode(view.tokenizer, texts), extra, strict=True)]
    with_hooks = logits_of(view, texts, extra, left=left, hooked=True).split(lengths)
    without = logits_of(view, texts, extra, left=left, hooked=False).split(lengths)
    for row, (found, expected) in enumerate(zip(with_hooks, without, strict=True)):
        assert torch.equal(found, expected) == (row not in (1, 3))


def test_an_editor_without_facts_is_the_model(case: tuple[str, str]) -> None:
    editor = make(*case)
    pairs = [fact.pair(fact.target) for fact in FACTS]
    texts = [fact.text for fact in FACTS]
    view, model = editor.view(), editor.model
    assert view.score(pairs) == model.score(pairs)
    assert torch.equal(view.next_token_log_probabilities(texts), model.next_token_log_probabilities(texts))
    assert view.continue_texts(texts, new_tokens=3) == model.continue_texts(texts, new_tokens=3)
    assert view.used(texts) == [()] * len(texts)


def test_the_weights_are_never_changed(case: tuple[str, str]) -> None:
    editor = make(*case)
    before = parameter_bits(editor.model)
    editor.apply(FIRST)
    editor.view().score([fact.pair(fact.target) for fact in FACTS])
    assert_same_bits(parameter_bits(editor.model), before)
    assert not any(module._forward_hooks for module in editor.model.model.modules())
    assert not any(parameter.requires_grad for parameter in editor.model.model.parameters())


# (b) ------------------------------------------------------------------------------------------------------------------


def test_scores_are_the_same_alone_shuffled_and_padded_on_either_side(editor: HookEditor[Any, Any]) -> None:
    view = editor.view()
    pairs = [*(fact.pair(fact.target) for fact in FACTS), *((text, "river") for text in CONTROLS)]
    pairs += [(FIRST[0].text, "a much longer target than the others have"), (FIRST[0].text, "Rome")]
    whole = [score.log_probability for score in view.score(pairs)]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = view.score([pairs[index] for index in order])
    assert [score.log_probability for score in shuffled] == pytest.approx([whole[index] for index in order], abs=1e-5)
    alone = [view.score([pair])[0].log_probability for pair in pairs]
    assert alone == pytest.approx(whole, abs=1e-5)
    texts, extra = [pair[0] for pair in pairs], [[5, 6], [], [7], [8, 9, 10], [], [11], [], [12], [13], [], [14]]
    right, left = (logits_of(view, texts, extra, left=left, hooked=True).log_softmax(-1) for left in (False, True))
    torch.testing.assert_close(left, right, rtol=0, atol=2e-5)


def test_targets_of_one_prompt_share_a_row_and_prompts_do_not(by_prompt: HookEditor[Any, Any]) -> None:
    """Where one row begins another one, a shared row would have one route for two prompts."""
    view = by_prompt.view()
    fact = FIRST[0]
    beginning, end = "The mother", fact.text.removeprefix("The mother ")
    pairs = [(beginning, f"{end} {fact.target}", " "), (fact.text, fact.target, " ")]
    assert pairs[0][0] + " " + pairs[0][1] == pairs[1][0] + " " + pairs[1][1]
    assert [bool(used) for used in view.used([pair[0] for pair in pairs])] == [False, True]
    together = view.score(pairs)
    assert together[0].log_probability == pytest.approx(view.model.score(pairs)[0].log_probability, abs=1e-5)
    assert together[1].log_probability == pytest.approx(view.score(pairs[1:])[0].log_probability, abs=1e-5)
    assert abs(together[1].log_probability - view.model.score(pairs)[1].log_probability) > 0.01


# (c) ------------------------------------------------------------------------------------------------------------------


def test_cached_generation_is_that_without_a_cache(editor: HookEditor[Any, Any]) -> None:
    view, new_tokens = editor.view(), [6, 3, 5, 6, 1, 6]
    texts = [FIRST[0].text, CONTROLS[0], FIRST[1].text, CONTROLS[1], FIRST[2].text, CONTROLS[2]]
    together = view.continue_texts(texts, new_tokens=new_tokens, end_at_eos=False)
    for text, count, found in zip(texts, new_tokens, together, strict=True):
        added: list[int] = []
        while len(added) < count:
            added.append(int(logits_of(view, [text], [added], left=False, hooked=True)[-1].argmax()))
        (row,) = encode(view.tokenizer, [text])
        before, whole = (view.tokenizer.decode(ids, skip_special_tokens=True) for ids in (row.ids, [*row.ids, *added]))
        assert found == whole.removeprefix(before)


# (d) ------------------------------------------------------------------------------------------------------------------


def test_the_answer_does_not_decide(by_prompt: HookEditor[Any, Any]) -> None:
    view = by_prompt.view()
    assert isinstance(view, Routed)
    model, router = view.model, view.router
    texts = [FIRST[0].text, CONTROLS[0], FIRST[1].text]
    rows = prompts(texts, model)
    alone = Queries(model, router.queries.layer, router.queries.kind).of(rows)
    answers = [[[5, 6, 7], [8], [9, 10]], [[], [11, 12, 13, 14], [5]], [list(rows[1].ids), list(rows[0].ids), [3]]]
    for extra in answers:
        for left in (False, True):
            queries = Queries(model, router.queries.layer, router.queries.kind)
            batch = pad(
                [[*row.ids, *more] for row, more in zip(rows, extra, strict=True)], left=left, device=model.device
            )
            with queries.reading(RowPass((0, 1, 2), positions_of(batch)), rows), torch.no_grad():
                model.model(**batch.inputs(), use_cache=False)
            read = queries.remembered(rows)
            torch.testing.assert_close(read, alone, rtol=1e-4, atol=1e-5, equal_nan=True)
            found, expected = (
                [route is not None and router.facts_of(route) for route in router.routes(own)] for own in (read, alone)
            )
            assert found == expected


def test_queries_are_those_of_plain_hooks_and_are_read_once() -> None:
    model = tiny_language_model("llama")
    texts = [FACTS[0].text, FACTS[4].text]
    rows = prompts(texts, model)
    assert all(row.start == 1 and row.stop == len(row.ids) for row in rows)  # BOS is no part of the text
    found: list[Tensor] = []
    handle = model.down_projection(3).register_forward_pre_hook(lambda module, args: found.append(args[0][0]))
    with torch.no_grad():
        for row in rows:
            model.model(input_ids=torch.tensor([row.ids]))
    handle.remove()
    last, mean = Queries(model, 3, "prompt_last"), Queries(model, 3, "prompt_mean")
    torch.testing.assert_close(last.of(rows), torch.stack([values[-1] for values in found]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        mean.of(rows), torch.stack([values[1:].mean(0) for values in found]), rtol=1e-4, atol=1e-5
    )
    handle = model.blocks[0].register_forward_hook(lambda *args: pytest.fail("read again"))
    assert last.of(rows[::-1]).shape == (2, found[0].shape[1])
    handle.remove()


def test_in_a_chat_template_the_mean_is_over_the_users_message() -> None:
    model = tiny_language_model("llama")
    model.tokenizer.chat_template = "<s>[{{ messages[0].content }}] said:"
    (row,) = prompts(["<s>[The river runs] said:"], model)
    (plain,) = prompts(["The river runs"], model)
    assert model.tokenizer.decode(row.ids[row.start : row.stop]).strip() == "The river runs"
    assert model.tokenizer.decode(plain.ids[plain.start : plain.stop]).strip() == "The river runs"


def test_the_last_token_decides_nothing_in_the_first_quarter_of_the_blocks() -> None:
    model = tiny_language_model("llama", num_hidden_layers=8)
    Queries(model, 2, "prompt_last")
    Queries(model, 1, "prompt_mean")
    with raises_code("QUERY_LAYER_TOO_LOW"):
        Queries(model, 1, "prompt_last")


def test_queries_are_read_again_when_the_weights_change() -> None:
    model = tiny_language_model("gpt2")
    queries = Queries(model, 3, "prompt_last")
    rows = prompts([FACTS[0].text], model)
    before = queries.of(rows)
    width_out, width_in = model.weight(1).shape
    term = LowRankTerm(1, torch.ones(width_out, 1, dtype=torch.float64), torch.ones(1, width_in, dtype=torch.float64))
    model.edits.add([term])
    assert not torch.allclose(queries.of(rows), before)
    model.edits.remove([term])
    assert torch.equal(queries.of(rows), before)


# (e), (f), (g) --------------------------------------------------------------------------------------------------------


def everything(editor: HookEditor[Any, Any]) -> tuple[str, list[float], list[tuple[str, ...]]]:
    texts = [*(fact.text for fact in FACTS), *CONTROLS]
    view = editor.view()
    return editor.fingerprint(), view.next_token_log_probabilities(texts).flatten().tolist(), view.used(texts)


def test_a_saved_edit_is_restored_bit_for_bit(of_state: tuple[str, str], tmp_path: Path) -> None:
    editor = make(*of_state)
    for number, facts in enumerate((FIRST, SECOND)):
        editor.apply(facts).save(tmp_path / str(number))
    other = make(*of_state)
    for number in range(2):
        other.restore(StoredEdit.load(tmp_path / str(number)))
    assert everything(other) == everything(editor)


def test_a_removed_edit_was_never_there(of_state: tuple[str, str]) -> None:
    editor = make(*of_state)
    untouched = everything(editor)
    first = editor.apply(FIRST)
    only_first = everything(editor)
    second = editor.apply(SECOND)
    editor.remove(second)
    assert everything(editor) == only_first
    if editor.undo == "last":
        editor.restore(second)
        with raises_code("EDIT_NOT_LAST"):
            editor.remove(first)
        return
    editor.restore(second)
    editor.remove(first)
    other = make(*of_state)
    other.apply(SECOND)
    assert everything(editor) == everything(other)
    assert everything(editor) != untouched


def test_a_facts_own_prompt_hits_its_entry(editor: HookEditor[Any, Any]) -> None:
    view = editor.view()
    for fact, used in zip(FIRST, view.used([fact.text for fact in FIRST]), strict=True):
        assert fact.id in used
    before = editor.model.score([fact.pair(fact.target) for fact in FIRST])
    after = view.score([fact.pair(fact.target) for fact in FIRST])
    for old, new in zip(before, after, strict=True):
        assert new.log_probability > old.log_probability + 0.3


def test_a_later_fact_replaces_an_earlier_one_with_its_prompt_until_it_is_removed(of_state: tuple[str, str]) -> None:
    editor = make(*of_state)
    old, new = FACTS[0], replace(FACTS[0], id="new", target="Dutch")
    editor.apply(FIRST)
    before = everything(editor)
    (likely,) = editor.view().score([new.pair(new.target)])
    edit = editor.apply([new])
    (used,) = editor.view().used([old.text])
    assert "new" in used
    assert old.id not in used
    assert editor.view().score([new.pair(new.target)])[0].log_probability > likely.log_probability + 0.3
    editor.remove(edit)
    assert everything(editor) == before
    assert old.id in editor.view().used([old.text])[0]


def test_edits_of_other_settings_and_other_states_are_refused(of_state: tuple[str, str]) -> None:
    editor = make(*of_state)
    edit = editor.apply(FIRST)
    with raises_code("EDIT_FOR_OTHER_WEIGHTS"):
        editor.restore(edit)
    for refuse in (make(*of_state, seed=1).restore, make(*of_state, seed=1).remove):
        with raises_code("EDIT_OF_ANOTHER_EDITOR"):
            refuse(edit)
    with raises_code("EDIT_NOT_APPLIED"):
        make(*of_state).remove(edit)


def test_two_editors_in_one_process_do_not_share_anything() -> None:
    """ELDER's and MELO's published code keep routes in module globals."""
    one, two = make("grace", "gpt2"), make("grace", "gpt2")
    one.apply(FIRST)
    assert two.view().used([fact.text for fact in FIRST]) == [()] * len(FIRST)
    assert one.view().used([fact.text for fact in FIRST]) == [(fact.id,) for fact in FIRST]


def test_stems_that_rows_share_cannot_be_run_under_hooks() -> None:
    view = edited("grace", "gpt2").view()
    texts = [FIRST[0].text]
    encoded = encode(view.tokenizer, texts)
    rows, hooks = [row.ids for row in encoded], view.hooks(texts, encoded)
    with pytest.raises(ValueError, match="stems"):
        next_token_log_probabilities(view.model, rows, stems=[2], hooks=hooks)
    with pytest.raises(ValueError, match="stems"):
        continue_rows(view.model, rows, new_tokens=1, stems=[2], hooks=hooks)
