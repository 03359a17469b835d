"""Collecting from a server that behaves: each request once, as asked, resumable, and refused where it has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_endpoint import Body, FakeServer, Request, Response, as_json, streamed, tokens_for
from runs import prompts, run

import veridifr
from veridifr import Prompt, Sampling
from veridifr.collecting.ledger import Ledger
from veridifr.errors import InputError, TraceError, UnsupportedError
from veridifr.requests import plan
from veridifr.traces import read_requests, read_traces


def planned_reasons(out: Path) -> list[str | None]:
    traces = list(read_traces(out))
    return [item.reason for item in plan(traces, None, traces[0].engine, (), lambda ids: None)[0]]


def test_each_request_is_in_the_traces_once_as_it_was_asked(tmp_path: Path) -> None:
    with FakeServer() as server:
        found = run(tmp_path / "t.jsonl", server.url, prompts(30), sampling=Sampling(top_k=40, max_tokens=8))
        assert set(server.served.values()) == {1}
    traces = list(read_traces(tmp_path / "t.jsonl"))
    assert [t.prompt_token_ids.tolist() for t in traces] == [[5, 6, 7 + n] for n in range(30)]
    assert {t.sampling.seed for t in traces} == set(server.served)
    bodies = {request.body["seed"]: request.body for request in server.requests}
    for trace in traces:
        body = bodies[trace.sampling.seed]
        assert trace.output_token_ids.tolist() == tokens_for(body)
        assert body["prompt"] == trace.prompt_token_ids.tolist()
        assert (trace.sampling.top_k, trace.sampling.max_tokens, trace.engine.name) == (40, 8, "unknown")
        assert trace.extra["token_ids_from"] == "server"
    assert (found.requests, found.answered, found.attempts, found.paid_twice) == (30, 30, 30, 0)
    assert found.spent == (90, 240)
    assert planned_reasons(tmp_path / "t.jsonl") == [None] * 30


def test_what_is_sent(tmp_path: Path) -> None:
    """The seed goes out, what it was issued from does not; settings that are off are said to be off."""
    with FakeServer() as server:
        run(tmp_path / "t.jsonl", server.url, prompts(1))
    (request,) = server.requests
    assert b"issued_seed" not in request.raw
    assert "authorization" not in request.headers
    assert {k: v for k, v in request.body.items() if k != "seed"} == {
        "model": "m", "prompt": [5, 6, 7], "temperature": 1.0, "max_tokens": 8, "top_p": 1.0, "top_k": -1,
        "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "return_token_ids": True,
    }  # fmt: skip


def test_the_openai_dialect_sends_only_what_that_api_has(tmp_path: Path) -> None:
    with FakeServer() as server:
        asked = [Prompt(messages=({"role": "user", "content": "hi"},))]
        run(tmp_path / "t.jsonl", server.url, asked, dialect="openai", logprobs=True)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert set(request.body) == {"model", "messages", "temperature", "max_tokens", "top_p", "presence_penalty",
        "frequency_penalty", "seed", "logprobs", "top_logprobs"}  # fmt: skip


@pytest.mark.parametrize(
    ("sampling", "dialect", "name"),
    [
        (Sampling(seed=1, max_tokens=4), "vllm", "sampling.seed"),
        (Sampling(), "vllm", "sampling.max_tokens"),
        (Sampling(max_tokens=4, extra={"typical_p": 0.9}), "vllm", "sampling.typical_p"),
        (Sampling(max_tokens=4, bad_words_token_ids=((1,),)), "vllm", "sampling.bad_words_token_ids"),
        (Sampling(max_tokens=4, top_k=3), "openai", "sampling.top_k"),
        (Sampling(max_tokens=4, ignore_eos=True), "openai", "sampling.ignore_eos"),
    ],
)
def test_a_setting_that_cannot_be_asked_for_is_refused_by_name(
    tmp_path: Path, sampling: Sampling, dialect: str, name: str
) -> None:
    with pytest.raises((UnsupportedError, TraceError), match=name):
        run(tmp_path / "t.jsonl", "http://127.0.0.1:1/v1", prompts(1), sampling=sampling, dialect=dialect)
    assert not (tmp_path / "t.jsonl").exists()


def test_no_more_at_a_time_than_allowed(tmp_path: Path) -> None:
    with FakeServer(seconds=0.02) as server:
        run(tmp_path / "t.jsonl", server.url, prompts(40), limits=veridifr.Limits(concurrency=5))
    assert server.most_at_once == 5


def test_a_second_run_sends_nothing_and_writes_the_same(tmp_path: Path) -> None:
    with FakeServer() as server:
        first = run(tmp_path / "t.jsonl", server.url, prompts(5))
        written = (tmp_path / "t.jsonl").read_bytes()
        (tmp_path / "t.jsonl").unlink()
        again = run(tmp_path / "t.jsonl", server.url, prompts(5))
        assert len(server.requests) == 5
    assert (tmp_path / "t.jsonl").read_bytes() == written
    assert again == first


def test_what_got_no_answer_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    down = True

    def respond(request: Request, body: Body) -> Response | Body:
        return as_json({"error": "overloaded"}, 503) if down and body["usage"]["prompt_tokens"] else body

    with FakeServer(respond) as server:
        once = veridifr.Limits(attempts=1)
        found = run(tmp_path / "t.jsonl", server.url, prompts(3), limits=once)
        assert (found.answered, found.unanswered, found.spent) == (0, 3, (0, 0))
        assert found.unscored == {"no answer: status 503: overloaded": 3}
        down = False
        found = run(tmp_path / "t.jsonl", server.url, prompts(3), limits=once)
    assert (found.answered, found.unanswered, found.attempts) == (3, 0, 6)
    assert set(server.served.values()) == {1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"asked": prompts(4)}, "number of prompts"),
        ({"asked": [Prompt(prompt_token_ids=(9,)), *prompts(3)[1:]]}, "set of prompts or settings"),
        ({"tokens": 9}, "set of prompts or settings"),
        ({"sampling": Sampling(temperature=0.5, max_tokens=8)}, "set of prompts or settings"),
        ({"model": "n"}, "model"),
        ({"audit_id": "other"}, "audit id"),
    ],
)
def test_a_changed_command_is_refused_by_name(tmp_path: Path, change: dict[str, object], named: str) -> None:
    with FakeServer() as server:
        run(tmp_path / "t.jsonl", server.url, prompts(3))
        before = (tmp_path / "t.jsonl").read_bytes()
        with pytest.raises(InputError, match=f"begun with another {named}"):
            run(tmp_path / "t.jsonl", server.url, **{"asked": prompts(3), **change})
        assert len(server.requests) == 3
    assert (tmp_path / "t.jsonl").read_bytes() == before


def test_what_does_not_decide_the_requests_may_change(tmp_path: Path) -> None:
    with FakeServer() as server:
        run(tmp_path / "t.jsonl", server.url, prompts(2), budget=veridifr.Budget(tokens=11))
        found = run(tmp_path / "t.jsonl", server.url, prompts(2), budget=veridifr.Budget(tokens=99), timeout=9.0)
    assert found.answered == 2


def test_a_second_collector_is_kept_out(tmp_path: Path) -> None:
    held = Ledger(tmp_path / "t.ledger")
    with FakeServer() as server, pytest.raises(InputError, match="another collector"):
        run(tmp_path / "t.jsonl", server.url, prompts(1))
    held.close()
    assert not server.requests


def test_a_secret_of_another_collection_is_not_taken(tmp_path: Path) -> None:
    veridifr.write_secret(tmp_path / "t.secret", veridifr.generate_secret())
    with FakeServer() as server:
        with pytest.raises(InputError, match="a secret serves one audit"):
            run(tmp_path / "t.jsonl", server.url, prompts(1))
        (tmp_path / "t.ledger").unlink()
        found = run(tmp_path / "t.jsonl", server.url, prompts(1), secret_file=tmp_path / "t.secret")
    assert found.answered == 1


def test_a_kill_before_the_first_line_does_no_harm(tmp_path: Path) -> None:
    """The ledger comes before the secret: where both are there, the secret is this collection's."""
    (tmp_path / "t.ledger").touch()
    veridifr.write_secret(tmp_path / "t.secret", veridifr.generate_secret())
    with FakeServer() as server:
        assert run(tmp_path / "t.jsonl", server.url, prompts(1)).answered == 1


