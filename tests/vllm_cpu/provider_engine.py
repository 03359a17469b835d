"""vLLM on the CPU, in this process, started with the worker extension and with a key-value cache of a few blocks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines import start

from veridifr.vllm import EXTENSION, Provider, enable

BLOCKS = 10
"""Blocks of 128 tokens, one of which is vLLM's own."""


class ProviderEngine:
    """One engine on `model`. Capture is off until `provider` is called."""

    def __init__(self, model: Path) -> None:
        self.vllm, self.llm = start(model, num_gpu_blocks_override=BLOCKS, worker_extension_cls=EXTENSION)
        self.worker: Any = self.llm.llm_engine.model_executor.driver_worker.worker
        self.runner: Any = self.worker.model_runner
        self.scheduler: Any = self.llm.llm_engine.engine_core.engine_core.scheduler

    def provider(self, **options: Any) -> Provider:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return enable(self.llm, **{"model": "tb7m", **options})

    def generate(self, prompts: Sequence[Sequence[int]], asked: Sequence[dict[str, Any]]) -> list[Any]:
        """vLLM's `RequestOutput` objects; `asked[i]` are the fields of a `SamplingParams` for `prompts[i]`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            params = [self.vllm.SamplingParams(detokenize=False, **fields) for fields in asked]
            inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
            found: list[Any] = self.llm.generate(inputs, params, use_tqdm=False)
        return found
