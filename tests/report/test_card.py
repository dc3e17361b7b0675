"""The model card: what it says, and that nobody's words can make it say or be anything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from errata.cli.main import app
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.weights import LowRankTerm
from errata.patches.patch import EditorRecipe, Patch
from errata.patches.stack import Stack, Stacked
from errata.report import card
from errata.report.card import FACTS_SHOWN, Measured, model_card
from errata.report.markdown import SHOWN, Markdown, fenced, text
from errata.results.metrics import Metric
from errata.results.records import Row, When

from tests.support.editing import tiny_recipe
from tests.support.errors import raises_code

HOSTILE = (
    "a | b",
    "`code` and ``` fence",
    "<script>alert(1)</script>",
    "<!-- comment",
    "one\ntwo\r\nthree",
    "\n---\nlicense: mit\n---\n",
    "[link](javascript:alert(1)) ![picture](http://x/y.png)",
    "**bold** _under_ ~~gone~~ # head",
    "$$x$$ \\(y\\) \\| \\",
    "https://example.com www.example.com a@b.cd @someone :smile:",
    "&amp; &#124; &lt;",
    "{{ name }} {% raw %}",
    "tab\there \u202eturned\u2028line\x0bfeed",
    "| --- | --- |",
)
WHEN = "2026-01-02T03:04:05+00:00"


def test_a_fact_that_is_edited_again_with_the_same_target_is_not_replaced() -> None:
    fact, other = (Fact(name, "A", f"{{}} {name}", "B") for name in ("one", "two"))
    card = made(stack_of(patch_of([fact, other]), patch_of([replace(other, target="C"), replace(fact, id="again")])))
    assert card.count("(replaced by b)") == 1
    assert "2 that a later patch edited again are only in the patches" in card


def test_the_recipe_of_an_editor_is_in_the_card() -> None:
    recipe = EditorRecipe(method="ft", batch_size=7, settings={"learning_rate": 0.25})
    card = made(stack_of(replace(patch_of([one_fact()]), recipe=recipe)))
    assert "learning_rate: 0.25" in card
    assert '"ft"' in card.split("---")[1]  # one of the tags


def patch_of(
    facts: Sequence[Fact], *, base: str = "owner/base", corpus: str = "corpus.txt", method: str = "memit"
) -> Patch:
    return Patch(
        terms=(LowRankTerm(1, torch.ones(4, 1), torch.ones(1, 6)),),
        facts=tuple(facts),
        recipe=tiny_recipe(Path(corpus)),
        prefixes=("{}",),
        base=base,
        fingerprint="f" * 64,
        dtype="float32",
        created=WHEN,
        versions={"errata": "0.1.0", "torch": "2.13.0"},
    )


def stack_of(*patches: Patch, base: str = "owner/base", names: str = "abcdef") -> Stack:
    stacked = tuple(Stacked(name, patch, WHEN) for name, patch in zip(names, patches, strict=False))
    return Stack(base, "f" * 64, "float32", stacked)


def made(stack: Stack, measured: Measured | None = None, *, name: str = "model", with_weights: bool = False) -> str:
    return model_card(stack, measured or Measured(), name=name, with_weights=with_weights)


def row(metric: str, when: When, mean: float, method: str = "memit") -> Row:
    return Row(method=method, metric=metric, when=when, mean=mean, low=mean - 0.01, high=mean + 0.01, n=7)


def one_fact(**fields: str) -> Fact:
    return Fact(**{"id": "one", "subject": "Italy", "prompt": "The capital of {} is", "target": "Lisbon", **fields})


def front_and_body(markdown: str) -> tuple[dict[str, object], str]:
    """As front matter is read everywhere: from the first line on to the next line of three dashes."""
    lines = markdown.splitlines()
    assert lines[0] == "---"
    end = lines.index("---", 1)
    return yaml.safe_load("\n".join(lines[1:end])), "\n".join(lines[end + 1 :])


def tokens_of(body: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(body)


def tables_of(tokens: Sequence[Token]) -> list[list[list[str]]]:
    """Every table as rows of cells: what a reader sees, of which nothing may be anything but plain text."""
    tables: list[list[list[str]]] = []
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tokens[index - 1].type in ("td_open", "th_open"):
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}, token.content
            tables[-1][-1].append("".join(child.content for child in children))
    return tables


def seen(value: str) -> str:
    """What a reader should see of a value."""
    shown = value.replace("\r\n", "↵").replace("\n", "↵")
    return re.sub("[\x0b\t\u202e\u2028]", lambda sign: f"\\u{ord(sign.group()):04x}", shown)


@pytest.mark.parametrize("with_weights", [False, True])
def test_the_front_matter_is_what_the_hub_reads(with_weights: bool) -> None:
    about, _ = front_and_body(made(stack_of(patch_of([one_fact()])), with_weights=with_weights))
    assert about["base_model"] == "owner/base"
    assert about["base_model_relation"] == ("finetune" if with_weights else "adapter")
    assert about["library_name"] == ("transformers" if with_weights else "errata")
    assert about["tags"] == ["errata", "model-editing", "knowledge-editing", "memit"]


@pytest.mark.parametrize("base", ["lab", "/home/someone/secret/model", "./model", "a b", "x\n---\ny"])
def test_a_base_that_is_not_on_the_hub_is_not_claimed_to_be_there_and_no_path_is_reported(base: str) -> None:
    stack = stack_of(patch_of([one_fact()], base=base, corpus="/home/someone/secret/corpus.txt"), base=base)
    whole = made(stack)
    about, _ = front_and_body(whole)
    assert not {"base_model", "base_model_relation"} & about.keys()
    assert "secret" not in whole
    assert "https://huggingface.co" not in whole


def test_hostile_facts_are_shown_and_do_nothing() -> None:
    facts = [
        one_fact(id=f"{number} {words}", subject=f"S{words}S", target=f"T{words}T", truth=f"W{words}W")
        for number, words in enumerate(HOSTILE)
    ]
    whole = made(stack_of(patch_of(facts)), name=HOSTILE[4])
    about, body = front_and_body(whole)
    assert about.keys() == {"base_model", "base_model_relation", "library_name", "tags"}
    assert whole.splitlines().count("---") == 2
    tokens = tokens_of(body)
    ledger = tables_of(tokens)[0]
    assert len(ledger) == 1 + len(HOSTILE)
    for cells, fact in zip(ledger[1:], facts, strict=True):
        assert cells == [
            *(seen(value) for value in (fact.id, fact.text, fact.truth or "", fact.target)),
            "a",
            "2026-01-02 03:04 UTC",
        ]
    assert html_of(tokens) == ["<details>", "<summary>Recipe of a</summary>", "</details>"]


def html_of(tokens: Sequence[Token]) -> list[str]:
    children = [child for token in tokens for child in (token.children or [])]
    assert not [child for child in children if child.type == "html_inline"]
    blocks = [token.content for token in tokens if token.type == "html_block"]
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("words", HOSTILE)
def test_names_of_patches_models_methods_and_metrics_do_nothing_either(words: str) -> None:
    patch = patch_of([one_fact()])
    recipe = patch.recipe.model_copy(update={"source": f"```\n{words}\n```", "method": words})
    patch = replace(patch, recipe=recipe, versions={words: words}, created=words)
    stack = stack_of()
    stack = replace(stack, patches=(Stacked(words, patch, words, forced=True, missing=(words,)),))
    rows = (row(words, "before", 0.1, words), row(Metric.EFFICACY_ACCURACY, "after", 0.5, words))
    measured = Measured(rows, words, words, {words: words}, (words,))
    about, body = front_and_body(made(stack, measured, name=words))
    assert about["tags"][3] == words  # type: ignore[index]
    tokens = tokens_of(body)
    assert [token.content for token in tokens if token.type == "fence" and token.info == "yaml"] == [
        recipe.with_corpus("corpus.txt").to_yaml()
    ]
    assert html_of(tokens) == ["<details>", f"<summary>Recipe of {text(words)}</summary>", "</details>"]
    heads = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"]
    assert heads[1:] == [
        "Edited facts", "Side effects", "Method", "Usage", "Serving", "Undo", "Base", "Limits",
    ]  # fmt: skip
    assert [len(table) for table in tables_of(tokens)] == [2, 3, 2]
    spoken = [child.type for token in tokens for child in (token.children or [])]
    assert "image" not in spoken
    links = [c.attrs["href"] for t in tokens for c in (t.children or []) if c.type == "link_open"]
    assert set(links) == {"facts.jsonl", "https://huggingface.co/owner/base"}


@given(st.text(max_size=60))
def test_any_text_stays_one_cell_of_plain_text(value: str) -> None:
    table = tables_of(tokens_of(f"| head | second |\n| --- | --- |\n| {text(value)} | end |"))
    assert len(table) == 1
    assert [len(cells) for cells in table[0]] == [2, 2]
    assert table[0][1][1] == "end"
    if value.isprintable():
        assert "".join(table[0][1][0].split()) == "".join(value.split())


@given(st.text(max_size=60))
def test_any_text_stays_within_its_fence(value: str) -> None:
    tokens = tokens_of(f"{fenced(value, 'bash')}\n\nend")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]


def test_long_values_and_long_ledgers_are_cut_and_say_so() -> None:
    long = one_fact(target="x" * 5000)
    assert "x" * (SHOWN - 1) + "…" in made(stack_of(patch_of([long])))
    many = [one_fact(id=f"fact-{number}", subject=f"Italy {number}") for number in range(1000)]
    whole = made(stack_of(patch_of(many)))
    ledger = tables_of(tokens_of(front_and_body(whole)[1]))[0]
    assert len(ledger) == 1 + FACTS_SHOWN
    assert f"The first {FACTS_SHOWN} of 1000 facts." in whole
    assert "[facts.jsonl](facts.jsonl)" in whole
    assert len(whole) < 20_000


def test_a_replaced_fact_names_the_patch_that_replaced_it() -> None:
    stack = stack_of(patch_of([one_fact()]), patch_of([one_fact(target="Rome", truth="Lisbon")]))
    cells = tables_of(tokens_of(front_and_body(made(stack))[1]))[0]
    assert [line[2:5] for line in cells[1:]] == [
        ["unknown", "Lisbon (replaced by b)", "a"],
        ["Lisbon", "Rome", "b"],
    ]
    assert "1 that a later patch edited again is only in the patches" in made(stack)


def test_without_measurements_the_card_says_so_plainly() -> None:
    whole = made(stack_of(patch_of([one_fact()])))
    assert "**Nothing was measured.**" in whole
    assert "efficacy" not in whole


def test_measurements_are_in_a_table_with_what_could_not_be_measured() -> None:
    rows = tuple(
        row(metric, when, mean)
        for metric in (Metric.EFFICACY_ACCURACY, Metric.UNTOUCHED_ACCURACY)
        for when, mean in (("before", 0.25), ("after", 0.75))
    )
    absent = {"generalisation_accuracy": "no fact has 'paraphrases'"}
    measured = Measured(rows, "errata edit", "the base owner/base", absent, ("one",))
    whole = made(stack_of(patch_of([one_fact()])), measured)
    table = tables_of(tokens_of(front_and_body(whole)[1]))[1]
    assert table[1] == ["efficacy accuracy", "25.0 [24,26]", "75.0 [74,76]", "7"]
    assert "Nothing was measured" not in whole
    assert "*Before* is the base owner/base." in whole
    assert "- *generalisation accuracy*: no fact has 'paraphrases'" in whole
    assert "**Not edited: 1 fact** (one)" in whole
    after = replace(measured, rows=tuple(one for one in rows if one["when"] == "after"), before="")
    assert "these numbers do not show what changed" in made(stack_of(patch_of([one_fact()])), after)
    with raises_code("RESULTS_SEVERAL_METHODS", InputError):
        made(stack_of(patch_of([one_fact()])), replace(measured, rows=(*rows, row("score", "after", 1, "other"))))


@pytest.mark.parametrize("with_weights", [False, True])
def test_the_commands_of_the_card_exist(with_weights: bool) -> None:
    known = {command.name for command in app.registered_commands}
    named = re.findall(
        r"^errata (\w+)|`errata (\w+)", made(stack_of(patch_of([one_fact()])), with_weights=with_weights), re.M
    )
    used = {verb for pair in named for verb in pair if verb}
    assert {"ask", "revert", "rebuild", "evaluate"} <= used <= known


def test_no_value_gets_into_a_card_but_through_a_filter() -> None:
    environment = card._template().environment
    with pytest.raises(TypeError, match="without a filter"):
        environment.from_string("{{ value }}").render(value="<b>")
    assert environment.from_string("{{ value | text }}").render(value="<b>") == "&#60;b&#62;"
    assert environment.from_string("{{ value }}").render(value=Markdown("<b>")) == "<b>"


@pytest.mark.parametrize(
    ("base", "licence", "model"),
    [
        ("lab", "Apache-2.0", ""),
        ("gemma-3-270m", "Gemma Terms of Use", ""),
        ("owner/name", "not known to errata; see its page on the hub", ""),
        ("/somewhere/here", "not known to errata; see its files", " --model BASE"),
    ],
)
def test_the_card_says_how_to_serve_and_names_the_licence_of_the_base(base: str, licence: str, model: str) -> None:
    stack = replace(stack_of(patch_of([one_fact()])), base=base)
    patches, full = made(stack), made(stack, with_weights=True)
    for body in (patches, full):
        assert f"licence of the base: {text(licence)}" in body
        assert f"errata export DIRECTORY{model} --gguf adapter.gguf" in body
        assert f"errata export DIRECTORY{model} --lora adapter --for vllm" in body
    assert "vllm serve DIRECTORY" in full
    assert "vllm serve DIRECTORY" not in patches
