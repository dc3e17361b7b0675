"""The settings of a training of the lab's model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Everything that decides what the trained model is (on one machine, with one number of threads)."""

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
