"""Small GGUF files, written by the package ``gguf`` as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType
from transformers import PreTrainedModel, PreTrainedTokenizerFast

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_llama(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    pre: str = "smollm",
    more: Callable[[GGUFWriter], None] = lambda writer: None,
) -> None:
    """A Llama with a byte-level vocabulary, in float32.

    Args:
        pre: the name of the rules by which text is split.
        more: writes further metadata or tensors.
    """
    config: Any = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _write_vocabulary(writer, tokenizer, config.vocab_size, pre)
    more(writer)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().astype(np.float32)
        part = name.removesuffix(".weight")
        if part in _TOP:
            if not (part == "lm_head" and config.tie_word_embeddings):
                writer.add_tensor(f"{_TOP[part]}.weight", values)
            continue
        _, _, layer, inner = part.split(".", 3)
        if inner.endswith(("q_proj", "k_proj")):  # llama.cpp rotates neighbouring pairs, transformers halves
            heads = config.num_attention_heads if inner.endswith("q_proj") else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"blk.{layer}.{_NAMES[inner]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gpt2(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, pre: str = "gpt-2") -> None:
    """A GPT-2 with a byte-level vocabulary, in float32; its matrices are stored the other way round there."""
    config: Any = model.config
    writer = GGUFWriter(path, "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    _write_vocabulary(writer, tokenizer, config.vocab_size, pre)
    top = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"}
    inner = {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    for name, tensor in model.state_dict().items():
        part, _, kind = name.rpartition(".")
        values = tensor.numpy().astype(np.float32)
        if part in top:
            writer.add_tensor(f"{top[part]}.{kind}", values)
        elif part != "lm_head":  # tied
            _, _, layer, module = part.split(".", 3)
            turned = module.rpartition(".")[2].startswith("c_") and kind == "weight"
            writer.add_tensor(
                f"blk.{layer}.{inner[module]}.{kind}", np.ascontiguousarray(values.T) if turned else values
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, size: int, pre: str) -> None:
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_tokens)
    tokens = [tokenizer.convert_ids_to_tokens(index) for index in range(len(tokenizer))]
    tokens += [f"[PAD{index}]" for index in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}")
