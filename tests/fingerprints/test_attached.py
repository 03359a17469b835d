"""A fingerprint in a trace: through files and back, and refused by the name of the field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from makers import make_trace, whole_rows
from veridifr.errors import FingerprintError
from veridifr.fingerprint_null import EFFECTS, Measured, fit_null, measure, prefix_scores, simulated_scores
from veridifr.fingerprints import ErrorScale, FingerprintSpec, fingerprint, fingerprint_of, with_fingerprint
from veridifr.fingerprints.attached import KEY
from veridifr.fingerprints.spec import to_dict
from veridifr.trace import Trace
from veridifr.traces import read_traces, write_traces

SPEC = FingerprintSpec(
    seed=3, hidden_size=12, k=4, encoding="wrapped2", taps=("layer.0", "final"), step_log2=(-3, -2), every=2
)
TOKENS = 5


def values(seed: int, tokens: int = TOKENS) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(SPEC.entries(tokens), SPEC.k)).astype(np.float32) for _ in SPEC.taps]


def stamped(seed: int = 0) -> Trace:
    trace = make_trace(range(3, 3 + TOKENS), name=f"s{seed}")
    return with_fingerprint(trace, fingerprint(SPEC, TOKENS, values(seed)))


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_through_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    traces = [replace(stamped(i), extra={**stamped(i).extra, "note": [1]}) for i in range(3)]
    write_traces(path, traces)
    read = list(read_traces(path))
    assert [t.extra for t in read] == [t.extra for t in traces]
    for got, sent in zip(read, traces, strict=True):
        assert fingerprint_of(got, SPEC) == fingerprint_of(sent) != None  # noqa: E711


def test_a_trace_without_one_has_none() -> None:
    assert fingerprint_of(make_trace()) is None
    assert fingerprint_of(replace(make_trace(), extra={KEY: None}), SPEC) is None


def test_only_for_the_whole_output() -> None:
    with pytest.raises(FingerprintError, match="fingerprint: covers 4 tokens, the output has 5"):
        with_fingerprint(stamped(), fingerprint(SPEC, 4, values(0, 4)))


GOOD = stamped().extra[KEY]
WRONG: list[tuple[Any, str]] = [
    (3, "fingerprint: got int, expected an object"),
    ({}, "fingerprint.spec: missing"),
    ({"spec": GOOD["spec"]}, "fingerprint.data: missing"),
    ({**GOOD, "x": 1}, "fingerprint.'x': not a field"),
    ({**GOOD, "spec": None}, "fingerprint.spec: got NoneType"),
    ({**GOOD, "spec": {**GOOD["spec"], "version": 2}}, "fingerprint.spec.version: got 2"),
    ({**GOOD, "spec": {**GOOD["spec"], "k": True}}, "fingerprint.spec.k: got True"),
    ({**GOOD, "spec": {**GOOD["spec"], "k": 3}}, "first that differs: k"),
    ({**GOOD, "data": "AAAA"}, "fingerprint.data: got 3 bytes"),
    ({**GOOD, "data": None}, "fingerprint.data: got NoneType"),
    ({**GOOD, "data": GOOD["data"][:-4] + "AAAA"}, "fingerprint.data: "),
]


@pytest.mark.parametrize(("value", "message"), WRONG)
def test_what_is_wrong_is_named(value: Any, message: str) -> None:
    with pytest.raises(FingerprintError) as error:
        fingerprint_of(replace(stamped(), extra={KEY: value}), SPEC)
    assert message in str(error.value)


def test_of_a_longer_output_only_what_is_evidence_is_compared() -> None:
    """The fingerprint covers the output as sent; an audit may take fewer of its tokens."""
    trace = stamped()
    short = replace(trace, output_token_ids=trace.output_token_ids[:3])
    evidence = whole_rows(short, np.zeros((3, 9)))
    own = np.stack(values(0))[:, :2]
    measured = measure(trace, replace(evidence, projections_AFK=own), SPEC)
    assert measured.tokens == 3 and measured.claimed_A[0].low_FK.shape == (2, 4)
    with pytest.raises(FingerprintError, match="tokens: got 5, expected the 3"):
        measure(replace(short, extra=trace.extra), replace(evidence, projections_AFK=own), SPEC)
    for wrong in (None, own[:1], own[:, :1], own[:, :, :2]):
        with pytest.raises(FingerprintError, match="evidence: holds no projections"):
            measure(trace, replace(evidence, projections_AFK=wrong), SPEC)
    with pytest.raises(FingerprintError, match="not finite"):
        measure(trace, replace(evidence, projections_AFK=own * np.float32(np.inf)), SPEC)


def test_scores_keep_their_order_and_are_bounded() -> None:
    """Row 0 is over all taps; the further off, the larger; never more than the logarithm of what a likelihood gives."""
    trace = stamped()
    evidence = whole_rows(trace, np.zeros((TOKENS, 9)))
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2, 3, 4)).astype(np.float32)
    scales = (ErrorScale(sigma=0.02), ErrorScale(sigma=0.04))
    sums = []
    for size in (0.0, 0.02, 0.1, 1.0):
        own = np.stack(values(0)) + np.float32(size) * noise
        found = prefix_scores(measure(trace, replace(evidence, projections_AFK=own), SPEC), SPEC, scales, [1, 2, 5])
        assert found.shape == (3, 3) and (np.abs(found) < 10).all()
        assert (found[:, 0] == found[:, 1]).all()  # tokens 0 and 1 share an entry
        sums.append(found[0, 2])
    assert sums == sorted(sums) and sums[0] < 0 < sums[-1]


def test_scales_come_from_the_fit_part() -> None:
    rng = np.random.default_rng(2)
    measured = []
    for seed in range(40):
        evidence = whole_rows(stamped(seed), np.zeros((TOKENS, 9)))
        errors = rng.normal(size=(2, 3, 4)) * np.array([0.05, 0.2])[:, None, None]
        own = (np.stack(values(seed)) + errors).astype(np.float32)
        measured.append(measure(stamped(seed), replace(evidence, projections_AFK=own), SPEC))
    null = fit_null(SPEC, [2, 5, 9], measured, [("one", measured[:3])])
    assert null is not None and to_dict(null.spec) == to_dict(SPEC)
    assert [scale.sigma for scale in null.scales] == pytest.approx([0.05, 0.2], rel=0.25)
    assert [len(one.scores) for one in null.stacks[0].sequences] == [3, 3, 3]
    assert all(len(row) == 2 for one in null.stacks[0].sequences for row in one.scores)
    assert fit_null(None, [2], [], []) is None


def test_the_documents_example_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "fingerprints.md").read_text("utf-8")
    value = json.loads(text.split("## In a trace", 1)[1].split("```json", 1)[1].split("```", 1)[0])
    found = fingerprint_of(replace(make_trace([7]), extra={KEY: value}))
    assert found is not None and found.payloads == (b"\xc9",)


def exact(seed: int = 0) -> Measured:
    """A fingerprint of which every code is that of the verifier's own projections."""
    evidence = replace(whole_rows(stamped(seed), np.zeros((TOKENS, 9))), projections_AFK=np.stack(values(seed)))
    return measure(stamped(seed), evidence, SPEC)


