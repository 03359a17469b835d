"""What is fitted on honest scores: the size of errors found again, and a heavy tail where there is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from makers import contenders, scores_of
from veridifr import fitting
from veridifr.fitting import fit_statistic
from veridifr.likelihood import decisive_gap
from veridifr.scores import Scores
from veridifr.statistic import SPREAD, simulate

TOKENS = 300
IN = -np.inf


def race(rng: np.random.Generator) -> Scores:
    """A sequence without any logit noise: the claimed token is the best of six, often by little."""
    z = np.sort(rng.gumbel(size=(TOKENS, 12)), axis=1)[:, :-7:-1]
    return scores_of(contenders(z.tolist(), np.full(z.shape, IN).tolist(), [0] * TOKENS), TOKENS)


def erring(clean: Scores, size_T: npt.ArrayLike, rng: np.random.Generator) -> Scores:
    """The same with an error of its own size at every token: of one of a few sizes."""
    size_T = np.asarray(size_T)
    found = clean.contenders
    for size in np.unique(size_T):
        drawn, at = simulate(clean, float(size), rng).contenders, (size_T == size)[clean.contenders.rows_M]
        found = replace(
            found,
            scores_M=np.where(at, drawn.scores_M, found.scores_M),
            noise_M=np.where(at, drawn.noise_M, found.noise_M),
            claimed_M=np.where(at, drawn.claimed_M, found.claimed_M),
        )
    return replace(clean, contenders=found)


def made(sizes: dict[float, float], count: int, seed: int) -> list[Scores]:
    """Sequences whose tokens err by sizes (logits) of given shares."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        drawn = rng.choice(list(sizes), size=TOKENS, p=list(sizes.values()))
        out.append(erring(race(rng), drawn, rng))
    return out


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.4])
def test_one_size_is_found_again_with_the_usual_spread(sigma: float) -> None:
    found = fit_statistic(made({sigma: 1.0}, 40, 1))
    assert found.sigma == pytest.approx(sigma, rel=0.15)
    assert found.spread == SPREAD


def test_epsilon_is_half_a_token_where_none_is_unexplained() -> None:
    """No token is, so of n tokens it is about 1 / (2 n), to the next value of the grid below."""
    sequences = made({0.02: 1.0}, 60, 6)
    few, many = fit_statistic(sequences[:4]).epsilon, fit_statistic(sequences).epsilon
    assert few > many
    assert 0.1 <= 4 * TOKENS * few <= 1
    assert 0.1 <= 60 * TOKENS * many <= 1


def test_one_replaced_token_outranks_honest_sequences_after_a_small_calibration() -> None:
    """48 sequences to fit on, and one token in each judged sequence that no logit error explains."""
    rng = np.random.default_rng(9)
    statistic = fit_statistic(made({0.02: 1.0}, 48, 7))
    honest = made({0.02: 1.0}, 100, 8)
    drawn = [erring(one, np.where(np.arange(TOKENS) == 150, 8.0, 0.0), rng) for one in honest]
    replaced = [one for one in drawn if decisive_gap(one.contenders, TOKENS)[150] < -1.5]
    low, high = (np.array([statistic.prefix_scores(one, [TOKENS])[0] for one in part]) for part in (honest, replaced))
    assert len(replaced) >= 20
    assert np.mean(high[:, None] > low[None]) > 0.95


def test_a_heavy_tail_has_a_larger_spread() -> None:
    found = fit_statistic(made({0.02: 0.9, 0.4: 0.1}, 40, 2))
    assert found.spread > 2 * SPREAD


def test_rare_replaced_tokens_stand_out_from_a_heavy_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token in a hundred is drawn from nowhere: honest sequences look like that too, until their tail is fitted."""
    tail = {0.02: 0.95, 0.2: 0.05}
    honest, rare = made(tail, 40, 4), made({0.02: 0.94, 0.2: 0.05, 6.0: 0.01}, 40, 5)
    auc = []
    for steps in (fitting._STEPS, ()):
        monkeypatch.setattr(fitting, "_STEPS", steps)
        statistic = fit_statistic(made(tail, 30, 3))
        low, high = (np.array([statistic.prefix_scores(one, [TOKENS])[0] for one in part]) for part in (honest, rare))
        auc.append(float(np.mean(high[:, None] > low[None])))
    assert auc[0] > auc[1] + 0.05
