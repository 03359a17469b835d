"""Error rates and sample sizes of the tests, on real honest sequences and on a synthetic null."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from _decision_pauc import EDGES, judged
from veridifr.stats import clopper_pearson, permutation_p_values, permutations_for
from veridifr.stats.bets import Bets, informed_bet, mixed_bets
from veridifr.stats.ranks import rank_paths, simulated_ranks
from veridifr.stats.simulated import floor_for_power, simulate_audits
from veridifr.stats.wealth import Bounds

Floats = npt.NDArray[np.float64]
STACK = ("honest.v1", "more.v1")
"""One honest stack: the same engine, runner and settings, two runs."""
ALPHAS = (0.05, 0.01, 0.001)
AUDITS = 10_000
NULL_SIZE, FIXED, LONGEST = 300, 40, 100
"""Calibration scores, sequences of a fixed audit, and of the longest sequential one."""
ALPHA, POWER = 0.01, 0.9
CALIBRATION = 1000
DRAWS = 2000
SHARE = 0.1
SIZES = ("1.3", "2", "4", "10")
FLOOR_POWER = 0.91
"""Power that the floor is chosen for on the fit part: a little more than is asked for, since that is an estimate."""
WHOLE, SHORT = EDGES[-1], 100
"""Tokens of a sequence; short ones where whole ones tell in fewer than ten sequences, so that there is a choice."""
_BLOCK = 500


def judged_at(arrays: Mapping[str, Any], name: str, tokens: int) -> Floats:
    """Likelihood scores of a set's judged sequences, cut to `tokens`."""
    return judged(arrays, name)[:, EDGES.index(tokens), 0]


def null_scores(arrays: Mapping[str, Any], tokens: int = WHOLE) -> Floats:
    """Scores of honest sequences of one stack that had no part in the calibration split."""
    return np.concatenate([judged_at(arrays, name, tokens) for name in STACK])


def fit_scores(arrays: Mapping[str, Any], key: str = "scores", tokens: int = WHOLE) -> Floats:
    """Scores of the stack's calibration split: as they are, or simulated (`fit.sigma2`)."""
    parts = []
    for name in STACK:
        values = arrays[f"{name}/{key}"]
        values = values[arrays[f"{name}/fit"]][:, :, 0] if key == "scores" else values
        parts.append(values[:, EDGES.index(tokens)].astype(np.float64))
    return np.concatenate(parts)


def bets_for(arrays: Mapping[str, Any], tokens: int = WHOLE) -> Bets:
    """What an audit would bet: on each simulated size, and on the two largest for a share of the requests."""
    honest = fit_scores(arrays, tokens=tokens)
    simulated = {
        size: informed_bet(f"sigma {size}", honest, fit_scores(arrays, f"fit.sigma{size}", tokens)) for size in SIZES
    }
    return mixed_bets([*simulated.values(), simulated["4"].on_part(SHARE), simulated["10"].on_part(SHARE)])


def without_replacement(pool: Floats, rows: int, take: int, rng: np.random.Generator) -> Floats:
    """`take` different scores for each of `rows` audits, in random order."""
    chosen = np.argpartition(rng.random((rows, len(pool))), take, axis=1)[:, :take]
    ordered = np.sort(chosen, axis=1)  # numpy leaves them in an order that depends on the processor
    return pool[rng.permuted(ordered, axis=1)]


