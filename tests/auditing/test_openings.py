"""Audits of one tap that was named after the roots were known: what doesn't open its root can't pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from printed import SPEC, provider, stamped

from recorded import Recorded
from veridifr import auditing
from veridifr.auditing import audit
from veridifr.calibration_io import write_calibration
from veridifr.cli import main
from veridifr.errors import CalibrationError, FingerprintError, TraceError
from veridifr.finding import Diagnosis, Finding, FingerprintSummary, Verdict
from veridifr.fingerprints import Openings, fingerprint_of, with_opening, with_root
from veridifr.fingerprints.opened import KEY, root_of
from veridifr.fingerprints.spec import to_dict
from veridifr.roots import read_roots
from veridifr.trace import Trace
from veridifr.traces import write_traces

ALPHA = 0.02
TAP = "layer.4"


@pytest.fixture(autouse=True)
def undiagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the verdict counts here, and looking for a cause takes most of the time."""
    monkeypatch.setattr(auditing, "diagnose", lambda items, statistic, rng, **_: Diagnosis(code="forward_pass"))


def secret(number: int) -> bytes:
    return number.to_bytes(32, "little")


def answered(traces: Sequence[Trace]) -> list[Trace]:
    """What comes with the responses: of all taps' fingerprints, the roots alone."""
    return [with_root(trace, kept(trace), secret(i)) for i, trace in enumerate(traces)]


def opened(traces: Sequence[Trace], tap: str = TAP) -> list[Trace]:
    """What comes once the tap was named."""
    return [with_opening(trace, kept(trace), secret(i), tap) for i, trace in enumerate(traces)]


def kept(trace: Trace) -> Any:
    return fingerprint_of(trace, SPEC)


def openings(traces: Sequence[Trace], tap: str = TAP) -> Openings:
    return Openings(tap=tap, roots={trace.id: root_of(trace.extra[KEY]) for trace in answered(traces)})


def run(printed: Recorded, traces: Sequence[Trace], against: Openings) -> tuple[Finding, FingerprintSummary]:
    finding = audit(list(traces), printed.reference, printed.calibration, ALPHA, fingerprints=against)
    assert finding.fingerprints is not None
    return finding, finding.fingerprints


@pytest.mark.parametrize("tap", SPEC.taps)
def test_an_honest_opening_is_consistent(printed: Recorded, tap: str) -> None:
    honest = printed["v1"]
    finding, told = run(printed, opened(honest, tap), openings(honest, tap))
    assert finding.verdict is Verdict.CONSISTENT
    assert (told.sequences, told.missing, told.speaks) == (16, 0, None)
    assert told.spec == SPEC.alone(tap).digest().hex()
    assert any(f"Tap {tap} was named only after" in text for text in finding.assumptions)


def test_a_response_shows_no_fingerprint(printed: Recorded) -> None:
    sent = answered(printed["v1"])[0]
    assert fingerprint_of(sent) is None and set(sent.extra[KEY]) == {"root"}


def test_an_opened_tap_is_compared_as_if_it_were_the_only_one(printed: Recorded) -> None:
    """int4 from layer 5 on: what comes before is honest, and only the tap after it shows that."""
    traces = stamped(provider(bits=4, layers=(5,)), printed["v1"])
    late, told = run(printed, opened(traces, "final"), openings(traces, "final"))
    assert late.verdict is Verdict.DIVERGENT and (told.speaks, told.missing) == ("fingerprints", 0)
    early, told = run(printed, opened(traces, "layer.4"), openings(traces, "layer.4"))
    assert early.verdict is Verdict.CONSISTENT and told.missing == 0


def test_taps_made_up_after_the_question_do_not_open_the_root(printed: Recorded) -> None:
    """Committed to a cheap run, then the honest tap is computed and sent with a root and a path of its own."""
    cheap, honest = printed["int4 weights"], printed["v1"]
    finding, told = run(printed, opened(honest), openings(cheap))
    assert finding.verdict is Verdict.UNDECIDED
    assert (told.sequences, told.missing, told.p_value) == (0, 16, None)
    assert all("opening: its root is" in reason for reason in told.reasons.values())


def changed(**fields: Any) -> Callable[[Trace], Trace]:
    return lambda trace: replace(trace, extra={**trace.extra, KEY: {**trace.extra[KEY], **fields}})


BAD: dict[str, tuple[Callable[[Trace], Trace], str]] = {
    "not opened": (lambda t: replace(t, extra={**t.extra, "fingerprint": None}), "fingerprint: missing"),
    "no commitment": (lambda t: replace(t, extra={**t.extra, KEY: None}), "commitment: missing"),
    "a list": (lambda t: replace(t, extra={**t.extra, KEY: []}), "commitment: expected an object"),
    "unknown field": (changed(more=1), "commitment.'more': not a field"),
    "another tap": (changed(tap=0), "commitment.tap: got 0, expected 2"),
    "no number": (changed(tap=True), "commitment.tap: got True"),
    "no salt": (changed(salt=None), "commitment.salt: expected 64"),
    "short salt": (changed(salt="00"), "commitment.salt: expected 64"),
    "not hexadecimal": (changed(salt="z" * 64), "commitment.salt: expected 64"),
    "wrong salt": (changed(salt="0" * 64), "opening: its root is"),
    "no siblings": (changed(siblings=[]), "opening.siblings: got 0, expected 1"),
    "siblings of another kind": (changed(siblings={}), "commitment.siblings: expected a list"),
    "too many siblings": (changed(siblings=["0" * 64] * 7), "commitment.siblings: expected a list of at most 6"),
    "a number for a sibling": (changed(siblings=[3]), "commitment.siblings[0]: expected 64"),
    "all taps": (
        lambda t: replace(t, extra={**t.extra, "fingerprint": {"spec": to_dict(SPEC), "data": ""}}),
        "first that differs: taps",
    ),
}  # fmt: skip
"""What a trace may hold in place of an opening, and what is said of it."""


