"""Answers of every shape: what is understood, what is refused, and that nothing but our errors comes out."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeServer, Response, as_json
from hypothesis import given
from hypothesis import strategies as st
from runs import prompts, run

from veridifr import Limits
from veridifr.collecting.answers import Answer, read_answer
from veridifr.collecting.budget import Use
from veridifr.collecting.sending import _retry_after
from veridifr.collecting.streams import Stream
from veridifr.errors import TraceError

WHOLE = {
    "model": "m",
    "choices": [{"index": 0, "text": "hi", "token_ids": [5, 6], "finish_reason": "stop", "stop_reason": 6}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


def chat(message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "message": message, **choice}]}


def test_a_completion() -> None:
    found = read_answer(WHOLE)
    assert found == Answer(model="m", text="hi", token_ids=(5, 6), finish_reason="stop", stop_reason=6, usage=Use(3, 2))
    assert Answer.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_chat_completion_with_parts_apart() -> None:
    found = read_answer(chat({"content": "hi", "reasoning_content": "so", "tool_calls": [{}], "refusal": None}))
    assert (found.text, found.apart) == ("hi", ("reasoning_content", "tool_calls"))
    assert Answer.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert read_answer(chat({"content": None, "tool_calls": []})).apart == ()


@pytest.mark.parametrize(
    ("logprobs", "ids", "tokens"),
    [
        ({"tokens": ["token_id:5", "token_id:0"]}, (5, 0), None),
        ({"content": [{"token": "token_id:5", "bytes": [1]}]}, (5,), None),
        ({"tokens": ["a", " b"]}, None, (b"a", b" b")),
        ({"content": [{"token": "a", "bytes": [195]}, {"token": "é", "bytes": None}]}, None, (b"\xc3", "é".encode())),
        ({"tokens": ["token_id:5", "token_id:05"]}, None, (b"token_id:5", b"token_id:05")),
        ({"tokens": []}, None, None),
        ({"content": None}, None, None),
        (None, None, None),
    ],
)
def test_ids_and_strings_of_log_probabilities(logprobs: Any, ids: Any, tokens: Any) -> None:
    found = read_answer({"choices": [{"text": "x", "logprobs": logprobs}]})
    assert (found.token_ids, found.tokens) == (ids, tokens)
    assert Answer.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": 2}, [], "3",
              {"prompt_tokens": 3.0, "completion_tokens": 2}, {"prompt_tokens": True, "completion_tokens": 2}]
)  # fmt: skip
def test_counts_that_are_none_are_unknown(usage: Any) -> None:
    assert read_answer({**WHOLE, "usage": usage}).usage is None


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ([], "answer"),
        ({}, "choices"),
        ({"choices": []}, "choices"),
        ({"choices": [{}, {}]}, "choices"),
        ({"choices": [5]}, "choices"),
        ({"choices": [{"text": 5}]}, "text"),
        ({"choices": [{"message": "hi"}]}, "message"),
        ({"choices": [{"message": {"content": ["hi"]}}]}, "text"),
        ({"choices": [{"token_ids": [1.5]}]}, "token_ids"),
        ({"choices": [{"token_ids": [-1]}]}, "token_ids"),
        ({"choices": [{"token_ids": "12"}]}, "token_ids"),
        ({"choices": [{"finish_reason": 5}]}, "finish_reason"),
        ({"choices": [{"stop_reason": -5}]}, "stop_reason"),
        ({"choices": [{"stop_reason": []}]}, "stop_reason"),
        ({"choices": [{"logprobs": {"tokens": [5]}}]}, "logprobs"),
        ({"choices": [{"logprobs": {"content": [{"token": "a", "bytes": [256]}]}}]}, "bytes"),
        ({"choices": [{"text": ""}], "model": 5}, "model"),
        ({"choices": [{"text": ""}], "model": "x" * 5000}, "model"),
        ({"choices": [{"text": ""}], "prompt_token_ids": [None]}, "prompt_token_ids"),
    ],
)
def test_what_is_no_answer_is_refused_by_field(body: Any, named: str) -> None:
    with pytest.raises(TraceError, match=named):
        read_answer(body)


TEXT = st.text("ab1é\x00\n{", max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = ("text", "token_ids", "prompt_token_ids", "logprobs", "message", "finish_reason", "stop_reason", "delta")


@given(st.dictionaries(st.sampled_from(NAMES), JSON), st.dictionaries(st.sampled_from(("model", "usage")), JSON))
def test_only_our_errors_come_out(choice: dict[str, Any], top: dict[str, Any]) -> None:
    try:
        found = read_answer({**top, "choices": [choice]})
    except TraceError:
        pass
    else:
        assert Answer.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    stream = Stream()
    try:
        stream.feed(b"data: " + json.dumps({**top, "choices": [choice]}).encode() + b"\n\ndata: [DONE]\n")
        read_answer(stream.body())
    except TraceError:
        pass


def streamed(events: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_of_chat_chunks(size: int) -> None:
    """Cut anywhere, its parts fold into the answer in one piece."""
    events = [
        {"model": "m", "prompt_token_ids": [1, 2], "choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"model": "m", "choices": [{"delta": {"content": "hé"}, "token_ids": [5]}]},
        {"model": "m", "choices": [{"delta": {"reasoning": "so"}, "token_ids": [6]}]},
        {"model": "m", "choices": [{"delta": {"content": "y"}, "token_ids": [7], "finish_reason": "stop",
                                    "logprobs": {"content": [{"token": "y"}]}}]},
        {"model": "m", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}},
    ]  # fmt: skip
    stream, data = Stream(), b": ping\r\n\r\n" + streamed(events)
    for start in range(0, len(data), size):
        stream.feed(data[start : start + size])
    found = read_answer(stream.body())
    assert (found.text, found.token_ids, found.prompt_token_ids) == ("héy", (5, 6, 7), (1, 2))
    assert (found.finish_reason, found.usage, found.apart) == ("stop", Use(2, 3), ("reasoning",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'data: {"choices": []}\n\n',
        b"data: [DON",
        b"data: {\n\ndata: [DONE]\n",
        b"data: 5\n\ndata: [DONE]\n",
        b'data: {"error": "x"}\n\ndata: [DONE]\n',
        b'data: {"choices": [{}, {}]}\n\ndata: [DONE]\n',
        b'data: {"choices": [{"text": 5}]}\n\ndata: [DONE]\n',
        b'data: {"choices": [{"token_ids": 5}]}\n\ndata: [DONE]\n',
        b'data: {"choices": [5]}\n\ndata: [DONE]\n',
        b"data: " + b"x" * 5_000_000,
    ],
)
def test_a_stream_that_is_none_or_broke_off_is_refused(data: bytes) -> None:
    stream = Stream()
    with pytest.raises(TraceError):
        stream.feed(data)
        stream.body()


DEEP = Response(200, b"[" * 100_000)


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (DEEP, "nested deeper"),
        (as_json({"choices": 5}), "choices"),
        (as_json({"error": {"message": "overloaded"}}), "an error in place of an answer: overloaded"),
        (Response(200, b'{"a": NaN}'), "NaN"),
        (Response(200, b"\x1f\x8b", {"Content-Encoding": "gzip"}), "compressed"),
        (Response(200, b"{}", {"Content-Length": "500", "Connection": "close"}), "no answer within|connection broke"),
        (Response(502, b"<html>\x1b[31mBad Gateway\x00"), "status 502: <html> .31mBad Gateway"),
        (Response(500, b"x" * 1_000_000), "status 500"),
    ],
)
def test_hostile_responses_are_failures_with_a_reason(tmp_path: Path, response: Response, why: str) -> None:
    with FakeServer(lambda *_: response) as server:
        found = run(
            tmp_path / "t.jsonl", server.url, prompts(1), limits=Limits(attempts=2, first_wait=0.0), timeout=0.5
        )
        assert len(server.requests) == 2
    (reason,) = found.unscored
    assert reason.startswith("no answer: ")
    assert re.search(why, reason), reason
    assert all(" " <= c <= "~" for c in reason)
    free = response.status == 500
    assert found.spent == ((0, 0) if free else (6, 16))


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with FakeServer() as server:
        url = server.url
    found = run(tmp_path / "t.jsonl", url, prompts(1), limits=Limits(attempts=2, first_wait=0.0))
    assert (found.spent, found.attempts) == ((0, 0), 2)
    assert "cannot be reached" in next(iter(found.unscored))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("Wed, 25 Nov 2026 00:00:30 GMT", 30.0),
        ("Wed, 25 Nov 2026 00:00:30 -0000", 30.0),
        ("Tue, 24 Nov 2026 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("9" * 100, None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert _retry_after(value, datetime(2026, 11, 25, tzinfo=UTC)) == seconds
