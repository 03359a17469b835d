"""From a provider with capture on to a verdict about tokens and fingerprints: honest, int4 weights, int8 kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from provider_engine import ProviderEngine

from makers import code_prompts
from veridifr import HonestTraces, ReferenceSettings, Verdict, audit, calibrate, load_reference
from veridifr.calibration import Calibration
from veridifr.fingerprints import FingerprintSpec
from veridifr.references import Reference
from veridifr.references.hf import load_tokenizer
from veridifr.trace import Trace
from veridifr.vllm import Provider

pytestmark = pytest.mark.vllm

SPEC = FingerprintSpec(seed=3, hidden_size=256, k=16, encoding="bfloat16")
CALIBRATE, TOKENS = 24, 40


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> Reference:
    return load_reference(f"hf:{tb7m}", ReferenceSettings(device="cpu"))


def served(engine: ProviderEngine, tb7m: Path, first: int = 0) -> list[Trace]:
    tokenizer = load_tokenizer(tb7m)
    prompts = [tokenizer.encode(text) for text in code_prompts()][first:]
    asked = [
        {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 100 + n, "max_tokens": TOKENS, "ignore_eos": True}
        for n in range(first, first + len(prompts))
    ]
    with engine.provider(spec=SPEC) as found:
        assert isinstance(found, Provider)
        traces = found.traces(engine.generate(prompts, asked))
    return [replace(trace, id=f"{first + n}") for n, trace in enumerate(traces)]


@pytest.fixture(scope="module")
def honest(provider_engine: ProviderEngine, tb7m: Path) -> list[Trace]:
    return served(provider_engine, tb7m)


@pytest.fixture(scope="module")
def calibration(honest: list[Trace], reference: Reference) -> Calibration:
    stacks = [HonestTraces(name="cpu", traces=honest[:CALIBRATE])]
    return calibrate(stacks, reference, detect_sigma=0.25, fingerprints=SPEC)


@pytest.fixture(scope="module")
def rounded(tb7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Trace]]:
    def make(kind: str) -> list[Trace]:
        sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
        from rounded_weights import write_rounded

        folder = tmp_path_factory.mktemp(kind)
        write_rounded(tb7m, folder, kind)
        sys.path.pop(0)
        return served(ProviderEngine(folder), tb7m, CALIBRATE)

    return make


def requests(traces: list[Trace]) -> list[Trace]:
    return [replace(trace, output_token_ids=[], extra={}) for trace in traces]


def test_honest(honest: list[Trace], reference: Reference, calibration: Calibration) -> None:
    audited = honest[CALIBRATE:]
    found = audit(audited, reference, calibration, alpha=0.01, requests=requests(audited), fingerprints="required")
    assert found.verdict is Verdict.CONSISTENT
    assert found.contract == "vllm-cpu-gumbel-splitmix"
    assert found.fingerprints is not None
    assert found.fingerprints.sequences == len(audited)
    assert found.fingerprints.missing == 0


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_rounded(
    kind: str,
    rounded: Callable[[str], list[Trace]],
    honest: list[Trace],
    reference: Reference,
    calibration: Calibration,
) -> None:
    asked = requests(honest[CALIBRATE:])
    found = audit(rounded(kind), reference, calibration, alpha=0.01, requests=asked, fingerprints="required")
    assert found.verdict is Verdict.DIVERGENT
    assert found.fingerprints is not None
    assert found.fingerprints.speaks in ("fingerprints", "both")
