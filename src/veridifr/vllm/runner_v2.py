"""vLLM's V2 model runner (vllm/v1/worker/gpu/model_runner.py; read for 0.24 and 0.32).

The hooks are `sample`, which runs eagerly after the forward pass, and `add_requests`, which brings the requests. The
batch holds how far each request is computed, so that an output index is never counted here: the last input token of
row r lies at position computed + scheduled - 1, and output t comes from position P - 1 + t.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from veridifr.errors import require
from veridifr.vllm.checks import check_attribute, check_fields, check_parameters, check_unwrapped
from veridifr.vllm.recorder import Recorder

MODULES = ("vllm.v1.worker.gpu.model_runner",)
_BATCH = (
    "req_ids",
    "num_reqs",
    "idx_mapping_np",
    "num_scheduled_tokens",
    "num_draft_tokens",
    "num_computed_tokens_np",
    "prefill_len_np",
    "logits_indices",
)


class RunnerV2:
    """Between one runner and a recorder. `attach` sets two attributes of the runner, `detach` removes them."""

    name = "v2"

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    @property
    def draws_seeds(self) -> bool:
        """A request without a seed gets one, and its noise follows from it, unless a fused sampler may draw instead."""
        sampler = self._runner.sampler
        return not (getattr(sampler, "use_flashinfer", True) or getattr(sampler, "use_xpu_sampler", False))

    def check(self) -> None:
        """Raise `UnsupportedError` naming what does not look as these hooks need it."""
        runner = self._runner
        check_parameters(runner, "sample", ("hidden_states", "input_batch", "grammar_output"))
        check_parameters(runner, "add_requests", ("scheduler_output",))
        for name in ("sample", "add_requests"):
            check_unwrapped(runner, name)
        module = require("vllm.v1.worker.gpu.input_batch", "vllm")
        check_fields(module, "InputBatch", _BATCH)
        for path in ("req_states.prompt_len.np", "sampler.sampling_states.seeds.np", "sampler.use_fp64_gumbel"):
            check_attribute(runner, path)

    def attach(self, recorder: Recorder) -> None:
        """Record from the next step on."""
        runner, sample_before, add_before = self._runner, self._runner.sample, self._runner.add_requests

        def sample(hidden_states: Any, input_batch: Any, *args: Any, **fields: Any) -> Any:
            step = recorder.guard(_before, runner, recorder, hidden_states, input_batch)
            output = sample_before(hidden_states, input_batch, *args, **fields)
            if step is not None:
                recorder.guard(_after, recorder, step, output)
            return output

        def add_requests(scheduler_output: Any) -> Any:
            recorder.guard(recorder.admit, scheduler_output.scheduled_new_reqs)
            return add_before(scheduler_output)

        runner.sample, runner.add_requests = sample, add_requests

    def detach(self) -> None:
        """Leave the runner as it was."""
        del self._runner.sample, self._runner.add_requests


def _before(runner: Any, recorder: Recorder, hidden_states: Any, batch: Any) -> tuple[list[str], Any, Any]:
    """Request ids, output indices and seeds of a step about to sample."""
    rows = batch.num_reqs
    if batch.num_draft_tokens or batch.logits_indices.shape[0] != rows:
        raise ValueError(f"{batch.logits_indices.shape[0]} sampled rows for {rows} requests")
    recorder.project(hidden_states[batch.logits_indices])
    slots = batch.idx_mapping_np[:rows]
    computed = batch.num_computed_tokens_np[:rows].astype(np.int64) + batch.num_scheduled_tokens[:rows]
    sampled = computed >= batch.prefill_len_np[:rows]  # else the prompt is not yet prefilled whole
    indices = np.where(sampled, computed - runner.req_states.prompt_len.np[slots], -1)
    return list(batch.req_ids[:rows]), indices, runner.sampler.sampling_states.seeds.np[slots]


def _after(recorder: Recorder, step: tuple[list[str], Any, Any], output: Any) -> None:
    request_ids, indices, seeds = step
    recorder.record(request_ids, indices, output[0].sampled_token_ids, seeds)
