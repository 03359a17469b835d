"""The score of a sequence: its formula by hand, what raises it, and the simulation that power rests on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from makers import contenders, scores_of
from veridifr.likelihood import win_probability
from veridifr.scores import Scores, Status
from veridifr.statistic import ALTERNATIVES, CAP, Alternative, LikelihoodRatio, edge_of, edges_up_to, simulate

IN = -np.inf


def race(tokens: int, rng: np.random.Generator) -> Scores:
    """An honest sequence without any logit noise: the claimed token is the best of six."""
    z = np.sort(rng.normal(size=(tokens, 64)) * 2 + rng.gumbel(size=(tokens, 64)), axis=1)[:, :-7:-1]
    return scores_of(contenders(z.tolist(), np.full(z.shape, IN).tolist(), [0] * tokens), tokens)


def by_hand(*alternatives: Alternative) -> LikelihoodRatio:
    return LikelihoodRatio(sigma=0.1, epsilon=0.001, spread=0.0, alternatives=alternatives)


def test_two_tokens_by_hand() -> None:
    """One multiple and a replaced share, two tokens that lose by 0.1 and win by 0.3."""
    scores = scores_of(contenders([[-0.1, 0.0], [0.3, 0.0]], [[IN, IN]] * 2, [0, 0]), 2, logprob=-1.5)
    mixture = by_hand(
        Alternative(kind="noise", size=3.0, weight=1.5), Alternative(kind="replaced", size=0.2, weight=0.5)
    )

    def q(gap: float, sigma: float) -> float:
        return float(0.999 * norm.cdf(gap / (sigma * np.sqrt(2))) + 0.001 * np.exp(-1.5))

    wider = np.cumprod([q(gap, 0.3) / q(gap, 0.1) for gap in (-0.1, 0.3)])
    replaced = np.cumprod([0.8 + 0.2 * np.exp(-1.5) / q(gap, 0.1) for gap in (-0.1, 0.3)])
    expected = np.log(0.75 * wider + 0.25 * replaced)
    np.testing.assert_allclose(mixture.prefix_scores(scores, [1, 2]), expected, atol=1e-6)


def test_a_hotter_temperature_by_hand() -> None:
    """z = (0.1, 0) with T g = (1, 3): at 1.1 times the temperature the claimed token falls behind, by 0.1."""
    one = contenders([[0.1, 0.0]], [[IN, IN]], [0], noise=[[1.0, 3.0]])
    found = by_hand(Alternative(kind="temperature", size=0.1, weight=1.0)).prefix_scores(scores_of(one, 1), [1])
    expected = log_q(-0.1, 0.1) - log_q(0.1, 0.1)
    np.testing.assert_allclose(found, [expected], atol=1e-5)


def test_a_deeper_cut_by_hand() -> None:
    """A claimed token 0.3 inside the kept set, against a cut that lies 0.5 deeper: 0.2 outside."""
    one = contenders([[2.0, 0.0]], [[-0.3, IN]], [0])
    found = by_hand(Alternative(kind="cut", size=0.5, weight=1.0)).prefix_scores(scores_of(one, 1), [1])
    expected = np.log(0.999 * norm.cdf(-2) + 0.001 * np.exp(-3)) - np.log(0.999 * norm.cdf(3) + 0.001 * np.exp(-3))
    np.testing.assert_allclose(found, [expected], atol=1e-4)


def log_q(gap: float, sigma: float) -> float:
    return float(np.log(0.999 * norm.cdf(gap / (sigma * np.sqrt(2))) + 0.001 * np.exp(-3.0)))


def test_the_size_of_an_error_is_drawn_for_each_token() -> None:
    """Three points of a log-normal, of mean square sigma squared; the weights are Gauss-Hermite's."""
    one = scores_of(contenders([[0.1, 0.0]], [[IN, IN]], [0]), 1)
    heavy = LikelihoodRatio(sigma=0.1, epsilon=0.001, alternatives=(Alternative(kind="noise", size=4.0, weight=1.0),))
    sizes = np.array([2**-0.5, 1.0, 2**0.5])
    sizes *= 0.1 / np.sqrt(np.array([1, 4, 1]) / 6 @ sizes**2)

    def q(times: float) -> float:
        wins = norm.cdf(0.1 / (times * sizes * np.sqrt(2))) @ np.array([1, 4, 1]) / 6
        return float(np.log(0.999 * wins + 0.001 * np.exp(-3.0)))

    np.testing.assert_allclose(heavy.prefix_scores(one, [1]), [q(4.0) - q(1.0)], atol=1e-5)


