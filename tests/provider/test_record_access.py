"""Who may read a server's records, and when a server keeps any: keys, refusals at the start, the endpoint plugin."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from fake_server import RECORD, FakeClient, Server, made, run, started

from veridifr.errors import UnsupportedError
from veridifr.vllm.endpoint_plugin import EndpointPlugin
from veridifr.vllm.middleware import Middleware, authorized, keys_of
from veridifr.vllm.service import start

PATHS = (
    ("GET", "/veridifr/v1/records/RECORD"),
    ("GET", "/veridifr/v1/records/RECORD/commitment"),
    ("DELETE", "/veridifr/v1/records/RECORD"),
    ("GET", "/veridifr/v1/records/nobody"),
    ("GET", "/veridifr/v1/engine"),
    ("GET", "/veridifr/other"),
)


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_every_path_wants_the_key(method: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch, key="right")
        record = await made(server, {"prompts": [[4]]})
        where = path.replace("RECORD", record)
        for given in ({}, {"key": "wrong"}, {"authorization": "right"}, {"authorization": "Basic right"}, {"key": ""}):
            status, headers, body = await server.ask(method, where, **given)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert json.loads(body) == {"error": "Unauthorized"}
        assert (await server.ask(method, where, key="right"))[0] != 401

    run(work())


def test_the_key_is_the_servers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "of-the-environment")
    assert keys_of(SimpleNamespace(api_key=["a", "b"])) == ["a", "b"]
    assert keys_of(SimpleNamespace(api_key=None)) == ["of-the-environment"]
    monkeypatch.delenv("VLLM_API_KEY")
    assert keys_of(SimpleNamespace(api_key=None)) == []
    bearer = [(b"Authorization", b"bearer b")]
    assert authorized(bearer, ["a", "b"])
    assert not authorized([*bearer, (b"authorization", b"Bearer b")], ["a", "b"])  # two headers
    assert not authorized([(b"authorization", b"Bearer \xff")], ["a"])


def test_what_the_engine_is_refused_for_keeps_the_server_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        client = FakeClient()
        client.refused = "speculative_config: speculative decoding draws tokens in another way"
        (message,) = await Server(client).start()
        assert message["type"] == "lifespan.startup.failed"
        assert message["message"].startswith("veridifr: speculative_config: speculative decoding")

    monkeypatch.delenv("VERIDIFR_CAPTURE", raising=False)
    run(work())


def test_an_engine_without_the_extension_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        client = FakeClient(extension="another.Extension")
        server = Server(client)
        assert await server.start() == [{"type": "lifespan.startup.complete"}]
        assert "generate" not in vars(client)
        assert client.calls == []
        status, headers, _ = await server.ask("POST", "/v1/completions", {"prompts": [[4]]})
        assert (status, RECORD in headers) == (200, False)

    run(work())


def test_the_endpoint_plugin_starts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERIDIFR_CAPTURE", raising=False)

    async def work() -> None:
        added: list[Any] = []
        plugin, client = EndpointPlugin(), FakeClient()
        assert (plugin.name, plugin.required_tasks) == ("veridifr", ("generate",))
        plugin.attach_router(SimpleNamespace(add_middleware=added.append))
        assert added == [Middleware]
        server = Server(client)
        await plugin.init_state(client, server.state, server.state.args)
        assert await server.start() == [{"type": "lifespan.startup.complete"}]
        assert [method for method, _ in client.calls] == ["veridifr_enable"]
        await plugin.init_state(None, SimpleNamespace(), None)  # a server without an engine

    run(work())


def test_several_front_ends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERIDIFR_CAPTURE", raising=False)
    with pytest.raises(UnsupportedError, match="api_server_count: expected 1"):
        run(start(FakeClient(), SimpleNamespace(), SimpleNamespace(api_server_count=4)))
