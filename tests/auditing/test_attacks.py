"""A provider that cheats and tries to talk its way out: whatever it says, it never ends up `consistent`.

The requests are the verifier's own. Each attack starts from the outputs of a 4-bit model (or is a truthful provider's
odd claim), and the verdict is what counts here; tests/asked has the rules of the plan one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recorded import SHORT, TOKENS, Recorded
from veridifr import auditing
from veridifr.auditing import audit
from veridifr.errors import CalibrationError
from veridifr.finding import Diagnosis, Finding, Verdict
from veridifr.trace import Trace


def run(recorded: Recorded, traces: Sequence[Trace], **options: Any) -> Finding:
    return audit(list(traces), recorded.reference, recorded.calibration, **options)


def claim(traces: Sequence[Trace], **sampling: Any) -> list[Trace]:
    """The same outputs with other settings claimed."""
    return [replace(trace, sampling=replace(trace.sampling, **sampling)) for trace in traces]


def record(traces: Sequence[Trace], **engine: Any) -> list[Trace]:
    """The same outputs with another engine record claimed."""
    return [replace(trace, engine=replace(trace.engine, **engine)) for trace in traces]


def with_output(trace: Trace, ids: Sequence[int] | np.ndarray) -> Trace:
    return replace(trace, output_token_ids=np.asarray(ids, dtype=np.int32))


def asked(traces: Sequence[Trace]) -> list[Trace]:
    """What the verifier asked for."""
    return [with_output(trace, []) for trace in traces]


ATTACKS: dict[str, Callable[[list[Trace]], list[Trace]]] = {
    "returns nothing": lambda traces: [],
    "returns half of what was asked for": lambda traces: traces[::2],
    "returns empty outputs": lambda traces: [with_output(t, []) for t in traces],
    "says that half of its tokens were forced": lambda traces: (
        claim(traces[::2], allowed_token_ids=(7,)) + traces[1::2]
    ),
    "says that all of its tokens were forced": lambda traces: claim(traces, allowed_token_ids=(7,)),
    "puts forced marks in the trace": lambda traces: [replace(t, extra={"forced": [True] * TOKENS}) for t in traces],
    "claims a setting that nobody knows": lambda traces: claim(traces, extra={"watermark": 1}),
    "claims to have been hotter": lambda traces: claim(traces, temperature=2.0),
    "claims a temperature of 0": lambda traces: claim(traces, temperature=0.0),
    "claims other filters": lambda traces: claim(traces, top_k=1, top_p=None),
    "claims other seeds": lambda traces: [claim([t], seed=i)[0] for i, t in enumerate(traces)],
    "claims no seeds": lambda traces: claim(traces, seed=None),
    "claims shorter limits": lambda traces: claim(traces, max_tokens=1),
    "claims stop tokens": lambda traces: [claim([t], stop_token_ids=(int(t.output_token_ids[0]),))[0] for t in traces],
    "claims min_tokens": lambda traces: claim(traces, min_tokens=TOKENS),
    "claims aborts": lambda traces: [replace(t, finish_reason="abort") for t in traces],
    "claims another engine": lambda traces: record(traces, name="an engine that nobody knows"),
    "claims speculative decoding": lambda traces: record(traces, speculative_decoding=True),
    "names another sampler": lambda traces: record(traces, sampler="vllm-v2-e"),
    "names a child": lambda traces: record(traces, child=3),
    "mixes engines": lambda traces: record(traces[::2], runner="v2") + traces[1::2],
    "changes prompts": lambda traces: [replace(t, prompt_token_ids=t.prompt_token_ids[1:]) for t in traces],
    "renames sequences": lambda traces: [replace(t, id=f"x{t.id}") for t in traces],
    "swaps outputs": lambda traces: [
        with_output(t, other.output_token_ids) for t, other in zip(traces, traces[1:] + traces[:1], strict=True)
    ],
    "hides them among others": lambda traces: [replace(t, id=f"more{t.id}") for t in traces] + traces[:6],
}  # fmt: skip
"""What becomes of a deviating provider's traces."""


