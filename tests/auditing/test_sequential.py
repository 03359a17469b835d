"""Audits that stop once they are decided: fewer sequences replayed, the same verdicts, and no second chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from recorded import Recorded
from veridifr import report
from veridifr.auditing import audit
from veridifr.betting import Sequential
from veridifr.calibration import Calibration
from veridifr.calibration_io import from_dict, to_dict
from veridifr.errors import TraceError
from veridifr.finding import Finding, Verdict
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.stats import audit_order
from veridifr.stopping import BLOCK, purchases
from veridifr.trace import Trace


class Counting(Replayer):
    """Counts what is replayed."""

    replayed = 0

    def map(self, planned: Sequence[Planned], work: Any, *, label: str) -> Iterator[tuple[Planned, Any]]:
        self.replayed += len(planned)
        return super().map(planned, work, label=label)


def run(recorded: Recorded, traces: list[Trace], **options: Any) -> Finding:
    options.setdefault("sequential", True)
    finding = audit(traces, recorded.reference, options.pop("calibration", recorded.calibration), **options)
    value = report.to_json(finding)
    jsonschema.Draft202012Validator(report.schema()).validate(value)
    assert report.from_json(value) == finding
    assert len(finding.results) == finding.sequences
    assert "sequential test" in report.to_text(finding)
    assert report.to_html([finding])
    return finding


@pytest.mark.parametrize("name", ["int4", "temp1.1"])
def test_a_deviating_provider_is_found_early(recorded: Recorded, name: str) -> None:
    replayer = Counting(recorded.reference)
    finding = run(recorded, recorded[name], replayer=replayer)
    assert finding.verdict is Verdict.DIVERGENT
    assert finding.diagnosis.code != "none"  # a cause is sought, though so few sequences may leave it open
    assert finding.p_value is not None and finding.p_value <= finding.alpha
    assert finding.test is not None and finding.test.sequential is not None
    ended = finding.test.sequential
    assert ended.status == "rejected" and ended.e_value == pytest.approx(1 / finding.alpha)
    assert ended.ordered == 24 and ended.n < 20
    assert finding.sequences == ended.n
    assert ended.n <= replayer.replayed <= ended.n + BLOCK - 1
    assert [r.id for r in finding.results] == list(audit_order(0, [t.id for t in recorded[name]])[: ended.n])
    assert f"decided after {ended.n} of 24 sequences" in finding.reason


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_an_honest_provider_is_not_accused(recorded: Recorded, name: str) -> None:
    finding = run(recorded, recorded[name])
    assert finding.verdict is Verdict.CONSISTENT
    assert finding.test is not None and finding.test.sequential is not None and finding.test.power is not None
    assert finding.test.power >= 0.9
    assert finding.test.sequential.status in ("given up", "spent")
    assert finding.coverage == 1.0


def test_looking_on_uses_the_whole_order(recorded: Recorded) -> None:
    finding = run(recorded, recorded["v1"], sequential=Sequential(give_up=False))
    assert finding.test is not None and finding.test.sequential is not None
    assert (finding.test.sequential.status, finding.test.sequential.n) == ("spent", 24)
    assert finding.test.sequential.floor == 0.0
    assert finding.verdict is Verdict.CONSISTENT


def test_without_a_fit_part_nothing_is_cleared(recorded: Recorded) -> None:
    """The first format has none; a provider that deviates is found by the general bets all the same."""
    bare = replace(recorded.calibration, stacks=tuple(replace(stack, fit=()) for stack in recorded.calibration.stacks))
    finding = run(recorded, recorded["v1"], calibration=bare)
    assert finding.verdict is Verdict.UNDECIDED
    assert "the calibration cannot say what would have been found" in finding.reason
    assert finding.next_step == "Make a calibration with more sequences."
    assert run(recorded, recorded["int4"], calibration=bare).verdict is Verdict.DIVERGENT


def test_too_few_sequences_are_undecided_and_going_on_is_the_same_audit(recorded: Recorded) -> None:
    """What was seen of the first purchase stays as it was when a second one is added."""
    first = run(recorded, recorded["v1"][:3])
    assert first.verdict is Verdict.UNDECIDED
    assert first.test is not None and first.test.sequential is not None
    assert first.test.sequential.status == "spent"
    assert first.next_step is not None and first.next_step.startswith("Go on with about ")
    both = run(recorded, recorded["v1"], sequential=Sequential(batches=(3, 21)))
    assert [r.id for r in both.results[:3]] == [r.id for r in first.results]
    assert [r.score for r in both.results[:3]] == [r.score for r in first.results]
    assert both.test is not None and both.test.sequential is not None
    assert both.test.sequential.floor == first.test.sequential.floor
    early = run(recorded, recorded["int4"])
    assert early.test is not None and early.test.sequential is not None
    again = run(recorded, recorded["int4"] + recorded["v1"], sequential=Sequential(batches=(24, 24)))
    assert again.results == early.results and again.p_value == early.p_value


def test_batches_that_do_not_fit_are_refused(recorded: Recorded) -> None:
    with pytest.raises(TraceError, match=r"sequential\.batches: got 9 sequences in 2, the traces are 24"):
        run(recorded, recorded["v1"], sequential=Sequential(batches=(3, 6)))


def test_what_never_came_counts_against_coverage(recorded: Recorded) -> None:
    honest = recorded["v1"]
    finding = run(recorded, honest[:20], requests=honest, sequential=Sequential(give_up=False))
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.reason.startswith("Only 83.3% of the tokens")
    assert finding.coverage == pytest.approx(20 / 24)
    assert {r.id for r in finding.results if r.reason == "absent from the traces"} == {t.id for t in honest[20:]}


def test_what_never_came_moves_no_account(recorded: Recorded) -> None:
    """The same ranks with and without requests that the provider left out."""
    honest = recorded["int4"]
    alone, asked = run(recorded, honest[:16]), run(recorded, honest[:16], requests=honest)
    assert alone.test is not None and asked.test is not None
    assert alone.test.sequential == asked.test.sequential


def test_the_order_is_by_purchase_and_seed() -> None:
    planned = [Planned(id=str(i), trace=None, end=0, tokens=1) for i in range(6)]
    ids = [str(i) for i in range(5)]  # the last was asked for and never came
    found = purchases(planned, ids, Sequential(seed=7, batches=(2, 3)))
    assert [[item.id for item in batch] for batch in found] == [
        list(audit_order(7, ["0", "1"])),
        list(audit_order(7, ["2", "3", "4", "5"])),
    ]


def test_lengths_are_strata(recorded: Recorded) -> None:
    mixed = recorded["v1"][:12] + recorded["short"][12:]
    finding = run(recorded, mixed, sequential=Sequential(give_up=False))
    assert finding.verdict in (Verdict.CONSISTENT, Verdict.UNDECIDED)
    assert finding.test is not None and finding.test.sequential is not None
    assert finding.test.sequential.n == 24
    for stack, own in zip(finding.test.stacks, recorded.calibration.stacks, strict=True):
        assert stack.sequences <= len(own.sequences)


def shuffled(calibration: Calibration, seed: int) -> tuple[Calibration, list[float]]:
    """A synthetic stack of normal scores, and scores of an honest audit from the same distribution."""
    rng = np.random.default_rng(seed)
    value = to_dict(calibration)
    value["edges"], value["stacks"] = [80], value["stacks"][:1]
    for part in ("fit", "sequences"):
        for sequence in value["stacks"][0][part]:
            z = float(rng.normal())
            sequence.update(tokens=80, surprise=[1.0], scores=[z], simulated=[[z + e] for e in value["effects"]])
    return from_dict(value), rng.normal(size=24).tolist()


def test_the_error_rate_holds_whatever_the_stopping(recorded: Recorded) -> None:
    """300 honest audits on synthetic calibrations at alpha 0.05, each looked at after every sequence."""
    from veridifr.betting import design

    rejected = 0
    for seed in range(300):
        calibration, scores = shuffled(recorded.calibration, seed)
        fixed = design(calibration, [0] * 24, 0.05, Sequential(seed=seed))
        names = [str(i) for i in range(24)]
        state = fixed.test.start(fixed.honest, names)
        for name, score in zip(names, scores, strict=True):
            state = fixed.test.update(state, name, score, 0)
        rejected += fixed.test.outcome(state).status == "rejected"
    assert rejected <= 27  # P(more than 27 of 300 at rate 0.05) is 0.001
