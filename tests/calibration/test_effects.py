"""Several simulated sizes at once give what each of them gives alone."""

from __future__ import annotations

import numpy as np
import pytest

from recorded import Recorded
from veridifr.contracts.registry import infer
from veridifr.effects import effect_scores, rounded, surprises
from veridifr.evidence import Evidence
from veridifr.replay import Replayer
from veridifr.requests import plan
from veridifr.scores import Hypothesis, Scores, Status
from veridifr.scoring import score
from veridifr.statistic import simulate

EDGES = (1, 4, 16, 48, 80)
SIZES = (0.03, 0.06, 0.4)


@pytest.fixture(scope="module")
def honest(recorded: Recorded) -> list[Scores]:
    traces, reference = recorded["v1"][:4], recorded.reference
    contract = infer(traces[0].engine, traces[0].sampling, reference.vocab_size).contract
    planned, _ = plan(traces, None, traces[0].engine, reference.eos_ids, reference.decode)

    def scored(item_evidence: tuple[object, Evidence | None], trace: int) -> Scores:
        claim = Hypothesis(contract=contract, sampling=traces[trace].sampling, seed=traces[trace].sampling.seed)
        assert item_evidence[1] is not None
        return score(traces[trace], item_evidence[1], claim, eos_ids=reference.eos_ids)

    return [scored(found, i) for i, found in enumerate(Replayer(reference).run(planned, label="replay"))]


def test_only_what_changed_is_scored_again_and_nothing_is_lost(recorded: Recorded, honest: list[Scores]) -> None:
    statistic = recorded.calibration.statistic
    for number, scores in enumerate(honest):
        found = effect_scores(statistic, scores, EDGES, SIZES, np.random.default_rng(number))
        rng = np.random.default_rng(number)
        assert found.honest.tolist() == rounded(statistic.prefix_scores(scores, EDGES)).tolist()
        for row, size in zip(found.simulated, SIZES, strict=True):
            alone = statistic.prefix_scores(simulate(scores, size, rng), EDGES)
            assert row == pytest.approx(alone, abs=0.0011)
    assert found.simulated[-1, -1] > found.honest[-1] + 5


def test_surprise_is_the_mean_of_what_is_scored(honest: list[Scores]) -> None:
    scores = honest[0]
    expected = [-scores.logprob_T[:edge].mean() for edge in EDGES]
    assert surprises(scores, EDGES) == pytest.approx(expected, abs=0.0006)
    status = scores.status_T.copy()
    scores = type(scores)(**{**vars(scores), "status_T": status})
    status[0] = Status.BOUND
    assert surprises(scores, (1, 4)) == pytest.approx([0.0, -scores.logprob_T[1:4].mean()], abs=0.0006)
