"""The bundled audit: a trained model, real GPU traces for it, and a calibration from other honest traces.

All traces are tokens of vLLM 0.24.0 on one NVIDIA H200, made by tools/gpu_traces.py with a fresh prompt and seed per
sequence. Two providers are honest, one serves 4-bit weights, one samples hotter than it claims.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from veridifr.auditing import Sources, audit
from veridifr.calibration_io import read_calibration
from veridifr.finding import Finding, Verdict
from veridifr.references import ReferenceSettings, load
from veridifr.replay import Replayer
from veridifr.traces import digest_file, read_traces

DATA = Path(__file__).parent / "data"
EXPECTED = {
    "v1": Verdict.CONSISTENT,
    "v2": Verdict.CONSISTENT,
    "int4": Verdict.DIVERGENT,
    "temp1.1": Verdict.DIVERGENT,
}
"""What each bundled provider is."""


def model_path() -> Path:
    """Directory of the bundled model tb7m (6.8 M parameters, Llama architecture)."""
    return DATA / "tb7m"


@dataclass(frozen=True, kw_only=True)
class DemoAudit:
    """One of the four audits. `as_expected` compares the verdict with what the provider really did."""

    name: str
    finding: Finding

    @property
    def as_expected(self) -> bool:
        return self.finding.verdict is EXPECTED[self.name]


def run(*, threads: int | None = None, quiet: bool = True) -> Iterator[DemoAudit]:
    """Audit the four bundled providers, one after the other."""
    reference = load(f"hf:{model_path()}", ReferenceSettings(device="cpu", threads=threads))
    calibration_file = DATA / "demo" / "calibration.json"
    calibration, digest = read_calibration(calibration_file)
    for name in EXPECTED:
        path = DATA / "demo" / f"{name}.jsonl.gz"
        finding = audit(
            list(read_traces(path)),
            reference,
            calibration,
            replayer=Replayer(reference, quiet=quiet),
            sources=Sources(traces=((path.name, digest_file(path)),), calibration=(calibration_file.name, digest)),
        )
        yield DemoAudit(name=name, finding=finding)
