"""A vLLM engine on the CPU as the reference: the same evidence as transformers gives, and nothing left behind."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpu_engine import CpuEngine
from engines import start

from veridifr.contracts.registry import infer
from veridifr.errors import FingerprintError, ReferenceError
from veridifr.fingerprints import FingerprintSpec
from veridifr.references import Reference, ReferenceSettings, load
from veridifr.references.vllm_engine import VllmReference
from veridifr.scores import Hypothesis, Scores
from veridifr.scoring import score
from veridifr.trace import Trace
from veridifr.traces import read_traces

pytestmark = pytest.mark.vllm

DATA = Path(__file__).parents[1] / "data"
SIZE = 256


ENDS = (1, 7)


@pytest.fixture(scope="module")
def model(tb7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, whose generation_config.json here names more ends than its config.json."""
    folder = tmp_path_factory.mktemp("model")
    for file in tb7m.iterdir():
        shutil.copyfile(file, folder / file.name)
    stated = json.loads((tb7m / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**stated, "eos_token_id": ENDS}))
    return folder


@pytest.fixture(scope="module")
def llm(model: Path) -> Any:
    """In parts of 64 tokens: every trace is prefilled in several steps."""
    options = {"dtype": "float32", "max_model_len": 512, "max_num_batched_tokens": 64, "max_num_seqs": 4}
    return start(model, enable_prefix_caching=False, **options)[1]


@pytest.fixture(scope="module")
def reference(llm: Any, model: Path) -> VllmReference:
    return VllmReference.from_llm(llm, model)


@pytest.fixture(scope="module")
def other(model: Path) -> Reference:
    return load(f"hf:{model}", ReferenceSettings(device="cpu"))


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return list(itertools.islice(read_traces(DATA / "traces_v1_tb7m.paper.jsonl"), 6))


def scored(trace: Trace, evidence: Any) -> Scores:
    contract = infer(trace.engine, trace.sampling, evidence.vocab_size).contract
    return score(trace, evidence, Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed))


def test_evidence_is_that_of_transformers(reference: VllmReference, other: Reference, traces: list[Trace]) -> None:
    mine = {found.trace_id: found for found in reference.evidence(traces)}
    assert mine.keys() == {trace.id for trace in traces}
    assert reference.weights_digest == other.weights_digest
    assert reference.eos_ids == other.eos_ids == ENDS
    for found in other.evidence(traces):
        trace = next(t for t in traces if t.id == found.trace_id)
        got, want = scored(trace, mine[trace.id].validate()), scored(trace, found)
        np.testing.assert_allclose(mine[trace.id].lse_T, found.lse_T, atol=1e-3)
        np.testing.assert_allclose(got.gap_T, want.gap_T, atol=2e-3)
        assert (got.match_T == want.match_T).mean() > 0.99


def test_projections_are_those_of_transformers(reference: VllmReference, other: Reference, traces: list[Trace]) -> None:
    spec = FingerprintSpec(seed=7, hidden_size=SIZE, k=8, encoding="float32", every=3)
    mine, theirs = reference.measuring(spec), other.measuring(spec)
    assert mine is not None
    assert theirs is not None
    want = {found.trace_id: found.projections_AFK for found in theirs.evidence(traces[:2])}
    for found in mine.evidence(traces[:2]):
        assert found.projections_AFK is not None
        np.testing.assert_allclose(found.projections_AFK, want[found.trace_id], atol=1e-3)
    assert (
        reference.measuring(FingerprintSpec(seed=7, hidden_size=SIZE, k=8, encoding="float32", taps=("layer.0",)))
        is None
    )
    with pytest.raises(FingerprintError, match="hidden_size"):
        reference.measuring(FingerprintSpec(seed=7, hidden_size=SIZE + 1, k=8, encoding="float32"))


def test_one_that_stops_early_leaves_the_engine_as_it_was(reference: VllmReference, traces: list[Trace]) -> None:
    runner = reference._runner
    before = set(vars(runner))
    running = reference.evidence(traces)
    next(iter(running))
    running.close()
    assert set(vars(runner)) == before
    assert len(list(reference.evidence(traces[:2]))) == 2


def test_an_error_while_listing_is_raised_and_the_engine_goes_on(
    reference: VllmReference, traces: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory, say")

    with monkeypatch.context() as patch:
        patch.setattr(reference._rows, "listings", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(reference.evidence(traces[:2]))
    assert len(list(reference.evidence(traces[:2]))) == 2


def test_refusals(reference: VllmReference, engine: CpuEngine, tb7m: Path, traces: list[Trace]) -> None:
    assert reference.refuse(traces[0]) is None
    long = Trace(
        id="long",
        model="m",
        prompt_token_ids=[1] * 400,
        output_token_ids=[1] * 200,
        sampling=traces[0].sampling,
        engine=traces[0].engine,
    )
    assert "600 tokens are more than the engine's 512" in str(reference.refuse(long))
    with pytest.raises(ReferenceError, match="enable_prefix_caching=False"):
        VllmReference.from_llm(engine.llm, tb7m)


def test_hooks_that_do_not_fit_are_refused(reference: VllmReference, monkeypatch: pytest.MonkeyPatch) -> None:
    from veridifr.references import vllm_steps

    with pytest.raises(ReferenceError, match="none of those known"):
        vllm_steps.check(torch.nn.Identity())
    monkeypatch.setattr(reference._runner, "sample_tokens", lambda grammar_output: None)
    with pytest.raises(ReferenceError, match="wrapped already"):
        vllm_steps.check(reference._runner)
