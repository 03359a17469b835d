"""What benchmarks/decisions.py publishes, from the scores alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import _decision_pauc as pauc
import _decision_tests as tests


def figures_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """All figures; `tokens_ratio_to_mean_clipped_margin` and the targets are those of contiguous tokens."""
    curves = pauc.curves(arrays)
    rows = tests.sequential(arrays)
    errors = tests.false_positives(arrays)
    saved = pauc.savings(curves["contiguous"])
    ceilings = pauc.ceilings(arrays)
    fewest = pauc.fewest_tokens(ceilings)
    return {
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
        "false_positive_rate": errors,
        "given_one_calibration": tests.given_one_calibration(arrays),
        "sequential_over_fixed": {name: row["ratio"] for name, row in rows.items()},
        "sequential": rows,
        "selective_cheat_ratio": {name: row["ratio"] for name, row in tests.selective(arrays, rows).items()},
    }
