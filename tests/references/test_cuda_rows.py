"""The GPU's kernels under Triton's interpreter, on a CPU: what they list decides a token as whole rows do."""

from __future__ import annotations

import os
import subprocess
import sys

INTERPRETED = """
from dataclasses import replace

import numpy as np
import torch

from veridifr.contracts.registry import infer
from veridifr.references import ReferenceSettings, cuda_rows
from veridifr.references.listing import joined
from veridifr.references.rows import RowLister, evidence_of
from veridifr.scores import Hypothesis, Status
from veridifr.scoring import score
from veridifr.trace import EngineRecord, Sampling, Trace

together = []
rng = np.random.default_rng(0)
V, T, D = 2500, 4, 16
weight = torch.from_numpy(rng.normal(size=(V, D)).astype(np.float32))
hidden = torch.from_numpy(rng.normal(size=(T, D)).astype(np.float32)) * 0.4
head = lambda rows: rows @ weight.T
lister = RowLister(head, V, (), device=torch.device("cpu"), settings=ReferenceSettings())
for runner in ("v1", "v2"):
    engine = EngineRecord(
        name="vllm", version="0.24.0", runner=runner, device="NVIDIA H200", multiprocessors=132,
        threads_per_multiprocessor=2048,
    )
    for settings in ({"temperature": 0.9}, {"temperature": 1.0, "top_k": 50, "top_p": 0.95}, {"temperature": 0.0}):
        sampling = Sampling(seed=77, **settings)
        trace = Trace(
            id="a", model="m", prompt_token_ids=[1, 2, 3], output_token_ids=[5] * T, sampling=sampling, engine=engine
        )
        claim = Hypothesis(contract=infer(engine, sampling, V).contract, sampling=sampling, seed=77)
        best = score(trace, lister.evidence(trace, hidden), claim).best_T
        trace = replace(trace, output_token_ids=np.where(np.arange(T) % 2, best, 5).astype(np.int32))
        want = score(trace, lister.evidence(trace, hidden), claim)
        kernels = cuda_rows.KernelLister.of(trace, V)
        assert kernels is not None
        spans = [
            cuda_rows.Span(lister=kernels, start=first + 1, stop=first + 3, first=first) for first in range(0, T, 2)
        ]
        made = cuda_rows.start(head, torch.cat([hidden[:1] * 9, hidden]), spans)
        pairs = [pair for pending in made for pair in pending.finish()]
        together.append((kernels, pairs))
        race = kernels.race(np.concatenate([rows for _, rows in pairs]))
        assert (race is not None) == (settings == {"temperature": 0.9})
        evidence = replace(evidence_of(trace, V, joined([part for part, _ in pairs], T)), race=race).validate()
        got = score(trace, evidence, claim)
        assert (got.status_T == Status.SCORED).all()
        for name in ("gap_T", "match_T", "best_T", "rank_T"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
        np.testing.assert_allclose(got.logprob_T, want.logprob_T, atol=1e-5)
        if race is not None:  # under another seed, and for a token that the race left open, the listing decides nothing
            assert (score(trace, evidence, replace(claim, seed=78)).status_T == Status.BOUND).all()
            left = replace(evidence, race=replace(race, open_O=np.array([2])))
            assert score(trace, left, claim).status_T.tolist() == [0, 0, 1, 0]

together = together[::2]
# all at once, in groups that launches can share, as a step of an engine brings them
spans = [cuda_rows.Span(lister=kernels, start=0, stop=T, first=0) for kernels, _ in together]
made = cuda_rows.start(head, hidden, spans)
for pending, (_, alone) in zip(made, together, strict=True):
    listed, rows = joined([part for part, _ in pending.finish()], T), joined([part for part, _ in alone], T)
    for name in ("counts_R", "ids_N", "logits_N", "lse_R", "rank_R", "floor_R", "tail_R", "hot_tail_R"):
        np.testing.assert_array_equal(getattr(listed, name), getattr(rows, name), err_msg=name)
"""


def test_what_the_kernels_list_decides_as_whole_rows_do() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
