"""Fingerprints judged against how far rounding moves each hidden state: what a small deviation needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from printed import SPEC, provider, stamped

from recorded import DETECT, Recorded
from veridifr import auditing
from veridifr.auditing import audit
from veridifr.calibration import Calibration, HonestTraces, calibrate
from veridifr.calibration_io import read_calibration
from veridifr.cli import main
from veridifr.errors import CalibrationError
from veridifr.finding import Diagnosis, Finding, FingerprintSummary, Verdict
from veridifr.fingerprints import Openings, with_opening, with_root
from veridifr.fingerprints.attached import fingerprint_of
from veridifr.fingerprints.opened import KEY, root_of
from veridifr.fingerprints.spec import to_dict
from veridifr.trace import Trace
from veridifr.traces import write_traces

ALPHA = 0.02


@pytest.fixture(autouse=True)
def undiagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the verdict counts here, and looking for a cause takes most of the time."""
    monkeypatch.setattr(auditing, "diagnose", lambda items, statistic, rng, **_: Diagnosis(code="forward_pass"))


@pytest.fixture(scope="module")
def sensitive(printed: Recorded) -> Calibration:
    honest = [HonestTraces(name="calibration.v1", traces=printed["calibration.v1"])]
    return calibrate(honest, printed.reference, detect_sigma=DETECT, fingerprints=SPEC, sensitivity=True)


@pytest.fixture(scope="module")
def int8(printed: Recorded) -> list[Trace]:
    return stamped(provider(bits=8), printed["v1"])


def run(printed: Recorded, traces: Sequence[Trace], calibration: Calibration) -> tuple[Finding, FingerprintSummary]:
    finding = audit(list(traces), printed.reference, calibration, ALPHA)
    assert finding.fingerprints is not None
    return finding, finding.fingerprints


def test_an_honest_provider_is_consistent(printed: Recorded, sensitive: Calibration) -> None:
    finding, told = run(printed, printed["v1"], sensitive)
    assert finding.verdict is Verdict.CONSISTENT
    assert (told.missing, told.sequences) == (0, 16)


def test_int8_weights_are_found(printed: Recorded, sensitive: Calibration, int8: list[Trace]) -> None:
    finding, told = run(printed, int8, sensitive)
    assert finding.verdict is Verdict.DIVERGENT
    assert told.speaks == "fingerprints"


def test_an_opened_tap_is_judged_by_its_own(printed: Recorded, sensitive: Calibration, int8: list[Trace]) -> None:
    secrets = [number.to_bytes(32, "little") for number in range(16)]
    for traces, verdict in ((printed["v1"], Verdict.CONSISTENT), (int8, Verdict.DIVERGENT)):
        pairs = list(zip(traces, secrets, strict=True))
        roots = {trace.id: root_of(with_root(trace, kept(trace), key).extra[KEY]) for trace, key in pairs}
        opened = [with_opening(trace, kept(trace), key, "layer.4") for trace, key in pairs]
        against = Openings(tap="layer.4", roots=roots)
        assert audit(opened, printed.reference, sensitive, ALPHA, fingerprints=against).verdict is verdict


def kept(trace: Trace):  # type: ignore[no-untyped-def]  # Fingerprint or None
    return fingerprint_of(trace, SPEC)


def test_evidence_that_does_not_say_is_no_evidence(
    printed: Recorded, sensitive: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = printed.reference
    silent = [replace(item, sensitivity_AF=None) for item in reference.evidence(printed["v1"])]
    monkeypatch.setattr(reference, "map", lambda traces, work: map(work, silent))
    finding = audit(printed["v1"], reference, sensitive, ALPHA)
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.fingerprints is not None and finding.fingerprints.sequences == 0
    assert "how sensitive" in next(iter(finding.fingerprints.reasons.values()))


def test_a_reference_that_cannot_say(
    printed: Recorded, sensitive: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = printed.reference
    monkeypatch.setattr(reference, "measuring", lambda spec, sensitivity: None if sensitivity else reference)
    finding = audit(printed["v1"], reference, sensitive, ALPHA)
    assert any("cannot give projections and their sensitivity" in text for text in finding.assumptions)


def test_sensitivity_is_that_of_fingerprints(printed: Recorded) -> None:
    honest = [HonestTraces(name="calibration.v1", traces=printed["calibration.v1"])]
    with pytest.raises(CalibrationError, match="sensitivity: is that of fingerprints"):
        calibrate(honest, printed.reference, sensitivity=True)


def test_on_the_command_line(printed: Recorded, sensitive: Calibration, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(SPEC)))
    write_traces(tmp_path / "honest.jsonl", printed["calibration.v1"])
    told = [str(tmp_path / "honest.jsonl"), "--reference", f"evidence:{printed.file}", "--quiet"]
    more = ["--fingerprints", str(tmp_path / "spec.json"), "--sensitivity", "--out", str(tmp_path / "c.json")]
    assert main(["calibrate", *told, *more]) == 0
    found = read_calibration(tmp_path / "c.json")[0].fingerprints
    assert found is not None and sensitive.fingerprints is not None
    assert found.sensitivity and found.scales == sensitive.fingerprints.scales
