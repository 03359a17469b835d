"""What a serving provider chooses, read from one environment variable: vLLM's own options have no room for ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from veridifr.errors import InputError
from veridifr.traces.strict_json import parse_json
from veridifr.vllm.options import CaptureOptions, options_from_dict, options_to_dict

VARIABLE = "VERIDIFR_CAPTURE"
"""The environment variable: the JSON object of `server_options_to_json`."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The capture of the worker, and the records of the front end.

    `max_records` bounds the records that wait to be asked for; they expire as the capture's do (`ttl_seconds`).
    `keep_prompts` false leaves the prompt's token ids out of every record. `delete_once_served` deletes a record with
    its first answer. Raises `InputError` naming the field.
    """

    capture: CaptureOptions = field(default_factory=CaptureOptions)
    max_records: int = 4096
    keep_prompts: bool = True
    delete_once_served: bool = False

    def __post_init__(self) -> None:
        if type(self.max_records) is not int or not 1 <= self.max_records <= 2**20:
            raise InputError(f"max_records: got {self.max_records!r:.40}, expected 1 to {2**20}")
        for name in ("keep_prompts", "delete_once_served"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name}: got {getattr(self, name)!r:.40}, expected true or false")


def server_options_to_json(options: ServerOptions) -> str:
    """One line of JSON: the fields that differ from their default."""
    default = options_to_dict(CaptureOptions())
    capture = {k: v for k, v in options_to_dict(options.capture).items() if v != default[k]}
    values = {f.name: getattr(options, f.name) for f in fields(ServerOptions) if f.name != "capture"}
    kept = {k: v for k, v in values.items() if v != getattr(ServerOptions(), k)}
    return json.dumps({**({"capture": capture} if capture else {}), **kept}, separators=(",", ":"))


def server_options_from_json(text: str | None) -> ServerOptions:
    """The options of the environment variable's text; all default where it is not set. `InputError` names it."""
    if text is None:
        return ServerOptions()
    try:
        values: Any = parse_json(text.encode(), error=InputError)
        if not isinstance(values, Mapping):
            raise InputError(f"got {type(values).__name__}, expected an object")
        known = {f.name for f in fields(ServerOptions)}
        for name in values:
            if name not in known:
                raise InputError(f"{str(name)[:40]!a}: not an option")
        capture = options_from_dict(values.get("capture", {}))
        return ServerOptions(**{**values, "capture": capture})
    except InputError as error:
        raise InputError(f"{VARIABLE}: {error}") from error
