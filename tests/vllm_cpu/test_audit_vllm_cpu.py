"""From a real engine to a verdict: calibrate on honest vLLM on the CPU, audit it, and audit it with int4 weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cpu_engine import CpuEngine

from makers import code_prompts
from veridifr import HonestTraces, ReferenceSettings, Verdict, audit, calibrate, load_reference
from veridifr.calibration import Calibration
from veridifr.references import Reference
from veridifr.references.hf import load_tokenizer
from veridifr.trace import Trace

pytestmark = pytest.mark.vllm

CALIBRATE, TOKENS = 24, 60


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> Reference:
    return load_reference(f"hf:{tb7m}", ReferenceSettings(device="cpu"))


def prompts(tb7m: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(tb7m)
    return [tokenizer.encode(text) for text in code_prompts()]


def generate(engine: CpuEngine, tb7m: Path, first: int = 0, **sampling: Any) -> list[Trace]:
    """60 tokens for each prompt from `first`, with its own seed; ends are ruled out, so that their number is known."""
    asked = prompts(tb7m)[first:]
    settings = [
        {"temperature": 1.0, "top_k": 50, "top_p": 0.95, **sampling, "seed": 100 + first + n, "max_tokens": TOKENS}
        for n in range(len(asked))
    ]
    return engine.generate(asked, [{**s, "ignore_eos": True} for s in settings])[0]


@pytest.fixture(scope="module")
def honest(tb7m: Path, engine: CpuEngine) -> list[Trace]:
    return generate(engine, tb7m)


@pytest.fixture(scope="module")
def calibration(honest: list[Trace], reference: Reference) -> Calibration:
    return calibrate([HonestTraces(name="cpu", traces=honest[:CALIBRATE])], reference, detect_sigma=0.25)


@pytest.fixture(scope="module")
def int4(tb7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Trace]]:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    from rounded_weights import write_rounded

    folder = tmp_path_factory.mktemp("int4")
    assert write_rounded(tb7m, folder, "int4") == 42
    yield generate(CpuEngine(folder), tb7m, CALIBRATE)
    sys.path.pop(0)


def requests(traces: list[Trace]) -> list[Trace]:
    return [replace(trace, output_token_ids=[]) for trace in traces]


def test_honest(honest: list[Trace], reference: Reference, calibration: Calibration) -> None:
    audited = honest[CALIBRATE:]
    found = audit(audited, reference, calibration, alpha=0.01, requests=requests(audited))
    assert found.verdict is Verdict.CONSISTENT
    assert found.contract == "vllm-cpu-gumbel-splitmix"
    assert found.tokens_scored == found.tokens_requested == TOKENS * len(audited)
    assert found.exact_match is not None
    assert found.exact_match > 0.94


def test_int4(int4: list[Trace], reference: Reference, calibration: Calibration) -> None:
    found = audit(int4, reference, calibration, alpha=0.01, requests=requests(int4))
    assert found.verdict is Verdict.DIVERGENT
    assert found.p_value is not None
    assert found.p_value <= 0.01
    assert found.diagnosis.code == "forward_pass"


def test_another_temperature(
    tb7m: Path, engine: CpuEngine, honest: list[Trace], reference: Reference, calibration: Calibration
) -> None:
    """Asked for 1.0, sampled at 1.3, and claimed as 1.0: the temperature is named and estimated."""
    asked = requests(honest[CALIBRATE:])
    hot = generate(engine, tb7m, CALIBRATE, temperature=1.3)
    claimed = [
        replace(trace, id=request.id, sampling=request.sampling) for trace, request in zip(hot, asked, strict=True)
    ]
    found = audit(claimed, reference, calibration, alpha=0.01, requests=asked)
    assert found.verdict is Verdict.DIVERGENT
    assert found.diagnosis.code == "temperature"
    assert found.diagnosis.estimate == pytest.approx(1.3, abs=0.1)
