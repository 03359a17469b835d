"""Power and sample size: extreme cases by hand, normal theory, direct simulation, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from veridifr.stats import fewest_sequences, permutation_test, pooled_p_value, sequences_needed
from veridifr.stats.power import power

NORMAL = norm.ppf((np.arange(2000) + 0.5) / 2000)
"""Scores whose distribution is normal with mean 0 and variance 1, without sampling error."""


def rng(seed=0):
    return np.random.default_rng(seed)


def test_power_by_hand():
    # All honest scores 0, all deviating ones 1: p is always 1 / C(6, 3) = 0.05.
    found = power(np.zeros(3), np.ones(3), 3, alpha=0.05, rng=rng())
    assert (found.power, found.n, found.draws) == (1.0, 3, 200)
    assert found.interval[1] == 1.0 and found.interval[0] == pytest.approx(0.025 ** (1 / 200))
    assert power(np.zeros(3), np.ones(3), 3, alpha=0.0499, rng=rng()).power == 0.0
    assert power(np.zeros(40), np.zeros(40), 40, alpha=0.05, rng=rng()).power == 0.0  # ties never reject


def test_power_is_at_most_alpha_without_a_deviation():
    found = power(NORMAL[::40], NORMAL[::40], 30, alpha=0.05, rng=rng(), draws=1000, permutations=999)
    assert found.power <= binom.ppf(0.9999, 1000, 0.05) / 1000


def test_power_agrees_with_audits_run_one_by_one():
    generator = rng(1)
    honest, deviating = generator.gamma(2.0, size=40), generator.gamma(2.0, size=50) + 0.9
    rejected = 0
    for _ in range(1000):
        audited, calibration = generator.choice(deviating, 15), generator.choice(honest, 40)
        rejected += permutation_test(audited, calibration, permutations=200, rng=generator).p_value <= 0.05
    found = power(honest, deviating, 15, alpha=0.05, rng=generator, draws=1000)
    assert 0.3 < rejected / 1000 < 0.95
    # Five standard errors of the difference; sharing arrangements between simulated audits adds a little.
    assert abs(found.power - rejected / 1000) < 5 * math.sqrt(2 * 0.25 / 1000)


def test_power_agrees_with_the_normal_formula():
    for effect, n in ((0.3, 60), (0.5, 30), (0.6, 36)):
        expected = norm.cdf(effect * math.sqrt(1 / (1 / n + 1 / 2000)) - norm.ppf(0.99))
        found = power(NORMAL, NORMAL + effect, n, alpha=0.01, rng=rng(2), draws=1000, permutations=4000)
        assert found.power == pytest.approx(expected, abs=0.05)


def test_power_rises_with_sequences_and_with_effect():
    honest = NORMAL[::20]
    by_n = [power(honest, honest + 0.5, n, alpha=0.01, rng=rng(3), draws=400).power for n in (5, 20, 60, 200)]
    assert by_n == sorted(by_n) and by_n[-1] - by_n[0] > 0.5
    by_effect = [power(honest, honest + e, 30, alpha=0.01, rng=rng(3), draws=400).power for e in (0, 0.3, 0.6, 1.2)]
    assert by_effect == sorted(by_effect) and by_effect[-1] - by_effect[0] > 0.9


def test_power_in_groups_is_the_same_estimate(monkeypatch):
    honest = NORMAL[::20]
    whole = power(honest, honest + 0.5, 40, alpha=0.01, rng=rng(4), draws=600).power
    monkeypatch.setattr("veridifr.stats.power._BLOCK", 140 * 50)  # fifty simulated audits at a time
    parts = power(honest, honest + 0.5, 40, alpha=0.01, rng=rng(5), draws=630)
    assert parts.draws == 630
    assert parts.power == pytest.approx(whole, abs=0.12)


def test_every_stack_must_reject():
    honest, deviating = NORMAL[::40], NORMAL[::40] + 1.0
    alone = power(honest, deviating, 40, alpha=0.01, rng=rng(6)).power
    assert alone > 0.9
    assert power([honest], deviating, 40, alpha=0.01, rng=rng(6)).power == alone
    both = power([honest, honest - 5.0], deviating, 40, alpha=0.01, rng=rng(6)).power
    assert both == pytest.approx(alone, abs=0.1)  # a stack that is easily told apart changes nothing
    assert power([honest, deviating], deviating, 40, alpha=0.01, rng=rng(6)).power < 0.1


def test_power_against_stacks_agrees_with_the_pooled_test():
    generator = rng(7)
    stacks = [generator.normal(size=25), generator.normal(0.3, 1, size=35)]
    deviating = generator.normal(0.9, 1, size=60)
    rejected = 0
    for _ in range(600):
        audited = generator.choice(deviating, 20)
        results = [
            permutation_test(audited, generator.choice(s, len(s)), permutations=200, rng=generator) for s in stacks
        ]
        rejected += pooled_p_value(results) <= 0.05
    found = power(stacks, deviating, 20, alpha=0.05, rng=generator, draws=600)
    assert 0.2 < rejected / 600 < 0.95
    assert abs(found.power - rejected / 600) < 5 * math.sqrt(2 * 0.25 / 600)


# --- sequences needed


def test_sequences_needed_by_hand():
    # Scores 0 against 1 reject as soon as C(n + 3, n) >= 20: three sequences.
    assert sequences_needed(np.zeros(3), np.ones(3), alpha=0.05, rng=rng()) == 3
    assert sequences_needed(np.zeros(3), np.ones(3), alpha=0.05, rng=rng(), have=8) == 8
    assert sequences_needed([np.zeros(60), np.zeros(3)], np.ones(3), alpha=0.05, rng=rng()) == 3  # the smallest stack
    assert sequences_needed(np.zeros(1), np.ones(3), alpha=0.01, rng=rng()) == fewest_sequences(1, 0.01) == 99


@pytest.mark.parametrize("effect", [0.6, 0.48])  # about 37 and 58: either end of the last doubling, 32 to 64
def test_sequences_needed_agrees_with_the_normal_formula(effect):
    # 1/n + 1/2000 = (effect / (z_0.99 + z_0.9))^2
    expected = 1 / ((effect / (norm.ppf(0.99) + norm.ppf(0.9))) ** 2 - 1 / 2000)
    found = sequences_needed(NORMAL, NORMAL + effect, alpha=0.01, rng=rng(8))
    assert found == pytest.approx(expected, rel=0.2)


def test_sequences_needed_agrees_with_direct_power():
    honest = NORMAL[::10]
    needed = sequences_needed(honest, honest + 0.45, alpha=0.01, rng=rng(9), have=10)
    assert needed is not None and 60 < needed < 200

    def direct(n):
        return power(honest, honest + 0.45, n, alpha=0.01, rng=rng(10), draws=1500).power

    assert direct(needed) == pytest.approx(0.9, abs=0.07)  # the search uses 200 simulated audits per step
    assert direct(needed // 2) < 0.8
    assert direct(2 * needed) > 0.93


def test_sequences_needed_is_reproducible():
    honest = NORMAL[::40]
    answers = {sequences_needed(honest, honest + 0.7, alpha=0.01, rng=rng(seed), have=20) for seed in (1, 1, 1)}
    assert len(answers) == 1


def test_no_number_of_sequences_is_enough():
    honest = NORMAL[::40]
    assert sequences_needed(honest, honest, alpha=0.01, rng=rng(), limit=300) is None  # no deviation
    assert sequences_needed(honest, honest + 0.2, alpha=0.01, rng=rng(), limit=3000) is None  # too few honest scores
    assert sequences_needed(np.zeros(1), np.ones(3), alpha=0.01, rng=rng(), limit=98) is None  # 1 / 99 > alpha
    assert sequences_needed(honest, honest + 9, alpha=0.01, rng=rng(), have=400, limit=300) is None


# --- refusals


def test_refusals():
    ones = np.ones(3)
    with pytest.raises(ValueError, match="honest: got no stack"):
        power([], ones, 3, alpha=0.05, rng=rng())
    with pytest.raises(ValueError, match=r"honest\[1\]: got no scores"):
        power([ones, ones[:0]], ones, 3, alpha=0.05, rng=rng())
    with pytest.raises(ValueError, match="deviating: 1 of 2 scores are not finite"):
        power(ones, np.array([1.0, np.nan]), 3, alpha=0.05, rng=rng())
    with pytest.raises(ValueError, match="alpha: got 1"):
        power(ones, ones, 3, alpha=1.0, rng=rng())
    with pytest.raises(ValueError, match="n: got 0"):
        power(ones, ones, 0, alpha=0.05, rng=rng())
    with pytest.raises(ValueError, match="draws: got 0"):
        power(ones, ones, 3, alpha=0.05, rng=rng(), draws=0)
    with pytest.raises(ValueError, match="permutations: got 0"):
        power(ones, ones, 3, alpha=0.05, rng=rng(), permutations=0)
    with pytest.raises(ValueError, match="power: got 1"):
        sequences_needed(ones, ones, alpha=0.05, rng=rng(), power=1.0)
    with pytest.raises(ValueError, match="have: got -1"):
        sequences_needed(ones, ones, alpha=0.05, rng=rng(), have=-1)
    with pytest.raises(ValueError, match="limit: got 0"):
        sequences_needed(ones, ones, alpha=0.05, rng=rng(), limit=0)
