"""What a vLLM reference does with traces while its engine goes on: order, errors, and who works."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from veridifr import EngineRecord, Sampling, Trace
from veridifr.references import vllm_engine
from veridifr.references.vllm_engine import VllmReference, _Backlog
from veridifr.threads import pool, threads


@pytest.mark.parametrize("on_gpu", [False, True])
def test_everything_comes_out_once_and_in_order(on_gpu: bool) -> None:
    release = threading.Event()

    def finish(number: Any) -> int:
        if on_gpu and number == 0:
            assert release.wait(60)  # the first is the slowest
        return int(number) * 10

    backlog: _Backlog[int] = _Backlog(finish, on_gpu=on_gpu)
    for number in range(5):
        backlog.add(number)  # type: ignore[arg-type]  # a trace, to the backlog, is what `finish` takes
    backlog.settle()  # waits on a CPU alone
    early = list(backlog.made())
    release.set()
    assert early == ([] if on_gpu else [0, 10, 20, 30, 40])
    assert early + list(backlog.made(everything=True)) == [0, 10, 20, 30, 40]
    backlog.close()


def test_an_error_comes_out_where_its_trace_would() -> None:
    def finish(number: Any) -> int:
        if number == 1:
            raise ValueError("the second")
        return int(number)

    backlog: _Backlog[int] = _Backlog(finish, on_gpu=True)
    for number in range(3):
        backlog.add(number)  # type: ignore[arg-type]
    found = backlog.made(everything=True)
    assert next(found) == 0
    with pytest.raises(ValueError, match="the second"):
        next(found)
    backlog.close()


def test_on_a_gpu_machine_threads_of_its_own_work_and_each_computes_alone() -> None:
    backlog: _Backlog[tuple[str, int]] = _Backlog(lambda _: (threading.current_thread().name, threads(4)), on_gpu=True)
    backlog.add(None)  # type: ignore[arg-type]
    ((name, inner),) = backlog.made(everything=True)
    assert name != threading.current_thread().name and inner == 1
    backlog.close()


def test_outside_of_a_pool_as_many_threads_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert (threads(1), threads(2), threads(8)) == (1, 2, 3)
    with pool(1) as executor:
        assert executor.submit(threads, 8).result() == 1
    assert threads(8) == 3


def trace_of(number: int, tokens: int) -> Trace:
    """One whose prompt is 100 tokens and which takes `tokens` to prefill."""
    return Trace(
        id=str(number),
        model="m",
        prompt_token_ids=np.zeros(100, dtype=np.int32),
        output_token_ids=np.zeros(tokens - 99, dtype=np.int32),
        sampling=Sampling(seed=1),
        engine=EngineRecord(name="vllm", version="0.24.0"),
        finish_reason="length",
    )


@pytest.mark.parametrize(
    ("device", "before", "added"),
    [("cpu", [], [0, 1]), ("cpu", [300], [0, 1]), ("cpu", [900], [0]), ("cpu", [2000], []), ("cuda", [], [0, 1, 2, 3])],
)
def test_on_a_cpu_the_engine_gets_as_many_traces_as_its_caches_hold(
    device: str, before: list[int], added: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int]] = []

    def add_request(name: str, prompt: dict[str, list[int]], params: Any) -> str:
        assert params["max_tokens"] == 1
        given.append((name, len(prompt["prompt_token_ids"])))
        return f"{name}-own"

    monkeypatch.setattr(vllm_engine, "require", lambda *_: SimpleNamespace(SamplingParams=dict))
    reference: Any = object.__new__(VllmReference)
    reference._device, reference._engine = torch.device(device), SimpleNamespace(add_request=add_request)
    reference._kernels = lambda _: None
    lengths = [800, 900, 500, 5000]
    to_come = deque(enumerate(trace_of(n, length) for n, length in enumerate(lengths)))
    waiting = {f"old{n}": vllm_engine._Replay(trace_of(n, length), None) for n, length in enumerate(before)}
    reference._add(to_come, waiting)
    assert given == [(f"veridifr{n}", lengths[n]) for n in added]
    assert [number for number, _ in to_come] == [n for n in range(4) if n not in added]
    assert [name for name in waiting if name.endswith("-own")] == [f"veridifr{n}-own" for n in added]


def test_a_trace_longer_than_that_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "require", lambda *_: SimpleNamespace(SamplingParams=dict))
    reference: Any = object.__new__(VllmReference)
    reference._device = torch.device("cpu")
    reference._engine = SimpleNamespace(add_request=lambda name, *_: name)
    reference._kernels = lambda _: None
    to_come, waiting = deque(enumerate([trace_of(0, 5000), trace_of(1, 100)])), {}
    reference._add(to_come, waiting)
    assert list(waiting) == ["veridifr0"] and len(to_come) == 1
