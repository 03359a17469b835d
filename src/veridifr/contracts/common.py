"""What the noise contracts of all engines share: which settings they refuse, and how they read the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import Contract, FloatArray, IndexArray, Stage, Stream
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord, Sampling

_Any = TypeVar("_Any", bound=np.generic)

HARMLESS_EXTRA = frozenset(
    {
        "cache_salt",
        "detokenize",
        "echo",
        "flat_logprobs",
        "include_stop_str_in_output",
        "logprobs",
        "n",
        "output_kind",
        "priority",
        "prompt_logprobs",
        "request_id",
        "return_token_ids",
        "skip_reading_prefix_cache",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stream",
        "stream_options",
        "user",
    }
)
"""Unknown sampling keys that cannot change which token is drawn."""

PROCESSING = (
    "logit_bias",
    "allowed_token_ids",
    "bad_words_token_ids",
    "min_tokens",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)
"""Settings that act on single logits before the temperature."""
FILTERS = ("top_k", "top_p", "min_p")

V1_ORDER: tuple[Stage, ...] = (
    "allowed_token_ids",
    "bad_words",
    "min_tokens",
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "temperature",
    "min_p",
    "top_k",
    "top_p",
)
"""vLLM's V1 runner on any device (vllm/v1/sample/sampler.py, 0.11 to 0.33)."""

LOWEST_TEMPERATURE = 0.01
"""vLLM raises a lower temperature other than 0 to this (vllm/sampling_params.py: ``_MAX_TEMP``)."""


def is_set(sampling: Sampling, name: str) -> bool:
    """Whether a setting is on."""
    return getattr(sampling, name) not in (None, (), {})


def refuse_set(sampling: Sampling, reasons: Mapping[str, str]) -> None:
    """Raise `UnsupportedError` for the first setting of `reasons` that is on."""
    for name, reason in reasons.items():
        if is_set(sampling, name):
            raise UnsupportedError(f"sampling.{name}", reason)


def check_extra(extra: Mapping[str, Any]) -> None:
    """Refuse the first sampling key that this version does not know and that may change the tokens (null is off)."""
    for key, value in extra.items():
        if value is not None and key not in HARMLESS_EXTRA:
            raise UnsupportedError(f"sampling.{key}", "is not a setting this version knows")


def check_ids_fit(sampling: Sampling, vocab_size: int) -> None:
    """Refuse token ids of a setting that lie outside the vocabulary: an engine rejects such a request."""
    words = tuple(token for word in sampling.bad_words_token_ids for token in word)
    named = (
        ("logit_bias", tuple(sampling.logit_bias)),
        ("allowed_token_ids", sampling.allowed_token_ids or ()),
        ("bad_words_token_ids", words),
    )
    for name, ids in named:
        if ids and max(ids) >= vocab_size:
            raise UnsupportedError(f"sampling.{name}", f"token id {max(ids)} is outside the vocabulary of {vocab_size}")


def check_child(sampling: Sampling, engine: EngineRecord) -> None:
    """Refuse a sequence of n > 1 whose number among its siblings is not stated: engines seed each its own way."""
    count = sampling.extra.get("n")
    if count is not None and count != 1 and engine.child is None:
        raise UnsupportedError("engine.child", "is needed where sampling.n is above 1: it decides the seed")


def least_uniform(least_R: FloatArray) -> FloatArray:
    """The uniform u at which -log(-log u) reaches `least_R`."""
    with np.errstate(over="ignore"):  # far below every draw: u is 0
        return np.exp(-np.exp(-least_R))


def by_row(values_R: npt.NDArray[_Any], rows_N: IndexArray) -> npt.NDArray[_Any]:
    """`values_R[rows_N]` for ascending `rows_N`: repeating a row's value costs a fraction of looking each one up."""
    if len(rows_N) < 16 * len(values_R):
        return values_R[rows_N]
    return np.repeat(values_R, np.diff(np.searchsorted(rows_N, np.arange(len(values_R) + 1))))


class NoiseContract(Contract):
    """A contract that draws noise from a seed: the checks common to all of them."""

    refused: ClassVar[Mapping[str, str]] = {}
    """Sampling settings that this engine cannot honour, with the reason."""
    seeds: ClassVar[tuple[int, int]] = (-(2**63), 2**64 - 1)
    needs: ClassVar[Literal["position", "step"]]
    """What counts in the noise: the last input token's absolute position, or the output step."""

    def check(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:
        check_extra(sampling.extra)
        if sampling.greedy:
            raise UnsupportedError(
                "sampling.temperature", f"{sampling.temperature:g} is greedy, and {self.id} draws noise"
            )
        if sampling.seed is None:
            raise UnsupportedError("sampling.seed", "is needed to recompute the noise, as the temperature is above 0")
        low, high = self.seeds
        if not low <= sampling.seed <= high:
            raise UnsupportedError("sampling.seed", f"got {sampling.seed}, and the engine takes {low} to {high}")
        refuse_set(sampling, self.refused)
        check_ids_fit(sampling, vocab_size)
        check_child(sampling, engine)
        if engine.speculative_decoding:
            raise UnsupportedError("engine.speculative_decoding", f"{self.id} covers one draw per token only")
        if engine.fp64_noise:
            raise UnsupportedError("engine.fp64_noise", f"{self.id} is the engine's default noise, not the fp64 one")
        self.check_engine(sampling, engine, vocab_size)

    def check_engine(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:
        """Raise `UnsupportedError` for what only this engine refuses."""


class VllmContract(NoiseContract):
    """What all of vLLM's samplers share: seed -1 is none, child j of n > 1 has seed + j, 0 < T < 0.01 is raised."""

    def check_engine(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:  # noqa: ARG002
        if sampling.seed == -1:
            raise UnsupportedError("sampling.seed", "-1 means 'no seed' to vLLM")

    def effective_temperature(self, temperature: float) -> float:
        """0 < T < 0.01 is raised to 0.01 (vllm/sampling_params.py)."""
        return max(temperature, LOWEST_TEMPERATURE) if temperature > 0 else temperature


def child_seed(stream: Stream) -> int:
    """The seed of child j of n > 1: seed + j (vllm/v1/engine/parallel_sampling.py)."""
    return stream.seed + (stream.engine.child or 0)


def refuse_child(engine: EngineRecord) -> None:
    """Refuse a child above 0 where it is not known how the engine seeds it."""
    if engine.child:
        raise UnsupportedError("engine.child", f"got {engine.child}: how {engine.name} seeds n > 1 is not known")


def gumbel_of(uniform: FloatArray) -> FloatArray:
    """-log(-log u) in float64, for u in (0, 1)."""
    with np.errstate(divide="raise", invalid="raise"):
        return -np.log(-np.log(uniform))
