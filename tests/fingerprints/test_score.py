"""Scores: probabilities by brute force, honest scales found again, and attacks on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from veridifr.errors import FingerprintError
from veridifr.fingerprints import (
    ErrorScale,
    FingerprintSpec,
    Intervals,
    combine,
    fit_scale,
    project,
    ratios,
    score,
    to_codes,
    to_intervals,
)
from veridifr.fingerprints.score import MULTIPLES, log_likelihood

SIGMA = 0.02
SIZE = 384
TOKENS = 40


def spec_of(encoding: str, k: int = 16, step: int = -4) -> FingerprintSpec:
    steps = (step,) if encoding.startswith("wrapped") else ()
    return FingerprintSpec(seed=3, hidden_size=SIZE, k=k, encoding=encoding, step_log2=steps)


MAIN = spec_of("wrapped2")


def hidden_of(seed: int, tokens: int = TOKENS) -> Any:
    return np.random.default_rng(seed).normal(size=(tokens, SIZE)) * 1.8


def score_of(spec: FingerprintSpec, theirs_TD: Any, own_TD: Any, sigma: float = SIGMA) -> float:
    intervals = to_intervals(spec, 0, to_codes(spec, 0, project(theirs_TD, spec.seed, spec.k)))
    total = ratios(intervals, project(own_TD, spec.seed, spec.k), ErrorScale(sigma=sigma)).sum(axis=0)
    return float(combine(total))


def noisy(hidden: Any, sigma: float, seed: int = 1) -> Any:
    return hidden + np.random.default_rng(seed).normal(size=hidden.shape) * sigma


@pytest.mark.parametrize("sigma", [0.003, 0.02, 0.1, 0.6, 40.0])
def test_wrapped_probabilities_against_a_long_sum(sigma: float) -> None:
    spec = spec_of("wrapped2", k=1)
    own = np.linspace(-1, 1, 50)[:, None]
    codes = to_codes(spec, 0, np.full((50, 1), 0.3))
    scale = ErrorScale(sigma=sigma, spread=0.0, epsilon=1e-12)
    found = np.exp(log_likelihood(to_intervals(spec, 0, codes), own, scale))
    repeats = 0.25 + np.arange(-1500, 1500) * 0.25  # 0.3 has code 4 mod 4 = 0: [0.25, 0.3125) and every 0.25
    wanted = sum(norm.cdf(r + 0.0625, own[:, 0], sigma) - norm.cdf(r, own[:, 0], sigma) for r in repeats)
    assert np.allclose(found, wanted, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("encoding", ["wrapped1", "wrapped2", "wrapped4", "sign", "scaled4"])
def test_codes_have_probability_one_in_all(encoding: str) -> None:
    spec = spec_of(encoding, k=1)
    own = np.linspace(-1, 1, 11)[:, None]
    scale = ErrorScale(sigma=0.3, spread=0.2)
    total = np.zeros(11)
    for code in range(2**spec.bits):
        codes = to_codes(spec, 0, np.zeros((11, 1)))
        codes.codes_FK[:] = code
        if codes.scales_F is not None:
            codes.scales_F.flags.writeable = True
            codes.scales_F[:] = 160
        total += np.exp(log_likelihood(to_intervals(spec, 0, codes), own, scale))
    assert np.allclose(total, 1, atol=2e-3)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "scaled8", "wrapped2", "wrapped1"])
@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_the_honest_scale_is_found_again(encoding: str, sigma: float) -> None:
    spec = spec_of(encoding, k=32)
    own = hidden_of(0, 300)
    codes = to_codes(spec, 0, project(noisy(own, sigma), 3, 32))
    found = fit_scale(to_intervals(spec, 0, codes), project(own, 3, 32))
    assert sigma / 1.15 < found.sigma < sigma * 1.15
    assert found.spread <= 0.1


def test_spread_is_found() -> None:
    rng = np.random.default_rng(5)
    own = hidden_of(0, 500)
    factor = np.exp(rng.normal(size=(500, 1)) * 0.4)
    codes = to_codes(spec_of("float32", 32), 0, project(own + rng.normal(size=own.shape) * 0.02 * factor, 3, 32))
    found = fit_scale(to_intervals(spec_of("float32", 32), 0, codes), project(own, 3, 32))
    assert 0.3 <= found.spread <= 0.5


def test_honest_scores_are_a_likelihood_ratio() -> None:
    """The mean likelihood ratio of honest codes is 1 under the model (codes have probability one in all, above), so a
    score above log(1 / alpha) has probability alpha at most (Markov)."""
    own = hidden_of(0, 3000)
    scale = ErrorScale(sigma=SIGMA, spread=0.0)
    spec = spec_of("wrapped2", k=4)
    intervals = to_intervals(spec, 0, to_codes(spec, 0, project(noisy(own, SIGMA), 3, 4)))
    scores = combine(ratios(intervals, project(own, 3, 4), scale))
    for alpha in (0.1, 0.01):
        assert (scores > np.log(1 / alpha)).mean() <= alpha
    assert (scores > 0).any()


def attacks() -> dict[str, Any]:
    """What a provider might send instead of its projections, from hidden states of the claimed model."""
    own = hidden_of(0)
    small = np.random.default_rng(9).normal(size=(TOKENS, SIZE))
    return {
        "another prompt": hidden_of(1),
        "shuffled tokens": own[::-1],
        "shifted by one token": np.roll(own, 1, axis=0),
        "a smaller model": small,
        "all zero": np.zeros_like(own),
        "doubled": 2 * own,
        "scaled by 10 %": 1.1 * own,
        "negated": -own,
        "int4-like errors": noisy(own, 16 * SIGMA),
        "errors of twice the scale": noisy(own, 2 * SIGMA),
        "one dimension off": own + np.eye(SIZE)[0] * 5,
    }


@pytest.mark.parametrize("name", attacks())
@pytest.mark.parametrize("encoding", ["wrapped2", "wrapped1", "bfloat16", "scaled8"])
def test_attacks_score_high(name: str, encoding: str) -> None:
    spec = spec_of(encoding)
    assert score_of(spec, attacks()[name], hidden_of(0)) > 20
    assert score_of(spec, noisy(hidden_of(0), SIGMA), hidden_of(0)) < 0


def test_cheating_on_one_token_in_four_shows() -> None:
    theirs = noisy(hidden_of(0), SIGMA)
    theirs[::4] = hidden_of(1)[::4]
    assert score_of(MAIN, theirs, hidden_of(0)) > 20


def test_random_codes_are_caught() -> None:
    """Without the activations, the best a provider can do is to guess: 2 bits a coordinate."""
    rng = np.random.default_rng(2)
    codes = to_codes(MAIN, 0, np.zeros((TOKENS, 16)))
    codes.codes_FK[:] = rng.integers(0, 4, size=(TOKENS, 16))
    own = project(hidden_of(0), 3, 16)
    scores = combine(ratios(to_intervals(MAIN, 0, codes), own, ErrorScale(sigma=SIGMA)))
    assert (scores > 2).mean() > 0.9


def test_huge_errors_stay_finite() -> None:
    for encoding in ("float32", "scaled8", "wrapped2", "sign"):
        spec = spec_of(encoding)
        for factor in (0.0, 1e6, 1e30):
            assert np.isfinite(score_of(spec, hidden_of(0) * factor, hidden_of(0)))


def test_refusals() -> None:
    with pytest.raises(FingerprintError, match="sigma"):
        ErrorScale(sigma=0.0)
    with pytest.raises(FingerprintError, match="spread"):
        ErrorScale(sigma=1.0, spread=3.0)
    with pytest.raises(FingerprintError, match="epsilon"):
        ErrorScale(sigma=1.0, epsilon=0.0)
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, np.zeros((2, 16))))
    with pytest.raises(FingerprintError, match="projections: got shape"):
        ratios(intervals, np.zeros((3, 16)), ErrorScale(sigma=1.0))
    empty = Intervals(low_FK=np.zeros((0, 4)), high_FK=np.zeros((0, 4)), period_K=None)
    with pytest.raises(FingerprintError, match="no entries"):
        fit_scale(empty, np.zeros((0, 4)))


def test_no_entries_say_nothing() -> None:
    """No evidence is a score of 0, which is no divergence and no consistency: a caller counts entries."""
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, np.zeros((0, 16))))
    assert ratios(intervals, np.zeros((0, 16)), ErrorScale(sigma=1.0)).shape == (0, len(MULTIPLES))


def uneven(seed: int, size: int = 4000) -> tuple[Any, Any]:
    """Hidden states, and how sensitive each is: four times as much in one as in another."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, SIZE)), np.exp2(rng.uniform(-7, -5, size=size))


