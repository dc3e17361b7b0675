"""A GPT-2 of three tokens whose next-token logits are a table: what it says can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from errata.models.language_model import LanguageModel


def three_token_model(
    words: Sequence[str], table: Sequence[Sequence[float]], *, dtype: torch.dtype = torch.float64
) -> LanguageModel:
    """The logits behind a token are its row of the table, whatever stands before it.

    Args:
        words: the three tokens; any other word of a text, and each punctuation mark, is the third.
        table: (3, 3) logits of the next token, behind each token.
    """
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[2])
    config = GPT2Config(
        vocab_size=3, n_embd=4, n_layer=1, n_head=1, n_positions=512, eos_token_id=None, bos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # the block adds nothing then
        model.transformer.wte.weight[:, :3] = torch.eye(3, dtype=dtype)
        model.transformer.ln_f.weight.fill_(1)
        hidden = model.transformer.ln_f(model.transformer.wte.weight)  # (3, 4), linearly independent
        model.lm_head.weight.copy_((torch.linalg.pinv(hidden) @ torch.tensor(table, dtype=dtype)).T)
    return LanguageModel(model, fast)
