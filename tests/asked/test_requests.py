"""Nothing a provider says removes evidence: one test for each way of trying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from makers import CPU_ENGINE, make_trace
from veridifr.requests import Decode, Planned, plan, reasons
from veridifr.trace import Trace

EOS = 1


def spell(ids: Sequence[int]) -> str:
    """A tokenizer of letters: 0 is "a", 25 is "z"."""
    return "".join(chr(ord("a") + i) for i in ids)


def mute(ids: Sequence[int]) -> None:
    return None


def planned(
    traces: Sequence[Trace], requests: Sequence[Trace] | None = None, decode: Decode = spell
) -> tuple[list[Planned], list[str]]:
    return plan(traces, requests, CPU_ENGINE, (EOS,), decode)


def one(trace: Trace, request: Trace | None = None, decode: Decode = spell) -> Planned:
    (item,), _ = planned([trace], None if request is None else [request], decode)
    return item


def asked(**sampling: Any) -> Trace:
    """A request: a trace without output."""
    return make_trace((), **{"max_tokens": 4, **sampling})


def test_an_honest_sequence_is_scored_whole() -> None:
    item = one(make_trace((3, 4, 5, 6), max_tokens=4, finish_reason="length"), asked())
    assert (item.end, item.tokens, item.forced, item.reason) == (4, 4, False, None)
    assert item.trace is not None
    assert item.trace.output_token_ids.tolist() == [3, 4, 5, 6]


def test_the_request_s_settings_are_what_is_scored() -> None:
    """Claiming another temperature, seed or filter changes nothing where the verifier knows what it asked for."""
    claim = make_trace((3, 4, 5, 6), temperature=2.0, seed=99, top_k=1, max_tokens=1)
    item = one(claim, asked(temperature=0.7, top_p=0.9))
    assert item.trace is not None
    assert item.trace.sampling == asked(temperature=0.7, top_p=0.9).sampling
    assert (item.end, item.tokens) == (4, 4)


# Attack: call tokens forced, or the choice a choice of one.


def test_a_choice_of_one_by_the_provider_s_word_is_not_scored_away() -> None:
    item = one(make_trace((3, 3, 3), allowed_token_ids=[3], max_tokens=3))
    assert item.trace is None
    assert not item.forced
    assert item.reason == "sampling.allowed_token_ids: one token, by the provider's word only"
    assert item.tokens == 3  # all of it counts against coverage


def test_a_choice_of_one_that_was_asked_for_is_forced() -> None:
    item = one(make_trace((3, 3, 3, 3)), asked(allowed_token_ids=[3]))
    assert item.forced
    assert (item.end, item.tokens) == (4, 4)
    assert not one(make_trace((3, 3, 3, 3)), asked(allowed_token_ids=[3, 4])).forced


def test_a_claimed_choice_of_one_does_not_count_against_a_request_without() -> None:
    item = one(make_trace((3, 3, 3, 3), allowed_token_ids=[3]), asked())
    assert not item.forced
    assert item.trace is not None
    assert item.trace.sampling.allowed_token_ids is None


def test_extra_keys_make_nothing_forced() -> None:
    trace = replace(make_trace((3, 4, 5, 6)), extra={"forced": [0, 1, 2, 3]})
    item = one(trace, asked())
    assert (item.forced, item.end, item.tokens) == (False, 4, 4)


# Attack: leave sequences out, or add better ones.


def test_absent_sequences_are_owed() -> None:
    requests = [asked(), replace(asked(), id="s1"), replace(asked(max_tokens=9), id="s2")]
    items, _ = planned([make_trace((3, 4, 5, 6))], requests)
    assert [(item.id, item.tokens, item.reason) for item in items] == [
        ("s0", 4, None),
        ("s1", 4, "absent from the traces"),
        ("s2", 9, "absent from the traces"),
    ]
    assert dict(reasons(items)) == {"absent from the traces": 2}


def test_an_absent_sequence_without_a_limit_owes_what_the_others_gave() -> None:
    requests = [replace(asked(max_tokens=None), id=name) for name in ("s0", "s1", "s2")]
    items, _ = planned([make_trace([4] * 5), make_trace([4] * 7, name="s1")], requests)
    assert [item.tokens for item in items] == [5, 7, 6]


def test_nothing_returned_at_all() -> None:
    items, _ = planned([], [asked()])
    assert [(item.trace, item.tokens) for item in items] == [(None, 4)]


def test_sequences_that_nobody_asked_for_are_ignored() -> None:
    items, said = planned([make_trace((3, 4, 5, 6)), make_trace((3, 4, 5, 6), name="extra")], [asked()])
    assert [item.id for item in items] == ["s0"]
    assert said == ["1 sequences in the traces were never asked for and are ignored."]


def test_an_empty_output_owes_everything() -> None:
    item = one(make_trace(()), asked())
    assert (item.trace, item.tokens, item.reason) == (None, 4, "output_token_ids: empty")


# Attack: answer another question, or change engine in the middle.


@pytest.mark.parametrize("prompt", [(5,), (5, 7), (5, 6, 6)])
def test_another_prompt_is_not_scored(prompt: tuple[int, ...]) -> None:
    item = one(make_trace((3, 4, 5, 6), prompt=prompt), asked())
    assert (item.trace, item.tokens) == (None, 4)
    assert item.reason == "prompt_token_ids: not the prompt that was asked for"


@pytest.mark.parametrize(
    "change",
    [{"version": "0.31.0"}, {"runner": "v2"}, {"sampler": "greedy"}, {"device": "NVIDIA H200"}, {"fp64_noise": True},
     {"speculative_decoding": True}, {"name": "hf"}, {"multiprocessors": 132}, {"dtype": "float16"}],
)  # fmt: skip
@pytest.mark.parametrize("with_requests", [True, False])
def test_another_engine_record_is_not_scored(change: dict[str, Any], with_requests: bool) -> None:
    trace = make_trace((3, 4, 5, 6), engine=replace(CPU_ENGINE, **change), max_tokens=4)
    item = one(trace, asked() if with_requests else None)
    assert (item.trace, item.tokens) == (None, 4)
    assert item.reason == "engine: another record than the one fixed for this audit"


def test_the_child_is_the_one_asked_for() -> None:
    """Child j draws from seed + j: a provider that names j itself would choose its seed."""
    request = asked()
    for child, fits in ((None, True), (0, True), (1, False), (65535, False)):
        trace = make_trace((3, 4, 5, 6), engine=replace(CPU_ENGINE, child=child))
        assert (one(trace, request).trace is not None) == fits
    item = one(make_trace((3, 4, 5, 6), engine=replace(CPU_ENGINE, child=5)), request)
    assert (item.reason, item.tokens) == ("engine.child: got 5, and 0 was asked for", 4)
    second = replace(request, engine=replace(CPU_ENGINE, child=1))
    assert one(make_trace((3, 4, 5, 6), engine=replace(CPU_ENGINE, child=1)), second).trace is not None
    assert one(make_trace((3, 4, 5, 6)), second).reason == "engine.child: got 0, and 1 was asked for"


# Attack: end early, or go on after the end.


def test_ending_early_without_an_end_owes_the_rest() -> None:
    item = one(make_trace((3, 4), finish_reason="stop", max_tokens=2), asked())
    assert (item.end, item.tokens) == (2, 4)


@pytest.mark.parametrize("reason", ["stop", "length", None, "abort", "content_filter"])
def test_an_early_end_is_scored(reason: str | None) -> None:
    """The end-of-sequence token is a token like others: it is among those scored, and nothing more is owed."""
    item = one(make_trace((3, EOS), finish_reason=reason), asked())
    assert (item.end, item.tokens) == (2, 2)
    assert item.trace is not None
    assert item.trace.output_token_ids.tolist() == [3, EOS]


def test_an_end_that_was_ruled_out_is_no_end() -> None:
    assert one(make_trace((3, EOS)), asked(ignore_eos=True)).tokens == 4
    assert one(make_trace((3, EOS)), asked(min_tokens=2)).tokens == 4
    assert one(make_trace((3, EOS)), asked(min_tokens=1)).tokens == 2


def test_stop_token_ids_end_as_asked_for_only() -> None:
    assert one(make_trace((3, 9), stop_token_ids=[9]), asked()).tokens == 4
    assert one(make_trace((3, 9)), asked(stop_token_ids=[9])).tokens == 2
    assert one(make_trace((3, 9)), asked(stop_token_ids=[9], ignore_eos=True)).tokens == 2


def test_tokens_after_the_end_prove_nothing_and_count_as_missing() -> None:
    item = one(make_trace((3, EOS, 4, 5, 6, 7, 8)), asked())
    assert (item.end, item.tokens) == (2, 7)
    assert item.trace is not None
    assert item.trace.output_token_ids.tolist() == [3, EOS]


def test_tokens_beyond_the_limit_prove_nothing_and_count_as_missing() -> None:
    for request in (asked(), None):
        item = one(make_trace([4] * 10, max_tokens=4), request)
        assert (item.end, item.tokens) == (4, 10)


def test_running_past_the_end_without_requests_is_scored_and_said() -> None:
    """Traces of load tests seldom state ignore_eos: what follows the end counts, and the report says so."""
    (item,), said = planned([make_trace((3, EOS, 4, 5), max_tokens=4, finish_reason="length")])
    assert (item.end, item.tokens) == (4, 4)
    assert said[-1] == "1 outputs run past an end-of-sequence token and state no stop: ignore_eos is taken as on."


def test_running_past_the_end_while_claiming_to_have_stopped_counts_as_missing() -> None:
    (item,), said = planned([make_trace((3, EOS, 4, 5), max_tokens=4, finish_reason="stop")])
    assert (item.end, item.tokens) == (2, 4)
    assert not any("ignore_eos" in sentence for sentence in said)


def test_running_past_the_end_is_not_explained_away_where_requests_are_known() -> None:
    item = one(make_trace((3, EOS, 4, 5), finish_reason="length"), asked())
    assert (item.end, item.tokens) == (2, 4)


def test_without_requests_the_provider_s_word_is_named_as_such() -> None:
    _, said = planned([make_trace((3, 4), max_tokens=None)])
    assert said == [
        "No requests were given: the prompts, the settings and the number of sequences are the provider's word.",
        "sampling.max_tokens is not stated: where an output ends is the provider's word.",
    ]


# Attack: claim that a stop string ended the output.


def test_a_stop_string_that_stands_in_the_text_explains_the_end() -> None:
    item = one(make_trace((3, 14, 15)), asked(stop=["op"]))  # "dop"
    assert (item.end, item.tokens) == (3, 3)


@pytest.mark.parametrize(
    ("ids", "stop", "decode"),
    [
        ((3, 14, 16), "op", spell),  # the text does not hold it
        ((14, 15, 3, 3, 3, 3, 3), "op", spell),  # it does, but long before
        ((3, 14, 15), "", spell),  # an empty string is no stop
        ((3, 14, 15), "op", mute),  # no tokenizer: the claim cannot be checked, so it counts for nothing
    ],
)
def test_a_stop_string_explains_nothing_otherwise(ids: tuple[int, ...], stop: str, decode: Decode) -> None:
    trace = replace(make_trace(ids, stop=[stop], finish_reason="stop"), stop_reason=stop)
    assert one(trace, asked(stop=[stop], max_tokens=9), decode).tokens == 9


def test_a_stop_string_that_was_not_asked_for_explains_nothing() -> None:
    trace = replace(make_trace((3, 14, 15), stop=["op"], finish_reason="stop"), stop_reason="op")
    assert one(trace, asked()).tokens == 4


def test_a_stop_string_may_end_inside_the_last_token() -> None:
    words = {3: "d", 20: "stop here"}

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[int(i)] for i in ids)

    assert one(make_trace((3, 20)), asked(stop=["stop"]), decode).tokens == 2
    assert one(make_trace((3, 20, 3)), asked(stop=["stop"]), decode).tokens == 4


def test_what_is_cut_is_the_only_thing_cut() -> None:
    """Over random outputs and limits: what is owed covers what is scored and what was returned."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        output = rng.integers(0, 6, size=rng.integers(1, 9))
        limit = int(rng.integers(1, 9))
        item = one(make_trace(output), asked(max_tokens=limit))
        ends = np.flatnonzero(output[:limit] == EOS)
        assert item.end == (ends[0] + 1 if len(ends) else min(limit, len(output)))
        assert item.tokens == (len(output) if len(ends) else max(limit, len(output)))
        assert item.tokens >= max(item.end, len(output))
