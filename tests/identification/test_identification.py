"""Naming the sampler from tokens: its error bound, real tokens of two runners, and tokens that fit none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from recorded import Recorded
from veridifr.identification import RISK, SEQUENCES, identify, match_bound
from veridifr.trace import EngineRecord, Trace

NOBODY = EngineRecord(name="unknown")


def nameless(traces: list[Trace]) -> list[Trace]:
    return [replace(trace, engine=NOBODY) for trace in traces]


def reseeded(traces: list[Trace]) -> list[Trace]:
    return [replace(t, sampling=replace(t.sampling, seed=10_000 + i)) for i, t in enumerate(traces)]


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_the_bound_is_above_the_binomial_tail_and_near_it(chance: float) -> None:
    for matches in range(101):
        exact = binom.sf(matches - 1, 100, chance)
        bound = match_bound(np.full(100, chance), matches)
        assert bound >= exact * (1 - 1e-6)
        if exact > 1e-30:
            assert bound <= 30 * exact or bound == 1.0 or exact > 0.3


def test_the_bound_holds_for_unequal_chances() -> None:
    chances, rng = np.random.default_rng(0).random(60), np.random.default_rng(1)
    counts = (rng.random((200_000, 60)) < chances).sum(axis=1)
    for matches in (35, 40, 45):
        assert match_bound(chances, matches) >= (counts >= matches).mean()


@pytest.mark.parametrize(
    ("name", "contract"), [("v1", "vllm-v1-cuda-exp32"), ("v2", "vllm-v2-e"), ("int4", "vllm-v1-cuda-exp32")]
)
def test_real_tokens_name_their_sampler(recorded: Recorded, name: str, contract: str) -> None:
    """Without a word of the engine; a 4-bit model's tokens still show whose noise chose them."""
    found = identify(nameless(recorded[name]), recorded.reference)
    assert found.contract == contract
    assert found.sequences <= SEQUENCES
    (best,) = [one for one in found.tried if one.contract == contract]
    assert best.matches is not None and best.by_chance is not None and best.risk is not None
    assert best.risk <= RISK and best.matches > 1.2 * best.by_chance
    assert contract in found.sentence


def test_a_few_tokens_are_enough_or_nothing_is_named(recorded: Recorded) -> None:
    for tokens in (1, 4, 16, 64):
        few = [replace(t, output_token_ids=t.output_token_ids[:tokens]) for t in nameless(recorded["v1"])[:1]]
        found = identify(few, recorded.reference)
        assert found.contract in (None, "vllm-v1-cuda-exp32")
        assert (found.contract is None) or tokens > 4


def test_tokens_of_other_noise_fit_none(recorded: Recorded) -> None:
    found = identify(reseeded(nameless(recorded["v1"])), recorded.reference)
    assert found.contract is None
    assert "fit none of" in found.sentence
    tried = [one for one in found.tried if one.matches is not None]
    assert len(tried) >= 8
    for one in tried:  # by chance, and no more: within five standard deviations
        assert one.by_chance is not None and one.matches is not None
        assert abs(one.matches - one.by_chance) < 5 * np.sqrt(found.tokens / 4)


def test_without_seeds_nothing_can_be_named(recorded: Recorded) -> None:
    loose = [replace(t, sampling=replace(t.sampling, seed=None)) for t in recorded["v1"]]
    found = identify(loose, recorded.reference)
    assert (found.contract, found.tokens) == (None, 0)
    assert "takes seeds" in found.sentence


def test_sequences_that_share_a_seed_count_once(recorded: Recorded) -> None:
    same = [replace(t, sampling=replace(t.sampling, seed=5)) for t in recorded["v1"]]
    assert identify(same, recorded.reference).sequences == 1


def test_contracts_that_cannot_be_tried_say_why(recorded: Recorded) -> None:
    found = identify(recorded["v1"][:1], recorded.reference)
    reasons = {one.contract: one.reason for one in found.tried if one.matches is None}
    assert "engine.batch_row" in str(reasons["hf-multinomial"])
    assert {"vllm-v1-cuda-exp64", "sglang-murmur"} <= set(reasons)
