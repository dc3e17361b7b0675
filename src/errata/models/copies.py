"""Several processes with a copy of the same model each, started by torchrun; the first of them gives out work.

The first process runs the command as it would alone. The others wait for messages (``errata.benchmark.worker``): JSON
and the bytes of tensors, never pickle. Weights that the first process has changed are sent before the work that needs
them, bit for bit, so that all copies stay equal.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from errata.errors import ErrataError, NonFiniteError
from errata.models.weights import Place
from errata.utils.tensors import tensor_bytes

if TYPE_CHECKING:
    from errata.models.language_model import LanguageModel

# torchrun's processes wait for each other as long as the first one measures or writes; a lost one is noticed at once.
_LONGEST_WAIT = timedelta(days=30)
_REMEDY = (
    "See the messages of the other processes for the cause, then run the same command again; a run (--run) continues "
    "with `errata edit --resume`, a benchmark after its last finished cell"
)


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> int:
    """Join the other processes of torchrun; returns the number of this one."""
    with noticing_losses():
        distributed.init_process_group("gloo", timeout=_LONGEST_WAIT)
        return distributed.get_rank()


def process_count() -> int:
    """The number of processes that have joined; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def lost(what: str = "another process of torchrun has ended") -> ErrataError:
    """The error for processes that end while others work."""
    return ErrataError(what, remedy=_REMEDY, code="PROCESS_LOST")


@contextmanager
def noticing_losses() -> Iterator[None]:
    """Turn the errors of a broken connection into ``PROCESS_LOST``."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # gloo's own errors
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise lost(f"another process of torchrun has ended or cannot be reached ({first[:200]})") from error


def send(rank: int, message: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Send a message and tensors to another process.

    Raises:
        ErrataError: if that process has ended (``PROCESS_LOST``).
    """
    tensors = tensors or {}
    about = [[name, str(each.dtype).removeprefix("torch."), list(each.shape)] for name, each in tensors.items()]
    header = torch.tensor(list(json.dumps({"message": message, "tensors": about}).encode()), dtype=torch.uint8)
    with noticing_losses():
        distributed.send(torch.tensor([len(header)]), rank)
        distributed.send(header, rank)
        for each in tensors.values():
            if each.numel():
                distributed.send(torch.from_numpy(tensor_bytes(each)), rank)


def receive(rank: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Receive what another process sends next.

    Raises:
        ErrataError: if that process has ended (``PROCESS_LOST``).
    """
    with noticing_losses():
        length = torch.zeros(1, dtype=torch.long)
        distributed.recv(length, rank)
        header = torch.zeros(int(length), dtype=torch.uint8)
        distributed.recv(header, rank)
        found = json.loads(bytes(header.tolist()))
        tensors = {}
        for name, dtype_name, shape in found["tensors"]:
            dtype = getattr(torch, dtype_name)
            content = torch.zeros(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
            if len(content):
                distributed.recv(content, rank)
            tensors[name] = content.view(dtype).view(shape)
    return found["message"], tensors


def failure(error: ErrataError) -> dict[str, Any]:
    """An error as a message."""
    if isinstance(error, NonFiniteError):
        return {"quantity": error.quantity, "facts": list(error.facts), "layer": error.layer}
    return {"failed": error.what, "remedy": error.remedy, "code": error.code}


def checked(message: dict[str, Any]) -> dict[str, Any]:
    """A reply.

    Raises:
        ErrataError: the one that the reply is about.
    """
    if "quantity" in message:
        raise NonFiniteError(message["quantity"], facts=message["facts"], layer=message["layer"])
    if "failed" in message:
        raise ErrataError(message["failed"], remedy=message["remedy"], code=message["code"])
    return message


@dataclass(slots=True)
class Copies:
    """The copies of a model in other processes, as the first process sees them.

    Attributes:
        count: number of processes, this one included.
    """

    count: int
    _sent: dict[Place, str] = field(default_factory=dict)  # place -> SHA-256 of the weight that the others have

    @classmethod
    def load(cls, model: LanguageModel, options: Mapping[str, Any]) -> Copies:
        """Have the other processes load the model too.

        Args:
            options: from which they load it, as JSON.

        Raises:
            ErrataError: if one cannot, or has other weights.
        """
        copies = cls(process_count())
        for rank in copies.others:
            send(rank, {"do": "load", **options})
        own = model.fingerprint()
        for rank in copies.others:
            if checked(receive(rank)[0])["fingerprint"] != own:
                what = f"process {rank} has loaded other weights than the first one"
                remedy = "Give all of them the same files and the same version of errata"
                raise ErrataError(what, remedy=remedy, code="PROCESS_WEIGHTS_DIFFER")
        return copies

    @property
    def others(self) -> range:
        """The numbers of the other processes."""
        return range(1, self.count)

    def update(self, model: LanguageModel) -> None:
        """Send the weights that have changed since the last time."""
        changed = {}
        for place in model.edits.places:
            weight = model.weight(*place)
            digest = hashlib.sha256(tensor_bytes(weight)).hexdigest()
            if self._sent.get(place) != digest:
                changed[place] = weight
                self._sent[place] = digest
        if changed:
            places = [list(place) for place in changed]
            tensors = {str(number): weight for number, weight in enumerate(changed.values())}
            for rank in self.others:
                send(rank, {"do": "weights", "places": places}, tensors)
