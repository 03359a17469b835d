"""The probability of the claimed token under logit noise: closed forms, sums to one, and simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from makers import contenders, make_trace, scores_of, whole_rows
from veridifr.contracts.registry import CONTRACTS
from veridifr.likelihood import (
    SIGMA_GRID,
    decisive_gap,
    fit_sigma,
    log_likelihoods,
    mix,
    shifted,
    sigma_interval,
    win_matrix,
    win_probability,
)
from veridifr.scores import Hypothesis, Status
from veridifr.scoring import score
from veridifr.trace import EngineRecord

IN = -np.inf


def every_claim(scores: Sequence[float], edges: Sequence[float], sigma: float) -> np.ndarray:
    """P(c wins) with each contender of one row as the claimed one."""
    count = len(scores)
    return win_probability(contenders([scores] * count, [edges] * count, range(count)), count, sigma)


def monte_carlo(scores: Sequence[float], edges: Sequence[float], sigma: float, draws: int = 40_000) -> np.ndarray:
    """How often each contender wins when scores move by independent noise and the cut by one common shift."""
    rng = np.random.default_rng(5)
    moved = np.asarray(scores) + sigma * rng.standard_normal((draws, len(scores)))
    cut = sigma * rng.standard_normal((draws, 1))
    moved[~(np.asarray(edges) < cut)] = -np.inf
    return np.bincount(moved.argmax(axis=1), minlength=len(scores)) / draws


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("gap", [-3.0, -0.2, -0.01, 0.0, 0.05, 1.0])
def test_two_contenders(gap: float, sigma: float) -> None:
    expected = norm.cdf(gap / (sigma * np.sqrt(2)))
    assert every_claim([gap, 0.0], [IN, IN], sigma)[0] == pytest.approx(expected, abs=1e-6)


def test_equal_contenders_share() -> None:
    for count in (1, 2, 3, 10, 24):
        np.testing.assert_allclose(every_claim([1.0] * count, [IN] * count, 0.1), 1 / count, rtol=2e-5)


ROWS = [
    ([0.0, -0.1, -0.25, -1.0, 0.05], [IN] * 5),
    ([0.0, 0.1, 0.2], [IN, -0.1, 0.1]),
    ([0.0, 0.5, 0.4, 0.3], [IN, 0.05, 0.2, -0.3]),
    ([0.0, -0.2, 3.0], [IN, IN, 1.9]),
    ([0.0, 0.3, 0.3, 0.3, 0.3], [IN, -0.2, -0.1, 0.1, 0.2]),
]


@pytest.mark.parametrize(("scores", "edges"), ROWS)
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_against_simulation(scores: list[float], edges: list[float], sigma: float) -> None:
    np.testing.assert_allclose(every_claim(scores, edges, sigma), monte_carlo(scores, edges, sigma), atol=0.01)


@pytest.mark.parametrize(("scores", "edges"), ROWS)
@pytest.mark.parametrize("sigma", [0.003, 0.05, 0.3, 1.0, 3.2])
def test_sums_to_one(scores: list[float], edges: list[float], sigma: float) -> None:
    """Where one contender at least is a member whatever happens, someone wins."""
    assert every_claim(scores, edges, sigma).sum() == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    row=st.lists(
        st.tuples(st.floats(-4, 4), st.just(IN) | st.floats(-2, 2)), min_size=1, max_size=5
    ),
    sigma=st.sampled_from([0.01, 0.1, 0.7]),
)  # fmt: skip
def test_sums_to_one_whatever_the_row(row: list[tuple[float, float]], sigma: float) -> None:
    scores, edges = [0.0, *(z for z, _ in row)], [IN, *(m for _, m in row)]
    found = every_claim(scores, edges, sigma)
    assert (found >= 0).all()
    # Up to five at the edge, of which the four nearest are averaged over and the fifth stays where it is.
    assert found.sum() == pytest.approx(1.0, abs=1e-5)


def test_many_contenders_leave_almost_nothing_out() -> None:
    """A Gumbel race of 8192 tokens under large noise: what the limit of 24 contenders drops is small."""
    rng = np.random.default_rng(3)
    z = np.sort(rng.normal(size=8192) * 3 + rng.gumbel(size=8192))[::-1][:60]
    for sigma in (0.02, 0.1, 0.4):
        assert every_claim(z.tolist(), [IN] * 60, sigma).sum() == pytest.approx(1.0, abs=0.02)


def test_far_outside_or_far_behind_is_impossible() -> None:
    assert every_claim([0.0, 5.0], [IN, 2.0], 0.1).tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert every_claim([0.0, -5.0], [IN, IN], 0.1).tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_a_forbidden_claim_is_impossible() -> None:
    found = contenders([[0.0, 1.0]], [[IN, IN]], [0])
    found.scores_M[:] = [-np.inf, 0.0]
    assert win_probability(found, 1, 0.5).tolist() == [0.0]


def test_rows_do_not_mix() -> None:
    rows = [[0.0, 0.1], [0.0], [0.0, -0.3, 0.2], [0.1, 0.0]]
    edges = [[IN, IN], [IN], [IN, -0.05, 0.1], [IN, 0.02]]
    together = win_probability(contenders(rows, edges, [0, 0, 2, 1]), 4, 0.2)
    alone = [
        win_probability(contenders([z], [m], [c]), 1, 0.2)[0] for z, m, c in zip(rows, edges, [0, 0, 2, 1], strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("top_p", [None, 0.8])
@pytest.mark.parametrize("sigma", [0.05, 0.7])
def test_inverse_cdf_sums_to_one(top_p: float | None, sigma: float) -> None:
    """Every token of the vocabulary as the claim, through llama.cpp's contract: the intervals telescope."""
    logits = np.array([[0.3, -1.0, 2.0, 1.1, 0.9, -0.5]])
    engine = EngineRecord(name="llama.cpp", sampler="llama-cpp-dist")
    total = 0.0
    for claimed in range(6):
        trace = make_trace([claimed], engine=engine, top_k=5, top_p=top_p)
        claim = Hypothesis(contract=CONTRACTS["llama-cpp-dist"], sampling=trace.sampling, seed=7)
        total += win_matrix(score(trace, whole_rows(trace, logits), claim), np.array([sigma]))[0, 0]
    assert total == pytest.approx(1.0, abs=1e-6)


