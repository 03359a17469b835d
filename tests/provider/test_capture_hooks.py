"""The hook on a stand-in of the V1 runner: which entries a step leaves, under everything a scheduler may do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_engine_parts import HIDDEN, Params, V1Runner, new_request
from hook_answers import check_values, recorder, take, tokens_of

from veridifr.vllm.runner_v1 import RunnerV1


class Attached:
    """A V1 stand-in with the hook on."""

    def __init__(self, *, asynchronous: bool = False, **fields: Any) -> None:
        self.runner, self.recorder = V1Runner(asynchronous=asynchronous), recorder(**fields)
        self.hook = RunnerV1(self.runner)
        self.hook.attach(self.recorder)

    def step(self, *rows: tuple[str, int, int, int, bool], new: tuple[Any, ...] = (), **state: Any) -> Any:
        self.runner.execute(list(rows), new, **state)
        return self.runner.sample_tokens(None)


A, B = "1-aaaaaaaa", "2-bbbbbbbb"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_v1_a_batch_that_grows_and_shrinks(asynchronous: bool) -> None:
    engine = Attached(asynchronous=asynchronous)
    engine.step((A, 3, 0, 10, False), new=(new_request(A, [1, 2, 3]),))
    engine.step((A, 3, 1, 11, False), (B, 2, 0, 20, False), new=(new_request(B, [4, 5]),))
    engine.step((B, 2, 1, 21, False), (A, 3, 2, 12, False))
    engine.step((B, 2, 2, 22, False))
    first, second = take(engine.recorder, "1", 3), take(engine.recorder, "2", 3)
    assert (tokens_of(first), tokens_of(second)) == ([10, 11, 12], [20, 21, 22])
    check_values(first, 1, [0, 1, 2])
    check_values(second, 2, [0, 1, 2])
    assert np.frombuffer(first["prompt"], "<i4").tolist() == [1, 2, 3]
    assert first["sampling"] == {"temperature": 1.0, "max_tokens": 16, "seed": 3}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_v1_chunked_prefill_leaves_one_entry(asynchronous: bool) -> None:
    """Rows of a prompt prefilled in part carry a dummy token, which the engine discards."""
    engine = Attached(asynchronous=asynchronous)
    engine.step((A, 9, 0, 777, True), new=(new_request(A, list(range(9))),))
    engine.step((A, 9, 0, 888, True))
    engine.step((A, 9, 0, 10, False))
    engine.step((A, 9, 1, 11, False))
    found = take(engine.recorder, "1", 2)
    assert tokens_of(found) == [10, 11]
    check_values(found, 1, [0, 1])


def test_v1_preemption_overwrites_and_does_not_shift() -> None:
    """After preemption the outputs are prefilled again, and one computed again takes the place of the earlier one."""
    engine = Attached()
    engine.step((A, 3, 0, 10, False), new=(new_request(A, [1, 2, 3]),))
    engine.step((A, 3, 1, 999, False))
    engine.step((A, 3, 1, 555, True))
    engine.step((A, 3, 1, 11, False))
    engine.step((A, 3, 2, 12, False))
    found = take(engine.recorder, "1", 3)
    assert tokens_of(found) == [10, 11, 12]
    check_values(found, 1, [0, 1, 2])


def test_tokens_after_the_end_are_left_out() -> None:
    """Asynchronous scheduling samples once more before it knows that a request has stopped."""
    engine = Attached(asynchronous=True)
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),))
    engine.step((A, 1, 1, 11, False))
    assert tokens_of(take(engine.recorder, "1", 1)) == [10]


def test_children_are_told_apart() -> None:
    engine = Attached()
    ids = ("0_7-aaaaaaaa", "1_7-aaaaaaaa")
    new = tuple(new_request(name, [1], sampling_params=Params(seed=40 + child)) for child, name in enumerate(ids))
    engine.step((ids[0], 1, 0, 10, False), (ids[1], 1, 0, 20, False), new=new)
    first, second = take(engine.recorder, "7", 1, 0), take(engine.recorder, "7", 1, 1)
    assert (tokens_of(first), tokens_of(second)) == ([10], [20])
    assert first["sampling"]["seed"] == second["sampling"]["seed"] == 40  # child j draws from seed + j


def test_an_id_that_looks_like_a_child_is_found_as_itself() -> None:
    engine = Attached()
    engine.step(("2_9-aaaaaaaa", 1, 0, 10, False), new=(new_request("2_9-aaaaaaaa", [1]),))
    assert tokens_of(take(engine.recorder, "2_9", 1)) == [10]


def test_the_same_id_twice_is_ambiguous() -> None:
    engine = Attached()
    for suffix, token in (("aaaaaaaa", 10), ("bbbbbbbb", 20)):
        engine.step((f"1-{suffix}", 1, 0, token, False), new=(new_request(f"1-{suffix}", [1]),))
    assert take(engine.recorder, "1", 1)["status"] == "ambiguous"


def test_a_request_that_was_running_before_is_unknown() -> None:
    engine = Attached()
    engine.step((A, 1, 4, 10, False))
    assert take(engine.recorder, "1", 5)["status"] == "unknown"


def test_more_tokens_than_were_sampled_are_incomplete() -> None:
    engine = Attached()
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),))
    found = take(engine.recorder, "1", 2)
    assert (found["status"], found["reason"]) == ("incomplete", "1 of 2 tokens were captured")


def test_taken_is_gone_unless_kept() -> None:
    engine = Attached()
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),))
    assert tokens_of(take(engine.recorder, "1", 1, remove=False)) == [10]
    assert tokens_of(take(engine.recorder, "1", 1)) == [10]
    assert take(engine.recorder, "1", 1)["status"] == "unknown"
    assert engine.recorder.state() == {"requests": 0, "tokens": 0, "evicted": 0, "fault": None}


def test_without_a_seed_v1_has_no_trace_and_says_why() -> None:
    engine = Attached()
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1], sampling_params=Params()),))
    found = take(engine.recorder, "1", 1)
    assert "seed" not in found["sampling"]
    assert "cannot be replayed" in found["reason"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt_token_ids": None}, "embeddings"),
        ({"sampling_params": None}, "pooling"),
    ],
)
def test_requests_without_a_record(fields: dict[str, Any], said: str) -> None:
    engine = Attached()
    request = new_request(A, [1])
    vars(request).update(fields)
    engine.step((A, 1, 0, 10, False), new=(request,))
    found = take(engine.recorder, "1", 1)
    assert found["status"] == "refused"
    assert said in found["reason"]


def test_a_streamed_prompt_is_refused() -> None:
    engine = Attached()
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),))
    engine.step((A, 3, 0, 11, False), new=(new_request(A, [1, 2, 3]),))
    assert "as a stream" in take(engine.recorder, "1", 1)["reason"]


def test_lora_and_images_reach_the_sampling_so_that_an_audit_refuses_them() -> None:
    engine = Attached()
    request = new_request(A, [1], lora_request=SimpleNamespace(lora_name="tuned"), mm_features=[1, 2])
    engine.step((A, 1, 0, 10, False), new=(request,))
    sampling = take(engine.recorder, "1", 1)["sampling"]
    assert (sampling["lora_request"], sampling["multi_modal_inputs"]) == ("tuned", 2)


def test_evictions_are_counted_and_said() -> None:
    engine = Attached(max_requests=2)
    for number in range(4):
        name = f"{number}-aaaaaaaa"
        engine.step((name, 1, 0, number, False), new=(new_request(name, [1]),))
    state = engine.recorder.state()
    assert (state["requests"], state["evicted"]) == (2, 2)
    assert [take(engine.recorder, str(n), 1)["status"] for n in range(4)] == ["evicted", "evicted", "ok", "ok"]


def test_tokens_are_bounded_and_the_stalest_request_goes_first() -> None:
    engine = Attached(max_tokens=5)
    engine.step((A, 1, 0, 10, False), (B, 1, 0, 20, False), new=(new_request(A, [1]), new_request(B, [2])))
    assert engine.recorder.state()["tokens"] == 2
    for count in range(1, 5):
        engine.step((A, 1, count, 10 + count, False))
    assert engine.recorder.state()["tokens"] == 5
    assert take(engine.recorder, "2", 1)["status"] == "evicted"
    assert tokens_of(take(engine.recorder, "1", 5)) == [10, 11, 12, 13, 14]


def test_records_expire() -> None:
    clock = [0.0]
    engine = Attached(ttl_seconds=10, now=lambda: clock[0])
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),))
    assert engine.recorder.state()["requests"] == 1
    clock[0] = 11.0
    assert take(engine.recorder, "1", 1)["status"] == "evicted"


def test_rows_of_an_evicted_request_are_dropped_and_reach_nobody_else() -> None:
    engine = Attached(max_requests=1)
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),))
    engine.step((B, 1, 0, 20, False), (A, 1, 1, 11, False), new=(new_request(B, [2]),))
    assert take(engine.recorder, "1", 2)["status"] == "evicted"
    assert tokens_of(take(engine.recorder, "2", 1)) == [20]


def test_dropped_requests_are_unknown() -> None:
    engine = Attached()
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),))
    engine.recorder.drop([("1", None), ("nobody", 3)])
    assert take(engine.recorder, "1", 1)["status"] == "unknown"


def test_many_steps_go_through_the_buffer_in_order() -> None:
    """More rows than the staging buffer holds: every one comes out, under its own index."""
    engine = Attached(max_tokens=10**6)
    steps = 1000
    new = (new_request(A, [1]), new_request(B, [2]), new_request("3-cccccccc", [3]))
    for count in range(steps):
        rows = ((A, 1, count, count, False), (B, 1, count, count + 7, False), ("3-cccccccc", 1, count, 5, False))
        engine.step(*rows, new=new if count == 0 else ())
    found = take(engine.recorder, "2", steps)
    assert tokens_of(found) == list(range(7, steps + 7))
    check_values(found, 2, list(range(steps)))


def test_a_fault_stops_the_capture_and_not_the_engine() -> None:
    engine = Attached()
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),))
    output = engine.step((A, 1, 1, 11, False), spec_decode_metadata=object())
    assert output.sampled_token_ids == [[11]]
    assert take(engine.recorder, "1", 1)["status"] == "stopped"
    assert "sampled rows" in str(engine.recorder.state()["fault"])


def test_another_hidden_size_is_a_fault() -> None:
    engine = Attached()
    engine.step((A, 1, 0, 10, False), new=(new_request(A, [1]),), sample_hidden_states=torch.zeros(1, HIDDEN + 1))
    assert "expected [N, 16]" in str(engine.recorder.state()["fault"])


def test_a_step_without_a_forward_pass() -> None:
    engine = Attached()
    assert engine.runner.sample_tokens(None) is None
    assert engine.recorder.state()["fault"] is None


def test_v1_detached_leaves_nothing() -> None:
    runner = V1Runner(asynchronous=False)
    before = dict(vars(runner))
    hook = RunnerV1(runner)
    hook.attach(recorder())
    assert "sample_tokens" in vars(runner)
    hook.detach()
    assert dict(vars(runner)) == before
