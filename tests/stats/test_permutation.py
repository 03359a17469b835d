"""The permutation test: answers by hand, a slow oracle in exact arithmetic, refusals."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from veridifr.stats import (
    PermutationResult,
    arrangements,
    fewest_sequences,
    p_floor,
    permutation_p_values,
    permutation_test,
    permutations_for,
    pooled_p_value,
)


def run(audited, honest, *, permutations=199, seed=0, **strata):
    return permutation_test(audited, honest, permutations=permutations, rng=np.random.default_rng(seed), **strata)


@pytest.mark.parametrize(
    ("audited", "honest", "p_value"),
    [
        ([3], [1, 2], 1 / 3),
        ([1], [2, 3], 1.0),
        ([5, 6], [1, 2, 3], 1 / 10),
        ([5, 6, 7], [1, 2], 1 / 10),  # the honest side is the smaller one
        ([2, 3], [1, 4], 4 / 6),  # pair sums 3 4 5 5 6 7, observed 5
        ([1, 1], [0, 1], 3 / 6),  # equal scores: three of the six pairs leave the 0 out
        ([7, 7, 7], [7, 7], 1.0),
        ([0.1, 0.2], [0.3, 0.0], 4 / 6),  # 0.1 + 0.2 > 0.3 in floating point, and must count as equal
        ([-1.0], [-2.0, -3.0, -4.0], 1 / 4),
    ],
)
def test_known_answers(audited, honest, p_value):
    result = run(audited, honest)
    total = math.comb(len(audited) + len(honest), len(audited))
    assert result.p_value == pytest.approx(p_value, abs=1e-15)
    assert result == PermutationResult(
        p_value=result.p_value, floor=1 / total, permutations=total, exact=True, n=len(audited), m=len(honest)
    )


def test_known_answer_with_strata():
    # Sums of the four arrangements: 2 + 10 (observed), 2 + 20, 1 + 10, 1 + 20. Unstratified it would be 5 of 6.
    result = run([2, 10], [1, 20], strata_audited=[64, 128], strata_honest=[64, 128])
    assert (result.p_value, result.floor, result.permutations) == (3 / 4, 1 / 4, 4)
    assert run([2, 10], [1, 20]).p_value == pytest.approx(4 / 6)


def test_honest_strata_without_audited_scores_are_not_used():
    result = run([3.0], [1.0, 2.0, 99.0], strata_audited=[5], strata_honest=[5, 5, 6])
    assert (result.p_value, result.n, result.m) == (pytest.approx(1 / 3), 1, 2)


def oracle(audited, honest, strata_audited, strata_honest):
    """Share of all arrangements whose audited sum reaches the observed one, one by one and in exact arithmetic."""
    choices = []
    for label in sorted(set(strata_audited)):
        group = [Fraction(x) for x, s in zip(audited, strata_audited, strict=True) if s == label]
        others = [Fraction(x) for x, s in zip(honest, strata_honest, strict=True) if s == label]
        choices.append([sum(subset) for subset in itertools.combinations(group + others, len(group))])
    observed = sum(Fraction(x) for x in audited)
    sums = [sum(pick) for pick in itertools.product(*choices)]
    return Fraction(sum(s >= observed for s in sums), len(sums))


@st.composite
def samples(draw):
    """Scores with many ties, in one to three strata that each hold both sides."""
    strata = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
    score = st.one_of(st.integers(-3, 3).map(float), st.floats(-100, 100, width=16))
    labels_n = [label for label, (n, _) in enumerate(strata) for _ in range(n)]
    labels_m = [label for label, (_, m) in enumerate(strata) for _ in range(m)]
    audited = draw(st.lists(score, min_size=len(labels_n), max_size=len(labels_n)))
    honest = draw(st.lists(score, min_size=len(labels_m), max_size=len(labels_m)))
    return audited, honest, labels_n, labels_m


@settings(max_examples=150, deadline=None)
@given(samples())
def test_agrees_with_the_slow_oracle(sample):
    audited, honest, labels_n, labels_m = sample
    result = run(audited, honest, strata_audited=labels_n, strata_honest=labels_m)
    assert result.exact
    assert result.p_value == pytest.approx(float(oracle(*sample)), abs=1e-12)
    assert result.floor <= result.p_value <= 1.0


@settings(max_examples=50, deadline=None)
@given(samples(), st.integers(-5, 5), st.integers(-8, 8), st.randoms(use_true_random=False))
def test_shift_of_a_stratum_scale_and_order_do_not_matter(sample, shift, exponent, random):
    audited, honest, labels_n, labels_m = sample

    def changed(scores, labels):
        pairs = [((x + (shift if s == 0 else 0)) * 2.0**exponent, s) for x, s in zip(scores, labels, strict=True)]
        random.shuffle(pairs)
        return [x for x, _ in pairs], [s for _, s in pairs]

    (a, an), (h, hm) = changed(audited, labels_n), changed(honest, labels_m)
    before = run(audited, honest, strata_audited=labels_n, strata_honest=labels_m)
    assert run(a, h, strata_audited=an, strata_honest=hm).p_value == pytest.approx(before.p_value, abs=1e-12)


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1.0, 8e307])
def test_scores_of_any_size(scale):
    assert run([2 * scale, 2 * scale], [scale, scale, scale]).p_value == pytest.approx(1 / 10)


def test_monte_carlo_agrees_with_enumeration(monkeypatch):
    rng = np.random.default_rng(5)
    audited, honest = rng.normal(0.5, 1, 9), rng.normal(0, 1, 8)
    labels = {"strata_audited": [0] * 5 + [1] * 4, "strata_honest": [0] * 2 + [1] * 6}
    exact = run(audited, honest, **labels)
    monkeypatch.setattr(arrangements, "EXACT_LIMIT", 1)
    drawn = run(audited, honest, permutations=40_000, **labels)
    assert exact.exact and not drawn.exact
    assert 0.02 < exact.p_value < 0.5
    sd = math.sqrt(exact.p_value * (1 - exact.p_value) / 40_000)
    assert abs(drawn.p_value - exact.p_value) < 5 * sd


def test_monte_carlo_never_gives_zero():
    # C(80, 40) is about 1e23, so none of 999 random arrangements reaches the observed one.
    result = run(np.arange(40) + 100.0, np.arange(40.0), permutations=999)
    assert (result.p_value, result.permutations, result.exact) == (1 / 1000, 999, False)
    assert 0 < result.floor == pytest.approx(1 / math.comb(80, 40))


def test_monte_carlo_p_value_is_never_below_the_floor(monkeypatch):
    monkeypatch.setattr(arrangements, "EXACT_LIMIT", 1)
    # Three of the 30 arrangements reach the observed sum on average; with none, 1/31 would be below the floor of 1/10.
    p_values = [run([5, 6], [1, 2, 3], permutations=30, seed=seed).p_value for seed in range(200)]
    assert min(p_values) == 1 / 10
    assert max(p_values) > 4 / 31


def test_same_generator_state_same_answer():
    rng = np.random.default_rng(1)
    audited, honest = rng.normal(size=30), rng.normal(size=30)
    assert run(audited, honest, seed=7) == run(audited, honest, seed=7)
    assert len({run(audited, honest, seed=seed).p_value for seed in range(8)}) > 1


def test_blocks_cover_all_permutations(monkeypatch):
    rng = np.random.default_rng(1)
    audited, honest = rng.normal(0.4, 1, 30), rng.normal(size=30)
    whole = run(audited, honest, permutations=5000)
    exact = run(audited[:6], honest[:9])
    monkeypatch.setattr(arrangements, "_BLOCK", 60 * 7)  # seven arrangements at a time
    parts = run(audited, honest, permutations=5000)
    assert parts.permutations == 5000
    assert abs(parts.p_value - whole.p_value) < 5 * math.sqrt(2 * whole.p_value / 5000)
    assert run(audited[:6], honest[:9]) == exact


@pytest.mark.parametrize(
    ("audited", "honest"), [([2.0, 2.0, 2.0], [0.0, 0.0, 1e9]), ([2.0, 2.0, -1e9], [0.0, 0.0, 0.0])]
)
def test_an_enormous_honest_or_a_very_low_audited_score_hides_the_rest(audited, honest):
    """Half of the 20 arrangements move it to the other side and beat the observed sum; the observed one is the 11th."""
    assert run(audited, honest).p_value == pytest.approx(11 / 20)


def test_an_enormous_audited_score_hides_nothing():
    assert run([2.0, 2.0, 1e9], [0.0, 0.0, 0.0]).p_value == pytest.approx(1 / 20)


# --- random subsets


@pytest.mark.parametrize(("size", "pick"), [(5, 2), (5, 3), (4, 1), (6, 6)])
def test_subsets_are_uniform(size, pick):
    subsets = np.sort(arrangements.random_subsets(30_000, size, pick, np.random.default_rng(3)), axis=1)
    assert subsets.shape == (30_000, pick)
    assert (np.diff(subsets, axis=1) > 0).all()  # no member twice
    found, counts = np.unique(subsets, axis=0, return_counts=True)
    assert len(found) == math.comb(size, pick)
    assert chisquare(counts).pvalue > 1e-3 if len(counts) > 1 else counts[0] == 30_000


# --- batches of tests


def test_batch_gives_each_test_its_own_p_value():
    rng = np.random.default_rng(8)
    audited, honest = rng.normal(size=(5, 4)) * 10.0 ** np.arange(5)[:, None], rng.normal(size=(5, 6))
    p_values = permutation_p_values(audited, honest, permutations=1, rng=rng)
    assert p_values.tolist() == [run(a, h).p_value for a, h in zip(audited, honest, strict=True)]


def test_batch_by_monte_carlo():
    rng = np.random.default_rng(9)
    audited, honest = rng.normal(0.3, 1, (4, 30)), rng.normal(size=(4, 40))
    batch = permutation_p_values(audited, honest, permutations=20_000, rng=rng)
    single = [run(a, h, permutations=20_000).p_value for a, h in zip(audited, honest, strict=True)]
    assert batch == pytest.approx(single, abs=5 * math.sqrt(2 * 0.25 / 20_000))


# --- floors


def test_floor_by_hand():
    assert p_floor(2, 2) == 1 / 6
    assert p_floor(1, 99) == p_floor(99, 1) == 1 / 100
    assert p_floor(1, 10**7) == 1 / (10**7 + 1)
    assert 0.0 < p_floor(5000, 5000) < 1e-300
    assert run([1, 2, 3], [1, 2, 3], strata_audited=[0, 0, 1], strata_honest=[0, 0, 1]).floor == 1 / 12


@pytest.mark.parametrize(
    ("m", "alpha", "n"), [(1, 0.01, 99), (1, 1e-6, 999_999), (2, 0.01, 13), (3, 0.05, 3), (60, 0.01, 2), (200, 0.01, 1)]
)
def test_fewest_sequences(m, alpha, n):
    assert fewest_sequences(m, alpha) == n


@given(st.integers(1, 30), st.floats(1e-4, 0.5))
def test_fewest_sequences_is_the_first_that_suffices(m, alpha):
    n = fewest_sequences(m, alpha)
    assert p_floor(n, m) <= alpha
    assert n == 1 or p_floor(n - 1, m) > alpha


def test_permutations_for():
    assert [permutations_for(alpha) for alpha in (0.05, 0.01, 0.001, 0.3)] == [200, 1000, 10_000, 34]


# --- refusals


@pytest.mark.parametrize(
    ("audited", "honest", "match"),
    [
        ([], [1.0], "audited: got no scores"),
        ([1.0], [], "honest: got no scores"),
        ([1.0, math.nan], [1.0], "audited: 1 of 2 scores are not finite"),
        ([1.0], [math.inf, -math.inf, 0.0], "honest: 2 of 3 scores are not finite"),
        ([[1.0]], [1.0], "audited: got an array with 2 axes"),
    ],
)
def test_refuses_scores(audited, honest, match):
    with pytest.raises(ValueError, match=match):
        run(audited, honest)


@pytest.mark.parametrize(
    ("strata_audited", "strata_honest", "match"),
    [
        ([1, 2], None, "one sample only"),
        (None, [1, 2, 2], "one sample only"),
        ([1], [1, 2, 2], r"strata_audited: got labels of shape \(1,\), expected one for each of 2"),
        ([1, 2], [1, 2], r"strata_honest: got labels of shape \(2,\), expected one for each of 3"),
        ([1.0, 2.0], [1, 2, 2], "strata_audited: got labels of type float64"),
        ([1, 3], [1, 2, 2], "no honest score lies in stratum 3,"),
    ],
)
def test_refuses_strata(strata_audited, strata_honest, match):
    with pytest.raises(ValueError, match=match):
        run([1, 2], [1, 2, 3], strata_audited=strata_audited, strata_honest=strata_honest)


def test_refuses_an_audit_of_many_lonely_strata_in_a_short_sentence():
    with pytest.raises(ValueError, match="stratum 1, 2, 3, 4, 5 and others, so"):
        run(range(9), [0.0], strata_audited=range(1, 10), strata_honest=[0])


@pytest.mark.parametrize("permutations", [0, -1, 1.5, True, "9"])
def test_refuses_permutations(permutations):
    with pytest.raises(ValueError, match="permutations: got"):
        run([1.0], [1.0], permutations=permutations)


def test_refuses_the_rest():
    with pytest.raises(ValueError, match="at least one honest stack"):
        pooled_p_value([])
    for alpha in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="alpha: got"):
            permutations_for(alpha)
        with pytest.raises(ValueError, match="alpha: got"):
            fewest_sequences(5, alpha)
    with pytest.raises(ValueError, match="m: got 0"):
        fewest_sequences(0, 0.05)
    with pytest.raises(ValueError, match="audited holds 2 data sets and honest 1"):
        permutation_p_values(np.ones((2, 3)), np.ones((1, 3)), permutations=9, rng=np.random.default_rng(0))
