"""Where `errata` and `python -m errata` begin: what has to happen before torch is imported."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """As ``errata.cli.main.main``; Ctrl-C is answered from the first moment."""
    # OpenMP's threads burn their cores while they wait for each other, unless set otherwise before they start. Beside
    # another process that has work to do, this costs several times more than waiting quietly costs on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from errata.cli.main import main as run
    except KeyboardInterrupt:
        print("interrupted before any work started", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
