"""Providers that deviate, as a customer meets them: real vLLM servers, some behind a proxy, and the `openai` client."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from fake_endpoint import Body, Relay
from safetensors.torch import load_file, save_file

from makers import CODE_NAMES, code_prompts
from veridifr import (
    Comparison,
    Endpoint,
    HonestTraces,
    Prompt,
    Reference,
    ReferenceSettings,
    SeedIssuer,
    Verdict,
    audit,
    calibrate,
    collect,
    compare,
    load_reference,
    read_traces,
)
from veridifr.calibration import Calibration
from veridifr.trace import Sampling, Trace
from veridifr.traces import from_openai, read_requests, sampling_to_dict
from vllm_server import RECORD, served

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from rounded_weights import write_rounded

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

OTHER_NAMES = ("name", "size", "node", "count")
MORE_HONEST = ("item", "text")
MORE_NAMES = ("line", "field", "state", "key")
HEAT = 1.2
SAMPLING = Sampling(temperature=1.0, top_p=0.95, max_tokens=60)
SECRET = bytes(range(32))
"""Always the same, so that the same tokens are drawn in every run of the tests."""
LAYERS = 3
"""Of six: what is left of the bundled model is another model with the same tokenizer."""


def without_layers(source: Path, target: Path) -> Path:
    """A copy of a Llama-like model with its first `LAYERS` layers only."""
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}))
    tensors = load_file(str(source / "model.safetensors"))
    kept = {n: t for n, t in tensors.items() if not n.startswith("model.layers.") or int(n.split(".")[2]) < LAYERS}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, str(target / "model.safetensors"), {"format": "pt"})
    return target


@pytest.fixture(scope="module")
def ports(tb7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Three servers that all say they serve tb7m, started side by side."""
    folder = tmp_path_factory.mktemp("servers")
    write_rounded(tb7m, folder / "int4", "int4")
    models = {"tb7m": tb7m, "int4": folder / "int4", "other": without_layers(tb7m, folder / "other")}
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        starting = {
            name: pool.submit(stack.enter_context, served(model, folder / f"{name}.log"))
            for name, model in models.items()
        }
        yield {name: urlsplit(start.result()).port or 0 for name, start in starting.items()}


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> Reference:
    return load_reference(f"hf:{tb7m}", ReferenceSettings(device="cpu"))


def requests(reference: Reference, name: str, texts: list[str]) -> list[Trace]:
    """What is asked for, under seeds of its own."""
    plain = [
        Trace(
            id=f"{name}/{number}",
            model="tb7m",
            prompt_token_ids=np.array(reference.encode(text), dtype=np.int32),
            output_token_ids=np.array([], dtype=np.int32),
            sampling=SAMPLING,
            engine=RECORD,
        )
        for number, text in enumerate(texts)
    ]
    return SeedIssuer(SECRET, name).issue(plain)


