"""The part of a calibration about fingerprints as JSON: strict, as all of it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from veridifr.errors import CalibrationError, FingerprintError
from veridifr.fingerprint_null import SIMULATED_TOKENS, FingerprintNull, NullSequence, NullStack
from veridifr.fingerprints.score import SHARED_SIZES, ErrorScale
from veridifr.fingerprints.spec import from_dict, to_dict
from veridifr.strict_fields import Fields

if TYPE_CHECKING:
    from veridifr.calibration import Stack


def null_to_dict(null: FingerprintNull) -> dict[str, Any]:
    """The JSON object."""
    return {
        "spec": to_dict(null.spec),
        "scales": [_scale_to_dict(scale) for scale in null.scales],
        "stacks": [
            {
                "name": stack.name,
                "sequences": [_sequence_to_dict(one) for one in stack.sequences],
            }
            for stack in null.stacks
        ],
        **({"sensitivity": True} if null.sensitivity else {}),
        **({"effects": list(null.effects)} if null.effects else {}),
    }


def _sequence_to_dict(one: NullSequence) -> dict[str, Any]:
    found: dict[str, Any] = {"id": one.id, "scores": [list(row) for row in one.scores]}
    return found | ({"simulated": [list(row) for row in one.simulated]} if one.simulated else {})


def null_from_value(value: object, stacks: Sequence[Stack], edges: Sequence[int]) -> FingerprintNull:
    """The inverse, every field checked; it must hold the null sequences of `stacks`, in their order."""
    fields = Fields("fingerprints", value)
    try:
        spec = from_dict(fields.take("spec"))
    except FingerprintError as error:
        raise CalibrationError(f"fingerprints.{error}") from error
    scales = tuple(_scale(i, entry) for i, entry in enumerate(fields.sequence("scales")))
    if len(scales) != len(spec.taps):
        raise CalibrationError(
            f"fingerprints.scales: got {len(scales)}, expected one for each of {len(spec.taps)} taps"
        )
    entries = fields.sequence("stacks")
    if len(entries) != len(stacks):
        raise CalibrationError(f"fingerprints.stacks: got {len(entries)}, expected {len(stacks)}")
    effects = tuple(fields.numbers("effects", 1.0, 1e4)) if fields.optional("effects") is not None else ()
    if sorted(set(effects)) != list(effects):
        raise CalibrationError("fingerprints.effects: expected ascending")
    rows = (1 + len(scales) if len(scales) > 1 else 1, len(effects))
    found = tuple(
        _stack(f"fingerprints.stacks[{i}]", entry, stack, edges, rows)
        for i, (entry, stack) in enumerate(zip(entries, stacks, strict=True))
    )
    sensitivity = fields.optional("sensitivity")
    if sensitivity is not None and sensitivity is not True:
        raise CalibrationError(f"fingerprints.sensitivity: got {sensitivity!r:.40}, expected true or nothing")
    fields.finish()
    return FingerprintNull(spec=spec, scales=scales, stacks=found, sensitivity=sensitivity is True, effects=effects)


def _scale_to_dict(scale: ErrorScale) -> dict[str, Any]:
    found = {"sigma": scale.sigma, "spread": scale.spread, "epsilon": scale.epsilon}
    return found | ({"shares": list(scale.shares), "relative": scale.relative} if scale.shares else {})


def _scale(index: int, value: object) -> ErrorScale:
    where = f"fingerprints.scales[{index}]"
    fields = Fields(where, value)
    found = ErrorScale(
        sigma=fields.number("sigma", 1e-30, 1e30),
        spread=fields.number("spread", 0.0, 2.0),
        epsilon=fields.number("epsilon", 1e-12, 0.5),
    )
    shares = fields.shares("shares", len(SHARED_SIZES))
    if shares:
        relative = fields.take("relative")
        if not isinstance(relative, bool):
            raise CalibrationError(f"{where}.relative: got {relative!r:.40}, expected true or false")
        found = replace(found, shares=shares, relative=relative)
    fields.finish()
    return found


def _stack(where: str, value: object, stack: Stack, edges: Sequence[int], rows: tuple[int, int]) -> NullStack:
    """`rows`: how many of scores, and how many of simulated ones."""
    fields = Fields(where, value)
    name, entries = fields.text("name"), fields.sequence("sequences")
    fields.finish()
    if name != stack.name or len(entries) != len(stack.sequences):
        raise CalibrationError(f"{where}: expected the {len(stack.sequences)} null sequences of {stack.name[:60]!r}")
    found = []
    for i, (entry, honest) in enumerate(zip(entries, stack.sequences, strict=True)):
        here = f"{where}.sequences[{i}]"
        one = Fields(here, entry)
        if one.text("id") != honest.id:
            raise CalibrationError(f"{here}.id: expected {honest.id[:60]!r}, as in stacks")
        reached = [edge for edge in edges if edge <= honest.tokens]
        short = [edge for edge in reached if edge <= SIMULATED_TOKENS]
        scores = _table(here, one, "scores", (rows[0], len(reached)))
        simulated = _table(here, one, "simulated", (rows[1], len(short))) if rows[1] else ()
        one.finish()
        found.append(NullSequence(id=honest.id, scores=scores, simulated=simulated))
    return NullStack(name=name, sequences=tuple(found))


def _table(where: str, fields: Fields, name: str, shape: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
    found = fields.tables(name, -1e6, 1e6)
    if len(found) != shape[0] or any(len(row) != shape[1] for row in found):
        raise CalibrationError(f"{where}.{name}: expected {shape[0]} rows of {shape[1]} scores")
    return tuple(map(tuple, found))
