"""The figures of audits_cpu.py from its raw results, and the tables of docs/diagnosis.md from the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.stats import clopper_pearson, permutation_p_values

STACKS = ("v1", "v2")
ALPHAS = (0.01, 0.05)
REDRAWS = 2000
"""Redraws of which honest sequences of a stack are audited."""
NULL, AUDITED = 60, 40
CODES = ("none", "sampler_contract", "temperature", "top_p", "top_k", "seed", "forward_pass", "unexplained")
Floats = npt.NDArray[np.float64]


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the benchmark publishes, from raw results alone."""
    issue, audits, causes = raw["issue"], raw["audits"], raw["honest_causes"]
    within, across = _false_positives(raw["honest_scores"])
    named = sum(row["code"] not in ("none", "unexplained") for row in causes)
    return {
        "verdicts": {row["case"]: row["verdict"] for row in issue},
        "diagnoses": {row["case"]: {k: row[k] for k in ("code", "contract", "estimate")} for row in issue},
        "temperature_estimate": next(row["estimate"] for row in issue if row["case"] == "v1.temp1.1"),
        "confusion": _confusion(audits),
        "right_code": {row["case"]: row["right"] for row in audits},
        "divergent": {name: _share(audits, name) for name in _names(audits)},
        "parameter_estimates": _estimates(audits),
        "false_positive_rate": {key: value["rate"] for key, value in within.items()},
        "false_positive_interval": {key: value["interval"] for key, value in within.items()},
        "false_positive_rate_other_run": {key: value["rate"] for key, value in across.items()},
        "honest_named": named / len(causes),
        "honest_named_interval": list(clopper_pearson(named, len(causes))),
        "honest_named_audits": len(causes),
    }


def _names(audits: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in audits))


def _confusion(audits: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name in _names(audits):
        codes = [row["code"] for row in audits if row["case"] == name]
        found[name] = {code: codes.count(code) for code in CODES if code in codes}
    return found


def _share(audits: Sequence[Mapping[str, Any]], name: str) -> str:
    own = [row["verdict"] == "divergent" for row in audits if row["case"] == name]
    return f"{sum(own)} of {len(own)}"


def _estimates(audits: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Estimates of audits that named the changed parameter, beside the truth, and in how many the interval held it."""
    found: dict[str, dict[str, Any]] = {}
    for name in _names(audits):
        own = [row for row in audits if row["case"] == name]
        for code, truth in own[0]["truth"].items():
            named = [row for row in own if row["code"] == code]
            held = sum(
                row["interval"] is not None and row["interval"][0] <= truth <= row["interval"][1] for row in named
            )
            values = [row["estimate"] for row in named]
            found[name] = {"parameter": code, "truth": truth, "estimates": values, "interval_held_truth": held}
    return found


def _false_positives(scores: Mapping[str, Sequence[float]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Share of redrawn honest audits with p <= alpha: calibrated on the same run, and on another one."""
    rng = np.random.default_rng(11)
    pools = {stack: np.array(scores[f"pool {stack}"]) for stack in STACKS}
    files = {stack: np.array(scores[f"files {stack}"]) for stack in STACKS}
    within, across = [], []
    for stack in STACKS:
        audited_DN, rest = _draw(pools[stack], AUDITED, rng)
        nulls = [rest[:, :NULL] if s == stack else _draw(pools[s], NULL, rng)[0] for s in STACKS]
        within.append(_largest_p(audited_DN, nulls, rng))
        across.append(_largest_p(audited_DN, [_draw(files[s], NULL, rng)[0] for s in STACKS], rng))
    return _rates(np.concatenate(within)), _rates(np.concatenate(across))


def _draw(values: Floats, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """`count` values for each of `REDRAWS` audits, none twice in one, and the others in random order."""
    shuffled = rng.permuted(np.tile(values, (REDRAWS, 1)), axis=1)
    return shuffled[:, :count], shuffled[:, count:]


def _largest_p(audited_DN: Floats, nulls: Sequence[Floats], rng: np.random.Generator) -> Floats:
    found = [permutation_p_values(audited_DN, null, permutations=10_000, rng=rng) for null in nulls]
    largest: Floats = np.max(found, axis=0)
    return largest


def _rates(p_D: Floats) -> dict[str, Any]:
    found = {}
    for alpha in ALPHAS:
        count = int((p_D <= alpha).sum())
        found[f"{alpha:g}"] = {"rate": count / len(p_D), "interval": list(clopper_pearson(count, len(p_D)))}
    return found


def block(figures: Mapping[str, Any]) -> str:
    """The Markdown between the markers of docs/diagnosis.md."""
    confusion, right = figures["confusion"], figures["right_code"]
    codes = [code for code in CODES if any(code in row for row in confusion.values())]
    lines = [
        f"| what the provider did | divergent | {' | '.join(f'`{code}`' for code in codes)} |",
        f"|---|---|{'---|' * len(codes)}",
    ]
    for name, row in confusion.items():
        cells = [_cell(row.get(code, 0), code == right[name]) for code in codes]
        lines.append(f"| {name} | {figures['divergent'][name]} | {' | '.join(cells)} |")
    lines += ["", "| what the provider did | true value | estimates | 95 % interval held it |", "|---|---|---|---|"]
    for name, row in figures["parameter_estimates"].items():
        values = row["estimates"]
        shown = ", ".join(f"{value:.4g}" for value in values) if values else "not named"
        held = f"{row['interval_held_truth']} of {len(values)}" if values else ""
        lines.append(f"| {name} | {row['parameter']} {row['truth']:g} | {shown} | {held} |")
    return "\n".join([*lines, "", *_honest_lines(figures)]) + "\n"


def _cell(count: int, right: bool) -> str:
    if right:
        return f"**{count}**"
    return str(count) if count else ""


def _honest_lines(figures: Mapping[str, Any]) -> list[str]:
    other, intervals = figures["false_positive_rate_other_run"], figures["false_positive_interval"]
    lines = ["| honest audits | alpha 0.01 | alpha 0.05 |", "|---|---|---|"]
    cells = [
        f"{rate:.2%} ({intervals[alpha][0]:.2%} to {intervals[alpha][1]:.2%})"
        for alpha, rate in figures["false_positive_rate"].items()
    ]
    lines.append(f"| called divergent, calibrated on the same run | {' | '.join(cells)} |")
    lines.append(
        f"| called divergent, calibrated on another run | {' | '.join(f'{rate:.2%}' for rate in other.values())} |"
    )
    low, high = figures["honest_named_interval"]
    lines += [
        "",
        f"Of {figures['honest_named_audits']} honest audits that `diagnose` was asked about all the same, "
        f"{figures['honest_named']:.1%} were given a cause (95 % interval {low:.1%} to {high:.1%}).",
    ]
    return lines