HIDE_NOTHING = {
    "puts forced marks in the trace", "claims to have been hotter", "claims a temperature of 0", "claims other filters",
    "claims other seeds", "claims no seeds", "claims shorter limits", "claims stop tokens", "claims min_tokens",
    "claims aborts", "claims a setting that nobody knows", "says that all of its tokens were forced",
    "says that half of its tokens were forced",
}  # fmt: skip
"""Claims about settings: where the tokens are there, what was asked for is what they are scored with."""


@pytest.fixture
def undiagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the verdict counts here, and looking for a cause takes most of the time."""
    monkeypatch.setattr(auditing, "diagnose", lambda items, statistic, rng, **_: Diagnosis(code="unexplained"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_makes_a_deviating_provider_consistent(recorded: Recorded, attack: str, undiagnosed: None) -> None:
    few = recorded["int4"][:12]
    finding = run(recorded, ATTACKS[attack](few), requests=asked(few))
    assert finding.verdict is not Verdict.CONSISTENT
    assert finding.sequences == 12
    assert finding.tokens_requested >= 12 * TOKENS
    if attack in HIDE_NOTHING:
        assert finding.verdict is Verdict.DIVERGENT
        assert finding.tokens_scored == 12 * TOKENS
    elif finding.verdict is not Verdict.DIVERGENT:
        assert finding.coverage is not None and finding.coverage < 0.95


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "returns nothing"])
def test_no_attack_works_without_requests_either(recorded: Recorded, attack: str, undiagnosed: None) -> None:
    """By its word alone a provider may choose which sequences exist, but not make those it shows look honest."""
    try:
        finding = run(recorded, ATTACKS[attack](recorded["int4"][:12]))
    except CalibrationError as error:  # a claim that the calibration was not made for: an error, no verdict
        assert "calibration: " in str(error)
        return
    assert finding.verdict is not Verdict.CONSISTENT


def test_picking_the_best_sequences_costs_coverage(recorded: Recorded, undiagnosed: None) -> None:
    """The provider knows which of its sequences look honest, and returns only those."""
    scored = run(recorded, recorded["int4"])
    by_score = sorted(scored.results, key=lambda result: result.score or 0.0)
    best = {result.id for result in by_score[:6]}
    kept = [trace for trace in recorded["int4"] if trace.id in best]
    finding = run(recorded, kept, requests=asked(recorded["int4"]))
    assert finding.verdict is not Verdict.CONSISTENT
    assert finding.coverage == pytest.approx(0.25)
    assert sum(result.reason == "absent from the traces" for result in finding.results) == 18


def test_cutting_outputs_costs_coverage(recorded: Recorded) -> None:
    """Honest tokens, but 24 of the 80 that were asked for."""
    finding = run(recorded, recorded["short"], requests=asked(recorded["short"]))
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.coverage == pytest.approx(SHORT / TOKENS)
    assert finding.tokens_by_status["missing"] == 24 * (TOKENS - SHORT)


def test_padding_costs_coverage(recorded: Recorded) -> None:
    """Tokens beyond the limit prove nothing, and each one counts as a token without a score."""
    padded = [with_output(t, np.concatenate([t.output_token_ids, t.output_token_ids[:20]])) for t in recorded["v1"]]
    finding = run(recorded, padded, requests=asked(recorded["v1"]))
    assert finding.verdict is Verdict.UNDECIDED
    assert (finding.tokens_scored, finding.tokens_requested) == (24 * TOKENS, 24 * (TOKENS + 20))


def test_sequences_that_nobody_asked_for_are_ignored_and_said(recorded: Recorded, undiagnosed: None) -> None:
    finding = run(recorded, recorded["v1"] + recorded["int4"], requests=asked(recorded["v1"]))
    assert finding.verdict is Verdict.CONSISTENT
    assert finding.sequences == 24
    assert "24 sequences in the traces were never asked for and are ignored." in finding.assumptions
    honest_extras = run(recorded, recorded["int4"] + recorded["v1"], requests=asked(recorded["int4"]))
    assert honest_extras.verdict is Verdict.DIVERGENT


def test_the_requests_settings_are_what_is_scored(recorded: Recorded) -> None:
    """An honest provider that reports nonsense is honest; a hot one that confesses is still not what was bought."""
    nonsense = [replace(t, sampling=replace(t.sampling, seed=i, top_k=3)) for i, t in enumerate(recorded["v1"])]
    assert run(recorded, nonsense, requests=asked(recorded["v1"])).verdict is Verdict.CONSISTENT
    confessed = claim(recorded["temp1.1"], temperature=1.1)
    finding = run(recorded, confessed, requests=asked(recorded["temp1.1"]))
    assert (finding.verdict, finding.diagnosis.code) == (Verdict.DIVERGENT, "temperature")


def test_the_number_of_sequences_is_the_provider_s_word_without_requests(recorded: Recorded) -> None:
    finding = run(recorded, recorded["v1"])
    assert any("provider's word" in text for text in finding.assumptions)
    assert not any(
        "provider's word" in text for text in run(recorded, recorded["v1"], requests=recorded["v1"]).assumptions
    )


def test_the_engine_can_be_fixed_by_the_caller(recorded: Recorded) -> None:
    v1, v2 = recorded["v1"], recorded["v2"]
    assert run(recorded, v1, engine=v1[0].engine).verdict is Verdict.CONSISTENT
    finding = run(recorded, v1, engine=v2[0].engine)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.reason == "engine: another record than the one fixed for this audit"
    assert "runner v2" in finding.engine
    mixed = run(recorded, v2[:3] + v1, engine=v2[0].engine)
    assert mixed.sequences_unsupported == 24


@pytest.mark.parametrize("place", [0, 11])
def test_one_odd_record_does_not_decide_for_the_others(recorded: Recorded, place: int) -> None:
    """Wherever it stands, the odd one is left out and counts; the record that most state is the audit's."""
    traces = recorded["v1"]
    traces[place] = record(traces[place : place + 1], name="odd")[0]
    finding = run(recorded, traces)
    assert (finding.verdict, finding.contract) == (Verdict.CONSISTENT, "vllm-v1-cuda-exp32")
    assert finding.coverage == pytest.approx(23 / 24)
    assert finding.results[place].reason == "engine: another record than the one fixed for this audit"
    more = [*record(traces[-1:], name="odd"), *traces[:-1]]
    assert run(recorded, more).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("place", [0, 11])
