"""Each way in which an endpoint fails, alone, whole and streamed: every request is answered once, rightly charged."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_endpoint import FAULTS, FakeServer, FaultyProxy, streamed, tokens_for
from runs import prompts, run

from veridifr import Limits
from veridifr.traces import read_traces

PROMPTS, TOKENS = 30, 8
FREE = ("429", "429 later", "500", "refused")
"""The server was not reached: nothing can be on an invoice. (Of `refused` the collector cannot know.)"""
ANSWERS = ("other model", "wrong counts")
"""Not asked again: there is an answer."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_every_request_is_in_the_traces_once(tmp_path: Path, fault: str, stream: bool) -> None:
    seconds = 1.0 if fault == "stall" else 60.0  # a stall lasts for good, so this is its length
    with FakeServer(streamed) as server, FaultyProxy(server.port, share=0.4, seed=5, faults=(fault,)) as proxy:
        found = run(tmp_path / "t.jsonl", proxy.url, prompts(PROMPTS), stream=stream, timeout=seconds)
    seen = proxy.seen[fault]
    assert seen >= 5
    traces = list(read_traces(found.traces))
    assert [trace.prompt_token_ids.tolist() for trace in traces] == [[5, 6, 7 + n] for n in range(PROMPTS)]
    for trace in traces:
        seed = trace.sampling.seed
        assert trace.output_token_ids.tolist() == tokens_for({"seed": seed, "max_tokens": TOKENS})
    again = 0 if fault in ANSWERS else seen
    if fault == "stall":  # on a busy machine an answer may take as long as one
        again = max(seen, found.attempts - PROMPTS)
    assert (found.answered, found.attempts) == (PROMPTS, PROMPTS + again)
    assert server.served.total() == PROMPTS + (0 if fault in FREE else again)
    charged = PROMPTS + (0 if fault in FREE and fault != "refused" else again)
    assert found.spent == (3 * charged, TOKENS * charged)
    twice = sum(count > 1 for count in server.served.values())
    assert found.paid_twice >= twice
    assert (found.paid_twice > 0) == (charged > PROMPTS)
    assert found.wrong_counts == (seen if fault == "wrong counts" else 0)
    named = "model: the answer names 'another', and 'm' was asked for"
    assert found.unscored == ({named: seen} if fault == "other model" else {})


def test_a_reset_in_the_middle_of_a_stream_keeps_nothing_of_it(tmp_path: Path) -> None:
    """The reason is on record, and no half of an answer is."""
    with FakeServer(streamed) as server, FaultyProxy(server.port, share=1.0, faults=("reset",)) as proxy:
        found = run(tmp_path / "t.jsonl", proxy.url, prompts(3), stream=True, limits=Limits(attempts=1))
    (reason,) = found.unscored
    assert reason.startswith("no answer: the connection broke: ")
    assert all(len(trace.output_token_ids) == 0 for trace in read_traces(found.traces))
    assert found.spent == (9, 24)
