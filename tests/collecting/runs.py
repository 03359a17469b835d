"""`veridifr collect` as tests run it: in this process, or as one that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veridifr import Collected, Endpoint, Limits, Prompt, Sampling, collect

QUICK = Limits(concurrency=8, attempts=40, first_wait=0.001, longest_wait=0.05)


def prompts(count: int) -> list[Prompt]:
    """Prompts of token ids, each its own."""
    return [Prompt(prompt_token_ids=(5, 6, 7 + number)) for number in range(count)]


def run(out: Path, url: str, asked: Sequence[Prompt], *, tokens: int = 8, **fields: Any) -> Collected:
    """One collection with settings that suit tests; `fields` are of `collect` and of `Endpoint`."""
    own = {name: fields.pop(name) for name in list(fields) if name in Endpoint.__dataclass_fields__}
    endpoint = Endpoint(**{"base_url": url, "model": "m", "timeout": 5.0, **own})
    sampling = fields.pop("sampling", Sampling(temperature=1.0, max_tokens=tokens))
    return collect(out, endpoint, sampling, **{"prompts": asked, "limits": QUICK, **fields})


def write_prompts(path: Path, count: int) -> Path:
    """The same prompts as a file."""
    path.write_text("".join(json.dumps({"prompt_token_ids": [5, 6, 7 + n]}) + "\n" for n in range(count)))
    return path


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, which an interrupt ends even where this one ignores them.

    A shell without job control has what it runs in the background ignore interrupts, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a handler is not inherited, unlike SIG_IGN
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "veridifr", "collect", *map(str, arguments)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(command: list[str], ledger: Path, count: int) -> None:
    """Start a collector, and kill it once its ledger has that many lines."""
    process = start(*command)
    try:
        while lines(ledger) < count:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.kill()
        assert process.wait(30) == -9
    finally:
        process.kill()
        process.communicate()