def test_a_temperature_is_left_out_without_noise_and_a_cut_without_filters() -> None:
    def kinds(noise: list[list[float]] | None, edge: float, *, inverse_cdf: bool = False) -> int:
        one = contenders([[0.1, 0.0]], [[edge, IN]], [0], noise=noise)
        return int(LikelihoodRatio(sigma=0.1).ratios(scores_of(one, 1, inverse_cdf=inverse_cdf))[1].sum())

    everything = len(ALTERNATIVES)
    assert kinds([[1.0, 2.0]], -1.0) == everything
    assert kinds(None, -1.0) == everything - 8
    assert kinds([[1.0, 2.0]], IN) == everything - 5
    assert kinds([[1.0, 2.0]], -1.0, inverse_cdf=True) == everything - 13


def test_prior_weights_sum_to_one() -> None:
    assert sum(entry.weight for entry in ALTERNATIVES) == pytest.approx(1.0)


def test_a_temperature_that_was_used_scores_higher_than_one_that_was_not() -> None:
    """Tokens of a race that is run 5 % hotter than claimed: no larger noise explains them as well."""
    rng = np.random.default_rng(11)
    logits, noise = rng.normal(size=(400, 6)), rng.gumbel(size=(400, 6))
    hot, honest = (logits + heat * noise for heat in (1.05, 1.0))
    plain = LikelihoodRatio(sigma=0.01, alternatives=tuple(a for a in ALTERNATIVES if a.kind != "temperature"))
    whole = LikelihoodRatio(sigma=0.01)
    edges = np.full(logits.shape, IN).tolist()
    drawn = {name: z.argmax(axis=1).tolist() for name, z in (("hot", hot), ("honest", honest))}
    scored = {n: scores_of(contenders(honest.tolist(), edges, c, noise.tolist()), 400) for n, c in drawn.items()}
    found = {name: whole.prefix_scores(scores, [400])[0] for name, scores in scored.items()}
    assert found["hot"] > plain.prefix_scores(scored["hot"], [400])[0] + 2 > 2
    assert found["honest"] < 0


def test_a_prefix_is_scored_as_if_it_were_all() -> None:
    rng = np.random.default_rng(0)
    whole = simulate(race(40, rng), 0.3, rng)
    mixture = LikelihoodRatio(sigma=0.05)
    found = whole.contenders
    for length in (1, 8, 33):
        keep = found.rows_M < length
        part = found.at(keep)
        alone = mixture.prefix_scores(scores_of(part, length), [length])
        np.testing.assert_allclose(mixture.prefix_scores(whole, [length]), alone, atol=1e-9)


def test_tokens_that_are_not_scored_add_nothing() -> None:
    """Neither a mismatch nor a match among them moves the score."""
    scores = scores_of(contenders([[0.0], [-5.0, 0.0], [0.0]], [[IN], [IN, IN], [IN]], [0, 0, 0]), 3)
    mixture = LikelihoodRatio(sigma=0.05)
    before = mixture.prefix_scores(scores, [1])
    for status in (Status.BOUND, Status.MISSING, Status.FORCED):
        scores.status_T[1] = status
        with_two = mixture.prefix_scores(scores, [2])
        np.testing.assert_allclose(with_two, before)
    scores.status_T[1] = Status.SCORED
    assert mixture.prefix_scores(scores, [2]) > before + 1


def test_deviation_raises_the_score() -> None:
    """Honest sequences score below zero on average, deviating ones above, and the more the deviation the more so."""
    rng = np.random.default_rng(2)
    mixture = LikelihoodRatio(sigma=0.05)
    means = []
    for sigma in (0.02, 0.05, 0.1, 0.2, 0.5):
        drawn = [mixture.prefix_scores(simulate(race(60, rng), sigma, rng), [60])[0] for _ in range(40)]
        means.append(float(np.mean(drawn)))
    assert means == sorted(means)
    assert means[1] < 0 < means[3]


def test_more_of_the_same_deviation_raises_the_score() -> None:
    rng = np.random.default_rng(3)
    mixture = LikelihoodRatio(sigma=0.05)
    totals = np.mean(
        [mixture.prefix_scores(simulate(race(64, rng), 0.3, rng), [16, 32, 64]) for _ in range(40)], axis=0
    )
    assert totals[0] < totals[1] < totals[2]


