"""Training the lab's model from scratch: reproducible from its settings, resumable from checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from errata.lab.corpus import epoch_documents, mixed_documents
from errata.lab.package import lab_world
from errata.lab.world import World
from errata.utils.files import new_file

SPECIAL_TOKEN = "<|endoftext|>"
_NO_LOSS = -100  # as ``cross_entropy`` has it
_ATTENTION = "eager"  # flash attention's backward is the slowest part of a step on a CPU


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int = 4096) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which can encode any text, with one special token: BOS before every text."""
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


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Everything that determines the trained model (on one machine, with one number of threads).

    Attributes:
        context_share: of the documents, those of the form "fact. question answer" (``corpus.context_documents``).
        start: the digest of the weights that training starts from; None for random ones.
    """

    people: int = 1000
    seed: int = 0
    epochs: int = 200
    blocks: int = 8
    width: int = 256
    mlp_width: int = 1024
    heads: int = 4
    vocabulary_size: int = 4096
    context: int = 256
    batch: int = 16
    learning_rate: float = 1.5e-3
    warmup: float = 0.02
    weight_decay: float = 0.05
    bfloat16: bool = True
    compile: bool = False
    context_share: float = 0.0
    start: str | None = None


@dataclass(frozen=True, slots=True)
class EpochReport:
    """The results of an epoch."""

    epoch: int
    loss: float
    tokens: int
    seconds: float


def build_model(
    settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase, *, tokens: int | None = None
) -> LlamaForCausalLM:
    """A Llama model with random weights from ``settings.seed``.

    Args:
        tokens: of its vocabulary; by default as many as the tokenizer has.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer) if tokens is None else tokens,
        hidden_size=settings.width,
        intermediate_size=settings.mlp_width,
        num_hidden_layers=settings.blocks,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = _ATTENTION
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # transformers initialises from the global generator, which is forked here
        return LlamaForCausalLM(config)


def train(
    settings: TrainingSettings,
    directory: Path,
    *,
    start: Path | None = None,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    checkpoint_every: int = 5,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, World]:
    """Train to the end, resuming from ``directory/checkpoint.safetensors`` if it exists.

    Args:
        start: a directory as ``package.write_lab`` writes it, whose weights are trained further, with its tokenizer and
            world; by default all three are made from the settings.

    Raises:
        ValueError: if the checkpoint has other settings, or the world is too small for one batch of text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if start is None:
        world = World.generate(settings.people, settings.seed)
        tokenizer = train_tokenizer(
            (text for epoch in range(3) for text in epoch_documents(world, seed=settings.seed, epoch=epoch)),
            vocabulary_size=settings.vocabulary_size,
        )
        model = build_model(settings, tokenizer)
    else:
        world = lab_world(start)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32, attn_implementation=_ATTENTION)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    checkpoint = directory / "checkpoint.safetensors"
    first_epoch = _load_checkpoint(checkpoint, settings, model, optimizer) if checkpoint.exists() else 0

    def loss_of(tokens: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bfloat16):
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())

    step_loss = torch.compile(loss_of) if settings.compile else loss_of
    model.train()
    for epoch in range(first_epoch, settings.epochs):
        started = time.perf_counter()
        batches = list(_batches(world, tokenizer, settings, epoch))
        if not batches:
            needed = settings.batch * (settings.context + 1)
            raise ValueError(f"a world of {settings.people} people has less text than one batch ({needed:,} tokens)")
        total = 0.0
        for index, (tokens, labels) in enumerate(batches):
            rate = _learning_rate(settings, (epoch + index / len(batches)) / settings.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = step_loss(tokens, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        on_epoch(
            EpochReport(
                epoch=epoch + 1,
                loss=total / len(batches),
                tokens=sum(tokens.numel() for tokens, _ in batches),
                seconds=time.perf_counter() - started,
            )
        )
        if (epoch + 1) % checkpoint_every == 0 or epoch + 1 == settings.epochs:
            _save_checkpoint(checkpoint, settings, epoch + 1, model, optimizer)
    return model.eval(), tokenizer, world


def _batches(
    world: World, tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch packed without padding into (batch, context + 1) windows; an incomplete last batch is dropped.

    Yields:
        tokens, and the same as labels: ``_NO_LOSS`` for the first line of a context document, a fact that holds in this
        document only.
    """
    documents = mixed_documents(world, settings.context_share, seed=settings.seed, epoch=epoch)
    encoded = tokenizer(documents, return_offsets_mapping=True)
    tokens = [token for ids in encoded["input_ids"] for token in ids]
    labels: list[int] = []
    for text, ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        line = text.find("\n") + 1  # 0 in other documents
        # BOS, which has no characters, keeps its loss as in any document.
        labels += [
            _NO_LOSS if first < last <= line else token for token, (first, last) in zip(ids, offsets, strict=True)
        ]
    window = settings.context + 1
    stream = torch.tensor([tokens, labels])[:, : len(tokens) // window * window].view(2, -1, window)
    for start in range(0, stream.shape[1] - settings.batch + 1, settings.batch):
        yield stream[0, start : start + settings.batch], stream[1, start : start + settings.batch]


def _learning_rate(settings: TrainingSettings, progress: float) -> float:
    """Linear warm-up, then a cosine to a fiftieth; ``progress`` runs from 0 to 1."""
    if progress < settings.warmup:
        return settings.learning_rate * (progress / settings.warmup + 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - settings.warmup) / (1 - settings.warmup)))
    return settings.learning_rate * (0.02 + 0.98 * cosine)


def _save_checkpoint(
    path: Path, settings: TrainingSettings, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata={"epoch": str(epoch), "settings": json.dumps(asdict(settings))})


def _load_checkpoint(path: Path, settings: TrainingSettings, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if json.loads(metadata["settings"]) != asdict(settings):
            raise ValueError(f"{path} has other settings: {metadata['settings']}; give those, or another directory")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"weight.{name}"))
                optimizer.state[parameter] = {
                    key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
                }
        return int(metadata["epoch"])
