"""vLLM's V1 runner on an NVIDIA GPU: an exponential race over a CUDA generator per request."""

from __future__ import annotations

from veridifr.contracts.base import FloatArray, IndexArray, Stream
from veridifr.contracts.common import V1_ORDER, VllmContract, child_seed
from veridifr.contracts.cuda import CUDA_BOUND, exponential, stride_of
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
        stride = stride_of(stream.vocab_size, stream.engine)
        return exponential(child_seed(stream), steps_R[rows_N], ids_N, stream.vocab_size, stride)
