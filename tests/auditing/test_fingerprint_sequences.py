"""Sequential audits with fingerprints: two tests over one order, each at alpha / 2, and either ends the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from printed import SPEC

from recorded import Recorded
from veridifr import auditing, report
from veridifr.auditing import audit
from veridifr.betting import Sequential
from veridifr.errors import CalibrationError
from veridifr.finding import Diagnosis, Finding, FingerprintSummary, SequentialSummary, Verdict
from veridifr.fingerprint_judging import settle
from veridifr.fingerprint_null import FingerprintNull, NullSequence, NullStack
from veridifr.fingerprint_stopping import Prints
from veridifr.fingerprints import Openings, fingerprint_of, with_opening, with_root
from veridifr.fingerprints.opened import KEY, root_of
from veridifr.replay import Replayer
from veridifr.trace import Trace

ALPHA = 0.1


@pytest.fixture(autouse=True)
def undiagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the verdict counts here, and looking for a cause takes most of the time."""
    monkeypatch.setattr(auditing, "diagnose", lambda items, statistic, rng, **_: Diagnosis(code="forward_pass"))


def run(printed: Recorded, traces: Sequence[Trace], **options: Any) -> tuple[Finding, FingerprintSummary]:
    options.setdefault("sequential", True)
    finding = audit(list(traces), printed.reference, printed.calibration, ALPHA, **options)
    value = report.to_json(finding)
    jsonschema.Draft202012Validator(report.schema()).validate(value)
    assert report.from_json(value) == finding
    assert len(finding.results) == finding.sequences
    assert finding.fingerprints is not None
    return finding, finding.fingerprints


def ended(finding: Finding) -> SequentialSummary:
    assert finding.test is not None and finding.test.sequential is not None
    return finding.test.sequential


def test_fingerprints_end_an_audit_that_the_tokens_leave_open(printed: Recorded) -> None:
    finding, told = run(printed, printed["int4 weights"], fingerprints="required")
    assert finding.verdict is Verdict.DIVERGENT
    assert (told.speaks, told.tap, told.missing) == ("fingerprints", "layer.1", 0)
    assert told.p_value is not None and told.p_value <= ALPHA / 2 < told.tokens_p_value
    assert finding.p_value == pytest.approx(2 * told.p_value)
    assert ended(finding).status == "stopped"
    assert finding.sequences == told.sequences == ended(finding).n < 16


def test_an_honest_provider_is_not_accused(printed: Recorded) -> None:
    finding, told = run(printed, printed["v1"], sequential=Sequential(give_up=False))
    assert finding.verdict in (Verdict.CONSISTENT, Verdict.UNDECIDED)
    assert (told.speaks, told.missing, told.sequences) == (None, 0, 16)
    assert ended(finding).status == "spent"


def test_tokens_end_it_where_the_fingerprints_are_honest(printed: Recorded) -> None:
    finding, told = run(printed, printed["int4"], sequential=Sequential(give_up=False))
    assert finding.verdict is Verdict.DIVERGENT
    assert told.speaks == "tokens" and told.tokens_p_value <= ALPHA / 2


def test_what_is_missing_moves_no_account_and_cannot_pass(printed: Recorded) -> None:
    traces = [replace(t, extra={}) if i % 2 else t for i, t in enumerate(printed["v1"])]
    finding, told = run(printed, traces, sequential=Sequential(give_up=False))
    assert finding.verdict is Verdict.UNDECIDED
    assert (told.sequences, told.missing, told.speaks) == (8, 8, None)
    none, told = run(printed, [replace(t, extra={}) for t in printed["v1"]], fingerprints="required")
    assert none.verdict is Verdict.UNDECIDED and told.p_value is None


def test_going_on_is_the_same_audit(printed: Recorded) -> None:
    """What was decided on the first purchase stays so, whatever is bought after it."""
    first, told = run(printed, printed["int4 weights"])
    both = [*printed["int4 weights"], *(replace(t, id=f"{t.id}/again") for t in printed["v1"])]
    again, later = run(printed, both, sequential=Sequential(batches=(16, 16)))
    assert again.results == first.results and later == told


def test_openings(printed: Recorded) -> None:
    kept = [(t, fingerprint_of(t, SPEC), bytes(32)) for t in printed["int4 weights"]]
    roots = {t.id: root_of(with_root(t, f, s).extra[KEY]) for t, f, s in kept if f is not None}
    traces = [with_opening(t, f, s, "final") for t, f, s in kept if f is not None]
    finding, told = run(printed, traces, fingerprints=Openings(tap="final", roots=roots))
    assert finding.verdict is Verdict.DIVERGENT and told.speaks == "fingerprints"
    swapped = dict(zip(roots, [*list(roots.values())[1:], bytes(32)], strict=True))
    _, told = run(printed, traces, fingerprints=Openings(tap="final", roots=swapped))
    assert told.sequences == 0 and all("its root is" in reason for reason in told.reasons.values())


def test_off(printed: Recorded) -> None:
    finding = audit(
        printed["int4 weights"], printed.reference, printed.calibration, ALPHA, sequential=True, fingerprints="off"
    )
    assert finding.fingerprints is None and ended(finding).status != "stopped"


def synthetic(printed: Recorded, scores: Sequence[float]) -> Prints:
    """With one stack whose sequences have these scores, at the first edge alone."""
    settled = settle("required", [], printed.calibration, Replayer(printed.reference))
    assert settled.null is not None
    sequences = tuple(NullSequence(id=str(i), scores=((score,),)) for i, score in enumerate(scores))
    null = FingerprintNull(
        spec=SPEC, scales=settled.null.scales, stacks=(NullStack(name="honest", sequences=sequences),)
    )
    return Prints(settled=settled, null=null, sent={})


def test_the_error_rate_holds_whatever_the_stopping(printed: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 honest audits at 0.05, each looked at after every sequence; deviating ones are found."""
    rejected, found = 0, 0
    names = [str(i) for i in range(24)]
    for seed in range(300):
        rng = np.random.default_rng(seed)
        prints = synthetic(printed, rng.normal(size=40).tolist())
        for shift in (0.0, 4.0):
            scores = dict(zip(names, rng.normal(shift, size=24).tolist(), strict=True))
            state = prints.begin([0] * 24, names, 0.05, Sequential(seed=seed))
            monkeypatch.setattr(type(state), "_score", lambda self, name, found, place, scores=scores: scores[name])
            for name in names:
                state = state.after(name, object(), 0)  # type: ignore[arg-type]
                if state.rejected:
                    break
            rejected += state.rejected and shift == 0.0
            found += state.rejected and shift == 4.0
    assert rejected <= 27  # P(more than 27 of 300 at rate 0.05) is 0.001
    assert found >= 290


def test_honest_sequences_that_are_too_short(printed: Recorded) -> None:
    with pytest.raises(CalibrationError, match="fingerprints: some stack's sequences are too short"):
        synthetic(printed, [0.0] * 20).begin([3] * 4, list("abcd"), 0.05, Sequential())
