"""Verdicts on real traces of a GPU: what each one takes, and what the finding says with it."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Any

import jsonschema
import numpy as np
import pytest

from recorded import Recorded, cut
from veridifr import report
from veridifr.auditing import audit
from veridifr.calibration_io import read_calibration
from veridifr.demo import DATA
from veridifr.finding import Finding, NotConsistent, Verdict
from veridifr.judging import COVERAGE, POWER
from veridifr.statistic import SPREAD, LikelihoodRatio
from veridifr.trace import Trace


def run(recorded: Recorded, traces: list[Trace], **options: Any) -> Finding:
    return audit(traces, recorded.reference, options.pop("calibration", recorded.calibration), **options)


def complete(finding: Finding) -> dict[str, Any]:
    """The finding's JSON, after checks that hold for every verdict."""
    value = report.to_json(finding)
    jsonschema.Draft202012Validator(report.schema()).validate(value)
    assert report.from_json(value) == finding
    assert report.to_text(finding)
    assert sum(finding.tokens_by_status.values()) == finding.tokens_requested + finding.tokens_by_status["forced"]
    assert finding.tokens_by_status["scored"] == finding.tokens_scored
    assert len(finding.results) == finding.sequences
    assert sum(result.reason is not None for result in finding.results) == finding.sequences_unsupported
    assert set(finding.provenance.settings) >= {"dtype", "tail_mass"}
    return value


@pytest.mark.parametrize(("name", "contract"), [("v1", "vllm-v1-cuda-exp32"), ("v2", "vllm-v2-e")])
def test_an_honest_provider_is_consistent(recorded: Recorded, name: str, contract: str) -> None:
    finding = run(recorded, recorded[name])
    value = complete(finding)
    assert (value["verdict"], finding.contract) == ("consistent", contract)
    assert finding.exact_match is not None and finding.exact_match > 0.99
    assert finding.p_value is not None and finding.p_value > 0.05
    assert finding.test is not None
    assert finding.p_value == max(stack.p_value for stack in finding.test.stacks)
    assert [stack.name for stack in finding.test.stacks] == ["calibration.v1", "calibration.v2"]
    assert finding.test.permutations >= 10 / finding.alpha
    assert finding.test.power is not None and finding.test.power >= POWER
    assert finding.test.further_sequences == 0
    assert (finding.coverage, finding.tokens_requested) == (1.0, 24 * 80)
    assert finding.next_step is None
    assert finding.diagnosis.code == "none"
    assert finding.worst_tokens == ()
    finding.require_consistent()


@pytest.mark.parametrize(("name", "code"), [("int4", "forward_pass"), ("temp1.1", "temperature")])
def test_a_deviating_provider_is_divergent(recorded: Recorded, name: str, code: str) -> None:
    finding = run(recorded, recorded[name])
    value = complete(finding)
    assert (value["verdict"], finding.diagnosis.code) == ("divergent", code)
    assert finding.p_value is not None and finding.p_value <= finding.alpha
    assert finding.diagnosis.sentence
    assert 1 <= len(finding.worst_tokens) <= 8
    margins = [token.margin for token in finding.worst_tokens]
    assert margins == sorted(margins, reverse=True) and margins[-1] > 0
    for token in finding.worst_tokens:
        (trace,) = [t for t in recorded[name] if t.id == token.sequence]
        assert trace.output_token_ids[token.step] == token.claimed_id != token.best_id
    noise = finding.effective_logit_noise
    assert noise.honest == recorded.calibration.statistic.sigma
    assert noise.interval is not None and noise.honest < noise.interval[0]
    with pytest.raises(NotConsistent, match="divergent"):
        finding.require_consistent()


def test_too_little_power_is_undecided_and_says_how_much_to_buy(recorded: Recorded) -> None:
    """Six short sequences are enough for the floor, not for a deviation of twice the honest noise."""
    calibration, _ = read_calibration(DATA / "demo" / "calibration.json")
    finding = run(recorded, recorded["v1"][:6], calibration=calibration)
    complete(finding)
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.test is not None and finding.test.power is not None and finding.test.power < POWER
    assert max(stack.floor for stack in finding.test.stacks) < finding.alpha
    assert finding.reason.startswith(f"Logit noise of {calibration.detect_sigma:.3g} would have shown")
    assert finding.test.further_sequences is not None and finding.test.further_sequences >= 1
    assert finding.next_step == f"Audit about {finding.test.further_sequences} further sequences of this length."
    assert finding.test.further_sequences > 1
    assert finding.diagnosis.code == "none"
    assert run(recorded, recorded["v1"], calibration=calibration).test.power > finding.test.power


@pytest.mark.parametrize("name", ["v1", "int4"])
@pytest.mark.parametrize(("count", "alpha"), [(1, 0.01), (1, 0.03), (2, 0.001), (3, 1e-4)])
def test_a_floor_above_alpha_decides_nothing(recorded: Recorded, name: str, count: int, alpha: float) -> None:
    """1/C(n+m, n): one audited sequence beside 20 honest ones has 21 arrangements, so p is never below 1/21."""
    finding = run(recorded, recorded[name][:count], alpha=alpha)
    complete(finding)
    assert finding.test is not None
    floors = [stack.floor for stack in finding.test.stacks]
    assert floors == pytest.approx([1 / comb(len(s.sequences) + count, count) for s in recorded.calibration.stacks])
    assert max(floors) > alpha
    assert finding.verdict is Verdict.UNDECIDED
    assert "So few sequences cannot give a p-value below" in finding.reason
    further = finding.test.further_sequences
    assert further is not None and further >= 1
    assert finding.next_step == f"Audit about {further} further sequence{'s' * (further > 1)} of this length."
    assert finding.p_value is not None and finding.p_value >= max(floors)


