"""Providers to audit, honest and not: sets of real tokens (data/h200_pools.npz), and claims changed without new tokens.

vLLM 0.24.0 on an H200 made all tokens. What a set's sequences claim is what an honest provider would; a deviation that
lies in the claim alone (engine, seed) is made here from honest tokens by changing the claim.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from veridifr.trace import Trace
from veridifr.traces import read_traces, trace_from_dict

ROOT = Path(__file__).resolve().parent.parent
POOLS = ROOT / "benchmarks" / "data" / "h200_pools.npz"
sys.path.insert(0, str(ROOT / "tools"))
from trace_pools import load_pool  # noqa: E402  (it lies beside the package)

CALIBRATE = 120
"""Sequences of each honest stack that calibrate."""
HONEST = 480
"""Sequences of each honest stack in all."""
SIZE = 40
"""Sequences of one audit."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A provider: where its tokens come from, what its claim says differently, and the cause that would be right.

    `right` is the code that names the deviation, `truth` the true value of the changed parameter. Where `seed` is
    given, only sequences that were drawn with it count.
    """

    name: str
    tokens: str
    right: str
    first: int = 0
    seed: int | None = None
    change: Callable[[Trace], Trace] | None = None
    truth: dict[str, float] = field(default_factory=dict)
    audits: int = 1

    def traces(self, folder: Path) -> list[Trace]:
        """The sequences of all audits of this case, as claimed."""
        found = tokens(self.tokens, folder, self.first, self.audits * SIZE, self.seed)
        return found if self.change is None else [self.change(trace) for trace in found]


def tokens(name: str, folder: Path, first: int, count: int, seed: int | None = None) -> list[Trace]:
    """`count` sequences of a pool, or of a file `name.jsonl` in `folder`, of those with `seed` if it is given.

    `ValueError` where there are fewer.
    """
    if name.endswith(".jsonl"):
        found = list(read_traces(folder / name))
    else:
        found = [trace_from_dict(record) for record in load_pool(POOLS, name)]
    found = [trace for trace in found if seed in (None, trace.sampling.seed)][first : first + count]
    if len(found) < count:
        raise ValueError(f"{name}: {len(found)} sequences from {first}, expected {count}")
    return found


def runner(trace: Trace, name: str) -> Trace:
    """The same sequence, said to come from another of vLLM's runners."""
    return replace(trace, engine=replace(trace.engine, runner=name))


def seeded(trace: Trace, seed: int) -> Trace:
    """The same sequence, said to have another seed."""
    return replace(trace, sampling=replace(trace.sampling, seed=seed))


def _paper(trace: Trace) -> Trace:
    """The same sequence, said to be sampled as all pools claim."""
    sampling = replace(trace.sampling, temperature=1.0, top_k=50, top_p=0.95, min_p=None)
    return replace(trace, sampling=sampling)


def _random_seed(trace: Trace) -> Trace:
    return seeded(trace, int(np.random.default_rng(list(trace.id.encode())).integers(2**31)))


def cases() -> Sequence[Case]:
    """Every deviation of the confusion matrix; `held.` sets were set aside before anything was tuned."""
    after = CALIBRATE
    forward, temperature, top_p = "forward_pass", "temperature", "top_p"
    return (
        Case(name="int4 weights", tokens="int4", right=forward),
        Case(name="int3 weights (held out)", tokens="held.int3", right=forward),
        Case(name="fp8 weights", tokens="fp8", right=forward),
        Case(name="int8 weights (held out)", tokens="held.int8", right=forward),
        Case(name="fp8 key-value cache", tokens="kv_fp8", right=forward),
        Case(name="another model, 7 M (held out)", tokens="held.tb7m", right=forward),
        Case(name="temperature 1.1", tokens="temp1.1", right=temperature, truth={"temperature": 1.1}),
        Case(name="temperature 1.02", tokens="temp1.02", right=temperature, truth={"temperature": 1.02}),
        Case(
            name="temperature 0.95 (held out)", tokens="held.temp0.95", right=temperature, truth={"temperature": 0.95}
        ),
        Case(name="greedy decoding", tokens="v1.greedy.jsonl", right=temperature, change=_paper, audits=1),
        Case(name="top_p 0.85", tokens="top_p0.85", right=top_p, truth={"top_p": 0.85}),
        Case(name="top_p 0.9 (held out)", tokens="held.top_p0.9", right=top_p, truth={"top_p": 0.9}),
        Case(
            name="temperature 0.7 and no filters",
            tokens="honest.v2.plain",
            right="unexplained",
            change=_paper,
            audits=1,
        ),
        Case(
            name="V2 runner, V1 claimed",
            tokens="honest.v2",
            right="sampler_contract",
            first=after,
            change=lambda trace: runner(trace, "v1"),
        ),
        Case(
            name="V1 runner, V2 claimed",
            tokens="honest.v1",
            right="sampler_contract",
            first=after,
            change=lambda trace: runner(trace, "v2"),
        ),
        Case(
            name="seed off by one",
            tokens="honest.v1",
            right="seed",
            first=after,
            change=lambda trace: seeded(trace, (trace.sampling.seed or 0) + 1),
        ),
        Case(
            name="one seed claimed for all",
            tokens="honest.v2",
            right="seed",
            first=after,
            change=lambda trace: seeded(trace, 1234),
        ),
        Case(
            name="one seed for all, fresh ones claimed",
            tokens="v1.paper.jsonl",
            right="seed",
            seed=42,
            change=_random_seed,
        ),
        Case(name="seeds ignored", tokens="honest.v1", right="seed", first=after, change=_random_seed),
    )
