"""Capture with an engine in hand: ``vllm.LLM``, started with the extension."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from veridifr.errors import UnsupportedError, VeridifrError
from veridifr.fingerprints.spec import FingerprintSpec, from_dict
from veridifr.trace import EngineRecord, Trace
from veridifr.vllm.assembly import engine_of, first_rank, reason_of, single, trace_of, with_child
from veridifr.vllm.options import EXTENSION, CaptureOptions, options_to_dict


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sequence of a request: its trace, or the reason why there is none."""

    request_id: str
    index: int
    trace: Trace | None
    reason: str | None


class Provider:
    """Capture that is on; made by `enable`. A context manager: leaving it is `close`."""

    def __init__(self, llm: Any, model: str, record: dict[str, Any]) -> None:
        self._llm = llm
        self._model = model
        self.engine: EngineRecord = engine_of(record)
        """The engine as measured, the sampler contract being the one that its self-test confirmed."""
        self.spec: FingerprintSpec | None = None if record["spec"] is None else from_dict(record["spec"])

    def records(self, outputs: Iterable[Any]) -> list[Record]:
        """One record for each output of vLLM's `RequestOutput` objects, in order. What is asked for leaves the worker's
        buffer."""
        requests = list(outputs)
        wanted = [(request, output) for request in requests for output in request.outputs]
        names = [
            [str(request.request_id), _child(request, output), len(output.token_ids)] for request, output in wanted
        ]
        answers = first_rank(self._llm.collective_rpc("veridifr_take", args=(names,)))["requests"]
        return [
            self._record(request, output, answer) for (request, output), answer in zip(wanted, answers, strict=True)
        ]

    def traces(self, outputs: Iterable[Any]) -> list[Trace]:
        """The traces of vLLM's `RequestOutput` objects; `UnsupportedError` with the first reason if any has none."""
        traces = []
        for record in self.records(outputs):
            if record.trace is None:
                raise UnsupportedError(f"request {record.request_id}", str(record.reason))
            traces.append(record.trace)
        return traces

    def state(self) -> dict[str, Any]:
        """Counters of the worker's buffer; see `Recorder.state`."""
        return first_rank(self._llm.collective_rpc("veridifr_record"))

    def close(self) -> None:
        """Take the hooks off the engine and drop what was captured."""
        self._llm.collective_rpc("veridifr_disable")

    def __enter__(self) -> Provider:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _record(self, request: Any, output: Any, answer: dict[str, Any]) -> Record:
        trace, reason = None, None
        engine = with_child(self.engine, _child(request, output))
        try:
            one = single(request, output.index)
            trace = trace_of(one, answer, model=self._model, engine=engine, spec=self.spec)
        except VeridifrError as error:
            reason = reason_of(error)
        return Record(request_id=str(request.request_id), index=int(output.index), trace=trace, reason=reason)


def enable(
    llm: Any,
    spec: FingerprintSpec | None = None,
    *,
    fingerprint_seed: int | None = None,
    model: str | None = None,
    allow_unverified_version: bool = False,
    options: CaptureOptions | None = None,
) -> Provider:
    """Switch capture on for a ``vllm.LLM`` started with ``worker_extension_cls=EXTENSION``.

    `spec` is a verifier's specification; `fingerprint_seed` alone picks the default one; with neither there are no
    fingerprints. `model` is the name that traces state, by default what the engine was started with. `options` sets
    everything at once instead. `UnsupportedError` names what the engine is refused for, and leaves it untouched.
    """
    chosen = options or CaptureOptions(
        spec=spec, fingerprint_seed=fingerprint_seed, allow_unverified_version=allow_unverified_version
    )
    config = llm.llm_engine.vllm_config
    if config.parallel_config.worker_extension_cls != EXTENSION:
        raise UnsupportedError("worker_extension_cls", f"start the engine with {EXTENSION}")
    record = first_rank(llm.collective_rpc("veridifr_enable", args=(options_to_dict(chosen),)))
    return Provider(llm, str(config.model_config.model) if model is None else model, record)


def _child(request: Any, output: Any) -> int | None:
    """An output's number among several, as the engine counts them; None for a request of one."""
    return int(output.index) if len(request.outputs) > 1 else None