def false_positives(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Rates over `AUDITS` audits, each with a calibration and an audit of its own, by alpha and stopping rule."""
    bets, pool = bets_for(arrays), null_scores(arrays)

    def real(rows: int, rng: np.random.Generator) -> Floats:
        return without_replacement(pool, rows, NULL_SIZE + LONGEST, rng)

    def synthetic(rows: int, rng: np.random.Generator) -> Floats:
        """Skewed, tied, and alike within an audit only: exchangeable, not independent."""
        common = rng.normal(size=(rows, 1))
        return np.round(np.exp(rng.normal(size=(rows, NULL_SIZE + LONGEST))) + common, 1)

    found: dict[str, Any] = {}
    for name, draw in (("real", real), ("synthetic", synthetic)):
        counts = _count_false(draw, bets)
        found[name] = {
            str(alpha): {rule: _rate(count, alpha) for rule, count in rules.items()} for alpha, rules in counts.items()
        }
    found["prompts"] = len(pool)
    return found


def _rate(count: int, alpha: float) -> dict[str, Any]:
    low = clopper_pearson(count, AUDITS, 0.998)[0]
    return {"rate": count / AUDITS, "lower_999": low, "holds": low <= alpha}


def _count_false(draw: Callable[[int, np.random.Generator], Floats], bets: Bets) -> dict[float, dict[str, int]]:
    rng = np.random.default_rng(3)
    names = ("fixed", "every_sequence", "worst_moment", "optional_continuation", "with_floor")
    counts = {alpha: dict.fromkeys(names, 0) for alpha in ALPHAS}
    for _ in range(AUDITS // _BLOCK):
        scores = draw(_BLOCK, rng)
        honest, audited = scores[:, :NULL_SIZE], scores[:, NULL_SIZE:]
        p_values = permutation_p_values(audited[:, :FIXED], honest, permutations=permutations_for(min(ALPHAS)), rng=rng)
        ranks = rank_paths(audited, honest, rng=rng)
        for alpha, row in counts.items():
            row["fixed"] += int((p_values <= alpha).sum())
            looked = simulate_audits(ranks, bets, Bounds(alpha=alpha), m=NULL_SIZE)
            best = looked.e_values.max(axis=1)
            at_fixed = looked.e_values[:, FIXED - 1]
            row["every_sequence"] += int(looked.rejected.sum())
            row["worst_moment"] += int((best >= 1 / alpha * (1 - 1e-9)).sum())
            went_on = at_fixed > 1.0  # stop after the fixed number unless the evidence looks promising
            early = looked.e_values[:, :FIXED].max(axis=1) >= 1 / alpha * (1 - 1e-9)
            row["optional_continuation"] += int((early | (went_on & looked.rejected)).sum())
            row["with_floor"] += int(
                simulate_audits(ranks, bets, Bounds(alpha=alpha, floor=0.2), m=NULL_SIZE).rejected.sum()
            )
    return counts


def given_one_calibration(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Spread over calibrations of the fixed test's error rate at alpha 0.01: the mean is what is guaranteed."""
    pool, rng = null_scores(arrays), np.random.default_rng(5)
    rates = []
    for _ in range(100):
        lot = rng.permutation(len(pool))
        honest, rest = pool[lot[:NULL_SIZE]], pool[lot[NULL_SIZE:]]
        audited = without_replacement(rest, 400, FIXED, rng)
        p_values = permutation_p_values(audited, np.tile(honest, (400, 1)), permutations=1000, rng=rng)
        rates.append(float((p_values <= ALPHA).mean()))
    quantiles = np.quantile(rates, [0.05, 0.5, 0.95])
    return {"alpha": ALPHA, "m": NULL_SIZE, "n": FIXED, "mean": float(np.mean(rates)), "quantiles": quantiles.tolist()}


def deviations(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Judged scores and what stands for them on the fit part, for deviations that are hard to see."""
    honest, fit = null_scores(arrays), fit_scores(arrays)
    rng = np.random.default_rng(9)

    def part(whole: Floats, others: Floats) -> Floats:
        """A provider that deviates on a share of its requests: draws of either kind, for bootstrapping."""
        size = 20_000
        return np.where(rng.random(size) < SHARE, rng.choice(whole, size), rng.choice(others, size))

    simulated = {key: arrays[f"honest.v1/{key}"].astype(np.float64) for key in ("sigma1.3", "part_tokens")}
    short = EDGES.index(SHORT)
    return {
        "sigma 1.3": {"scores": simulated["sigma1.3"][:, -1], "fit": fit_scores(arrays, "fit.sigma1.3")},
        "temperature 1.02, 100 tokens each": {
            "scores": judged_at(arrays, "temp1.02", SHORT),
            "fit": fit_scores(arrays, "fit.sigma1.3", SHORT),
            "tokens": SHORT,
        },
        "int4 on 10 % of requests": {
            "scores": part(judged_at(arrays, "int4", WHOLE), honest),
            "fit": part(fit_scores(arrays, "fit.sigma10"), fit),
        },
        "fp8 on 10 % of requests": {
            "scores": part(judged_at(arrays, "fp8", WHOLE), honest),
            "fit": part(fit_scores(arrays, "fit.sigma4"), fit),
        },
        "int4-like errors on 5 % of tokens, 100 tokens each": {
            "scores": simulated["part_tokens"][:, short],
            "fit": fit_scores(arrays, "fit.sigma2", SHORT),
            "tokens": SHORT,
        },
    }


def fixed_number(pool: Floats, deviating: Floats, rng: np.random.Generator) -> tuple[int, float]:
    """Smallest n at which the fixed test rejects `POWER` of the audits, and the power there."""

    def power(n: int) -> float:
        audited = deviating[rng.integers(0, len(deviating), (DRAWS, n))]
        honest = without_replacement(pool, DRAWS, CALIBRATION, rng)
        p_values = permutation_p_values(audited, honest, permutations=permutations_for(ALPHA), rng=rng)
        return float((p_values <= ALPHA).mean())

    high = 2
    while power(high) < POWER:
        high *= 2
    low = high // 2
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high, power(high)


def sequential(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Sequences that the sequential test takes, over the smallest number of the fixed test, at power 0.9."""
    found = {}
    for number, (name, item) in enumerate(deviations(arrays).items()):
        rng, tokens = np.random.default_rng(100 + number), item.get("tokens", WHOLE)
        pool, fit = null_scores(arrays, tokens), fit_scores(arrays, tokens=tokens)
        bets = bets_for(arrays, tokens)
        fixed, fixed_power = fixed_number(pool, item["scores"], rng)
        longest = max(60, 3 * fixed)
        planned = simulated_ranks(fit, item["fit"], m=CALIBRATION, n=longest, draws=1000, rng=rng)
        floor = floor_for_power(planned, bets, alpha=ALPHA, m=CALIBRATION, power=FLOOR_POWER)
        audited = item["scores"][rng.integers(0, len(item["scores"]), (DRAWS, longest))]
        ranks = rank_paths(audited, without_replacement(pool, DRAWS, CALIBRATION, rng), rng=rng)
        with_floor = simulate_audits(ranks, bets, Bounds(alpha=ALPHA, floor=floor), m=CALIBRATION)
        plain = simulate_audits(ranks, bets, Bounds(alpha=ALPHA), m=CALIBRATION)
        rejected_at = np.where(plain.rejected, plain.used, 10 * longest)
        found[name] = {
            "fixed": fixed,
            "fixed_power": fixed_power,
            "floor": floor,
            "power": float(with_floor.rejected.mean()),
            "mean": float(with_floor.used.mean()),
            "ninetieth": float(np.quantile(with_floor.used, 0.9)),
            "ratio": float(with_floor.used.mean() / fixed),
            "without_floor": {
                "power": float(plain.rejected.mean()),
                "mean": float(plain.used.mean()),
                "ratio": float(plain.used.mean() / fixed),
                "number_for_power": int(np.quantile(rejected_at, POWER, method="higher")),
            },
        }
    return found


def selective(arrays: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Requests that a cheat on a tenth of them takes, over the larger of 22 (the chance to touch one is 0.9) and what
    a provider that cheats on all takes."""
    pool, found = null_scores(arrays), {}
    for name, case in (("int4", "int4 on 10 % of requests"), ("fp8", "fp8 on 10 % of requests")):
        whole = fixed_number(pool, judged_at(arrays, name, WHOLE), np.random.default_rng(1))[0]
        number = rows[case]["without_floor"]["number_for_power"]
        base = max(22, whole)
        found[name] = {"requests": number, "base": base, "ratio": number / base, "wholly": whole}
    return found
