"""Where token ids are from: what an audit takes of it, and that another split of a text is never evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from makers import CPU_ENGINE, make_trace
from veridifr import Trace
from veridifr.errors import TraceError
from veridifr.origins import why_unscored
from veridifr.requests import plan
from veridifr.traces import trace_from_dict, trace_to_dict


def with_keys(**extra: Any) -> Trace:
    return replace(make_trace((3, 1, 2), max_tokens=3), extra=extra)


def text(server_count: Any, **more: Any) -> Trace:
    return with_keys(token_ids_from="text", retokenization={"server_count": server_count, "own_count": 3}, **more)


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        (with_keys(), None),
        (with_keys(token_ids_from="server"), None),
        (with_keys(token_ids_from="token_strings"), None),
        (text(3), None),
        (text(4), "retokenization: the text gives 3 token ids and the server counted 4"),
        (text(None), "retokenization.server_count: not known"),
        (text("3"), "retokenization.server_count: not known"),
        (text(True), "retokenization.server_count: not known"),
        (with_keys(token_ids_from="text"), "retokenization.server_count: not known"),
        (with_keys(token_ids_from="text", retokenization=[3, 3]), "retokenization.server_count: not known"),
        (with_keys(token_ids_from="somewhere"), "token_ids_from: got 'somewhere', expected one of server"),
        (with_keys(token_ids_from=["text"]), "token_ids_from: got"),
        (with_keys(unscored="no answer"), "no answer"),
        (with_keys(unscored=""), "unscored: the trace says so"),
        (with_keys(unscored=7), "unscored: the trace says so"),
        (text(3, unscored="refused"), "refused"),
    ],
)
def test_what_is_no_evidence_is_owed_and_says_why(trace: Trace, reason: str | None) -> None:
    assert (why_unscored(trace) or "").startswith(reason or "")
    ((item,), _) = plan([trace], None, CPU_ENGINE, (), lambda ids: None)
    assert (item.reason is None) == (reason is None)
    assert item.tokens == 3  # it counts against coverage: saying so removes no evidence that is owed
    assert (item.trace is None) == (reason is not None)


def test_the_count_stated_in_the_trace_is_not_believed() -> None:
    """`own_count` is for readers: what counts is how many ids there are."""
    trace = with_keys(token_ids_from="text", retokenization={"server_count": 4, "own_count": 4})
    assert why_unscored(trace) is not None


def test_a_trace_may_lack_its_prompt_only_if_it_says_why() -> None:
    record = {**trace_to_dict(make_trace(())), "prompt_token_ids": []}
    with pytest.raises(TraceError, match="prompt_token_ids: got 0 token ids, expected at least 1"):
        trace_from_dict(record)
    with pytest.raises(TraceError, match="prompt_token_ids: got 0"):
        trace_from_dict({**record, "unscored": None})
    found = trace_from_dict({**record, "unscored": "not known"})
    assert trace_to_dict(found) == {**record, "unscored": "not known"}
    assert trace_from_dict({**record, "unscored": "not known", "output_token_ids": [1]}).digest() != found.digest()
