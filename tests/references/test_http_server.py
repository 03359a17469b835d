"""The transport: what is tried again, what is bounded, and where the key may not appear."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import Api, serve

from makers import SELF_SIGNED
from veridifr.errors import ReferenceError
from veridifr.references import http_server
from veridifr.references.http_server import KEY_VARIABLE, Server, read_key

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_PAUSES", (0.0, 0.0, 0.0))


def answers(*given: tuple[int, Any]) -> Callable[[str, dict[str, Any]], tuple[int, Any]]:
    """Each answer once, the last one for ever."""
    left: Iterator[tuple[int, Any]] = iter(given)
    last = given[-1]
    return lambda path, body: next(left, last)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with serve(Api(answers((status, {}), (status, {}), (200, {"a": 1})))) as api:
        assert Server(api.url, None).post("completions", {"prompt": [1]}) == {"a": 1}
        assert api.asked == [("completions", {"prompt": [1]})] * 3


def test_it_gives_up() -> None:
    with serve(Api(answers((503, {"error": "busy"})))) as api:
        with pytest.raises(ReferenceError, match=r"/v1/models: status 503: \{\"error\": \"busy\"\}"):
            Server(api.url, None).get("models")
        assert len(api.asked) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 307])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    with serve(Api(answers((status, {"error": "no"})), headers={"Location": "/elsewhere"})) as api:
        with pytest.raises(ReferenceError, match=f"status {status}") as caught:
            Server(api.url, None).get("models")
        assert len(api.asked) == 1
    assert ("usually ends in /v1" in str(caught.value)) == (status == 404)


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_PAUSES", (3600.0,))
    with serve(Api(answers((200, {}))), SELF_SIGNED) as api:
        with pytest.raises(ReferenceError, match="certificate does not hold"):
            Server(api.url, KEY).get("models")
        assert api.asked == []


def test_a_server_that_is_not_there() -> None:
    with serve(Api(answers((200, {})))) as api:
        pass
    with pytest.raises(ReferenceError, match="no answer: "):
        Server(api.url, None).get("models")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON"),
        (b'{"a": ', "JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b"[" * 100, "nested deeper"),
        (b'"\xff"', "not UTF-8"),
        (b"[]", "got list, expected an object"),
        (b"x" * (64 * 1024 * 1024 + 1), "more than 67108864 bytes"),
    ],
)
def test_bodies_that_are_refused(body: bytes, message: str) -> None:
    with serve(Api(answers((200, body)))) as api, pytest.raises(ReferenceError, match=message):
        Server(api.url, None).get("models")


def test_a_body_that_breaks_off_is_asked_for_again() -> None:
    api = Api(answers((200, b'{"a": 1')), headers={"Content-Length": "1000", "Connection": "close"})
    with serve(api), pytest.raises(ReferenceError, match="no answer: "):
        Server(api.url, None).get("models")
    assert len(api.asked) == 4


def test_a_body_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_WHOLE", -1.0)
    with serve(Api(answers((200, {})))) as api, pytest.raises(ReferenceError, match="took longer than"):
        Server(api.url, None).get("models")


def test_compressed_bodies_are_refused() -> None:
    api = Api(answers((200, {})), headers={"Content-Encoding": "gzip"})
    with serve(api), pytest.raises(ReferenceError, match="compressed"):
        Server(api.url, None).get("models")


@pytest.mark.parametrize(
    "bad", ["http://", "https:///v1", "http://[::1/v1", "http://a b/v1", "http://é/v1", "http://h:x/v1"]
)
def test_urls_that_are_none(bad: str) -> None:
    with pytest.raises(ReferenceError, match="not a URL"):
        Server(bad, None)


@pytest.mark.parametrize(
    "bad", ["http://me:pw@host/v1", "http://me@host/v1", "http://host/v1?key=pw", "http://host/v1#pw"]
)
def test_secrets_in_a_url_are_refused_without_being_shown(bad: str) -> None:
    with pytest.raises(ReferenceError, match="would end up in reports") as caught:
        Server(bad, None)
    assert "pw" not in str(caught.value) and "me@" not in str(caught.value)


def test_a_key_is_not_sent_unencrypted_to_others() -> None:
    with pytest.raises(ReferenceError, match="use https"):
        Server("http://example.org/v1", KEY)
    Server("https://example.org/v1", KEY)
    Server("http://localhost:8000/v1", KEY)


def test_the_key_is_sent_and_never_shown() -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return 401, {"error": f"wrong key \x1b[31m {KEY}"}

    with serve(Api(answer)) as api:
        with pytest.raises(ReferenceError, match=r"wrong key .*\[key\]") as caught:
            Server(api.url, KEY).get("models")
        assert api.authorizations == [f"Bearer {KEY}"]
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown and "\x1b" not in shown


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_key(None) == KEY
    (tmp_path / "key").write_text("other-key\n")
    assert read_key(tmp_path / "key") == "other-key"


@pytest.mark.parametrize("content", ["", "\n", "two words", "two\nlines", "kéy", "k" * 8193])
def test_keys_that_are_none_are_refused_without_being_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content, encoding="utf-8")
    with pytest.raises(ReferenceError, match="reference key: ") as caught:
        read_key(tmp_path / "file")
    assert not content.strip() or content not in str(caught.value)


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReferenceError, match="cannot be read: No such file"):
        read_key(tmp_path / "none")
