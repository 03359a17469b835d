"""The sequential test: a case by hand, the bound at any time, power against the fixed test, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from veridifr.stats import (
    Bet,
    Bets,
    Bounds,
    SequentialStatus,
    SequentialTest,
    audit_order,
    floor_for_power,
    informed_bet,
    mixed_bets,
    permutation_p_values,
    rank_paths,
    shift_bet,
    simulate_audits,
    simulated_ranks,
)
from veridifr.stats.bets import KNOTS

TWO_FOR_ONE = Bets(bets=(Bet(name="upper half", cdf=np.minimum(2 * KNOTS, 1.0)),), weights=(1.0,))
"""Pays 2 (but for the uniform part) where the rank is below 1/2, else almost nothing."""


def names(count):
    return [f"s{i}" for i in range(count)]


def run(test, honest, scores, strata=None):
    state = test.start(honest, names(len(scores)))
    for i, score in enumerate(scores):
        state = test.update(state, f"s{i}", score, 0 if strata is None else strata[i])
    return state


def test_a_case_by_hand():
    test = SequentialTest(alpha=0.01, bets=TWO_FOR_ONE, tie_seed=1)
    # One honest score: above it the rank is below 1/2, whatever the tie-breaker.
    state = test.start([{0: [0.0]}], names(3))
    assert test.outcome(state).status == SequentialStatus.OPEN
    assert test.outcome(state).p_value == 1.0
    pays = 0.99 * (0.99 * 2 + 0.01) + 0.01  # the bet, its uniform part, and the reserve
    state = test.update(state, "s0", 1.0, 0)
    assert test.outcome(state).e_value == pytest.approx(pays)
    # The bag is now 0, 1: a score below both has a rank above 2/3. The reserve's share has shrunk as the bet won, and a
    # thousandth was spread anew.
    state = test.update(state, "s1", -1.0, 0)
    outcome = test.outcome(state)
    reserve = 0.999 * 0.01 / pays + 0.001 * 0.01
    assert outcome.e_value == pytest.approx(pays * ((1 - reserve) * 0.01 + reserve))
    assert outcome.p_value == pytest.approx(1 / pays)  # the largest so far counts
    assert (outcome.n, outcome.missing, outcome.decided_at) == (2, 0, None)
    # A score that is missing moves nothing.
    state = test.update(state, "s2", None, 0)
    assert (test.outcome(state).e_value, test.outcome(state).missing) == (outcome.e_value, 1)
    assert test.outcome(state).status == SequentialStatus.SPENT


def test_an_earlier_state_is_not_changed():
    test = SequentialTest(alpha=0.01, bets=mixed_bets(), tie_seed=1)
    state = test.start([{0: [0.0, 1.0]}], names(2))
    before = test.outcome(state)
    test.update(state, "s0", 9.0, 0)
    assert test.outcome(state) == before
    assert test.update(state, "s0", 9.0, 0).stacks[0].account == test.update(state, "s0", 9.0, 0).stacks[0].account


def test_wealth_stops_at_the_goal_and_at_the_floor():
    honest = [{0: np.random.default_rng(0).normal(size=200)}]
    test = SequentialTest(alpha=0.05, bets=mixed_bets(), tie_seed=0, floor=0.2)
    high, low = run(test, honest, [9.0] * 8), run(test, honest, [-1.0] * 60)
    assert test.outcome(high).status == SequentialStatus.REJECTED
    assert test.outcome(high).e_value == pytest.approx(20.0)
    assert test.outcome(high).p_value == pytest.approx(0.05) and test.outcome(high).p_value <= 0.05
    assert test.outcome(high).decided_at < 8
    given_up = test.outcome(low)
    assert (given_up.status, given_up.e_value) == (SequentialStatus.GIVEN_UP, 0.0)
    assert given_up.decided_at < 60


def test_what_is_simulated_is_the_test_itself():
    rng = np.random.default_rng(5)
    honest, audited = rng.normal(size=(3, 40)), rng.normal(0.8, 1, size=(3, 25))
    test = SequentialTest(alpha=0.01, bets=mixed_bets([shift_bet(0.8)]), tie_seed=0, floor=0.1)

    class Ties:  # the same tie-breakers as the test derives
        def random(self, shape):
            return np.tile([np.random.default_rng([0, i]).random() for i in range(shape[1])], (shape[0], 1))

    paths = simulate_audits(rank_paths(audited, honest, rng=Ties()), test.bets, Bounds(alpha=0.01, floor=0.1), m=40)
    for row in range(3):
        outcome = test.outcome(run(test, [{0: honest[row]}], audited[row].tolist()))
        assert outcome.e_value == pytest.approx(paths.e_values[row, -1], rel=1e-9)
        assert paths.used[row] == (outcome.decided_at or 25)
        assert paths.rejected[row] == (outcome.status == SequentialStatus.REJECTED)


def rejections(alpha, *, audits=4000, length=60, floor=0.0, seed=0):
    ranks = np.random.default_rng(seed).random((audits, length))
    return simulate_audits(ranks, mixed_bets(), Bounds(alpha=alpha, floor=floor), m=50)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_peeking_at_every_sequence_keeps_the_level(alpha, floor):
    found = rejections(alpha, floor=floor)
    peaks = found.e_values.max(axis=1) >= (1 - 1e-9) / alpha
    assert (peaks == found.rejected).all()
    assert found.rejected.sum() <= binom.ppf(0.999, 4000, alpha)
    # The mean e-value at any time is 1; at the worst moment in hindsight it is not.
    assert found.e_values[:, 9].mean() == pytest.approx(1.0, abs=0.2)
    assert found.e_values.max(axis=1).mean() > 1.5


def test_peeking_at_the_fixed_test_loses_the_level():
    rng = np.random.default_rng(1)
    audited, honest = rng.normal(size=(300, 40)), rng.normal(size=(300, 50))
    rejected = np.zeros(300, dtype=bool)
    for n in range(5, 41, 5):
        rejected |= permutation_p_values(audited[:, :n], honest, permutations=199, rng=rng) <= 0.05
    assert rejected.sum() > binom.ppf(0.9999, 300, 0.05)


def test_the_level_with_ties_strata_and_stopping_by_the_e_value():
    """Scores are tied and depend on the stratum; the audit buys more whenever it looks promising."""
    test = SequentialTest(alpha=0.1, bets=mixed_bets(), tie_seed=3)
    rng, audits, rejected = np.random.default_rng(2), 250, 0
    for audit in range(audits):
        test = SequentialTest(alpha=0.1, bets=test.bets, tie_seed=audit)
        honest = {s: rng.poisson(0.5 + s, 15 + 5 * s) for s in (0, 1, 2)}
        state, used = test.start([honest], []), 0
        while used < 10 or (used < 30 and test.outcome(state).e_value > 0.7):
            more = [f"s{used + i}" for i in range(5)]
            state = test.extend(state, more)
            for name in more:
                stratum = int(rng.integers(3))
                state = test.update(state, name, float(rng.poisson(0.5 + stratum)), stratum)
            used += 5
        rejected += test.outcome(state).p_value <= 0.1
    assert rejected <= binom.ppf(0.999, audits, 0.1)


def test_the_smallest_e_value_over_stacks_keeps_the_level_and_the_largest_does_not():
    rng, audits, smallest, largest = np.random.default_rng(4), 150, 0, 0
    test = SequentialTest(alpha=0.1, bets=mixed_bets(), tie_seed=0)
    for _ in range(audits):
        honest = [{0: rng.normal(mean, 1, 40)} for mean in (-0.6, 0.3)]  # the provider is like the second
        outcome = test.outcome(run(test, honest, rng.normal(0.3, 1, 25).tolist()))
        smallest += outcome.status == SequentialStatus.REJECTED
        largest += min(stack.p_value for stack in outcome.stacks) <= 0.1
    assert smallest <= binom.ppf(0.999, audits, 0.1) < largest


def test_bets_that_look_at_the_null_part_lose_the_level():
    """Why informed bets take a fit part: against a calibration that happens to lie low, knowing that is worth money."""
    rng, bet = np.random.default_rng(6), Bets(bets=(shift_bet(0.7),), weights=(1.0,))
    honest = rng.normal(size=(3000, 8))
    low = honest.mean(axis=1) < -0.4  # known only by looking at the values
    ranks = rank_paths(rng.normal(size=(3000, 60)), honest, rng=rng)
    rejected = simulate_audits(ranks, bet, Bounds(alpha=0.05), m=8).rejected
    assert rejected.sum() <= binom.ppf(0.999, 3000, 0.05)
    assert rejected[low].mean() > 0.1


@pytest.mark.parametrize(("shift", "fixed"), [(0.9, 17), (0.6, 37)])
def test_fewer_sequences_than_the_fixed_test(shift, fixed):
    """Expected sequences over the number with which the fixed test has power 0.9, at alpha 0.01."""
    rng, m, bounds = np.random.default_rng(8), 2000, Bounds(alpha=0.01)
    p = permutation_p_values(rng.normal(shift, 1, (300, fixed)), rng.normal(size=(300, m)), permutations=1000, rng=rng)
    assert (p <= 0.01).mean() < 0.95  # `fixed` isn't too generous
    ranks = rank_paths(rng.normal(shift, 1, (600, 3 * fixed)), rng.normal(size=(600, m)), rng=rng)
    honest_fit, deviating_fit = rng.normal(size=2000), rng.normal(shift, 1, 2000)
    informed = mixed_bets([informed_bet("measured", honest_fit, deviating_fit)])
    planned = simulated_ranks(honest_fit, deviating_fit, m=m, n=3 * fixed, draws=400, rng=rng)
    floor = floor_for_power(planned, informed, alpha=0.01, m=m, power=0.93)
    assert 0.05 < floor < 0.5
    never_gives_up = simulate_audits(ranks, informed, bounds, m=m)
    gives_up = simulate_audits(ranks, informed, Bounds(alpha=0.01, floor=floor), m=m)
    assert gives_up.rejected.mean() >= 0.88
    assert never_gives_up.rejected.mean() > 0.99
    assert gives_up.used.mean() / fixed < 0.76
    assert never_gives_up.used.mean() / fixed < 0.86
    assert simulate_audits(ranks, mixed_bets(), bounds, m=m).used.mean() / fixed < 0.95


def test_a_provider_that_cheats_on_a_tenth_of_the_requests():
    """66 requests (three times the 22 that it takes to touch one) are enough, with uninformed bets too."""
    rng = np.random.default_rng(9)
    audited = rng.normal(size=(400, 66)) + 5.0 * (rng.random((400, 66)) < 0.1)
    ranks = rank_paths(audited, rng.normal(size=(400, 1000)), rng=rng)
    found = simulate_audits(ranks, mixed_bets(), Bounds(alpha=0.01), m=1000)
    assert found.rejected.mean() > 0.9
    # The sum of so many honest scores hides them from the fixed test.
    p = permutation_p_values(audited[:100], rng.normal(size=(100, 1000)), permutations=500, rng=rng)
    assert (p <= 0.01).mean() < 0.9


def test_a_provider_that_begins_to_cheat_late(monkeypatch):
    rng = np.random.default_rng(10)
    audited = np.concatenate([rng.normal(size=(300, 150)), rng.normal(1.2, 1, (300, 60))], axis=1)
    ranks = rank_paths(audited, rng.normal(size=(300, 500)), rng=rng)
    found = simulate_audits(ranks, mixed_bets(), Bounds(alpha=0.01), m=500)
    monkeypatch.setattr("veridifr.stats.wealth._RENEWED", 0.0)
    never_renewed = simulate_audits(ranks, mixed_bets(), Bounds(alpha=0.01), m=500)
    assert found.used.mean() - 150 < 0.7 * (never_renewed.used.mean() - 150)
    assert found.rejected.mean() > 0.95


def test_stacks_and_strata_each_have_their_bets():
    per_stratum = {0: mixed_bets([shift_bet(0.5)]), 1: mixed_bets([shift_bet(1.5)])}
    test = SequentialTest(alpha=0.01, bets=per_stratum, tie_seed=0)
    honest = [{0: [0.0, 1.0], 1: [5.0, 6.0]}, {0: [0.0], 1: [5.0]}]
    outcome = test.outcome(run(test, honest, [2.0, 7.0], strata=[0, 1]))
    assert len(outcome.stacks) == 2
    assert outcome.e_value == min(stack.e_value for stack in outcome.stacks) > 1.0


def test_the_order_is_the_seeds_alone():
    order = audit_order(7, names(50))
    assert order == audit_order(7, names(50)[::-1])
    assert sorted(order) == sorted(names(50)) and list(order) != names(50)
    assert order != audit_order(8, names(50))


def test_simulated_audits_by_hand():
    ranks = [[0.1, 0.9, 0.1], [0.9, 0.1, 0.1]]
    found = simulate_audits(ranks, TWO_FOR_ONE, Bounds(alpha=0.5), m=1)
    # At 1.9801 the goal of 2 is near. Half of the ranks lead to it, the others to 1.9602: on average to 1.9801.
    assert found.e_values[0] == pytest.approx([1.9801, 1.9602, 2.0])
    assert found.e_values[1, 0] == pytest.approx(0.0199)
    assert found.used.tolist() == [3, 3] and found.rejected.tolist() == [True, False] and not found.given_up.any()


STATE_TEST = SequentialTest(alpha=0.01, bets=TWO_FOR_ONE, tie_seed=0)
STATE = STATE_TEST.start([{0: [1.0]}, {0: [1.0], 1: [2.0]}], ["a", "b"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: STATE_TEST.update(STATE, "b", 1.0, 0), "order: got sequence 'b', expected 'a'"),
        (lambda: STATE_TEST.update(STATE, "a", np.inf, 0), "score: 1 of 1 scores are not finite"),
        (lambda: STATE_TEST.update(STATE, "a", 1.0, 1), "stratum: honest stack 0 has no score in 1"),
        (
            lambda: STATE_TEST.update(STATE_TEST.start([{0: [1.0]}], []), "a", 1.0, 0),
            "order: all 0 sequences have been used",
        ),
        (lambda: STATE_TEST.extend(STATE, ["a"]), "order: 1 ids occur more than once"),
        (lambda: STATE_TEST.start([{0: [1.0]}], ["a", "a"]), "order: 1 ids occur more than once"),
        (lambda: STATE_TEST.start([], ["a"]), "honest: got no stack"),
        (lambda: STATE_TEST.start([{}], ["a"]), r"honest\[0\]: got no stratum"),
        (lambda: STATE_TEST.start([{3: []}], ["a"]), r"honest\[0\]\[3\]: got no scores"),
        (
            lambda: SequentialTest(alpha=0.1, bets={0: TWO_FOR_ONE}, tie_seed=0).start([{1: [1.0]}], []),
            "bets: none given for stratum 1",
        ),
        (
            lambda: SequentialTest(alpha=0.1, bets={0: TWO_FOR_ONE, 1: mixed_bets()}, tie_seed=0),
            "bets: expected the same number",
        ),
        (lambda: SequentialTest(alpha=0.1, bets={}, tie_seed=0), "bets: expected the same number"),
        (lambda: SequentialTest(alpha=1.0, bets=TWO_FOR_ONE, tie_seed=0), "alpha: got 1.0"),
        (lambda: SequentialTest(alpha=0.1, bets=TWO_FOR_ONE, tie_seed=-1), "tie_seed: got -1"),
        (lambda: SequentialTest(alpha=0.1, bets=TWO_FOR_ONE, tie_seed=0, floor=-0.1), "floor: got -0.1"),
        (lambda: audit_order(0, ["x", "x"]), "order: 1 ids occur more than once"),
        (lambda: simulate_audits([[1.5]], TWO_FOR_ONE, Bounds(alpha=0.1), m=5), "ranks: expected numbers from 0 to 1"),
        (lambda: floor_for_power([[0.5]], TWO_FOR_ONE, alpha=0.1, m=5, power=1.0), "power: got 1.0"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()
