"""Audits without known noise, with an identified sampler, and at temperature 0; and providers that would like the
weaker test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from recorded import DETECT, TOKENS, Recorded
from veridifr import auditing, report
from veridifr.auditing import audit
from veridifr.calibration import Calibration, HonestTraces, calibrate
from veridifr.calibration_io import from_dict, read_calibration, to_dict, write_calibration
from veridifr.errors import CalibrationError, TraceError
from veridifr.finding import Diagnosis, Finding, Verdict
from veridifr.planning import plan
from veridifr.trace import EngineRecord, Trace

NOBODY = EngineRecord(name="unknown")


def engine(traces: Sequence[Trace], record: EngineRecord) -> list[Trace]:
    return [replace(trace, engine=record) for trace in traces]


def seedless(traces: Sequence[Trace]) -> list[Trace]:
    return [replace(trace, sampling=replace(trace.sampling, seed=None)) for trace in traces]


def own_noise(traces: Sequence[Trace]) -> list[Trace]:
    """Honest tokens whose seeds were ignored: the claimed ones made none of them."""
    return [replace(t, sampling=replace(t.sampling, seed=900_000 + i)) for i, t in enumerate(traces)]


def asked(traces: Sequence[Trace]) -> list[Trace]:
    return [replace(trace, output_token_ids=np.zeros(0, dtype=np.int32)) for trace in traces]


@pytest.fixture(scope="module")
def unknown(recorded: Recorded) -> Calibration:
    """Calibrated on the same honest traces, the sampler taken as unknown."""
    stacks = [HonestTraces(name=name, traces=recorded[name]) for name in ("calibration.v1", "calibration.v2")]
    return calibrate(stacks, recorded.reference, detect_sigma=2 * DETECT, sampler="unknown")


@pytest.fixture
def undiagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the verdict counts, and looking for a cause takes most of the time."""
    monkeypatch.setattr(auditing, "diagnose", lambda items, statistic, rng, **_: Diagnosis(code="unexplained"))


def complete(finding: Finding) -> str:
    """The text report, after checks that hold for every finding."""
    value = report.to_json(finding)
    jsonschema.Draft202012Validator(report.schema()).validate(value)
    assert report.from_json(value) == finding
    assert report.to_html([finding])
    return report.to_text(finding)


def run(recorded: Recorded, traces: Sequence[Trace], calibration: Calibration, **options: Any) -> Finding:
    return audit(list(traces), recorded.reference, calibration, **options)


@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("change", [seedless, own_noise, lambda traces: engine(traces, NOBODY)])
def test_honest_draws_are_not_divergent(recorded: Recorded, unknown: Calibration, name: str, change: Any) -> None:
    """Seeds that were ignored, missing, or of an unknown engine: the distribution is what was bought."""
    finding = run(recorded, change(recorded[name]), unknown, sampler="unknown")
    text = complete(finding)
    assert finding.verdict in (Verdict.CONSISTENT, Verdict.UNDECIDED)
    assert (finding.mode, finding.contract) == ("distribution", "unknown")
    assert (finding.exact_match, finding.honest_exact_match) == (None, None)
    assert "only the distribution of the tokens was tested" in " ".join(text.split())
    assert finding.distribution is not None
    assert finding.distribution.rank_p_value > 1e-4 and finding.distribution.excess_p_value > 1e-4


@pytest.mark.parametrize(("name", "codes"), [("temp1.1", ("temperature",)), ("int4", ("forward_pass", "unexplained"))])
def test_deviations_of_the_distribution_are_divergent(
    recorded: Recorded, unknown: Calibration, name: str, codes: tuple[str, ...]
) -> None:
    finding = run(recorded, seedless(recorded[name]), unknown, sampler="unknown")
    complete(finding)
    assert finding.verdict is Verdict.DIVERGENT
    assert finding.diagnosis.code in (*codes, "unexplained")
    assert {a.code for a in finding.diagnosis.alternatives} <= {"temperature", "top_p", "top_k", "forward_pass"}
    assert all(a.contract is None for a in finding.diagnosis.alternatives)


