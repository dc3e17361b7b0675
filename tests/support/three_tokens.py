"""A GPT-2 of three tokens whose next token depends on the last one only, by logits that a test writes down."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from errata.models.language_model import LanguageModel

_WIDTH = 4


def three_token_model(tokens: Sequence[str], logits: Sequence[Sequence[float]]) -> LanguageModel:
    """Behind a text that ends in ``tokens[i]``, token ``j`` has the logit ``logits[i][j]``. Float64; no special tokens.

    Args:
        tokens: three texts, the spaces before them included; a prompt is a string of them.
    """
    learner = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}))
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    learner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learner)
    config = GPT2Config(
        vocab_size=3,
        n_embd=_WIDTH,
        n_inner=6,
        n_layer=1,
        n_head=1,
        n_positions=64,
        layer_norm_epsilon=1e-13,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # attention and MLP add nothing
        # The final norm takes a unit vector to (e_i - 1/4) · 4/√3, and its own parameters take that back to e_i.
        model.transformer.wte.weight[:, :3] = torch.eye(3)
        model.transformer.ln_f.weight.fill_(math.sqrt(3) / 4)
        model.transformer.ln_f.bias.fill_(1 / 4)
    found = LanguageModel(model, tokenizer)
    set_logits(found, logits)
    return found


def set_logits(model: LanguageModel, logits: Sequence[Sequence[float]]) -> None:
    with torch.no_grad():
        model.model.lm_head.weight[:, :3] = torch.tensor(logits, dtype=torch.float64).T
