"""The statistic without noise: known answers, what honest draws give, and what is simulated for power."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from makers import contenders, make_trace, scores_of, whole_rows
from veridifr import stats
from veridifr.contracts.unknown import UNKNOWN
from veridifr.distribution import ALTERNATIVES, NOMINAL_SIGMA, DistributionRatio, Law, choices_of, token_log_likelihoods
from veridifr.distribution_effects import at_temperature, distribution_effects, seeded_tokens, with_noise
from veridifr.distribution_summary import token_checks
from veridifr.fitting import EPSILON_GRID, declared_by_default, fit_distribution
from veridifr.scores import Hypothesis, Scores, Status
from veridifr.scoring import score
from veridifr.statistic import Alternative

VOCAB, TOKENS = 12, 40
STATISTIC = DistributionRatio(sigma=0.03, epsilon=1e-5)


def drawn(rng: np.random.Generator, *, heat: float = 1.0, sigma: float = 0.0, **sampling: object) -> Scores:
    """One sequence of draws from softmax(l / heat), l with errors of sigma, scored as draws at temperature 1."""
    logits = 1.5 * rng.standard_normal((TOKENS, VOCAB))
    noisy = logits + sigma * rng.standard_normal(logits.shape)
    top_k = sampling.get("top_k")
    if isinstance(top_k, int):
        noisy = np.where(noisy >= np.sort(noisy, axis=1)[:, [-top_k]], noisy, -np.inf)
    output = (noisy / heat + rng.gumbel(size=noisy.shape)).argmax(axis=1)
    trace = make_trace(tuple(output.tolist()), seed=None, **sampling)
    return score(trace, whole_rows(trace, logits), Hypothesis(contract=UNKNOWN, sampling=trace.sampling, seed=None))


def sample(count: int, start: int, **how: object) -> list[Scores]:
    return [drawn(np.random.default_rng([start, i]), **how) for i in range(count)]


def test_a_known_ratio() -> None:
    """Two tokens of equal logits and a share of replaced ones: hot draws are as likely, so every ratio is 0; with a
    temperature, p = e^(1/T) / (1 + e^(1/T)) for a lead of one logit."""
    trace = make_trace((0, 1), seed=None)
    rows = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = score(trace, whole_rows(trace, rows), Hypothesis(contract=UNKNOWN, sampling=trace.sampling, seed=None))
    only = replace(STATISTIC, epsilon=1e-12, alternatives=(Alternative(kind="temperature", size=1.0, weight=1.0),))
    ratios, _ = only.ratios_at(choices_of(found), choices_of(found).claimed_T)
    half, whole = 1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(-1.0))
    assert ratios[:, 0] == pytest.approx([np.log(half / whole), np.log((1 - half) / (1 - whole))], abs=1e-3)


def test_ratios_of_honest_draws_are_fair_bets() -> None:
    """The mean of q_a / q_0 over the honest distribution is 1 for every alternative and row (up to the formula's
    error), so no alternative gains from honest draws."""
    for found in sample(3, 5) + sample(3, 6, top_k=5):
        choices = choices_of(found)
        every = np.arange(len(choices.logits_M))
        ratios, applies = STATISTIC.ratios_at(choices, every)
        noise = np.exp(token_log_likelihoods(found, np.array([STATISTIC.sigma]), STATISTIC.epsilon))
        assert (noise <= 1.0 + 1e-9).all()
        honest = Law(choices, 1.0).kept(every, STATISTIC.sigma)
        means = np.add.reduceat(np.exp(ratios) * honest[:, None], choices.starts_T, axis=0)[:, applies]
        assert means.max() < 1.05
        assert means.mean() < 1.005


def test_a_cut_needs_a_filter_and_large_errors_are_not_tried() -> None:
    plain, filtered = sample(1, 1)[0], sample(1, 1, top_k=5)[0]
    kinds = np.array([entry.kind for entry in ALTERNATIVES])
    for found, cuts in ((plain, False), (filtered, True)):
        _, applies = STATISTIC.ratios_at(choices_of(found), choices_of(found).claimed_T)
        assert applies[kinds == "cut"].all() == cuts and applies[kinds == "cut"].any() == cuts
        sizes = np.array([entry.size for entry in ALTERNATIVES])
        assert applies[kinds == "noise"].tolist() == (sizes[kinds == "noise"] * 0.03 <= 0.8).tolist()


def test_bounds_add_nothing() -> None:
    found = sample(1, 2)[0]
    status = found.status_T.copy()
    status[:] = Status.BOUND
    assert STATISTIC.prefix_scores(replace(found, status_T=status), [TOKENS])[0] == pytest.approx(0.0, abs=1e-12)


def test_scores_with_known_noise_are_refused() -> None:
    with pytest.raises(ValueError, match="known noise"):
        STATISTIC.prefix_scores(scores_of(contenders([[0.0, -1.0]], [[-1.0, -1.0]], [0]), 1), [1])


@pytest.mark.parametrize("sampling", [{}, {"top_k": 5}])
def test_honest_draws_are_called_divergent_as_often_as_asked_for(sampling: dict[str, object]) -> None:
    """Two pools of honest sequences: the test's error rate at 0.05 is within its binomial bound."""
    scores = np.array([STATISTIC.prefix_scores(found, [TOKENS])[0] for found in sample(240, 9, **sampling)])
    rng = np.random.default_rng(4)
    p_values = []
    for _ in range(200):
        order = rng.permutation(len(scores))
        p_values.append(
            stats.permutation_test(scores[order[:40]], scores[order[40:]], permutations=400, rng=rng).p_value
        )
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("how", [{"heat": 1.4}, {"heat": 0.7}, {"sigma": 1.5}])
def test_deviating_draws_score_higher(how: dict[str, float]) -> None:
    honest, other = ([STATISTIC.prefix_scores(s, [TOKENS])[0] for s in sample(60, 3, **h)] for h in ({}, how))
    assert np.mean(other) > np.mean(honest) + 0.5 * np.std(honest)


