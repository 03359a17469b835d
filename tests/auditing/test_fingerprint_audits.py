"""One verdict from tokens and fingerprints: which of the two speaks, and that no bad fingerprint passes or kills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from printed import SPEC, prefilled, provider, stamped

from recorded import Recorded
from veridifr import auditing
from veridifr.auditing import audit
from veridifr.errors import CalibrationError, ReferenceError, TraceError
from veridifr.finding import Diagnosis, Finding, FingerprintSummary, Verdict
from veridifr.fingerprints import Fingerprint, FingerprintSpec, fingerprint, fingerprint_of, with_fingerprint
from veridifr.fingerprints.attached import KEY
from veridifr.report import from_json, to_html, to_json, to_text
from veridifr.trace import Trace

ALPHA = 0.02


@pytest.fixture(autouse=True)
def undiagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the verdict counts here, and looking for a cause takes most of the time."""
    monkeypatch.setattr(auditing, "diagnose", lambda items, statistic, rng, **_: Diagnosis(code="forward_pass"))


def run(printed: Recorded, traces: Sequence[Trace], **options: Any) -> Finding:
    return audit(list(traces), printed.reference, printed.calibration, ALPHA, **options)


def summary(finding: Finding) -> FingerprintSummary:
    assert finding.fingerprints is not None
    return finding.fingerprints


def raw(trace: Trace, value: object) -> Trace:
    """With `value` in place of the fingerprint, whatever it is."""
    return replace(trace, extra={**trace.extra, KEY: value})


def bare(trace: Trace) -> Trace:
    return replace(trace, extra={})


def found(trace: Trace) -> Fingerprint:
    result = fingerprint_of(trace, SPEC)
    assert result is not None
    return result


def test_an_honest_provider_is_consistent(printed: Recorded) -> None:
    finding = run(printed, printed["v1"])
    told = summary(finding)
    assert finding.verdict is Verdict.CONSISTENT
    assert told.speaks is None and told.tap is None and told.missing == 0 and told.sequences == 16
    assert told.p_value is not None and told.p_value > ALPHA / 2
    assert finding.p_value == pytest.approx(min(1.0, 2 * min(told.p_value, told.tokens_p_value)))
    assert told.spec == SPEC.digest().hex()
    assert "16 fingerprints showed nothing either" in finding.reason


def moved(traces: list[Trace]) -> list[Trace]:
    """Each with the fingerprint of another prompt."""
    return [with_fingerprint(trace, found(other)) for trace, other in zip(traces, traces[1:] + traces[:1], strict=True)]


def shuffled(traces: list[Trace]) -> list[Trace]:
    """Each with its own entries in another order."""
    rng = np.random.default_rng(1)
    out = []
    for trace in traces:
        own = found(trace)
        payloads = []
        for payload in own.payloads:  # an entry is 8 codes of 3 bits: 3 bytes
            rows = np.frombuffer(payload, dtype=np.uint8).reshape(-1, 3)
            payloads.append(rows[rng.permutation(len(rows))].tobytes())
        out.append(with_fingerprint(trace, replace(own, payloads=tuple(payloads))))
    return out


def zeroed(traces: list[Trace]) -> list[Trace]:
    return [
        with_fingerprint(t, replace(found(t), payloads=tuple(bytes(len(p)) for p in found(t).payloads))) for t in traces
    ]


@pytest.mark.parametrize("attack", [moved, shuffled, zeroed])
def test_fingerprints_that_are_not_of_these_tokens(
    printed: Recorded, attack: Callable[[list[Trace]], list[Trace]]
) -> None:
    finding = run(printed, attack(printed["v1"]))
    assert finding.verdict is Verdict.DIVERGENT
    assert summary(finding).speaks == "fingerprints"
    assert summary(finding).tap == "layer.1"
    assert finding.diagnosis.code == "unexplained" and "layer.1" in finding.diagnosis.sentence


