"""The lab's tokenizer: byte-level BPE learnt from the lab's own corpus, one special token, BOS before every text."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKEN = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int = 4096) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE: any text can be encoded, nothing is ever unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[SPECIAL_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{SPECIAL_TOKEN} $A",
                pair=f"{SPECIAL_TOKEN} $A {SPECIAL_TOKEN} $B",
                special_tokens=[(SPECIAL_TOKEN, tokenizer.token_to_id(SPECIAL_TOKEN))],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKEN,
        eos_token=SPECIAL_TOKEN,
        pad_token=SPECIAL_TOKEN,
        model_input_names=["input_ids", "attention_mask"],
    )
