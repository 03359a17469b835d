"""Scores of a sampler whose noise is not known: what each token was drawn from, and nothing of how."""

from __future__ import annotations

import numpy as np

from veridifr.filters import EDGE_WINDOW
from veridifr.scores import GAP_CAP, Choices, Contenders, Scores
from veridifr.scoring import statuses
from veridifr.scoring_table import Table
from veridifr.trace import Sampling

_NOBODY = Contenders(
    rows_M=np.empty(0, np.int32),
    scores_M=np.empty(0, np.float32),
    edges_M=np.empty(0, np.float32),
    noise_M=np.empty(0, np.float32),
    claimed_M=np.empty(0, bool),
)


def score_distribution(table: Table, sampling: Sampling, tail_mass: float) -> Scores:
    """Candidates of each token with their logits and their distance to the edge of the filters.

    Those further than `EDGE_WINDOW` logits outside the filters are left out, but for the claimed one.
    """
    evidence, heat = table.evidence, table.temperature
    logits_N = table.logits_N.astype(np.float64)
    edges_N = np.full(len(logits_N), -np.inf) if table.edges_N is None else table.edges_N
    near_N = (edges_N < EDGE_WINDOW) & (logits_N > -np.inf)
    near_N[table.claimed_T] = True
    index = np.flatnonzero(near_N)
    rows = np.repeat(np.arange(table.steps, dtype=np.int64), table.counts_T)[index]
    starts_T = np.searchsorted(rows, np.arange(table.steps, dtype=np.int64))
    parts = np.split(index, starts_T[1:])
    index = np.concatenate([part[np.argsort(-logits_N[part], kind="stable")] for part in parts])
    place_N = np.empty(len(logits_N), dtype=np.int64)
    place_N[index] = np.arange(len(index))
    top_T = logits_N[index[starts_T]]
    top_T = np.where(top_T > -np.inf, top_T, 0.0)  # the settings forbid every candidate that is listed
    raw_N = evidence.logits_N.astype(np.float64) / heat - np.repeat(table.total_T, table.counts_T)
    own_T = edges_N[table.claimed_T]
    outside_T = np.where(logits_N[table.claimed_T] == -np.inf, GAP_CAP, own_T)
    return Scores(
        status_T=statuses(evidence, table, tail_mass),
        gap_T=np.clip(-outside_T, -GAP_CAP, GAP_CAP),
        match_T=index[starts_T] == table.claimed_T,
        best_T=evidence.ids_N[index[starts_T]],
        rank_T=evidence.rank_T,
        logprob_T=table.logprob_T,
        contenders=_NOBODY,
        hashes=0,
        choices=Choices(
            sampling=sampling,
            temperature=heat,
            starts_T=starts_T,
            claimed_T=place_N[table.claimed_T],
            logits_M=(logits_N[index] - top_T[rows]).astype(np.float32),
            edges_M=edges_N[index].astype(np.float32),
            raw_M=raw_N[index].astype(np.float32),
        ),
    )
