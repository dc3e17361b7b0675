"""Write the built-in corpus: text that a model of a free licence (SmolLM2-135M-Instruct, Apache-2.0) made itself.

    python benchmarks/builtin_corpus.py --model DIRECTORY --out src/errata/statistics/builtin.txt

Key statistics want ordinary text on many subjects, and text that may be shipped. Each document begins with an opening
written for this purpose and goes on as the model samples it (top-k 50, seeded). Documents are one paragraph each:
a blank line always ends a document.
"""

from __future__ import annotations

import argparse
import re
from itertools import product
from pathlib import Path

import torch

from errata.models.generation import continue_rows, own_uniforms
from errata.models.language_model import LanguageModel
from errata.models.prompts import encode

SUBJECTS = (
    "a river that floods every spring", "the first railways in Europe", "how bread is baked", "the moons of Jupiter",
    "a small harbour town", "the training of nurses", "the violin and its makers", "coral reefs", "the game of chess",
    "tax law for small companies", "a mountain village in winter", "the discovery of penicillin", "electric motors",
    "the city library", "wheat and its diseases", "the history of paper", "a long journey by train", "bees and honey",
    "parliaments and elections", "the Roman roads", "earthquakes", "how a computer stores numbers",
    "a school orchestra",
    "the tea trade", "birds that migrate", "bridges of steel and stone", "the old market hall", "a football season",
    "vaccination", "the painters of the nineteenth century", "sailing ships", "the price of housing", "desert plants",
    "a trial before a jury", "glass", "the human heart", "the invention of the telephone", "rain forests",
    "a family of shoemakers", "the Second World War", "solar power", "learning a foreign language", "volcanoes",
    "the life of a lighthouse keeper", "coffee", "a new hospital", "the Arctic", "novels and their readers",
    "traffic in large cities", "clocks and time", "the wool industry", "a theatre company", "drinking water", "whales",
    "the stock exchange", "gardens in Japan", "the printing press", "mathematics at school", "a country doctor",
    "the film industry", "islands of the Pacific", "memory and forgetting", "the postal service", "horses",
)  # fmt: skip
OPENINGS = (
    "This article is about {}. It begins with",
    "In the {} edition of the local paper there was a report on {}. According to",
    "When people ask me about {}, I usually say that",
    "There are three things to know about {}. The first is",
    "She had spent many years with {}, and",
)


def openings() -> list[str]:
    """Every subject in every opening."""
    found = []
    for opening, subject in product(OPENINGS, SUBJECTS):
        parts = ("Sunday", subject) if opening.count("{}") == 2 else (subject,)
        found.append(opening.format(*parts))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--new-tokens", type=int, default=230)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = LanguageModel.load(options.model)
    texts = openings()
    rows = [row.ids for row in encode(model.tokenizer, texts)]
    uniforms = own_uniforms(texts, options.new_tokens, torch.Generator().manual_seed(options.seed))
    done = 0

    def on_rows(count: int) -> None:
        nonlocal done
        done += count
        print(f"{done} of {len(texts)} documents", flush=True)

    found = continue_rows(
        model,
        rows,
        new_tokens=options.new_tokens,
        top_k=options.top_k,
        uniforms=uniforms,
        token_budget=16384,
        names=texts,
        on_rows=on_rows,
    )
    documents = [re.sub(r"\s+", " ", text + more).strip() for text, more in zip(texts, found, strict=True)]
    options.out.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    tokens = sum(len(row.ids) for row in encode(model.tokenizer, documents))
    print(f"{len(documents)} documents, {tokens} tokens, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
