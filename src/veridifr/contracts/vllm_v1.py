"""vLLM's V1 runner on an NVIDIA GPU: an exponential race over a CUDA generator per request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import FloatArray, IndexArray, PhiloxRows, Stream
from veridifr.contracts.common import V1_ORDER, VllmContract, by_row, child_seed, least_uniform
from veridifr.contracts.cuda import CUDA_BOUND, exponential_of, stride_of, words
from veridifr.trace import EngineRecord, Sampling


class VllmV1CudaExp32(VllmContract):
    """argmax softmax(l/T)/q with q one float32 ``exponential_`` row of V numbers per output token.

    Source: vllm/v1/sample/ops/topk_topp_sampler.py and vllm/v1/worker/gpu_model_runner.py. Where V exceeds four times
    the card's grid, a request whose prompt was prefilled in several steps would draw otherwise: the engine rewinds its
    generator by a constant. No current vocabulary reaches that on a whole card.
    """

    id = "vllm-v1-cuda-exp32"
    family = "perturbed"
    kind = "exponential"
    order = V1_ORDER
    needs = "step"
    bound = CUDA_BOUND
    summary = "vLLM 0.11-0.33, V1 runner, NVIDIA GPU: argmax p/q, q = -log u, u from Philox(seed), offset by step"

    def check_engine(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:
        super().check_engine(sampling, engine, vocab_size)
        stride_of(vocab_size, engine)

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        """Exponentials q, float64[N]."""
        return exponential_of(self._bits(stream, steps_R, rows_N, ids_N))

    def gumbel_above(
        self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray, least_R: FloatArray
    ) -> tuple[IndexArray, FloatArray]:
        bits = self._bits(stream, steps_R, rows_N, ids_N)
        edge_R = np.maximum(np.floor(least_uniform(least_R) * 2.0**32) - _ROUNDING, 0.0).astype(np.uint32)
        index = np.flatnonzero(bits >= by_row(edge_R, rows_N))
        return index, -np.log(exponential_of(bits[index]))

    def philox_rows(self, stream: Stream, steps_R: IndexArray) -> PhiloxRows | None:
        """See `Contract.philox_rows`; None where one pass over the card's grid does not cover the vocabulary."""
        if stream.vocab_size > stride_of(stream.vocab_size, stream.engine):
            return None
        seed = child_seed(stream)
        key = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], dtype=np.uint32)
        return PhiloxRows(keys_R2=np.tile(key, (len(steps_R), 1)), counters_R=steps_R.astype(np.uint32), triton=False)

    @staticmethod
    def _bits(stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> npt.NDArray[np.uint32]:
        stride = stride_of(stream.vocab_size, stream.engine)
        return words(child_seed(stream), by_row(steps_R, rows_N), ids_N, stream.vocab_size, stride)


_ROUNDING = 1024
"""More than float32 rounding and the card's logarithm move u, in units of 2^-32."""
