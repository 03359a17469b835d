"""Statistics on plain arrays: tests, power and intervals. Knows nothing of tokens, models or engines.

Assumptions and proofs are in docs/statistics.md. The function `power` is imported from the module `stats.power`: here
its name would hide the module.
"""

from __future__ import annotations

from veridifr.stats.intervals import bootstrap_interval, bootstrap_interval_of, clopper_pearson
from veridifr.stats.permutation import (
    PermutationResult,
    fewest_sequences,
    p_floor,
    permutation_p_values,
    permutation_test,
    permutations_for,
    pooled_p_value,
)
from veridifr.stats.power import PowerResult, sequences_needed

__all__ = [
    "PermutationResult",
    "PowerResult",
    "bootstrap_interval",
    "bootstrap_interval_of",
    "clopper_pearson",
    "fewest_sequences",
    "p_floor",
    "permutation_p_values",
    "permutation_test",
    "permutations_for",
    "pooled_p_value",
    "sequences_needed",
]
