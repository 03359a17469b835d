"""Honest errors of sizes that are shared out: what is fitted, and what it tells apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_score import MAIN, SIGMA, SIZE, noisy, uneven

from veridifr.errors import FingerprintError
from veridifr.fingerprints import ErrorScale, combine, fit_scale, project, ratios, to_codes, to_intervals
from veridifr.fingerprints.score import SHARED_MULTIPLES, SHARED_SIZES, log_likelihood


def shared_at(place: int) -> tuple[float, ...]:
    return tuple(float(g == place) for g in range(len(SHARED_SIZES)))


@pytest.mark.parametrize("relative", [True, False])
def test_all_of_one_size_is_the_scale_without_spread(relative: bool) -> None:
    own, sensitivity = uneven(8, 12)
    known = sensitivity if relative else None
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(noisy(own, SIGMA), MAIN.seed, MAIN.k)))
    mine = project(own, MAIN.seed, MAIN.k)
    plain = ErrorScale(sigma=1.2 if relative else SIGMA, spread=0.0)
    place = int(np.argmin(np.abs(SHARED_SIZES - 1.0)))
    shared = ErrorScale(sigma=plain.sigma, shares=shared_at(place), relative=relative)
    found = ratios(intervals, mine, shared, sensitivity_F=sensitivity)
    honest = log_likelihood(intervals, mine, plain, 1.0, known)
    wanted = [log_likelihood(intervals, mine, plain, m, known) - honest for m in SHARED_MULTIPLES]
    np.testing.assert_allclose(found, np.stack(wanted, axis=1), atol=1e-9)


def flipped(seed: int, size: int, multiple: float = 1.0) -> tuple[Any, Any]:
    """Hidden states, and a provider's: one in twelve errs by many times the usual."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(size, SIZE))
    error = np.where(rng.random(size) < 1 / 12, 0.01 * np.exp2(rng.uniform(2, 4, size=size)), 0.01)
    return own, own + rng.normal(size=own.shape) * multiple * error[:, None]


def test_a_heavy_tail_is_shared_out() -> None:
    own, theirs = flipped(1, 3000)
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(theirs, MAIN.seed, MAIN.k)))
    unrelated = np.exp2(np.random.default_rng(3).uniform(-8, -4, size=len(own)))
    scale = fit_scale(intervals, project(own, MAIN.seed, MAIN.k), unrelated)
    assert not scale.relative  # sensitivities that explain nothing are left out
    shares = np.array(scale.shares)
    sizes = scale.sigma * SHARED_SIZES
    assert shares[sizes > 0.02].sum() == pytest.approx(1 / 12, abs=0.03)
    assert shares[(sizes > 0.007) & (sizes < 0.014)].sum() > 0.8


def test_the_tail_of_shares_is_smooth() -> None:
    """Three large errors of exactly one size among 600 tokens: those between it and the usual are likely too."""
    rng = np.random.default_rng(11)
    own = rng.normal(size=(600, SIZE))
    error = np.where(np.arange(600) < 3, 0.16, np.where(np.arange(600) < 60, 0.08, 0.01))
    theirs = own + rng.normal(size=own.shape) * error[:, None]
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(theirs, MAIN.seed, MAIN.k)))
    scale = fit_scale(intervals, project(own, MAIN.seed, MAIN.k))
    shares, sizes = np.array(scale.shares), scale.sigma * SHARED_SIZES
    bulk, tail = (shares[(sizes > low) & (sizes < 2 * low)] for low in (0.0071, 0.0566))
    assert bulk.sum() == pytest.approx(0.9, abs=0.03)  # what most tokens show stays as sharp
    assert bulk.max() > 0.3
    assert tail.max() < 2 * tail.min()  # and one tenth of them is spread over an octave and more
    assert shares[sizes > 0.02].sum() == pytest.approx(0.1, abs=0.03)
    assert shares[sizes > 0.2].sum() > 0.003


def test_one_error_speaks_the_more_for_a_deviation_the_larger_it_is() -> None:
    """Beside a tail of honest errors up to 16 times the usual, single tokens that err by 30 times and more."""
    fitted = flipped(12, 3000)
    spec = replace(MAIN, k=128, pattern_log2=(-2, -2, 0, 4))
    scale = fit_scale(
        to_intervals(spec, 0, to_codes(spec, 0, project(fitted[1], spec.seed, spec.k))),
        project(fitted[0], spec.seed, spec.k),
    )
    own = np.random.default_rng(13).normal(size=(200, SIZE))
    found = []
    for multiple in (1, 8, 16, 32, 64, 100):
        theirs = noisy(own, 0.01 * multiple, seed=14)
        intervals = to_intervals(spec, 0, to_codes(spec, 0, project(theirs, spec.seed, spec.k)))
        found.append(np.median(combine(ratios(intervals, project(own, spec.seed, spec.k), scale))))
    assert found[0] < 0.0 < found[1]
    assert found == sorted(found)
    assert found[-1] > found[1] + 3.0


def test_few_entries_are_not_shared_out() -> None:
    own, theirs = flipped(7, 24)
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(theirs, MAIN.seed, MAIN.k)))
    assert fit_scale(intervals, project(own, MAIN.seed, MAIN.k)).shares == ()


def test_a_log_normal_is_not() -> None:
    own, sensitivity = uneven(1)
    theirs = own + np.random.default_rng(2).normal(size=own.shape) * 1.5 * sensitivity[:, None]
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(theirs, MAIN.seed, MAIN.k)))
    for known in (sensitivity, None):
        assert fit_scale(intervals, project(own, MAIN.seed, MAIN.k), known).shares == ()


def test_shares_tell_a_small_deviation_from_rare_large_errors() -> None:
    """Errors 1.5 times the honest ones over eight tokens, of which honest ones err by far more now and then."""
    fitted = flipped(4, 3000)
    scale = fit_scale(
        to_intervals(MAIN, 0, to_codes(MAIN, 0, project(fitted[1], MAIN.seed, MAIN.k))),
        project(fitted[0], MAIN.seed, MAIN.k),
    )
    auc = []
    for used in (scale, ErrorScale(sigma=scale.sigma, spread=scale.spread)):
        scores = []
        for seed, multiple in ((5, 1.0), (6, 1.5)):
            own, theirs = flipped(seed, 8 * 400, multiple)
            intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(theirs, MAIN.seed, MAIN.k)))
            values = ratios(intervals, project(own, MAIN.seed, MAIN.k), used)
            scores.append(combine(values.reshape(400, 8, -1).sum(axis=1)))
        auc.append(float(np.mean(scores[1][:, None] > scores[0][None])))
    assert auc[0] > auc[1] + 0.03


@pytest.mark.parametrize("shares", [(1.0,), (0.5,) * len(SHARED_SIZES), (-1.0, 2.0, *shared_at(0)[2:])])
def test_shares_that_mean_nothing(shares: tuple[float, ...]) -> None:
    with pytest.raises(FingerprintError, match="shares: expected 33 shares that sum to 1"):
        ErrorScale(sigma=1.0, shares=shares)
