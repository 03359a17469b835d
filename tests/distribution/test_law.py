"""The probabilities of draws against slow oracles: sums over random errors, one row of logits at a time."""

from __future__ import annotations

import numpy as np
import pytest

from makers import make_trace, whole_rows
from veridifr.contracts.unknown import UNKNOWN
from veridifr.distribution import MOST, Law, choices_of, edges_at
from veridifr.filters import filters_on
from veridifr.scores import Choices, Hypothesis, Scores
from veridifr.scoring import score

ROWS = np.array([[2.0, 1.5, 0.2, -1.0, -2.5, -4.0], [0.3, 3.0, 2.9, 2.0, -0.5, -6.0], [0.3, 0.2, 0.1, 0.0, -0.1, -0.2]])
SETTINGS = [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.15}, {"top_k": 4, "top_p": 0.9}, {"temperature": 0.7}]


def scored(output: tuple[int, ...] = (1, 3, 0), **sampling: object) -> Scores:
    trace = make_trace(output, **{"seed": None, **sampling})
    claim = Hypothesis(contract=UNKNOWN, sampling=trace.sampling, seed=None)
    return score(trace, whole_rows(trace, ROWS), claim)


def choices(**sampling: object) -> Choices:
    return choices_of(scored(**sampling))


def kept_by_hand(row: np.ndarray, sampling: dict[str, object], shift: float = 0.0) -> np.ndarray:
    """The kept set of one row, its edge moved by `shift` logits, from the definition of each filter."""
    heat = float(sampling.get("temperature", 1.0))
    order = np.argsort(-row, kind="stable")
    ranked, keep = row[order], np.ones(len(row), dtype=bool)
    if "min_p" in sampling:
        keep &= ranked > ranked[0] + heat * np.log(float(sampling["min_p"])) - shift
    if "top_k" in sampling:
        keep[int(sampling["top_k"]) :] = False
    if "top_p" in sampling:
        weight = np.where(keep, np.exp(ranked / heat), 0.0)
        above = (np.cumsum(weight) - weight) / weight.sum()
        keep &= above < float(sampling["top_p"])
    found = np.zeros(len(row), dtype=bool)
    found[order] = keep
    found[order[0]] = True
    return found


@pytest.mark.parametrize("sampling", SETTINGS)
def test_without_errors_it_is_the_claimed_distribution(sampling: dict[str, object]) -> None:
    found = choices(**sampling)
    law = Law(found, found.temperature)
    probability = law.kept(np.arange(len(found.logits_M)), 1e-6)
    ends = [*found.starts_T[1:], len(found.logits_M)]
    for row, start, end in zip(ROWS, found.starts_T, ends, strict=True):
        kept = kept_by_hand(row, sampling)
        heat = float(sampling.get("temperature", 1.0))
        wanted = np.where(kept, np.exp(row / heat), 0.0)
        wanted = np.sort(wanted / wanted.sum())[::-1][: end - start]
        assert probability[start:end] == pytest.approx(wanted, abs=1e-6)  # logits are kept in float32


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5])
def test_probabilities_sum_to_one(sampling: dict[str, object], sigma: float) -> None:
    found = choices(**sampling)
    law, every = Law(found, found.temperature), np.arange(len(found.logits_M))
    sums = np.add.reduceat(law.kept(every, sigma), found.starts_T)
    assert sums == pytest.approx(np.ones(3), abs=1e-9)
    moved = np.add.reduceat(law.kept(every, sigma) * law.moved(every, sigma), found.starts_T)
    assert moved == pytest.approx(np.ones(3), abs=0.01 if sigma < 0.5 else 0.03)


def test_the_edge_is_averaged_over_its_shift() -> None:
    """top-k 3 of the first row: the third and fourth logits are 1.2 apart, so the edge crosses each at known shifts."""
    found = choices(top_k=3)
    sigma, draws = 1.0, np.random.default_rng(0).standard_normal(200_000)
    listed = np.flatnonzero(found.rows_M == 0)
    weights, edges = np.exp(found.logits_M[listed].astype(float)), found.edges_M[listed].astype(float)
    edges[0] = -np.inf
    inside = edges[None, :] < sigma * draws[:, None]
    wanted = (np.where(inside, weights, 0.0) / np.where(inside, weights, 0.0).sum(axis=1, keepdims=True)).mean(axis=0)
    assert Law(found, 1.0).kept(listed, sigma) == pytest.approx(wanted, abs=0.004)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6, MOST])
@pytest.mark.parametrize("heat", [1.0, 0.7])
def test_errors_inside_the_set_against_random_errors(sigma: float, heat: float) -> None:
    """The mean of the softmax over 400,000 random errors, for each candidate of each row."""
    sigma = sigma * heat
    found = choices(temperature=heat)
    law, rng = Law(found, heat), np.random.default_rng(1)
    moved = law.kept(np.arange(18), sigma) * law.moved(np.arange(18), sigma)
    for number, start in enumerate(found.starts_T):
        logits = found.logits_M[start : start + 6].astype(float)
        noisy = (logits + sigma * rng.standard_normal((400_000, 6))) / heat
        noisy = np.exp(noisy - noisy.max(axis=1, keepdims=True))
        wanted = (noisy / noisy.sum(axis=1, keepdims=True)).mean(axis=0)
        assert moved[start : start + 6] == pytest.approx(wanted, rel=0.05, abs=1e-4), number


def test_small_errors_change_a_probability_as_the_formula_says() -> None:
    found = choices()
    law, sigma = Law(found, 1.0), 0.02
    share = law.all_of(np.arange(18))
    squares = np.add.reduceat(share**2, found.starts_T)[found.rows_M]
    assert law.moved(np.arange(18), sigma) == pytest.approx(1 + sigma**2 * (squares - share), abs=1e-7)


def test_a_forbidden_token_has_no_share_but_epsilon() -> None:
    found = scored((1, 3, 5), allowed_token_ids=(0, 1, 2, 3))
    assert found.gap_T[2] < -30
    law = Law(choices_of(found), 1.0)
    assert law.kept(choices_of(found).claimed_T, 0.1)[2] == 0.0
    assert law.kept(choices_of(found).claimed_T, 0.1)[:2].min() > 0.0


@pytest.mark.parametrize("sampling", [one for one in SETTINGS if one])
def test_edges_at_the_claimed_temperature_are_the_scored_ones(sampling: dict[str, object]) -> None:
    found = choices(**sampling)
    edges = edges_at(found, found.temperature)
    if filters_on(found.sampling):
        assert (edges[1:] <= 0).tolist() == (found.edges_M[1:] <= 0).tolist()
    else:
        assert (edges == -np.inf).all()


def test_a_hotter_sampler_keeps_more_under_top_p() -> None:
    found = choices(top_p=0.8)
    assert (edges_at(found, 2.0) <= 0).sum() > (edges_at(found, 1.0) <= 0).sum()
