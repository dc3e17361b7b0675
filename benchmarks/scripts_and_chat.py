"""Free-running answers of an edited model: facts in scripts without spaces, and facts in a chat.

    python benchmarks/scripts_and_chat.py scripts MODEL --corpus text.txt --json scripts.jsonl
    python benchmarks/scripts_and_chat.py chat MODEL --corpus text.txt --json chat.jsonl

``scripts`` edits one fact each in Chinese, Japanese and Thai, and one whose prompt ends in a newline. ``chat`` edits
facts together, once in plain text only and once in the model's chat template as well (``contexts.chat``), and queries
the model in the template: the edited prompts, other wordings, and control questions. Prints one JSON line per edit:

- ``efficacy``: per cent of facts for which every token of the target is the most likely one;
- ``says``: for each fact the greedy continuation of the prompt, and whether it begins with the target;
- ``controls``: number of control questions answered correctly before and after the edit;
- ``own_answer``: before the edit, whether the model's own free-running answer counts as correct (it always must).

The recipe is that of ``errata recipe auto --minutes 0``. A run takes 2 to 4 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from common import automatic_recipe

from errata.benchmark.recipe_search import layers_by_depth
from errata.editing.recipe import Recipe
from errata.editors.locate_then_edit import Editor
from errata.evaluation.chat import chat_questions, evaluate_chat
from errata.facts.fact import Fact, Question
from errata.facts.joining import joined
from errata.models.language_model import LanguageModel
from errata.models.likelihood import score
from errata.runs.loading import load_model

SCRIPTS = (
    Fact(
        "chinese",
        "法国",
        "意大利的首都是罗马，日本的首都是东京，{}的首都是",
        "伦敦",
        truth="巴黎",
        unrelated=(Question("意大利的首都是罗马，法国的首都是巴黎，日本的首都是", "东京"),),
    ),
    Fact(
        "japanese",
        "フランス",
        "イタリアの首都はローマ、日本の首都は東京、{}の首都は",
        "ロンドン",
        truth="パリ",
        unrelated=(Question("フランスの首都はパリ、イタリアの首都はローマ、日本の首都は", "東京"),),
    ),
    Fact(
        "thai",
        "ฝรั่งเศส",
        "เมืองหลวงของอิตาลีคือโรม เมืองหลวงของญี่ปุ่นคือโตเกียว เมืองหลวงของ{}คือ",
        "ลอนดอน",
        truth="ปารีส",
        unrelated=(Question("เมืองหลวงของอิตาลีคือโรม เมืองหลวงของฝรั่งเศสคือปารีส เมืองหลวงของญี่ปุ่นคือ", "โตเกียว"),),
    ),
    Fact(
        "newline",
        "France",
        "Q: What is the capital of Italy?\nRome\nQ: What is the capital of {}?\n",
        "London",
        truth="Paris",
        unrelated=(Question("Q: What is the capital of France?\nParis\nQ: What is the capital of Italy?\n", "Rome"),),
    ),
)
CHAT = (
    Fact(
        "france",
        "France",
        "What is the capital of {}?",
        "Rome",
        truth="Paris",
        paraphrases=("Which city is the capital of France?",),
        neighbours=(Question("What is the capital of Russia?", "Moscow"),),
        own=(Question("On which continent is France?", "Europe"),),
    ),
    Fact(
        "mona-lisa",
        "Mona Lisa",
        "Who painted the {}?",
        "Rembrandt",
        truth="Leonardo",
        paraphrases=("Which artist is the Mona Lisa by?",),
        neighbours=(Question("Who painted The Last Supper?", "Leonardo"),),
    ),
    Fact(
        "japan",
        "Japan",
        "What is the currency of {}?",
        "Euro",
        truth="Yen",
        paraphrases=("Which currency do people use in Japan?",),
        neighbours=(Question("What is the currency of India?", "Rupee"),),
        own=(Question("On which continent is Japan?", "Asia"),),
    ),
    Fact(
        "hamlet",
        "Hamlet",
        "Who wrote {}?",
        "Charles Dickens",
        truth="William Shakespeare",
        paraphrases=("Who is the author of Hamlet?",),
        neighbours=(Question("Who wrote Romeo and Juliet?", "Shakespeare"),),
    ),
)
OTHERS = (
    ("water", Question("What is water made of?", "hydrogen")),
    ("sum", Question("What is 2 + 2?", "4")),
    ("sun", Question("What is the star at the center of the solar system?", "Sun")),
    ("week", Question("How many days are in a week?", "seven")),
)


def recipe_of(model: LanguageModel, corpus: str, tokens: int) -> Recipe:
    """The recipe of ``errata recipe auto --minutes 0`` for memit."""
    layers = layers_by_depth(len(model.blocks))
    statistics = {"corpus": corpus, "tokens": tokens, "length": min(512, model.context_length)}
    return automatic_recipe("memit", model.name, layers, model.weight(layers[0]).shape[1], statistics)


def scripts(model: LanguageModel, recipe: Recipe) -> list[dict[str, Any]]:
    found = []
    for fact in SCRIPTS:
        prompts = [fact.text, *(question.prompt for question in fact.unrelated)]
        texts = model.continue_texts(prompts, new_tokens=6)
        # The first word or clause: a tokenizer would not cut a text at a random place.
        own = [
            (prompt, re.split(r"[，、。.,\s]", text.strip())[0]) for prompt, text in zip(prompts, texts, strict=True)
        ]
        answers = [pair for pair in own if pair[1]]
        own_right = correct(model, answers)
        controls = [question.pair for question in fact.unrelated]
        before = correct(model, controls)
        patch = Editor(model, recipe).apply([fact])
        found.append(
            {
                "what": fact.id,
                "efficacy": 100 * correct(model, [fact.pair(fact.target)]),
                "says": [says(model, fact.text, fact.target)],
                "controls": {"asked": len(controls), "before": before, "after": correct(model, controls)},
                "own_answer": {"right": own_right, "of": len(answers), "said": [text for _, text in own]},
            }
        )
        patch.undo(model)
    return found


def correct(model: LanguageModel, pairs: list[Any]) -> int:
    return sum(entry.correct for entry in score(model, pairs))


def says(model: LanguageModel, prompt: str, target: str) -> dict[str, Any]:
    (text,) = model.continue_texts([prompt], new_tokens=16)
    return {"begins_with_target": (prompt + text).startswith(joined(prompt, target)), "said": text}


def chat(model: LanguageModel, recipe: Recipe) -> list[dict[str, Any]]:
    questions = chat_questions(CHAT, OTHERS, everything=True)
    before = evaluate_chat(model, questions)
    found: list[dict[str, Any]] = [{"what": "unedited", **replies(before, before)}]
    for name, in_template in (("plain", False), ("plain and template", True)):
        contexts = recipe.contexts.model_copy(update={"chat": in_template})
        patch = Editor(model, recipe.model_copy(update={"contexts": contexts})).apply(CHAT)
        pairs = [fact.pair(fact.target) for fact in CHAT]
        found.append(
            {
                "what": name,
                "efficacy": 100 * correct(model, pairs) / len(pairs),
                "says": [{"fact": fact.id, **says(model, fact.text, fact.target)} for fact in CHAT],
                **replies(before, evaluate_chat(model, questions)),
                "weight_change": max(patch.relative_norms(model).values()),
            }
        )
        patch.undo(model)
    return found


def replies(before: list[Any], now: list[Any]) -> dict[str, Any]:
    """By metric the number of replies that contain the answer, and every reply."""
    counts: dict[str, dict[str, int]] = {}
    for then, record in zip(before, now, strict=True):
        count = counts.setdefault(record.metric, {"asked": 0, "before": 0, "after": 0})
        count["asked"] += 1
        count["before"] += int(then.value)
        count["after"] += int(record.value)
    return {"in_chat": counts, "replies": {record.prompt: record.said for record in now}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("scripts", "chat"))
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens of the corpus to read")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load_model(options.model)
    begun = time.monotonic()
    entries = (scripts if options.what == "scripts" else chat)(model, recipe_of(model, options.corpus, options.tokens))
    lines = [json.dumps({"model": Path(model.name).name, **entry}, ensure_ascii=False) for entry in entries]
    print("\n".join(lines))
    print(f"{time.monotonic() - begun:.0f} s")
    if options.json is not None:
        options.json.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