@pytest.mark.parametrize("share", [1, 2])
def test_texts_are_no_evidence_where_no_noise_tells_their_splits(
    recorded: Recorded, unknown: Calibration, share: int
) -> None:
    counts = {"server_count": TOKENS, "own_count": TOKENS}
    extra = {"token_ids_from": "text", "retokenization": counts}
    traces = [replace(t, extra=extra) if n % share == 0 else t for n, t in enumerate(recorded["temp1.1"])]
    finding = run(recorded, engine(traces, NOBODY), unknown)
    complete(finding)
    assert finding.sequences_unsupported == len(traces) / share
    assert finding.verdict is (Verdict.UNSUPPORTED if share == 1 else Verdict.DIVERGENT)
    assert share > 1 or "nothing tells which of its splits was sampled" in finding.reason


def test_the_finding_says_how_much_weaker_it_is(recorded: Recorded, unknown: Calibration) -> None:
    summary = run(recorded, recorded["v1"], unknown, sampler="unknown").distribution
    assert summary is not None and unknown.seeded_tokens is not None
    assert summary.seeded_tokens == unknown.seeded_tokens
    assert summary.tokens_needed is None or summary.tokens_needed >= summary.seeded_tokens


def test_what_seeds_are_worth_is_not_said_of_a_sampler_that_has_none(recorded: Recorded, unknown: Calibration) -> None:
    shared = [replace(trace, sampling=replace(trace.sampling, seed=42)) for trace in recorded["v1"]]
    finding = run(recorded, shared, unknown, sampler="unknown")
    assert any("taken as unknown" in text for text in finding.assumptions)
    assert not any("Seed 42" in text for text in finding.assumptions)
    seeded = run(recorded, shared, recorded.calibration)
    assert any("Seed 42" in text for text in seeded.assumptions)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_calibration_for_other_evidence_is_refused_by_name(
    recorded: Recorded, unknown: Calibration, sequential: bool
) -> None:
    with pytest.raises(CalibrationError, match="mode: made for distribution evidence, this audit's is seeded"):
        run(recorded, recorded["v1"], unknown, sequential=sequential)
    with pytest.raises(CalibrationError, match="mode: made for seeded evidence, this audit's is distribution"):
        run(recorded, recorded["v1"], recorded.calibration, sampler="unknown", sequential=sequential)


def test_an_unknown_choice_of_sampler_is_refused(recorded: Recorded, unknown: Calibration) -> None:
    with pytest.raises(TraceError, match="sampler: got 'mine', expected one of auto, unknown"):
        run(recorded, recorded["v1"], unknown, sampler="mine")
    with pytest.raises(CalibrationError, match="sampler: got 'mine'"):
        calibrate([HonestTraces(name="a", traces=recorded["v1"])], recorded.reference, sampler="mine")


@pytest.mark.parametrize(("name", "contract"), [("v1", "vllm-v1-cuda-exp32"), ("v2", "vllm-v2-e")])
def test_an_identified_sampler_is_audited_with_its_noise(recorded: Recorded, name: str, contract: str) -> None:
    """The same score for every sequence, and so the same p-value, as if the record had told."""
    told = run(recorded, recorded[name], recorded.calibration)
    finding = run(recorded, engine(recorded[name], NOBODY), recorded.calibration)
    complete(finding)
    assert (finding.verdict, finding.mode, finding.contract) == (Verdict.CONSISTENT, "seeded", contract)
    assert (finding.p_value, [r.score for r in finding.results]) == (told.p_value, [r.score for r in told.results])
    (said,) = [text for text in finding.assumptions if "does not tell the sampler" in text]
    assert "the provider's word" in said and f"fit {contract}" in said and "1e-06" in said


@pytest.mark.parametrize("name", ["int4", "temp1.1"])
def test_an_identified_sampler_does_not_excuse(recorded: Recorded, undiagnosed: None, name: str) -> None:
    finding = run(recorded, engine(recorded[name], NOBODY), recorded.calibration)
    assert (finding.verdict, finding.mode) == (Verdict.DIVERGENT, "seeded")


def test_an_identified_sampler_of_another_calibration_is_refused(recorded: Recorded) -> None:
    only = calibrate([HonestTraces(name="a", traces=recorded["calibration.v2"])], recorded.reference)
    with pytest.raises(CalibrationError, match="made for vllm-v2-e, the traces run under vllm-v1-cuda-exp32"):
        run(recorded, engine(recorded["v1"], NOBODY), only)


