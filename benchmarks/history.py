"""Time and state of the solvers with a history over many batches: 10,000 keys, in batches of 100, for one layer.

    python benchmarks/history.py
    python benchmarks/history.py --columns 4096 --rows 1024

Keys and residuals are random, with the spectrum of the second moment falling as that of real keys does. A batch is what
an edit does with one layer besides its search: solve, then remember the keys. The state is all tensors of the solver;
on disk a run stores the keys of its batches, from which the state is made again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from common import markdown_table, write_json
from torch import Tensor

from errata.editing.solvers.base import LayerSolver, Solver
from errata.editing.solvers.least_squares import LeastSquares
from errata.editing.solvers.neurons import Neurons
from errata.editing.solvers.null_space import NullSpace


def solvers(columns: int) -> dict[str, Solver]:
    """Every solver with a history."""
    return {
        "least_squares": LeastSquares(ridge=float(columns), history=True),
        "null_space": NullSpace(threshold=0.8, l2=1.0, shares=True, history=True),
        "neurons": Neurons(ridge=float(columns), share=0.8, history=True),
    }


def keys_and_moment(columns: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(columns, count) keys and the second moment that they are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))[0]
    scale = torch.arange(1, columns + 1, dtype=torch.float64) ** -0.5
    keys = basis @ (scale[:, None] * torch.randn(columns, count, generator=generator, dtype=torch.float64))
    return keys, (basis * scale**2) @ basis.T


def bytes_of(state: LayerSolver) -> int:
    """Of all tensors of a state, and of the states that it consists of."""
    return sum(tensor.untyped_storage().nbytes() for tensor in {id(t): t for t in _tensors(state)}.values())


def _tensors(state: object) -> Iterator[Tensor]:
    for value in vars(state).values():
        if isinstance(value, Tensor):
            yield value
        elif hasattr(value, "__dict__") and hasattr(value, "solve"):
            yield from _tensors(value)


def timed_batches(solver: Solver, keys: Tensor, moment: Tensor, rows: int, size: int) -> tuple[list[float], int, int]:
    """Seconds of each batch, and bytes of the state after the first and the last."""
    generator = torch.Generator().manual_seed(1)
    state = solver.prepare(moment)
    seconds, sizes = [], []
    for start in range(0, keys.shape[1], size):
        batch = keys[:, start : start + size]
        residuals = torch.randn(rows, batch.shape[1], generator=generator, dtype=torch.float64)
        began = time.perf_counter()
        change = state.solve(batch, residuals)
        state = state.remember(batch)
        seconds.append(time.perf_counter() - began)
        assert bool(torch.isfinite(change.right).all())
        sizes.append(bytes_of(state))
    return seconds, sizes[0], sizes[-1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=1536, help="columns of W (1536: SmolLM2-135M)")
    parser.add_argument("--rows", type=int, default=576, help="rows of W (576)")
    parser.add_argument("--keys", type=int, default=10_000, help="keys in all (10,000)")
    parser.add_argument("--batch-size", type=int, default=100, help="keys of a batch (100)")
    parser.add_argument("--solvers", help="only these, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(argv)
    keys, moment = keys_and_moment(options.columns, options.keys, seed=0)
    chosen = options.solvers.split(",") if options.solvers else list(solvers(options.columns))
    found = {}
    for name in chosen:
        solver = solvers(options.columns)[name]
        found[name] = timed_batches(solver, keys, moment, options.rows, options.batch_size)
    disk = keys.numel() * keys.element_size() / 2**20
    head = ["solver", "first batch, ms", "slowest, ms", "last, ms", "last / first", "state, MiB: first", "last"]
    rows = []
    for name, (seconds, first, last) in found.items():
        times = [f"{1000 * value:.0f}" for value in (seconds[0], max(seconds), seconds[-1])]
        sizes = [f"{value / 2**20:.0f}" for value in (first, last)]
        rows.append([name, *times, f"{seconds[-1] / seconds[0]:.2f}", *sizes])
    print(markdown_table(head, rows))
    print(f"keys on disk, float64: {disk:.0f} MiB")
    write_json(options.json, {name: {"seconds": value[0], "bytes": value[1:]} for name, value in found.items()})


if __name__ == "__main__":
    main()
