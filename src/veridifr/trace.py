"""What a provider claims: token ids, the sampling settings it says it used, and the engine it says it ran.

A trace comes from the party being audited. An object of this module that exists is well-formed: every field has the
right type and lies in its range, and sizes are bounded. Whether it is *true* is what an audit decides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.errors import TraceError

MAX_TOKENS = 1_048_576
"""Longest prompt or output in tokens."""
MAX_TOKEN_ID = 2**31 - 1
MAX_TEXT = 4096
"""Longest string in characters: ids, model and device names."""
GREEDY_TEMPERATURE = 1e-5
"""vLLM samples greedily below this temperature (vllm/sampling_params.py: ``_SAMPLING_EPS``)."""

UNSCORED = "unscored"
"""The key of a trace that says why its sequence is no evidence; only such a trace may lack its prompt."""

IntArray = npt.NDArray[np.int32]


def check_int(name: str, value: object, low: int, high: int) -> int:
    """`value` if it is an integer (not a boolean, not a float) in [low, high]; else `TraceError` naming the field."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TraceError(f"{name}: got {_shown(value)}, expected an integer")
    if not low <= value <= high:
        raise TraceError(f"{name}: got {int(value)}, expected {low} to {high}")
    return int(value)


def check_number(name: str, value: object, low: float, high: float) -> float:
    """`value` if it is a finite number in [low, high]; else `TraceError` naming the field."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TraceError(f"{name}: got {_shown(value)}, expected a number")
    plain = int(value) if isinstance(value, int | np.integer) else float(value)
    number = float(plain) if abs(plain) < 10**300 else math.inf  # an integer may be too large for a float
    if not math.isfinite(number) or not low <= number <= high:
        raise TraceError(f"{name}: got {_shown(value)}, expected {low:g} to {high:g}")
    return number


def check_text(name: str, value: object) -> str:
    """`value` if it is a string of at most `MAX_TEXT` characters that UTF-8 can hold; else `TraceError`."""
    if not isinstance(value, str):
        raise TraceError(f"{name}: got {_shown(value)}, expected a string")
    if len(value) > MAX_TEXT:
        raise TraceError(f"{name}: got {len(value)} characters, expected at most {MAX_TEXT}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise TraceError(f"{name}: holds a lone surrogate, which is no character")
    return value


def check_bool(name: str, value: object) -> bool:
    """`value` if it is a boolean; else `TraceError` naming the field."""
    if not isinstance(value, bool):
        raise TraceError(f"{name}: got {_shown(value)}, expected true or false")
    return value


def check_ids(name: str, value: object, *, least: int = 0) -> IntArray:
    """Token ids as a read-only int32 array of at least `least` entries; else `TraceError` naming the entry."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and np.issubdtype(value.dtype, np.integer):
        wide = value.astype(np.int64)
    else:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise TraceError(f"{name}: got {_shown(value)}, expected a list of token ids")
        if len(value) > MAX_TOKENS:
            raise TraceError(f"{name}: got {len(value)} token ids, expected at most {MAX_TOKENS}")
        if set(map(type, value)) - {int}:  # booleans and floats are no ids; a set of types is checked at C speed
            for index, item in enumerate(value):
                check_int(f"{name}[{index}]", item, 0, MAX_TOKEN_ID)
        if value and not 0 <= min(value) <= max(value) <= MAX_TOKEN_ID:
            for index, item in enumerate(value):
                check_int(f"{name}[{index}]", item, 0, MAX_TOKEN_ID)
        wide = np.asarray(value, dtype=np.int64)
    if len(wide) > MAX_TOKENS:
        raise TraceError(f"{name}: got {len(wide)} token ids, expected at most {MAX_TOKENS}")
    if len(wide) < least:
        raise TraceError(f"{name}: got {len(wide)} token ids, expected at least {least}")
    if len(wide) and (wide.min() < 0 or wide.max() > MAX_TOKEN_ID):
        bad = int(np.flatnonzero((wide < 0) | (wide > MAX_TOKEN_ID))[0])
        raise TraceError(f"{name}[{bad}]: got {wide[bad]}, expected 0 to {MAX_TOKEN_ID}")
    ids = wide.astype(np.int32)
    ids.flags.writeable = False
    return ids


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling settings of one sequence, as claimed. `None` means off (or, for `seed`, not given).

    `extra` keeps the keys that this version does not know, as read; a sequence with any is `unsupported`, because a
    setting that is not understood may change which token is drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    min_tokens: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "temperature", check_number("sampling.temperature", self.temperature, 0.0, 1e4))
        if self.top_k is not None:
            top_k = check_int("sampling.top_k", self.top_k, -1, MAX_TOKEN_ID)
            put(self, "top_k", top_k if top_k > 0 else None)
        if self.top_p is not None:
            top_p = check_number("sampling.top_p", self.top_p, 0.0, 1.0)
            if top_p == 0.0:
                raise TraceError("sampling.top_p: got 0, expected above 0 and at most 1")
            put(self, "top_p", top_p if top_p < 1.0 else None)
        if self.min_p is not None:
            min_p = check_number("sampling.min_p", self.min_p, 0.0, 1.0)
            put(self, "min_p", min_p if min_p > 0.0 else None)
        if self.seed is not None:
            put(self, "seed", check_int("sampling.seed", self.seed, -(2**63), 2**64 - 1))
        for name, low, high, off in (
            ("repetition_penalty", 1e-6, 1e6, 1.0),
            ("presence_penalty", -1e3, 1e3, 0.0),
            ("frequency_penalty", -1e3, 1e3, 0.0),
        ):
            value = getattr(self, name)
            if value is not None:
                number = check_number(f"sampling.{name}", value, low, high)
                put(self, name, None if number == off else number)
        for name in ("min_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, check_int(f"sampling.{name}", value, 0, MAX_TOKENS) or None)
        self._check_lists()

    def _check_lists(self) -> None:
        put = object.__setattr__
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_TOKENS:
            raise TraceError(f"sampling.logit_bias: got {_shown(self.logit_bias)}, expected a map of token id to bias")
        bias = {
            check_int("sampling.logit_bias: token id", key, 0, MAX_TOKEN_ID): check_number(
                f"sampling.logit_bias[{key}]", value, -1e4, 1e4
            )
            for key, value in self.logit_bias.items()
        }
        put(self, "logit_bias", bias)
        if self.allowed_token_ids is not None:
            allowed = check_ids("sampling.allowed_token_ids", self.allowed_token_ids, least=1)
            put(self, "allowed_token_ids", tuple(allowed.tolist()))
        if not _is_list(self.bad_words_token_ids):
            raise TraceError("sampling.bad_words_token_ids: expected a list of lists of token ids")
        words = tuple(
            tuple(check_ids(f"sampling.bad_words_token_ids[{i}]", word, least=1).tolist())
            for i, word in enumerate(self.bad_words_token_ids)
        )
        put(self, "bad_words_token_ids", words)
        if not _is_list(self.stop):
            raise TraceError(f"sampling.stop: got {_shown(self.stop)}, expected a list of strings")
        put(self, "stop", tuple(check_text(f"sampling.stop[{i}]", s) for i, s in enumerate(self.stop)))
        put(self, "stop_token_ids", tuple(check_ids("sampling.stop_token_ids", self.stop_token_ids).tolist()))
        put(self, "ignore_eos", check_bool("sampling.ignore_eos", self.ignore_eos))

    @property
    def greedy(self) -> bool:
        """Whether the engine takes the argmax and draws no noise."""
        return self.temperature < GREEDY_TEMPERATURE

    def distribution(self) -> tuple[Any, ...]:
        """The settings that shape a token's distribution, without seed, length and stops: equal for equal nulls."""
        return (
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
            tuple(sorted(self.logit_bias.items())),
            self.allowed_token_ids,
            self.bad_words_token_ids,
        )


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The engine a provider says it ran, with what decides its sampling noise. `None` means not stated.

    Units: `multiprocessors` and `threads_per_multiprocessor` are those of the provider's GPU (they set the CUDA grid).
    `batch_row`, `batch_size` (HF generate) and `child` (the index of this sequence among n > 1) belong to one
    sequence; all other fields must be equal throughout an audit.
    """

    name: str
    version: str | None = None
    runner: str | None = None
    device: str | None = None
    multiprocessors: int | None = None
    threads_per_multiprocessor: int | None = None
    dtype: str | None = None
    sampler: str | None = None
    fp64_noise: bool | None = None
    speculative_decoding: bool | None = None
    deterministic: bool | None = None
    filtered_batch: bool | None = None
    batch_row: int | None = None
    batch_size: int | None = None
    child: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("engine.name", self.name)
        for name in ("version", "runner", "device", "dtype", "sampler"):
            if getattr(self, name) is not None:
                check_text(f"engine.{name}", getattr(self, name))
        for name, low, high in (
            ("multiprocessors", 1, 4096),
            ("threads_per_multiprocessor", 1, 65536),
            ("batch_row", 0, 65535),
            ("batch_size", 1, 65536),
            ("child", 0, 65535),
        ):
            if getattr(self, name) is not None:
                check_int(f"engine.{name}", getattr(self, name), low, high)
        for name in ("fp64_noise", "speculative_decoding", "deterministic", "filtered_batch"):
            if getattr(self, name) is not None:
                check_bool(f"engine.{name}", getattr(self, name))
        if self.batch_row is not None and self.batch_size is not None and self.batch_row >= self.batch_size:
            raise TraceError(f"engine.batch_row: got {self.batch_row}, expected below batch_size {self.batch_size}")

    def identity(self) -> tuple[Any, ...]:
        """What must be equal for all sequences of one audit."""
        return (
            self.name,
            self.version,
            self.runner,
            self.device,
            self.multiprocessors,
            self.threads_per_multiprocessor,
            self.dtype,
            self.sampler,
            self.fp64_noise,
            self.speculative_decoding,
            self.deterministic,
            self.filtered_batch,
        )


FINISH_REASONS = ("stop", "length", "abort", "error", "repetition", "tool_calls", "content_filter")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One sequence as the provider reports it. Token ids are read-only int32 arrays.

    `finish_reason` is one of `FINISH_REASONS` or None (not stated). `stop_reason` is the stop string or stop token id
    that ended the output, if stated. `extra` keeps unknown keys as read.
    """

    id: str
    model: str
    prompt_token_ids: IntArray
    output_token_ids: IntArray
    sampling: Sampling
    engine: EngineRecord
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not check_text("id", self.id):
            raise TraceError("id: got an empty string, expected a name for the sequence")
        check_text("model", self.model)
        least = 0 if isinstance(self.extra.get(UNSCORED), str) else 1
        object.__setattr__(self, "prompt_token_ids", check_ids("prompt_token_ids", self.prompt_token_ids, least=least))
        object.__setattr__(self, "output_token_ids", check_ids("output_token_ids", self.output_token_ids))
        if self.finish_reason is not None and self.finish_reason not in FINISH_REASONS:
            raise TraceError(
                f"finish_reason: got {_shown(self.finish_reason)}, expected one of {', '.join(FINISH_REASONS)}"
            )
        if self.stop_reason is not None and not isinstance(self.stop_reason, str):
            check_int("stop_reason", self.stop_reason, 0, MAX_TOKEN_ID)

    def digest(self) -> str:
        """SHA-256 (hex) of the token ids, by which evidence is bound to the tokens it was made for."""
        text = hashlib.sha256(b"veridifr trace 1\0")
        for ids in (self.prompt_token_ids, self.output_token_ids):
            text.update(len(ids).to_bytes(8, "little"))
            text.update(ids.astype("<i4").tobytes())
        return text.hexdigest()
