"""What a vLLM reference does with traces while its engine goes on: order, errors, and who works."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from veridifr.references.vllm_engine import _Backlog
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
