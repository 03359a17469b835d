"""From every sequence's values to rows: deviation x budget, every detector's AUC, and whether ours is ahead.

A batch is a number of whole sequences, or the first tokens of one; batches are disjoint. A row compares our detector
with each peer's on the same batches: *ahead* is an AUC higher than every peer's with the paired 95 % bootstrap interval
above 0; *tied* is both at least 0.999, both at most 0.51, or an interval that holds 0; else it is *behind*. The
bootstrap redraws batches.

A budget is a number of tokens and, for what the provider sends with them, of bytes. Budgets grow until ours and a
peer's are both certain: what follows tells nothing between them, and is no row unless ours is behind there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
FEWEST = 20
"""Batches of either kind below which a row is not judged."""
REDRAWS = 500
SURE, CHANCE = 0.999, 0.51


def auc(honest: Floats, deviating: Floats) -> float:
    """Chance that a deviating batch scores above an honest one, ties counting half."""
    ranks = rankdata(np.concatenate([honest, deviating]))
    count, other = len(deviating), len(honest)
    return float((ranks[other:].sum() - count * (count + 1) / 2) / (count * other))


def interval(honest: Floats, deviating: Floats, redraws: int = REDRAWS) -> tuple[Floats, Floats]:
    """AUC of each column [B, C], and of each redraw [redraws, C] of whole batches, the same for every column."""
    rng = np.random.default_rng(0)
    found = np.array([auc(honest[:, c], deviating[:, c]) for c in range(honest.shape[1])])
    drawn = np.empty((redraws, honest.shape[1]))
    order = [np.sort(np.concatenate([honest[:, c], deviating[:, c]])) for c in range(honest.shape[1])]
    high = [np.searchsorted(order[c], honest[:, c]) for c in range(honest.shape[1])]
    low = [np.searchsorted(order[c], deviating[:, c]) for c in range(honest.shape[1])]
    for number in range(redraws):
        rows, other = (
            np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
            for count in (len(honest), len(deviating))
        )
        for c in range(honest.shape[1]):
            size = len(order[c])
            here = np.bincount(high[c], rows, size)
            there = np.bincount(low[c], other, size)
            below = np.cumsum(here) - here
            drawn[number, c] = (there @ (below + here / 2)) / (rows.sum() * other.sum())
    return found, drawn


def status(found: Floats, drawn: Floats, ours: int, peers: Sequence[int]) -> dict[str, Any]:
    """Where column `ours` stands against each peer's, the closest first."""
    verdicts = []
    for peer in peers:
        low, high = np.quantile(drawn[:, ours] - drawn[:, peer], [0.025, 0.975])
        pair = (found[ours], found[peer])
        if min(pair) >= SURE or max(pair) <= CHANCE or low <= 0.0 <= high:
            verdicts.append((0, float(low), float(high), peer))
        else:
            verdicts.append((1 if low > 0 else -1, float(low), float(high), peer))
    worst = min(verdicts)
    return {
        "status": {1: "ahead", 0: "tied", -1: "behind"}[worst[0]],
        "closest_peer": worst[3],
        "difference": [round(worst[1], 6), round(worst[2], 6)],
    }


def batches(values_SED: Floats, edges: Sequence[int], budget: int) -> Floats | None:
    """Sums [B, D] over disjoint batches of `budget` tokens: the first tokens of one sequence, or several whole ones."""
    if budget in edges:
        return values_SED[:, list(edges).index(budget)]
    if budget % edges[-1]:
        return None
    count = budget // edges[-1]
    whole = len(values_SED) // count
    return values_SED[: whole * count, -1].reshape(whole, count, -1).sum(axis=1)


def row(
    deviation: str, kind: str, budget: int, names: Sequence[str], honest: Floats, deviating: Floats
) -> dict[str, Any] | None:
    """One row of the table; None where there are too few batches. The first name is our detector's."""
    count = (len(honest), len(deviating))
    if min(count) < FEWEST:
        return None
    return compared(deviation, kind, budget, names, count, *interval(honest, deviating))


def compared(
    deviation: str, kind: str, budget: int, names: Sequence[str], count: tuple[int, int], found: Floats, drawn: Floats
) -> dict[str, Any]:
    """A row from the AUC of every detector and its redraws, as `interval` gives them, of `count` batches."""
    peers = peers_of(names)
    judged = status(found, drawn, 0, peers)
    return {
        "deviation": deviation,
        "kind": kind,
        "budget": budget,
        "batches": list(count),
        "auc": {name: round(float(value), 6) for name, value in zip(names, found, strict=True)},
        "interval": [round(float(value), 6) for value in np.quantile(drawn[:, 0], [0.025, 0.975])],
        "ours": names[0],
        **judged,
        "closest_peer": names[judged["closest_peer"]],
        "certain": bool(min(found[0], max(found[peer] for peer in peers)) >= SURE),
    }


def ladder(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Of one deviation's rows, in order of their budgets, those up to the first that is certain, and any behind; and
    how many are left out."""
    first = next((place for place, row in enumerate(rows) if row["certain"]), len(rows))
    kept = [row for place, row in enumerate(rows) if place <= first or row["status"] == "behind"]
    return kept, len(rows) - len(kept)


def grid(
    tokens: Sequence[int], limits: Sequence[int], judge: Callable[[int, int], dict[str, Any] | None]
) -> list[dict[str, Any]]:
    """Rows for so many tokens and so many bytes: `judge(n, b)` compares the best that ours and each peer can do with at
    most `tokens[n]` and `limits[b]`. What is certain with less of both cannot change and is no row, nor is one that
    shows the same two values as another before it, unless ours is behind."""
    found: list[dict[str, Any]] = []
    certain: list[tuple[int, int]] = []
    shown: set[tuple[float, ...]] = set()
    for place, limit in product(range(len(tokens)), range(len(limits))):
        if any(few <= place and small <= limit for few, small in certain):
            continue
        row = judge(place, limit)
        if row is None:
            continue
        values = tuple(round(row["auc"][row[name]], 3) for name in ("ours", "closest_peer"))
        if values not in shown or row["status"] == "behind":
            found.append({**row, "budget": tokens[place], "bytes": limits[limit]})
        shown.add(values)
        if row["certain"]:
            certain.append((place, limit))
    return found


def peers_of(names: Sequence[str]) -> list[int]:
    """Columns that are not ours: all but the first and our own margin."""
    return [place for place, name in enumerate(names) if place and name != "finite_clipped_margin"]


def lots(arrays: Mapping[str, Any], names: Sequence[str], kind: str) -> Floats | None:
    """The sequences of several providers together, in a fixed lot; None where one has no such values."""
    parts = [arrays[f"{name}/{kind}"] for name in names if f"{name}/{kind}" in arrays]
    if not parts:
        return None
    found = np.concatenate(parts).astype(np.float64)
    return found[np.random.default_rng(len(found)).permutation(len(found))]
