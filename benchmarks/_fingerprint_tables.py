"""Tables of benchmarks/fingerprints.py from what its `collect` left. numpy and scipy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import rankdata

from veridifr.fingerprints import FingerprintSpec, Intervals, combine, fit_scale, ratios, to_codes, to_intervals

Arrays = Mapping[str, Any]
HONEST = ("honest", "honest_eager")
TARGET = 0.999
MOST_FALSE = 0.01
HIDDEN = 384
"""Hidden size stated in the specifications: a spec's arithmetic on projected coordinates does not depend on it."""


def spec_of(encoding: str, k: int, step: int = -4, pattern: tuple[int, ...] = (0,)) -> FingerprintSpec:
    """A specification with one tap, and a step of 2^step where the encoding is wrapped."""
    wrapped = encoding.startswith("wrapped")
    return FingerprintSpec(
        seed=7,
        hidden_size=HIDDEN,
        k=k,
        encoding=encoding,
        step_log2=(step,) if wrapped else (),
        pattern_log2=pattern if wrapped else (0,),
    )


MAIN = spec_of("wrapped2", 16, -4)
SWEEP = [
    spec_of("float32", 2),
    spec_of("bfloat16", 4),
    spec_of("scaled8", 7),
    spec_of("scaled4", 14),
    spec_of("scaled2", 28),
    spec_of("sign", 32),
    *[spec_of("wrapped4", k, -6) for k in (8, 16)],
    *[spec_of("wrapped3", k, -5) for k in (5, 10, 21)],
    *[spec_of("wrapped2", k, step) for k in (8, 16, 32) for step in (-5, -4, -3)],
    *[spec_of("wrapped1", k, step) for k in (16, 32) for step in (-4, -3)],
]
SEARCH = [
    *[spec_of("wrapped1", k, step) for k in (4, 8, 16, 32) for step in (-4, -3, -1)],
    *[spec_of("wrapped2", k, -5) for k in (32, 64, 96, 128, 160)],
]


def auc(honest_N: Any, deviating_M: Any) -> float:
    """Area under the ROC curve: how often a deviating score exceeds an honest one, ties counting half."""
    ranks = rankdata(np.concatenate([honest_N, deviating_M]))
    n, m = len(honest_N), len(deviating_M)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def partial_auc(honest_N: Any, deviating_M: Any, most: float = MOST_FALSE) -> float:
    """Area for false-positive rates up to `most`, standardised: chance is 0.5, perfection 1 (McClish 1989)."""
    honest, deviating = np.sort(honest_N)[::-1], np.sort(deviating_M)
    steps = max(1, round(most * len(honest)))
    above = len(deviating) - np.searchsorted(deviating, honest[:steps], side="right")
    ties = np.searchsorted(deviating, honest[:steps], side="right") - np.searchsorted(deviating, honest[:steps])
    area = float(np.mean((above + ties / 2) / len(deviating)) * most)
    chance = most * most / 2
    return 0.5 * (1 + (area - chance) / (most - chance))


def lower_end(honest_N: Any, deviating_M: Any, draws: int = 200) -> float:
    """Lower end of the 95 % bootstrap interval of the AUC, over sequences."""
    rng = np.random.default_rng(0)
    found = [auc(rng.choice(honest_N, len(honest_N)), rng.choice(deviating_M, len(deviating_M))) for _ in range(draws)]
    return float(np.quantile(found, 0.025))


def scores(arrays: Arrays, spec: FingerprintSpec, calibrate: int) -> dict[str, Any]:
    """Log-likelihood ratios by condition, [sequences, tokens, multiples], and the fitted scale under "scale"."""
    wide = "wide/" if spec.k > arrays["own"].shape[2] else ""
    own = arrays[f"{wide}own"][..., : spec.k].astype(np.float32)
    names = [key.split("/", 1)[1] for key in arrays if key.startswith("error/")]
    found: dict[str, Any] = {}
    intervals = {name: _intervals(arrays, spec, name, own, wide) for name in names}
    honest = [name for name in HONEST if name in names]
    part = own[:calibrate].reshape(-1, spec.k)
    pooled = [intervals[name] for name in honest]
    rows = len(part)
    scale = fit_scale(
        Intervals(
            low_FK=np.concatenate([item.low_FK[:rows] for item in pooled]),
            high_FK=np.concatenate([item.high_FK[:rows] for item in pooled]),
            period_K=pooled[0].period_K,
        ),
        np.concatenate([part] * len(pooled)),
        most=10**6,
    )
    for name in names:
        found[name] = ratios(intervals[name], own.reshape(-1, spec.k), scale).reshape(*own.shape[:2], -1)
    return {**found, "scale": scale}


def _intervals(arrays: Arrays, spec: FingerprintSpec, name: str, own: Any, wide: str) -> Intervals:
    values = own + arrays[f"{wide}error/{name}"][..., : spec.k] * np.float32(arrays[f"step/{name}"])
    return to_intervals(spec, 0, to_codes(spec, 0, values.reshape(-1, spec.k)))


def cells(found: Mapping[str, Any], calibrate: int, tokens: int, every: int = 1) -> tuple[Any, dict[str, Any]]:
    """Honest scores of the first `tokens` tokens (stacks taking turns, so each sequence is of another prompt) and those
    of each deviation, without the sequences that were calibrated on."""
    totals = {
        name: combine(values[calibrate:, :tokens:every].sum(axis=1))
        for name, values in found.items()
        if name != "scale"
    }
    return _alternating(totals), {name: value for name, value in totals.items() if name not in HONEST}