def test_too_little_coverage_is_undecided(recorded: Recorded) -> None:
    """23 of 24 sequences are 95.8 %, 22 are 91.7 %: `COVERAGE` lies between."""
    honest = recorded["v1"]
    assert run(recorded, honest[:23], requests=honest).verdict is Verdict.CONSISTENT
    finding = run(recorded, honest[:22], requests=honest)
    complete(finding)
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.coverage == pytest.approx(22 / 24) and finding.coverage < COVERAGE
    assert finding.reason == "Only 91.7% of the tokens asked for could be scored; 95% are needed."
    assert finding.next_step is not None
    assert finding.tokens_by_status["missing"] == 2 * 80


def test_low_coverage_does_not_hide_a_divergence(recorded: Recorded) -> None:
    assert run(recorded, recorded["int4"][:12], requests=recorded["int4"]).verdict is Verdict.DIVERGENT


def test_nothing_returned_is_no_evidence(recorded: Recorded) -> None:
    finding = run(recorded, [], requests=recorded["v1"])
    value = complete(finding)
    assert value["verdict"] == "no_evidence"
    assert (finding.p_value, finding.test, finding.contract, finding.exact_match) == (None, None, None, None)
    assert (finding.tokens_requested, finding.tokens_scored) == (24 * 80, 0)
    assert finding.effective_logit_noise.estimate is None
    assert all(result.reason == "absent from the traces" for result in finding.results)


def test_empty_outputs_are_no_evidence(recorded: Recorded) -> None:
    empty = [replace(trace, output_token_ids=np.zeros(0, dtype=np.int32)) for trace in recorded["v1"]]
    finding = run(recorded, empty)
    complete(finding)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.reason == "output_token_ids: empty"


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"name": "nobody's engine"}, "engine.name"),
        ({"version": "99.0"}, "engine.version"),
        ({"version": None}, "engine.version"),
        ({"speculative_decoding": True}, "speculative_decoding"),
        ({"multiprocessors": None, "device": None}, "engine.device"),
        ({"sampler": "vllm-v9"}, "sampler"),
    ],
)
def test_what_cannot_be_replayed_is_unsupported(recorded: Recorded, change: dict[str, Any], setting: str) -> None:
    """Tokens of other noise than their seeds make: those that fit a sampler would name it themselves."""
    traces = [
        replace(t, engine=replace(t.engine, **change), sampling=replace(t.sampling, seed=700_000 + i))
        for i, t in enumerate(recorded["v1"])
    ]
    finding = run(recorded, traces)
    value = complete(finding)
    assert value["verdict"] == "unsupported"
    assert setting in finding.reason
    assert "veridifr samplers" in str(finding.next_step)
    assert finding.sequences_unsupported == finding.sequences == 24
    assert (finding.p_value, finding.tokens_scored) == (None, 0)


def test_a_missing_seed_is_unsupported(recorded: Recorded) -> None:
    traces = [replace(trace, sampling=replace(trace.sampling, seed=None)) for trace in recorded["v1"]]
    finding = run(recorded, traces)
    complete(finding)
    assert finding.verdict is Verdict.UNSUPPORTED
    assert "seed" in finding.reason
    mixed = run(recorded, traces[:3] + recorded["v1"][3:])
    complete(mixed)
    assert (mixed.verdict, mixed.sequences_unsupported) == (Verdict.UNDECIDED, 3)
    assert [result.reason is None for result in mixed.results] == [False] * 3 + [True] * 21


def test_lengths_are_matched(recorded: Recorded) -> None:
    """Half of the outputs are short: no honest sequence stands in two strata."""
    mixed = recorded["v1"][:12] + [cut(trace, 24) for trace in recorded["short"][12:]]
    finding = run(recorded, mixed)
    complete(finding)
    assert finding.verdict is Verdict.CONSISTENT
    assert finding.test is not None
    for stack, own in zip(finding.test.stacks, recorded.calibration.stacks, strict=True):
        assert stack.sequences <= len(own.sequences)


def test_the_same_seed_gives_the_same_finding(recorded: Recorded) -> None:
    first, again, other = (run(recorded, recorded["int4"][:5], seed=seed) for seed in (3, 3, 4))
    settled = [replace(f, provenance=replace(f.provenance, created="")) for f in (first, again, other)]
    assert settled[0] == settled[1]
    assert other.verdict is first.verdict
    assert [r.score for r in first.results] == [r.score for r in other.results]


def test_prompts_of_the_calibration_are_said(recorded: Recorded) -> None:
    fresh, known = (run(recorded, recorded[name][:8]) for name in ("v1", "calibration.v1"))
    assert not any("also occur in the calibration" in text for text in fresh.assumptions)
    assert any("also occur in the calibration" in text for text in known.assumptions)


def test_another_model_name_is_said(recorded: Recorded) -> None:
    """The weights' digest decides whether a calibration fits; the name is only a name."""
    finding = run(recorded, [replace(trace, model="tb24m") for trace in recorded["v1"]])
    assert finding.verdict is Verdict.CONSISTENT
    assert any("'tb24m'" in text and "'tb7m'" in text for text in finding.assumptions)


def test_a_dense_model_has_the_usual_tail(recorded: Recorded) -> None:
    statistic = recorded.calibration.statistic
    assert isinstance(statistic, LikelihoodRatio)
    assert statistic.spread == SPREAD
