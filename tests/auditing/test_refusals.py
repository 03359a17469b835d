"""What an audit refuses: each is an error that names the field, and none is a verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recorded import Recorded
from veridifr.auditing import audit
from veridifr.errors import CalibrationError, TraceError
from veridifr.finding import Verdict


@pytest.mark.parametrize("alpha", [0.0, -0.01, 0.5, 1.0, float("nan"), float("inf")])
def test_alpha_out_of_range(recorded: Recorded, alpha: float) -> None:
    with pytest.raises(TraceError, match=r"alpha: got .*, expected above 0 and below 0\.5"):
        audit(recorded["v1"], recorded.reference, recorded.calibration, alpha)


def test_duplicate_ids(recorded: Recorded) -> None:
    with pytest.raises(TraceError, match="id: 'v1/0' names more than one sequence"):
        audit([*recorded["v1"], recorded["v1"][0]], recorded.reference, recorded.calibration)


def test_duplicate_ids_among_requests(recorded: Recorded) -> None:
    """One of the two would count as absent, and the provider would be blamed for the verifier's slip."""
    requests = [*recorded["v1"], recorded["v1"][0]]
    with pytest.raises(TraceError, match="requests: id: 'v1/0' names more than one sequence"):
        audit(recorded["v1"], recorded.reference, recorded.calibration, requests=requests)


@pytest.mark.parametrize("requests", [None, []])
def test_no_traces_and_nothing_asked_for(recorded: Recorded, requests: list[Any] | None) -> None:
    with pytest.raises(TraceError, match="traces: got none, and no requests"):
        audit([], recorded.reference, recorded.calibration, requests=requests)


def test_traces_that_nobody_asked_for(recorded: Recorded) -> None:
    finding = audit(recorded["v1"], recorded.reference, recorded.calibration, requests=[])
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert (finding.sequences, finding.tokens_requested, finding.coverage) == (0, 0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "ab" * 32}, r"calibration: weights: made for abababababababab \(tb7m\), the reference has "),
        (
            {"reference_settings": {"dtype": "bfloat16"}},
            r"reference\.dtype: made with bfloat16, this audit uses float32",
        ),
        ({"reference_settings": {"tail_mass": 1e-3}}, r"reference\.tail_mass: made with 0\.001, this audit uses 1e-06"),
        ({"sampling": {"temperature": 0.7}}, r"sampling\.temperature: made for 0\.7, the traces claim 1\.0"),
        ({"sampling": {"top_k": None}}, r"sampling\.top_k: made for off, the traces claim 50"),
        ({"sampling": {"top_p": 0.9}}, r"sampling\.top_p: made for 0\.9, the traces claim 0\.95"),
        ({"sampling": {"min_p": 0.1}}, r"sampling\.min_p: made for 0\.1, the traces claim off"),
        ({"sampling": {"repetition_penalty": 1.1}}, r"sampling\.repetition_penalty: made for 1\.1, .* claim off"),
        ({"sampling": {"logit_bias": {"3": 1.0}}}, r"sampling\.logit_bias: made for .*, the traces claim off"),
    ],
)
def test_a_calibration_for_something_else(recorded: Recorded, change: dict[str, Any], message: str) -> None:
    own = recorded.calibration
    merged = {
        key: {**getattr(own, key), **value} if isinstance(value, dict) else value for key, value in change.items()
    }
    with pytest.raises(CalibrationError, match=message):
        audit(recorded["v1"], recorded.reference, replace(own, **merged))


def test_a_calibration_for_other_contracts(recorded: Recorded) -> None:
    only_v2 = replace(recorded.calibration, stacks=recorded.calibration.stacks[1:])
    with pytest.raises(CalibrationError, match="contract: made for vllm-v2-e, the traces run under vllm-v1-cuda-exp32"):
        audit(recorded["v1"], recorded.reference, only_v2)
    assert audit(recorded["v2"], recorded.reference, only_v2).verdict is Verdict.CONSISTENT


def test_ids_outside_the_vocabulary_cost_coverage(recorded: Recorded) -> None:
    traces = recorded["v1"]
    ids = np.array(traces[0].output_token_ids)
    ids[3] = 8192
    traces[0] = replace(traces[0], output_token_ids=ids)
    finding = audit(traces, recorded.reference, recorded.calibration)
    assert finding.results[0].reason is not None
    assert finding.sequences_unsupported == 1