def _alternating(totals: Mapping[str, Any]) -> Any:
    stacks = [totals[name] for name in HONEST if name in totals]
    rows = np.arange(len(stacks[0]))
    return np.stack(stacks)[rows % len(stacks), rows]


def toploc_cells(arrays: Arrays, calibrate: int, chunk: int, top_k: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """By statistic: honest and deviating values. `combined` counts a mismatched exponent as a whole binade (128)."""
    found: dict[str, dict[str, Any]] = {}
    for key in arrays:
        if key.startswith("toploc/") and key.endswith("/means"):
            name = key.split("/")[1]
            wrong, mean, median = (
                arrays[f"toploc/{name}/{part}"][chunk, top_k, calibrate:].astype(float)
                for part in ("mismatches", "means", "medians")
            )
            top = int(arrays["top_ks"][top_k])
            mean = np.where(wrong == top, 128.0, mean)
            for statistic, value in (
                ("mismatches", wrong),
                ("mean", mean),
                ("median", median),
                ("combined", (wrong * 128 + mean * (top - wrong)) / top),
            ):
                found.setdefault(statistic, {})[name] = value
    return {
        statistic: (_alternating(values), {n: v for n, v in values.items() if n not in HONEST})
        for statistic, values in found.items()
    }


def show(arrays: Arrays, calibrate: int, *, brief: bool) -> None:
    """Print every table."""
    count = len(arrays["own"]) - calibrate
    print(f"{count} sequences a cell, each of another prompt; {calibrate} more for the honest scale")
    for spec in [MAIN] if brief else [MAIN, *SWEEP]:
        _show_spec(arrays, spec, calibrate, intervals=spec is MAIN)
    _show_toploc(arrays, calibrate)
    if not brief:
        _show_cheapest(arrays, calibrate)


def _show_spec(arrays: Arrays, spec: FingerprintSpec, calibrate: int, *, intervals: bool) -> None:
    found = scores(arrays, spec, calibrate)
    scale = found["scale"]
    steps = f" step 2^{spec.step_log2[0]}" if spec.wrapped else ""
    print(
        f"\n{spec.encoding} k={spec.k}{steps}: {spec.bytes_per_token():g} bytes per token; "
        f"sigma {scale.sigma:.4f}, spread {scale.spread}"
    )
    chunks = [int(chunk) for chunk in arrays["chunks"]]
    table = {chunk: cells(found, calibrate, chunk) for chunk in chunks}
    for name in table[chunks[0]][1]:
        line = [f"{name:9}"]
        for chunk in chunks:
            honest, deviating = table[chunk]
            line.append(f"{auc(honest, deviating[name]):.4f}/{partial_auc(honest, deviating[name]):.3f}")
            if intervals:
                line[-1] += f" (>{lower_end(honest, deviating[name]):.4f})"
        print("  ".join(line))


def best_toploc(arrays: Arrays, calibrate: int, name: str, chunk: int, top_k: int) -> float:
    """The largest AUC of TOPLOC's statistics: chosen with hindsight, in TOPLOC's favour."""
    found = toploc_cells(arrays, calibrate, chunk, top_k)
    return max(auc(honest, deviating[name]) for honest, deviating in found.values())


def _show_toploc(arrays: Arrays, calibrate: int) -> None:
    chunks, top_ks = arrays["chunks"].tolist(), arrays["top_ks"].tolist()
    names = [key.split("/")[1] for key in arrays if key.startswith("toploc/") and key.endswith("/means")]
    print("\nTOPLOC: AUC of its best statistic, chunk = tokens used; bytes per token in brackets")
    for name in (n for n in names if n not in HONEST):
        for t, top_k in enumerate(top_ks):
            line = [f"{name:9} top-{top_k:<4}"]
            for c, chunk in enumerate(chunks):
                if top_k <= chunk * HIDDEN:
                    line.append(f"{best_toploc(arrays, calibrate, name, c, t):.4f} [{(2 + 2 * top_k) / chunk:g}]")
            print("  ".join(line))


def _show_cheapest(arrays: Arrays, calibrate: int) -> None:
    """Fewest bytes per token that reach `TARGET`, of either method, by deviation and tokens."""
    chunks = arrays["chunks"].tolist()
    ours: dict[tuple[str, int], tuple[float, str]] = {}
    for spec in SEARCH:
        found = scores(arrays, spec, calibrate)
        for chunk in (n for n in chunks if n <= found["honest"].shape[1]):
            for every in (n for n in chunks if n <= chunk):
                size = -(-spec.k * spec.bits * -(-chunk // every) // 8) / chunk
                honest, deviating = cells(found, calibrate, chunk, every)
                for name, values in deviating.items():
                    key = (name, chunk)
                    if (key not in ours or size < ours[key][0]) and auc(honest, values) >= TARGET:
                        ours[key] = (size, f"k={spec.k} every {every} step 2^{spec.step_log2[0]}")
    print(f"\ncheapest that reaches AUC {TARGET}: ours | TOPLOC | saved")
    for name in sorted({key.split("/")[1] for key in arrays if key.startswith("error/")} - set(HONEST)):
        for c, chunk in enumerate(chunks):
            theirs = [
                (2 + 2 * top_k) / chunk
                for t, top_k in enumerate(arrays["top_ks"].tolist())
                if top_k <= chunk * HIDDEN and best_toploc(arrays, calibrate, name, c, t) >= TARGET
            ]
            mine = ours.get((name, chunk))
            left = f"{mine[0]:g} B ({mine[1]})" if mine else "not reached"
            right = f"{min(theirs):g} B" if theirs else "not reached"
            saved = f"{1 - mine[0] / min(theirs):.0%}" if mine and theirs else "-"
            print(f"{name:9} {chunk:3} tokens: {left} | {right} | {saved}")
