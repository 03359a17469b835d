"""What a provider chooses when it switches capture on, as plain values that travel to the worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from veridifr.errors import InputError, UnsupportedError
from veridifr.fingerprints.spec import FINAL, FingerprintSpec, from_dict, to_dict

EXTENSION = "veridifr.vllm.extension.WorkerExtension"
"""For vLLM's ``worker_extension_cls``."""
DEFAULT_K = 8
DEFAULT_ENCODING = "bfloat16"
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class CaptureOptions:
    """Which fingerprints, and the bounds of what a worker keeps until it is taken.

    `spec` is a verifier's specification. `fingerprint_seed` alone picks one of `DEFAULT_K` coordinates in
    `DEFAULT_ENCODING`. With neither, tokens, seeds and the engine record are captured without fingerprints.
    `max_tokens` counts output tokens over all requests kept; `ttl_seconds` runs from a request's last token.
    Raises `InputError` or `UnsupportedError` naming the field.
    """

    spec: FingerprintSpec | None = None
    fingerprint_seed: int | None = None
    max_requests: int = 4096
    max_tokens: int = 2**21
    ttl_seconds: float = 900.0
    allow_unverified_version: bool = False

    def __post_init__(self) -> None:
        if self.spec is not None and self.fingerprint_seed is not None:
            raise InputError("fingerprint_seed: a specification was given too, and has its own seed")
        if self.spec is not None and self.spec.taps != (FINAL,):
            raise UnsupportedError("spec.taps", f"got {', '.join(self.spec.taps)}: only {FINAL!r} is captured in vLLM")
        if self.fingerprint_seed is not None:
            _integer("fingerprint_seed", self.fingerprint_seed, 0, MAX_SEED)
        _integer("max_requests", self.max_requests, 1, 2**20)
        _integer("max_tokens", self.max_tokens, 1, 2**30)
        if type(self.ttl_seconds) not in (int, float) or not 0 < self.ttl_seconds <= 10**7:
            raise InputError(f"ttl_seconds: got {self.ttl_seconds!r:.40}, expected above 0 and at most 10000000")
        if type(self.allow_unverified_version) is not bool:
            raise InputError(f"allow_unverified_version: got {self.allow_unverified_version!r:.40}, expected a boolean")

    def spec_for(self, hidden_size: int) -> FingerprintSpec | None:
        """The specification for a model; `UnsupportedError` where it was made for another hidden size."""
        if self.fingerprint_seed is not None:
            return FingerprintSpec(
                seed=self.fingerprint_seed, hidden_size=hidden_size, k=DEFAULT_K, encoding=DEFAULT_ENCODING
            )
        if self.spec is not None and self.spec.hidden_size != hidden_size:
            raise UnsupportedError("spec.hidden_size", f"got {self.spec.hidden_size}, the model's is {hidden_size}")
        return self.spec


def options_to_dict(options: CaptureOptions) -> dict[str, Any]:
    """Plain values, for a worker in another process and for JSON."""
    return {**asdict(options), "spec": None if options.spec is None else to_dict(options.spec)}


def options_from_dict(values: object) -> CaptureOptions:
    """The options of `options_to_dict`, or of a JSON object; what is left out has its default."""
    if not isinstance(values, Mapping):
        raise InputError(f"options: got {type(values).__name__}, expected an object")
    known = {f.name for f in fields(CaptureOptions)}
    for name in values:
        if name not in known:
            raise InputError(f"options.{str(name)[:40]!a}: not an option")
    spec = values.get("spec")
    return CaptureOptions(**{**values, "spec": None if spec is None else from_dict(spec)})


def _integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name}: got {value!r:.40}, expected an integer from {low} to {high}")