def test_with_sensitivities_sigma_is_relative_to_them() -> None:
    own, sensitivity = uneven(1)
    theirs = own + np.random.default_rng(2).normal(size=own.shape) * 1.5 * sensitivity[:, None]
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(theirs, MAIN.seed, MAIN.k)))
    scale = fit_scale(intervals, project(own, MAIN.seed, MAIN.k), sensitivity)
    assert scale.sigma == pytest.approx(1.5, rel=0.1)
    assert scale.spread <= 0.1
    plain = fit_scale(intervals, project(own, MAIN.seed, MAIN.k))
    assert plain.spread >= 0.3  # what the sensitivities explain


@pytest.mark.parametrize("encoding", ["wrapped2", "float32", "scaled8", "sign"])
def test_each_entry_has_the_scale_of_its_sensitivity(encoding: str) -> None:
    """Against the score of each entry by itself; sensitivities on the grid, so that rounding changes nothing."""
    spec = spec_of(encoding)
    own, _ = uneven(3, 12)
    sensitivity = np.exp2(np.random.default_rng(4).integers(-32, -16, size=12) / 4)
    intervals = to_intervals(spec, 0, to_codes(spec, 0, project(noisy(own, SIGMA), spec.seed, spec.k)))
    mine = project(own, spec.seed, spec.k)
    found = ratios(intervals, mine, ErrorScale(sigma=1.2, spread=0.2), sensitivity_F=sensitivity)
    for row in range(12):
        one = slice(row, row + 1)
        part = Intervals(low_FK=intervals.low_FK[one], high_FK=intervals.high_FK[one], period_K=intervals.period_K)
        alone = ratios(part, mine[one], ErrorScale(sigma=1.2 * sensitivity[row], spread=0.2))
        np.testing.assert_allclose(found[one], alone, rtol=1e-9, atol=1e-12)


