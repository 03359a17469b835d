"""vLLM on the CPU, in this process, with the logits that it sampled from written down as it goes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from engines import start

from veridifr.trace import EngineRecord, Trace
from veridifr.traces import from_vllm


class CpuEngine:
    """One engine on `model`. `generate` returns traces and, for each, the engine's own logits [T, V] in float32."""

    def __init__(self, model: Path) -> None:
        self.vllm, self.llm = start(model)
        self._runner = self.llm.llm_engine.model_executor.driver_worker.worker.model_runner
        self._rows: dict[str, list[np.ndarray]] = {}
        self._compute = self._runner.model.compute_logits
        self._runner.model.compute_logits = self._noted
        config = self.llm.llm_engine.vllm_config.model_config
        self.record = EngineRecord(
            name="vllm",
            version=self.vllm.__version__,
            runner="v1",
            device="cpu",
            dtype=str(config.dtype).removeprefix("torch."),
            fp64_noise=False,
            speculative_decoding=False,
        )

    def _noted(self, *args: Any, **fields: Any) -> Any:
        logits = self._compute(*args, **fields)
        names = list(self._runner.input_batch.req_ids)
        assert len(names) == len(logits)  # one row per request: no prompt was prefilled in parts
        for name, row in zip(names, logits.float().numpy().copy(), strict=True):
            self._rows.setdefault(name.rpartition("-")[0], []).append(row)  # vLLM adds a random suffix
        return logits

    def generate(
        self, prompts: Sequence[Sequence[int]], asked: Sequence[dict[str, Any]]
    ) -> tuple[list[Trace], list[np.ndarray]]:
        """One batch: `asked[i]` are the fields of a `SamplingParams` for `prompts[i]`."""
        self._rows.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            params = [self.vllm.SamplingParams(detokenize=False, **fields) for fields in asked]
            outputs = self.llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
        traces = from_vllm(outputs, model="tb7m", engine=self.record, sampling=params)
        rows = []
        for trace in traces:
            request, index = trace.id.split("/")
            several = trace.engine.child is not None
            made = self._rows[f"{index}_{request}" if several else request]
            rows.append(np.array(made[: len(trace.output_token_ids)]))
        return traces, rows
