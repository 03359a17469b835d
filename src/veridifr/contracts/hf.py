"""Hugging Face transformers ``generate``: ``torch.multinomial`` over the global generator, the whole batch at once."""

from __future__ import annotations

from veridifr.contracts.base import FloatArray, IndexArray, Stage, Stream
from veridifr.contracts.common import NoiseContract, refuse_child
from veridifr.contracts.cuda import exponential as cuda_exponential
from veridifr.contracts.cuda import is_nvidia, stride_of
from veridifr.contracts.mersenne import CPU_BOUND
from veridifr.contracts.mersenne import exponential as cpu_exponential
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord, Sampling

HF_ORDER: tuple[Stage, ...] = (
    "logit_bias",
    "repetition_penalty",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
)
"""``_get_logits_processor`` in transformers/generation/utils.py, 5.19."""
HF_REFUSED = {
    "frequency_penalty": "transformers has no frequency penalty",
    "presence_penalty": "transformers has no presence penalty",
    "allowed_token_ids": "transformers has no list of allowed tokens",
    "bad_words_token_ids": "transformers matches bad words against the prompt too; it is not replayed",
}
_LARGEST_FILL = 2**31 - 1


class HfMultinomial(NoiseContract):
    """argmax p/q with q one ``exponential_`` fill of batch_size x V numbers per step; finished rows keep drawing.

    The record must state `batch_row`, `batch_size` and `device` (cpu, or cuda with its grid), and the global generator
    must have been seeded with `sampling.seed` right before ``generate``.
    """

    id = "hf-multinomial"
    family = "perturbed"
    kind = "exponential"
    order = HF_ORDER
    needs = "step"
    bound = CPU_BOUND
    refused = HF_REFUSED
    summary = "transformers 5 generate: argmax p/q, q one exponential fill of the batch from torch's global generator"

    def check_engine(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:  # noqa: ARG002
        refuse_child(engine)
        _batch(engine)
        if _on_cuda(engine):
            _cuda_stride(engine, vocab_size)

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        """Exponentials q, float64[N]."""
        row, size = _batch(stream.engine)
        elements = row * stream.vocab_size + ids_N
        steps = steps_R[rows_N]
        if _on_cuda(stream.engine):
            stride = _cuda_stride(stream.engine, stream.vocab_size)
            return cuda_exponential(stream.seed, steps, elements, size * stream.vocab_size, stride)
        return cpu_exponential(stream.seed, steps * (size * stream.vocab_size) + elements, "engine.batch_size")


def _batch(engine: EngineRecord) -> tuple[int, int]:
    if engine.batch_row is None:
        raise UnsupportedError("engine.batch_row", "is needed: the batch shares one generator")
    if engine.batch_size is None:
        raise UnsupportedError("engine.batch_size", "is needed: the batch shares one generator")
    return engine.batch_row, engine.batch_size


def _on_cuda(engine: EngineRecord) -> bool:
    if engine.device is None:
        raise UnsupportedError("engine.device", "is needed: PyTorch draws differently on CPU and CUDA")
    if engine.device.strip().lower() == "cpu":
        return False
    if not is_nvidia(engine.device):
        raise UnsupportedError("engine.device", f"got {engine.device[:60]!r}, expected cpu, or an NVIDIA card")
    return True


def _cuda_stride(engine: EngineRecord, vocab_size: int) -> int:
    count = (engine.batch_size or 1) * vocab_size
    if count > _LARGEST_FILL:
        raise UnsupportedError("engine.batch_size", f"{count} numbers per draw: PyTorch splits fills above 2^31 - 1")
    return stride_of(count, engine)
