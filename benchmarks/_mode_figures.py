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
    "int4 weights": ("forward_pass",),
    "fp8 weights": ("forward_pass",),
    "fp8 key-value cache": ("forward_pass",),
    "temperature": ("temperature",),
    "top-p": ("top_p",),
    "another model (7 M)": ("forward_pass",),
    "seeds ignored": ("seed",),
    "one request in five to the 7 M model": ("forward_pass", "unexplained"),
    "a penalty nobody asked for": ("forward_pass", "unexplained"),
}
"""The causes that are right (docs/modes.md says why two are, of some)."""
RIGHT_AT_ZERO = {"temperature": ("temperature", "forward_pass")}
"""Those at temperature 0 that are others."""
PLANNED = ("int4 weights", "fp8 weights", "fp8 key-value cache", "temperature")
"""What `veridifr plan` knows by name."""


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the benchmark publishes, from raw results alone."""
    columns = raw["columns"]
    return {
        "cells": {name: _cells(name, column) for name, column in columns.items()},
        "honest_divergent": {
            name: column["rows"]["honest"]["verdict"] == "divergent" for name, column in columns.items()
        },
        "false_positive_rate": {name: _false_positives(column) for name, column in columns.items()},
        "honest_given_a_cause": {name: _given(column) for name, column in columns.items()},
        "visible_named_right": _named_right(columns),
        "planned_over_measured": _ratios(columns),
        "detect_sigma": {name: column["detect_sigma"] for name, column in columns.items()},
        "seeded_tokens": {name: column["seeded_tokens"] for name, column in columns.items()},
    }


def _cells(mode: str, column: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, row in column["rows"].items():
        if name == "honest":
            continue
        by_length = {str(length): _needed(column, row, length) for length in LENGTHS}
        found[name] = {
            "tokens_needed": min((n for n in by_length.values() if n is not None), default=None),
            "tokens_by_length": by_length,
            "planned_by_length": row["planned_tokens"],
            "power_at_20000": _power(column, row),
            "verdict": row["verdict"],
            "code": row["code"],
            "right": row["code"] in _right(mode, name),
        }
    return found


def _right(mode: str, name: str) -> tuple[str, ...]:
    return RIGHT_AT_ZERO.get(name, RIGHT[name]) if mode == "greedy" else RIGHT[name]


def _given(column: Mapping[str, Any]) -> dict[str, int]:
    """How many honest audits were asked for a cause, and how many got one."""
    codes = column["rows"]["honest"]["asked"]
    return {"asked": len(codes), "given": sum(code != "unexplained" for code in codes)}


def _named_right(columns: Mapping[str, Any]) -> dict[str, int]:
    """Of the cells that are visible within `MOST` tokens, those whose audit was divergent and named a right cause."""
    cells = [cell for name, column in columns.items() for cell in _cells(name, column).values()]
    visible = [cell for cell in cells if cell["tokens_needed"] is not None]
    return {"visible": len(visible), "right": sum(c["verdict"] == "divergent" and c["right"] for c in visible)}


def _ratios(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Planned over measured tokens at equal lengths, where both are known: the smallest and largest of each mode."""
    found = {}
    for name, column in columns.items():
        pairs = [
            (cell["planned_by_length"][length], measured)
            for cell in _cells(name, column).values()
            for length, measured in cell["tokens_by_length"].items()
        ]
        ratios = [planned / measured for planned, measured in pairs if planned is not None and measured is not None]
        found[name] = {"lengths": len(ratios), "least": min(ratios, default=None), "most": max(ratios, default=None)}
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
    lines = [f"| the provider | {' | '.join(cells)} | right cause |", "|---|" + "---|" * (len(cells) + 1)]
    honest = ["**divergent**" if wrong else "not divergent" for wrong in figures["honest_divergent"].values()]
    lines.append(f"| honest | {' | '.join(honest)} | |")
    for name in names:
        row = " | ".join(_cell(column.get(name)) for column in cells.values())
        lines.append(f"| {name} | {row} | {_causes(name)} |")
    named = figures["visible_named_right"]
    lines += ["", f"Visible and named right: {named['right']} of {named['visible']} cells.", ""]
    return "\n".join([*lines, *_rates(figures), "", *_plans(cells)]) + "\n"


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "does not apply"
    if cell["tokens_needed"] is None:
        return f"not visible (power {cell['power_at_20000']:.2f} at 20,000)"
    return f"{cell['tokens_needed']:,} tokens; {_cause(cell['code'])}"


def _cause(code: str) -> str:
    return {"none": "no cause asked", "unexplained": "unexplained"}.get(code, f"`{code}`")


def _causes(name: str) -> str:
    right = " or ".join(map(_cause, RIGHT[name]))
    more = [code for code in RIGHT_AT_ZERO.get(name, ()) if code not in RIGHT[name]]
    return f"{right}; greedy also {' or '.join(map(_cause, more))}" if more else right


def _rates(figures: Mapping[str, Any]) -> Sequence[str]:
    rates, given = figures["false_positive_rate"], figures["honest_given_a_cause"]
    heads = (f"honest audits called divergent at {ALPHA:g}", "rate", "95 % interval of the redraws", "given a cause")
    lines = [f"| {' | '.join(heads)} if asked |", "|---|---|---|---|"]
    for name, rate in rates.items():
        low, high = rate["interval"]
        asked = f"{given[name]['given']} of {given[name]['asked']}" if given[name]["asked"] else "not asked"
        lines.append(f"| {name} | {rate['rate']:.2%} | {low:.2%} to {high:.2%} | {asked} |")
    return lines


def _plans(cells: Mapping[str, Any]) -> Sequence[str]:
    heads = " | ".join(f"sequences of {length}" for length in LENGTHS)
    lines = [f"| `veridifr plan`, then measured | mode | {heads} |", "|---|---|" + "---|" * len(LENGTHS)]
    for column, rows in cells.items():
        for name in PLANNED:
            if name in rows and not (column == "greedy" and name == "temperature"):
                cell = rows[name]
                pairs = zip(cell["planned_by_length"].values(), cell["tokens_by_length"].values(), strict=True)
                both = [f"{_tokens(planned)}, {_tokens(measured)}" for planned, measured in pairs]
                lines.append(f"| {name} | {column} | {' | '.join(both)} |")
    return lines


def _tokens(count: int | None) -> str:
    return "-" if count is None or count > MOST else f"{count:,}"
