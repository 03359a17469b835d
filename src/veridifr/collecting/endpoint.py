"""Where requests go, in which dialect, and the key that goes with them and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from veridifr.errors import InputError
from veridifr.trace import check_bool, check_number, check_text

DIALECTS = ("vllm", "openai")
"""`vllm`: also what vLLM and its relatives add to the API. `openai`: nothing that the API of that name lacks."""
LEAST_KEY, MOST_KEY = 8, 4096
"""Characters of a key. A shorter one could not be told from ordinary words where it must be blotted out."""
_WINDOW = 8
_BLOT = "[key]"


@dataclass(frozen=True)
class ApiKey:
    """A secret for the `Authorization` header. No text of this object shows it."""

    secret: str = field(repr=False)
    source: str
    """Where it was read, for messages."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\x21-\x7e]+", self.secret) or not LEAST_KEY <= len(self.secret) <= MOST_KEY:
            raise InputError(
                f"{self.source}: expected a key of {LEAST_KEY} to {MOST_KEY} visible ASCII characters in one line"
            )

    @classmethod
    def from_environment(cls, name: str, environment: Mapping[str, str] | None = None) -> ApiKey:
        """The key in an environment variable. Raises `InputError` without showing what the variable holds."""
        value = (os.environ if environment is None else environment).get(name)
        if value is None:
            raise InputError(f"environment variable {name[:60]!a}: not set, expected the API key")
        return cls(value.strip(), f"environment variable {name}")

    @classmethod
    def from_file(cls, path: str | Path) -> ApiKey:
        """The key in a file, which holds nothing else. Raises `InputError` without showing what the file holds."""
        try:
            with Path(path).open("rb") as stream:
                text = stream.read(MOST_KEY + 64).decode("ascii", errors="replace")
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        return cls(text.strip(), str(path))

    def occurs_in(self, text: str) -> bool:
        """Whether `text` shows the key, or so much of it that it must be taken for it."""
        return any(piece in text for piece in self._pieces())

    def blotted(self, text: str) -> str:
        """`text` with every run of at least eight of the key's characters replaced."""
        hidden = bytearray(len(text))
        for piece in self._pieces():
            start = text.find(piece)
            while start >= 0:
                hidden[start : start + len(piece)] = b"\1" * len(piece)
                start = text.find(piece, start + 1)
        return re.sub("\0+", _BLOT, "".join("\0" if hide else c for c, hide in zip(text, hidden, strict=True)))

    def _pieces(self) -> set[str]:
        return {self.secret[i : i + _WINDOW] for i in range(len(self.secret) - _WINDOW + 1)}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server: `base_url` ends where ``/completions`` and ``/chat/completions`` are appended.

    `timeout` is the longest that one answer may take, in seconds. With `logprobs` the tokens' log-probabilities are
    asked for, whose strings give token ids where the server returns none. `also_named` are names of the same model
    that an answer may state. Certificates are always verified, and a key is only sent over TLS or to this machine.
    """

    base_url: str
    model: str
    key: ApiKey | None = None
    dialect: str = "vllm"
    stream: bool = False
    logprobs: bool = False
    also_named: tuple[str, ...] = ()
    timeout: float = 300.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _checked_url(self.base_url, self.key).rstrip("/"))
        if not check_text("model", self.model):
            raise InputError("model: got an empty name")
        if self.dialect not in DIALECTS:
            raise InputError(f"dialect: got {self.dialect[:40]!a}, expected one of {', '.join(DIALECTS)}")
        check_bool("stream", self.stream)
        check_bool("logprobs", self.logprobs)
        for name in self.also_named:
            check_text("also_named", name)
        check_number("timeout", self.timeout, 0.001, 86_400)

    @property
    def host(self) -> str:
        """The server's host name, for messages."""
        return urlsplit(self.base_url).netloc

    def names(self) -> tuple[str, ...]:
        """The names of the model that an answer may state."""
        return (self.model, *self.also_named)

    def clean(self, text: str, most: int = 200) -> str:
        """What a server said, fit for a message: without the key, in one line of printable ASCII, cut short."""
        text = text if self.key is None else self.key.blotted(text)
        return "".join(c if " " <= c <= "~" else " " for c in text)[:most].strip()


def _checked_url(url: str, key: ApiKey | None) -> str:
    try:
        parts = urlsplit(check_text("base URL", url))
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise InputError("base URL: is none") from None
    if parts.scheme not in ("https", "http") or not host:
        raise InputError("base URL: expected https://HOST/... (or http:// for a server without a key)")
    if parts.username is not None or parts.password is not None:
        raise InputError("base URL: holds a user name or password: keys come from the environment or a file")
    if parts.query or parts.fragment:
        raise InputError("base URL: has a query or fragment, expected a plain path such as /v1")
    if key is not None and key.occurs_in(url):
        raise InputError("base URL: holds the key, which is sent in a header only")
    if key is not None and parts.scheme == "http" and not _local(host):
        raise InputError(f"base URL: http://{host} would carry the key in the clear, expected https://")
    return url


def _local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
