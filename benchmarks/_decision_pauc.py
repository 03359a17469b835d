"""Partial areas under the curve, by tokens used, and how many tokens one statistic saves over another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.named_statistics import NAMES

Floats = npt.NDArray[np.float64]
HONEST = ("honest.v1", "honest.v2", "more.v1", "more.v2")
EDGES = (30, 50, 75, 100, 150, 200, 300)
SEQUENCE = EDGES[-1]
PIECES = 6
"""Prompts at most to a batch of the column `prefixes`: a short contiguous piece of each, of at least 50 tokens."""
LONGER = (600, 900, 1200, 1500, 1800)
TOKENS = (*EDGES, *LONGER)
"""Tokens of a batch; beyond a sequence's, of several."""
SHUFFLED = (30, 100, 300, 600)
STATISTICS = ("likelihood", *NAMES)
FEWEST_HONEST, FEWEST_DEVIATING = 1000, 200
MAX_FPR = 0.01
DRAWS = 200
LEVEL = 0.9
"""Partial AUC at which tokens are compared."""
TARGETS = {"int4": 100, "temp1.1": 300, "fp8": 300, "kv_fp8": 600}
HELD_TARGETS = {"held.int3": 100, "held.temp0.95": 900, "held.top_p0.9": 600, "held.int8": 1200}
"""Sets that nothing was tuned on, at a number of tokens that suits their size."""


@dataclass(frozen=True)
class Layout:
    """Lengths of prefixes and names of statistics that a file's scores [S, E, N] hold, in order."""

    edges: tuple[int, ...] = EDGES
    statistics: tuple[str, ...] = STATISTICS
    longer: tuple[int, ...] = LONGER

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of a batch that are looked at."""
        return (*self.edges, *self.longer)


USUAL = Layout()
SETTING = Layout((10, 20, *EDGES), ("likelihood", "mean_clipped_margin", "paper_likelihood", "match_rate"))
"""Of other sampling settings less is kept, but shorter prefixes too."""


def layout_of(arrays: Mapping[str, Any]) -> Layout:
    """What the file says of itself; that of the usual setting says nothing."""
    if "edges" not in arrays:
        return USUAL
    return Layout(tuple(arrays["edges"].tolist()), tuple(arrays["statistics"].tolist()))


def honest_sets(arrays: Mapping[str, Any]) -> list[str]:
    """Names of the honest sets that a file holds."""
    return [name for name in HONEST if f"{name}/fit" in arrays]


def partial_auc(honest: Floats, deviating: Floats) -> float:
    """Standardised area under the ROC curve up to a false-positive rate of 1 %, 0.5 for chance (McClish 1989).

    Ties count half. The curve is a step function, linear between steps of equal scores.
    """
    top = np.sort(honest)[::-1]
    steps = int(MAX_FPR * len(top))
    thresholds, found = top[: steps + 1], np.sort(deviating)
    above = np.searchsorted(found, thresholds, "right") + np.searchsorted(found, thresholds, "left")
    rate = 1.0 - above / (2.0 * len(found))
    area = rate[:steps].sum() / len(top) + rate[steps] * (MAX_FPR - steps / len(top))
    chance = MAX_FPR**2 / 2
    return float(0.5 * (1.0 + (area - chance) / (MAX_FPR - chance)))


def deviating(arrays: Mapping[str, Any]) -> list[str]:
    """Names of the sets that are not honest."""
    names = [key.split("/")[0] for key in arrays if key.endswith("/fit")]
    return [name for name in names if name not in HONEST]


def judged(arrays: Mapping[str, Any], name: str) -> Floats:
    """Statistics [S, E, N] of the sequences of a set that had no part in the calibration split, in a fixed lot."""
    scores = np.asarray(arrays[f"{name}/scores"], dtype=np.float64)
    scores = scores[~arrays[f"{name}/fit"]] if name in HONEST else scores
    return _lot(scores)


def batches(
    scores_SEN: Floats, tokens: int, statistic: int, *, prefix: int = SEQUENCE, edges: tuple[int, ...] = EDGES
) -> Floats | None:
    """Sums over disjoint batches of `tokens`, made of the first `prefix` tokens of each sequence; None if uneven."""
    part = min(prefix, tokens)
    if tokens % part or part not in edges:
        return None
    count = tokens // part
    values = scores_SEN[:, edges.index(part), statistic]
    whole = len(values) // count
    return values[: whole * count].reshape(whole, count).sum(axis=1)


def curves(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """pAUC by column, deviation, tokens and statistic; 95 % intervals of the likelihood score over prompts."""
    honest = _mixed([judged(arrays, name) for name in honest_sets(arrays)])
    names, layout = deviating(arrays), layout_of(arrays)
    found: dict[str, Any] = {}
    for column, pieces in (("contiguous", 1), ("prefixes", PIECES)):
        cells = {name: _column(honest, judged(arrays, name), pieces, layout) for name in names}
        found[column] = {name: {t: cell["pauc"] for t, cell in rows.items()} for name, rows in cells.items()}
        found[f"{column}_95"] = {
            name: {t: cell["interval"] for t, cell in rows.items()} for name, rows in cells.items()
        }
    found["shuffled"] = {name: _shuffled(arrays, name) for name in names}
    return found


def _mixed(sets: list[Floats]) -> Floats:
    """Sequences of several sets in one fixed lot, so that batches hold all kinds."""
    joined = np.concatenate(sets)
    return joined[np.random.default_rng(0).permutation(len(joined))]


def told(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By deviation and contiguous tokens, the partial AUC of a likelihood ratio that was told the deviation: its error
    sizes fitted on half of its own sequences and judged on the other half, or its very temperature. It is no bound: a
    score that mixes sizes may do better. Of single sequences; empty where the file holds none."""
    layout, found = Layout(layout_of(arrays).edges, ("told",), ()), {}
    for name in deviating(arrays):
        if f"{name}/told" not in arrays:
            continue
        honest = _mixed([_told_of(arrays, f"{one}/told.{name}") for one in honest_sets(arrays)])
        rows = _column(honest, _told_of(arrays, f"{name}/told"), 1, layout)
        found[name] = {tokens: cell["pauc"] for tokens, cell in rows.items()}
    return found