def asked(port: int, requests: list[Trace]) -> list[Trace]:
    """The traces of requests that the `openai` client sent."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:

        def ask(request: Trace) -> Trace:
            stated = {**sampling_to_dict(request.sampling), "return_token_ids": True, "top_k": -1}
            named = {key: stated.pop(key) for key in ("temperature", "top_p", "max_tokens", "seed")}
            ids = request.prompt_token_ids.tolist()
            answer = client.completions.create(model="tb7m", prompt=ids, extra_body=stated, **named)
            body = json.loads(answer.model_dump_json())
            (trace,) = from_openai(
                body, sampling=request.sampling, engine=request.engine, prompt_token_ids=ids, id=request.id
            )
            return trace

        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(ask, requests))


def hotter(body: Body) -> Body:
    return {**body, "temperature": HEAT * body["temperature"]}


def seedless(body: Body) -> Body:
    return {key: value for key, value in body.items() if key != "seed"}


def without_ids(body: Body) -> Body:
    return {key: value for key, value in body.items() if key != "return_token_ids"}


@pytest.fixture(scope="module")
def buy(ports: dict[str, int], reference: Reference) -> Callable[[str], tuple[list[Trace], list[Trace]]]:
    """Requests to a provider and its answers, by its name."""
    ways: dict[str, tuple[str, Callable[[Body], Body]]] = {
        "honest": ("tb7m", lambda body: body),
        "int4": ("int4", lambda body: body),
        "temperature": ("tb7m", hotter),
        "seeds ignored": ("tb7m", seedless),
    }

    def bought(name: str) -> tuple[list[Trace], list[Trace]]:
        wanted = requests(reference, name, code_prompts(OTHER_NAMES))
        model, change = ways[name]
        with Relay(lambda body: ports[model], change) as proxy:
            return wanted, asked(proxy.port, wanted)

    return bought


@pytest.fixture(scope="module")
def calibration(ports: dict[str, int], reference: Reference) -> Calibration:
    traces = asked(ports["tb7m"], requests(reference, "calibration", code_prompts((*CODE_NAMES, *MORE_HONEST))))
    return calibrate([HonestTraces(name="cpu", traces=traces)], reference, detect_sigma=0.3)


def test_compared(buy: Any, reference: Reference, calibration: Calibration) -> None:
    """Honest, rounded weights, another temperature: each gets its verdict and its cause, judged at 0.01."""
    bought = {name: buy(name) for name in ("honest", "int4", "temperature")}
    found: Comparison = compare(
        {name: traces for name, (_, traces) in bought.items()}, reference, calibration, 0.03,
        requests={name: wanted for name, (wanted, _) in bought.items()},
    )  # fmt: skip
    findings = {one.name: one.finding for one in found.providers}
    assert {name: (finding.verdict, finding.diagnosis.code) for name, finding in findings.items()} == {
        "honest": (Verdict.CONSISTENT, "none"),
        "int4": (Verdict.DIVERGENT, "forward_pass"),
        "temperature": (Verdict.DIVERGENT, "temperature"),
    }
    assert found.providers[-1].name == "honest"
    assert found.verdict is Verdict.DIVERGENT
    assert all(finding.sequences_unsupported == 0 for finding in findings.values())
    assert findings["temperature"].diagnosis.estimate == pytest.approx(HEAT, abs=0.1)


def test_seeds_that_are_ignored(buy: Any, reference: Reference, calibration: Calibration) -> None:
    wanted, traces = buy("seeds ignored")
    finding = audit(traces, reference, calibration, alpha=0.01, requests=wanted)
    assert (finding.verdict, finding.diagnosis.code) == (Verdict.DIVERGENT, "seed")


def test_one_request_in_five_goes_to_another_model(
    ports: dict[str, int], reference: Reference, calibration: Calibration
) -> None:
    """The requests that went there have the largest scores of all. Which tokens are drawn differs between CPUs, and an
    answer that ends after a few may hold none that tells."""
    wanted = requests(reference, "routed", code_prompts((*OTHER_NAMES, *MORE_NAMES)))
    elsewhere = {request.sampling.seed: request.id for request in wanted[::5]}
    with Relay(lambda body: ports["other" if body["seed"] in elsewhere else "tb7m"]) as proxy:
        traces = asked(proxy.port, wanted)
    finding = audit(traces, reference, calibration, alpha=0.01, requests=wanted)
    assert finding.verdict is Verdict.DIVERGENT
    assert finding.diagnosis.code in ("forward_pass", "unexplained")  # as the table of docs/modes.md has it
    ranked = sorted(finding.results, key=lambda result: -(result.score or 0.0))
    telling = {trace.id for trace in traces if trace.id in elsewhere.values() and len(trace.output_token_ids) >= 30}
    assert len(telling) >= 8
    assert {result.id for result in ranked[: len(telling)]} == telling


def test_a_server_without_token_ids(ports: dict[str, int], reference: Reference, calibration: Calibration,
    tmp_path: Path) -> None:  # fmt: skip
    """It drops what it does not know: nothing is scored, nobody is accused, and the finding says what is missing."""
    asked_for = [Prompt(prompt=text) for text in code_prompts(OTHER_NAMES)[:4]]
    with Relay(lambda body: ports["tb7m"], without_ids) as proxy:
        endpoint = Endpoint(base_url=proxy.url, model="tb7m")
        found = collect(tmp_path / "t.jsonl", endpoint, SAMPLING, prompts=asked_for, engine=RECORD)
    assert found.answered == sum(found.unscored.values()) == 4
    finding = audit(list(read_traces(found.traces)), reference, calibration, requests=read_requests(found.asked))
    assert finding.verdict in (Verdict.NO_EVIDENCE, Verdict.UNSUPPORTED)
    assert "token_ids" in finding.reason
