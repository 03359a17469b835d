"""Seeds that the verifier issues, so that nobody chooses the noise: not the provider, and not the verifier either.

Each seed comes from a secret, the request that it belongs to, the audit and the request's number (docs/seeds.md is the
norm). The commitment to the secret is published before the audit, and the secret after it: then anyone can recompute
every seed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from veridifr.errors import InputError, TraceError
from veridifr.trace import Trace, check_int, check_text
from veridifr.traces.codec import sampling_to_dict

SCHEME, TEXT_SCHEME = "seeds/1", "seeds/2"
"""The schemes of docs/seeds.md, for prompts given as token ids and as text; their meaning never changes."""
ASKED = "asked"
"""The key of a request that was sent as text: what was sent, as `prompt` or `messages`."""
HEADER = "issued_seed"
"""The key of a trace that says which issue its seed belongs to."""
BITS, MOST_BITS = 31, 63
"""31 bits pass every engine and every JSON proxy; 63 is the widest that engines take as a signed integer."""
LEAST_SECRET, MOST_SECRET = 16, 4096
"""Bytes of a secret."""
MAX_INDEX = 2**31 - 1
MAX_ATTEMPT = 63
"""With 2**20 requests and 31 bits, a 64th attempt is needed with a probability below 2**-700."""

_RESIDUE = 2**32
_RESERVED = (0, _RESIDUE - 1)
"""Residues that engines take for "no seed" (0 and -1)."""
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2})+\Z")


def generate_secret() -> bytes:
    """A fresh secret of 32 random bytes. One secret serves one audit, because it is revealed afterwards."""
    return secrets.token_bytes(32)


def write_secret(path: str | Path, secret: bytes) -> None:
    """Write a secret to a new file that only its owner can read, as hexadecimal digits.

    Raises `InputError` for a file that exists: overwriting a secret would make the seeds it issued uncheckable.
    """
    text = _check_secret(secret).hex().encode() + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InputError(f"{path}: exists already, and a secret is never overwritten") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        Path(path).unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_secret(path: str | Path) -> bytes:
    """The secret in a file of hexadecimal digits, as `write_secret` writes it; white space at the end is ignored.

    Raises `InputError`, which never shows what the file holds.
    """
    try:
        with Path(path).open("rb") as stream:
            text = stream.read(2 * MOST_SECRET + 64).rstrip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not _HEX.match(text):
        raise InputError(f"{path}: secret: expected hexadecimal digits, two a byte, as `veridifr seeds new-secret` has")
    try:
        return _check_secret(bytes.fromhex(text.decode("ascii")))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def request_digest(request: Trace, scheme: str = SCHEME) -> str:
    """SHA-256 (hex) of what was asked for: the prompt (token ids, in seeds/2 the text that was sent, which is under
    the key `asked`) and the sampling settings but for the seed."""
    if scheme == TEXT_SCHEME and ASKED not in request.extra:
        raise TraceError(f"{ASKED}: missing, and {TEXT_SCHEME} issues seeds for it")
    asked = {
        **({"prompt_token_ids": request.prompt_token_ids.tolist()} if scheme == SCHEME else {}),
        **({ASKED: request.extra[ASKED]} if scheme == TEXT_SCHEME else {}),
        "sampling": sampling_to_dict(replace(request.sampling, seed=None)),
    }
    try:
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TraceError(f"sampling: cannot be written as JSON: {error}") from error
    return hashlib.sha256(_parts(b"veridifr seeds/1 request", text.encode("ascii"))).hexdigest()


@dataclass(frozen=True, kw_only=True)
class IssuedSeed:
    """What a trace says of its seed's issue: the value of its key `issued_seed`. A claim, like all of a trace."""

    commitment: str
    audit_id: str
    bits: int
    index: int
    attempt: int = 0
    scheme: str = SCHEME

    def to_dict(self) -> dict[str, str | int]:
        """The JSON object that a trace keeps."""
        value: dict[str, str | int] = {
            "veridifr": self.scheme,
            "commitment": self.commitment,
            "audit_id": self.audit_id,
            "bits": self.bits,
            "index": self.index,
        }
        return {**value, "attempt": self.attempt} if self.attempt else value


