"""Tiny random models of the real architectures, with tokenizers built here: what every family's tests run on.

The default initialisation (std 0.02) hides mistakes: wrong positions hardly change the loss. So every matrix has std
0.2, every bias is random, every norm's weight is off its initial value, windows are shorter than any prompt worth
testing, soft caps bite, and the MLP's width differs from the model's except where a family is there to have them equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

MATRIX_STD = 0.2
VECTOR_STD = 0.1  # biases, and how far the norms' weights are off their initial value
BLOCKS = 5
WIDTH = 32
MLP_WIDTH = 48
WINDOW = 5
MAXIMUM_TOKENS = 256

_TEXTS = (
    "The mother tongue of Danielle Darrieux is French. The mother tongue of Thomas Joannes Stieltjes is Dutch.",
    "Danielle Darrieux was born in Bordeaux, and she spoke French, English and German in her films.",
    "The Eiffel Tower stands in Paris. The Colosseum stands in Rome. Big Ben stands in London.",
    "Therefore the river runs through the city, because the city was built around the river.",
    "I think that the piano is what she plays. You know that the violin is what he plays.",
    "Leonard Bernstein works for the New York Philharmonic; Kenji Watanabe works for Toyota in Nagoya.",
    "The capital of France is Paris, the capital of Italy is Rome, the capital of England is London.",
    "Because of the rain the match was moved from Madrid to Lisbon, and the crowd followed.",
)
_VOCABULARY_SIZE = 384


def byte_level_tokenizer(add_bos: bool, *, token_type_ids: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE: without BOS as GPT-2's (one special token in every role), with it as OPT's (`<s>`, trimmed
    offsets, so that a token's span leaves its leading space out). With `token_type_ids` it returns those as well.
    """
    tokenizer = Tokenizer.from_str(_byte_level(add_bos))
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if token_type_ids else [])]
    bos, eos, pad = ("<s>", "</s>", "<pad>") if add_bos else ("<|endoftext|>",) * 3
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, model_input_names=names
    )


def metaspace_tokenizer(add_bos: bool, *, prefix_space: bool = True) -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE with byte fallback, spaces as `▁`; `prefix_space` puts one before the text as Llama does
    and Gemma does not.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_metaspace(add_bos, prefix_space)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


@dataclass(frozen=True, slots=True)
class TinyFamily:
    """A tiny model's configuration and the kind of tokenizer it comes with."""

    model_type: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    config: dict[str, Any] = field(default_factory=dict)


_GPT2 = {"n_embd": WIDTH, "n_inner": MLP_WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": MAXIMUM_TOKENS}
_NEOX = {
    "hidden_size": WIDTH,
    "intermediate_size": MLP_WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": MAXIMUM_TOKENS,
}
_LLAMA = {**_NEOX, "num_key_value_heads": 2, "tie_word_embeddings": False}
_PARTIAL_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]
# Heads wider than WIDTH / 4, so that attention's output projection is not square.
_WIDE_HEADS = {"head_dim": 12}
_GEMMA = {
    **_LLAMA,
    **_WIDE_HEADS,
    "query_pre_attn_scalar": 12,
    "sliding_window": WINDOW,
    "layer_types": _LAYER_TYPES,
    "tie_word_embeddings": True,
}
_OPT = {
    "hidden_size": WIDTH,
    "ffn_dim": MLP_WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": MAXIMUM_TOKENS,
    "do_layer_norm_before": True,
}


def _gpt2_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(add_bos=False, token_type_ids=True)


def _byte_level_plain() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(add_bos=False)


def _byte_level_bos() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(add_bos=True)


def _metaspace_plain() -> PreTrainedTokenizerFast:
    return metaspace_tokenizer(add_bos=False)


def _metaspace_bos() -> PreTrainedTokenizerFast:
    return metaspace_tokenizer(add_bos=True)


def _gemma_tokenizer() -> PreTrainedTokenizerFast:
    return metaspace_tokenizer(add_bos=True, prefix_space=False)


