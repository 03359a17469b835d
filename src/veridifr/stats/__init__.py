"""Statistics on plain arrays: tests, power and intervals. Knows nothing of tokens, models or engines.

Assumptions and proofs are in docs/statistics.md. The function `power` is imported from the module `stats.power`: here
its name would hide the module.
"""

from __future__ import annotations

from veridifr.stats.bets import Bet, Bets, informed_bet, lehmann_bet, mixed_bets, shift_bet
from veridifr.stats.conditional import (
    ConditionalPlan,
    ConditionalResult,
    conditional_plan,
    conditional_rank_limit,
    conditional_rate,
    conditional_test,
)
from veridifr.stats.intervals import bootstrap_interval, bootstrap_interval_of, clopper_pearson
from veridifr.stats.multiplicity import (
    anytime_p_value,
    bonferroni,
    e_bh,
    holm,
    holm_adjusted,
    merge_mean,
    merge_products,
)
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
from veridifr.stats.ranks import rank_paths, simulated_ranks, smoothed_rank
from veridifr.stats.sequential import (
    SequentialOutcome,
    SequentialState,
    SequentialStatus,
    SequentialTest,
    StackBet,
    audit_order,
)
from veridifr.stats.simulated import SimulatedAudits, floor_for_power, simulate_audits
from veridifr.stats.wealth import Bounds

__all__ = [
    "Bet",
    "Bets",
    "Bounds",
    "ConditionalPlan",
    "ConditionalResult",
    "PermutationResult",
    "PowerResult",
    "SequentialOutcome",
    "SequentialState",
    "SequentialStatus",
    "SequentialTest",
    "SimulatedAudits",
    "StackBet",
    "anytime_p_value",
    "audit_order",
    "bonferroni",
    "bootstrap_interval",
    "bootstrap_interval_of",
    "clopper_pearson",
    "conditional_plan",
    "conditional_rank_limit",
    "conditional_rate",
    "conditional_test",
    "e_bh",
    "fewest_sequences",
    "floor_for_power",
    "holm",
    "holm_adjusted",
    "informed_bet",
    "lehmann_bet",
    "merge_mean",
    "merge_products",
    "mixed_bets",
    "p_floor",
    "permutation_p_values",
    "permutation_test",
    "permutations_for",
    "pooled_p_value",
    "rank_paths",
    "sequences_needed",
    "shift_bet",
    "simulate_audits",
    "simulated_ranks",
    "smoothed_rank",
]