def test_tokens_that_fit_no_sampler_are_unsupported_or_tested_as_draws(
    recorded: Recorded, unknown: Calibration
) -> None:
    """What is tested then is what the verifier calibrated for, and the finding says by whose word."""
    loose = engine(own_noise(recorded["v1"]), NOBODY)
    seeded = run(recorded, loose, recorded.calibration)
    complete(seeded)
    assert (seeded.verdict, seeded.mode) == (Verdict.UNSUPPORTED, None)
    assert "fit none of" in seeded.reason and "engine.name" in seeded.reason
    draws = run(recorded, loose, unknown)
    assert (draws.mode, draws.verdict is Verdict.DIVERGENT) == ("distribution", False)
    (said,) = [text for text in draws.assumptions if "does not tell the sampler" in text]
    assert "the provider's word" in said
    fixed = run(recorded, loose, unknown, engine=NOBODY)
    assert any("as the verifier fixed it" in text for text in fixed.assumptions)


ATTACKS = {
    "ignores the seeds and says nothing": own_noise,
    "ignores the seeds and claims an unknown engine": lambda traces: engine(own_noise(traces), NOBODY),
    "ignores the seeds and names the sampler unknown": lambda traces: [
        replace(t, engine=replace(t.engine, sampler="unknown")) for t in own_noise(traces)
    ],
    "claims no seeds and an unknown engine": lambda traces: engine(seedless(traces), NOBODY),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("given", ["requests", "engine", "both"])
def test_a_provider_cannot_choose_the_weaker_test(
    recorded: Recorded, undiagnosed: None, attack: str, given: str
) -> None:
    """The verifier knows the engine and asked with seeds. Tokens of other noise end as divergent where the record is
    kept, and are no evidence where it is not; their distribution, which is honest, clears nobody."""
    honest = recorded["v1"]
    options: dict[str, Any] = {}
    if given != "engine":
        options["requests"] = asked(own_noise(honest) if "seeds" in attack else honest)
    if given != "requests":
        options["engine"] = honest[0].engine
    finding = run(recorded, ATTACKS[attack](honest), recorded.calibration, **options)
    complete(finding)
    assert finding.mode != "distribution"
    assert finding.verdict is not Verdict.CONSISTENT
    if attack == "ignores the seeds and says nothing":
        assert finding.verdict is Verdict.DIVERGENT


def test_the_weaker_test_is_not_reached_with_its_calibration_either(recorded: Recorded, unknown: Calibration) -> None:
    """Even a verifier that holds both calibrations by mistake: its requests name the engine, so nothing falls back."""
    loose = engine(own_noise(recorded["v1"]), NOBODY)
    finding = run(recorded, loose, unknown, requests=asked(own_noise(recorded["v1"])))
    assert (finding.verdict, finding.mode) == (Verdict.UNSUPPORTED, None)


def test_requests_that_name_no_engine_decide_nothing(recorded: Recorded) -> None:
    requests = engine(asked(recorded["v1"]), EngineRecord(name="asked"))
    finding = run(recorded, engine(recorded["v1"], NOBODY), recorded.calibration, requests=requests)
    assert (finding.verdict, finding.mode) == (Verdict.CONSISTENT, "seeded")


def test_the_calibration_file_keeps_its_mode(unknown: Calibration, recorded: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_calibration(path, unknown)
    found, _ = read_calibration(path)
    assert found == unknown
    assert (found.mode, recorded.calibration.mode) == ("distribution", "seeded")
    assert "mode" not in to_dict(recorded.calibration)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "seeded"}, "mode: got 'seeded', expected 'distribution'"),
        ({"mode": None}, "mode: expected a string"),
        ({"seeded_tokens": 0}, "seeded_tokens: got 0"),
        ({"seeded_tokens": 1.5}, "seeded_tokens: got 1.5"),
        ({"heats": [0.1]}, r"simulated: got \d+ rows"),
        ({"heats": ["a"]}, "heats"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(unknown: Calibration, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        from_dict({**to_dict(unknown), **change})


def test_the_contract_and_the_statistic_must_agree(unknown: Calibration) -> None:
    value = to_dict(unknown)
    value["stacks"][0]["contract"] = "vllm-v2-e"
    with pytest.raises(CalibrationError, match="stacks: contract: unknown goes with"):
        from_dict(value)


def test_plans_of_a_temperature_use_its_simulation(unknown: Calibration) -> None:
    hot, hardly = plan(unknown, "temperature=1.1"), plan(unknown, "temperature=1.02")
    assert hot.source is None
    assert hot.best is not None and hot.best.fixed_tokens is not None
    assert hardly.best is None or (hardly.best.fixed_tokens or 0) > hot.best.fixed_tokens
