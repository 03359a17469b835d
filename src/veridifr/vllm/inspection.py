"""What a worker says of its engine when asked, and what it is refused for: the engine record, measured not claimed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from veridifr.contracts.registry import infer
from veridifr.errors import UnsupportedError, require
from veridifr.trace import EngineRecord, Sampling
from veridifr.vllm import runner_v1, runner_v2
from veridifr.vllm.checks import check_attribute
from veridifr.vllm.runner_v1 import RunnerV1
from veridifr.vllm.runner_v2 import RunnerV2
from veridifr.vllm.support import check_support

_ADAPTERS: tuple[tuple[tuple[str, ...], type[RunnerV1] | type[RunnerV2]], ...] = (
    (runner_v1.MODULES, RunnerV1),
    (runner_v2.MODULES, RunnerV2),
)
_ONE_ONLY = {
    "pipeline_parallel_size": "the last stage alone has the hidden states",
    "data_parallel_size": "each replica would have records of its own",
    "decode_context_parallel_size": "not run",
    "prefill_context_parallel_size": "not run",
}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that may be captured: the adapter of its runner, the record, and the sizes of its model."""

    adapter: RunnerV1 | RunnerV2
    record: EngineRecord
    hidden_size: int
    vocab_size: int


def inspect_worker(worker: Any, *, allow_unverified: bool) -> Engine:
    """The engine of a vLLM worker, with the sampler contract that its version, runner and device imply.

    Raises `UnsupportedError` naming the first thing for which its tokens could not be replayed, or its hidden states
    not be captured.
    """
    for path in ("model_runner", "vllm_config.model_config", "vllm_config.parallel_config"):
        check_attribute(worker, path)
    runner, config = worker.model_runner, worker.vllm_config
    adapter = _adapter(runner)
    record = _measured(runner, config, adapter.name)
    check_support(str(record.version), adapter.name, str(runner.device.type), allow_unverified=allow_unverified)
    _check_settings(config)
    adapter.check()
    _check_processors(runner, config)
    _check_model(runner)
    vocab_size = int(config.model_config.get_vocab_size())
    contract = infer(record, Sampling(seed=0), vocab_size).contract
    return Engine(
        adapter=adapter,
        record=replace(record, sampler=contract.id),
        hidden_size=int(config.model_config.get_hidden_size()),
        vocab_size=vocab_size,
    )


def _adapter(runner: Any) -> RunnerV1 | RunnerV2:
    kind = type(runner)
    for modules, adapter in _ADAPTERS:
        if kind.__module__ in modules:
            return adapter(runner)
    known = ", ".join(module for modules, _ in _ADAPTERS for module in modules)
    raise UnsupportedError("engine.runner", f"{kind.__module__}.{kind.__name__} is none of those known: {known}")


def _measured(runner: Any, config: Any, name: str) -> EngineRecord:
    torch, vllm = require("torch", "hf"), require("vllm", "vllm")
    device, multiprocessors, threads = "cpu", None, None
    if runner.device.type == "cuda":
        properties = torch.cuda.get_device_properties(runner.device)
        device = str(properties.name)
        multiprocessors = int(properties.multi_processor_count)
        threads = int(properties.max_threads_per_multi_processor)
    elif runner.device.type != "cpu":
        raise UnsupportedError("engine.device", f"got {runner.device.type}, expected cpu or cuda")
    return EngineRecord(
        name="vllm",
        version=str(vllm.__version__),
        runner=name,
        device=device,
        multiprocessors=multiprocessors,
        threads_per_multiprocessor=threads,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        fp64_noise=bool(getattr(config.model_config, "use_fp64_gumbel", False)),
        speculative_decoding=config.speculative_config is not None,
    )


def _check_settings(config: Any) -> None:
    """Refuse settings under which a token is not one draw from one hidden state of this worker."""
    if config.speculative_config is not None:
        raise UnsupportedError("speculative_config", "speculative decoding draws tokens in another way")
    for name, reason in _ONE_ONLY.items():
        if getattr(config.parallel_config, name, 1) != 1:
            raise UnsupportedError(name, f"got {getattr(config.parallel_config, name)}, expected 1: {reason}")
    if getattr(config.model_config, "use_fp64_gumbel", False):
        raise UnsupportedError("use_fp64_gumbel", "the noise is float64, for which there is no contract")
    if getattr(config.model_config, "runner_type", "generate") != "generate":
        raise UnsupportedError("runner", f"got {config.model_config.runner_type}, expected generate")
    for name in ("kv_transfer_config", "watermark_config"):
        if getattr(config, name, None) is not None:
            raise UnsupportedError(name, "expected none: not run with it")
    if getattr(config.model_config, "enable_trace_replay", False):
        raise UnsupportedError("enable_trace_replay", "tokens may be forced instead of sampled")


def _check_processors(runner: Any, config: Any) -> None:
    """Refuse logits processors that are not vLLM's own: what they do to a distribution cannot be replayed."""
    named = getattr(config.model_config, "logits_processors", None)
    if named:
        raise UnsupportedError("logits_processors", f"got {named!r:.80}: their effect cannot be replayed")
    loaded = getattr(getattr(runner, "input_batch", None), "logitsprocs", None)
    for processor in getattr(loaded, "all", ()):
        if not type(processor).__module__.startswith("vllm."):
            kind = f"{type(processor).__module__}.{type(processor).__name__}"
            raise UnsupportedError("logits_processors", f"{kind} is loaded: its effect cannot be replayed")


def _check_model(runner: Any) -> None:
    """Refuse a model whose `compute_logits` may not take the output of a final norm."""
    model = runner.get_model()
    kind = type(model).__name__
    if not callable(getattr(model, "compute_logits", None)) or not hasattr(model, "lm_head"):
        raise UnsupportedError("model", f"{kind} has no lm_head and compute_logits")
    if not hasattr(getattr(model, "model", None), "norm"):
        raise UnsupportedError("model", f"{kind} has no final norm at model.norm")