def test_scaled_hidden_states(printed: Recorded) -> None:
    """2 % too large: what a wrong norm or a wrong scale of the projection gives."""
    plain = replace_encoding(SPEC)
    model = provider()
    traces = []
    for trace in printed["v1"]:
        own = prefilled(model, trace, plain)
        values = [1.02 * np.frombuffer(payload, dtype="<f4").reshape(-1, SPEC.k) for payload in own.payloads]
        traces.append(with_fingerprint(trace, fingerprint(SPEC, own.tokens, values)))
    finding = run(printed, traces)
    assert finding.verdict is Verdict.DIVERGENT
    assert summary(finding).speaks == "fingerprints"


def replace_encoding(spec: FingerprintSpec) -> FingerprintSpec:
    return replace(spec, encoding="float32", step_log2=())


def test_fingerprints_of_rounded_weights(printed: Recorded) -> None:
    finding = run(printed, printed["int4 weights"])
    assert finding.verdict is Verdict.DIVERGENT
    assert summary(finding).speaks == "fingerprints"
    assert summary(finding).tap == "layer.1"


@pytest.mark.parametrize(("layers", "tap"), [((0, 1), "layer.1"), ((3,), "layer.4"), ((5,), "final")])
def test_the_depth_at_which_a_deviation_starts(printed: Recorded, layers: tuple[int, ...], tap: str) -> None:
    """Only some layers are rounded; those after them run honestly, on what they are given."""
    finding = run(printed, stamped(provider(bits=4, layers=layers), printed["v1"]))
    assert finding.verdict is Verdict.DIVERGENT
    assert (summary(finding).speaks, summary(finding).tap) == ("fingerprints", tap)


def test_tokens_and_fingerprints_of_rounded_weights(printed: Recorded) -> None:
    finding = run(printed, printed["int4 all"])
    assert finding.verdict is Verdict.DIVERGENT
    assert summary(finding).speaks == "both"
    assert finding.diagnosis.code == "forward_pass"


def test_tokens_of_a_cheap_model_prefilled_honestly(printed: Recorded) -> None:
    """The forward pass over these tokens is honest, so fingerprints pass: tokens alone show it."""
    finding = run(printed, printed["int4"])
    assert finding.verdict is Verdict.DIVERGENT
    assert summary(finding).speaks == "tokens"
    told = summary(finding).p_value
    assert told is not None and told > ALPHA / 2
    assert "its fingerprints do not" in finding.reason


BAD: dict[str, tuple[Callable[[Trace], Trace], str]] = {
    "missing": (bare, "fingerprint: missing"),
    "no object": (lambda t: raw(t, [1, 2]), "fingerprint: got list"),
    "unknown field": (lambda t: raw(t, {**t.extra[KEY], "more": 1}), "fingerprint.'more': not a field"),
    "no data": (lambda t: raw(t, {"spec": t.extra[KEY]["spec"]}), "fingerprint.data: missing"),
    "spec of nothing": (lambda t: raw(t, {**t.extra[KEY], "spec": 3}), "fingerprint.spec: got int"),
    "bad k": (lambda t: raw(t, {**t.extra[KEY], "spec": {**t.extra[KEY]["spec"], "k": 0}}), "fingerprint.spec.k: got"),
    "another seed": (
        lambda t: raw(t, {**t.extra[KEY], "spec": {**t.extra[KEY]["spec"], "seed": 6}}), "first that differs: seed",
    ),
    "not base64": (lambda t: raw(t, {**t.extra[KEY], "data": "!"}), "fingerprint.data: not base64"),
    "a number": (lambda t: raw(t, {**t.extra[KEY], "data": 7}), "fingerprint.data: got int"),
    "truncated": (lambda t: raw(t, {**t.extra[KEY], "data": t.extra[KEY]["data"][:-8]}), "fingerprint.data: payload"),
    "short": (
        lambda t: raw(t, {**t.extra[KEY], "data": short(t)}), "fingerprint.data: tokens: got 40, expected the 80",
    ),
}  # fmt: skip
"""What a trace may hold in place of a fingerprint, and what is said of it."""


