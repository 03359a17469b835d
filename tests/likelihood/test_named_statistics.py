"""The field's other statistics: by hand, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from makers import contenders, scores_of
from veridifr.named_statistics import NAMES, NamedStatistics, fit_named, hard_margin
from veridifr.scores import Scores, Status

IN = -np.inf


def three_tokens() -> Scores:
    """One that matches, one that loses by 0.3, one that lies 0.02 outside the reference's set."""
    found = contenders([[0.0, -1.0], [-0.3, 0.0], [0.0, -1.0]], [[-1.0, IN], [-1.0, IN], [0.02, IN]], [0, 0, 0])
    return replace(
        scores_of(found, 3, logprob=-2.0),
        gap_T=np.array([1.0, -0.3, -0.02]),
        match_T=np.array([True, False, False]),
        rank_T=np.array([0, 4, 1], dtype=np.int32),
    )


def test_by_hand() -> None:
    found = NamedStatistics(clip=0.2, finite_clip=0.25, sigma=0.1).prefix_scores(three_tokens(), [1, 3])
    turned = [-norm.logcdf(0.0), -norm.logcdf(-0.3 / (0.1 * np.sqrt(2))), 20.0]
    expected = {
        "mean_clipped_margin": (0.0, 0.4),
        "finite_clipped_margin": (0.0, 0.27),
        "paper_likelihood": (turned[0], sum(turned)),
        "match_rate": (0.0, 2.0),
        "cross_entropy": (2.0, 6.0),
        "rank": (0.0, 5.0),
    }
    assert tuple(expected) == NAMES
    np.testing.assert_allclose(found, np.array(list(expected.values())).T, atol=1e-6)


def test_tokens_that_are_not_scored_add_nothing() -> None:
    scores = three_tokens()
    scores.status_T[1:] = Status.BOUND
    values = NamedStatistics(clip=0.2, finite_clip=0.25, sigma=0.1).token_values(scores)
    assert not values[1:].any()
    assert values[0].any()


def test_clips_are_the_honest_percentile_of_what_is_finite() -> None:
    scores = three_tokens()
    found = fit_named([scores] * 4, 0.1)
    assert found.clip == pytest.approx(np.quantile([0.0, 0.3] * 4, 0.999))
    assert found.finite_clip == pytest.approx(np.quantile([0.0, 0.3, 0.02] * 4, 0.999))
    assert hard_margin(scores).tolist() == [0.0, 0.3, np.inf]


def test_nothing_to_fit_is_refused() -> None:
    scores = three_tokens()
    scores.status_T[:] = Status.MISSING
    with pytest.raises(ValueError, match="no token is scored"):
        fit_named([scores], 0.1)
