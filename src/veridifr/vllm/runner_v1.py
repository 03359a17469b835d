"""vLLM's V1 model runner (vllm/v1/worker/gpu_model_runner.py and cpu_model_runner.py; read for 0.24 and 0.32).

The hook is `sample_tokens`, which runs eagerly after the forward pass, outside CUDA graphs and compiled code. Before
it, `execute_model_state` holds the hidden states that the logits were computed from, a row for each request of the
batch; the batch knows how many tokens each request has, so that an output index is never counted here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from veridifr.errors import require
from veridifr.vllm.checks import check_attribute, check_fields, check_parameters, check_unwrapped
from veridifr.vllm.recorder import Recorder

MODULES = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.cpu_model_runner")
_STATE = ("scheduler_output", "spec_decode_metadata", "sample_hidden_states")


class RunnerV1:
    """Between one runner and a recorder. `attach` sets one attribute of the runner, `detach` removes it."""

    name = "v1"
    draws_seeds = False

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def check(self) -> None:
        """Raise `UnsupportedError` naming what does not look as this hook needs it."""
        runner = self._runner
        check_parameters(runner, "sample_tokens", ("grammar_output",))
        check_unwrapped(runner, "sample_tokens")
        module = require(_defining_module(runner), "vllm")
        check_fields(module, "ExecuteModelState", _STATE)
        for path in (
            "execute_model_state",
            "use_async_scheduling",
            "discard_request_mask.np",
            "input_batch.req_ids",
            "input_batch.num_reqs",
            "input_batch.num_tokens_no_spec",
            "input_batch.num_prompt_tokens",
            "sampler.topk_topp_sampler",
        ):
            check_attribute(runner, path)
        if runner.use_async_scheduling:
            check_attribute(runner, "input_batch.prev_sampled_token_ids")

    def attach(self, recorder: Recorder) -> None:
        """Record from the next step on."""
        runner, original = self._runner, self._runner.sample_tokens

        def sample_tokens(*args: Any, **fields: Any) -> Any:
            step = recorder.guard(_before, runner, recorder)
            output = original(*args, **fields)
            if step is not None:
                recorder.guard(_after, runner, recorder, step, output)
            return output

        runner.sample_tokens = sample_tokens

    def detach(self) -> None:
        """Leave the runner as it was."""
        del self._runner.sample_tokens


def _before(runner: Any, recorder: Recorder) -> tuple[list[str], Any] | None:
    """Request ids and output indices of a step about to sample; None if it samples nothing."""
    state = runner.execute_model_state
    if state is None:
        return None
    recorder.admit(state.scheduler_output.scheduled_new_reqs)
    batch = runner.input_batch
    rows = batch.num_reqs
    hidden_RD = state.sample_hidden_states
    if state.spec_decode_metadata is not None or hidden_RD.shape[0] != rows:
        raise ValueError(f"{hidden_RD.shape[0]} sampled rows for {rows} requests")
    recorder.project(hidden_RD)
    counted = batch.num_tokens_no_spec[:rows].astype(np.int64) - batch.num_prompt_tokens[:rows]
    indices = np.where(runner.discard_request_mask.np[:rows], -1, counted)
    return list(batch.req_ids[:rows]), indices


def _after(runner: Any, recorder: Recorder, step: tuple[list[str], Any], output: Any) -> None:
    # with asynchronous scheduling the tokens stay on the device, where the next step reads them
    tokens = runner.input_batch.prev_sampled_token_ids if runner.use_async_scheduling else output.sampled_token_ids
    recorder.record(*step, tokens)


def _defining_module(runner: Any) -> str:
    """The module that defines `sample_tokens`: the CPU's runner inherits it."""
    return str(type(runner).sample_tokens.__module__)