def short(trace: Trace) -> Any:
    half = replace(trace, output_token_ids=trace.output_token_ids[:40])
    part = Fingerprint(spec=SPEC, tokens=40, payloads=tuple(p[: len(p) // 2] for p in found(trace).payloads))
    return with_fingerprint(half, part).extra[KEY]["data"]


def test_bad_fingerprints_are_missing_and_cannot_pass(printed: Recorded) -> None:
    """One of each kind among good ones: the rest is audited as ever, and nothing is consistent."""
    kinds = dict(zip([t.id for t in printed["v1"]], BAD, strict=False))
    traces = [BAD[kinds[t.id]][0](t) if t.id in kinds else t for t in printed["v1"]]
    finding = run(printed, traces)
    told = summary(finding)
    assert finding.verdict is Verdict.UNDECIDED
    assert (told.sequences, told.missing, told.speaks) == (16 - len(BAD), len(BAD), None)
    assert set(told.reasons) == set(kinds)
    for name, kind in kinds.items():
        assert BAD[kind][1] in told.reasons[name]
    assert "came with a fingerprint" in finding.reason
    assert finding.tokens_scored == finding.tokens_requested


def test_bad_fingerprints_hide_nothing(printed: Recorded) -> None:
    traces = [list(BAD.values())[i % len(BAD)][0](t) for i, t in enumerate(printed["int4"])]
    finding = run(printed, traces)
    assert finding.verdict is Verdict.DIVERGENT
    assert (summary(finding).speaks, summary(finding).p_value, summary(finding).missing) == ("tokens", None, 16)


def test_no_fingerprint_at_all(printed: Recorded) -> None:
    traces = [bare(t) for t in printed["v1"]]
    required = run(printed, traces, fingerprints="required")
    assert required.verdict is Verdict.UNDECIDED and summary(required).missing == 16
    auto = run(printed, traces)
    assert auto.verdict is Verdict.CONSISTENT and auto.fingerprints is None
    assert any("no trace has one" in text for text in auto.assumptions)


def test_off(printed: Recorded) -> None:
    finding = run(printed, printed["int4 weights"], fingerprints="off")
    assert finding.fingerprints is None and finding.verdict is Verdict.CONSISTENT
    assert any("switched off" in text for text in finding.assumptions)


def test_an_unknown_mode(printed: Recorded) -> None:
    with pytest.raises(TraceError, match="fingerprints: got 'maybe', expected one of auto, required, off"):
        run(printed, printed["v1"], fingerprints="maybe")


def test_without_a_calibration_of_fingerprints(printed: Recorded) -> None:
    calibration = replace(printed.calibration, fingerprints=None)
    with pytest.raises(CalibrationError, match="fingerprints: required"):
        audit(printed["v1"], printed.reference, calibration, fingerprints="required")
    finding = audit(printed["v1"], printed.reference, calibration, ALPHA)
    assert any("the calibration knows nothing of them" in text for text in finding.assumptions)


def test_evidence_without_projections(printed: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = printed.reference
    monkeypatch.setattr(reference, "measuring", lambda spec, sensitivity: None)
    with pytest.raises(ReferenceError, match="cannot give projections"):
        audit(printed["v1"], reference, printed.calibration, fingerprints="required")
    finding = audit(printed["v1"], reference, printed.calibration, ALPHA)
    assert any("the reference cannot give projections" in text for text in finding.assumptions)


def test_missing_sequences_count(printed: Recorded) -> None:
    asked = [replace(bare(t), output_token_ids=np.zeros(0, dtype=np.int32)) for t in printed["v1"]]
    finding = run(printed, printed["v1"][:12], requests=asked)
    assert finding.verdict is Verdict.UNDECIDED
    assert (summary(finding).sequences, summary(finding).missing) == (12, 4)


def test_reports(printed: Recorded) -> None:
    traces = [bare(t) if i == 0 else t for i, t in enumerate(printed["int4 weights"])]
    finding = run(printed, traces)
    assert from_json(to_json(finding)) == finding
    text = " ".join(to_text(finding).split())
    assert "Fingerprints the fingerprints speak, the tokens do not" in text
    assert "first depth that does not fit: layer.1" in text and "fingerprint: missing" in text
    assert "the fingerprints speak, the tokens do not" in to_html([finding])
