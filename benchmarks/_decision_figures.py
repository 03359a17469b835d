"""What benchmarks/decisions.py publishes, from the scores alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import _decision_pauc as pauc
import _decision_tests as tests


def figures_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """All figures; `tokens_ratio_to_mean_clipped_margin` and the targets are those of contiguous tokens."""
    rows = tests.sequential(arrays)
    return {
        **setting_figures(arrays),
        "false_positive_rate": tests.false_positives(arrays),
        "given_one_calibration": tests.given_one_calibration(arrays),
        "sequential_over_fixed": {name: row["ratio"] for name, row in rows.items()},
        "sequential": rows,
        "selective_cheat_ratio": {name: row["ratio"] for name, row in tests.selective(arrays, rows).items()},
    }


def setting_figures(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Partial AUCs and what follows from them, of sequences under one sampling setting."""
    curves = pauc.curves(arrays)
    saved = pauc.savings(curves["contiguous"])
    ceilings = pauc.ceilings(arrays)
    fewest = pauc.fewest_tokens(ceilings)
    return {
        **told_figures(arrays),
        "pauc": curves["contiguous"],
        "pauc_95": curves["contiguous_95"],
        "pauc_prefixes": curves["prefixes"],
        "pauc_prefixes_95": curves["prefixes_95"],
        "pauc_shuffled": curves["shuffled"],
        "pauc_ceiling": ceilings,
        "fewest_tokens_at_pauc_0.9": fewest,
        "tokens_ratio_ceiling": pauc.ratio_ceilings(fewest, saved),
        "targets": pauc.targets(curves["contiguous"], curves["contiguous_95"]),
        "targets_prefixes": pauc.targets(curves["prefixes"], curves["prefixes_95"]),
        "tokens_at_pauc_0.9": {name: row["tokens"] for name, row in saved.items()},
        "tokens_ratio_to_mean_clipped_margin": {
            name: row["ratio"].get("mean_clipped_margin") for name, row in saved.items()
        },
        "tokens_ratio": {name: row["ratio"] for name, row in saved.items()},
    }


def told_figures(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Partial AUCs of the scores that were told the deviation."""
    told = pauc.told(arrays)
    return {
        "pauc_told": told,
        "tokens_told_at_pauc_0.9": {name: pauc.tokens_for(rows, "told") for name, rows in told.items()},
    }