def test_sensitivities_tell_a_small_deviation_from_a_sensitive_token() -> None:
    """Errors 1.6 times the honest ones, tokens that differ by four: without the sensitivities they hide each other."""
    own, sensitivity = uneven(5, 8 * 400)
    scores = {}
    for name, multiple in (("honest", 1.0), ("deviating", 1.6)):
        theirs = own + np.random.default_rng(6).normal(size=own.shape) * multiple * sensitivity[:, None]
        intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(theirs, MAIN.seed, MAIN.k)))
        mine = project(own, MAIN.seed, MAIN.k)
        for known, scale in (
            (sensitivity, ErrorScale(sigma=1.0, spread=0.0)),
            (None, ErrorScale(sigma=2**-6, spread=0.4)),
        ):
            values = ratios(intervals, mine, scale, sensitivity_F=known)
            scores[name, known is None] = combine(values.reshape(400, 8, -1).sum(axis=1))
    auc = {
        plain: float(np.mean(scores["deviating", plain][:, None] > scores["honest", plain][None]))
        for plain in (False, True)
    }
    assert auc[False] > auc[True] + 0.02


@pytest.mark.parametrize("given", [[1.0], [[1.0, 1.0]], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf]])
def test_sensitivities_that_mean_nothing(given: Any) -> None:
    own, _ = uneven(7, 2)
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(own, MAIN.seed, MAIN.k)))
    with pytest.raises(FingerprintError, match="sensitivity: expected 2 values above 0"):
        log_likelihood(intervals, project(own, MAIN.seed, MAIN.k), ErrorScale(sigma=1.0), sensitivity_F=given)


def test_a_scale_is_fitted_to_all_the_runs_that_follow_each_other() -> None:
    """Two runs one after the other, the second with errors four times the first's: no fit to the first alone."""
    own = hidden_of(12, 800)
    theirs = noisy(own, 1.0, seed=13)
    theirs = own + (theirs - own) * np.where(np.arange(800) < 400, 0.01, 0.04)[:, None]
    intervals = to_intervals(MAIN, 0, to_codes(MAIN, 0, project(theirs, MAIN.seed, MAIN.k)))
    whole = fit_scale(intervals, project(own, MAIN.seed, MAIN.k))
    part = fit_scale(intervals, project(own, MAIN.seed, MAIN.k), most=400)
    assert part.sigma == pytest.approx(whole.sigma, rel=0.1)
    assert part.spread == whole.spread >= 0.5
    scaled = fit_scale(intervals, project(own, MAIN.seed, MAIN.k), np.full(800, 0.5), most=400)
    assert scaled.sigma == pytest.approx(2 * part.sigma, rel=0.1)


def test_steps_of_a_pattern_have_their_own_periods() -> None:
    """One table, in periods, serves all of them: each coordinate against the normal distribution's repeats."""
    spec = FingerprintSpec(seed=3, hidden_size=SIZE, k=2, encoding="wrapped2", step_log2=(-4,), pattern_log2=(0, 3))
    own = np.array([[0.31, -0.9], [0.02, 1.7]])
    intervals = to_intervals(spec, 0, to_codes(spec, 0, own))
    theirs = own + 0.05
    found = log_likelihood(intervals, theirs, ErrorScale(sigma=0.07, spread=0.0, epsilon=1e-12))
    chances = np.ones(2)
    for column, step in enumerate((2**-4, 2**-1)):
        low = np.floor(own[:, column] / step) * step
        repeats = low[:, None] + 4 * step * np.arange(-60, 61)
        chances *= (
            norm.cdf(repeats + step, theirs[:, [column]], 0.07) - norm.cdf(repeats, theirs[:, [column]], 0.07)
        ).sum(1)
    assert np.exp(found) == pytest.approx(chances, rel=1e-4)


def test_many_coordinates_need_fewer_entries_to_be_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    own = hidden_of(14, 1500)
    theirs = own + rng.normal(size=own.shape) * 0.02 * np.exp(rng.normal(size=(1500, 1)) * 0.4)
    spec = FingerprintSpec(seed=3, hidden_size=SIZE, k=SIZE, encoding="wrapped2", step_log2=(-5,))
    intervals = to_intervals(spec, 0, to_codes(spec, 0, project(theirs, 3, SIZE)))
    found = fit_scale(intervals, project(own, 3, SIZE))
    monkeypatch.setattr(score, "_SEARCHED", 1500 * SIZE)
    every = fit_scale(intervals, project(own, 3, SIZE))
    assert (found.sigma, found.spread) == (pytest.approx(every.sigma, rel=0.1), every.spread)
    assert found.sigma == pytest.approx(0.02, rel=0.1)
    assert found.shares == pytest.approx(every.shares, abs=0.02)
