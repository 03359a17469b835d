"""Audits whose honest errors are shared out among sizes, from the calibration to the cause that is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recorded import DETECT, Recorded
from veridifr import fitting
from veridifr.auditing import audit
from veridifr.calibration import Calibration, HonestTraces, calibrate
from veridifr.calibration_io import read_calibration, write_calibration
from veridifr.statistic import LikelihoodRatio


@pytest.fixture(scope="module")
def shared(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """A calibration that takes shares whatever they gain (the model is dense), as its file says."""
    with pytest.MonkeyPatch.context() as patch:
        for threshold in ("_GAIN", "_SHARED_GAIN"):
            patch.setattr(fitting, threshold, float("-inf"))
        stacks = [HonestTraces(name=name, traces=recorded[name]) for name in ("calibration.v1", "calibration.v2")]
        made = calibrate(stacks, recorded.reference, detect_sigma=DETECT)
    path = tmp_path_factory.mktemp("shared") / "calibration.json"
    write_calibration(path, made)
    found, _ = read_calibration(path)
    assert isinstance(found.statistic, LikelihoodRatio)
    assert found.statistic.shares
    return found


@pytest.mark.parametrize(
    ("name", "verdict", "code"),
    [
        ("v1", "consistent", "none"),
        ("v2", "consistent", "none"),
        ("int4", "divergent", "forward_pass"),
        ("temp1.1", "divergent", "temperature"),
    ],
)
def test_verdicts_and_causes(recorded: Recorded, shared: Calibration, name: str, verdict: str, code: str) -> None:
    finding = audit(recorded[name], recorded.reference, shared)
    assert (finding.verdict.value, finding.diagnosis.code) == (verdict, code)


def test_another_share_is_another_score(recorded: Recorded, shared: Calibration) -> None:
    """The shares of the file are what scores are made with."""
    assert isinstance(shared.statistic, LikelihoodRatio)
    turned = replace(shared, statistic=replace(shared.statistic, shares=shared.statistic.shares[::-1]))
    first, other = (audit(recorded["v1"][:4], recorded.reference, calibration) for calibration in (shared, turned))
    assert [result.score for result in first.results] != [result.score for result in other.results]
