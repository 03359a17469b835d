"""The importer of vLLM's results, on stand-ins and on the installed vLLM's own classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from veridifr.errors import TraceError
from veridifr.trace import EngineRecord, Sampling
from veridifr.traces import from_vllm, read_traces, write_traces
from veridifr.traces.importers import _VLLM_NEUTRAL, sampling_from_vllm

ENGINE = EngineRecord(name="vllm", version="0.24.0", runner="v1")
ASKED = Sampling(temperature=0.7, seed=42, max_tokens=3)


def output(index=0, token_ids=(3, 4), finish_reason="length", stop_reason=None):
    return SimpleNamespace(index=index, token_ids=token_ids, finish_reason=finish_reason, stop_reason=stop_reason)


def request(*outputs, **changes):
    fields = {"request_id": "7", "prompt_token_ids": [1, 2], "outputs": list(outputs), "finished": True}
    return SimpleNamespace(**{**fields, **changes})


def vllm(*requests, sampling=ASKED, **options):
    return from_vllm(requests, model="m", engine=ENGINE, sampling=sampling, **options)


def test_one_request():
    (trace,) = vllm(request(output(stop_reason=13, finish_reason="stop")))
    assert (trace.id, trace.model, trace.finish_reason, trace.stop_reason) == ("7/0", "m", "stop", 13)
    assert (trace.prompt_token_ids.tolist(), trace.output_token_ids.tolist()) == ([1, 2], [3, 4])
    assert (trace.sampling, trace.engine) == (ASKED, ENGINE)


def test_children_of_one_request():
    first, second = vllm(request(output(0), output(1, np.array([5], dtype=np.int64))), id_prefix="run1/")
    assert (first.id, second.id) == ("run1/7/0", "run1/7/1")
    assert (first.engine.child, second.engine.child) == (0, 1)
    assert second.output_token_ids.tolist() == [5]


def test_settings_for_each_request():
    other = Sampling(temperature=0.0)
    first, second = vllm(request(output()), request(output(), request_id="8"), sampling=[ASKED, other])
    assert (first.sampling, second.sampling) == (ASKED, other)
    with pytest.raises(TraceError, match="sampling: got 1, expected one for each of 2"):
        vllm(request(output()), request(output()), sampling=[ASKED])


def test_adapters_and_pictures_are_refused_by_name_later():
    (trace,) = vllm(request(output(), lora_request="adapter", multi_modal_placeholders={"image": [1]}))
    assert dict(trace.sampling.extra) == {"lora_request": "adapter", "multi_modal_placeholders": {"image": [1]}}


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (request(output(), finished=False), r"request_outputs\[0\]: finished: request '7' is not finished"),
        (request(output(), prompt_token_ids=None), "prompt_token_ids: missing"),
        (request(output(), encoder_prompt_token_ids=[1]), "encoder-decoder models are not supported"),
        (request(output(token_ids=[3, -4])), r"outputs\[0\].token_ids\[1\]: got -4"),
        (request(output(index="0")), "outputs.index: got '0', expected an integer"),
    ],
)
def test_requests_that_cannot_be_used(bad, match):
    with pytest.raises(TraceError, match=match):
        vllm(bad)


def test_an_engine_s_own_word_for_the_end_is_kept(tmp_path):
    (trace,) = vllm(request(output(finish_reason="preempted")))
    assert (trace.finish_reason, trace.extra) == (None, {"engine_finish_reason": "preempted"})
    write_traces(tmp_path / "t.jsonl", [trace])
    assert next(read_traces(tmp_path / "t.jsonl")).extra == trace.extra


@pytest.fixture(scope="module")
def real_vllm():
    """The installed vLLM's own classes. Its import warns of much that is not ours."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm as package
        from vllm.outputs import CompletionOutput, RequestOutput
        from vllm.sampling_params import StructuredOutputsParams
    return SimpleNamespace(
        SamplingParams=package.SamplingParams,
        CompletionOutput=CompletionOutput,
        RequestOutput=RequestOutput,
        StructuredOutputsParams=StructuredOutputsParams,
    )


