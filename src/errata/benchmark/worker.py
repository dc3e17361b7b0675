"""What the processes of torchrun other than the first do: searches, key statistics and cells that it sends them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from errata.benchmark.workers import Processes
from errata.editing.target_loss import AnyTarget
from errata.editing.target_search import Targets, find_targets
from errata.errors import ErrataError
from errata.facts.files import facts_from_records
from errata.models.copies import checked, failure, process_count, receive, send
from errata.models.language_model import LanguageModel, Site
from errata.models.offload import device_of
from errata.models.weights import Place
from errata.runs.loading import load_here
from errata.statistics.moments import SecondMoment, add_rows
from errata.utils.progress import Report, silent


def serve() -> int:
    """Work until the first process ends; returns the exit status.

    Raises:
        ErrataError: if the first process ends without saying so (``PROCESS_LOST``).
    """
    worker = _Worker()
    while True:
        message, tensors = receive(0)
        if message["do"] == "end":
            return 0
        try:
            reply = worker.work(message, tensors)
        except ErrataError as error:
            reply = failure(error), {}
        except (RuntimeError, MemoryError) as error:
            reply = {"failed": f"{type(error).__name__}: {error}", "remedy": "", "code": "FAILED"}, {}
        if reply is not None:
            send(0, *reply)


def end_all() -> None:
    """Let the other processes end."""
    for rank in range(1, process_count()):
        send(rank, {"do": "end"})


@dataclass(slots=True)
class _Worker:
    model: LanguageModel | None = None
    moments: dict[int, SecondMoment] = field(default_factory=dict)

    def work(
        self, message: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The reply to a message; None if there is none."""
        match message["do"]:
            case "load":
                self.model = self._loaded(message)
                return {"fingerprint": self.model.fingerprint()}, {}
            case "weights":
                for number, place in enumerate(message["places"]):
                    layer, module, expert = Place(*place)
                    self._model.set_weight(layer, tensors[str(number)].to(self._model.device), module, expert)
                return None
            case "targets":
                return self._targets(message)
            case "rows":
                if not self.moments:
                    self.moments = {layer: SecondMoment.of_layer(self._model, layer) for layer in message["layers"]}
                rows = [tuple(row) for row in message["rows"]]
                add_rows(self._model, self.moments, rows, special_tokens=message["special_tokens"])
                return None
            case "moments":
                found, self.moments = self.moments, {}
                counts = {str(layer): moment.count for layer, moment in found.items()}
                return {"counts": counts}, {str(layer): moment.total for layer, moment in found.items()}
            case "cell":
                status = Processes(bool(message["trust"])).run(Path(message["cell"]), silent)
                return {"status": status}, {}
        raise ValueError(f"unknown message {message['do']!r}")

    @property
    def _model(self) -> LanguageModel:
        assert self.model is not None
        return self.model

    def _loaded(self, message: Mapping[str, Any]) -> LanguageModel:
        given = message["device"]
        if given is None and torch.cuda.is_available() and message["name"] != "lab":
            given = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
        dtype = None if message["dtype"] is None else getattr(torch, message["dtype"])
        device = None if given is None else device_of(given)
        return load_here(message["name"], dtype, device, trust_remote_code=message["trust"])

    def _targets(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        adapter: TypeAdapter[Any] = TypeAdapter(AnyTarget)
        settings = adapter.validate_python(message["settings"])
        found: dict[str, Tensor] = {}
        for number, records in enumerate(message["groups"]):
            facts = facts_from_records(records, source="the first process").facts
            targets = find_targets(
                self._model, facts, message["prefixes"], message["layer"], Site(message["site"]), settings
            )
            found |= {f"{number}.{each.name}": getattr(targets, each.name) for each in fields(Targets)}
        return {}, found


@dataclass(slots=True)
class Ranks:
    """Runs cells in the processes of torchrun, one at a time in each; a ``Runner``."""

    trust_remote_code: bool = False
    _free: Queue[int] = field(default_factory=Queue)
    _own: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        self._own = Processes(self.trust_remote_code)
        for rank in range(process_count()):
            self._free.put(rank)

    def run(self, cell: Path, report: Report) -> int:
        """As ``Runner.run``; progress is reported for cells of the first process only."""
        rank = self._free.get()
        try:
            if rank == 0:
                return self._own.run(cell, report)
            send(rank, {"do": "cell", "cell": str(cell.absolute()), "trust": self.trust_remote_code})
            return int(checked(receive(rank)[0])["status"])
        finally:
            self._free.put(rank)

    def stop(self) -> None:
        self._own.stop()
