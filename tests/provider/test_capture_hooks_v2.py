"""The hooks on a stand-in of the V2 runner, and what makes either runner be refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fake_engine_parts
import pytest
import torch
from fake_engine_parts import HIDDEN, Params, V1Runner, V2Runner, new_request
from hook_answers import check_values, recorder, take, tokens_of

from veridifr.errors import UnsupportedError
from veridifr.vllm.checks import check_fields, check_parameters, check_unwrapped
from veridifr.vllm.recorder import Recorder
from veridifr.vllm.runner_v2 import RunnerV2


def v2_row(number: int, computed: int, scheduled: int, token: int, **fields: Any) -> dict[str, Any]:
    row = {"id": f"{number}-aaaaaaaa", "slot": number, "prompt": 4, "prefill": 4, "seed": 50 + number}
    return {**row, "computed": computed, "scheduled": scheduled, "token": token, **fields}


@pytest.fixture
def v2() -> tuple[V2Runner, Recorder]:
    runner, found = V2Runner(), recorder(draws_seeds=True)
    RunnerV2(runner).attach(found)
    return runner, found


def test_v2_prefill_in_parts_then_decode(v2: tuple[V2Runner, Recorder]) -> None:
    runner, found = v2
    runner.step([v2_row(1, 0, 3, 777)], new=(new_request("1-aaaaaaaa", [1, 2, 3, 4]),))
    runner.step([v2_row(2, 0, 4, 20), v2_row(1, 3, 1, 10)], new=(new_request("2-aaaaaaaa", [5, 6, 7, 8]),))
    runner.step([v2_row(1, 4, 1, 11), v2_row(2, 4, 1, 21)])
    first, second = take(found, "1", 2), take(found, "2", 2)
    assert (tokens_of(first), tokens_of(second)) == ([10, 11], [20, 21])
    check_values(first, 1, [0, 1])
    check_values(second, 2, [0, 1])
    assert runner.added == ["1-aaaaaaaa", "2-aaaaaaaa"]


def test_v2_preemption_prefills_the_outputs_again(v2: tuple[V2Runner, Recorder]) -> None:
    """The request comes back as a new one in another slot, with its outputs counted into what is prefilled."""
    runner, found = v2
    request = new_request("1-aaaaaaaa", [1, 2, 3, 4])
    runner.step([v2_row(1, 0, 4, 10)], new=(request,))
    runner.step([v2_row(1, 4, 1, 11)])
    runner.step([v2_row(1, 0, 5, 777, slot=3, prefill=6, seed=51)], new=(request,))
    runner.step([v2_row(1, 5, 1, 12, slot=3, prefill=6, seed=51)])
    answer = take(found, "1", 3)
    assert tokens_of(answer) == [10, 11, 12]
    check_values(answer, 1, [0, 1, 2])


def test_v2_tells_the_seed_that_it_drew(v2: tuple[V2Runner, Recorder]) -> None:
    runner, found = v2
    runner.step([v2_row(1, 0, 4, 10, seed=-987654321012345)], new=(new_request("1-aaaaaaaa", [1, 2, 3, 4],
        sampling_params=Params()),))  # fmt: skip
    answer = take(found, "1", 1)
    assert (answer["sampling"]["seed"], answer["reason"]) == (-987654321012345, None)


def test_v2_two_drawn_seeds_make_no_trace(v2: tuple[V2Runner, Recorder]) -> None:
    """Preemption draws anew: no single seed explains the tokens."""
    runner, found = v2
    request = new_request("1-aaaaaaaa", [1, 2, 3, 4], sampling_params=Params())
    runner.step([v2_row(1, 0, 4, 10, seed=8)], new=(request,))
    runner.step([v2_row(1, 0, 5, 11, prefill=5, seed=9)], new=(request,))
    answer = take(found, "1", 2)
    assert "seed" not in answer["sampling"]
    assert "drew 2 one after another" in answer["reason"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"use_flashinfer": False}, True),
        ({"use_flashinfer": True}, False),
        ({}, False),
        ({"use_flashinfer": False, "use_xpu_sampler": True}, False),
    ],
)
def test_v2_drawn_seeds_count_only_without_a_fused_sampler(fields: dict[str, bool], expected: bool) -> None:
    assert RunnerV2(SimpleNamespace(sampler=SimpleNamespace(**fields))).draws_seeds is expected


def test_v2_drafted_tokens_are_a_fault(v2: tuple[V2Runner, Recorder]) -> None:
    runner, found = v2
    batch = SimpleNamespace(num_reqs=1, num_draft_tokens=2, logits_indices=torch.zeros(3), wanted=[1])
    runner.sample(torch.zeros(3, HIDDEN), batch, None)
    assert "3 sampled rows for 1 requests" in str(found.state()["fault"])


def test_v2_detached_leaves_nothing() -> None:
    runner = V2Runner()
    before = dict(vars(runner))
    hook = RunnerV2(runner)
    hook.attach(recorder())
    assert {"sample", "add_requests"} <= vars(runner).keys()
    hook.detach()
    assert dict(vars(runner)) == before


def test_another_signature_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"sample_tokens has the parameters \('grammar_output',\), expected"):
        check_parameters(V1Runner(asynchronous=False), "sample_tokens", ("grammar", "more"))
    with pytest.raises(UnsupportedError, match="no method execute_twice"):
        check_parameters(V1Runner(asynchronous=False), "execute_twice", ())


def test_a_wrapped_method_is_refused() -> None:
    runner = V1Runner(asynchronous=False)
    runner.sample_tokens = lambda grammar_output: None  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError, match="sample_tokens is wrapped already"):
        check_unwrapped(runner, "sample_tokens")


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"ExecuteModelState has no field aux"):
        check_fields(fake_engine_parts, "ExecuteModelState", ("logits", "aux"))
    with pytest.raises(UnsupportedError, match="Nothing has no field logits"):
        check_fields(fake_engine_parts, "Nothing", ("logits",))
