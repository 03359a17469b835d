"""Rows of the tables: areas under curves by counting pairs, the bootstrap by redrawing, and who is ahead of whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import run
import scores
import spec as specs
import tables

EXPERIMENT = """
name = "x"
tokens = 10
fit = 1
judged = 1
edges = [10]
budgets = [10]
activation_budgets = [1, 8]
wider = [[4, -4]]
claim = {}
[models.m]
path = "m"
[[providers]]
name = "a"
honest = true
"""


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_a_count_of_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    honest, deviating = rng.integers(0, 6, 30).astype(float), rng.integers(1, 8, 20).astype(float)
    pairs = [1.0 if d > h else 0.5 if d == h else 0.0 for h in honest for d in deviating]
    assert tables.auc(honest, deviating) == pytest.approx(np.mean(pairs))


def test_redraws_are_those_of_whole_batches() -> None:
    rng = np.random.default_rng(3)
    honest, deviating = rng.integers(0, 9, (40, 2)).astype(float), rng.integers(2, 12, (25, 2)).astype(float)
    found, drawn = tables.interval(honest, deviating, redraws=20)
    again = np.random.default_rng(0)
    for redraw in drawn:
        rows, other = again.integers(0, 40, 40), again.integers(0, 25, 25)
        assert redraw == pytest.approx([tables.auc(honest[rows, c], deviating[other, c]) for c in (0, 1)])
    assert found == pytest.approx([tables.auc(honest[:, c], deviating[:, c]) for c in (0, 1)])


def columns(ours: float, peer: float, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    noise, other = rng.normal(size=(count, 2)), rng.normal(size=(count, 2))
    return noise, other + np.array([ours, peer])


@pytest.mark.parametrize(
    ("ours", "peer", "status"),
    [(1.5, 0.5, "ahead"), (0.5, 1.5, "behind"), (1.0, 1.0, "tied"), (9.0, 5.5, "tied"), (-1.0, -2.0, "tied")],
)
def test_status(ours: float, peer: float, status: str) -> None:
    """Equal, both certain and both blind are ties, whatever the interval."""
    honest, deviating = columns(ours, peer)
    row = tables.row("d", "tokens", 10, ("likelihood", "rank"), honest, deviating)
    assert row is not None
    assert (row["status"], row["closest_peer"]) == (status, "rank")


def test_the_best_that_bytes_allow_is_compared() -> None:
    """Our second fingerprint takes 1 byte a token and sees it, and the first, of 4, sees it better."""
    experiment = specs.parse(EXPERIMENT)
    names = scores.activation_detectors(experiment)
    rng = np.random.default_rng(1)
    honest, theirs = rng.normal(size=(2, 300, 2, len(names)))
    theirs[:, 1, names.index("fingerprint")] += 3.0
    theirs[:, 1, names.index("fingerprint 4 2^-4")] += 1.0
    theirs[:, 1, names.index("toploc mean 64")] += 2.0
    rows = {(row["budget"], row["bytes"]): row for row in run._activation_rows(experiment, "d", honest, theirs)}
    assert rows[8, 10]["ours"] == "fingerprint 4 2^-4, 8 tokens"  # 8 bytes; 16 coordinates would take 32
    assert rows[8, 34]["ours"] == "fingerprint, 8 tokens"
    assert rows[8, 34]["closest_peer"] != rows[8, 130]["closest_peer"] == "toploc mean 64, 8 tokens"
    assert [rows[place]["status"] for place in ((8, 10), (8, 34), (8, 130))] == ["ahead"] * 3
    assert all(row["ours"].endswith(", 1 tokens") for (tokens, _), row in rows.items() if tokens == 1)


def test_one_peer_ahead_is_enough_to_be_behind() -> None:
    honest, deviating = columns(1.0, 0.0)
    best = np.random.default_rng(9).normal(size=(400, 1))
    row = tables.row(
        "d", "tokens", 10, ("likelihood", "rank", "match_rate"), np.hstack([honest, best]),
        np.hstack([deviating, best + 3.0]),
    )  # fmt: skip
    assert row is not None
    assert (row["status"], row["closest_peer"]) == ("behind", "match_rate")


def test_our_own_margin_is_no_peer() -> None:
    assert tables.peers_of(("likelihood", "mean_clipped_margin", "finite_clipped_margin", "rank")) == [1, 3]


def test_batches_are_disjoint_sums() -> None:
    values = np.arange(7 * 2 * 1, dtype=float).reshape(7, 2, 1)
    assert tables.batches(values, (10, 30), 10) is not None
    found = tables.batches(values, (10, 30), 90)
    assert found is not None
    assert found.ravel().tolist() == [1 + 3 + 5, 7 + 9 + 11]  # the seventh sequence is left over
    assert tables.batches(values, (10, 30), 45) is None


def test_too_few_batches_are_no_row() -> None:
    honest, deviating = columns(1.0, 0.0, tables.FEWEST - 1)
    assert tables.row("d", "tokens", 10, ("likelihood", "rank"), honest, deviating) is None


def made(budget: int, ours: float, peer: float, status: str = "tied") -> dict[str, Any]:
    auc = {"likelihood": ours, "rank": peer}
    sure = min(ours, peer) >= tables.SURE
    return {
        "budget": budget,
        "auc": auc,
        "ours": "likelihood",
        "closest_peer": "rank",
        "status": status,
        "certain": sure,
    }


def test_certain_is_ours_and_any_peer() -> None:
    rng = np.random.default_rng(4)
    honest, deviating = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    deviating[:, :2] += 20.0
    for columns, certain in (([0, 1, 2], True), ([0, 2], False), ([2, 1], False)):
        names = ("likelihood", "rank", "match_rate")[: len(columns)]
        row = tables.row("d", "tokens", 10, names, honest[:, columns], deviating[:, columns])
        assert row is not None
        assert row["certain"] is certain


def test_a_ladder_ends_with_the_first_that_is_certain() -> None:
    rows = [made(8, 0.9, 0.8), made(16, 1.0, 0.9995), made(32, 1.0, 0.998), made(64, 1.0, 1.0)]
    assert tables.ladder(rows) == (rows[:2], 2)
    assert tables.ladder(rows[:1]) == (rows[:1], 0)
    behind = made(64, 0.9, 1.0, "behind")
    assert tables.ladder([*rows[:3], behind]) == ([*rows[:2], behind], 1)


def test_a_grid_leaves_out_what_cannot_tell_more() -> None:
    auc = {
        (0, 0): (0.9, 0.8), (0, 1): (1.0, 0.9995),  # certain: nothing to its right or below is asked for
        (1, 0): (0.9004, 0.7996),                   # the same to three digits
        (2, 0): (0.95, 0.8),
    }  # fmt: skip
    asked = []

    def judge(place: int, limit: int) -> dict[str, Any]:
        asked.append((place, limit))
        return made(0, *auc[place, limit])

    rows = tables.grid((1, 2, 8), (10, 34), judge)
    assert asked == list(auc)
    assert [(row["budget"], row["bytes"]) for row in rows] == [(1, 10), (1, 34), (8, 10)]


def test_a_grid_shows_every_row_that_is_behind() -> None:
    rows = tables.grid((1, 2), (10,), lambda place, _: made(0, 0.8, 0.9, "behind" if place else "tied"))
    assert [row["budget"] for row in rows] == [1, 2]
    assert tables.grid((1, 2), (10,), lambda *_: None) == []
