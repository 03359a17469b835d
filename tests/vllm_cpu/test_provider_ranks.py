"""Two tensor-parallel ranks over gloo: one of them speaks, and what it says is the reference's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from veridifr import ReferenceSettings
from veridifr.fingerprints import FingerprintSpec, fingerprint_of
from veridifr.references.hf import HfReference
from veridifr.traces import read_traces

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SPEC = FingerprintSpec(seed=11, hidden_size=256, k=8, encoding="float32")


def test_two_ranks(tb7m: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "two_ranks.py"), str(tb7m), str(tmp_path / "traces.jsonl")],
        env={**environment, "VLLM_CPU_OMP_THREADS_BIND": "0|0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    traces = list(read_traces(tmp_path / "traces.jsonl"))
    assert [(t.engine.child, len(t.output_token_ids)) for t in traces] == [
        (None, 6), (0, 7), (1, 7), (None, 8), (0, 9), (1, 9)
    ]  # fmt: skip
    reference = HfReference.load(str(tb7m), ReferenceSettings(device="cpu")).measuring(SPEC)
    exact = {evidence.trace_id: evidence.projections_AFK for evidence in reference.evidence(traces)}
    for trace in traces:
        found, own = fingerprint_of(trace, SPEC), exact[trace.id]
        assert found is not None and own is not None
        values = np.frombuffer(found.payloads[0], "<f4").reshape(-1, SPEC.k)
        assert np.abs(values - own[0]).max() < 0.1 * np.abs(own[0]).max()
