"""`veridifr collect` on the command line: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_endpoint import Body, FakeServer, Request, Response, as_json
from runs import write_prompts

from veridifr.cli import main
from veridifr.traces import read_traces


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "p.jsonl", 4)


def run(url: str, *more: str) -> int:
    return main(["collect", "--base-url", url, "--model", "m", "--prompts", "p.jsonl", "--out", "t.jsonl", *more])


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    engine = {"name": "vllm", "version": "0.24.0", "runner": "v1"}
    with FakeServer() as server:
        status = run(server.url, "--max-tokens", "5", "--temperature", "0.7", "--top-p", "0.9", "--top-k", "40",
            "--engine", json.dumps(engine), "--audit-id", "night", "--price-prompt", "1", "--price-output", "2",
            "--currency", "EUR", "--sampling", '{"min_p": 0.1, "stop": ["x"]}', "--json", "came.json")  # fmt: skip
    assert status == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "t.jsonl: 4 sequences, 4 of them evidence; 32 tokens charged, 0.0001 EUR, 4 requests sent"
    assert out[-2].startswith("commitment to the seeds' secret: ")
    files = "t.jsonl --requests t.asked.jsonl --seed-secret-file t.secret"
    assert out[-1] == f"next: veridifr audit {files} --reference R --calibration C"
    assert not any("no engine is on record" in line for line in out)
    came = json.loads(Path("came.json").read_text())
    assert out[-2].endswith(came["commitment"])
    assert (came["requests"], came["spent"], came["traces"]) == (4, {"prompt": 12, "output": 20}, "t.jsonl")
    (trace, *_) = read_traces("t.jsonl")
    sampling = trace.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.7, 0.9, 40, 0.1)
    assert (sampling.stop, sampling.max_tokens) == (("x",), 5)
    assert (trace.engine.name, trace.engine.version, trace.id) == ("vllm", "0.24.0", "night/0000")


def test_some_got_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    def respond(request: Request, body: Body) -> Response | Body:
        return as_json({"error": "busy"}, 502) if request.body["prompt"][2] == 8 else body

    with FakeServer(respond) as server:
        assert run(server.url, "--attempts", "3", "--first-wait", "0", "--max-tokens", "2") == 3
    out = capsys.readouterr().out
    assert "4 sequences, 3 of them evidence; 30 tokens charged, 6 requests sent" in out
    assert "1 no evidence: no answer: status 502: busy" in out
    assert "1 requests may have been paid for more than once, 0 of them because a collector was killed" in out
    assert "1 got no answer" in out
    assert "no engine is on record" in out


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as server:
        assert run(server.url, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_default_prompts_as_chat() -> None:
    with FakeServer() as server:
        assert main(["collect", "--base-url", server.url, "--model", "m", "--out", "t.jsonl", "--max-tokens", "1",
            "--chat", "--quiet", "--concurrency", "32"]) == 0  # fmt: skip
    assert len(server.requests) > 300
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert {request.body["messages"][0]["role"] for request in server.requests} == {"user"}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--sampling", '{"temperature": 1}', "--temperature", "1"], "--sampling: temperature is given twice"),
        (["--sampling", "[]"], "--sampling: expected a JSON object"),
        (["--sampling", "{"], "--sampling: JSON"),
        (["--sampling", '{"typical_p": 1}'], "sampling.typical_p"),
        (["--sampling", '{"seed": 1}'], "sampling.seed: is issued"),
        (["--engine", '{"version": "1"}'], "engine.name: missing"),
        (["--budget-money", "1"], "budget.money: needs the prices"),
        (["--api-key-env", "NO_SUCH_NAME"], "environment variable 'NO_SUCH_NAME': not set"),
        (["--api-key-file", "none"], "none: cannot be read"),
        (["--tokenizer", "none"], "none: is no directory"),
        (["--seed-secret-file", "none"], "none: cannot be read"),
        (["--json", "none/came.json"], "none/came.json: cannot be written"),
        (["--prompts", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--out", "t.txt"], "t.txt: cannot be written"),
        (["--out", "none/t.jsonl"], "none/t.jsonl: cannot be written"),
        (["--base-url", "nowhere"], "base URL"),
    ],
)
def test_refusals_are_one_line(more: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as server:
        assert run(server.url, *more) == 2
        assert not server.requests
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_a_changed_command_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as server:
        assert run(server.url, "--quiet") == 0
        assert run(server.url, "--quiet", "--top-p", "0.5") == 2
    assert "begun with another set of prompts or settings" in capsys.readouterr().err
