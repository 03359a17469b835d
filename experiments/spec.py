"""The declarative file of an experiment: what is claimed, who serves it and how, and at which budgets it is judged.

An experiment is a TOML file with the keys of `Experiment`, one table [claim], one table [models.NAME] for each model,
and one table [[providers]] for each provider with the keys of `Provider`. Unknown keys are refused by name.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ONLINE = {"fp8_per_channel": "fp8_per_channel", "fp8_per_tensor": "fp8"}
"""Weights that the engine quantizes as it loads them, and activations with them; vLLM's name of the method."""
WEIGHTS = ("int3", "int4", "int4_packed", "int8", "fp8", *ONLINE, "nf4", "low_rank", "pruned")
DTYPES = ("float32", "bfloat16", "float16")
KV_CACHES = ("auto", "fp8")
SEEDS = ("claimed", "next", "none")
INSIDE = ("uniform", "second", "watermark")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Who serves a model, and what is done otherwise than claimed; with nothing but a name it is honest.

    `honest` says so; `simulated` that the deviation is rounded numbers, not a quantized kernel. `weights` changes the
    weights (int4_packed, fp8_per_tensor and a `kv_cache` of fp8 need a GPU), `model` serves another model, `sampling`
    overrides the claim, `seeds` is `next` (seed + 1) or `none`.
    `inside` changes logits inside the engine before it samples: `uniform` draws a `share` of the tokens uniformly from
    the `top_k` likeliest, `second` takes the second likeliest at every `period`-th token, `watermark` adds `bias` to
    half of the vocabulary, keyed by the token before. `engine` is vllm, or hf: transformers with cached decode in
    batches of `max_num_seqs`. `attention` is the implementation of either, by its name there; None leaves it to vLLM,
    and is sdpa of transformers. `prepend` puts so many tokens before each prompt, `keep` cuts prompts to their last
    tokens.
    """

    name: str
    honest: bool = False
    simulated: bool = False
    model: str | None = None
    weights: str | None = None
    engine: str = "vllm"
    attention: str | None = None
    dtype: str = "bfloat16"
    kv_cache: str = "auto"
    runner: str | None = None
    compiled: bool = False
    max_num_seqs: int = 64
    chunk: int | None = None
    prefix_caching: bool = False
    tensor_parallel: int = 1
    sampling: dict[str, Any] = field(default_factory=dict)
    seeds: str = "claimed"
    inside: str | None = None
    share: float = 0.01
    top_k: int = 32
    period: int = 50
    bias: float = 2.0
    prepend: int = 0
    keep: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _one_of(self.name, "engine", self.engine, ("vllm", "hf"))
        _one_of(self.name, "weights", self.weights, WEIGHTS)
        _one_of(self.name, "kv_cache", self.kv_cache, KV_CACHES)
        _one_of(self.name, "seeds", self.seeds, SEEDS)
        _one_of(self.name, "inside", self.inside, INSIDE)

    @property
    def file(self) -> str:
        """The name as a file's."""
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in self.name)

    @property
    def begins(self) -> int:
        """The first token, counted from 1, at which a sequence differs from what is claimed: fewer are honest ones."""
        return self.period if self.inside == "second" else 1

    @property
    def sees_activations(self) -> bool:
        """Whether a fingerprint can be taken and compared: the sampler runs as the engine made it, and the hidden
        states are of the claimed model's size."""
        return self.engine == "vllm" and self.inside is None and self.tensor_parallel == 1

    @property
    def changes_forward_pass(self) -> bool:
        """Whether hidden states differ from what the claimed model gives on the claimed tokens."""
        changed = self.weights or self.model or self.prepend or self.keep or self.kv_cache != "auto"
        return bool(changed) and not self.honest

    @property
    def keeps_activations(self) -> bool:
        """Whether hidden states are kept: those of honest providers, and those that can differ from them."""
        return self.sees_activations and (self.honest or self.changes_forward_pass)

    @property
    def process(self) -> tuple[Any, ...]:
        """What decides how an engine is started: deviating providers that agree in it can be served by one engine."""
        return (
            self.name if self.honest or self.tensor_parallel > 1 else "",
            *(self.model, self.weights, self.engine, self.attention, self.dtype, self.kv_cache, self.runner),
            *(self.compiled, self.max_num_seqs, self.chunk, self.prefix_caching, self.inside is not None),
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment. `tokens` of each sequence are generated; `fit` sequences of each honest provider calibrate,
    `judged` of every provider are judged (of each honest one `judged_honest`, if given: there are several, pooled).
    `edges` are prefixes in tokens; `budgets` tokens of one batch, of which `activation_budgets` carry fingerprints.
    `coordinates` and `step_log2` are those of the fingerprint (`FingerprintSpec`), `wider` those of others that are
    judged beside it, with the pattern of their steps behind: the best stands for ours in each row, as the best top-k
    does for TOPLOC. Hidden states are compared for the first `activation_sequences` judged sequences (None: all). Of
    each detector's value `stored_bits` bits of mantissa are kept: fewer make a smaller results file. A table [defaults]
    holds keys that every provider has unless it says otherwise."""

    name: str
    claim: dict[str, Any]
    models: dict[str, Path]
    providers: tuple[Provider, ...]
    tokens: int
    fit: int
    judged: int
    edges: tuple[int, ...]
    budgets: tuple[int, ...]
    activation_budgets: tuple[int, ...] = (1, 2, 4, 8, 32)
    judged_honest: int | None = None
    activation_sequences: int | None = None
    stored_bits: int = 23
    coordinates: int = 16
    step_log2: int = -4
    wider: tuple[tuple[int, ...], ...] = ()
    prompt_lengths: tuple[int, int] = (16, 48)
    seed: int = 1
    stacks: tuple[str, ...] = ()
    """Transformers references that every honest provider is replayed with, for the table of stacks: a dtype, and behind
    it the implementation of attention (sdpa, if none). An experiment that has honest providers alone is that table."""
    stack_sequences: int = 48

    @property
    def fingerprints(self) -> tuple[tuple[int, ...], ...]:
        """Coordinates, log2 of the step, and its pattern (none: all alike) of every fingerprint that is judged."""
        return ((self.coordinates, self.step_log2), *self.wider)

    @property
    def honest(self) -> tuple[Provider, ...]:
        """The honest providers, in order."""
        return tuple(one for one in self.providers if one.honest)

    @property
    def deviating(self) -> tuple[Provider, ...]:
        """The others."""
        return tuple(one for one in self.providers if not one.honest)

    def judged_of(self, provider: Provider) -> int:
        """How many sequences of a provider are judged."""
        return self.judged_honest if provider.honest and self.judged_honest is not None else self.judged

    def slice_of(self, provider: Provider) -> slice:
        """Which of the prompts a provider gets: each honest one its own, all deviating ones the last."""
        each = self.fit + self.judged_of(self.honest[0])
        place = [one.name for one in self.honest].index(provider.name) if provider.honest else len(self.honest)
        return slice(place * each, place * each + (each if provider.honest else self.judged))

    def states_of(self, provider: Provider) -> int:
        """Of how many sequences a provider's hidden states are kept: always of those that everything is fitted on."""
        judged = self.judged_of(provider)
        if self.activation_sequences is not None:
            judged = min(judged, self.activation_sequences)
        kept = provider.keeps_activations and self.deviating
        return judged + (self.fit if provider.honest else 0) if kept else 0

    @property
    def prompts(self) -> int:
        """Prompts in all."""
        return self.slice_of(self.honest[-1]).stop + self.judged


def read(path: Path) -> Experiment:
    """An experiment from its file; `ValueError` names what is wrong."""
    return parse(path.read_text())


def parse(text: str) -> Experiment:
    """An experiment from the text of its file."""
    given = tomllib.loads(text)
    usual = given.pop("defaults", {})
    providers = tuple(Provider(**_known(Provider, usual | entry, "providers")) for entry in given.pop("providers"))
    models = {name: _place(entry["path"]) for name, entry in given.pop("models").items()}
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    found = Experiment(**_known(Experiment, {**fields, "models": models, "providers": providers}, "experiment"))
    if len({one.name for one in providers}) != len(providers):
        raise ValueError("providers: two providers have the same name")
    unknown = [word for word in found.stacks if word.split()[0] not in DTYPES or len(word.split()) > 2]
    if unknown:
        raise ValueError(f"stacks: got {unknown[0]!r}, expected one of {', '.join(DTYPES)}, and an attention behind it")
    if not found.honest or found.edges[-1] != found.tokens:
        raise ValueError("experiment: expected an honest provider, and the last of edges to be tokens")
    return found


def groups(providers: Sequence[Provider], most: int) -> list[list[Provider]]:
    """Providers that one engine can serve one after the other, at most `most` together, in order."""
    found: list[list[Provider]] = []
    for one in providers:
        fitting = [group for group in found if group[0].process == one.process and len(group) < most]
        if fitting:
            fitting[0].append(one)
        else:
            found.append([one])
    return found


def _place(path: str) -> Path:
    """A model's directory: inside the repository, else inside the one that VERIDIFR_MODELS names."""
    inside = ROOT / path
    return inside if inside.exists() else Path(os.environ.get("VERIDIFR_MODELS", "models")) / path


def _known(kind: type, entry: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = entry.keys() - {one.name for one in dataclasses.fields(kind)}
    if unknown:
        raise ValueError(f"{where}: unknown keys {', '.join(sorted(unknown))}")
    return entry


def _one_of(name: str, key: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{name}: {key}: got {value!r}, expected one of {', '.join(allowed)}")
