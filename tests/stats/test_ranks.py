"""Smoothed ranks: answers by hand, a slow oracle, uniformity, refusals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from veridifr.stats import rank_paths, simulated_ranks, smoothed_rank
from veridifr.stats.ranks import joined, tie_breaker

SCORES = st.integers(-2, 2)


@pytest.mark.parametrize(
    ("score", "bag", "tie", "rank"),
    [
        (5.0, [1.0, 2.0, 3.0], 0.5, 0.5 / 4),  # above all: shares the first quarter with nothing
        (0.0, [1.0, 2.0, 3.0], 0.5, 3.5 / 4),
        (2.0, [1.0, 2.0, 3.0], 0.5, (1 + 0.5 * 2) / 4),
        (2.0, [2.0, 2.0, 2.0], 0.25, 0.25),  # all equal: the tie-breaker alone decides
        (7.0, [1.0], 0.0, 0.0),
    ],
)
def test_known_answers(score, bag, tie, rank):
    assert smoothed_rank(score, np.array(bag), tie) == pytest.approx(rank, abs=1e-15)


def oracle(audited, honest, ties):
    """Each score compared with each of the bag, in exact arithmetic."""
    bag, found = list(honest), []
    for score, tie in zip(audited, ties, strict=True):
        larger, equal = sum(other > score for other in bag), sum(other == score for other in bag)
        found.append(float((larger + Fraction(tie) * (equal + 1)) / (len(bag) + 1)))
        bag.append(score)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=6), st.lists(SCORES, min_size=1, max_size=6), st.integers(0, 2**32))
def test_one_by_one_and_all_at_once_agree_with_the_oracle(audited, honest, seed):
    ties = np.random.default_rng(seed).random((1, len(audited)))
    expected = oracle(audited, honest, ties[0].tolist())
    bag, found = np.sort(np.array(honest, dtype=float)), []
    for score, tie in zip(audited, ties[0], strict=True):
        found.append(smoothed_rank(score, bag, tie))
        bag = joined(bag, score)
        assert (np.diff(bag) >= 0).all()
    assert found == pytest.approx(expected, abs=1e-14)
    paths = rank_paths([audited], [honest], rng=np.random.default_rng(seed))
    assert paths[0].tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("draw", [np.random.Generator.standard_cauchy, lambda rng, size: rng.poisson(0.4, size)])
def test_honest_ranks_are_uniform_and_do_not_depend_on_each_other(draw):
    rng = np.random.default_rng(3)
    ranks = rank_paths(draw(rng, (3000, 4)), draw(rng, (3000, 5)), rng=rng)
    for step in range(4):
        assert kstest(ranks[:, step], "uniform").pvalue > 1e-3
    correlation = np.corrcoef(ranks.T)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 4.0 / np.sqrt(3000)
    # Were audited scores not added to the bag, all ranks would share the luck of one calibration.
    alone = np.stack([rank_paths(x[:, None], h, rng=rng)[:, 0] for x, h in _same_calibration(draw, rng)], axis=1)
    assert np.abs(np.corrcoef(alone.T)[np.triu_indices(4, 1)]).min() > 4.0 / np.sqrt(3000)


def _same_calibration(draw, rng):
    honest = draw(rng, (3000, 5))
    return [(draw(rng, 3000), honest) for _ in range(4)]


def test_simulated_ranks_are_those_of_drawn_scores():
    rng = np.random.default_rng(0)
    honest = simulated_ranks([1.0, 2.0], [1.0, 2.0], m=9, n=5, draws=2000, rng=rng)
    assert honest.shape == (2000, 5)
    assert kstest(honest.ravel(), "uniform").pvalue > 1e-3
    deviating = simulated_ranks([1.0, 2.0], [3.0], m=9, n=3, draws=50, rng=rng)
    assert (deviating[:, 0] < 1 / 10).all()
    assert (deviating < 3 / 10).all()  # a deviating score joins the bag, and ties with the next


def test_the_tie_breaker_is_derived_from_seed_and_number_alone():
    assert tie_breaker(5, 3) == tie_breaker(5, 3)
    assert len({tie_breaker(s, i) for s in range(3) for i in range(3)}) == 9
    assert kstest([tie_breaker(1, i) for i in range(500)], "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("audited", "honest", "said"),
    [
        ([[np.inf]], [[1.0]], "audited: 1 of 1 scores are not finite"),
        ([[1.0]], [[]], "honest: got no scores"),
        ([[1.0]], [[1.0], [2.0]], "audited holds 1 data sets and honest 2"),
    ],
)
def test_refusals(audited, honest, said):
    with pytest.raises(ValueError, match=said):
        rank_paths(audited, honest, rng=np.random.default_rng(0))
