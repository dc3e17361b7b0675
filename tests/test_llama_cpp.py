"""The exports in llama.cpp itself, through llama-cpp-python: what it computes must be what errata computes.

With weights and key-value cache in float32, llama.cpp and torch differ only by the order of sums. SmolLM2's own file is
in four bits, for which llama.cpp also rounds the activations to eight bits, so its logits are its own: docs/serving.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from errata.models.language_model import LanguageModel
from errata.models.small_models import SMALL_MODELS
from errata.models.weights import LowRankTerm
from errata.patches.gguf_export import GgufFile, merged_tensors, write_gguf_adapter, write_gguf_model
from errata.patches.lora_export import Adapter

from tests.support.gguf_files import write_gpt2, write_llama
from tests.support.tiny_models import byte_level_tokenizer, tiny_model
from tests.test_lora import patch_of, random_matrix

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which compiles llama.cpp")
pytestmark = pytest.mark.llama

F32 = {"type_k": 0, "type_v": 0}  # of the key-value cache, which is float16 by default
ROW = [5, 9, 17, 30, 44, 2, 8, 61, 3]


def logits_in_llama_cpp(row: Sequence[int], **options: Any) -> torch.Tensor:
    """(tokens, vocabulary), float32."""
    client = llama_cpp.Llama(n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, **options)
    try:
        client.eval(list(row))
        return torch.from_numpy(np.array(client.scores[: len(row)], dtype=np.float32))
    finally:
        client.close()


def logits_here(model: PreTrainedModel, row: Sequence[int] = ROW) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([row])).logits[0].float()
    return found


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
@pytest.mark.parametrize("module", ["down_proj", "q_proj"])
def test_llama_cpp_computes_the_edited_model(family: str, module: Any, tmp_path: Path) -> None:
    if (family, module) == ("gpt2", "q_proj"):
        pytest.skip("GPT-2 has one matrix for queries, keys and values, which errata does not edit")
    tokenizer = byte_level_tokenizer(add_bos=False)
    model = LanguageModel(tiny_model(family, vocab_size=len(tokenizer))[0], tokenizer)
    config, base = model.model.config, tmp_path / "base.gguf"
    (write_gpt2 if family == "gpt2" else write_llama)(base, model.model, tokenizer)
    close = 2e-3 if family == "gpt2" else 5e-4  # llama.cpp looks GELU up in a table of float16
    before = logits_here(model.model)
    torch.testing.assert_close(logits_in_llama_cpp(ROW, **F32, model_path=str(base)), before, rtol=0, atol=close)

    terms = []
    for layer, rank in ((1, 3), (3, 1)):
        d_out, d_in = model.weight(layer, module).shape
        left, right = random_matrix(d_out, rank, seed=layer), random_matrix(rank, d_in, seed=layer + 9)
        terms.append(LowRankTerm(layer, 0.2 * left.float(), 0.2 * right.float(), module=module))
    adapter = Adapter.of([patch_of(model, terms)])
    model.edits.add(terms)
    wanted = logits_here(model.model)
    assert float((wanted - before).abs().max()) > 0.3
    for name, dtype, atol in (("f32", torch.float32, close), ("f16", torch.float16, 2e-2)):
        path = tmp_path / f"{name}.gguf"
        write_gguf_adapter(adapter.rounded(dtype), path, config, dtype=dtype, about={})
        served = logits_in_llama_cpp(ROW, **F32, model_path=str(base), lora_path=str(path), lora_scale=1.0)
        torch.testing.assert_close(served, wanted, rtol=0, atol=atol)
    unscaled = logits_in_llama_cpp(
        ROW, **F32, model_path=str(base), lora_path=str(tmp_path / "f32.gguf"), lora_scale=0.0
    )
    torch.testing.assert_close(unscaled, before, rtol=0, atol=close)
    for stored_as, atol in (("f32", close), ("f16", 2e-2)):
        new = merged_tensors(terms, GgufFile.read(base), config, stored_as=stored_as)
        path = tmp_path / f"merged-{stored_as}.gguf"
        write_gguf_model(base, {tensor.name: (tensor.stored, tensor.after) for tensor in new}, path)
        torch.testing.assert_close(logits_in_llama_cpp(ROW, **F32, model_path=str(path)), wanted, rtol=0, atol=atol)


@pytest.mark.real
@pytest.mark.slow
def test_an_edit_of_smollm2_s_own_file_is_served_from_it(smollm2: Path, tmp_path: Path) -> None:
    """A change that one fact's key and an output embedding make, without a search."""
    file = SMALL_MODELS["smollm2-135m-instruct"].gguf
    if not file.is_file():
        pytest.skip("the GGUF file of SmolLM2 is not in the cache")
    model = LanguageModel.load(file)
    prompt, controls = "The capital of Australia is the city of", ["The capital of France is", "Two and two is"]
    rows = {text: model.tokenizer(text)["input_ids"] for text in (prompt, *controls)}
    (target,) = model.tokenizer(" Canberra", add_special_tokens=False)["input_ids"][:1]
    layer = len(model.blocks) - 1
    keys: list[torch.Tensor] = []
    with torch.no_grad():
        handle = model.down_projection(layer).register_forward_hook(lambda _, inputs, __: keys.append(inputs[0][0]))
        logits_here(model.model, rows[prompt])
        for text in controls:
            logits_here(model.model, rows[text])
        handle.remove()
        # Away from the keys of the control questions, so that these change little.
        others = torch.linalg.qr(torch.cat(keys[1:]).T).Q
        key = keys[0][-1] - others @ (others.T @ keys[0][-1])
        direction = model.head.weight[target] / model.head.weight[target].norm()
    terms = [LowRankTerm(layer, 300.0 * direction[:, None], (key / key.dot(keys[0][-1]))[None])]
    before = {text: logits_here(model.model, row) for text, row in rows.items()}
    adapter = Adapter.of([patch_of(model, terms)])
    write_gguf_adapter(adapter, tmp_path / "a.gguf", model.model.config, dtype=torch.float32, about={})
    model.edits.add(terms)
    assert int(logits_here(model.model, rows[prompt])[-1].argmax()) == target
    for text, row in rows.items():
        unedited = logits_in_llama_cpp(row, model_path=str(file))[-1]
        served = logits_in_llama_cpp(row, model_path=str(file), lora_path=str(tmp_path / "a.gguf"), lora_scale=1.0)[-1]
        expected = int(logits_here(model.model, row)[-1].argmax())
        assert int(served.argmax()) == expected
        assert (int(unedited.argmax()) == expected) == (text != prompt)
        # As close to ours with the edit as without it.
        assert float((served - logits_here(model.model, row)[-1]).abs().mean()) < 0.5
        assert float((unedited - before[text][-1]).abs().mean()) < 0.5