def test_the_fit_finds_the_size_of_errors_at_an_edge() -> None:
    found = fit_distribution(sample(150, 7, top_k=4, sigma=0.1))
    assert 0.05 < found.sigma < 0.2
    assert declared_by_default(found, sample(2, 7, top_k=4)) == pytest.approx(4 * found.sigma)


def test_without_a_filter_the_size_is_nominal() -> None:
    plain = sample(5, 8)
    found = fit_distribution(plain)
    assert (found.sigma, found.epsilon) == (NOMINAL_SIGMA, EPSILON_GRID[0])
    assert declared_by_default(found, plain) == pytest.approx(0.6)


def test_drawn_noise_chooses_the_claimed_tokens() -> None:
    for found in sample(5, 11) + sample(5, 12, top_k=5):
        known = with_noise(found, np.random.default_rng(2))
        few = known.scores.contenders
        assert few.claimed_M.sum() == TOKENS
        inside = (few.edges_M <= 0) | few.claimed_M
        assert few.scores_M[inside].max() <= 1e-6
        assert (known.index_M[few.claimed_M] == choices_of(found).claimed_T).all()


def test_drawn_noise_is_gumbel() -> None:
    """Over draws of token and noise, the noise of every candidate is a Gumbel variate: mean 0.5772, variance 1.645.

    One row, drawn again and again: relative noise of candidates 0 and 1 has mean 0 and variance pi^2 / 3."""
    rng, logits = np.random.default_rng(5), np.tile([1.0, 0.5, -0.2], (4000, 1))
    output = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    trace = make_trace(tuple(output.tolist()), seed=None)
    found = score(trace, whole_rows(trace, logits), Hypothesis(contract=UNKNOWN, sampling=trace.sampling, seed=None))
    known = with_noise(found, rng)
    noise = np.full((4000, 3), np.inf)
    few = known.scores.contenders
    noise[few.rows_M, known.index_M - choices_of(found).starts_T[few.rows_M]] = few.noise_M
    there = np.isfinite(noise[:, :2]).all(axis=1)
    difference = noise[there, 0] - noise[there, 1]
    assert len(difference) > 3950  # the others lie further behind than what is kept
    assert difference.mean() == pytest.approx(0.0, abs=0.12)
    assert difference.var() == pytest.approx(np.pi**2 / 3, rel=0.1)


def test_simulated_deviations_grow_and_the_honest_score_is_the_real_one() -> None:
    honest = sample(40, 13, top_k=6)
    found = [
        distribution_effects(STATISTIC, s, [20, TOKENS], [0.05, 0.4], [0.3, -0.4], np.random.default_rng(i))
        for i, s in enumerate(honest)
    ]
    for effect, scores in zip(found, honest, strict=True):
        assert effect.honest == pytest.approx(STATISTIC.prefix_scores(scores, [20, TOKENS]), abs=6e-4)
        assert effect.simulated.shape == (4, 2)
    means = np.mean([effect.simulated[:, 1] for effect in found], axis=0)
    base = np.mean([effect.honest[1] for effect in found])
    assert means[1] > means[0] >= base - 0.3
    assert means[2] > base and means[3] > base


def test_a_simulated_temperature_gives_the_draws_of_that_temperature() -> None:
    """The share of the likeliest token at 1.5 times the temperature, from honest draws: within three errors."""
    rng, logits = np.random.default_rng(6), np.tile([2.0, 0.5, 0.0, -1.0], (6000, 1))
    output = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    trace = make_trace(tuple(output.tolist()), seed=None)
    found = score(trace, whole_rows(trace, logits), Hypothesis(contract=UNKNOWN, sampling=trace.sampling, seed=None))
    known = with_noise(found, rng)
    wins = at_temperature(known, choices_of(found), 0.5)
    share = np.mean(known.index_M[wins] - choices_of(found).starts_T == 0)
    wanted = np.exp(2.0 / 1.5) / np.exp(logits[0] / 1.5).sum()
    assert share == pytest.approx(wanted, abs=3 * np.sqrt(wanted * (1 - wanted) / 6000))


def test_seeds_would_save_tokens() -> None:
    plain = sample(60, 14)
    found = seeded_tokens([(s, TOKENS) for s in plain], STATISTIC, 0.4, [8, 16, TOKENS])
    assert found is not None and 16 <= found <= 400


def test_the_classical_checks_on_honest_and_hot_draws() -> None:
    rng = np.random.default_rng(7)
    for how, honest in (({}, True), ({"heat": 1.5}, False)):
        parts = [token_checks(s, 0.03, rng) for s in sample(60, 15, **how)]
        table, ranks = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        z = table[:, 0].sum() / np.sqrt(table[:, 1].sum())
        distance = np.abs(np.sort(ranks) - (np.arange(len(ranks)) + 0.5) / len(ranks)).max()
        assert (abs(z) < 3.5) == honest
        assert (distance < 1.95 / np.sqrt(len(ranks))) == honest