def test_one_odd_setting_does_not_decide_for_the_others(recorded: Recorded, place: int) -> None:
    traces = recorded["v1"]
    traces[place] = claim(traces[place : place + 1], top_k=20)[0]
    finding = run(recorded, traces)
    assert finding.verdict is Verdict.CONSISTENT
    assert str(finding.results[place].reason).startswith("sampling: another setting")
    assert finding.coverage == pytest.approx(23 / 24)


def test_a_changed_prompt_is_not_scored(recorded: Recorded) -> None:
    traces = recorded["v1"]
    traces[5] = replace(traces[5], prompt_token_ids=traces[4].prompt_token_ids)
    finding = run(recorded, traces, requests=asked(recorded["v1"]))
    assert finding.results[5].reason == "prompt_token_ids: not the prompt that was asked for"
    assert finding.coverage == pytest.approx(23 / 24)


def test_a_choice_of_one_that_was_asked_for_is_neither_owed_nor_scored(recorded: Recorded) -> None:
    """Forced by the request: no evidence for the provider, and no debt either."""
    requests, traces = asked(recorded["v1"]), recorded["v1"]
    requests[3:5] = claim(requests[3:5], allowed_token_ids=(7,))
    traces[3:5] = [with_output(trace, [7] * TOKENS) for trace in traces[3:5]]
    finding = run(recorded, traces, requests=requests)
    assert finding.tokens_requested == 22 * TOKENS
    assert finding.tokens_by_status["forced"] == 2 * TOKENS
    assert finding.coverage == 1.0
    assert finding.verdict is Verdict.CONSISTENT


def test_other_tokens_than_the_one_that_was_asked_for_are_owed(recorded: Recorded) -> None:
    requests = asked(recorded["v1"])
    requests[3:5] = claim(requests[3:5], allowed_token_ids=(7,))
    finding = run(recorded, recorded["v1"], requests=requests)
    assert (finding.tokens_requested, finding.tokens_by_status["forced"]) == (24 * TOKENS, 0)
    assert finding.verdict is Verdict.UNDECIDED
