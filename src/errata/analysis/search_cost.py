"""What a search of targets costs by calculation: floating-point operations of its matrix products, and its memory.

One multiplication and addition are two operations. Softmax, norms and activation functions are not counted: they are
bound by memory and not by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from errata.analysis.search_rows import Bucket, SearchRows
from errata.models.size import ModelSize


def read_flops(size: ModelSize, tokens: int, blocks: int, seen: int) -> int:
    """A forward pass of some blocks.

    Args:
        seen: the number of tokens that one attends to, hidden ones in its batch included.
    """
    return tokens * blocks * (2 * size.block_products + 4 * size.query_width * seen)


def search_flops(size: ModelSize, rows: SearchRows, layer: int, steps: int) -> int:
    """All of a search at one layer in which no fact is done early: ``steps`` losses, one gradient less.

    Gradients are taken of activations and not of weights, so that going back costs as many products as going forward
    (twice as many in attention, both factors of which depend on what is injected).
    """
    return sum(_bucket_flops(size, bucket, layer, steps) for bucket in rows.buckets)


def _bucket_flops(size: ModelSize, bucket: Bucket, layer: int, steps: int) -> int:
    # Once: stems and what a row has behind them, through all blocks but the last MLP; what is replayed, to the layer.
    own, stem_slots = bucket.rows * bucket.tail, bucket.slots - bucket.tail
    once = read_flops(size, own, size.blocks, bucket.slots) + read_flops(size, bucket.stems, size.blocks, stem_slots)
    once -= 2 * size.mlp_products * (own + bucket.stems)
    replayed, seen = bucket.rows * bucket.replayed, bucket.slots + bucket.replayed
    once += read_flops(size, replayed, layer + 1, seen)
    above = size.blocks - 1 - layer
    products = 2 * above * size.block_products * replayed + 2 * size.head_products * bucket.wanted
    if above:  # the last MLP runs only where logits are wanted
        products -= 2 * size.mlp_products * (replayed - bucket.wanted)
    attention = 4 * above * size.query_width * seen * replayed
    return once + steps * (products + attention) + (steps - 1) * (products + 2 * attention)


@dataclass(frozen=True, slots=True)
class SearchMemory:
    """What a search holds at once, in bytes.

    Attributes:
        cache: keys and values of what stands before the injections, in all blocks.
        activations: what the replayed blocks keep for the gradient.
        logits: those wanted, their logarithms of probabilities, and the gradients of both.
    """

    cache: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.cache + self.activations + self.logits


def search_memory(size: ModelSize, rows: SearchRows, layer: int, width: int) -> SearchMemory:
    """Of the facts that are searched at once.

    A block keeps, for each token: the inputs of two norms in float32, queries and what attention returns, three vectors
    of a gated MLP (in the last block only where logits are wanted), and keys and values of all tokens seen, repeated
    for each head. (GPT-2's kind of MLP keeps up to nine vectors.)

    Args:
        width: bytes of a number in the model's dtype.
    """
    cache = activations = logits = 0
    above = size.blocks - 1 - layer
    for bucket in rows.largest:
        replayed, seen = bucket.rows * bucket.replayed, bucket.slots + bucket.replayed
        cache += bucket.rows * bucket.slots * size.blocks * 2 * size.key_width * width
        of_attention = 2 * size.query_width * width * (replayed + bucket.rows * seen)
        of_mlp = 3 * size.mlp_width * width
        activations += above * (8 * size.width * replayed + of_attention + of_mlp * replayed)
        if above and size.mlp_products:
            activations -= of_mlp * (replayed - bucket.wanted)
        logits += bucket.wanted * size.vocabulary * (2 * width + 3 * 4)
    return SearchMemory(cache, activations, logits)