def test_simulated_scores_rise_with_the_size_of_errors() -> None:
    scales, effects = (ErrorScale(sigma=0.02), ErrorScale(sigma=0.04)), (1.0, 2.0, 4.0, 16.0)
    rng = np.random.default_rng(3)
    found = np.mean([simulated_scores(exact(seed), SPEC, scales, [1, 5], effects, rng) for seed in range(60)], axis=0)
    assert found.shape == (4, 2)
    assert (np.diff(found, axis=0) > 0).all()
    assert (found[0] < 0).all() and (found[-1] > 0).all()
    assert found[-1, 1] > found[-1, 0]


def test_simulated_honest_errors_score_as_honest_ones_do() -> None:
    """Once the honest size: the same mean as of errors drawn by hand, within 4 standard errors."""
    scales = (ErrorScale(sigma=0.02, spread=0.0), ErrorScale(sigma=0.04, spread=0.0))
    rng, drawn, own = np.random.default_rng(4), [], []
    for seed in range(300):
        drawn.append(simulated_scores(exact(seed), SPEC, scales, [5], [1.0], rng)[0, 0])
        errors = rng.normal(size=(2, 3, 4)) * np.array([0.02, 0.04])[:, None, None]
        moved = replace(exact(seed), own_AFK=(np.stack(values(seed)) + errors).astype(np.float32))
        own.append(prefix_scores(moved, SPEC, scales, [5])[0, 0])
    apart = np.sqrt((np.var(drawn) + np.var(own)) / 300)
    assert abs(np.mean(drawn) - np.mean(own)) < 4 * apart


def test_long_prefixes_are_not_simulated() -> None:
    null = fit_null(SPEC, [2, 5, 9], [exact(seed) for seed in range(40)], [("one", [exact(50)])])
    assert null is not None and null.effects == EFFECTS
    (one,) = null.stacks[0].sequences
    assert np.shape(one.simulated) == (len(EFFECTS), 2)  # 9 tokens are more than there are
    again = fit_null(SPEC, [2, 5, 9], [exact(seed) for seed in range(40)], [("one", [exact(50)])])
    assert again == null
    assert null.alone("final").effects == () and null.alone("final").stacks[0].sequences[0].simulated == ()
