"""Causes that are named, on real GPU traces whose true settings are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recorded import Recorded
from veridifr.auditing import audit
from veridifr.contracts.registry import CONTRACTS, infer
from veridifr.contracts.unknown import UNKNOWN
from veridifr.diagnosis import FEWEST, diagnose
from veridifr.finding import Diagnosis, Verdict
from veridifr.hypotheses import ScoredSequence, candidates, same_for
from veridifr.scores import Hypothesis
from veridifr.scoring import score
from veridifr.statistic import LikelihoodRatio
from veridifr.trace import Sampling, Trace

HONEST = LikelihoodRatio(sigma=0.03, epsilon=1e-5)


def scored(recorded: Recorded, traces: Sequence[Trace], **claimed: Any) -> list[ScoredSequence]:
    """The traces as if they claimed other settings."""
    reference, found = recorded.reference, []
    for trace, evidence in zip(traces, reference.evidence(traces), strict=True):
        changed = replace(trace, sampling=replace(trace.sampling, **claimed))
        contract = infer(changed.engine, changed.sampling, reference.vocab_size).contract
        claim = Hypothesis(contract=contract, sampling=changed.sampling, seed=changed.sampling.seed)
        scores = score(changed, evidence, claim, eos_ids=reference.eos_ids)
        found.append(ScoredSequence(trace=changed, evidence=evidence, claim=claim, scores=scores))
    return found


def named(recorded: Recorded, traces: Sequence[Trace], seed: int = 0, **claimed: Any) -> Diagnosis:
    return diagnose(scored(recorded, traces, **claimed), HONEST, np.random.default_rng(seed))


def relabelled(traces: Sequence[Trace], **engine: Any) -> list[Trace]:
    return [replace(trace, engine=replace(trace.engine, **engine)) for trace in traces]


@pytest.mark.parametrize(
    ("name", "runner", "contract", "claim"),
    [("v2", "v1", "vllm-v2-e", "vllm-v1-cuda-exp32"), ("v1", "v2", "vllm-v1-cuda-exp32", "vllm-v2-e")],
)
def test_a_relabelled_runner_is_named(recorded: Recorded, name: str, runner: str, contract: str, claim: str) -> None:
    finding = audit(relabelled(recorded[name], runner=runner), recorded.reference, recorded.calibration)
    found = finding.diagnosis
    assert (finding.verdict, finding.contract) == (Verdict.DIVERGENT, claim)
    assert (found.code, found.contract, found.estimate) == ("sampler_contract", contract, None)
    assert found.sentence == f"These tokens fit {contract}, not {claim}."
    assert [found.alternatives[0].code, found.alternatives[0].contract] == ["sampler_contract", contract]
    gains = [other.gain for other in found.alternatives]
    assert gains == sorted(gains, reverse=True) and gains[0] > 1.0


@pytest.mark.parametrize(("shift", "label"), [(-1, "seed + 1"), (1, "seed - 1")])
def test_a_seed_that_is_off_by_one_is_named(recorded: Recorded, shift: int, label: str) -> None:
    traces = [replace(t, sampling=replace(t.sampling, seed=t.sampling.seed + shift)) for t in recorded["v1"][:12]]
    found = named(recorded, traces)
    assert (found.code, found.parameter) == ("seed", label)
    assert found.sentence == f"These tokens fit {label}, not the seed that was claimed."


def test_seeds_that_explain_nothing_are_named(recorded: Recorded) -> None:
    """Seeds that have nothing to do with the ones used: the tokens are the model's, their noise is unknown."""
    traces = [replace(t, sampling=replace(t.sampling, seed=10**6 + i)) for i, t in enumerate(recorded["v1"][:12])]
    found = named(recorded, traces)
    assert (found.code, found.parameter) == ("seed", "none")
    assert "noise that no seed explains" in found.sentence


def test_a_hotter_provider_s_temperature_is_estimated(recorded: Recorded) -> None:
    found = named(recorded, recorded["temp1.1"])
    assert (found.code, found.parameter) == ("temperature", "temperature")
    assert found.estimate == pytest.approx(1.1, abs=0.01)
    assert found.interval is not None
    low, high = found.interval
    assert low < 1.1 < high and high - low < 0.03
    assert found.sentence.startswith("These tokens fit temperature 1.1, not 1.")


def test_other_weights_are_named_as_the_forward_pass(recorded: Recorded) -> None:
    found = named(recorded, recorded["int4"])
    assert (found.code, found.parameter) == ("forward_pass", "sigma")
    assert found.estimate is not None and found.estimate > 5 * HONEST.sigma
    assert found.interval is not None and found.interval[0] < found.estimate < found.interval[1]
    assert "times the honest 0.03" in found.sentence