def test_bad_openings_are_missing_and_cannot_pass(printed: Recorded) -> None:
    """One of each kind: each is missing for its reason, the rest is compared, and nothing is consistent."""
    honest = printed["v1"]
    kinds = dict(zip([t.id for t in honest], BAD, strict=False))
    traces = [BAD[kinds[t.id]][0](t) if t.id in kinds else t for t in opened(honest)]
    finding, told = run(printed, traces, openings(honest))
    assert finding.verdict is Verdict.UNDECIDED
    assert (told.sequences, told.missing) == (16 - len(BAD), len(BAD))
    for name, kind in kinds.items():
        assert BAD[kind][1] in told.reasons[name], kind
    assert finding.tokens_scored == finding.tokens_requested


def test_a_root_that_never_came(printed: Recorded) -> None:
    honest = printed["v1"]
    full = openings(honest)
    some = Openings(tap=TAP, roots=dict(list(full.roots.items())[:12]))
    finding, told = run(printed, opened(honest), some)
    assert finding.verdict is Verdict.UNDECIDED and told.missing == 4
    assert set(told.reasons.values()) == {"commitment.root: none was received with the response"}


def test_bad_openings_hide_nothing(printed: Recorded) -> None:
    """Tokens are tested all the same."""
    finding, told = run(printed, printed["int4"], openings(printed["int4"]))
    assert finding.verdict is Verdict.DIVERGENT and told.speaks == "tokens" and told.missing == 16


def test_what_cannot_be_asked_for(printed: Recorded) -> None:
    honest = printed["v1"]
    with pytest.raises(FingerprintError, match=r"tap: got 'layer\.3', expected one of final, layer\.1, layer\.4"):
        run(printed, opened(honest), Openings(tap="layer.3", roots={}))
    bare = replace(printed.calibration, fingerprints=None)
    with pytest.raises(CalibrationError, match="fingerprints: required"):
        audit(opened(honest), printed.reference, bare, fingerprints=openings(honest))


def test_a_single_tap_needs_no_siblings(printed: Recorded) -> None:
    """What vLLM's provider sends: one tap, whose leaf is the root, and no key for siblings."""
    one = SPEC.alone("final")
    alone = fingerprint_of(opened(printed["v1"][:1], "final")[0], one)
    assert alone is not None
    sent = changed(siblings=[])(with_opening(printed["v1"][0], alone, secret(1), "final"))
    del sent.extra[KEY]["siblings"]
    Openings(tap="final", roots={sent.id: root_of(sent.extra[KEY])}).check(sent, one)
    with pytest.raises(FingerprintError, match="opening: its root is"):
        Openings(tap="final", roots={sent.id: bytes(32)}).check(sent, one)


def test_the_command_line(printed: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    honest = printed["v1"]
    write_traces(tmp_path / "received.jsonl", answered(honest))
    write_traces(tmp_path / "opened.jsonl", opened(honest))
    write_calibration(tmp_path / "c.json", printed.calibration)
    audit_it = ["audit", str(tmp_path / "opened.jsonl"), "--reference", f"evidence:{printed.file}", "--quiet"]
    audit_it += ["--calibration", str(tmp_path / "c.json"), "--alpha", str(ALPHA), "--json", str(tmp_path / "f.json")]
    both = ["--opened", TAP, "--roots", str(tmp_path / "received.jsonl")]
    assert main([*audit_it, *both]) == 0
    told = json.loads((tmp_path / "f.json").read_text())
    assert told["fingerprints"]["sequences"] == 16
    assert main([*audit_it, *both[:2]]) == 2
    assert "--opened and --roots: give both" in capsys.readouterr().err
    assert main([*audit_it, *both, "--fingerprints", "off"]) == 2
    assert "--opened: got --fingerprints off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no roots"),
        ('{"id": "a"}', "holds no roots"),
        ("[]", "1: id: expected a string"),
        ('{"id": 3}', "1: id: expected a string"),
        ('{"id": "a", "commitment": {"root": "00"}}', "1: commitment.root: expected 64"),
        ('{"id": "a", "commitment": []}', "1: commitment: expected an object"),
        ('{"id": "a"}\n{"id": "a"}', "2: id: 'a' occurs twice"),
        ("{", "1: JSON"),
    ],
)
def test_roots_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "roots.jsonl").write_text(text)
    with pytest.raises(TraceError, match=message):
        read_roots(tmp_path / "roots.jsonl")


def test_roots_alone_are_enough(tmp_path: Path) -> None:
    """Of a server's answer about commitments, with the ids that the verifier knows."""
    (tmp_path / "r.jsonl").write_text(json.dumps({"id": "a", "commitment": {"root": "0a" * 32}}) + "\n")
    assert read_roots(tmp_path / "r.jsonl") == {"a": b"\x0a" * 32}