@pytest.mark.parametrize("text", [True, False])
def test_seeds_are_as_issued_and_requests_are_on_file(tmp_path: Path, text: bool) -> None:
    asked = [Prompt(prompt="Hello é"), Prompt(messages=({"role": "user", "content": "x"},))] if text else prompts(2)
    with FakeServer() as server:
        found = run(tmp_path / "t.jsonl", server.url, asked)
    assert (found.secret.stat().st_mode & 0o777, found.secret.parent) == (0o600, tmp_path)
    secret = veridifr.read_secret(found.secret)
    requests = read_requests(found.asked)
    for sequences in (requests, list(read_traces(found.traces))):
        check = veridifr.check_seeds(sequences, secret)
        assert check.holds, check.wrong
        assert check.commitment == found.commitment
    changed = [replace(r, extra={**r.extra, "asked": {"prompt": "Hello e"}}) for r in requests]
    assert (not veridifr.check_seeds(changed, secret).holds) == text  # seeds/2 binds the text that was sent
    traces = list(read_traces(found.traces))
    assert all(item.reason is None for item in plan(traces, requests, traces[0].engine, (), lambda ids: None)[0])


def test_a_prompt_that_nobody_tokenized_is_on_record_without_ids(tmp_path: Path) -> None:
    def respond(request: Request, body: Body) -> Body:
        body["choices"][0].pop("prompt_token_ids")
        return body

    with FakeServer(respond) as server:
        found = run(tmp_path / "t.jsonl", server.url, [Prompt(prompt="Hello")])
    (trace,) = read_traces(found.traces)
    (request,) = read_requests(found.asked)
    assert (len(trace.prompt_token_ids), len(trace.output_token_ids), len(request.prompt_token_ids)) == (0, 8, 0)
    (reason,) = planned_reasons(found.traces)
    assert reason is not None
    assert reason.startswith("prompt_token_ids: not known")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": "another"}, "model: the answer names 'another', and 'm' was asked for"),
        ({"finish_reason": "content_filter"}, "finish_reason: content_filter"),
        ({"prompt_token_ids": [1, 2]}, "prompt_token_ids: the server's are not those that were asked for"),
        ({"token_ids": None}, "output_token_ids: the server returned none"),
        ({"model": "alias"}, None),
        ({"model": None}, None),
        ({"finish_reason": "some new word"}, None),
    ],
)
def test_what_is_no_evidence_says_why(tmp_path: Path, changed: Body, reason: str | None) -> None:
    def respond(request: Request, body: Body) -> Body:
        body["choices"][0].update({k: v for k, v in changed.items() if k != "model"})
        return {**body, "model": changed.get("model", "m")}

    with FakeServer(respond) as server:
        found = run(tmp_path / "t.jsonl", server.url, prompts(1), also_named=("alias",))
    assert found.answered == 1
    (planned,) = planned_reasons(found.traces)
    assert (planned or "").startswith(reason or "") and (planned is None) == (reason is None)
    assert sum(found.unscored.values()) == (reason is not None)


