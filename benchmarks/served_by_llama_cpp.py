"""An edit of a GGUF model, served by llama.cpp: does it answer as errata does, and how close are the logits?

    python benchmarks/served_by_llama_cpp.py PATCH

PATCH was made on a GGUF model (a file, or a small model of errata). Needs llama-cpp-python. The model is loaded by
llama.cpp from its own file, unedited, with the adapter, and merged; and once with all tensors in float32, which tells
llama.cpp's rounding of activations and of the key-value cache from an error of ours.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errata.models.language_model import LanguageModel
from errata.models.loading import gguf_of
from errata.patches.gguf_export import GgufFile, merged_tensors, write_gguf_adapter, write_gguf_model
from errata.patches.lora_export import Adapter
from errata.patches.patch import Patch

CONTROLS = (
    "The capital of France is the city of",
    "The capital of Japan is the city of",
    "The capital of Italy is the city of",
    "The capital of Spain is the city of",
    "The official currency of Japan is the",
    "The official currency of India is the",
    "The official language of Brazil is",
    "The largest planet of the solar system is",
    "Water consists of hydrogen and",
    "The author of Hamlet is William",
    "The opposite of hot is",
    "Two plus two equals",
    "The first president of the United States was George",
    "The Eiffel Tower is located in the city of",
    "The sun rises in the",
    "A week has seven",
    "Bees make",
    "The Great Wall is located in",
    "The chemical symbol of gold is",
    "Albert Einstein was a famous",
)


def in_llama_cpp(rows: Sequence[Sequence[int]], **options: Any) -> list[torch.Tensor]:
    """Logits after the last token of each row, (vocabulary) float32."""
    from llama_cpp import Llama

    client = Llama(n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, **options)
    found = []
    for row in rows:
        client.reset()
        client.eval(list(row))
        found.append(torch.from_numpy(np.array(client.scores[len(row) - 1], dtype=np.float32)))
    client.close()
    return found


def in_errata(model: LanguageModel, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """As ``in_llama_cpp``, by torch in float32 on the dequantised weights."""
    with torch.no_grad():
        return [model.model(input_ids=torch.tensor([row])).logits[0, -1].float() for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patch", type=Path)
    patch = Patch.load(parser.parse_args().patch)
    file = gguf_of(patch.base)
    if file is None:
        parser.error(f"the patch was made on {patch.base!r}, which is not a GGUF file")
    from gguf import GGUFReader
    from gguf.quants import dequantize

    model = LanguageModel.load(patch.base, dtype=torch.float32)
    texts = [*(fact.text for fact in patch.facts), *CONTROLS]
    rows = [list(model.tokenizer(text)["input_ids"]) for text in texts]
    targets = [
        model.tokenizer(f"{fact.text} {fact.target}")["input_ids"][len(row)]
        for fact, row in zip(patch.facts, rows, strict=False)
    ]
    before = in_errata(model, rows)
    patch.apply(model)
    after = in_errata(model, rows)
    patch.undo(model)
    adapter, base, config = Adapter.of([patch]), GgufFile.read(file), model.model.config
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, dtype in (("f32", torch.float32), ("f16", torch.float16)):
            write_gguf_adapter(adapter.rounded(dtype), folder / f"{kind}.gguf", config, dtype=dtype, about={})
        for stored_as in ("f16", "base"):
            new = merged_tensors(patch.terms, base, config, stored_as=stored_as)
            write_gguf_model(
                file, {each.name: (each.stored, each.after) for each in new}, folder / f"{stored_as}-m.gguf"
            )
        whole = {each.name: (dequantize(each.data, each.tensor_type), "f32") for each in GGUFReader(file).tensors}
        write_gguf_model(file, whole, folder / "whole.gguf")
        exact: dict[str, Any] = {"model_path": str(folder / "whole.gguf"), "type_k": 0, "type_v": 0}
        own, beside = {"model_path": str(file)}, {"lora_path": str(folder / "f32.gguf"), "lora_scale": 1.0}
        variants: dict[str, tuple[dict[str, Any], list[torch.Tensor]]] = {
            "base": (own, before),
            "base + adapter f32": ({**own, **beside}, after),
            "base + adapter f16": ({**own, **beside, "lora_path": str(folder / "f16.gguf")}, after),
            "merged, edited tensors f16": ({"model_path": str(folder / "f16-m.gguf")}, after),
            "merged, edited tensors as the base": ({"model_path": str(folder / "base-m.gguf")}, after),
            "base, all float32": (exact, before),
            "base + adapter f32, all float32": ({**exact, **beside}, after),
        }
        count, first = len(patch.facts), None
        print(
            "| served by llama.cpp | facts | controls as unedited | argmax as errata | mean abs Δlogit | max | scale |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|")
        for title, (options, ours) in variants.items():
            found = in_llama_cpp(rows, **options)
            first = first or [int(each.argmax()) for each in found]
            said = [int(each.argmax()) for each in found]
            facts = sum(a == b for a, b in zip(said, targets, strict=False))
            kept = sum(a == b for a, b in zip(said[count:], first[count:], strict=True))
            same = sum(a == int(b.argmax()) for a, b in zip(said, ours, strict=True))
            gaps = torch.stack([(a - b).abs() for a, b in zip(found, ours, strict=True)])
            spread = float(torch.stack(ours).std(dim=1).mean())
            print(
                f"| {title} | {facts} of {count} | {kept} of {len(CONTROLS)} | {same} of {len(rows)} | "
                f"{float(gaps.mean()):.2g} | {float(gaps.max()):.2g} | {spread:.2f} |"
            )


if __name__ == "__main__":
    main()
