"""Real GPU traces of the bundled model, cut short, with the reference's evidence for them in one file.

Replaying is what takes time in an audit, so it happens once in a test session; the audits then read the file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from veridifr.calibration import Calibration, HonestTraces, calibrate
from veridifr.demo import DATA, model_path
from veridifr.references import Reference, ReferenceSettings, load
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.trace import Trace
from veridifr.traces import read_traces

TOKENS = 80
"""Length that every recorded output is cut to."""
SHORT = 24
"""Length of the outputs of set `short`, which the provider ended early."""
SIZES = {"v1": 24, "v2": 24, "int4": 24, "temp1.1": 24, "calibration.v1": 32, "calibration.v2": 32}
DETECT = 0.25
"""Deviation, in logits, that the tests' own calibration declares: large, so that 24 short sequences can be enough."""


def cut(trace: Trace, tokens: int) -> Trace:
    """The first `tokens` tokens of an output, as if no more had been asked for."""
    return replace(
        trace,
        output_token_ids=trace.output_token_ids[:tokens],
        sampling=replace(trace.sampling, max_tokens=tokens),
        finish_reason="length",
    )


def planned(traces: Sequence[Trace]) -> list[Planned]:
    """Every trace whole, as `veridifr replay` takes it."""
    return [Planned(id=t.id, trace=t, end=len(t.output_token_ids), tokens=len(t.output_token_ids)) for t in traces]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The evidence file, the sets of traces that it covers, and a calibration of honest ones among them."""

    file: Path
    sets: dict[str, list[Trace]]
    calibration: Calibration

    @property
    def reference(self) -> Reference:
        return load(f"evidence:{self.file}")

    def __getitem__(self, name: str) -> list[Trace]:
        return list(self.sets[name])


def record(folder: Path) -> Recorded:
    """Replay the bundled traces once (about fifteen seconds)."""
    sets = {
        name: [cut(trace, TOKENS) for trace in read_traces(DATA / "demo" / f"{name}.jsonl.gz")][:count]
        for name, count in SIZES.items()
    }
    sets["short"] = [replace(cut(t, SHORT), sampling=t.sampling, id=f"short/{t.id}") for t in sets["v1"]]
    model = load(f"hf:{model_path()}", ReferenceSettings(device="cpu", threads=1))
    file = folder / "evidence"
    replayed = [trace for traces in sets.values() for trace in traces]
    assert all(evidence for _, evidence in Replayer(model, spool=file).run(planned(replayed), label="record"))
    stacks = [HonestTraces(name=name, traces=sets[name]) for name in ("calibration.v1", "calibration.v2")]
    calibration = calibrate(stacks, load(f"evidence:{file}"), detect_sigma=DETECT)
    return Recorded(file=file, sets=sets, calibration=calibration)


@functools.cache
def _once(folder: Path) -> Recorded:
    folder.mkdir()
    return record(folder)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """One recording for all folders whose conftest.py imports this."""
    return _once(tmp_path_factory.getbasetemp() / "recorded")
