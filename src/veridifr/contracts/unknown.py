"""The contract of a sampler whose noise nobody knows: tokens are draws, and only their distribution is claimed."""

from __future__ import annotations

from veridifr.contracts.base import Contract, FloatArray, IndexArray, Stream
from veridifr.contracts.common import PROCESSING, V1_ORDER, check_extra, check_ids_fit, refuse_set
from veridifr.contracts.hf import HF_REFUSED
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord, Sampling

_UNKNOWN_ORDER = {name: "it is not known how this engine applies it" for name in PROCESSING if name != "logit_bias"}


class UnknownSampler(Contract):
    """Tokens are drawn from softmax(l/T) over the kept set, with randomness that cannot be recomputed.

    No engine record implies it: an audit is asked for it, or falls back on it. The settings act in the order of vLLM's
    V1 runner; of engines other than vLLM only settings are taken whose effect is the same in any order.
    """

    id = "unknown"
    family = "distribution"
    kind = "none"
    order = V1_ORDER
    summary = "any engine above temperature 0: draws from the claimed distribution, randomness not known"

    def check(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:
        check_extra(sampling.extra)
        if sampling.greedy:
            raise UnsupportedError("sampling.temperature", f"{sampling.temperature:g} is greedy: nothing is drawn")
        check_ids_fit(sampling, vocab_size)
        if engine.name not in ("vllm", "vllm-cpu"):
            refuse_set(sampling, HF_REFUSED if engine.name in ("hf", "transformers") else _UNKNOWN_ORDER)

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:  # noqa: ARG002
        """Never asked for: `UnsupportedError`."""
        raise UnsupportedError("engine.sampler", "unknown: its noise cannot be recomputed")


UNKNOWN = UnknownSampler()
