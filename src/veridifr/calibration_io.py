"""Calibrations on disk: strict JSON. Unknown keys are refused, because a null that is half understood is no null.

Format 2 is written, with the key `fingerprints` only where honest ones were calibrated, `shares` only where honest
errors were shared out among sizes, and with `mode`, `heats` and `seeded_tokens` only where the sampler was taken as
unknown. Format 1 is read too. That one has no fit part, no surprise and one simulated deviation, and its statistic knew
larger errors of one size per token, and tokens drawn anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from veridifr.calibration import SCHEMA, Calibration, HonestSequence, Stack
from veridifr.contracts.registry import mode_of
from veridifr.distribution import DistributionRatio, Statistic
from veridifr.effects import rounded
from veridifr.errors import CalibrationError
from veridifr.fingerprint_null_io import null_from_value, null_to_dict
from veridifr.statistic import SHARED_SIZES, Alternative, Kind, LikelihoodRatio
from veridifr.strict_fields import Fields
from veridifr.traces.strict_json import parse_json

FIRST_SCHEMA = "veridifr-calibration/1"

MAX_BYTES = 256 * 2**20
MAX_TOKENS_NEEDED = 2**40
_SIZES: Mapping[Kind, tuple[float, float]] = {
    "noise": (1e-3, 1e6),
    "temperature": (-0.99, 10.0),
    "cut": (-100.0, 100.0),
    "replaced": (1e-6, 1.0 - 1e-6),
}
"""Kinds of alternatives, and the sizes that mean something."""


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write atomically: a killed run leaves the old file or the new one, never half of one."""
    text = json.dumps(to_dict(calibration), allow_nan=False, separators=(",", ":"))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_dict(calibration: Calibration) -> dict[str, Any]:
    """The JSON object of a calibration."""
    statistic, fingerprints = calibration.statistic, calibration.fingerprints
    return {
        "schema": SCHEMA,
        "veridifr": calibration.veridifr,
        "created": calibration.created,
        "model": calibration.model,
        "weights": calibration.weights,
        "reference_settings": dict(calibration.reference_settings),
        "sampling": dict(calibration.sampling),
        "statistic": {
            "name": statistic.name,
            "sigma": statistic.sigma,
            "epsilon": statistic.epsilon,
            "spread": statistic.spread,
            **(
                {"shares": list(statistic.shares)}
                if isinstance(statistic, LikelihoodRatio) and statistic.shares
                else {}
            ),
            "alternatives": [{"kind": a.kind, "size": a.size, "weight": a.weight} for a in statistic.alternatives],
        },
        "detect_sigma": calibration.detect_sigma,
        "effects": list(calibration.effects),
        "edges": list(calibration.edges),
        "stacks": [
            {
                "name": stack.name,
                "contract": stack.contract,
                "engine": dict(stack.engine),
                "traces_digest": stack.traces_digest,
                "fit_sequences": stack.fit_sequences,
                "fit": [_sequence_to_dict(sequence) for sequence in stack.fit],
                "sequences": [_sequence_to_dict(sequence) for sequence in stack.sequences],
            }
            for stack in calibration.stacks
        ],
        **({} if fingerprints is None else {"fingerprints": null_to_dict(fingerprints)}),
        **(
            {"mode": calibration.mode, "heats": list(calibration.heats), "seeded_tokens": calibration.seeded_tokens}
            if calibration.mode == "distribution"
            else {}
        ),
    }


def _sequence_to_dict(sequence: HonestSequence) -> dict[str, Any]:
    return {
        "id": sequence.id,
        "prompt": sequence.prompt,
        "tokens": sequence.tokens,
        "exact_match": round(sequence.exact_match, 6),
        "surprise": list(sequence.surprise),
        "scores": list(sequence.scores),
        "simulated": [list(row) for row in sequence.simulated],
    }


