"""The rows of every step of a vLLM engine in this process: which request each belongs to, and at which position.

The hooks sit on the runner's instance, outside CUDA graphs and compiled code, and are taken off again. Read in the
source of vLLM 0.24 and 0.32: vllm/v1/worker/gpu_model_runner.py (V1) and vllm/v1/worker/gpu/model_runner.py (V2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from veridifr.errors import ReferenceError, UnsupportedError, require
from veridifr.vllm.checks import check_attribute, check_fields, check_parameters, check_unwrapped

_V1 = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.cpu_model_runner")
_V2 = ("vllm.v1.worker.gpu.model_runner",)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one step computed of one request: rows `start` to `end` of `hidden_ND`, final hidden states, stand at the
    positions from `position` on."""

    request_id: str
    hidden_ND: Any
    start: int
    end: int
    position: int


@contextmanager
def listening(runner: Any, take: Callable[[list[Part]], None]) -> Iterator[None]:
    """Call `take` with the parts of every step that the runner makes meanwhile. On a GPU the step is then under way:
    its kernels are launched, and the host would only wait for them."""
    module = type(runner).__module__
    if module in _V1:
        name, hook = "sample_tokens", _before_v1
    elif module in _V2:
        name, hook = "sample", _before_v2
    else:
        raise ReferenceError(f"vllm: the model runner {module} is none of those known")
    original = getattr(runner, name)

    def wrapped(*args: Any, **fields: Any) -> Any:
        take(list(hook(runner, args)))
        return original(*args, **fields)

    setattr(runner, name, wrapped)
    try:
        yield
    finally:
        delattr(runner, name)


def check(runner: Any) -> None:
    """Raise `ReferenceError` unless the runner's internals look as the hooks need them."""
    module = type(runner).__module__
    try:
        if module in _V1:
            check_parameters(runner, "sample_tokens", ("grammar_output",))
            check_unwrapped(runner, "sample_tokens")
            state = require(type(runner).sample_tokens.__module__, "vllm")
            check_fields(state, "ExecuteModelState", ("scheduler_output", "hidden_states"))
            for path in ("execute_model_state", "input_batch.num_computed_tokens_cpu", "query_start_loc.np"):
                check_attribute(runner, path)
        elif module in _V2:
            check_parameters(runner, "sample", ("hidden_states", "input_batch", "grammar_output"))
            check_unwrapped(runner, "sample")
            batch = require("vllm.v1.worker.gpu.input_batch", "vllm")
            check_fields(batch, "InputBatch", ("req_ids", "query_start_loc_np", "num_computed_tokens_np"))
        else:
            raise ReferenceError(f"vllm: the model runner {module} is none of those known")
    except UnsupportedError as error:
        raise ReferenceError(f"vllm: this version's internals are not as expected: {error}") from error


def _before_v1(runner: Any, args: tuple[Any, ...]) -> Iterator[Part]:  # noqa: ARG001 (the hooks have one shape)
    state = runner.execute_model_state
    if state is None:
        return
    batch = runner.input_batch
    yield from _parts(
        list(batch.req_ids), state.hidden_states, runner.query_start_loc.np, batch.num_computed_tokens_cpu
    )


def _before_v2(runner: Any, args: tuple[Any, ...]) -> Iterator[Part]:  # noqa: ARG001
    hidden_ND, batch = args[0], args[1]
    yield from _parts(list(batch.req_ids), hidden_ND, batch.query_start_loc_np, batch.num_computed_tokens_np)


def _parts(names: list[str], hidden_ND: Any, starts: Any, computed: Any) -> Iterator[Part]:
    for row, name in enumerate(names):
        yield Part(
            request_id=name,
            hidden_ND=hidden_ND,
            start=int(starts[row]),
            end=int(starts[row + 1]),
            position=int(computed[row]),
        )
