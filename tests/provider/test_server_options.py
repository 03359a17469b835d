"""A server's options in one environment variable: they survive it, and what is wrong is named."""

from __future__ import annotations

import pytest
from fake_server import SPEC

from veridifr.errors import InputError
from veridifr.vllm.options import CaptureOptions
from veridifr.vllm.server_options import ServerOptions, server_options_from_json, server_options_to_json


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected an object"),
        ("{", "JSON"),
        ('{"more": 1}', "'more': not an option"),
        ('{"max_records": 0}', "max_records: got 0"),
        ('{"keep_prompts": 1}', "keep_prompts: got 1"),
        ('{"capture": 3}', "options: got int"),
        ('{"capture": {"ttl_seconds": "x"}}', "ttl_seconds"),
        ('{"capture": {"max_tokens": -1}}', "max_tokens"),
        ('{"capture": {"max_requests": true}}', "max_requests"),
        ('{"capture": {"fingerprint_seed": -1}}', "fingerprint_seed"),
        ('{"capture": {"allow_unverified_version": "yes"}}', "allow_unverified_version"),
        ('{"capture": {"nothing": 1}}', "'nothing': not an option"),
        ('{"capture": {"spec": {"seed": 1}}}', "spec.encoding: missing"),
    ],
)
def test_bad_options_are_named(text: str, said: str) -> None:
    with pytest.raises(InputError, match="VERIDIFR_CAPTURE: ") as raised:
        server_options_from_json(text)
    assert said in str(raised.value)


def test_options_survive_the_environment() -> None:
    options = ServerOptions(
        capture=CaptureOptions(spec=SPEC, ttl_seconds=5.5, max_tokens=9), max_records=3, keep_prompts=False
    )
    assert server_options_from_json(server_options_to_json(options)) == options
    assert server_options_to_json(ServerOptions()) == "{}"
    assert server_options_from_json(None) == ServerOptions()
    both = {"spec": SPEC, "fingerprint_seed": 1}
    with pytest.raises(InputError, match="fingerprint_seed: a specification was given too"):
        CaptureOptions(**both)  # type: ignore[arg-type]
