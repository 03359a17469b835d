"""Stands in for gpu_traces.py in a plan's processes: leaves the files of `prompts` and `generate`, with no engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from gpu_traces import parser  # the folder had to be named first
from trace_pools import PromptSet, TraceSet, save_prompts, save_set


def main(line: list[str]) -> None:
    """What the subcommands `prompts` and `generate` leave behind, without an engine; int4 fails."""
    read = parser().parse_args(line)
    if line[0] == "prompts":
        rows = tuple((0, n) for n in range(read.count))
        save_prompts(read.out, PromptSet(rows, tuple(range(read.count)), tuple(range(read.count)), {}))
    elif read.weights == "int4":
        raise SystemExit("no int4 here")
    else:
        numbers = tuple(range(read.first, read.first + read.count))
        meta: dict[str, Any] = {"model": "tb7m", "sampling": {}, "engine": {"name": "vllm"}, "finish_reason": "length"}
        rows = tuple((0, n) for n in numbers)
        save_set(read.out, TraceSet(rows, rows, numbers, numbers, meta))


if __name__ == "__main__":
    main(sys.argv[1:])
