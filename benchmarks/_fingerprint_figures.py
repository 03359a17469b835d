"""The figures of fingerprints.py, from the scores that `_fingerprint_scores.kept` keeps. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from _decision_pauc import partial_auc
from _fingerprint_scores import ENCODING_TOKENS, ENCODINGS, SPECS, TOKENS, area, label, names_from
from veridifr.stats import clopper_pearson

TARGET = 0.999
ALPHAS = (0.01, 0.05)
ENOUGH = 2000
"""Batches below which a cell is called too small."""
DRAWS = 200
HARDEST_TOKENS = 8


@dataclass(frozen=True)
class Cell:
    """One configuration of a method, at a number of tokens, against one deviation."""

    deviation: str
    tokens: int
    size: int
    config: str
    counts: Any
    auc: float

    @property
    def bytes_per_token(self) -> float:
        """Payload bytes per token."""
        return self.size / self.tokens

    def shown(self) -> dict[str, Any]:
        """As figures have it."""
        return {"bytes_per_token": self.bytes_per_token, "auc": self.auc, "config": self.config}


def figures_of(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of one machine's scores."""
    cells = list(cells_of(arrays))
    ours = [cell for method, cell in cells if method == "ours"]
    theirs = [cell for method, cell in cells if method == "toploc"]
    names = about["deviations"]
    curve, curve_of_one_pass = (
        {name: {str(t): _main_cell(arrays, about, kind, name, i) for i, t in enumerate(TOKENS)} for name in names}
        for kind in ("main", "one_pass")
    )
    cheapest = {name: {str(t): _cheapest(ours, theirs, name, t) for t in TOKENS} for name in names}
    specs = _specs(ours, cheapest)
    false = _false_positives(arrays, about["stacks"])
    worst = max(TOKENS, key=lambda t: false[str(t)]["pooled"]["0.01"]["rate"] or 0.0)
    found = {
        "spec": about["spec"],
        "bytes_per_token": about["bytes_per_token"],
        "batches": about["batches"],
        "too_small": about["batches"] < ENOUGH,
        "tokens_to_auc_999": specs[about["spec"]]["tokens_to_auc_999"],
        "bytes_saved_over_toploc": specs[about["spec"]]["bytes_saved_over_toploc"],
        "bytes_saved_by_cheapest": {n: {t: row["saved"] for t, row in cheapest[n].items()} for n in names},
        "specs": specs,
        "identical_stacks": about["identical"],
        "alpha": 0.01,
        "false_positive_rate": false[str(worst)]["pooled"]["0.01"]["rate"],
        "false_positive_interval": false[str(worst)]["pooled"]["0.01"]["interval"],
        "false_positive_tokens": worst,
        "false_positives": false,
        "curve": curve,
        "curve_of_one_pass": curve_of_one_pass,
        "cheapest": cheapest,
        "auc_of_error_size": {
            n: {str(c.tokens): c.auc for method, c in cells if method == "size" and c.deviation == n} for n in names
        },
        "toploc": {name: {str(t): _toploc(theirs, name, t) for t in TOKENS} for name in names},
        "toploc_best": {name: {str(t): _toploc_best(theirs, name, t) for t in TOKENS} for name in names},
        "encodings": {} if about.get("lean") else _encodings(ours, names),
        "error_per_coordinate": about["error_per_coordinate"],
    }
    return {**found, "targets": "too small" if found["too_small"] else _targets(found)}


def cells_of(arrays: Mapping[str, Any]) -> Iterator[tuple[str, Cell]]:
    """Every configuration of every method, which is named first, at each number of tokens against each deviation."""
    starts = [0, *arrays["ends"].tolist()]
    for key, start, end in zip(names_from(arrays["names"]), starts, starts[1:], strict=False):
        method, name, tokens, size, config = key.split("|")
        counts = arrays["counts"][start:end].astype(np.int64)
        yield method, Cell(name, int(tokens), int(size), config, counts, area(counts))


def _honest(arrays: Mapping[str, Any], about: Mapping[str, Any], kind: str, row: int) -> Any:
    """The honest score of each prompt, stacks of the claimed type taking turns."""
    stacks = np.stack([arrays[f"{kind}/{name}"][row] for name in about["claimed"]])
    rows = np.arange(stacks.shape[1])
    return stacks[rows % len(stacks), rows].astype(np.int64)


