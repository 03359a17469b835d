"""A real vLLM server as the reference: its evidence against transformers', and audits that rest on it alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_engine import CpuEngine
from test_audit_vllm_cpu import CALIBRATE, TOKENS, generate, requests
from test_audit_vllm_cpu import honest as honest
from test_audit_vllm_cpu import int4 as int4

from veridifr import HonestTraces, ReferenceSettings, Verdict, audit, calibrate, load_reference
from veridifr.calibration import Calibration
from veridifr.contracts.registry import CONTRACTS
from veridifr.errors import CalibrationError, ReferenceError
from veridifr.evidence import Evidence
from veridifr.references import Reference
from veridifr.references.http import HttpReference
from veridifr.references.http_server import KEY_VARIABLE
from veridifr.references.logprob_forms import FORMS
from veridifr.scores import Hypothesis, Scores
from veridifr.scoring import score
from veridifr.trace import Trace
from vllm_server import served

pytestmark = pytest.mark.vllm

LISTED = 120
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="session")
def url(tb7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    options = ("--dtype", "float32", "--max-model-len", "256", "--max-logprobs", str(LISTED), "--api-key", KEY)
    with served(tb7m, log, *options) as base:
        yield base


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture(scope="session")
def reference(url: str, tb7m: Path, tmp_path_factory: pytest.TempPathFactory) -> HttpReference:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY)
    found = load_reference(url, ReferenceSettings(model_files=tb7m, top_logprobs=LISTED, key_file=file))
    assert isinstance(found, HttpReference)
    return found


@pytest.fixture(scope="module")
def calibration(honest: list[Trace], reference: Reference) -> Calibration:
    return calibrate([HonestTraces(name="cpu", traces=honest[:CALIBRATE])], reference, detect_sigma=0.25)


def scores(trace: Trace, evidence: Evidence) -> Scores:
    contract = CONTRACTS["greedy" if trace.sampling.greedy else "vllm-cpu-gumbel-splitmix"]
    return score(trace, evidence, Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed))


def test_what_the_server_is(reference: HttpReference, tb7m: Path) -> None:
    assert reference.settings["form"] == "prompt_logprobs"
    assert reference.settings["served_model"] == "tb7m"
    assert reference.settings["served_root"] == str(tb7m)
    assert (reference.vocab_size, reference.eos_ids) == (8192, (1,))
    assert KEY not in repr(reference.settings)


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": None, "min_p": 0.05}, {"temperature": 0.0}],
    ids=str,
)
def test_its_evidence_is_that_of_transformers(
    reference: HttpReference, tb7m: Path, honest: list[Trace], sampling: dict[str, Any]
) -> None:
    """Both forms of the answer against the same model in float32: near gaps agree to 5e-3, and all ranks nearly."""
    made = {t.id: replace(t, sampling=replace(t.sampling, **sampling)) for t in honest[:4]}
    model = load_reference(f"hf:{tb7m}", ReferenceSettings(device="cpu"))
    theirs = {e.trace_id: e for e in model.evidence(list(made.values()))}
    for form in FORMS:
        reference._form = form
        for evidence in reference.evidence(list(made.values())):
            trace = made[evidence.trace_id]
            evidence.validate()
            mine, true = scores(trace, evidence), scores(trace, theirs[trace.id])
            assert mine.usable_T.mean() > (0.99 if sampling != {"top_k": None, "min_p": 0.05} else 0.9)
            near = mine.usable_T & (np.abs(true.gap_T) < 0.5)
            np.testing.assert_allclose(mine.gap_T[near], true.gap_T[near], atol=5e-3)
            inside = true.rank_T < LISTED
            assert np.abs(evidence.rank_T - true.rank_T)[inside].max() <= 1
            if form.name == "prompt_logprobs":
                assert np.abs(evidence.rank_T - true.rank_T).max() <= 20  # float32 ties far down
    reference._form = FORMS[0]


def test_honest(honest: list[Trace], reference: Reference, calibration: Calibration) -> None:
    audited = honest[CALIBRATE:]
    found = audit(audited, reference, calibration, alpha=0.01, requests=requests(audited))
    assert found.verdict is Verdict.CONSISTENT
    assert found.tokens_scored == found.tokens_requested == TOKENS * len(audited)
    assert found.exact_match is not None and found.exact_match > 0.94
    assert found.provenance.settings["served_model"] == "tb7m"


def test_int4(int4: list[Trace], reference: Reference, calibration: Calibration) -> None:
    found = audit(int4, reference, calibration, alpha=0.01, requests=requests(int4))
    assert found.verdict is Verdict.DIVERGENT
    assert found.diagnosis.code == "forward_pass"
    assert found.worst_tokens and found.worst_tokens[0].claimed


def test_without_a_filter_the_listing_is_too_short_and_says_so(
    tb7m: Path, engine: CpuEngine, reference: Reference
) -> None:
    plain = generate(engine, tb7m, top_k=0, top_p=1.0)
    with pytest.raises(CalibrationError, match=r"every token is a bound.*--top-logprobs"):
        calibrate([HonestTraces(name="cpu", traces=plain)], reference)


@pytest.mark.usefixtures("_key")
def test_more_than_the_server_lists_is_refused_with_its_own_words(url: str, tb7m: Path) -> None:
    with pytest.raises(ReferenceError, match=r"prompt_logprobs: .*status 400.*121"):
        load_reference(url, ReferenceSettings(model_files=tb7m, top_logprobs=LISTED + 1))


def test_a_wrong_key_is_refused_and_not_shown(url: str, tb7m: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "not-the-key")
    with pytest.raises(ReferenceError, match="status 401") as caught:
        load_reference(url, ReferenceSettings(model_files=tb7m))
    assert "not-the-key" not in str(caught.value)
