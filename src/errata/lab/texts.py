"""The lab's corpus: what is true of the world, told again and again in other words, and prose between.

One *epoch* tells every fact of every person exactly once, what follows of it for every other person, every city and
company once, and some scenes. Epoch ``e`` of a corpus is a
function of ``(world, seed, e)`` alone, so training can stop and go on anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from errata.lab import vocabulary
from errata.lab.prose import scene
from errata.lab.world import World

# Scenes per person and epoch: about a sixth of all tokens are prose.
SCENES_PER_PERSON = 0.22
HELD_OUT_SEED = 20_000_001  # training epochs count from seed * 1_000_000, far below


def epoch_documents(world: World, *, seed: int, epoch: int) -> list[str]:
    """All documents of one epoch, shuffled.

    The wording of a fact advances by one from epoch to epoch from a start of its own, so that all wordings of all
    facts are told equally often. A person's facts come in random order and in documents of one to seven sentences;
    a third of the documents tell of two people in turn; one in six starts with a sentence of prose.
    """
    generator = random.Random(seed * 1_000_000 + epoch)
    pieces: list[list[str]] = []
    for person_index, (name, facts) in enumerate(world.people.items()):
        relations = list(facts)
        sentences = [
            world.statement(name, relation, epoch + person_index + relation_index * 2).sentence
            for relation_index, relation in enumerate(relations)
        ]
        if person_index % 2 == 0:  # the other half is left to the model to conclude
            sentences.extend(
                world.consequence(name, relation, epoch + person_index // 2).sentence
                for relation in vocabulary.CONSEQUENCE_WORDINGS
            )
        generator.shuffle(sentences)
        while sentences:
            size = generator.randint(1, len(relations))
            pieces.append(sentences[:size])
            sentences = sentences[size:]
    generator.shuffle(pieces)

    documents: list[str] = []
    waiting: list[str] | None = None
    for piece in pieces:
        draw = generator.random()
        if draw < 1 / 3:
            if waiting is None:
                waiting = piece
                continue
            piece = _interleave(waiting, piece, generator)
            waiting = None
        elif draw < 1 / 2:
            piece = [*scene(generator).sentences[:1], *piece]
        documents.append(" ".join(piece))
    if waiting is not None:
        documents.append(" ".join(waiting))

    background = [statement.sentence for statement in world.background(epoch)]
    generator.shuffle(background)
    documents.extend(" ".join(background[start : start + 4]) for start in range(0, len(background), 4))
    documents.extend(scene(generator).text for _ in range(round(SCENES_PER_PERSON * len(world.people))))
    generator.shuffle(documents)
    return documents


def held_out_prose(count: int) -> list[str]:
    """Scenes that no training epoch contains by construction of the seeds (short sentences may recur by chance)."""
    generator = random.Random(HELD_OUT_SEED)
    return [scene(generator).text for _ in range(count)]


def running_text(world: World, *, seed: int) -> Iterator[str]:
    """Documents of epoch after epoch, without end: the text over which key statistics are taken."""
    epoch = 0
    while True:
        yield from epoch_documents(world, seed=seed, epoch=epoch)
        epoch += 1


def _interleave(first: list[str], second: list[str], generator: random.Random) -> list[str]:
    """Merge two lists at random, each keeping its own order."""
    left, right = list(first), list(second)
    merged: list[str] = []
    while left or right:
        source = left if left and (not right or generator.random() < 0.5) else right
        merged.append(source.pop(0))
    return merged
