"""Small models of other architectures, randomly initialised: listed as their own logits say, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from makers import make_trace
from veridifr.errors import ReferenceError
from veridifr.references import ReferenceSettings
from veridifr.references.hf import HfReference

VOCAB = 300
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": [2, 3]}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # weights of the usual initialisation give logits near 0
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    return model.eval()


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama, untied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama, tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=5.0, sliding_window=4
    ),
    "mistral, sliding": lambda: transformers.MistralConfig(**SMALL, sliding_window=4),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "granite": lambda: transformers.GraniteConfig(**SMALL, logits_scaling=3.0),
    "cohere": lambda: transformers.CohereConfig(**SMALL, logit_scale=0.25),
    "phi": lambda: transformers.PhiConfig(**{**SMALL, "num_key_value_heads": 4}),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_whole_rows_of_an_architecture(name: str) -> None:
    """Three lengths in one padded batch against the model run on each alone."""
    model = build(CONFIGS[name]())
    reference = HfReference.from_model(model, settings=ReferenceSettings(list_bytes=16 * VOCAB))
    assert reference.vocab_size == VOCAB
    assert reference.eos_ids == ((2, 3) if name == "gpt2" else (2,))
    rng = np.random.default_rng(0)
    made = {
        f"s{n}": make_trace(rng.integers(3, VOCAB, n), prompt=rng.integers(3, VOCAB, n), name=f"s{n}")
        for n in (2, 7, 9)
    }
    for evidence in reference.evidence(list(made.values())):
        trace = made[evidence.trace_id]
        ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids])[None, :-1].astype(np.int64)
        with torch.inference_mode():
            rows = model(input_ids=torch.from_numpy(ids), use_cache=False).logits[0].numpy()
        rows = rows[len(trace.prompt_token_ids) - 1 :]
        assert np.ptp(rows) > 0.5  # logits that say something
        np.testing.assert_allclose(evidence.logits_N.reshape(-1, VOCAB), rows, atol=1e-4)


def test_a_head_that_does_more_is_refused() -> None:
    """Logits that are no plain image of the last hidden state would be replayed wrongly, so they are not replayed."""
    model = build(CONFIGS["llama, untied"]())
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output * 1.5)
    plain = HfReference.from_model(model)  # part of the head itself: still one image of the hidden state
    assert plain.vocab_size == VOCAB
    model = build(CONFIGS["llama, untied"]())
    forward = model.forward

    def twisted(*args: Any, **fields: Any) -> Any:
        output = forward(*args, **fields)
        output.logits = output.logits.flip(-1)
        return output

    model.forward = twisted
    with pytest.raises(ReferenceError, match="this architecture is not supported yet"):
        HfReference.from_model(model)
