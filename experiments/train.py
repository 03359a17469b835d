"""Train the larger models of an experiment: on Python sources of this machine, for a given time, a dense Llama and a
mixture of experts one after the other.

    train.py OUT [--models dense100m moe350m] [--seconds 85]

Each leaves OUT/NAME as transformers and vLLM read it: bfloat16 safetensors, config.json with the ids of the first and
the last token, tokenizer.json, and card.json with steps, tokens and the loss on files held out. A model that has a card
is not trained again. One that fails does not stop the next.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import corpus

CLIP, DECAY, BETAS = 1.0, 0.1, (0.9, 0.95)
LAST_RATE = 0.05
"""Learning rate at the end, as a share of the highest."""
EVALUATED = 64
"""Windows of held-out text that the card's loss is measured on."""
AT_BEGIN = 0.25
"""Share of the windows that begin where a file begins, as every prompt does."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of a model, and how it is trained. `experts` None is a dense Llama; else a Qwen2-MoE, each layer with a
    shared expert of the same size. `batch` windows a step, `micro` of them at a time on the device."""

    layers: int
    hidden: int
    heads: int
    key_values: int
    inner: int
    experts: int | None = None
    active: int = 2
    rate: float = 1e-3
    batch: int = 64
    micro: int = 32
    context: int = 512
    warm: int = 60


SHAPES = {
    "dense100m": Shape(layers=12, hidden=768, heads=12, key_values=4, inner=2048),
    "moe350m": Shape(layers=12, hidden=768, heads=12, key_values=4, inner=640, experts=16, rate=8e-4),
    "tinydense": Shape(layers=2, hidden=256, heads=4, key_values=2, inner=256, rate=4e-3, batch=8, micro=8, context=64),
    "tinymoe": Shape(
        layers=2, hidden=256, heads=4, key_values=2, inner=128, experts=4, rate=4e-3, batch=8, micro=4, context=64
    ),
}
"""By name. The tiny ones are for tests: they train in seconds on a CPU."""


def main() -> int:
    """Exit status: 1 if a model could not be trained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=["dense100m", "moe350m"])
    parser.add_argument("--seconds", type=float, default=85.0, help="of training, for each model")
    parser.add_argument("--data-seconds", type=float, default=45.0, help="for reading and tokenizing, at most")
    parser.add_argument("--characters", type=int, default=250_000_000, help="of text, at most")
    parser.add_argument("--vocabulary", type=int, default=32_768)
    args = parser.parse_args()
    missing = [name for name in args.models if not (args.out / name / "card.json").exists()]
    if not missing:
        return 0
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    say = _clock()
    data = corpus.prepare(args.vocabulary, args.characters, args.data_seconds, say)
    failed = []
    for name in missing:
        try:
            train(name, SHAPES[name], data, args.seconds, args.out / name, say)
        except Exception:  # noqa: BLE001  (whatever it is, the other model is still wanted)
            say(f"FAILED {name}\n{traceback.format_exc()}")
            failed.append(name)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 1 if failed else 0


def build(shape: Shape, vocabulary: int) -> Any:
    """A model of this shape with random weights, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_values,
        "max_position_embeddings": max(2048, shape.context),
        "tie_word_embeddings": True,
        "bos_token_id": corpus.BEGIN,
        "eos_token_id": corpus.END,
        "pad_token_id": corpus.PAD,
    }
    torch.manual_seed(0)
    if shape.experts is None:
        return LlamaForCausalLM(LlamaConfig(intermediate_size=shape.inner, **common))
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            intermediate_size=shape.inner,
            moe_intermediate_size=shape.inner,
            shared_expert_intermediate_size=shape.inner,
            num_experts=shape.experts,
            num_experts_per_tok=shape.active,
            norm_topk_prob=True,
            router_aux_loss_coef=0.01,
            **common,
        )
    )


