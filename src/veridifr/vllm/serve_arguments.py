"""The options of a serving provider on a command line, for ``veridifr serve-flags`` and ``python -m veridifr.vllm``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from veridifr.errors import InputError
from veridifr.fingerprints.spec import MAX_SPEC_BYTES, FingerprintSpec, from_dict
from veridifr.traces.strict_json import parse_json
from veridifr.vllm.options import CaptureOptions
from veridifr.vllm.server_options import ServerOptions


def add_serve_options(command: argparse.ArgumentParser) -> None:
    """The options that `options_of` reads."""
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--fingerprints", type=Path, metavar="SPEC", help="a verifier's fingerprint specification (JSON)"
    )
    which.add_argument(
        "--fingerprint-seed", type=int, metavar="N", help="fingerprints by the default specification with this seed"
    )
    command.add_argument("--max-records", type=int, default=4096, metavar="N", help="records kept (default 4096)")
    command.add_argument(
        "--record-ttl", type=float, default=900.0, metavar="S", help="seconds that they are kept (default 900)"
    )
    command.add_argument("--omit-prompts", action="store_true", help="leave the prompt's token ids out of records")
    command.add_argument("--delete-once-served", action="store_true", help="delete a record with its first answer")
    command.add_argument(
        "--allow-unverified-version", action="store_true", help="try a version of vLLM that has not been run"
    )


def options_of(given: argparse.Namespace) -> ServerOptions:
    """The options given; `InputError` or `FingerprintError` naming what is wrong."""
    return ServerOptions(
        capture=CaptureOptions(
            spec=None if given.fingerprints is None else _spec(given.fingerprints),
            fingerprint_seed=given.fingerprint_seed,
            ttl_seconds=given.record_ttl,
            allow_unverified_version=given.allow_unverified_version,
        ),
        max_records=given.max_records,
        keep_prompts=not given.omit_prompts,
        delete_once_served=given.delete_once_served,
    )


def parse_serve(arguments: Sequence[str]) -> tuple[str, ServerOptions, list[str]]:
    """Of ``serve MODEL [options]``: the model, our options, and the rest, which is vLLM's."""
    parser = argparse.ArgumentParser(
        prog="python -m veridifr.vllm",
        description="Serve a model with vLLM and keep verifiable records. Options not listed go to vLLM.",
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=("serve",))
    parser.add_argument("model", metavar="MODEL")
    add_serve_options(parser)
    given, rest = parser.parse_known_args(arguments)
    return given.model, options_of(given), rest


def _spec(path: Path) -> FingerprintSpec:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise InputError(f"--fingerprints: {path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_SPEC_BYTES:
        raise InputError(f"--fingerprints: {path}: more than {MAX_SPEC_BYTES} bytes")
    try:
        return from_dict(parse_json(data, error=InputError))
    except InputError as error:
        raise InputError(f"--fingerprints: {path}: {error}") from error
