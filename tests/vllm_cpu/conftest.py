"""One engine on the bundled model for all tests of this folder: each takes seconds to start and a GiB of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpu_engine import CpuEngine


@pytest.fixture(scope="session")
def engine(tb7m: Path) -> CpuEngine:
    return CpuEngine(tb7m)
