"""Findings for the tests of the reports and for the README picture: plausible figures, made from a fixed seed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from veridifr.comparison import Compared, Comparison, Cost
from veridifr.finding import (
    Alternative,
    Diagnosis,
    Finding,
    LogitNoise,
    Provenance,
    SequenceResult,
    SequentialSummary,
    StackResult,
    TestSummary,
    TokenNote,
    Verdict,
)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def scores(seed: int, median: float, spread: float, count: int) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    return tuple(float(x) for x in np.round(median * np.exp(spread * rng.standard_normal(count)), 6))


HONEST = {"vllm-v1 on H200": scores(1, 0.0021, 0.55, 60), "vllm-v2 on H200": scores(2, 0.0019, 0.6, 60)}

WORST = (
    TokenNote(
        sequence="int4-017", step=212, claimed_id=318, best_id=285, margin=1.914,
        before="def read_header(self, stream):\n        size = stream.read(4)\n        if size",
        claimed=" is", best=" <", after=" 0:\n            raise ValueError(",
    ),
    TokenNote(
        sequence="int4-004", step=88, claimed_id=1207, best_id=940, margin=1.377,
        before="        for index, item in enumerate(values):\n            result.", claimed="extend", best="append",
        after="(item)\n        return result\n",
    ),
    TokenNote(
        sequence="int4-031", step=141, claimed_id=5531, best_id=262, margin=1.102,
        before="    \"\"\"Return the number of bytes", claimed=" written", best=" in", after=" to the file.\"\"\"\n",
    ),
    TokenNote(
        sequence="int4-009", step=9, claimed_id=202, best_id=4410, margin=0.948,
        before="from collections import OrderedDict", claimed="\n", best=", defaultdict",
        after="import os\nimport sys\n",
    ),
)  # fmt: skip


def results(name: str, values: tuple[float, ...], match: float) -> tuple[SequenceResult, ...]:
    return tuple(
        SequenceResult(
            id=f"{name}-{i:03d}", tokens_by_status={"scored": 300}, exact_match=match, mean_margin=value, score=value,
            reason=None,
        )
        for i, value in enumerate(values)
    )  # fmt: skip


def provenance(name: str) -> Provenance:
    return Provenance(
        veridifr="0.1.0",
        created="2026-11-23T21:14:09Z",
        traces=((f"demo/{name}.jsonl", digest(name)),),
        reference="hf:models/tb7m",
        weights=digest("weights"),
        calibration=digest("calibration"),
        calibration_file="demo/calibration.json",
        settings={"dtype": "float32", "device": "cpu", "threads": 2, "tail_mass": 1e-6, "hashes_per_token": 41.7},
    )


def divergent(**changes: Any) -> Finding:
    values = scores(3, 0.031, 0.32, 40)
    finding = Finding(
        verdict=Verdict.DIVERGENT,
        alpha=0.01,
        p_value=0.0001,
        reason="The mean margin per sequence is 15 times that of honest runs, against both honest stacks.",
        next_step=None,
        test=TestSummary(
            name="Permutation test",
            statistic="mean margin of a sequence, logits",
            permutations=9999,
            stacks=(
                StackResult(name="vllm-v1 on H200", p_value=0.0001, floor=3.2e-29, sequences=60),
                StackResult(name="vllm-v2 on H200", p_value=0.0001, floor=3.2e-29, sequences=60),
            ),
            detect_sigma=0.024,
            power=0.998,
            further_sequences=0,
        ),
        model="tb7m",
        engine="vllm 0.24.0, runner v1, NVIDIA H200, bfloat16",
        contract="vllm-v1-cuda-exp32",
        assumptions=(
            "The sampler contract was inferred from vllm 0.24.0 with runner v1 on a CUDA device.",
            "fp64_noise was not stated and taken as off, the default of that version.",
        ),
        sequences=40,
        sequences_unsupported=0,
        tokens_requested=12000,
        tokens_scored=12000,
        tokens_by_status={"scored": 11964, "bound": 36, "missing": 0, "forced": 0},
        exact_match=0.93125,
        mean_margin=0.0327,
        effective_logit_noise=LogitNoise(estimate=0.204, honest=0.0121, interval=(0.191, 0.218)),
        diagnosis=Diagnosis(
            code="forward_pass",
            parameter="sigma",
            estimate=0.204,
            interval=(0.191, 0.218),
            sentence="The sampler and its settings fit; the model's own output does not. Other weights, quantization or"
            " a compressed key-value cache would look like this.",
            alternatives=(
                Alternative(code="forward_pass", contract=None, parameter="sigma", estimate=0.204, gain=0.1731),
                Alternative(code="temperature", contract=None, parameter="temperature", estimate=1.04, gain=0.0212),
                Alternative(code="top_p", contract=None, parameter="top_p", estimate=0.97, gain=0.0034),
                Alternative(code="top_k", contract=None, parameter="top_k", estimate=64.0, gain=0.0007),
                Alternative(code="seed", contract=None, parameter="seed + 1", estimate=None, gain=-4.18),
                Alternative(
                    code="sampler_contract", contract="vllm-v2-e", parameter=None, estimate=None, gain=-4.31
                ),
            ),
        ),
        provenance=provenance("int4"),
        results=results("int4", values, 0.93),
        worst_tokens=WORST,
        honest_scores=HONEST,
        honest_exact_match=0.9964,
    )  # fmt: skip
    return replace(finding, **changes)


def consistent(**changes: Any) -> Finding:
    base = divergent()
    assert base.test is not None
    stacks = (
        replace(base.test.stacks[0], p_value=0.4631),
        replace(base.test.stacks[1], p_value=0.2207),
    )
    finding = replace(
        base,
        verdict=Verdict.CONSISTENT,
        p_value=0.4631,
        reason="The mean margin per sequence is that of honest runs, and all of the requested tokens were scored.",
        test=replace(base.test, stacks=stacks),
        exact_match=0.99675,
        mean_margin=0.0022,
        effective_logit_noise=LogitNoise(estimate=0.0118, honest=0.0121, interval=(0.0102, 0.0137)),
        diagnosis=Diagnosis(),
        provenance=provenance("v1"),
        results=results("v1", scores(4, 0.0021, 0.5, 40), 0.9967),
        worst_tokens=(),
    )
    return replace(finding, **changes)


def sequential() -> Finding:
    """The divergent one, had it been a sequential audit."""
    finding = divergent(p_value=0.01, sequences=7)
    assert finding.test is not None
    ended = SequentialSummary(status="rejected", e_value=100.0, n=7, ordered=40, seed=3, floor=0.05)
    return replace(finding, test=replace(finding.test, name="Sequential test", permutations=0, sequential=ended))


def temperature(**changes: Any) -> Finding:
    base = divergent()
    finding = replace(
        base,
        engine="vllm 0.24.0, runner v2, NVIDIA H200, bfloat16",
        contract="vllm-v2-e",
        reason="The mean margin per sequence is 9 times that of honest runs, against both honest stacks.",
        exact_match=0.9562,
        mean_margin=0.0189,
        effective_logit_noise=LogitNoise(estimate=0.118, honest=0.0121, interval=(0.109, 0.127)),
        diagnosis=Diagnosis(
            code="temperature",
            parameter="temperature",
            estimate=1.1004,
            interval=(1.094, 1.107),
            sentence="The tokens fit a temperature of 1.10 with the claimed model; 1.00 was claimed.",
            alternatives=(
                Alternative(code="temperature", contract=None, parameter="temperature", estimate=1.1004, gain=0.0914),
                Alternative(code="forward_pass", contract=None, parameter="sigma", estimate=0.118, gain=0.0532),
            ),
        ),
        provenance=provenance("temp1.1"),
        results=results("temp1.1", scores(5, 0.018, 0.35, 40), 0.956),
    )
    return replace(finding, **changes)


def undecided(**changes: Any) -> Finding:
    base = consistent()
    assert base.test is not None
    unsupported = tuple(
        SequenceResult(
            id=f"few-{i:03d}", tokens_by_status={"missing": 300}, exact_match=None, mean_margin=None, score=None,
            reason="sampling.seed: missing, temperature above 0" if i < 8 else "sampling.min_p: not in this contract",
        )
        for i in range(6, 10)
    )  # fmt: skip
    finding = replace(
        base,
        verdict=Verdict.UNDECIDED,
        reason="Only 60.0 % of the requested tokens could be scored; 95 % are needed.",
        next_step="Ask for 14 more sequences, each with a seed.",
        test=replace(base.test, power=0.41, further_sequences=14),
        sequences=10,
        sequences_unsupported=4,
        tokens_requested=3000,
        tokens_scored=1800,
        tokens_by_status={"scored": 1790, "bound": 10, "missing": 1200, "forced": 0},
        provenance=provenance("few"),
        results=results("few", scores(6, 0.002, 0.5, 6), 0.997) + unsupported,
    )
    return replace(finding, **changes)


def _nothing(verdict: Verdict, reason: str, step: str) -> Finding:
    return replace(
        divergent(),
        verdict=verdict,
        p_value=None,
        reason=reason,
        next_step=step,
        test=None,
        contract=None,
        assumptions=(),
        sequences=40,
        sequences_unsupported=40,
        tokens_scored=0,
        tokens_by_status={"missing": 12000},
        exact_match=None,
        mean_margin=None,
        effective_logit_noise=LogitNoise(estimate=None, honest=None, interval=None),
        diagnosis=Diagnosis(),
        provenance=replace(provenance(verdict.value), calibration_file=None),
        results=(),
        worst_tokens=(),
        honest_scores={},
        honest_exact_match=None,
    )


def no_evidence() -> Finding:
    return _nothing(Verdict.NO_EVIDENCE, "Not one of the 40 sequences arrived.", "Send the requests again.")


def unsupported() -> Finding:
    finding = _nothing(
        Verdict.UNSUPPORTED,
        "engine.speculative_decoding: the draws of a draft model cannot be replayed.",
        "Ask the provider to turn speculative decoding off for audited requests.",
    )
    names = [f"spec-{i:03d}" for i in range(40)]
    reason = "engine.speculative_decoding: on"
    refused = tuple(
        SequenceResult(
            id=name, tokens_by_status={"missing": 300}, exact_match=None, mean_margin=None, score=None, reason=reason
        )
        for name in names
    )
    return replace(finding, results=refused)


def one_of_each() -> tuple[Finding, ...]:
    return consistent(), divergent(), undecided(), no_evidence(), unsupported()


def demo() -> tuple[Finding, ...]:
    v2 = consistent(
        provenance=provenance("v2"),
        engine="vllm 0.24.0, runner v2, NVIDIA H200, bfloat16",
        contract="vllm-v2-e",
        p_value=0.7218,
        exact_match=0.99642,
        results=results("v2", scores(7, 0.0019, 0.55, 40), 0.9964),
        effective_logit_noise=LogitNoise(estimate=0.0124, honest=0.0121, interval=(0.0107, 0.0143)),
    )
    return consistent(), v2, divergent(), temperature()


def compared(name: str, finding: Finding, cost: Cost | None = None) -> Compared:
    """One provider of a comparison of four."""
    p_value, match = finding.p_value, finding.exact_match
    interval = None if match is None else (round(match - 0.00625, 5), min(1.0, round(match + 0.00575, 5)))
    return Compared(
        name=name,
        adjusted_p_value=None if p_value is None else min(1.0, 4 * p_value),
        score=None if p_value is None else 1.5,
        exact_match_interval=interval,
        prompt_tokens=4321,
        output_tokens=finding.tokens_requested,
        cost=cost,
        finding=finding,
    )


def comparison() -> Comparison:
    """Four providers of one model, one of them cheaper than it should be."""
    return Comparison(
        alpha=0.01,
        correction="Holm",
        providers=(
            compared("cheap-host", divergent(), Cost(currency="USD", amount=1.42)),
            compared("honest-host", consistent(), Cost(currency="USD", amount=7.1)),
            compared("slow-host", undecided()),
            compared("other-engine", unsupported()),
        ),
    )
