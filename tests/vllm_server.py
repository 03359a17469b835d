"""vLLM's own OpenAI server on the CPU, as a process of its own that is gone when the test's block ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from veridifr.trace import EngineRecord

RECORD = EngineRecord(
    name="vllm", version="0.32.0", runner="v1", device="cpu", dtype="bfloat16", fp64_noise=False,
    speculative_decoding=False,
)  # fmt: skip
_READY = 600.0
"""Seconds until it must answer: most of them go into imports, and other tests may be running."""


@contextmanager
def served(model: Path, log: Path, *options: str, name: str = "tb7m") -> Iterator[str]:
    """The base URL of a server of `model` under `name`; what it prints goes into the file `log`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"),
        *("--max-num-batched-tokens", "16384", *options),  # no prompt is prefilled in parts
    ]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # the tests' own is for engines in-process
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _READY
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server does not answer: {log.read_text(errors='replace')[-3000:]}")
