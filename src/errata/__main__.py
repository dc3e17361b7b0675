"""Where `errata` and `python -m errata` begin: Ctrl-C is answered also while torch is still being imported."""

from __future__ import annotations

import sys


def main() -> None:
    """As ``errata.cli.main``."""
    try:
        from errata.cli import main as run
    except KeyboardInterrupt:
        print("interrupted; nothing had begun", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
