"""Capture inside a real vLLM: its fingerprints are an HF reference's at every token, whatever the scheduler does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cpu_engine import CpuEngine
from provider_engine import BLOCKS, ProviderEngine
from transformers import AutoModelForCausalLM

from veridifr.errors import UnsupportedError
from veridifr.fingerprints import FingerprintSpec, fingerprint_of, project
from veridifr.trace import Trace
from veridifr.vllm import Provider, enable

pytestmark = pytest.mark.vllm

SPEC = FingerprintSpec(seed=11, hidden_size=256, k=8, encoding="float32")


@pytest.fixture
def provider(provider_engine: ProviderEngine) -> Iterator[Provider]:
    with provider_engine.provider(spec=SPEC) as found:
        yield found


@pytest.fixture(scope="module")
def models(tb7m: Path) -> dict[str, Any]:
    return {
        name: AutoModelForCausalLM.from_pretrained(tb7m, dtype=getattr(torch, name), local_files_only=True).eval()
        for name in ("float32", "bfloat16")
    }


def expected(model: Any, trace: Trace) -> np.ndarray:
    """The projections of a trace's output tokens, from one forward pass of a transformers model."""
    ids = [*trace.prompt_token_ids.tolist(), *trace.output_token_ids.tolist()[:-1]]
    with torch.inference_mode():
        states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return project(states[len(trace.prompt_token_ids) - 1 :].float().numpy(), SPEC.seed, SPEC.k)


def captured(trace: Trace) -> np.ndarray:
    found = fingerprint_of(trace, SPEC)
    assert found is not None
    return np.frombuffer(found.payloads[0], dtype="<f4").reshape(-1, SPEC.k)


def check(traces: list[Trace], models: dict[str, Any]) -> None:
    """Every token's coordinates lie as near to the float32 reference as transformers' own bfloat16 does, within a
    factor that an entry of a neighbouring token, or of another request, misses by far."""
    for trace in traces:
        exact, honest, found = expected(models["float32"], trace), expected(models["bfloat16"], trace), captured(trace)
        assert found.shape == (len(trace.output_token_ids), SPEC.k)
        scale = np.sqrt(np.mean((honest - exact) ** 2))
        errors_T = np.sqrt(np.mean((found - exact) ** 2, axis=1))
        assert errors_T.max() < 6 * scale, (trace.id, errors_T / scale)
        if len(found) > 4:
            shifted = np.sqrt(np.mean((found[1:] - exact[:-1]) ** 2, axis=1))
            assert np.median(shifted) > 6 * scale  # the check above can fail


def prompts_of(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 8000, length).tolist() for length in lengths]


def test_the_record_is_measured(provider: Provider) -> None:
    record = provider.engine
    assert (record.name, record.version, record.runner, record.device) == ("vllm", "0.32.0", "v1", "cpu")
    assert (record.dtype, record.sampler) == ("bfloat16", "vllm-cpu-gumbel-splitmix")
    assert (record.fp64_noise, record.speculative_decoding) == (False, False)
    assert provider.spec == SPEC


def test_unequal_requests_in_one_batch(
    provider: Provider, provider_engine: ProviderEngine, models: dict[str, Any]
) -> None:
    lengths = (1, 3, 9, 20, 40, 70, 100, 5, 2, 33, 64, 12)
    asked = [
        {"temperature": 0.8 + 0.05 * n, "seed": n, "max_tokens": 2 + 4 * n, "ignore_eos": True, "top_k": 40 + n}
        for n in range(len(lengths))
    ]
    outputs = provider_engine.generate(prompts_of(lengths), asked)
    traces = provider.traces(outputs)
    assert [len(t.output_token_ids) for t in traces] == [2 + 4 * n for n in range(len(lengths))]
    assert [t.output_token_ids.tolist() for t in traces] == [list(o.outputs[0].token_ids) for o in outputs]
    assert [t.sampling.top_k for t in traces] == [40 + n for n in range(len(lengths))]
    assert all(t.engine == provider.engine for t in traces)
    check(traces, models)
    assert provider.state()["requests"] == 0


def test_prefix_caching(provider: Provider, provider_engine: ProviderEngine, models: dict[str, Any]) -> None:
    (prompt,) = prompts_of((150,), seed=5)
    asked = {"temperature": 1.0, "max_tokens": 6, "ignore_eos": True}
    first = provider_engine.generate([prompt], [{**asked, "seed": 1}])
    second = provider_engine.generate([prompt], [{**asked, "seed": 2}])
    assert second[0].num_cached_tokens >= 128
    check(provider.traces(first + second), models)


