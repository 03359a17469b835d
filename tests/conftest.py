"""What every test runs under, set before anything reads it, so that a bare ``pytest`` does what `make test` does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("veridifr", deadline=None)  # no timed test: a busy machine is slow at anything
settings.load_profile("veridifr")
for _name, _value in {
    "OMP_NUM_THREADS": "1",  # the models are tiny: on a busy machine, threads that wait for each other take far longer
    "HF_HUB_OFFLINE": "1",  # nothing is loaded from a hub
    "TOKENIZERS_PARALLELISM": "false",  # it warns after a fork
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",  # vLLM reports to nobody
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; the default takes half of the memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in the test's own process: it starts in seconds
}.items():
    os.environ.setdefault(_name, _value)


@pytest.fixture(scope="session")
def tb7m() -> Path:
    """The directory of the model that the package brings."""
    return Path(__file__).parents[1] / "src" / "veridifr" / "data" / "tb7m"