def issued_seed(trace: Trace) -> IssuedSeed | None:
    """What a trace says of its seed's issue, None if nothing. Raises `TraceError` naming the field."""
    value = trace.extra.get(HEADER)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TraceError(f"{HEADER}: got {type(value).__name__}, expected an object")
    for key in ("veridifr", "commitment", "audit_id", "bits", "index"):
        if key not in value:
            raise TraceError(f"{HEADER}.{key}: missing")
    if value["veridifr"] not in (SCHEME, TEXT_SCHEME):
        got = str(value["veridifr"])[:40]
        raise TraceError(f"{HEADER}.veridifr: got {got!a}, expected {SCHEME!a} or {TEXT_SCHEME!a}")
    commitment = check_text(f"{HEADER}.commitment", value["commitment"])
    if not re.fullmatch(r"[0-9a-f]{64}", commitment):
        raise TraceError(f"{HEADER}.commitment: expected 64 hexadecimal digits in lower case")
    if not check_text(f"{HEADER}.audit_id", value["audit_id"]):
        raise TraceError(f"{HEADER}.audit_id: got an empty string, expected a name for the audit")
    return IssuedSeed(
        commitment=commitment,
        audit_id=value["audit_id"],
        bits=check_int(f"{HEADER}.bits", value["bits"], BITS, MOST_BITS),
        index=check_int(f"{HEADER}.index", value["index"], 0, MAX_INDEX),
        attempt=check_int(f"{HEADER}.attempt", value.get("attempt", 0), 0, MAX_ATTEMPT),
        scheme=str(value["veridifr"]),
    )


@dataclass(frozen=True)
class SeedIssuer:
    """Issues the seeds of one audit. `secret` is 16 to 4096 random bytes, which no text of this object shows.

    `bits` is the width of the seeds, 31 to 63. JSON proxies round above 53 bits and some engines use 32 of them, so 31
    is right unless you know the whole way that a seed takes.
    """

    secret: bytes = field(repr=False)
    audit_id: str
    bits: int = BITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "secret", _check_secret(self.secret))
        if not check_text("audit_id", self.audit_id):
            raise TraceError("audit_id: got an empty string, expected a name for the audit")
        object.__setattr__(self, "bits", check_int("bits", self.bits, BITS, MOST_BITS))

    @property
    def commitment(self) -> str:
        """SHA-256 (hex) that binds secret, audit and width without showing the secret. Publish it before the audit."""
        parts = (b"veridifr seeds/1 commitment", self.secret, self.audit_id.encode("utf-8"), _number(self.bits))
        return hashlib.sha256(_parts(*parts)).hexdigest()

    def seed_for(self, request: Trace, index: int, attempt: int = 0) -> int:
        """The seed of a request. `index` is its number in the audit, from 0; see `issue` for `attempt`."""
        index, attempt = check_int("index", index, 0, MAX_INDEX), check_int("attempt", attempt, 0, MAX_ATTEMPT)
        return self._seed(bytes.fromhex(request_digest(request, _scheme(request))), index, attempt)

    def issue(self, requests: Sequence[Trace]) -> list[Trace]:
        """The requests with their seeds, and with what is needed to check them, under the key `issued_seed`.

        The requests' order gives their index. No two seeds are equal, not even modulo 2**32: where one would be, the
        next `attempt` is taken. Send the seed, and keep the key to yourself: it shows which requests are an audit's.
        Raises `TraceError` for a request of several outputs (`engine.child` above 0), whose seed is not its own.
        """
        issued: list[Trace] = []
        used: set[int] = set()
        for index, request in enumerate(requests):
            if request.engine.child:
                raise TraceError(
                    f"requests[{index}].engine.child: got {request.engine.child}, expected one output each"
                )
            scheme = _scheme(request)
            digest = bytes.fromhex(request_digest(request, scheme))
            for attempt in range(MAX_ATTEMPT + 1):
                seed = self._seed(digest, index, attempt)
                if _free(seed, used):
                    break
            else:
                raise TraceError(f"bits: {self.bits} are too few for {len(requests)} distinct seeds")
            used.add(seed % _RESIDUE)
            stated = {"commitment": self.commitment, "audit_id": self.audit_id, "scheme": scheme}
            header = IssuedSeed(**stated, bits=self.bits, index=index, attempt=attempt)
            issued.append(
                replace(
                    request,
                    sampling=replace(request.sampling, seed=seed),
                    extra={**request.extra, HEADER: header.to_dict()},
                )
            )
        return issued

    def _seed(self, digest: bytes, index: int, attempt: int) -> int:
        parts = (b"veridifr seeds/1 seed", digest, self.audit_id.encode("utf-8"), _number(index), _number(attempt))
        drawn = hmac.digest(self.secret, _parts(*parts), "sha256")
        return int.from_bytes(drawn[:8], "big") >> (64 - self.bits)


@dataclass(frozen=True, kw_only=True)
class SeedCheck:
    """Whether the seeds of an audit are those that a secret gives.

    `wrong` has the id of each sequence whose seed is not, with the reason. `absent` counts the numbers below the
    highest that no sequence has: requests that were issued and are not shown. None: no sequence says what it was.
    """

    commitment: str | None
    audit_id: str | None
    bits: int | None
    sequences: int
    wrong: Mapping[str, str]
    absent: int | None

    @property
    def holds(self) -> bool:
        """Whether every seed, and the commitment, is the secret's."""
        return not self.wrong

    def require(self) -> None:
        """Raise `TraceError`, which names the first sequences that are wrong, unless the check holds."""
        if self.wrong:
            first = "; ".join(f"{name!a}: {reason}" for name, reason in list(self.wrong.items())[:3])
            raise TraceError(f"{len(self.wrong)} of {self.sequences} seeds are not as issued: {first}")


