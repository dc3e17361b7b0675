"""What tests of editing share: facts that tiny models can be given, recipes in a line, and reading by plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.editing.contexts import Average
from errata.editing.keys import SubjectTexts
from errata.editing.methods import method_named
from errata.editing.recipe import Recipe
from errata.editors.locate_then_edit import Editor
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site

from tests.support.tiny_models import tiny_model

FACTS: tuple[Fact, ...] = (
    Fact("tongue", "Danielle Darrieux", "The mother tongue of {} is", "English"),
    Fact("tower", "The Eiffel Tower", "{} stands in", "Rome"),
    Fact("plays", "Leonard Bernstein", "You know that {} plays the", "violin"),
    Fact("capital", "Italy", "The capital of {} is", "Lisbon"),
    Fact("work", "Kenji Watanabe", "{} works for", "the New York Philharmonic"),
    Fact("bell", "Big Ben", "Because of the rain {} was moved to", "Nagoya"),
)
_NAMES = ("Danielle Darrieux", "Thomas Stieltjes", "Leonard Bernstein", "Kenji Watanabe", "Big Ben", "The crowd")
_DEEDS = ("plays the piano in", "was born in", "works for the city of", "speaks of the rain in", "runs through")
_PLACES = ("Paris", "Rome", "London", "Madrid", "Lisbon", "Nagoya", "Bordeaux")


def corpus_texts() -> list[str]:
    """210 short documents in the tiny tokenizers' vocabulary, each another one."""
    return [f"{name} {deed} {place}." for name in _NAMES for deed in _DEEDS for place in _PLACES]


def write_corpus(path: Path, texts: Iterable[str] | None = None) -> Path:
    """The documents as a recipe's corpus: a text file with blank lines between them."""
    path.write_text("\n\n".join(corpus_texts() if texts is None else texts) + "\n", encoding="utf-8")
    return path


def tiny_language_model(
    family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> LanguageModel:
    model, tokenizer = tiny_model(family, dtype=dtype, seed=seed, **overrides)
    if dtype is torch.float64 and family != "gemma2":
        # Eager attention takes its softmax in float32, where float64's masks are infinite: padding would be NaN.
        model.set_attn_implementation("sdpa")
    return LanguageModel(model, tokenizer, name=family)


def tiny_recipe(
    corpus: Path,
    method: str = "memit",
    *,
    layers: Sequence[int] = (1, 2, 3),
    schedule: str | None = None,
    **changes: Any,
) -> Recipe:
    """A recipe for tiny models; a mapping in ``changes`` is laid over the section of that name."""
    sections: dict[str, Any] = {
        "model": "tiny",
        "method": method,
        "layers": tuple(layers),
        "target": {"kind": "memit", "learning_rate": 0.3, "steps": 4},
        "contexts": {"openers": ("The", "I"), "tokens": 5},
        "statistics": {"corpus": str(corpus), "tokens": 600, "length": 64},
        "batch_size": 2,
    }
    row = method_named(method)
    sections |= {name: _laid_over(sections.get(name), value) for name, value in row.choices().items()}
    sections["schedule"] = schedule or row.schedule
    sections["contexts"] |= {"per_opener": 1, "tokens": [5]}
    if sections["schedule"] == "single":
        sections["layers"] = tuple(layers)[-1:]
    sections["solver"] |= {
        "least_squares": {"ridge": 2.0},
        "null_space": {"threshold": 0.5, "l2": 0.1},
        "equality": {"ridge": 0.3},
        "rank_one": {},
        "neurons": {"ridge": 2.0, "share": 0.7},
    }[row.solver["kind"]]
    if row.rounds:
        sections["rounds"] = {**row.rounds, "least": 0.01, "most": 1e6}
    for name, value in changes.items():
        sections[name] = {**sections[name], **value} if isinstance(value, dict) else value
    return Recipe.model_validate(sections)


def editor_maker(folder: Path) -> Callable[..., Editor]:
    """Makes editors with ``tiny_recipe``, which share a corpus file and a cache of key statistics in ``folder``."""
    corpus = write_corpus(folder / "corpus.txt")

    def make(model: LanguageModel, method: str = "memit", **changes: Any) -> Editor:
        return Editor(model, tiny_recipe(corpus, method, **changes), cache=folder / "cache")

    return make


def _laid_over(base: Any, over: Any) -> Any:
    return {**base, **over} if isinstance(base, dict) and isinstance(over, dict) else over


def parameter_bits(model: LanguageModel) -> dict[str, Tensor]:
    """Every parameter as bytes: equal only if bit for bit the same, NaNs and signs of zeros included."""
    return {
        name: parameter.detach().contiguous().view(torch.uint8).clone()
        for name, parameter in model.model.named_parameters()
    }


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert found.keys() == expected.keys()
    assert not different


def read_whole(model: LanguageModel, ids: Sequence[int]) -> dict[tuple[Site, int], Tensor]:
    """Keys, W's outputs and block outputs of every layer, each (tokens, d), from one unpadded full forward pass."""
    found: dict[tuple[Site, int], Tensor] = {}

    def flat(value: Any) -> Tensor:
        tensor = value[0] if isinstance(value, tuple) else value
        return tensor.detach().reshape(-1, tensor.shape[-1]).clone()

    @contextmanager
    def hooked() -> Iterator[None]:
        handles = []
        for layer in range(len(model.blocks)):

            def on_projection(_: Any, args: Any, output: Any, layer: int = layer) -> None:
                found[Site.KEY, layer], found[Site.MLP, layer] = flat(args), flat(output)

            def on_block(_: Any, args: Any, output: Any, layer: int = layer) -> None:
                found[Site.BLOCK, layer] = flat(output)

            handles.append(model.down_projection(layer).register_forward_hook(on_projection))
            handles.append(model.blocks[layer].register_forward_hook(on_block))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    with hooked(), torch.no_grad():
        model.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return found


def subject_ids(model: LanguageModel, fact: Fact, prefix: str = "") -> list[int]:
    """Tokens of the prompt behind a prefix, up to and including the subject's last token: found by decoding."""
    lead = f"{prefix}. " if prefix else ""
    text, end = lead + fact.text, len(lead) + fact.subject_span[1]
    encoding = model.tokenizer(text, return_offsets_mapping=True)
    last = max(i for i, (start, stop) in enumerate(encoding["offset_mapping"]) if start < end and stop > start)
    return list(encoding["input_ids"][: last + 1])


def mean_keys(
    model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, average: Average = "halves"
) -> Tensor:
    """The averaged keys of one layer on the current weights, (d_in, facts)."""
    return SubjectTexts.tokenise(model, facts, prefixes).read(Site.KEY, [layer], average)[layer][0]


def current_states(model: LanguageModel, facts: Sequence[Fact], layer: int, site: Site) -> Tensor:
    """h of the bare prompts at the site on the current weights, (d_out, facts)."""
    return SubjectTexts.tokenise(model, facts).read(site, [layer])[layer][0]
