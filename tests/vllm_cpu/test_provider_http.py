"""A real vLLM server with capture on and the real OpenAI client: records, keys, streams, several clients at once."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from veridifr import ReferenceSettings
from veridifr.contracts.registry import infer
from veridifr.fingerprints import FingerprintSpec, fingerprint_of
from veridifr.fingerprints.merkle import Opening, check_opening
from veridifr.fingerprints.spec import to_dict
from veridifr.references.hf import HfReference
from veridifr.scores import Hypothesis
from veridifr.scoring import score
from veridifr.trace import Trace
from veridifr.traces.codec import trace_from_dict

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

KEY, RECORD = "the-right-key", "x-veridifr-record"
SPEC = FingerprintSpec(seed=21, hidden_size=256, k=8, encoding="float32")
STARTS_WITHIN = 240
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
FLAGS = (
    *("--host", "127.0.0.1", "--api-key", KEY, "--served-model-name", "tb7m", "--dtype", "bfloat16"),
    *("--enforce-eager", "--max-model-len", "256", "--max-num-batched-tokens", "8192", "--chat-template", TEMPLATE),
)


@dataclass(frozen=True)
class Served:
    """The server's address, and its records' routes with and without the key."""

    url: str

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def ask(self, method: str, path: str, key: str | None = KEY) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.request(method, f"{self.url}/veridifr/v1/{path}", headers=headers, timeout=60)

    def traces(self, record: str) -> list[Trace]:
        found = self.ask("GET", f"records/{record}")
        assert found.status_code == 200, found.text
        return [trace_from_dict(sequence) for sequence in found.json()["sequences"]]


@pytest.fixture(scope="module")
def served(tb7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    plugins = [e.name for e in entry_points(group="vllm.endpoint_plugins")]
    assert "veridifr" in plugins, "the installed veridifr is an older one: install it again"
    folder = tmp_path_factory.mktemp("server")
    (folder / "spec.json").write_text(json.dumps(to_dict(SPEC)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k not in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_PLUGINS")}
    line = [sys.executable, "-m", "veridifr.vllm", "serve", str(tb7m), "--fingerprints", str(folder / "spec.json")]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*line, "--port", str(port), *FLAGS], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    found = Served(f"http://127.0.0.1:{port}")
    try:
        _wait(process, found.url, folder / "log.txt")
        yield found
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError(f"no server within {STARTS_WITHIN} s: {log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> HfReference:
    return HfReference.load(str(tb7m), ReferenceSettings(device="cpu"))


def completion(served: Served, **fields: Any) -> tuple[Any, str]:
    """An answer of the completions endpoint and its record's id."""
    asked = {"model": "tb7m", "prompt": "def mean(values):\n    return", "max_tokens": 12, "temperature": 1.0, **fields}
    with served.client() as client:
        raw = client.completions.with_raw_response.create(**asked, extra_body={"return_token_ids": True})
        return raw.parse(), raw.headers[RECORD]


def test_a_record_says_what_was_executed(served: Served, reference: HfReference) -> None:
    answer, record = completion(served, seed=5, top_p=0.9, extra_headers={"X-Request-Id": "mine"})
    (trace,) = served.traces(record)
    (choice,) = answer.choices
    assert trace.id == f"{answer.id}-0/0"
    assert answer.id == "cmpl-mine"
    assert trace.model == "tb7m"
    assert trace.output_token_ids.tolist() == choice.token_ids
    assert trace.prompt_token_ids.tolist() == choice.prompt_token_ids
    assert (trace.sampling.seed, trace.sampling.top_p, trace.sampling.max_tokens) == (5, 0.9, 12)
    assert trace.finish_reason == choice.finish_reason
    assert trace.engine.sampler == "vllm-cpu-gumbel-splitmix"
    (evidence,) = reference.evidence([trace])
    contract = infer(trace.engine, trace.sampling, reference.vocab_size).contract
    claimed = Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed)
    assert score(trace, evidence, claimed, eos_ids=reference.eos_ids).match_T.mean() > 0.8


def test_its_fingerprint_is_the_references(served: Served, reference: HfReference) -> None:
    _, record = completion(served, seed=6, max_tokens=20, extra_headers={"X-Request-Id": "again"})
    (trace,) = served.traces(record)
    (evidence,) = reference.measuring(SPEC).evidence([trace])
    found = fingerprint_of(trace, SPEC)
    assert found is not None
    assert evidence.projections_AFK is not None
    values = np.frombuffer(found.payloads[0], "<f4").reshape(-1, SPEC.k)
    exact = evidence.projections_AFK[0]
    assert np.abs(values - exact).max() < 0.1 * np.abs(exact).max()
    said = served.ask("GET", f"records/{record}").json()["sequences"][0]["commitment"]
    opening = Opening(tap=0, payload=found.payloads[0], salt=bytes.fromhex(said["salt"]), siblings=())
    check_opening(opening, bytes.fromhex(said["root"]), SPEC, len(trace.output_token_ids), trace.digest())
    roots = served.ask("GET", f"records/{record}/commitment").json()["roots"]
    assert roots == [said["root"]]


