"""Another forward pass and other settings as causes of draws, and of temperature 0, against what they are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from makers import make_trace, whole_rows
from veridifr.contracts.registry import CONTRACTS
from veridifr.contracts.unknown import UNKNOWN
from veridifr.distribution import HOT, log_likelihoods_claiming, token_log_likelihoods
from veridifr.erring import APART, SHARES, SIZES, log_likelihoods_erring
from veridifr.likelihood import SIGMA_GRID
from veridifr.scores import Hypothesis, Scores
from veridifr.scoring import score
from veridifr.trace import Sampling

ROWS = np.array([[2.0, 1.5, 0.2, -1.0, -2.5, -4.0], [0.3, 3.0, 2.9, 2.0, -0.5, -6.0], [0.3, 0.2, 0.1, 0.0, -0.1, -0.2]])
EPSILON = 1e-6


def scored(output: tuple[int, ...] = (1, 3, 0), **sampling: object) -> Scores:
    trace = make_trace(output, **{"seed": None, **sampling})
    contract = CONTRACTS["greedy"] if trace.sampling.greedy else UNKNOWN
    return score(trace, whole_rows(trace, ROWS), Hypothesis(contract=contract, sampling=trace.sampling, seed=None))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}])
def test_without_hot_tokens_small_errors_are_those_of_the_statistic(
    temperature: float, filters: dict[str, int]
) -> None:
    """Both are exact to second order."""
    found = scored(temperature=temperature, **filters)
    plain, small = log_likelihoods_erring(found, EPSILON)[:, : len(SIZES)], SIZES <= 0.1
    wanted = token_log_likelihoods(found, temperature * SIZES[small], EPSILON)
    assert plain[:, small] == pytest.approx(wanted, abs=2e-3)


def test_a_share_of_the_draws_is_hot() -> None:
    rows = np.exp(ROWS / HOT)
    hot = (rows / rows.sum(axis=1, keepdims=True))[np.arange(3), [1, 3, 0]]
    found = np.exp(log_likelihoods_erring(scored(), EPSILON)).reshape(3, len(SHARES), len(SIZES))
    for place, share in enumerate(SHARES):
        wanted = (1.0 - share) * found[:, 0] + share * hot[:, None]
        assert found[:, place] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("sampling", [{}, {"top_k": 3}, {"top_p": 0.8}])
def test_draws_of_another_forward_pass_sum_to_one(sampling: dict[str, object]) -> None:
    """Over the tokens that might have been claimed: else flat distributions would favour the larger errors. Candidates
    far outside a filter are not listed unless they are claimed, which hot tokens notice."""
    totals = sum(np.exp(log_likelihoods_erring(scored((token,) * 3, **sampling), 0.0)) for token in range(6))
    cold = totals if not sampling else totals[:, : len(SIZES)]
    assert cold == pytest.approx(np.ones_like(cold), abs=1e-4)
    assert totals.min() > 1.0 - 1e-5 and totals.max() < 1.03


def test_at_temperature_zero_the_size_is_one_for_all_or_drawn_for_each() -> None:
    found = scored((1, 1, 0), temperature=0.0)
    columns = np.exp(log_likelihoods_erring(found, EPSILON))
    single, drawn = columns[:, : len(SIGMA_GRID)], columns[:, len(SIGMA_GRID) :]
    assert single == pytest.approx(np.exp(token_log_likelihoods(found, SIGMA_GRID, EPSILON)))
    middle = SIGMA_GRID[10]
    points = middle * np.exp(np.sqrt(3.0) * APART * np.array([-1.0, 0.0, 1.0]))
    at_points = np.exp(token_log_likelihoods(found, points, EPSILON))
    assert drawn[:, 10] == pytest.approx(at_points @ np.array([1 / 6, 2 / 3, 1 / 6]), rel=1e-6)


@pytest.mark.parametrize(
    "asked", [{"temperature": 1.3}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8}, {"top_p": 0.8, "top_k": 4}]
)
def test_other_settings_are_what_scoring_again_gives(asked: dict[str, object]) -> None:
    found = log_likelihoods_claiming(scored(), Sampling(**{"temperature": 1.0, **asked}), 0.03, EPSILON)  # type: ignore[arg-type]
    again = token_log_likelihoods(scored(**asked), np.array([0.03]), EPSILON)[:, 0]
    assert found == pytest.approx(again, abs=1e-4)


def test_other_settings_need_every_candidate_and_a_draw() -> None:
    """Under a filter some candidates are not listed, and at temperature 0 there is another contract."""
    assert log_likelihoods_claiming(scored(top_k=3), Sampling(temperature=1.3), 0.03, EPSILON) is None
    assert log_likelihoods_claiming(scored(), Sampling(temperature=0.0), 0.03, EPSILON) is None


def test_tokens_that_are_not_scored_say_nothing() -> None:
    found = scored()
    silent = replace(found, status_T=np.ones_like(found.status_T))
    assert not log_likelihoods_erring(silent, EPSILON).any()
    unsaid = log_likelihoods_claiming(silent, Sampling(temperature=1.3), 0.03, EPSILON)
    assert unsaid is not None and not unsaid.any()