def check_seeds(traces: Sequence[Trace], secret: bytes) -> SeedCheck:
    """Recompute the seed of every trace, and the commitment, from the secret.

    One audit is checked: the commitment, audit id and width that most traces state hold for all. Raises `InputError`
    for no traces and a secret that is none; what is wrong with a trace is no error but stands in the result.
    """
    if not traces:
        raise TraceError("traces: got none")
    secret = _check_secret(secret)
    wrong: dict[str, str] = {}
    stated: list[tuple[Trace, IssuedSeed]] = []
    for trace in traces:
        try:
            header = issued_seed(trace)
        except TraceError as error:
            wrong[trace.id] = str(error)
            continue
        if header is None:
            wrong[trace.id] = f"{HEADER}: missing"
        else:
            stated.append((trace, header))
    if not stated:
        return SeedCheck(commitment=None, audit_id=None, bits=None, sequences=len(traces), wrong=wrong, absent=None)
    most = Counter((h.commitment, h.audit_id, h.bits) for _, h in stated).most_common(1)[0][0]
    issuer = SeedIssuer(secret, most[1], most[2])
    same = []
    for trace, header in stated:
        if (header.commitment, header.audit_id, header.bits) != most:
            wrong[trace.id] = f"{HEADER}: of another commitment, audit or width than most sequences"
        elif not hmac.compare_digest(header.commitment, issuer.commitment):
            wrong[trace.id] = f"{HEADER}.commitment: is not that of this secret"
        else:
            same.append((trace, header))
    good = _recompute(issuer, same, wrong)
    order = {trace.id: place for place, trace in enumerate(traces)}
    return SeedCheck(
        commitment=most[0],
        audit_id=most[1],
        bits=most[2],
        sequences=len(traces),
        wrong=dict(sorted(wrong.items(), key=lambda item: order[item[0]])),
        absent=max(good) + 1 - len(good) if good else None,
    )


def _recompute(issuer: SeedIssuer, stated: Sequence[tuple[Trace, IssuedSeed]], wrong: dict[str, str]) -> set[int]:
    """The numbers of the sequences whose seeds are right; the others get their reason in `wrong`."""
    used: set[int] = set()
    good: set[int] = set()
    for trace, header in sorted(stated, key=lambda pair: pair[1].index):
        try:
            digest = bytes.fromhex(request_digest(trace, header.scheme))
        except TraceError as error:
            wrong[trace.id] = str(error)
            continue
        *earlier, due = (issuer._seed(digest, header.index, attempt) for attempt in range(header.attempt + 1))
        # An attempt is due only where those before it were taken; a number not shown may be what took one.
        skipped = sum(_free(seed, used) for seed in earlier)
        if trace.engine.child:
            wrong[trace.id] = f"engine.child: got {trace.engine.child}, and a seed was issued for one output"
        elif trace.sampling.seed != due:
            wrong[trace.id] = f"sampling.seed: got {trace.sampling.seed}, issued for this prompt and settings was {due}"
        elif header.index in good:
            wrong[trace.id] = f"{HEADER}.index: {header.index} names more than one sequence"
        elif skipped > header.index - len(good) or not _free(due, used):
            wrong[trace.id] = f"{HEADER}.attempt: got {header.attempt}, which is not the one that was due"
        else:
            used.add(due % _RESIDUE)
            good.add(header.index)
    return good


def _scheme(request: Trace) -> str:
    return TEXT_SCHEME if ASKED in request.extra else SCHEME


def _free(seed: int, used: set[int]) -> bool:
    return seed % _RESIDUE not in used and seed % _RESIDUE not in _RESERVED


def _check_secret(secret: object) -> bytes:
    if not isinstance(secret, bytes | bytearray):
        raise InputError(f"secret: got {type(secret).__name__}, expected bytes")
    if not LEAST_SECRET <= len(secret) <= MOST_SECRET:
        raise InputError(f"secret: got {len(secret)} bytes, expected {LEAST_SECRET} to {MOST_SECRET}")
    if len(set(secret)) == 1:
        raise InputError("secret: one byte repeated, expected random bytes")
    return bytes(secret)


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _parts(*parts: bytes) -> bytes:
    """The parts, each after its length, so that no two lists of parts give the same bytes."""
    return b"".join(_number(len(part)) + part for part in parts)
