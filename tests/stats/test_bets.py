"""Bets integrate to 1, at every bag size and state of the account; payoffs known by hand; refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from veridifr.stats import Bet, Bets, Bounds, informed_bet, lehmann_bet, mixed_bets, shift_bet
from veridifr.stats.bets import KNOTS
from veridifr.stats.wealth import bounded, learned, settle, stake

FLAT = Bet(name="flat", cdf=KNOTS)


def noise(seed, size, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, size)


BETS = [
    FLAT,
    shift_bet(0.3),
    shift_bet(6.0),
    lehmann_bet(0.2),
    shift_bet(3.0).on_part(0.05),
    informed_bet("shift", noise(0, 200), noise(1, 100, 1.0)),
    informed_bet("tied", [0.0, 0.0, 1.0], [1.0, 2.0]),
    informed_bet("lower", noise(0, 50), noise(1, 50, -3.0)),
]


@pytest.mark.parametrize("m", [1, 7, 60, 2000, 10**7])
@pytest.mark.parametrize("bet", BETS, ids=lambda bet: bet.name)
def test_every_density_integrates_to_one(bet, m):
    table = Bets(bets=(bet,), weights=(1.0,)).table(m)
    assert table.density @ table.widths == pytest.approx([1.0, 1.0], abs=1e-12)
    assert (table.density > 0).all()
    assert table.edges[1] == pytest.approx(1 / (m + 1))  # no cell ends within the rank of one score
    assert (table.widths > 0).all() and table.edges[-1] == 1.0


def test_cells_hold_their_ranks():
    table = mixed_bets().table(9)
    assert table.cell([0.0, 0.0999, 1.0]).tolist() == [0, 0, len(table.widths) - 1]
    inner = (table.edges[:-1] + table.edges[1:]) / 2
    assert table.cell(inner).tolist() == list(range(len(inner)))


def test_known_densities():
    row = Bets(bets=(lehmann_bet(0.5),), weights=(1.0,)).table(99).density[0]
    assert row[0] == pytest.approx(0.99 * 0.1 / 0.01 + 0.01, rel=2e-3)  # sqrt(0.01) of the mass within 0.01
    row = Bets(bets=(shift_bet(1.0),), weights=(1.0,)).table(1).density[0]
    assert row[0] == pytest.approx(0.99 * 0.8413447 / 0.5 + 0.01, rel=1e-6)  # half the honest lie above 0


def test_an_informed_bet_finds_the_shape_it_is_given():
    # All deviating scores lie between the second and the third largest of four: ranks from 2/5 to 3/5.
    bet = informed_bet("one place", [1.0, 2.0, 3.0, 4.0], [2.5])
    assert np.interp([0.3, 0.6, 0.8], KNOTS, bet.cdf) == pytest.approx([0.5, 1.0, 1.0])  # made concave: flat to 3/5
    near = informed_bet("shift", noise(0, 4000), noise(1, 4000, 1.0))
    assert np.abs(near.cdf - shift_bet(1.0).cdf).max() < 0.04


def test_an_informed_bet_never_bets_on_low_scores():
    density = np.diff(informed_bet("both ends", noise(0, 300), 3 * noise(1, 300)).cdf) / np.diff(KNOTS)
    assert (np.diff(density) <= 1e-9 * density[0]).all()


def test_a_bet_on_part_of_the_requests_is_that_part_of_the_bet():
    assert shift_bet(2.0).on_part(0.1).cdf == pytest.approx(0.9 * KNOTS + 0.1 * shift_bet(2.0).cdf)


def test_weights_of_the_default_mixture():
    plain, informed = mixed_bets(), mixed_bets([BETS[5], BETS[6]], share=0.6)
    assert sum(plain.weights) == pytest.approx(1.0) and sum(informed.weights) == pytest.approx(1.0)
    assert informed.weights[:2] == pytest.approx((0.3, 0.3))
    assert informed.prior.sum() == pytest.approx(1.0) and len(informed.prior) == len(informed.table(5).density)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(0.0, 0.9),
    st.floats(0.001, 0.5),
    st.floats(0.0, 1.0),
    st.sampled_from([1, 30, 2000]),
)
def test_the_payoff_is_a_martingale_within_its_bounds(seed, floor, alpha, where, m):
    """At random wealth and random shares: the integral is 1, and the next account lies between floor and goal."""
    rng = np.random.default_rng(seed)
    bounds, bets = Bounds(alpha=alpha, floor=floor), mixed_bets([BETS[5]])
    table = bets.table(m)
    account = np.array([max(floor, 0.01) * (bounds.goal / max(floor, 0.01)) ** where])
    shares = rng.dirichlet(np.full(len(bets.prior), 0.2), size=1)
    paid = stake(shares, account, table, bounds)
    assert paid @ table.widths == pytest.approx([1.0], abs=1e-9)
    assert (paid >= 0).all()
    assert (account * paid >= floor * (1 - 1e-9)).all() and (account * paid <= bounds.goal * (1 + 1e-9)).all()
    after = np.array([settle(account, paid[:, c], bounds)[0] for c in range(len(table.widths))])
    assert bounds.e_value(after) @ table.widths == pytest.approx(bounds.e_value(account)[0], rel=1e-7, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 1.0), st.floats(1.0, 50.0))
@example(0, 0.5, 1.25)  # at the first factor every cell is at a bound
def test_bounding_agrees_with_a_root_finder(seed, low, high):
    rng = np.random.default_rng(seed)
    widths = rng.dirichlet(np.ones(6))
    forecast = rng.exponential(1.0, 6) + 1e-3
    forecast /= forecast @ widths
    found = bounded(forecast[None], widths, np.array([low]), np.array([high]))[0]

    def short(c):
        return np.clip(c * forecast, low, high) @ widths - 1.0

    top = 2.0 * high / forecast.min()
    factor = 0.0 if short(0.0) >= 0.0 else top if short(top) <= 0.0 else brentq(short, 0.0, top, xtol=1e-15)
    assert found == pytest.approx(np.clip(factor * forecast, low, high), abs=1e-6)


def test_shares_by_hand():
    # Equal shares, densities 3 and 1: three quarters to one, less the thousandth that goes back to the prior.
    prior = np.array([0.2, 0.8])
    after = learned(np.array([[0.5, 0.5]]), np.array([[3.0, 1.0]]), prior)
    assert after == pytest.approx(np.array([[0.999 * 0.75 + 0.0002, 0.999 * 0.25 + 0.0008]]))


def test_bounding_by_hand():
    # Two halves that pay 1.8 and 0.2; nothing may pay more than 1.5: the rest goes to the other half.
    halves = np.array([0.5, 0.5])
    assert bounded(np.array([[1.8, 0.2]]), halves, np.array([0.0]), np.array([1.5])) == pytest.approx(
        np.array([[1.5, 0.5]])
    )
    assert bounded(np.array([[1.8, 0.2]]), halves, np.array([0.4]), np.array([9.0])) == pytest.approx(
        np.array([[1.6, 0.4]])
    )


def test_e_values_of_accounts():
    bounds = Bounds(alpha=0.01, floor=0.2)
    assert bounds.goal == pytest.approx(80.2)
    assert bounds.e_value(np.array([0.2, 1.0, 80.2])) == pytest.approx([0.0, 1.0, 100.0])
    assert bounds.closed(np.array([0.2, 1.0, bounds.goal])).tolist() == [True, False, True]
    assert not Bounds(alpha=0.01).closed(np.array([1e-3]))[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: shift_bet(0.0), "shift: got 0.0"),
        (lambda: lehmann_bet(1.0), "exponent: got 1.0"),
        (lambda: shift_bet(1.0).on_part(0.0), "part: got 0.0"),
        (lambda: informed_bet("x", [], [1.0]), "honest_fit: got no scores"),
        (lambda: informed_bet("x", [1.0], [np.inf]), "deviating_fit: 1 of 1 scores are not finite"),
        (lambda: Bet(name="short", cdf=np.array([0.0, 1.0])), "cdf of short: expected"),
        (lambda: Bet(name="falls", cdf=np.append(KNOTS[:-1][::-1] * 0.0 + 0.5, 1.0)), "cdf of falls: expected"),
        (lambda: Bets(bets=(FLAT,), weights=(0.9,)), "weights: expected one above 0"),
        (lambda: Bets(bets=(FLAT, FLAT), weights=(1.0,)), "weights: expected one above 0"),
        (lambda: mixed_bets([FLAT], share=1.0), "share: got 1.0"),
        (lambda: mixed_bets().table(0), "m: got 0"),
        (lambda: Bounds(alpha=0.0), "alpha: got 0.0"),
        (lambda: Bounds(alpha=0.1, floor=1.0), "floor: got 1.0"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(ValueError, match=said):
        make()
