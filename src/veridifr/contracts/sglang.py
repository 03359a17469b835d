"""SGLang with ``--enable-deterministic-inference``: stateless Gumbel noise of (seed, position, column).

The column is the token id only while no request of the batch filters: with top-k, top-p or min-p anywhere in it, the
rows are sorted first and the column is the *rank* (sgl-project/sglang PR 35697). Filters are therefore refused, and the
record must state that no other request of the batch filtered.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import FloatArray, IndexArray, Stage, Stream
from veridifr.contracts.common import FILTERS, PROCESSING, NoiseContract, gumbel_of, refuse_child
from veridifr.errors import UnsupportedError
from veridifr.rng import lcg24, murmur3
from veridifr.trace import EngineRecord, Sampling

_RANKED = "makes SGLang key the noise by rank instead of token id"
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(FILTERS, _RANKED),
    **{name: "the order in which SGLang applies it is not replayed" for name in PROCESSING if name != "logit_bias"},
}


class _Sglang(NoiseContract):
    """What both hashes share."""

    family = "perturbed"
    kind = "gumbel"
    order: ClassVar[tuple[Stage, ...]] = ("logit_bias", "temperature")
    needs = "position"
    seeds = (-(2**63), 2**63 - 1)
    refused = _REFUSED

    def check_engine(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:  # noqa: ARG002
        refuse_child(engine)
        if engine.deterministic is False:
            raise UnsupportedError("engine.deterministic", "is false: SGLang then ignores seeds")
        if engine.filtered_batch is None:
            raise UnsupportedError("engine.filtered_batch", "must be stated as false: a filter anywhere " + _RANKED)
        if engine.filtered_batch:
            raise UnsupportedError("engine.filtered_batch", "is true, which " + _RANKED)

    @abstractmethod
    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        """Gumbel noise, float64[N]."""


class SglangMurmur(_Sglang):
    """g = -log(-log x), x = h/(2^32 - 1) in float64, with the hash of vllm-v2-f but the other tail.

    Older releases let h = 2^32 - 1 win by infinity; here it has the later releases' clamp. Source:
    sglang/srt/layers/sampler.py.
    """

    id = "sglang-murmur"
    bound = -math.log(2.0**-32)
    summary = "SGLang 0.5.9-0.5.23, deterministic: g = -log(-log x), x = murmur3(seed, position, id)/(2^32 - 1)"

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        return murmur_gumbel(murmur3(stream.seed, stream.prompt_length - 1 + steps_R, rows_N, ids_N))


def murmur_gumbel(hashed: npt.NDArray[np.uint32]) -> FloatArray:
    """-log(-log x) of x = h/(2^32 - 1), with -log x clamped to [2^-32, the largest float64] as in the engine."""
    exponential = -np.log(np.maximum(hashed, 1).astype(np.float64) / (2**32 - 1))
    exponential = np.where(hashed == 0, sys.float_info.max, exponential)
    noise: FloatArray = -np.log(np.maximum(exponential, 2.0**-32))
    return noise


class SglangLcg24(_Sglang):
    """g = -log(-log u) with u of 24 bits.

    The engine adds g to log(p + 1e-10) rather than to log p: a token of p below 1e-10 is drawn a little too often, all
    of them together with a probability of at most V x 1e-10. Source: sglang/srt/layers/sampler.py.
    """

    id = "sglang-lcg24"
    bound = -math.log(-math.log(1.0 - 2.0**-24))
    summary = "SGLang 0.5.4-0.5.8, deterministic: g = -log(-log u), u a 24-bit hash of (seed, position, id)"

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        bits = lcg24(stream.seed, stream.prompt_length - 1 + steps_R, rows_N, ids_N)
        return gumbel_of(np.maximum(bits.astype(np.float64) * 2.0**-24, float(np.float32(1e-10))))
