"""The figures of modes.py from its raw results, and the tables of docs/modes.md from the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr import stats
from veridifr.stats.power import power

Floats = npt.NDArray[np.float64]
LENGTHS = (64, 144, 300)
"""Lengths at which sequences are compared; the one that takes the fewest tokens counts."""
ALPHA, POWER = 0.01, 0.9
MOST = 20_000
"""Tokens of the largest audit that is looked at."""
SIZE, REDRAWS = 40, 2000
"""Sequences of a redrawn honest audit, and how many are drawn."""
RIGHT = {
    "int4 weights": "forward_pass",
    "fp8 weights": "forward_pass",
    "fp8 key-value cache": "forward_pass",
    "temperature": "temperature",
    "top-p": "top_p",
    "another model (7 M)": "forward_pass",
    "seeds ignored": "seed",
}
"""The cause that is right; of the others none is: two models in turn, and a setting that no candidate changes."""


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the benchmark publishes, from raw results alone."""
    columns = raw["columns"]
    return {
        "cells": {name: _cells(column) for name, column in columns.items()},
        "honest_divergent": {
            name: column["rows"]["honest"]["verdict"] == "divergent" for name, column in columns.items()
        },
        "false_positive_rate": {name: _false_positives(column) for name, column in columns.items()},
        "detect_sigma": {name: column["detect_sigma"] for name, column in columns.items()},
        "seeded_tokens": {name: column["seeded_tokens"] for name, column in columns.items()},
    }


def _cells(column: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, row in column["rows"].items():
        if name == "honest":
            continue
        needed = [n for length in LENGTHS if (n := _needed(column, row, length)) is not None]
        tokens = min((n for n in needed if n <= MOST), default=None)
        found[name] = {
            "tokens_needed": tokens,
            "power_at_20000": _power(column, row),
            "verdict": row["verdict"],
            "code": row["code"],
            "right_code": RIGHT.get(name),
            "planned_tokens": row["planned_tokens"],
        }
    return found


def _stacks(column: Mapping[str, Any], length: int) -> list[Floats]:
    return [np.array(scores[str(length)]) for scores in column["null"].values()]


def _needed(column: Mapping[str, Any], row: Mapping[str, Any], length: int) -> int | None:
    """Tokens for power `POWER` with sequences of one length."""
    count = stats.sequences_needed(
        _stacks(column, length),
        np.array(row["scores"][str(length)]),
        alpha=ALPHA,
        rng=np.random.default_rng(length),
        power=POWER,
        limit=MOST // length,
    )
    return None if count is None else count * length


def _power(column: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    longest = max(LENGTHS)
    scores = np.array(row["scores"][str(longest)])
    count = MOST // longest
    return power(_stacks(column, longest), scores, count, alpha=ALPHA, rng=np.random.default_rng(1)).power


def _false_positives(column: Mapping[str, Any]) -> dict[str, Any]:
    """Share of redrawn honest audits, at the full length, that are called divergent."""
    rng, longest = np.random.default_rng(3), max(LENGTHS)
    honest = np.array(column["rows"]["honest"]["scores"][str(longest)])
    drawn = rng.permuted(np.tile(honest, (REDRAWS, 1)), axis=1)[:, : min(SIZE, len(honest) // 2)]
    nulls = [np.tile(null, (REDRAWS, 1)) for null in _stacks(column, longest)]
    p_D = np.max([stats.permutation_p_values(drawn, null, permutations=4000, rng=rng) for null in nulls], axis=0)
    count = int((p_D <= ALPHA).sum())
    return {"rate": count / REDRAWS, "interval": list(stats.clopper_pearson(count, REDRAWS)), "audits": REDRAWS}


def block(figures: Mapping[str, Any]) -> str:
    """The Markdown between the markers of docs/modes.md."""
    cells = figures["cells"]
    names = list(dict.fromkeys(name for column in cells.values() for name in column))
    lines = [f"| the provider | {' | '.join(cells)} |", "|---|" + "---|" * len(cells)]
    honest = ["**divergent**" if wrong else "not divergent" for wrong in figures["honest_divergent"].values()]
    lines.append(f"| honest | {' | '.join(honest)} |")
    lines += [f"| {name} | {' | '.join(_cell(column.get(name)) for column in cells.values())} |" for name in names]
    lines += ["", *_rates(figures), "", *_plans(cells)]
    return "\n".join(lines) + "\n"


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "does not apply"
    if cell["tokens_needed"] is None:
        return f"not visible (power {cell['power_at_20000']:.2f} at 20,000)"
    cause = {"none": "no cause asked", "unexplained": "unexplained"}.get(cell["code"], f"`{cell['code']}`")
    return f"{cell['tokens_needed']:,} tokens; {cause}"


def _rates(figures: Mapping[str, Any]) -> Sequence[str]:
    rates = figures["false_positive_rate"]
    lines = [f"| honest audits called divergent at {ALPHA:g} | rate | 95 % interval of the redraws |", "|---|---|---|"]
    for name, rate in rates.items():
        lines.append(f"| {name} | {rate['rate']:.2%} | {rate['interval'][0]:.2%} to {rate['interval'][1]:.2%} |")
    return lines


def _plans(cells: Mapping[str, Any]) -> Sequence[str]:
    lines = ["| `veridifr plan` at 300 tokens | mode | planned | measured |", "|---|---|---|---|"]
    for column, rows in cells.items():
        for name, cell in rows.items():
            if cell["planned_tokens"] is not None or (cell["tokens_needed"] is None and name == "int4 weights"):
                planned = "none within reach" if cell["planned_tokens"] is None else f"{cell['planned_tokens']:,}"
                needed = "not within 20,000" if cell["tokens_needed"] is None else f"{cell['tokens_needed']:,}"
                lines.append(f"| {name} | {column} | {planned} | {needed} |")
    return lines
