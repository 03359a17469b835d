"""The worker's methods without a worker: ranks, refusals as answers, and the self-test of the V2 runner's kernel."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_engine_parts import Params, V1Runner, new_request

from veridifr.contracts.base import Stream
from veridifr.contracts.registry import get
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord
from veridifr.vllm import extension, self_test
from veridifr.vllm.assembly import first_rank
from veridifr.vllm.extension import WorkerExtension
from veridifr.vllm.inspection import Engine
from veridifr.vllm.recorder import Recorder
from veridifr.vllm.runner_v1 import RunnerV1

RECORD = EngineRecord(name="vllm", version="0.32.0", runner="v1", device="cpu", sampler="vllm-cpu-gumbel-splitmix")


class Worker(WorkerExtension):
    """vLLM's worker as far as the extension reads it."""

    def __init__(self, rank: int, ranks: int = 2) -> None:
        self.rank = rank
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
            scheduler_config=SimpleNamespace(max_num_seqs=8),
        )
        self.model_runner = V1Runner(asynchronous=False)
        self.model_runner.device = torch.device("cpu")  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    def inspect(worker: Any, *, allow_unverified: bool) -> Engine:
        return Engine(adapter=RunnerV1(worker.model_runner), record=RECORD, hidden_size=16, vocab_size=64)

    def recorder(worker: Any, engine: Engine, options: Any, spec: Any) -> Recorder:
        return Recorder(spec, options, worker.model_runner.device, most_rows=8, draws_seeds=False, random_suffix=True)

    monkeypatch.setattr(extension, "inspect_worker", inspect)
    monkeypatch.setattr(extension, "check_sampler", lambda engine, runner: None)
    monkeypatch.setattr(extension, "_recorder", recorder)


def test_the_first_rank_records_and_the_others_do_not() -> None:
    workers = [Worker(rank) for rank in range(2)]
    record = first_rank([worker.veridifr_enable({"fingerprint_seed": 4}) for worker in workers])
    assert record["spec"]["hidden_size"] == 16
    assert record["engine"]["sampler"] == "vllm-cpu-gumbel-splitmix"
    assert ["sample_tokens" in vars(worker.model_runner) for worker in workers] == [True, False]
    for worker in workers:
        worker.model_runner.execute([("5-aaaaaaaa", 1, 0, 10, False)], (new_request("5-aaaaaaaa", [1]),))
        worker.model_runner.sample_tokens(None)
    taken = first_rank([worker.veridifr_take([["5", None, 1]]) for worker in workers])
    assert taken["requests"][0]["status"] == "ok"
    assert [worker.veridifr_disable() for worker in workers] == [{"was_on": True}, {"was_on": False}]
    assert ["sample_tokens" in vars(worker.model_runner) for worker in workers] == [False, False]


def test_refusals_are_answers() -> None:
    worker = Worker(0, 1)
    assert worker.veridifr_take([]) == worker.veridifr_record() == {"refused": "capture: is off"}
    assert "max_tokens" in worker.veridifr_enable({"max_tokens": 0})["refused"]
    assert "expected an object" in worker.veridifr_enable([])["refused"]  # type: ignore[arg-type]
    assert "sample_tokens" not in vars(worker.model_runner)
    worker.veridifr_enable({})
    assert worker.veridifr_enable({}) == {"refused": "capture: is on already"}


@pytest.mark.parametrize(
    "requests",
    ["x", [["a", None]], [[1, None, 2]], [["a", True, 2]], [["a", None, -1]], [["a", None, 2**21]], [3]],
)
def test_bad_calls_are_answered(requests: Any) -> None:
    worker = Worker(0, 1)
    worker.veridifr_enable({})
    assert worker.veridifr_take(requests)["refused"].startswith("requests")


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([{"refused": "version: too old"}, {"rank": 1}], "version: too old"),
        ([{"engine": {}}, {"refused": "spec.hidden_size: no"}], "spec.hidden_size: no"),
        ([{"rank": 1}], "no worker answered"),
        ([None], "answered with NoneType"),
    ],
)
def test_answers_of_all_ranks(answers: list[Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        first_rank(answers)


def test_request_ids_without_the_random_suffix() -> None:
    """VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: an id that only looks as if it had one stays whole."""
    from veridifr.vllm.captured import Store
    from veridifr.vllm.options import CaptureOptions

    store = Store(CaptureOptions(), lambda: 0.0, random_suffix=False)
    store.admit(new_request("mine-aaaaaaaa", [1], sampling_params=Params()))
    assert not isinstance(store.find(("mine-aaaaaaaa", None)), str)
    assert store.find(("mine", None)) == "unknown"


def kernel(contract: str, version: str, *, drafting: bool) -> ModuleType:
    """vllm.v1.worker.gpu.sample.gumbel with a `gumbel_sample` that draws by a contract of ours."""
    engine = EngineRecord(name="vllm", version=version, runner="v2")

    def draw(logits: torch.Tensor, seed: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        ids = np.arange(logits.shape[1])
        found = []
        for one, place in zip(seed.tolist(), pos.tolist(), strict=True):
            stream = Stream(seed=one, prompt_length=place + 1, vocab_size=len(ids), engine=engine)
            found.append(int(get(contract).gumbel(stream, np.array([0]), np.zeros_like(ids), ids).argmax()))
        return torch.tensor(found)

    def before(logits, expanded_idx_mapping, temperature, seed, pos, apply_temperature, use_fp64=False):  # type: ignore[no-untyped-def]
        return draw(logits, seed, pos)

    def after(logits, expanded_idx_mapping, temperature, seed, pos, apply_temperature, is_drafting, use_fp64=False):  # type: ignore[no-untyped-def]
        assert is_drafting is False
        return draw(logits, seed, pos)

    module = ModuleType("gumbel")
    module.gumbel_sample = after if drafting else before  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("version", "contract", "drafting"), [("0.24.0", "vllm-v2-e", False), ("0.32.0", "vllm-v2-f", True)]
)
def test_the_self_test_of_the_v2_kernel(
    version: str, contract: str, drafting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = EngineRecord(name="vllm", version=version, runner="v2", device="NVIDIA H200", sampler=contract)
    engine = Engine(adapter=None, record=record, hidden_size=16, vocab_size=500)  # type: ignore[arg-type]
    runner = SimpleNamespace(device=torch.device("cpu"))
    for drawn_by, accepted in ((contract, True), ("vllm-v2-d", False), ("vllm-v1-cuda-exp32", False)):
        module = kernel(drawn_by, version, drafting=drafting)
        monkeypatch.setattr(self_test, "require", lambda name, extra, m=module: torch if name == "torch" else m)
        if accepted:
            self_test.check_sampler(engine, runner)
        else:
            with pytest.raises(UnsupportedError, match=f"self-test of {contract}: seed 42"):
                self_test.check_sampler(engine, runner)