@pytest.mark.parametrize("status", [302, 401, 404])
def test_a_refusal_that_meets_all_ends_the_run(tmp_path: Path, status: int) -> None:
    def respond(request: Request, body: Body) -> Response:
        return as_json({"error": {"message": "no"}}, status, Location="http://127.0.0.1:9/v1")

    with FakeServer(respond) as server, pytest.raises(InputError, match=f"status {status}"):
        run(tmp_path / "t.jsonl", server.url, prompts(50))
    assert len(server.requests) <= 8
    assert not (tmp_path / "t.jsonl").exists()


def test_a_request_that_is_refused_alone_is_not_asked_again(tmp_path: Path) -> None:
    def respond(request: Request, body: Body) -> Response | Body:
        return as_json({"message": "too long"}, 400) if request.body["prompt"] == [5, 6, 7] else body

    with FakeServer(respond) as server:
        run(tmp_path / "t.jsonl", server.url, prompts(4))
        found = run(tmp_path / "t.jsonl", server.url, prompts(4))
        assert len(server.requests) == 4
    assert found.unscored == {"refused: status 400: too long": 1}


def test_settings_that_every_request_is_refused_for_end_the_run(tmp_path: Path) -> None:
    with (
        FakeServer(lambda *_: as_json({"message": "unknown field"}, 400)) as server,
        pytest.raises(InputError, match="unknown field"),
    ):
        run(tmp_path / "t.jsonl", server.url, prompts(100))
    assert len(server.requests) <= 16


def test_streamed_answers_are_the_same(tmp_path: Path) -> None:
    """The traces are those of an answer in one piece."""
    with FakeServer(streamed) as server:
        secret = tmp_path / "secret"
        veridifr.write_secret(secret, veridifr.generate_secret())
        fields = {"secret_file": secret, "audit_id": "a"}
        run(tmp_path / "whole.jsonl", server.url, prompts(3), **fields)
        run(tmp_path / "parts.jsonl", server.url, prompts(3), stream=True, **fields)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_settings_are_refused_before_anything_is_spent(tmp_path: Path) -> None:
    for fields, named in (
        ({"prompts": []}, "prompts: got none"),
        ({"send": "bytes"}, "send"),
        ({"dialect": "other"}, "dialect"),
        ({"timeout": 0.0}, "timeout"),
    ):
        with FakeServer() as server, pytest.raises(InputError, match=named):
            run(tmp_path / "t.jsonl", server.url, **{"asked": prompts(1), **fields})
        assert not server.requests
    with pytest.raises(InputError, match="does not end in"):
        run(tmp_path / "t.csv", "http://127.0.0.1:1/v1", prompts(1))
