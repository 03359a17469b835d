"""The ceiling that no detector of tokens passes, in benchmarks/decisions.py: what it counts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _decision_pauc as pauc

MISMATCHES = pauc.STATISTICS.index("match_rate")


def arrays(silent: int, count: int = 400) -> dict[str, np.ndarray]:
    """A set of which `silent` sequences have no mismatch, the others one at token 60."""
    scores = np.full((count, len(pauc.EDGES), len(pauc.STATISTICS)), 7.0)
    scores[..., MISMATCHES] = [0, 0, 1, 1, 1, 1, 1]
    scores[:silent, :, MISMATCHES] = 0
    return {"other/scores": scores, "other/fit": np.zeros(count, bool)}


def test_half_of_the_batches_without_a_mismatch_is_lost() -> None:
    found = pauc.ceilings(arrays(100))["other"]
    assert found["30"] == found["50"] == 0.5  # nothing differs there
    assert found["75"] == found["300"] == 1 - 0.25 / 2
    assert found["600"] > found["300"]  # two sequences, one of which has a mismatch more often


@pytest.mark.parametrize(("rate", "fewest"), [(0.001, 1609.4), (0.02, 80.47), (0.1, 16.09)])
def test_fewest_tokens_where_mismatches_come_at_a_constant_rate(rate: float, fewest: float) -> None:
    """1 - exp(-rate n)/2 is 0.9 at n = log(5)/rate, also before the first edge; between edges to the curve's bend."""
    rows = {str(n): 1 - np.exp(-rate * n) / 2 for n in pauc.TOKENS}
    assert pauc.fewest_tokens({"d": rows})["d"] == pytest.approx(fewest, rel=0.03)
    saved = {"d": {"tokens": {"mean_clipped_margin": 500.0}}, "e": {"tokens": {"mean_clipped_margin": None}}}
    found = pauc.ratio_ceilings({"d": fewest, "e": fewest}, saved)
    assert found == {"d": pytest.approx(500.0 / fewest), "e": None}