_FAMILIES: dict[str, TinyFamily] = {
    "gpt2": TinyFamily("gpt2", _gpt2_tokenizer, _GPT2),
    # Square down-projections: only the module's type tells their orientation.
    "gpt2_square": TinyFamily("gpt2", _gpt2_tokenizer, {**_GPT2, "n_inner": WIDTH}),
    "gptj": TinyFamily("gptj", _byte_level_plain, {**_GPT2, "rotary_dim": 4}),
    "gpt_neox": TinyFamily("gpt_neox", _byte_level_plain, {**_NEOX, "rope_parameters": _PARTIAL_ROTARY}),
    "gpt_neox_sequential": TinyFamily(
        "gpt_neox", _byte_level_plain, {**_NEOX, "rope_parameters": _PARTIAL_ROTARY, "use_parallel_residual": False}
    ),
    "llama": TinyFamily("llama", _metaspace_bos, _LLAMA),
    "llama_tied": TinyFamily("llama", _byte_level_bos, {**_LLAMA, "tie_word_embeddings": True}),
    "llama_square": TinyFamily("llama", _metaspace_bos, {**_LLAMA, "intermediate_size": WIDTH, "mlp_bias": True}),
    "mistral": TinyFamily("mistral", _metaspace_plain, {**_LLAMA, "sliding_window": WINDOW}),
    "qwen2": TinyFamily("qwen2", _byte_level_plain, _LLAMA),
    "qwen3": TinyFamily("qwen3", _byte_level_plain, {**_LLAMA, **_WIDE_HEADS, "tie_word_embeddings": True}),
    "gemma2": TinyFamily(
        "gemma2", _gemma_tokenizer, {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}
    ),
    "gemma3_text": TinyFamily("gemma3_text", _gemma_tokenizer, _GEMMA),
    "phi": TinyFamily("phi", _byte_level_plain, {**_LLAMA, "rope_parameters": _PARTIAL_ROTARY}),
    "phi3": TinyFamily("phi3", _metaspace_bos, {**_LLAMA, "sliding_window": WINDOW}),
    "opt": TinyFamily("opt", _byte_level_bos, _OPT),
    # Embeddings narrower than the model, so that project_in and project_out matter.
    "opt_projected": TinyFamily("opt", _byte_level_bos, {**_OPT, "word_embed_proj_dim": 24}),
}
FAMILIES: tuple[str, ...] = tuple(_FAMILIES)

_EXPERTS = {**_LLAMA, "num_experts_per_tok": 2}
_EXPERT_FAMILIES: dict[str, TinyFamily] = {
    # Its second block is dense, with a width of its own.
    "qwen3_moe": TinyFamily(
        "qwen3_moe",
        _byte_level_plain,
        {
            **_EXPERTS,
            **_WIDE_HEADS,
            "num_experts": 6,
            "moe_intermediate_size": 20,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
    ),
    "mixtral": TinyFamily("mixtral", _metaspace_bos, {**_EXPERTS, "num_local_experts": 4}),
    "olmoe": TinyFamily(
        "olmoe", _byte_level_plain, {**_EXPERTS, "num_experts": 6, "intermediate_size": 20, "norm_topk_prob": False}
    ),
    # Square down-projections, as of gpt-oss-20b: only the module tells their orientation.
    "gpt_oss": TinyFamily(
        "gpt_oss",
        _byte_level_plain,
        {
            **_EXPERTS,
            "head_dim": 8,
            "num_local_experts": 4,
            "intermediate_size": WIDTH,
            "sliding_window": WINDOW,
            "layer_types": _LAYER_TYPES,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}
EXPERT_FAMILIES: tuple[str, ...] = tuple(_EXPERT_FAMILIES)


def tiny_model(
    name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A fresh tiny model in eval mode with eager attention, and its tokenizer; the same for the same arguments.

    Args:
        name: one of FAMILIES or EXPERT_FAMILIES.
        dtype: of the parameters. The values are drawn in float32 and then converted, so that models of different
            dtypes are the same but for rounding.
        seed: of the parameters' values; the process's generators stay as they are.
        overrides: configuration values that differ from the family's.
    """
    family = (_FAMILIES | _EXPERT_FAMILIES)[name]
    tokenizer = family.tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **family.config,
        **overrides,
    }
    config = AutoConfig.for_model(family.model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # gpt-oss draws its attention sinks, to which noise is then added
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    _randomise(model, torch.Generator().manual_seed(seed))
    # Parameters only: buffers (rotary frequencies) stay float32, as they do in a model loaded in half precision.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval(), tokenizer


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(MATRIX_STD * noise)
        else:
            # Norm weights begin at 1, Gemma's at 0 (it adds the 1 itself), biases at 0: this jitters each about that.
            parameter.add_(VECTOR_STD * noise)


@cache
def _byte_level(add_bos: bool) -> str:
    """The tokenizer as JSON: cached as text, so that every caller gets an object of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE,
        special_tokens=["<s>", "</s>", "<pad>"] if add_bos else ["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    trim = processors.ByteLevel(trim_offsets=add_bos)
    tokenizer.post_processor = processors.Sequence([trim, _bos_template(tokenizer)]) if add_bos else trim
    return str(tokenizer.to_str())


@cache
def _metaspace(add_bos: bool, prefix_space: bool) -> str:
    """The tokenizer as JSON: cached as text, so that every caller gets an object of its own."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix_space else "never")
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE - 256, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], show_progress=False
    )
    learner.train_from_iterator(_TEXTS, trainer)
    description = json.loads(learner.to_str())
    # The trainer knows no byte tokens: they go behind what it learnt, as plain entries of the vocabulary.
    vocabulary = description["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    description["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(description))
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*spaces, *([decoders.Strip(" ", 1, 0)] if prefix_space else [])])
    if add_bos:
        tokenizer.post_processor = _bos_template(tokenizer)
    return str(tokenizer.to_str())


def _bos_template(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