def test_preemption(
    provider: Provider,
    provider_engine: ProviderEngine,
    models: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More requests grow past a block than the cache has room for: some are thrown out and computed again."""
    preempted: list[str] = []
    original = provider_engine.scheduler._preempt_request

    def preempt(request: Any, *rest: Any, **fields: Any) -> None:
        preempted.append(request.request_id)
        original(request, *rest, **fields)

    monkeypatch.setattr(provider_engine.scheduler, "_preempt_request", preempt)
    count = BLOCKS - 1
    asked = [{"temperature": 1.0, "seed": 70 + n, "max_tokens": 45, "ignore_eos": True} for n in range(count)]
    traces = provider.traces(provider_engine.generate(prompts_of((100,) * count, seed=6), asked))
    assert len(preempted) > 0
    assert all(len(t.output_token_ids) == 45 for t in traces)
    check(traces, models)


def test_children(provider: Provider, provider_engine: ProviderEngine, models: dict[str, Any]) -> None:
    asked = {"temperature": 1.0, "seed": 900, "n": 3, "max_tokens": 8, "ignore_eos": True}
    traces = provider.traces(provider_engine.generate(prompts_of((7,)), [asked]))
    assert [t.engine.child for t in traces] == [0, 1, 2]
    assert [t.sampling.seed for t in traces] == [900, 900, 900]
    assert len({tuple(t.output_token_ids.tolist()) for t in traces}) == 3
    check(traces, models)


def test_every_other_token(provider_engine: ProviderEngine, models: dict[str, Any]) -> None:
    spec = FingerprintSpec(seed=11, hidden_size=256, k=8, encoding="float32", every=3)
    with provider_engine.provider(spec=spec) as found:
        asked = {"temperature": 1.0, "seed": 4, "max_tokens": 8, "ignore_eos": True}
        (trace,) = found.traces(provider_engine.generate(prompts_of((7,)), [asked]))
    entries = fingerprint_of(trace, spec)
    assert entries is not None
    values = np.frombuffer(entries.payloads[0], dtype="<f4").reshape(-1, 8)
    exact = expected(models["float32"], trace)[::3]
    assert values.shape == exact.shape == (3, 8)
    assert np.abs(values - exact).max() < 0.1 * np.abs(exact).max()


def test_without_fingerprints(provider_engine: ProviderEngine) -> None:
    with provider_engine.provider() as found:
        asked = {"temperature": 1.0, "seed": 4, "max_tokens": 5}
        (trace,) = found.traces(provider_engine.generate(prompts_of((7,)), [asked]))
    assert found.spec is None
    assert fingerprint_of(trace) is None
    assert trace.engine.sampler == "vllm-cpu-gumbel-splitmix"


def test_no_seed(provider: Provider, provider_engine: ProviderEngine) -> None:
    """Drawn noise without a seed cannot be replayed on this runner; greedy decoding draws none."""
    outputs = provider_engine.generate(
        prompts_of((5, 5)), [{"temperature": 1.0, "max_tokens": 3}, {"temperature": 0.0, "max_tokens": 3}]
    )
    drawn, greedy = provider.records(outputs)
    assert drawn.trace is None
    assert drawn.reason is not None
    assert drawn.reason.startswith("sampling.seed: no seed was given")
    assert greedy.trace is not None
    with pytest.raises(UnsupportedError, match="unknown: no such request was captured"):
        provider.traces(outputs)  # they have left the buffer


def test_settings_as_executed(provider: Provider, provider_engine: ProviderEngine) -> None:
    asked = {"temperature": 0.001, "seed": 3, "max_tokens": 3, "repetition_penalty": 1.2, "logit_bias": {7: 2.0}}
    (trace,) = provider.traces(provider_engine.generate(prompts_of((5,)), [asked]))
    assert trace.sampling.temperature == 0.01  # vLLM raises what lies between
    assert trace.sampling.repetition_penalty == 1.2
    assert trace.sampling.logit_bias == {7: 2.0}


def test_an_aborted_request(provider: Provider, provider_engine: ProviderEngine) -> None:
    engine, params = provider_engine.llm.llm_engine, provider_engine.vllm.SamplingParams
    for name, seed in (("left", 1), ("kept", 2)):
        asked = params(temperature=1.0, seed=seed, max_tokens=12, ignore_eos=True, detokenize=False)
        engine.add_request(name, {"prompt_token_ids": [1, 2, 3 + seed]}, asked)
    for _ in range(4):
        engine.step()
    engine.abort_request(["left"])
    outputs = []
    while engine.has_unfinished_requests():
        outputs += [output for output in engine.step() if output.finished]
    (trace,) = provider.traces([output for output in outputs if output.request_id == "kept"])
    assert len(trace.output_token_ids) == 12
    (answer,) = provider_engine.llm.collective_rpc("veridifr_take", args=([["left", None, 12]], False))
    assert answer["requests"][0]["status"] == "incomplete"
    provider_engine.llm.collective_rpc("veridifr_drop", args=([["left", None, 0]],))
    (answer,) = provider_engine.llm.collective_rpc("veridifr_take", args=([["left", None, 12]],))
    assert answer["requests"][0]["status"] == "unknown"


def test_an_output_that_is_not_the_workers(provider: Provider, provider_engine: ProviderEngine) -> None:
    """A trace states what the worker sampled, or there is none."""
    asked = {"temperature": 1.0, "seed": 4, "max_tokens": 5, "ignore_eos": True}
    (output,) = provider_engine.generate(prompts_of((7,)), [asked])
    output.outputs[0].token_ids = [1, 2, 3, 4, 5]
    (record,) = provider.records([output])
    assert record.trace is None
    assert "the output differs from what the worker saw" in str(record.reason)


def test_closed_leaves_nothing(provider_engine: ProviderEngine) -> None:
    runner, worker = provider_engine.runner, provider_engine.worker
    before = ({**vars(runner)}, {**vars(worker)})
    with provider_engine.provider(spec=SPEC) as found:
        assert vars(runner).keys() - before[0].keys() == {"sample_tokens"}
        with pytest.raises(UnsupportedError, match="capture: is on already"):
            provider_engine.provider(spec=SPEC)
    assert vars(runner).keys() == before[0].keys()
    assert vars(worker).keys() == before[1].keys()
    assert runner.sample_tokens.__func__ is type(runner).sample_tokens
    with pytest.raises(UnsupportedError, match="capture: is off"):
        found.state()


def test_an_engine_without_the_extension(engine: CpuEngine) -> None:
    with pytest.raises(UnsupportedError, match="worker_extension_cls: start the engine with"):
        enable(engine.llm, SPEC)


@pytest.mark.parametrize(
    ("owner", "name", "value", "said"),
    [
        ("vllm_config", "speculative_config", object(), "speculative"),
        ("vllm_config", "kv_transfer_config", object(), "kv_transfer_config"),
        ("vllm_config.parallel_config", "pipeline_parallel_size", 2, "pipeline_parallel_size: got 2"),
        ("vllm_config.parallel_config", "data_parallel_size", 2, "data_parallel_size: got 2"),
        ("vllm_config.model_config", "use_fp64_gumbel", True, "fp64"),
        ("vllm_config.model_config", "logits_processors", ["mine.Processor"], "logits_processors"),
        ("vllm_config.model_config", "runner_type", "pooling", "runner: got pooling"),
        ("model_runner", "sample_tokens", lambda grammar_output: None, "wrapped already"),
        ("model_runner.input_batch", "num_tokens_no_spec", None, "has no input_batch.num_tokens_no_spec"),
        ("model_runner.model.model", "norm", None, "no final norm at model.norm"),
        ("model_runner.model", "lm_head", None, "no lm_head"),
        ("model_runner.sampler.topk_topp_sampler", "forward", None, "self-test of vllm-cpu-gumbel-splitmix"),
    ],
)
def test_what_does_not_look_as_expected_is_refused_and_left_alone(
    provider_engine: ProviderEngine, monkeypatch: pytest.MonkeyPatch, owner: str, name: str, value: Any, said: str
) -> None:
    target: Any = provider_engine.worker
    for part in owner.split("."):
        target = getattr(target, part)
    if "self-test" in said:
        value = lambda logits, *rest: (torch.zeros(len(logits), dtype=torch.int64), None)  # noqa: E731
    if value is None:
        monkeypatch.delattr(target, name)
    else:
        monkeypatch.setattr(target, name, value)
    with pytest.raises(UnsupportedError, match=said):
        provider_engine.provider(spec=SPEC)
    assert "_veridifr_capture" not in vars(provider_engine.worker)


@pytest.mark.parametrize(
    ("version", "said"),
    [("0.31.0", "has not been run"), ("0.28.0", "refused: on a CPU"), ("0.40.0", "has not been run"), ("x", "got 'x'")],
)
def test_other_versions_are_refused(
    provider_engine: ProviderEngine, monkeypatch: pytest.MonkeyPatch, version: str, said: str
) -> None:
    monkeypatch.setattr(provider_engine.vllm, "__version__", version)
    with pytest.raises(UnsupportedError, match=said):
        provider_engine.provider(spec=SPEC)


def test_a_version_that_was_not_run_must_pass_the_self_test(
    provider_engine: ProviderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allowed explicitly, 0.31 implies another sampler than this engine has, and 0.33 the same one."""
    monkeypatch.setattr(provider_engine.vllm, "__version__", "0.31.0")
    with pytest.raises(UnsupportedError, match="self-test of vllm-cpu-exp32"):
        provider_engine.provider(spec=SPEC, allow_unverified_version=True)
    monkeypatch.setattr(provider_engine.vllm, "__version__", "0.33.0")
    with provider_engine.provider(spec=SPEC, allow_unverified_version=True) as found:
        assert found.engine.version == "0.33.0"


def test_another_runner_class_is_refused(provider_engine: ProviderEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_engine.worker, "model_runner", SimpleNamespace())
    with pytest.raises(UnsupportedError, match="SimpleNamespace is none of those known"):
        provider_engine.provider(spec=SPEC)


def test_specifications_that_do_not_fit(provider_engine: ProviderEngine) -> None:
    wrong = FingerprintSpec(seed=1, hidden_size=128, k=8, encoding="float32")
    with pytest.raises(UnsupportedError, match=r"spec\.hidden_size: got 128, the model's is 256"):
        provider_engine.provider(spec=wrong)
    deep = FingerprintSpec(seed=1, hidden_size=256, k=8, encoding="float32", taps=("layer.1", "final"))
    with pytest.raises(UnsupportedError, match=r"spec\.taps: got layer\.1, final: only 'final'"):
        provider_engine.provider(spec=deep)