def _main_cell(arrays: Mapping[str, Any], about: Mapping[str, Any], kind: str, name: str, row: int) -> dict[str, Any]:
    """AUC and partial AUC of the main specification, with intervals: prompts are drawn, both scores of each. `kind`:
    main, or one_pass for the verifier without a second one."""
    honest, deviating = _honest(arrays, about, kind, row), arrays[f"{kind}/{name}"][row].astype(np.int64)

    def draw(rng: Any) -> tuple[Any, Any]:
        rows = rng.integers(0, len(honest), len(honest))
        return rows, rows

    return _with_intervals(honest, deviating, draw)


def _with_intervals(honest: Any, deviating: Any, draw: Callable[[Any], tuple[Any, Any]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        left, right = draw(rng)
        drawn.append(_areas(honest[left], deviating[right]))
    auc, pauc = _areas(honest, deviating)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {
        "auc": auc,
        "auc_95": [float(low[0]), float(high[0])],
        "pauc": pauc,
        "pauc_95": [float(low[1]), float(high[1])],
    }


def _areas(honest: Any, deviating: Any) -> tuple[float, float]:
    found, top = np.sort(deviating), np.sort(honest)
    above = np.searchsorted(found, top, "right") + np.searchsorted(found, top, "left")
    return float(1.0 - above.mean() / (2.0 * len(found))), partial_auc(honest, deviating)


def _expanded(counts: Any) -> tuple[Any, Any]:
    places = np.arange(len(counts))
    return np.repeat(places, counts[:, 0]), np.repeat(places, counts[:, 1])


def _fewest(auc: Mapping[int, float]) -> int | None:
    """Fewest tokens from which on the AUC stays at the target."""
    good: list[int] = []
    for tokens in sorted(auc, reverse=True):
        if auc[tokens] < TARGET:
            break
        good.append(tokens)
    return min(good, default=None)


def _cheapest(ours: list[Cell], theirs: list[Cell], name: str, tokens: int) -> dict[str, Any]:
    """The cheapest configuration of each method that reaches AUC 0.999, or else the best AUC that both reach."""
    peers = [cell for cell in theirs if (cell.deviation, cell.tokens) == (name, tokens)]
    mine = [cell for cell in ours if (cell.deviation, cell.tokens) == (name, tokens)]
    bests = {"toploc": max(cell.auc for cell in peers), "ours": max(cell.auc for cell in mine)}
    level = min(TARGET, *bests.values())
    peer, own = (
        min((cell for cell in cells if cell.auc >= level), key=lambda cell: (cell.size, -cell.auc))
        for cells in (peers, mine)
    )
    return {
        "level": level,
        "toploc_reaches": bests["toploc"] >= TARGET,
        "ours_reaches": bests["ours"] >= TARGET,
        "best": bests,
        "toploc": peer.shown(),
        "ours": own.shown(),
        "saved": 1 - own.size / peer.size,
    }


def _one_spec(ours: list[Cell], name: str, config: str, rows: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Fewest tokens at which one specification reaches the target, and the bytes that it saves there over TOPLOC's
    cheapest."""
    auc = {cell.tokens: cell.auc for cell in ours if (cell.deviation, cell.config) == (name, config)}
    size = next(cell.bytes_per_token for cell in ours if cell.config == config)
    tokens = _fewest(auc)
    if tokens is None:
        return None, None
    return tokens, 1 - size / rows[str(tokens)]["toploc"]["bytes_per_token"]


def _specs(ours: list[Cell], cheapest: Mapping[str, Any]) -> dict[str, Any]:
    """For each of a few specifications, used for all deviations: bytes, tokens and bytes saved."""
    found: dict[str, Any] = {}
    for spec in SPECS:
        pairs = {name: _one_spec(ours, name, label(spec), rows) for name, rows in cheapest.items()}
        found[label(spec)] = {
            "bytes_per_token": spec.bytes_per_token(),
            "tokens_to_auc_999": {name: tokens for name, (tokens, _) in pairs.items()},
            "bytes_saved_over_toploc": {name: saved for name, (_, saved) in pairs.items()},
        }
    return found


def _toploc(theirs: list[Cell], name: str, tokens: int) -> dict[str, Any]:
    """AUC, partial AUC and bytes per token by configuration."""
    cells = [cell for cell in theirs if (cell.deviation, cell.tokens) == (name, tokens)]
    return {c.config: [round(c.auc, 6), round(partial_auc(*_expanded(c.counts)), 6), c.bytes_per_token] for c in cells}


def _toploc_best(theirs: list[Cell], name: str, tokens: int) -> dict[str, Any]:
    """The configuration of best AUC, with intervals (honest and deviating prompts drawn apart)."""
    best = max((c for c in theirs if (c.deviation, c.tokens) == (name, tokens)), key=lambda c: (c.auc, -c.size))
    honest, deviating = _expanded(best.counts)

    def draw(rng: Any) -> tuple[Any, Any]:
        return rng.integers(0, len(honest), len(honest)), rng.integers(0, len(deviating), len(deviating))

    return {**best.shown(), **_with_intervals(honest, deviating, draw)}


def _encodings(ours: list[Cell], names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for spec in ENCODINGS:
        cells = [cell for cell in ours if cell.config == label(spec) and cell.tokens <= ENCODING_TOKENS]
        by = {name: {str(c.tokens): round(c.auc, 6) for c in cells if c.deviation == name} for name in names}
        found[label(spec)] = {"bytes_per_token": spec.bytes_per_token(), "auc": by}
    return found


def _false_positives(arrays: Mapping[str, Any], stacks: list[str]) -> dict[str, Any]:
    """Honest batches called deviating, by tokens. A batch's p-value is the largest over the stacks' honest scores, as
    in an audit. Odd prompts are judged by even ones and the other way round, so that each is judged once.
    `pooled`: each prompt on one stack, the stacks in turn. `unknown`: its own stack left out of the calibration."""
    found: dict[str, Any] = {}
    for row, tokens in enumerate(TOKENS):
        scores = {name: arrays[f"main/{name}"][row].astype(np.int64) for name in stacks}
        p = {name: _p_values(scores[name], list(scores.values())) for name in stacks}
        others = {name: _p_values(scores[name], [scores[n] for n in stacks if n != name]) for name in stacks}
        turns = np.arange(len(next(iter(p.values())))) % len(stacks)
        pooled = np.stack(list(p.values()))[turns, np.arange(len(turns))]
        found[str(tokens)] = {
            "pooled": _rates(pooled),
            **{name: _rates(values) for name, values in p.items()},
            **{f"unknown {name}": _rates(values) for name, values in others.items() if len(stacks) > 1},
        }
    return found


def _p_values(judged_N: Any, nulls: list[Any]) -> Any:
    """For each prompt the largest, over the nulls, of the share of scores of the other half that are no smaller."""
    parity = np.arange(len(judged_N)) % 2
    largest = np.zeros(len(judged_N))
    for null in nulls:
        for half in (0, 1):
            other = np.sort(null[parity != half])
            above = len(other) - np.searchsorted(other, judged_N[parity == half], "left")
            largest[parity == half] = np.maximum(largest[parity == half], (1 + above) / (1 + len(other)))
    return largest


def _rates(p_N: Any) -> dict[str, Any]:
    """Shares of p-values up to each alpha; None where half of the prompts are too few for a p-value that small."""
    found: dict[str, Any] = {}
    for alpha in ALPHAS:
        count = int((p_N <= alpha).sum())
        possible = 1 / (1 + len(p_N) // 2) <= alpha
        found[f"{alpha:g}"] = {
            "rate": count / len(p_N) if possible else None,
            "interval": list(clopper_pearson(count, len(p_N))) if possible else None,
            "bounds_999": list(clopper_pearson(count, len(p_N), 0.998)) if possible else None,
        }
    return found


def _targets(found: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, what was measured, and whether it is reached."""
    two = found["curve"]["int4"]["2"]
    hardest = {n: found["curve"][n][str(HARDEST_TOKENS)]["auc"] for n in ("int8", "kv_fp8") if n in found["curve"]}
    rows = {f"{n} {t}": row for n, part in found["cheapest"].items() for t, row in part.items()}
    short = {key: row["saved"] for key, row in rows.items() if row["saved"] < 0.75}
    weaker = [key for key, row in rows.items() if row["best"]["ours"] < min(TARGET, row["best"]["toploc"])]
    return {
        "int4_two_tokens": {
            "auc": two["auc"],
            "lower": two["auc_95"][0],
            "reached": two["auc"] > TARGET and two["auc_95"][0] >= 0.998,
        },
        "bytes_per_token": {"value": found["bytes_per_token"], "reached": found["bytes_per_token"] <= 8},
        "saved_75": {"cells": len(rows), "below": short, "at_our_best_auc": weaker, "reached": not (short or weaker)},
        "auc_99_in_8_tokens": {n: {"auc": value, "reached": value > 0.99} for n, value in hardest.items()},
        "false_positives": {
            "rate": found["false_positive_rate"],
            "reached": found["false_positive_rate"] is not None and found["false_positive_rate"] <= found["alpha"],
        },
    }
