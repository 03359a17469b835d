"""``python -m veridifr`` and the command ``veridifr``: a process of its own, in which noise may be compiled."""

from __future__ import annotations

import sys

from veridifr.cli import main
from veridifr.rng import compiled


def run() -> int:
    """Run one command; its exit status."""
    compiled.enable()
    return main()


if __name__ == "__main__":
    sys.exit(run())