def _told_of(arrays: Mapping[str, Any], key: str) -> Floats:
    """What was told of a set's sequences, as the one statistic of `judged`: [S, E, 1]."""
    return _lot(np.asarray(arrays[key], dtype=np.float64)[:, :, None])


def _lot(scores: Floats) -> Floats:
    """Sequences in a fixed lot."""
    return scores[np.random.default_rng(len(scores)).permutation(len(scores))]


def ceilings(arrays: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By deviation and contiguous tokens, the partial AUC of an oracle that finds every batch in which some token is
    not the reference's argmax, and never an honest one: 1 less half of the share of batches without such a token.

    Those are tokens that the honest provider would have sent too, but for ties that its own noise turns as often, so
    nothing that sees tokens alone can tell them from honest ones (docs/statistics.md, "What tokens can show").
    """
    layout = layout_of(arrays)
    mismatches = layout.statistics.index("match_rate")
    found: dict[str, dict[str, float]] = {}
    for name in deviating(arrays):
        scores, found[name] = judged(arrays, name), {}
        for tokens in layout.tokens:
            sums = batches(scores, tokens, mismatches, prefix=prefix_of(tokens, 1), edges=layout.edges)
            if sums is not None and len(sums) >= FEWEST_DEVIATING:
                found[name][str(tokens)] = 1.0 - float(np.mean(sums < 0.5)) / 2.0
    return found


def fewest_tokens(ceilings: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By deviation, tokens at which the oracle of `ceilings` reaches `LEVEL`: with fewer no detector does. Where it is
    there already at the fewest measured, the share of batches without a mismatch is taken back at a constant rate."""
    found = {}
    for name, rows in ceilings.items():
        fewest = tokens_for({t: {"oracle": value} for t, value in rows.items()}, "oracle")
        if fewest is None:
            first = min(rows, key=int)
            at_first = max(2.0 * (1.0 - rows[first]), 1e-3)
            fewest = int(first) * float(np.log(2.0 * (1.0 - LEVEL)) / np.log(at_first))
        found[name] = fewest
    return found


def ratio_ceilings(fewest: Mapping[str, float], saved: Mapping[str, Any]) -> dict[str, float | None]:
    """By deviation, the mean clipped margin's tokens over the fewest with which any detector could reach `LEVEL`; None
    where the former is not known."""
    theirs = {name: saved[name]["tokens"]["mean_clipped_margin"] for name in fewest}
    return {name: None if theirs[name] is None else theirs[name] / fewest[name] for name in fewest}


def prefix_of(tokens: int, pieces: int) -> int:
    """The shortest prefix of at least 50 tokens, at most `pieces` of which make up `tokens`; a whole sequence else."""
    fit = [edge for edge in EDGES if edge >= 50 and tokens % edge == 0 and tokens <= pieces * edge]
    return fit[0] if fit else SEQUENCE


def _column(honest: Floats, deviating: Floats, pieces: int, layout: Layout) -> dict[str, Any]:
    rows = {}
    for tokens in layout.tokens:
        cut: dict[str, Any] = {"prefix": prefix_of(tokens, pieces), "edges": layout.edges}
        pairs = {
            name: (batches(honest, tokens, place, **cut), batches(deviating, tokens, place, **cut))
            for place, name in enumerate(layout.statistics)
        }
        if not any(values is None for pair in pairs.values() for values in pair):
            rows[str(tokens)] = _cell(pairs)
    return rows


def _cell(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """Partial AUC of each statistic, and the 95 % interval of the first's."""
    honest, deviating = next(iter(pairs.values()))
    if len(honest) < FEWEST_HONEST or len(deviating) < FEWEST_DEVIATING:
        return {"pauc": "too small", "interval": "too small"}
    rng = np.random.default_rng(0)
    drawn = [
        partial_auc(
            honest[rng.integers(0, len(honest), len(honest))],
            deviating[rng.integers(0, len(deviating), len(deviating))],
        )
        for _ in range(DRAWS)
    ]
    return {
        "pauc": {name: partial_auc(h, d) for name, (h, d) in pairs.items()},
        "interval": [float(value) for value in np.quantile(drawn, [0.025, 0.975])],
    }


def _shuffled(arrays: Mapping[str, Any], name: str) -> dict[str, Any]:
    rows = {}
    statistics = layout_of(arrays).statistics
    for tokens in SHUFFLED:
        honest = np.concatenate([arrays[f"{h}/shuffled{tokens}"] for h in honest_sets(arrays)]).astype(np.float64)
        deviating = arrays[f"{name}/shuffled{tokens}"].astype(np.float64)
        small = len(honest) < FEWEST_HONEST or len(deviating) < FEWEST_DEVIATING
        values = {s: partial_auc(honest[:, i], deviating[:, i]) for i, s in enumerate(statistics)}
        rows[str(tokens)] = "too small" if small else values
    return rows


def tokens_for(rows: Mapping[str, Any], statistic: str) -> float | None:
    """Tokens at which the curve reaches `LEVEL`, by straight lines in log tokens; None if it doesn't within it."""
    known = [(float(t), row[statistic]) for t, row in rows.items() if row != "too small"]
    known.sort()
    for (low, below), (high, above) in pairwise(known):
        if below < LEVEL <= above:
            share = (LEVEL - below) / (above - below)
            return float(np.exp(np.log(low) + share * np.log(high / low)))
    return None


def savings(curve: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens that each statistic takes, and the mean clipped margin's over the likelihood score's; "at least" where
    the likelihood score is there already at the fewest tokens measured."""
    found: dict[str, Any] = {}
    for name, rows in curve.items():
        first = min(rows, key=int)
        statistics = [s for s in STATISTICS if rows[first] != "too small" and s in rows[first]]
        needed = {s: tokens_for(rows, s) for s in statistics}
        mine = needed.get("likelihood")
        at_once = mine is None and "likelihood" in needed and rows[first]["likelihood"] >= LEVEL
        ratios = {
            s: None if needed[s] is None else needed[s] / (float(first) if at_once else mine)
            for s in statistics[1:]
            if at_once or mine is not None
        }
        found[name] = {"tokens": needed, "ratio": ratios, "at_least": at_once}
    return found


def targets(curve: Mapping[str, Any], intervals: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the interval's lower end is at least 0.99 where the issue asks for it."""
    found = {}
    for name, tokens in {**TARGETS, **HELD_TARGETS}.items():
        row = curve.get(name, {}).get(str(tokens))
        if row in (None, "too small"):
            continue
        low = intervals[name][str(tokens)][0]
        found[name] = {"tokens": tokens, "pauc": row["likelihood"], "lower": low, "reached": low >= 0.99}
    return found
