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
    Finding,
    HonestTraces,
    Reference,
    ReferenceSettings,
    SeedIssuer,
    Verdict,
    audit,
    calibrate,
    compare,
    load_reference,
)
from veridifr.calibration import Calibration
from veridifr.trace import Sampling, Trace
from veridifr.traces import from_openai, sampling_to_dict
from vllm_server import RECORD, served

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from rounded_weights import write_rounded

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

OTHER_NAMES = ("name", "size", "node", "count")
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
    return {**body, "temperature": 1.2 * body["temperature"]}


def seedless(body: Body) -> Body:
    return {key: value for key, value in body.items() if key != "seed"}


@pytest.fixture(scope="module")
def bought(ports: dict[str, int], reference: Reference) -> Callable[[str], tuple[list[Trace], list[Trace]]]:
    """Requests and answers of a provider by name, bought once."""
    known: dict[str, tuple[list[Trace], list[Trace]]] = {}
    ways: dict[str, tuple[Callable[[Body], int], Callable[[Body], Body]]] = {
        "honest": (lambda body: ports["tb7m"], lambda body: body),
        "int4": (lambda body: ports["int4"], lambda body: body),
        "temperature": (lambda body: ports["tb7m"], hotter),
        "routed": (lambda body: ports["other" if body["seed"] % 5 == 0 else "tb7m"], lambda body: body),
        "seeds ignored": (lambda body: ports["tb7m"], seedless),
    }

    def buy(name: str) -> tuple[list[Trace], list[Trace]]:
        if name not in known:
            wanted = requests(reference, name, code_prompts(OTHER_NAMES))
            with Relay(*ways[name]) as proxy:
                known[name] = wanted, asked(proxy.port, wanted)
        return known[name]

    return buy


@pytest.fixture(scope="module")
def honest(ports: dict[str, int], reference: Reference) -> list[HonestTraces]:
    traces = asked(ports["tb7m"], requests(reference, "calibration", code_prompts(CODE_NAMES)))
    return [HonestTraces(name="cpu", traces=traces)]


@pytest.fixture(scope="module")
def calibration(honest: list[HonestTraces], reference: Reference) -> Calibration:
    return calibrate(honest, reference, detect_sigma=0.3)


def audited(bought: Any, name: str, reference: Reference, calibration: Calibration, **more: Any) -> Finding:
    wanted, traces = bought(name)
    return audit(traces, reference, calibration, alpha=0.01, requests=wanted, **more)


@pytest.mark.parametrize(
    ("name", "verdict", "cause"),
    [
        ("honest", Verdict.CONSISTENT, "none"),
        ("int4", Verdict.DIVERGENT, "forward_pass"),
        ("temperature", Verdict.DIVERGENT, "temperature"),
        ("routed", Verdict.DIVERGENT, "unexplained"),
        ("seeds ignored", Verdict.DIVERGENT, "seed"),
    ],
)
def test_verdict_and_cause(
    bought: Any, reference: Reference, calibration: Calibration, name: str, verdict: Verdict, cause: str
) -> None:
    finding = audited(bought, name, reference, calibration)
    assert (finding.verdict, finding.diagnosis.code) == (verdict, cause), finding.reason
    assert finding.sequences_unsupported == 0


def test_ignored_seeds_are_no_deviation_where_none_were_asked_for(
    bought: Any, honest: list[HonestTraces], reference: Reference
) -> None:
    """The distribution is what was bought; that of rounded weights is another."""
    draws = calibrate(honest, reference, sampler="unknown")
    finding = audited(bought, "seeds ignored", reference, draws, sampler="unknown")
    assert finding.mode == "distribution"
    assert finding.verdict in (Verdict.CONSISTENT, Verdict.UNDECIDED)


def test_the_requests_that_went_elsewhere_stand_out(
    bought: Any, reference: Reference, calibration: Calibration
) -> None:
    """One in five by their seeds: their scores are the largest of all."""
    wanted, _ = bought("routed")
    elsewhere = {request.id for request in wanted if (request.sampling.seed or 0) % 5 == 0}
    assert 0 < len(elsewhere) < len(wanted) / 2
    results = audited(bought, "routed", reference, calibration).results
    ranked = sorted(results, key=lambda result: -(result.score or 0.0))
    assert {result.trace_id for result in ranked[: len(elsewhere)]} == elsewhere


def test_compared(bought: Any, reference: Reference, calibration: Calibration) -> None:
    names = ("honest", "int4", "temperature")
    found: Comparison = compare(
        {name: bought(name)[1] for name in names}, reference, calibration, 0.03,
        requests={name: bought(name)[0] for name in names},
    )  # fmt: skip
    verdicts = {one.name: one.finding.verdict for one in found.providers}
    assert verdicts == {"honest": Verdict.CONSISTENT, "int4": Verdict.DIVERGENT, "temperature": Verdict.DIVERGENT}
    assert found.providers[-1].name == "honest"
    causes = {one.name: one.finding.diagnosis.code for one in found.providers}
    assert causes == {"honest": "none", "int4": "forward_pass", "temperature": "temperature"}
    assert found.verdict is Verdict.DIVERGENT