def test_an_honest_expectation_is_at_most_zero_in_the_exponent() -> None:
    """E[exp S] = 1 where tokens are independent and the honest hypothesis true: S is a mixture of likelihood ratios.

    Shown on one row whose claim is drawn from the honest distribution itself, summed exactly over the claims.
    """
    rows, edges = [[0.0, -0.05, 0.1, -0.2]] * 4, [[IN] * 4] * 4
    mixture = LikelihoodRatio(sigma=0.1, epsilon=0.01, spread=0.0)
    reference = np.array([0.4, 0.3, 0.2, 0.1])
    total = 0.0
    for claim in range(4):
        one = scores_of(contenders([rows[0]], [edges[0]], [claim]), 1, logprob=float(np.log(reference[claim])))
        win = win_probability(one.contenders, 1, 0.1)[0]
        honest = 0.99 * win + 0.01 * reference[claim]
        total += honest * np.exp(mixture.prefix_scores(one, [1])[0])
    assert total == pytest.approx(1.0, abs=1e-6)


def test_the_cap() -> None:
    tokens = 20
    scores = scores_of(contenders([[-9.0, 0.0]] * tokens, [[IN, IN]] * tokens, [0] * tokens), tokens, logprob=-1.0)
    found = LikelihoodRatio(sigma=0.05).prefix_scores(scores, [1, 20])
    assert found[1] == CAP == 40.0
    assert 0 < found[0] < CAP


def test_edges() -> None:
    assert edges_up_to(1) == (1,)
    assert edges_up_to(3) == (1, 2, 3)
    assert edges_up_to(40) == (1, 2, 4, 8, 16, 32, 40)
    assert edges_up_to(48) == (1, 2, 4, 8, 16, 32, 48)
    assert edges_up_to(0) == ()
    edges = edges_up_to(40)
    assert [edge_of(length, edges) for length in (0, 1, 3, 15, 16, 39, 40, 999)] == [None, 0, 1, 3, 4, 5, 6, 6]


ROWS = [
    ([0.0, -0.1, -0.25, 0.05], [IN] * 4),
    ([0.0, 0.3, 0.2], [IN, -0.1, 0.15]),
    ([0.0, 0.5, 0.4, 0.3], [IN, 0.05, 0.2, -0.3]),
]


@pytest.mark.parametrize(("row", "edges"), ROWS)
@pytest.mark.parametrize("sigma", [0.1, 0.5])
@pytest.mark.parametrize("start", [0, 2])
def test_simulation_draws_what_the_likelihood_says(
    row: list[float], edges: list[float], sigma: float, start: int
) -> None:
    """20,000 copies of one row, redrawn: each contender wins as often as its probability, whoever was claimed."""
    copies, count = 20_000, len(row)
    scores = scores_of(contenders([row] * copies, [edges] * copies, [start] * copies), copies)
    drawn = simulate(scores, sigma, np.random.default_rng(1)).contenders
    claims = drawn.claimed_M.reshape(copies, count)
    assert (claims.sum(axis=1) == 1).all()
    expected = win_probability(contenders([row] * count, [edges] * count, range(count)), count, sigma)
    np.testing.assert_allclose(claims.mean(axis=0), expected, atol=0.015)
    own = drawn.scores_M.reshape(copies, count)[claims]
    assert (own == 0).all()  # scores stay relative to the claimed token


def test_simulation_leaves_the_rest_alone() -> None:
    rng = np.random.default_rng(4)
    scores = race(30, rng)
    drawn = simulate(scores, 0.2, rng)
    for name in ("status_T", "gap_T", "match_T", "best_T", "rank_T", "logprob_T"):
        assert getattr(drawn, name) is getattr(scores, name)
    np.testing.assert_array_equal(drawn.contenders.rows_M, scores.contenders.rows_M)


def test_simulation_of_an_interval() -> None:
    """The point leaves the claimed interval upwards as often as a normal variate exceeds the distance to its end."""
    copies, sigma = 20_000, 0.4
    found = contenders([[0.0]] * copies, [[0.3]] * copies, [0] * copies)
    found.scores_M[:] = 0.5
    drawn = simulate(scores_of(found, copies, inverse_cdf=True), sigma, np.random.default_rng(5)).contenders
    stayed = (drawn.scores_M == np.float32(0.5)) & (drawn.edges_M == np.float32(0.3))
    above = drawn.scores_M == -np.float32(0.3)
    below = drawn.edges_M == -np.float32(0.5)
    assert (stayed | above | below).all()
    assert above.mean() == pytest.approx(norm.sf(0.3 / sigma), abs=0.015)
    assert below.mean() == pytest.approx(norm.sf(0.5 / sigma), abs=0.015)
