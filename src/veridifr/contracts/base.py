"""What a sampler contract is: how one engine turns a seed and logits into a token, written down so it can be replayed.

A contract is named, versioned and never changes meaning. It gives three things:

- `order`: in which order the engine applies the sampling settings to the logits;
- `check`: which settings and engine records it cannot honour (refused by the setting's name);
- the noise of any (step, token id), computed on a CPU from the seed alone.

Two families draw noise. `perturbed`: the token is argmax over ids of l/T + g with g a Gumbel variate (an exponential
race argmax p/q is the same with g = -log q). `inverse_cdf`: one uniform number per token picks a point of the
cumulative distribution, in the engine's candidate order. `greedy` draws nothing.
`distribution` is the family of the sampler whose noise is not known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord, Sampling

Family = Literal["greedy", "perturbed", "inverse_cdf", "distribution"]
Kind = Literal["none", "exponential", "gumbel", "uniform"]
Stage = Literal[
    "allowed_token_ids",
    "bad_words",
    "min_tokens",
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "temperature",
    "min_p",
    "top_k",
    "top_p",
]
"""Stages that act on single logits come before `temperature`; min_p, top_k and top_p decide membership."""

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What the noise of one sequence depends on beside step and token id."""

    seed: int
    prompt_length: int
    vocab_size: int
    """Width of the model's logits row (the model config's, not the tokenizer's length)."""
    engine: EngineRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class PhiloxRows:
    """What a device needs to draw a contract's noise for R rows: the word of token i is the first of Philox4x32-10 with
    key `keys_R2`, and counter (i, 0, 0, 0) if `triton`, else (`counters_R`, 0, i, 0). `triton` also says which of two
    ways leads from words to Gumbel noise: that of `vllm-v2-e`, or that of `vllm-v1-cuda-exp32`."""

    keys_R2: npt.NDArray[np.uint32]
    counters_R: npt.NDArray[np.uint32]
    triton: bool


class Contract(ABC):
    """A sampler contract. Final subclasses have no state; the registry holds one instance of each."""

    id: ClassVar[str]
    family: ClassVar[Family]
    kind: ClassVar[Kind]
    """What `noise` returns: the engine's own variate."""
    order: ClassVar[tuple[Stage, ...]]
    summary: ClassVar[str]
    """One line for `veridifr samplers`: engine, versions, formula."""
    bound: ClassVar[float | None] = None
    """Largest Gumbel value the engine's arithmetic can produce; None if unbounded."""

    @abstractmethod
    def check(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:
        """Raise `UnsupportedError` naming the first setting or record field that this contract cannot honour."""

    @abstractmethod
    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        """The engine's variates for N (row, token id) pairs, as float64[N].

        `steps_R` are the output steps t of R rows; pair n asks for token `ids_N[n]` at step `steps_R[rows_N[n]]`.
        `rows_N` is sorted ascending. Only the pairs asked for are computed, except where the generator is sequential.
        An `inverse_cdf` contract returns one uniform per row, float64[R], and ignores the pairs.
        """

    def gumbel(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        """Additive Gumbel noise g of `perturbed` contracts, float64[N]; see `noise`."""
        if self.kind == "gumbel":
            return self.noise(stream, steps_R, rows_N, ids_N)
        if self.kind == "exponential":
            return -np.log(self.noise(stream, steps_R, rows_N, ids_N))
        raise UnsupportedError("sampler", f"{self.id} has no Gumbel noise")

    def gumbel_above(
        self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray, least_R: FloatArray
    ) -> tuple[IndexArray, FloatArray]:
        """The pairs whose Gumbel noise can reach `least_R` of their row: indices int64[M] into them, and float64[M].

        What cannot win needs no logarithms: contracts that see this from the random bits override it. They may return
        a few pairs that fall just short of `least_R`.
        """
        noise_N = self.gumbel(stream, steps_R, rows_N, ids_N)
        index_M = np.flatnonzero(noise_N >= least_R[rows_N])
        return index_M, noise_N[index_M]

    def philox_rows(self, stream: Stream, steps_R: IndexArray) -> PhiloxRows | None:  # noqa: ARG002 (some override it)
        """How a device may draw this noise itself, None where it is not drawn so."""
        return None

    def effective_temperature(self, temperature: float) -> float:
        """The temperature the engine really divides by (vLLM V1 raises 0 < T < 0.01 to 0.01)."""
        return temperature
