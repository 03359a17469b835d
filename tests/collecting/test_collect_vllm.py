"""From a real server to a verdict: vLLM on the CPU, asked over HTTP in every way of getting token ids, and audited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from makers import CODE_NAMES, code_prompts
from veridifr import (
    Collected,
    Endpoint,
    Finding,
    HonestTraces,
    Prompt,
    ReferenceSettings,
    Sampling,
    Verdict,
    audit,
    calibrate,
    check_seeds,
    collect,
    load_reference,
    read_secret,
    read_traces,
)
from veridifr.calibration import Calibration
from veridifr.references import Reference
from veridifr.trace import Trace
from veridifr.traces import read_requests
from vllm_server import RECORD, served

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

OTHER_NAMES = ("name", "size", "node", "count")
SAMPLING = Sampling(temperature=1.0, top_p=0.95, max_tokens=60)


def prompts(names: tuple[str, ...]) -> list[Prompt]:
    return [Prompt(prompt=text) for text in code_prompts(names)]


@pytest.fixture(scope="module")
def url(tb7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tb7m, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> Reference:
    return load_reference(f"hf:{tb7m}", ReferenceSettings(device="cpu"))


def collected(out: Path, url: str, asked: list[Prompt], **fields: Any) -> Collected:
    own = {name: fields.pop(name) for name in list(fields) if name in Endpoint.__dataclass_fields__}
    endpoint = Endpoint(base_url=url, model="tb7m", **own)
    return collect(out, endpoint, SAMPLING, prompts=asked, engine=RECORD, **fields)


@pytest.fixture(scope="module")
def calibration(url: str, reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    found = collected(tmp_path_factory.mktemp("honest") / "honest.jsonl", url, prompts(CODE_NAMES))
    assert (found.answered, found.unscored, found.wrong_counts) == (36, {}, 0)
    honest = list(read_traces(found.traces))
    return calibrate([HonestTraces(name="cpu", traces=honest)], reference, detect_sigma=0.3)


def audited(found: Collected, reference: Reference, calibration: Calibration) -> Finding:
    requests = read_requests(found.asked)
    assert check_seeds(requests, read_secret(found.secret)).holds
    return audit(list(read_traces(found.traces)), reference, calibration, alpha=0.01, requests=requests)


def test_ids_from_the_server(url: str, reference: Reference, calibration: Calibration, tmp_path: Path) -> None:
    """Text prompts, tokenized by the server, whose ids it returns."""
    found = collected(tmp_path / "t.jsonl", url, prompts(OTHER_NAMES))
    finding = audited(found, reference, calibration)
    assert (finding.verdict, finding.contract) == (Verdict.CONSISTENT, "vllm-cpu-gumbel-splitmix")
    assert finding.sequences_unsupported == 0
    assert finding.exact_match is not None
    assert finding.exact_match > 0.94


def test_streamed_ids(url: str, tmp_path: Path) -> None:
    """The same seeds give the same tokens, streamed or not, so both readings agree to the last id."""
    whole = collected(tmp_path / "w.jsonl", url, prompts(OTHER_NAMES)[:6], audit_id="a")
    parts = collected(
        tmp_path / "p.jsonl", url, prompts(OTHER_NAMES)[:6], audit_id="a", secret_file=whole.secret, stream=True
    )
    pairs = zip(read_traces(whole.traces), read_traces(parts.traces), strict=True)
    assert all(one.digest() == other.digest() and one.finish_reason == other.finish_reason for one, other in pairs)


def test_token_strings(url: str, tb7m: Path, tmp_path: Path) -> None:
    """Strings of log-probabilities name the very ids that the server states, wherever they are taken at all."""
    stated = collected(tmp_path / "s.jsonl", url, prompts(OTHER_NAMES), audit_id="a", tokenizer=tb7m)
    strings = collected(tmp_path / "t.jsonl", url, prompts(OTHER_NAMES), audit_id="a", tokenizer=tb7m,
        secret_file=stated.secret, dialect="openai", logprobs=True)  # fmt: skip
    pairs = list(zip(read_traces(stated.traces), read_traces(strings.traces), strict=True))
    taken = [(one, other) for one, other in pairs if other.extra["token_ids_from"] == "token_strings"]
    assert len(taken) > len(pairs) / 2
    assert all(one.digest() == other.digest() for one, other in taken)


def test_text_alone(url: str, tb7m: Path, reference: Reference, calibration: Calibration, tmp_path: Path) -> None:
    """No ids at all: the text is tokenized here, and split as the sampler would have."""
    found = collected(tmp_path / "t.jsonl", url, prompts(OTHER_NAMES), dialect="openai", tokenizer=tb7m, send="text")
    traces = list(read_traces(found.traces))
    assert {trace.extra["token_ids_from"] for trace in traces} == {"text"}
    finding = audited(found, reference, calibration)
    assert finding.verdict in (Verdict.CONSISTENT, Verdict.UNDECIDED)
    assert finding.exact_match is not None
    assert finding.exact_match > 0.9
    assert finding.sequences_unsupported <= 4


def test_a_seed_that_is_not_the_asked_one_shows(
    url: str, reference: Reference, calibration: Calibration, tmp_path: Path
) -> None:
    """The pipeline can say divergent: the same traces, claimed under other seeds."""
    found = collected(tmp_path / "t.jsonl", url, prompts(OTHER_NAMES))
    traces = [moved(trace) for trace in read_traces(found.traces)]
    finding = audit(traces, reference, calibration, alpha=0.01)
    assert finding.verdict is Verdict.DIVERGENT


def moved(trace: Trace) -> Trace:
    return replace(trace, sampling=replace(trace.sampling, seed=(trace.sampling.seed or 0) + 1000))