def read_calibration(path: Path) -> tuple[Calibration, str]:
    """The calibration in a file, and the file's SHA-256 (hex); `CalibrationError` names file and field."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CalibrationError(f"{path}: over {MAX_BYTES} bytes, which no calibration needs")
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot read it: {error.strerror}") from error
    try:
        value = parse_json(data, error=CalibrationError)
        found = from_dict(value)
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from error
    return found, hashlib.sha256(data).hexdigest()


def from_dict(value: object) -> Calibration:
    """A calibration from its JSON object, every field checked."""
    top = Fields("calibration", value)
    schema = top.text("schema")
    if schema not in (SCHEMA, FIRST_SCHEMA):
        raise CalibrationError(f"schema: got {schema[:60]!r}, expected {SCHEMA!r} or {FIRST_SCHEMA!r}")
    first = schema == FIRST_SCHEMA
    edges = tuple(top.integers("edges"))
    if list(edges) != sorted(set(edges)) or not edges or edges[0] < 1:
        raise CalibrationError("edges: expected ascending lengths of at least 1")
    statistic = (_first_statistic if first else _statistic)(top.take("statistic"))
    unknown = isinstance(statistic, DistributionRatio)
    heats = tuple(top.numbers("heats", -0.99, 10.0)) if unknown else ()
    tokens = top.optional("seeded_tokens") if unknown else None
    if unknown and top.text("mode") != "distribution":
        raise CalibrationError(f"mode: got {top.text('mode')[:60]!r}, expected 'distribution' for this statistic")
    if tokens is not None and (type(tokens) is not int or not 0 < tokens <= MAX_TOKENS_NEEDED):
        raise CalibrationError(f"seeded_tokens: got {tokens!r:.40}, expected a whole number above 0")
    detect = top.number("detect_sigma", 1e-9, 1e6)
    effects = (detect / statistic.sigma,) if first else tuple(top.numbers("effects", 1e-9, 1e9))
    if list(effects) != sorted(set(effects)) or not effects:
        raise CalibrationError("effects: expected ascending multiples of the honest sigma")
    read = _Sequences(edges=edges, effects=len(effects) + len(heats), first=first)
    found = Calibration(
        veridifr=top.text("veridifr"),
        created=top.text("created"),
        model=top.text("model"),
        weights=top.text("weights"),
        reference_settings=top.mapping("reference_settings"),
        sampling=top.mapping("sampling"),
        statistic=statistic,
        detect_sigma=detect,
        effects=effects,
        edges=edges,
        heats=heats,
        seeded_tokens=tokens,
        stacks=tuple(_stack(i, entry, read) for i, entry in enumerate(top.sequence("stacks"))),
    )
    fingerprints = None if first else top.optional("fingerprints")
    if fingerprints is not None:
        found = replace(found, fingerprints=null_from_value(fingerprints, found.stacks, edges))
    top.finish()
    if not found.stacks:
        raise CalibrationError("stacks: got none")
    if {mode_of(contract) == "distribution" for contract in found.contracts} != {unknown}:
        raise CalibrationError("stacks: contract: unknown goes with the statistic distribution_ratio, no other does")
    _ = found.detect_place  # one of the effects must be the declared one
    return found


def _statistic(value: object) -> Statistic:
    fields = Fields("statistic", value)
    name = fields.text("name")
    kinds: dict[str, type[LikelihoodRatio] | type[DistributionRatio]] = {
        "likelihood_ratio": LikelihoodRatio,
        "distribution_ratio": DistributionRatio,
    }
    if name not in kinds:
        raise CalibrationError(f"statistic.name: got {name[:60]!r}, expected one of {', '.join(kinds)}")
    found = kinds[name](
        sigma=fields.number("sigma", 1e-9, 1e6),
        epsilon=fields.number("epsilon", 1e-12, 0.5),
        spread=fields.number("spread", 0.0, 3.0),
        alternatives=tuple(_alternative(i, entry) for i, entry in enumerate(fields.sequence("alternatives"))),
    )
    if isinstance(found, LikelihoodRatio):
        found = replace(found, shares=fields.shares("shares", len(SHARED_SIZES)))
    fields.finish()
    return _with_noise(found, "alternatives")


def _alternative(index: int, value: object) -> Alternative:
    fields = Fields(f"statistic.alternatives[{index}]", value)
    given = fields.take("kind")
    kind = next((known for known in _SIZES if known == given), None)
    if kind is None:
        raise CalibrationError(
            f"statistic.alternatives[{index}].kind: got {given!r:.40}, expected one of {', '.join(_SIZES)}"
        )
    found = Alternative(kind=kind, size=fields.number("size", *_SIZES[kind]), weight=fields.number("weight", 1e-9, 1.0))
    fields.finish()
    return found


def _first_statistic(value: object) -> Statistic:
    """The statistic of format 1: multiples of sigma and a share of tokens drawn anew, of equal weight."""
    fields = Fields("statistic", value)
    if fields.text("name") != "noise_mixture":
        raise CalibrationError(f"statistic.name: got {fields.text('name')[:60]!r}, expected 'noise_mixture'")
    sigma, epsilon = fields.number("sigma", 1e-9, 1e6), fields.number("epsilon", 1e-12, 0.5)
    multiples, replaced = fields.numbers("multiples", *_SIZES["noise"]), fields.number("replaced", *_SIZES["replaced"])
    fields.finish()
    weight = 1.0 / (len(multiples) + 1)
    alternatives = [Alternative(kind="noise", size=size, weight=weight) for size in multiples]
    alternatives.append(Alternative(kind="replaced", size=replaced, weight=weight))
    found = LikelihoodRatio(sigma=sigma, epsilon=epsilon, spread=0.0, alternatives=tuple(alternatives))
    return _with_noise(found, "multiples")


def _with_noise(statistic: Statistic, name: str) -> Statistic:
    """Every sampler has larger errors as an alternative, so with none of them some audits would have no score."""
    if not any(entry.kind == "noise" for entry in statistic.alternatives):
        raise CalibrationError(f"statistic.{name}: got none of larger noise")
    return statistic


def _stack(index: int, value: object, read: _Sequences) -> Stack:
    where = f"stacks[{index}]"
    fields = Fields(where, value)
    digest = None if fields.take("traces_digest") is None else fields.text("traces_digest")
    found = Stack(
        name=fields.text("name"),
        contract=fields.text("contract"),
        engine=fields.mapping("engine"),
        traces_digest=digest,
        fit_sequences=fields.integer("fit_sequences"),
        fit=() if read.first else read.all(f"{where}.fit", fields.sequence("fit")),
        sequences=read.all(f"{where}.sequences", fields.sequence("sequences")),
    )
    fields.finish()
    if not found.sequences:
        raise CalibrationError(f"{where}.sequences: got none")
    if found.fit and len(found.fit) != found.fit_sequences:
        raise CalibrationError(f"{where}.fit: got {len(found.fit)} sequences, fit_sequences says {found.fit_sequences}")
    if {sequence.prompt for sequence in found.fit} & {sequence.prompt for sequence in found.sequences}:
        raise CalibrationError(f"{where}.fit: a prompt is also one of the null, which the bets must not know")
    return found


@dataclass(frozen=True, kw_only=True)
class _Sequences:
    """How sequences are read: which edges there are, how many effects, and whether it is format 1."""

    edges: Sequence[int]
    effects: int
    first: bool

    def all(self, where: str, values: Sequence[Any]) -> tuple[HonestSequence, ...]:
        return tuple(self._one(f"{where}[{i}]", value) for i, value in enumerate(values))

    def _one(self, where: str, value: object) -> HonestSequence:
        fields = Fields(where, value)
        found = HonestSequence(
            id=fields.text("id"),
            prompt=fields.text("prompt"),
            tokens=fields.integer("tokens"),
            exact_match=fields.number("exact_match", 0.0, 1.0),
            surprise=() if self.first else _rounded(fields.numbers("surprise", 0.0, 1e4)),
            scores=_rounded(fields.numbers("scores", -1e6, 1e6)),
            simulated=(_rounded(fields.numbers("deviating", -1e6, 1e6)),)
            if self.first
            else tuple(map(_rounded, fields.tables("simulated", -1e6, 1e6))),
        )
        fields.finish()
        reached = sum(edge <= found.tokens for edge in self.edges)
        if len(found.simulated) != self.effects:
            raise CalibrationError(f"{where}.simulated: got {len(found.simulated)} rows, expected {self.effects}")
        named = [("scores", found.scores)]
        named += [("deviating" if self.first else "simulated", row) for row in found.simulated]
        named += [("surprise", found.surprise)] if found.surprise else []  # what format 1 had not stays unknown
        for name, row in named:
            if len(row) != reached:
                raise CalibrationError(f"{where}.{name}: got {len(row)} values, expected {reached}")
        return found


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Honest scores are compared at the precision of audited ones, whatever a file holds."""
    return tuple(rounded(np.array(values, dtype=np.float64)).tolist())