def test_inverse_cdf_closed_form() -> None:
    found = contenders([[0.0]], [[0.4]], [0])
    found.scores_M[:] = 0.25  # u lies 0.25 above the lower end and 0.4 below the upper one
    wins = win_matrix(scores_of(found, 1, inverse_cdf=True), np.array([0.5]))
    assert wins[0, 0] == pytest.approx(norm.cdf(0.8) - norm.cdf(-0.5), abs=1e-6)


def test_log_likelihood_by_hand() -> None:
    found = contenders([[-0.1, 0.0], [-9.0, 0.0], [0.0]], [[IN, IN], [IN, IN], [IN]], [0, 0, 0])
    scores = scores_of(found, 3, logprob=-2.0)
    scores.status_T[2] = Status.MISSING
    expected = np.log([0.99 * norm.cdf(-0.1 / (0.2 * np.sqrt(2))) + 0.01 * np.exp(-2), 0.01 * np.exp(-2), 1.0])
    np.testing.assert_allclose(log_likelihoods(scores, np.array([0.2]), epsilon=0.01)[:, 0], expected, atol=1e-6)


@given(win=st.floats(0, 1), logprob=st.floats(-50, 1), epsilon=st.floats(1e-6, 0.1))
def test_a_likelihood_is_a_probability(win: float, logprob: float, epsilon: float) -> None:
    scores = scores_of(contenders([[0.0]], [[IN]], [0]), 1, logprob=logprob)
    (log_q,) = mix(np.array([[win]]), scores, epsilon)[0]
    assert np.isfinite(log_q)
    assert log_q <= 1e-12


