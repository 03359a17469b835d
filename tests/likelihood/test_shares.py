"""Errors of sizes that are shared out: the shares found again, and what a token's probability becomes with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from test_fitting import TOKENS, made, race

from veridifr import fitting
from veridifr.fitting import fit_statistic
from veridifr.shares import fit_shares
from veridifr.statistic import ALTERNATIVES, SHARED_ALTERNATIVES, SHARED_SIZES, LikelihoodRatio

TAIL = {0.01: 0.6, 0.04: 0.3, 0.15: 0.07, 0.6: 0.03}


def observed(shares: dict[float, float], count: int) -> np.ndarray:
    """Log-densities of normal observations of these scales, under every scale of the list."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=count) * rng.choice(list(shares), size=count, p=list(shares.values()))
    return np.stack([norm.logpdf(values, scale=scale) for scale in shares], axis=1)


def test_shares_are_found_again() -> None:
    found = fit_shares(observed({1.0: 0.9, 10.0: 0.07, 100.0: 0.03}, 20_000))
    np.testing.assert_allclose(found, [0.9, 0.07, 0.03], atol=0.008)
    assert found.sum() == pytest.approx(1.0)


def test_two_shares_against_a_search() -> None:
    logs = observed({1.0: 0.7, 4.0: 0.3}, 500)
    best = minimize_scalar(
        lambda x: -np.log((1 - x) * np.exp(logs[:, 0]) + x * np.exp(logs[:, 1])).sum(), bounds=(0, 1), method="bounded"
    )
    assert fit_shares(logs)[1] == pytest.approx(best.x, abs=1e-3)


def test_no_size_is_impossible_and_what_tells_nothing_changes_nothing() -> None:
    logs = np.array([[0.0, -50.0, -900.0]] * 40)
    found = fit_shares(logs)
    assert (found > 0).all()
    assert found[0] > 0.99
    np.testing.assert_array_equal(fit_shares(np.concatenate([logs, np.full((500, 3), -7.0)])), found)
    np.testing.assert_allclose(fit_shares(np.zeros((5, 4))), 0.25)  # nothing tells: no size is likelier


def test_all_of_one_size_is_the_statistic_without_spread() -> None:
    place = 4
    one = tuple(float(g == place) for g in range(len(SHARED_SIZES)))
    plain = LikelihoodRatio(sigma=float(SHARED_SIZES[place]), epsilon=0.001, spread=0.0)
    scores = race(np.random.default_rng(2))
    ratios, applies = plain.ratios(scores)
    shared, also = replace(plain, shares=one).ratios(scores)
    np.testing.assert_array_equal(also, applies)
    near = np.array([a.kind != "noise" or a.size * plain.sigma <= 3.2 for a in ALTERNATIVES])  # larger ones are cut
    np.testing.assert_allclose(shared[:, near], ratios[:, near], atol=1e-9)


def test_a_tail_of_several_sizes_is_shared_out() -> None:
    found = fit_statistic(made(TAIL, 40, 6))
    assert len(found.shares) == len(SHARED_SIZES)
    assert sum(found.shares) == pytest.approx(1.0)
    assert found.alternatives == SHARED_ALTERNATIVES
    large = sum(share for share, size in zip(found.shares, SHARED_SIZES, strict=True) if size > 0.08)
    assert large == pytest.approx(0.1, abs=0.03)


def test_what_one_size_leaves_unexplained() -> None:
    plain = LikelihoodRatio(sigma=0.01, epsilon=0.001)
    shares = [0.0] * len(SHARED_SIZES)
    shares[int(np.searchsorted(SHARED_SIZES, 0.01))], shares[-1], shares[-3] = 0.9, 0.03, 0.07
    assert plain.unexplained == plain.epsilon
    assert replace(plain, shares=tuple(shares)).unexplained == pytest.approx(0.101)


@pytest.mark.parametrize("sizes", [{0.05: 1.0}, {0.02: 0.5, 0.04: 0.5}])
def test_errors_of_about_one_size_are_not(sizes: dict[float, float]) -> None:
    found = fit_statistic(made(sizes, 40, 7))
    assert found.shares == ()
    assert found.alternatives == ALTERNATIVES


def test_weights_of_alternatives_sum_to_one() -> None:
    for entries in (ALTERNATIVES, SHARED_ALTERNATIVES):
        assert sum(entry.weight for entry in entries) == pytest.approx(1.0, abs=1e-3)
    assert [(a.kind, a.size) for a in ALTERNATIVES] == [(a.kind, a.size) for a in SHARED_ALTERNATIVES]


def test_shares_find_what_many_sequences_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors a quarter larger in batches of four sequences, among honest errors with a heavy tail."""
    fits, honest = made(TAIL, 40, 8), made(TAIL, 160, 9)
    deviating = made({1.25 * size: share for size, share in TAIL.items()}, 160, 10)
    found = []
    for gain in (fitting._SHARED_GAIN, np.inf):
        monkeypatch.setattr(fitting, "_SHARED_GAIN", gain)
        statistic = fit_statistic(fits)
        low, high = (
            np.array([statistic.prefix_scores(one, [TOKENS])[0] for one in part]).reshape(-1, 4).sum(axis=1)
            for part in (honest, deviating)
        )
        found.append(float(np.mean(high[:, None] > low[None])))
    assert found[0] > found[1] + 0.02
