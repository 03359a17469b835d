"""The engines themselves as oracles: PyTorch's generators, transformers' processors, vLLM's sampler on a CPU."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from veridifr.contracts import CONTRACTS, Stream
from veridifr.contracts.common import V1_ORDER
from veridifr.contracts.hf import HF_ORDER
from veridifr.processors import process
from veridifr.trace import EngineRecord, Sampling, check_ids

VOCAB = 257
EVERY = np.arange(VOCAB)


def noise(name: str, seed: int, steps: int, engine: EngineRecord) -> np.ndarray:
    """Whole rows of a contract's noise, float64[steps, VOCAB]."""
    stream = Stream(seed=seed, prompt_length=5, vocab_size=VOCAB, engine=engine)
    rows, ids = np.repeat(np.arange(steps), VOCAB), np.tile(EVERY, steps)
    return CONTRACTS[name].noise(stream, np.arange(steps), rows, ids).reshape(steps, VOCAB)


@pytest.mark.parametrize("seed", [0, 42, 2**32 + 42, -5, 2**63 - 1])
def test_vllm_cpu_exp32_is_torchs_exponential(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    expected = np.stack([torch.empty(VOCAB).exponential_(generator=generator).numpy() for _ in range(3)])
    np.testing.assert_array_equal(noise("vllm-cpu-exp32", seed, 3, EngineRecord(name="vllm")), expected)


@pytest.mark.parametrize("seed", [3, 42, 2**40])
def test_hf_multinomial_draws_torchs_tokens(seed: int) -> None:
    """Three rows, four steps: the tokens of torch.multinomial over the global generator, row by row."""
    logits = torch.randn(4, 3, VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = torch.stack([torch.multinomial(row.softmax(-1), 1).squeeze(1) for row in logits]).numpy()
    for row in range(3):
        engine = EngineRecord(name="hf", device="cpu", batch_row=row, batch_size=3)
        q = noise("hf-multinomial", seed, 4, engine)
        drawn = (logits[:, row].softmax(-1).numpy() / q).argmax(axis=1)
        assert drawn.tolist() == expected[:, row].tolist()


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_hf_processors(step: int) -> None:
    prompt, output, eos = [5, 9, 9, 200], [1, 5, 7], 256
    sampling = Sampling(repetition_penalty=1.3, logit_bias={7: 2.0, 0: -50.0}, min_tokens=2)
    processors = LogitsProcessorList(
        [  # the order of _get_logits_processor
            SequenceBiasLogitsProcessor({(7,): 2.0, (0,): -50.0}),
            RepetitionPenaltyLogitsProcessor(1.3),
            MinNewTokensLengthLogitsProcessor(len(prompt), 2, eos),
        ]
    )
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(step))
    expected = processors(torch.tensor([prompt + output[:step]]), logits.clone())[0].numpy()
    got = process(
        HF_ORDER,
        sampling,
        check_ids("p", prompt),
        check_ids("o", output),
        np.array([step]),
        np.zeros(VOCAB, dtype=np.int64),
        EVERY,
        logits[0].numpy(),
        (eos,),
    )
    np.testing.assert_array_equal(got, expected)


@pytest.fixture(scope="module")
def vllm() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of what vLLM imports
        import vllm
        import vllm._custom_ops  # registers the operators
    return vllm


@pytest.mark.vllm
@pytest.mark.parametrize("seed", [0, 42, 2**32 + 42, -5])
def test_vllm_cpu_gumbel_splitmix_is_vllms_kernel(vllm: ModuleType, seed: int) -> None:
    """vLLM's own operator picks our token in 40 rows, flat ones (noise alone decides) and others."""
    generator = torch.Generator().manual_seed(seed)
    steps = 40
    seeds = torch.stack([torch.randint(0, 2**31, (1,), generator=generator)[0] for _ in range(steps)])
    logits = torch.randn(steps, VOCAB, generator=torch.Generator().manual_seed(7))
    logits[: steps // 2] = 0.0
    drawn = torch.ops._C.fused_gumbel_argmax(logits, seeds)
    g = noise("vllm-cpu-gumbel-splitmix", seed, steps, EngineRecord(name="vllm"))
    assert (logits.numpy().astype(np.float64) + g).argmax(axis=1).tolist() == drawn.flatten().tolist()


def vllm_processed(prompt: list[int], past: list[int], logits: torch.Tensor, fields: dict[str, Any]) -> np.ndarray:
    """One row of logits through vLLM's V1 sampler, up to the temperature."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors
    from vllm.v1.sample.logits_processor.builtin import LogitBiasLogitsProcessor, MinTokensLogitsProcessor
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

    words = fields.get("bad_words_token_ids", ())
    allowed = fields.get("allowed_token_ids")
    params = SamplingParams(**{k: v for k, v in fields.items() if k not in ("bad_words_token_ids",)})
    params.update_from_generation_config({}, 256)
    device = torch.device("cpu")
    processors = [MinTokensLogitsProcessor(None, device, False), LogitBiasLogitsProcessor(None, device, False)]
    for processor in processors:
        processor.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, params, prompt, past)], moved=[]))
    mask = torch.ones(1, VOCAB, dtype=torch.bool)
    mask[0, list(allowed or ())] = False
    metadata = SamplingMetadata(
        temperature=torch.ones(1),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=False,
        prompt_token_ids=torch.tensor([prompt]),
        frequency_penalties=torch.tensor([params.frequency_penalty]),
        presence_penalties=torch.tensor([params.presence_penalty]),
        repetition_penalties=torch.tensor([params.repetition_penalty]),
        output_token_ids=[past],
        allowed_token_ids_mask=mask if allowed else None,
        bad_words_token_ids={0: [list(word) for word in words]} if words else {},
        logitsprocs=LogitsProcessors(processors),
    )
    return Sampler().apply_logits_processors(logits.clone(), metadata, False)[0].numpy()


@pytest.mark.vllm
@pytest.mark.parametrize("step", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.7},
        {"presence_penalty": -0.4},
        {"logit_bias": {7: 2.0, 0: -50.0}},
        {"allowed_token_ids": [1, 5, 200]},
        {"bad_words_token_ids": ((1, 5, 7), (5, 8), (3,))},
        {"min_tokens": 2, "stop_token_ids": [4]},
        {
            "repetition_penalty": 0.8,
            "frequency_penalty": 0.7,
            "presence_penalty": 0.4,
            "logit_bias": {7: 2.0, 5: -3.0},
            "bad_words_token_ids": ((1, 5, 7), (3,)),
            "min_tokens": 5,
            "stop_token_ids": [4],
        },
    ],
)
def test_vllm_processors(vllm: ModuleType, fields: dict[str, Any], step: int) -> None:
    prompt, output = [5, 9, 9, 200], [1, 5, 7, 5, 5]
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(step))
    expected = vllm_processed(prompt, output[:step], logits, fields)
    got = process(
        V1_ORDER,
        Sampling(seed=1, **fields),
        check_ids("p", prompt),
        check_ids("o", output),
        np.array([step]),
        np.zeros(VOCAB, dtype=np.int64),
        EVERY,
        logits[0].numpy(),
        (256,),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
