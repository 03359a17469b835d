"""The installed peer package on judged sequences: what it is asked, and how its numbers stand beside ours."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import peer_package
import scores
import spec as specs
from veridifr import EngineRecord, Sampling, Trace, write_traces

TOKENS = 6


@pytest.fixture
def experiment() -> specs.Experiment:
    honest = (specs.Provider(name="v1", honest=True), specs.Provider(name="v2", honest=True, runner="v2"))
    return specs.Experiment(
        name="t",
        claim={"temperature": 1.0, "top_k": 50, "top_p": 0.95},
        models={"m": Path("somewhere")},
        providers=(*honest, specs.Provider(name="other", seeds="next")),
        tokens=TOKENS,
        fit=3,
        judged=20,
        edges=(TOKENS,),
        budgets=(TOKENS,),
    )


@pytest.fixture
def served(experiment: specs.Experiment, tmp_path: Path) -> Path:
    """Traces of every provider as a worker leaves them."""
    for number, provider in enumerate(experiment.providers):
        count = experiment.judged + (experiment.fit if provider.honest else 0)
        traces = [
            Trace(
                id=f"{provider.file}/{n}",
                model="m",
                prompt_token_ids=np.array([1, 2], dtype=np.int32),
                output_token_ids=np.full(TOKENS, n, dtype=np.int32),
                sampling=Sampling(**experiment.claim, seed=100 * number + n, max_tokens=TOKENS, ignore_eos=True),
                engine=EngineRecord(name="vllm", version="0.24.0"),
                finish_reason="length",
            )
            for n in range(count)
        ]
        write_traces(tmp_path / f"{provider.file}.jsonl.gz", traces)
    return tmp_path


class Package(ModuleType):
    """Stands in for the package: it notes what it is asked, and nothing that is not of V1 matches."""

    def __init__(self) -> None:
        super().__init__("token_difr")
        self.asked: list[tuple[int, int]] = []

    @staticmethod
    def TokenSequence(**fields: Any) -> Any:
        return SimpleNamespace(**fields)

    def verify_outputs(self, outputs: list[Any], model: str, *, seed: int, **claim: Any) -> list[list[Any]]:
        assert model == "somewhere" and (claim["temperature"], claim["top_k"], claim["top_p"]) == (1.0, 50, 0.95)
        (sequence,) = outputs
        self.asked.append((sequence.output_token_ids[0], seed))
        right = seed < 100
        return [[SimpleNamespace(exact_match=right, margin=0.001 if right else float("inf"))] * TOKENS]


def test_each_judged_sequence_is_asked_with_its_own_seed(
    experiment: specs.Experiment, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package()
    monkeypatch.setitem(sys.modules, "token_difr", package)
    monkeypatch.setattr(peer_package, "started_once", dict)
    found = peer_package.run(experiment, "m", served, ["v1", "other"], 4)
    assert package.asked == [(3, 3), (4, 4), (5, 5), (6, 6), (0, 200), (1, 201), (2, 202), (3, 203)]
    assert found["m/v1/match"].all() and not found["m/other/match"].any()
    assert np.isinf(found["m/other/margins"]).all() and found["m/v1/margins"].shape == (4, TOKENS)
    assert not any("v2" in key for key in found)


def test_a_model_that_is_measured_again_keeps_nothing_of_before(tmp_path: Path) -> None:
    path = tmp_path / "token_difr.npz"
    assert peer_package.others(path, "m") == {}
    np.savez(path, **{"m/v1/match": np.ones(2), "m2/v1/match": np.ones(3)})
    assert list(peer_package.others(path, "m")) == ["m2/v1/match"]


def test_honest_traffic_whose_noise_the_package_does_not_have_looks_like_fraud_to_it_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    own = {name: rng.normal(size=(20, 1, len(scores.TOKEN_DETECTORS))) for name in ("v1", "v2", "other")}
    own["other"] += 9.0
    np.savez(tmp_path / "scores.npz", **{f"m/{name}/tokens": values for name, values in own.items()})
    match = {
        "v1": np.ones((20, TOKENS), bool),
        "v2": np.zeros((20, TOKENS), bool),
        "other": np.zeros((20, TOKENS), bool),
    }
    margins = {name: np.where(found, 0.01, np.inf).astype(np.float16) for name, found in match.items()}
    arrays = {f"m/{name}/match": found for name, found in match.items()}
    arrays |= {f"m/{name}/margins": found for name, found in margins.items()}
    arrays["m/v1/margins"][0, 0] = 2.0
    np.savez(tmp_path / "token_difr.npz", **arrays)
    found = peer_package.figures({"honest": ["v1"]}, tmp_path)["m"]
    assert found["exact_match"] == {"v1": 1.0, "v2": 0.0, "other": 0.0}
    assert found["auc"]["v2"]["package_match"] == found["auc"]["other"]["package_margin"] == 1.0
    assert 0.2 < found["auc"]["v2"]["likelihood"] < 0.8 and found["auc"]["other"]["likelihood"] == 1.0
    assert 1.0 < found["clip"] <= 2.0
    assert set(found["auc"]) == {"v2", "other"}
