"""Scores by brute force: every token of the vocabulary gets its noise, every definition is spelt out row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from veridifr.contracts.base import Contract, Stream
from veridifr.trace import Sampling, Trace


@dataclass(frozen=True)
class Token:
    """What brute force says of one token."""

    gap: float
    match: bool
    best: int
    rank: int
    logprob: float


def kept_by_vllm(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Which tokens vLLM leaves a chance: min-p, then top-k, then top-p over what is left, as its sampler masks them."""
    row = logits_V / sampling.temperature
    if sampling.min_p is not None:
        share = np.exp(row - row.max())
        row = np.where(share / share.sum() < sampling.min_p * (share / share.sum()).max(), -np.inf, row)
    if sampling.top_k is not None:
        row = np.where(row < np.sort(row)[-min(sampling.top_k, len(row))], -np.inf, row)
    if sampling.top_p is not None:
        ascending = np.argsort(-row, kind="stable")[
            ::-1
        ]  # of ties, which the engine sorts as it likes, the lowest id last
        share = np.exp(row[ascending] - row.max())
        drop = np.cumsum(share / share.sum()) <= 1 - sampling.top_p
        drop[-1] = False
        row[ascending[drop]] = -np.inf
    return row > -np.inf


def distances(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The signed distance m of each token to the edge of the kept set, by the definitions of `veridifr.filters`."""
    heat, distance = sampling.temperature, np.full(len(logits_V), -np.inf)
    order = np.argsort(-logits_V, kind="stable")
    ranked = logits_V[order]
    kept = len(ranked)
    if sampling.min_p is not None:
        edge = ranked[0] + heat * np.log(sampling.min_p)
        distance = np.maximum(distance, edge - ranked)
        kept = int((ranked >= edge).sum())
    if sampling.top_k is not None and sampling.top_k < len(ranked):
        k = sampling.top_k
        own = [ranked[k] - ranked[i] if i < k else ranked[k - 1] - ranked[i] for i in range(len(ranked))]
        distance = np.maximum(distance, own)
        kept = min(kept, int((ranked >= ranked[k - 1]).sum()))  # ties with the last are kept
    if sampling.top_p is not None:
        p = sampling.top_p
        weights = np.exp((ranked[:kept] - ranked[0]) / heat)
        above = np.clip((np.cumsum(weights) - weights) / weights.sum(), 1e-12, 1 - 1e-12)
        shift = heat * (np.log(above / (1 - above)) - np.log(p / (1 - p)))
        shift[0] = -np.inf
        count = int((shift < 0).sum())
        first_out = ranked[count] if count < len(ranked) else -np.inf
        for i in range(len(ranked)):
            if i < count:
                own_i = max(shift[i], first_out - ranked[i])
            else:
                own_i = min(shift[i] if i < kept else np.inf, ranked[count - 1] - ranked[i])
            distance[i] = max(distance[i], own_i)
    by_id = np.empty_like(distance)
    by_id[order] = distance
    return by_id


def brute_force(contract: Contract, trace: Trace, logits_TV: np.ndarray) -> list[Token]:
    """The score of each token of `trace`, whose rows of logits are given whole."""
    sampling, vocab = trace.sampling, logits_TV.shape[1]
    heat = 0.0 if sampling.greedy else sampling.temperature
    found = []
    for step, (row, claimed) in enumerate(zip(logits_TV.astype(np.float64), trace.output_token_ids, strict=True)):
        z, edges, kept = row, np.full(vocab, -np.inf), np.ones(vocab, dtype=bool)
        if heat:
            stream = Stream(
                seed=sampling.seed or 0,
                prompt_length=len(trace.prompt_token_ids),
                vocab_size=vocab,
                engine=trace.engine,
            )
            rows, ids = np.zeros(vocab, dtype=np.int64), np.arange(vocab, dtype=np.int64)
            z = row + heat * contract.gumbel(stream, np.array([step]), rows, ids)
            edges, kept = distances(row, sampling), kept_by_vllm(row, sampling)
        others = np.arange(vocab) != claimed
        loses = np.maximum(z[claimed] - z, edges)[others]
        best = int(np.argmax(np.where(kept, z, -np.inf)))
        scaled = row / (heat or 1.0)
        found.append(
            Token(
                gap=float(np.clip(min(-edges[claimed], loses.min()), -32, 32)),
                match=best == claimed,
                best=best,
                rank=int((row > row[claimed]).sum()),
                logprob=float(scaled[claimed] - scaled.max() - np.log(np.exp(scaled - scaled.max()).sum())),
            )
        )
    return found