@pytest.mark.vllm
def test_real_sampling_params_that_are_known(real_vllm):
    params = real_vllm.SamplingParams(
        temperature=0.7,
        top_k=50,
        top_p=0.95,
        min_p=0.1,
        seed=5,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={7: 1.5},
        allowed_token_ids=[7, 8],
        min_tokens=2,
        max_tokens=9,
        stop=["x"],
        stop_token_ids=[2],
        ignore_eos=True,
    )
    (trace,) = vllm(request(output()), sampling=params)
    assert trace.sampling == Sampling(
        temperature=0.7,
        top_k=50,
        top_p=0.95,
        min_p=0.1,
        seed=5,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={7: 1.5},
        allowed_token_ids=(7, 8),
        min_tokens=2,
        max_tokens=9,
        stop=("x",),
        stop_token_ids=(2,),
        ignore_eos=True,
    )


@pytest.mark.vllm
def test_real_sampling_params_by_default(real_vllm):
    (trace,) = vllm(request(output()), sampling=real_vllm.SamplingParams())
    assert trace.sampling == Sampling(temperature=1.0, max_tokens=16)
    (trace,) = vllm(request(output()), sampling=real_vllm.SamplingParams(temperature=0.0, top_p=0.5, max_tokens=None))
    assert trace.sampling == Sampling(temperature=0.0)  # vLLM itself drops the filters of a greedy request


@pytest.mark.vllm
def test_real_settings_that_change_tokens_and_are_unknown_are_kept_by_name(real_vllm):
    params = real_vllm.SamplingParams(
        bad_words=["x"],
        structured_outputs=real_vllm.StructuredOutputsParams(regex="a+"),
        extra_args={"my_processor": 1},
        thinking_token_budget=5,
    )
    (trace,) = vllm(request(output()), sampling=params)
    assert set(trace.sampling.extra) == {"bad_words", "structured_outputs", "extra_args", "thinking_token_budget"}
    params._bad_words_token_ids = [[1, 2]]  # what vLLM sets once the words are tokenised
    (trace,) = vllm(request(output()), sampling=params)
    assert trace.sampling.bad_words_token_ids == ((1, 2),)
    assert "bad_words" not in trace.sampling.extra


@pytest.mark.vllm
def test_real_settings_that_change_no_token_are_dropped(real_vllm):
    params = real_vllm.SamplingParams(logprobs=3, prompt_logprobs=1, detokenize=False, skip_special_tokens=False)
    (trace,) = vllm(request(output()), sampling=params)
    assert trace.sampling == Sampling(temperature=1.0, max_tokens=16)


@pytest.mark.vllm
def test_a_watermark_that_the_engine_resolved_to_none_is_none(real_vllm):
    """The settings as executed have False where nothing was asked for; True would change the tokens."""
    resolved = real_vllm.SamplingParams(seed=1)
    resolved.watermarking = False
    assert sampling_from_vllm(resolved) == sampling_from_vllm(real_vllm.SamplingParams(seed=1))
    resolved.watermarking = True
    assert dict(sampling_from_vllm(resolved).extra) == {"watermarking": True}


def test_every_field_of_real_sampling_params_is_decided_on(real_vllm):
    """A field that is neither known, dropped on purpose nor kept by name would be lost in silence."""
    default = real_vllm.SamplingParams()
    for name in type(default).__struct_fields__:
        if name.startswith("_"):
            continue
        params = real_vllm.SamplingParams()
        # any odd value: what matters is where it goes
        setattr(params, name, {"stop": ["s"], "stop_token_ids": [1]}.get(name, SimpleNamespace()))
        try:
            (trace,) = vllm(request(output()), sampling=params)
        except TraceError as error:
            assert f"sampling.{name}: " in str(error)  # a known field, whose odd value is refused
            continue
        kept = name in trace.sampling.extra or name in ("stop", "stop_token_ids")
        assert kept != (name in _VLLM_NEUTRAL), name


@pytest.mark.vllm
def test_real_request_outputs(real_vllm):
    def completion(index):
        return real_vllm.CompletionOutput(
            index=index, text="", token_ids=[5, 6], cumulative_logprob=None, logprobs=None, finish_reason="length"
        )

    result = real_vllm.RequestOutput(
        request_id="0",
        prompt=None,
        prompt_token_ids=[1, 2, 3],
        prompt_logprobs=None,
        outputs=[completion(0), completion(1)],
        finished=True,
    )
    first, second = vllm(result, sampling=real_vllm.SamplingParams(n=2, seed=1))
    assert [trace.id for trace in (first, second)] == ["0/0", "0/1"]
    assert [trace.engine.child for trace in (first, second)] == [0, 1]
    assert first.output_token_ids.tolist() == [5, 6]
    assert first.sampling == Sampling(seed=1, max_tokens=16)
