"""One engine of each kind on the bundled model for all tests of this folder: each takes seconds to start and a GiB."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpu_engine import CpuEngine
from provider_engine import ProviderEngine


@pytest.fixture(scope="session")
def engine(tb7m: Path) -> CpuEngine:
    return CpuEngine(tb7m)


@pytest.fixture(scope="session")
def provider_engine(tb7m: Path) -> ProviderEngine:
    return ProviderEngine(tb7m)
