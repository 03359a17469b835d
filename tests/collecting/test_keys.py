"""The key goes into one header and nowhere else: no file, no line of output, no message, whatever the server says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_endpoint import Body, FakeServer, Request, Response, as_json
from runs import prompts, run, start, write_prompts

from makers import SELF_SIGNED
from veridifr.cli import main
from veridifr.collecting import ApiKey, Endpoint
from veridifr.errors import InputError

KEY = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"
PIECES = [KEY[i : i + 8] for i in range(len(KEY) - 7)]


def echo_status(status: int) -> Callable[[Request, Body], Response]:
    def respond(request: Request, body: Body) -> Response:
        return as_json({"error": {"message": f"wrong: {request.headers['authorization']} and {KEY[:20]}..."}}, status)

    return respond


def echo_in(place: str) -> Callable[[Request, Body], Body]:
    def respond(request: Request, body: Body) -> Body:
        if place == "model":
            return {**body, "model": KEY}
        if place == "error":
            return {"error": {"message": f"no such key {KEY}", "param": KEY}}
        if place == "logprobs":
            body["choices"][0]["logprobs"] = {"tokens": [KEY[:10], KEY[10:]]}
        elif place == "extra":
            body[KEY] = KEY
        else:
            body["choices"][0][place] = f"x {KEY} y"
        return body

    return respond


def shown(folder: Path, *texts: str) -> list[str]:
    """Where a piece of the key is to be read."""
    files = {path.name: path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()}
    known = {**{text[:200]: text for text in texts}, **files}
    return [name for name, text in known.items() if any(piece in text for piece in PIECES)]


RESPONSES = {
    **{str(status): echo_status(status) for status in (302, 400, 401, 403, 404, 429, 500, 503)},
    **{place: echo_in(place) for place in ("model", "text", "finish_reason", "stop_reason")},
    **{place: echo_in(place) for place in ("logprobs", "extra", "error")},
    "none": lambda request, body: body,
}  # fmt: skip


@pytest.mark.parametrize(("name", "by"), [*((name, "environment") for name in RESPONSES), ("none", "file")])
def test_no_output_shows_the_key(
    name: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("THE_KEY", KEY)
    (tmp_path / "key").write_text(KEY + "\n")
    source = ["--api-key-env", "THE_KEY"] if by == "environment" else ["--api-key-file", str(tmp_path / "key")]
    with FakeServer(RESPONSES[name]) as server:
        status = main(["collect", "--base-url", server.url, "--model", "m", "--prompts",
            str(write_prompts(work / "p.jsonl", 2)), "--out", "t.jsonl", "--json", "came.json", "--attempts", "2",
            "--first-wait", "0", "--debug", *source])  # fmt: skip
        out, errors = capsys.readouterr()
        assert server.requests, errors
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
        assert status in (0, 2, 3), errors
        assert ("Traceback" in errors) == (status == 2)
    assert (work / "t.ledger").exists()
    assert shown(work, out, errors) == []


def test_the_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(f"x{KEY[5:20]}y")
    assert shown(tmp_path, f"..{KEY}", "clean") == [f"..{KEY}", "a"]


def test_an_answer_that_shows_the_key_is_paid_for_and_no_evidence(tmp_path: Path) -> None:
    with FakeServer(echo_in("text")) as server:
        found = run(tmp_path / "t.jsonl", server.url, prompts(2), key=ApiKey(KEY, "test"))
    assert found.unscored == {"refused: the answer shows the API key, so nothing of it was kept": 2}
    assert found.spent == (6, 16)
    assert len(server.requests) == 2


def test_a_certificate_that_nobody_vouches_for_gets_no_key(tmp_path: Path) -> None:
    with FakeServer(certificate=SELF_SIGNED) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with pytest.raises(InputError, match=r"the certificate of 127\.0\.0\.1:[0-9]+ does not hold"):
            run(tmp_path / "t.jsonl", server.url, prompts(3), key=ApiKey(KEY, "test"))
        assert not server.requests


@pytest.mark.parametrize("arguments", [["--api-key", KEY], [f"--api-key={KEY}"]])
def test_the_command_line_takes_no_key_and_does_not_repeat_it(tmp_path: Path, arguments: list[str]) -> None:
    process = start("--base-url", "https://localhost/v1", "--model", "m", "--out", tmp_path / "t.jsonl", *arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "never taken from the command line" in errors
    assert shown(tmp_path, out, errors) == []


def test_redirects_do_not_carry_the_key(tmp_path: Path) -> None:
    with FakeServer() as elsewhere:

        def respond(request: Request, body: Body) -> Response:
            return Response(307, b"", {"Location": f"{elsewhere.url}/completions"})

        with FakeServer(respond) as server, pytest.raises(InputError, match="redirects are not followed"):
            run(tmp_path / "t.jsonl", server.url, prompts(1), key=ApiKey(KEY, "test"))
        assert not elsewhere.requests


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://example.org/v1", "in the clear"),
        ("http://10.0.0.1/v1", "in the clear"),
        ("https://user:word@example.org/v1", "user name or password"),
        (f"https://example.org/{KEY}/v1", "holds the key"),
        ("https://example.org/v1?x=1", "query"),
        ("ftp://example.org/v1", "expected https"),
        ("example.org/v1", "expected https"),
        ("https:///v1", "expected https"),
        ("https://example.org:99999/v1", "is none"),
    ],
)
def test_a_url_that_would_give_the_key_away_is_refused(url: str, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        Endpoint(base_url=url, model="m", key=ApiKey(KEY, "test"))
    assert not any(piece in str(caught.value) for piece in PIECES)


def test_urls_that_are_fine() -> None:
    for url in ("https://example.org/v1/", "http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:8000/v1"):
        assert Endpoint(base_url=url, model="m", key=ApiKey(KEY, "test")).base_url == url.rstrip("/")
    assert Endpoint(base_url="http://10.0.0.1/v1", model="m").key is None


@pytest.mark.parametrize("text", ["", "short", "two words here", "line\nbreak-in-key", "non-ascii-ké", "x" * 5000])
def test_what_is_no_key_is_refused_unseen(text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text)
    for read in (lambda: ApiKey.from_file(tmp_path / "key"), lambda: ApiKey.from_environment("K", {"K": text})):
        with pytest.raises(InputError, match="expected a key of") as caught:
            read()
        assert not text or text not in str(caught.value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        ApiKey.from_file(tmp_path / "none")
    with pytest.raises(InputError, match="not set"):
        ApiKey.from_environment("NO_SUCH_VARIABLE", {})


def test_no_text_of_an_object_shows_the_key() -> None:
    endpoint = Endpoint(base_url="https://example.org/v1", model="m", key=ApiKey(KEY, "test"))
    assert not any(piece in repr(endpoint) + str(endpoint) for piece in PIECES)


def test_blotting_out() -> None:
    key = ApiKey(KEY, "test")
    assert key.blotted(f"a {KEY} b {KEY[3:12]} c") == "a [key] b [key] c"
    assert key.blotted("nothing here") == "nothing here"
    assert key.blotted(KEY + KEY) == "[key]"
    assert key.blotted(KEY[:7]) == KEY[:7]
    assert not key.occurs_in(KEY[:7])
    assert key.occurs_in(json.dumps({"x": KEY[9:17]}))