def test_chat_and_children(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tb7m", "messages": [{"role": "user", "content": "import os\n"}]}
    with served.client() as client:
        raw = client.chat.completions.with_raw_response.create(
            **asked, seed=3, n=2, max_tokens=9, temperature=1.0, extra_body={"return_token_ids": True}
        )
    traces = served.traces(raw.headers[RECORD])
    choices = raw.parse().choices
    assert [t.output_token_ids.tolist() for t in traces] == [c.token_ids for c in choices]  # type: ignore[attr-defined]
    assert [(t.engine.child, t.sampling.seed) for t in traces] == [(0, 3), (1, 3)]


def test_several_prompts(served: Served) -> None:
    answer, record = completion(served, prompt=["import os", "class A:", "for x in"], seed=8, max_tokens=5)
    traces = served.traces(record)
    assert [t.output_token_ids.tolist() for t in traces] == [choice.token_ids for choice in answer.choices]


def test_a_stream_has_a_record_too(served: Served) -> None:
    with served.client() as client:
        raw = client.completions.with_raw_response.create(
            model="tb7m", prompt="import os", max_tokens=15, temperature=1.0, seed=4, stream=True
        )
        with raw.parse() as stream:
            pieces = [piece.choices[0].text for piece in stream if piece.choices]
    (trace,) = served.traces(raw.headers[RECORD])
    assert len(pieces) > 1
    whole, _ = completion(served, prompt="import os", max_tokens=15, seed=4)
    assert "".join(pieces) == whole.choices[0].text
    assert trace.output_token_ids.tolist() == whole.choices[0].token_ids


def test_the_plain_client_sees_no_difference(served: Served) -> None:
    with served.client() as client:
        answer = client.completions.create(model="tb7m", prompt="import", max_tokens=4, temperature=0.0)
        assert answer.choices[0].finish_reason in ("length", "stop")
        assert client.models.list().data[0].id == "tb7m"


def test_without_a_seed_a_record_says_that_there_is_no_trace(served: Served) -> None:
    _, record = completion(served)
    body = served.ask("GET", f"records/{record}").json()
    assert "no seed was given" in body["sequences"][0]["reason"]
    assert "output_token_ids" not in body["sequences"][0]


def test_a_client_that_leaves(served: Served) -> None:
    asked: dict[str, Any] = {
        "model": "tb7m",
        "prompt": "import os",
        "max_tokens": 240,
        "extra_body": {"ignore_eos": True},
    }
    with (
        served.client() as client,
        client.completions.with_streaming_response.create(**asked, temperature=1.0, seed=4, stream=True) as response,
    ):
        record = response.headers[RECORD]
        next(response.iter_lines())
    deadline = time.monotonic() + 60
    while (answer := served.ask("GET", f"records/{record}")).status_code == 409 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (answer.status_code, answer.json()) == (410, {"error": "the request was aborted"})
    completion(served, seed=1)  # the server keeps serving


@pytest.mark.parametrize("key", [None, "wrong", KEY[:-1], KEY + "x"])
def test_without_the_key_nothing_is_told(served: Served, key: str | None) -> None:
    _, record = completion(served, seed=1, max_tokens=2)
    for method, path in (
        ("GET", f"records/{record}"),
        ("GET", f"records/{record}/commitment"),
        ("DELETE", f"records/{record}"),
        ("GET", "records/unknown"),
        ("GET", "engine"),
    ):
        answer = served.ask(method, path, key)
        assert answer.status_code == 401, (path, answer.text)
    assert served.ask("GET", f"records/{record}").status_code == 200


def test_unknown_and_deleted(served: Served) -> None:
    assert served.ask("GET", "records/unknown").status_code == 404
    _, record = completion(served, seed=1, max_tokens=2)
    assert re.fullmatch(r"[\w-]{43}", record)
    assert served.ask("DELETE", f"records/{record}").json() == {"deleted": True}
    assert served.ask("GET", f"records/{record}").status_code == 410
    assert served.ask("POST", f"records/{record}").status_code == 405


def test_a_refused_request_gives_no_record(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        completion(served, max_tokens=10**6)
    assert RECORD not in raised.value.response.headers


def test_clients_at_once_with_one_request_id(served: Served) -> None:
    """Eight clients that all chose the same id: every record holds its own requester's tokens."""

    def one(number: int) -> tuple[list[int], list[int], list[Trace]]:
        answer, record = completion(
            served, prompt=f"x{number} = {number}\n", seed=number, max_tokens=6 + number,
            extra_headers={"X-Request-Id": "same"},
        )  # fmt: skip
        (choice,) = answer.choices
        return choice.prompt_token_ids, choice.token_ids, served.traces(record)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8)))
    for number, (prompt, tokens, (trace,)) in enumerate(found):
        assert trace.prompt_token_ids.tolist() == prompt
        assert trace.output_token_ids.tolist() == tokens
        assert trace.sampling.seed == number
    assert len({tuple(prompt) for prompt, _, _ in found}) == 8


def test_the_engine_as_measured(served: Served) -> None:
    body = served.ask("GET", "engine").json()
    assert body["spec"] == to_dict(SPEC)
    assert body["engine"]["sampler"] == "vllm-cpu-gumbel-splitmix"
    assert (body["engine"]["runner"], body["engine"]["device"]) == ("v1", "cpu")