def race(sequences: int, tokens: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Log-likelihoods [sequences, grid] of a provider whose logits err by `sigma`: its tokens win its own race."""
    totals = []
    for _ in range(sequences):
        z = np.sort(rng.normal(size=(tokens, 64)) * 2 + rng.gumbel(size=(tokens, 64)), axis=1)[:, :-7:-1]
        claimed = (z + sigma * rng.standard_normal(z.shape)).argmax(axis=1)
        found = contenders(z.tolist(), np.full(z.shape, IN).tolist(), claimed.tolist())
        totals.append(log_likelihoods(scores_of(found, tokens), SIGMA_GRID).sum(axis=0))
    return np.array(totals)


@pytest.mark.parametrize(("sigma", "tokens"), [(0.05, 1500), (0.3, 250)])
def test_sigma_is_recovered(sigma: float, tokens: int) -> None:
    rng = np.random.default_rng(11)
    totals = race(20, tokens, sigma, rng)
    estimate = fit_sigma(totals, SIGMA_GRID)
    assert estimate == pytest.approx(sigma, rel=0.1)
    low, high = sigma_interval(totals, SIGMA_GRID, rng)
    assert low < estimate < high < 2 * low


def test_the_interval_covers() -> None:
    """20 intervals at 95 %: three or more misses have a probability of 0.075, five or more one of 0.003."""
    rng = np.random.default_rng(12)
    intervals = [sigma_interval(race(20, 80, 0.3, rng), SIGMA_GRID, rng, draws=200) for _ in range(20)]
    assert sum(low < 0.3 < high for low, high in intervals) > 15


def test_sigma_at_the_ends_of_the_grid() -> None:
    grid = np.array([0.1, 0.2, 0.4])
    assert fit_sigma(np.array([[3.0, 2.0, 1.0]]), grid) == 0.1
    assert fit_sigma(np.array([[1.0, 2.0, 3.0]]), grid) == 0.4
    assert fit_sigma(np.array([[1.0, 2.0, 1.0]]), grid) == pytest.approx(0.2)
    # A parabola through (-1, 0), (0, 2), (1, 1) in steps of log 2 peaks at 1/6.
    assert fit_sigma(np.array([[0.0, 2.0, 1.0]]), grid) == pytest.approx(0.2 * 2 ** (1 / 6))


def test_decided_tokens_are_as_if_integrated() -> None:
    """The short way for outcomes that no error turns round, against the same tokens with a rival that leaves them open.

    A far rival moves no probability by more than 3e-7 for each contender.
    """
    rng = np.random.default_rng(3)
    gaps = np.linspace(-2.0, 2.0, 81)
    rows = [[gap, 0.0, *(-np.abs(rng.normal(size=3)) - 2).tolist()] for gap in gaps]
    found = contenders(rows, [[IN] * 5] * len(rows), [0] * len(rows))
    for sigma in (0.02, 0.1, 0.25):
        closed = norm.cdf(gaps / (sigma * np.sqrt(2)))
        np.testing.assert_allclose(win_probability(found, len(rows), sigma), closed, atol=2e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_gap_from_contenders_is_the_scores_own(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(5, 12)).astype(np.float32) * 2
    trace = make_trace(rng.integers(0, 12, 5).tolist(), top_k=4, top_p=0.9)
    claim = Hypothesis(contract=CONTRACTS["vllm-cpu-gumbel-splitmix"], sampling=trace.sampling, seed=7)
    scores = score(trace, whole_rows(trace, logits), claim)
    gap_T = np.clip(decisive_gap(scores.contenders, 5), -32, 32)
    near = np.abs(scores.gap_T) < 2.0  # farther out contenders are left out: they can't matter
    np.testing.assert_allclose(gap_T[near], scores.gap_T[near], atol=1e-5)


def test_shifts() -> None:
    found = contenders([[0.0, 1.0]], [[-0.2, IN]], [0], noise=[[0.5, 2.5]])
    hotter = shifted(found, temperature=0.1)
    np.testing.assert_allclose(hotter.scores_M, [0.0, 1.2], atol=1e-6)
    np.testing.assert_allclose(shifted(found, cut=0.3).edges_M, [0.1, IN], atol=1e-6)