@pytest.mark.parametrize(
    ("name", "claimed", "code", "truth", "within"),
    [
        ("v1", {"top_k": 20}, "top_k", 50, 8),
        ("v2", {"top_k": 20}, "top_k", 50, 8),
        ("v1", {"top_p": 0.8}, "top_p", 0.95, 0.01),
        ("v2", {"top_p": 0.8}, "top_p", 0.95, 0.01),
        ("v1", {"top_p": None}, "top_p", 0.95, 0.01),
    ],
)
def test_a_filter_other_than_claimed_is_named(
    recorded: Recorded, name: str, claimed: dict[str, Any], code: str, truth: float, within: float
) -> None:
    """Honest tokens (top_k 50, top_p 0.95) under a claim of something else: some lie where none could, or none do."""
    found = named(recorded, recorded[name], **claimed)
    assert (found.code, found.parameter, found.contract) == (code, code, None)
    assert found.estimate == pytest.approx(truth, abs=within)
    assert found.interval is not None and found.interval[0] <= found.estimate <= found.interval[1]


@pytest.mark.parametrize("name", ["v1", "v2", "calibration.v1", "calibration.v2"])
def test_honest_sequences_have_no_cause(recorded: Recorded, name: str) -> None:
    """Asked although nothing is wrong, as if the test had rejected by chance."""
    for start in (0, 12):
        found = named(recorded, recorded[name][start : start + 12], seed=start)
        assert (found.code, found.estimate, found.interval) == ("unexplained", None, None)
        assert all(abs(other.gain) < 0.02 or other.gain < 0 for other in found.alternatives)


@pytest.mark.parametrize("count", [0, 1, FEWEST - 1])
def test_too_few_sequences_are_unexplained(recorded: Recorded, count: int) -> None:
    found = named(recorded, recorded["int4"][:count])
    assert (found.code, found.alternatives) == ("unexplained", ())
    assert found.sentence == f"Naming a cause takes at least {FEWEST} sequences; there are {count}."


def test_the_same_generator_gives_the_same_diagnosis(recorded: Recorded) -> None:
    assert named(recorded, recorded["int4"][:6], seed=5) == named(recorded, recorded["int4"][:6], seed=5)


def claim_of(**sampling: Any) -> Hypothesis:
    settings = Sampling(**{"seed": 5, "temperature": 0.7, "top_p": 0.95, **sampling})
    return Hypothesis(contract=CONTRACTS["vllm-v2-e"], sampling=settings, seed=settings.seed)


def test_no_candidate_is_the_claim_itself() -> None:
    claim = claim_of(seed=42, top_p=0.95, top_k=50)
    for candidate in candidates(claim):
        assert candidate.hypothesis is None or candidate.hypothesis != claim


def test_candidates_change_one_thing() -> None:
    claim = claim_of()
    for candidate in candidates(claim):
        if (hypothesis := candidate.hypothesis) is None or hypothesis.sampling.greedy:
            continue
        changed = [
            hypothesis.contract is not claim.contract, hypothesis.seed != claim.seed,
            hypothesis.sampling.temperature != claim.sampling.temperature,
            hypothesis.sampling.top_p != claim.sampling.top_p, hypothesis.sampling.top_k != claim.sampling.top_k,
        ]  # fmt: skip
        assert sum(changed) == 1, candidate.label


def test_every_contract_but_the_claimed_is_tried() -> None:
    tried = {c.label for c in candidates(claim_of()) if c.code == "sampler_contract"}
    assert tried == set(CONTRACTS) - {"vllm-v2-e", "greedy"}


def test_a_greedy_claim_has_the_forward_pass_and_temperatures_of_unknown_noise() -> None:
    """No seed, no filter and no other contract can change what greedy decoding takes."""
    greedy = replace(claim_of(temperature=0.0), contract=CONTRACTS["greedy"])
    found = list(candidates(greedy))
    assert {c.code for c in found} == {"forward_pass", "temperature"}
    for candidate in found[1:]:
        assert candidate.hypothesis is not None and candidate.hypothesis.contract is UNKNOWN
        assert candidate.hypothesis.sampling.temperature == candidate.value


def test_draws_of_unknown_noise_have_neither_seeds_nor_contracts() -> None:
    found = list(candidates(replace(claim_of(), contract=UNKNOWN)))
    assert {c.code for c in found} == {"forward_pass", "temperature", "top_p", "top_k"}


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63)])
def test_seeds_at_the_ends_of_their_range(seed: int) -> None:
    labels = {c.label for c in candidates(claim_of(seed=seed)) if c.code == "seed"}
    assert {"none", "0", "1", "42"} <= labels
    assert len(labels & {"seed + 1", "seed - 1"}) == 1


def test_a_candidate_keeps_each_sequence_s_own_seed() -> None:
    one, other = claim_of(seed=5), claim_of(seed=9)
    for candidate in candidates(one):
        own = same_for(candidate, other)
        assert own is not None and (own.code, own.label) == (candidate.code, candidate.label)
        if own.hypothesis is None:
            continue
        expected = {"seed + 1": 10, "seed - 1": 8, "0": 0, "1": 1, "42": 42} if own.code == "seed" else {}
        assert own.hypothesis.seed == expected.get(own.label, 9)