class Trainer:
    """AdamW on float32 weights, of which the model that computes is a bfloat16 copy (float32 on a CPU): what is
    optimized is what is saved and served."""

    def __init__(self, model: Any, shape: Shape, device: str, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
        self.shape, self.device = shape, device
        self.model = model.to(device).train()
        for weight in self.model.parameters():  # not the rotary frequencies: engines have them in float32
            weight.data = weight.data.to(dtype)
        self.model.config.use_cache = False
        self.weights = list(self.model.parameters())
        self.masters = [weight.detach().float().clone().requires_grad_() for weight in self.weights]
        groups = [
            {"params": [m for m in self.masters if m.ndim > 1], "weight_decay": DECAY},
            {"params": [m for m in self.masters if m.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=shape.rate, betas=BETAS, fused=device == "cuda")

    def loss(self, windows: Any, *, balanced: bool) -> Any:
        """Mean cross-entropy of windows [B, T + 1] of ids in nats; `balanced` adds what keeps all experts in use."""
        extra = {"output_router_logits": True} if balanced and self.shape.experts else {}
        found = self.model.base_model(input_ids=windows[:, :-1], use_cache=False, **extra)
        logits = self.model.lm_head(found.last_hidden_state)
        value = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
        if extra:
            from transformers.models.qwen2_moe.modeling_qwen2_moe import load_balancing_loss_func

            config = self.model.config
            balance = load_balancing_loss_func(found.router_logits, config.num_experts, config.num_experts_per_tok)
            value = value + config.router_aux_loss_coef * balance
        return value

    def step(self, windows: Any, rate: float) -> float:
        """One step on windows [B, T + 1]; its loss."""
        parts = windows.split(self.shape.micro)
        total = torch.zeros((), device=self.device)
        for part in parts:
            value = self.loss(part, balanced=True) * (len(part) / len(windows))
            value.backward()
            total += value.detach()
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                weight.copy_(master)
        return float(total)


def train(
    name: str, shape: Shape, data: corpus.Corpus, seconds: float, out: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train one model for `seconds` and save it; the card."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(build(shape, data.vocabulary), shape, device)
    begun = time.monotonic()
    parameters = sum(weight.numel() for weight in trainer.weights)
    say(f"{name}: {parameters / 1e6:.1f} M parameters on {device}")
    ids, begins = (torch.from_numpy(part).to(device) for part in (data.train, data.begins))
    if shape.experts:
        say(f"{name}: experts are computed {choose_experts(trainer, draw(ids, begins, 2, shape.context))}")
    step, loss, told = 0, math.nan, 0.0
    while (share := (time.monotonic() - begun) / seconds) < 1.0:
        rate = shape.rate * min(1.0, (step + 1) / shape.warm)
        rate *= LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))
        windows = draw(ids, begins, shape.batch, shape.context)
        loss = trainer.step(windows, rate)
        step += 1
        if share - told > 0.1:
            told = share
            say(f"{name}: {share:.0%}, step {step}, loss {loss:.4f}")
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss} after {step} steps")
    card = {
        "parameters": parameters,
        "shape": asdict(shape),
        "vocabulary": data.vocabulary,
        "steps": step,
        "tokens": step * shape.batch * shape.context,
        "tokens_of_text": len(data.train),
        "seconds": round(time.monotonic() - begun, 1),
        "last_loss": round(loss, 4),
        "held_out_loss": round(held_out(trainer, data), 4),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "text": "Python sources that lay on the machine: its packages and the standard library",
    }
    save(trainer.model, data, out, card)
    say(f"{name}: saved, {step} steps, held-out loss {card['held_out_loss']}")
    return card


def choose_experts(trainer: Trainer, windows: Any) -> str:
    """Let all experts be one grouped product where that runs and agrees with one product for each; what was chosen."""
    config, found = trainer.model.config, {}
    for way in ("eager", "grouped_mm"):
        config._experts_implementation = way
        try:
            value = trainer.loss(windows, balanced=True)
            value.backward()
            squares = [float(one.grad.float().square().sum()) for one in trainer.weights if one.grad is not None]
            found[way] = np.array([float(value.detach()), math.sqrt(sum(squares))])
        except Exception:  # a kernel that is missing or does not fit: there is another way
            if way == "eager":
                raise
        for one in trainer.weights:
            one.grad = None
    agree = "grouped_mm" in found and np.allclose(found["grouped_mm"], found["eager"], rtol=0.05)
    config._experts_implementation = "grouped_mm" if agree else "eager"
    return str(config._experts_implementation)


def draw(ids: Any, begins: Any, count: int, context: int) -> Any:
    """Windows [count, context + 1] of the text, some of them from where a file begins."""
    last = len(ids) - context - 1
    first = torch.randint(0, last, (count,), device=ids.device)
    files = begins[torch.randint(0, len(begins), (count,), device=ids.device)].clamp_max(last)
    first = torch.where(torch.rand(count, device=ids.device) < AT_BEGIN, files, first)
    return ids[first[:, None] + torch.arange(context + 1, device=ids.device)].long()


@torch.no_grad()
def held_out(trainer: Trainer, data: corpus.Corpus) -> float:
    """Mean cross-entropy of held-out windows, in nats a token."""
    shape = trainer.shape
    windows = draw(*(torch.from_numpy(part) for part in (data.held, np.zeros(1, np.int64))), EVALUATED, shape.context)
    parts = windows.to(trainer.device).split(shape.micro)
    trainer.model.eval()
    return float(np.mean([float(trainer.loss(part, balanced=False)) for part in parts]))


def save(model: Any, data: corpus.Corpus, out: Path, card: dict[str, Any]) -> None:
    """What transformers and vLLM load; the card comes last, and says that everything is there."""
    from transformers import PreTrainedTokenizerFast

    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(out)
    names = dict(zip(("bos_token", "eos_token", "pad_token"), corpus.SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=data.tokenizer, **names).save_pretrained(out)
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def _clock() -> Callable[[str], None]:
    begun = time.monotonic()
    return lambda text: print(f"[{time.monotonic() - begun:6.1f}s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
