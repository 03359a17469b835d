"""The collector's memory: a line on disk before each request and after it, so that a kill loses no account of either.

Lines of JSON, only ever appended. A line is written whole and flushed to the disk before what it announces is done; a
last line without its end is what a kill leaves, and is cut off. One process at a time holds the file.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from veridifr.collecting.budget import Use
from veridifr.errors import InputError, UnsupportedError
from veridifr.traces.strict_json import parse_json

FORMAT = 1
MAX_LINE_BYTES = 128 * 1024 * 1024
LOST, FAILED, REFUSED, ANSWERED = "lost", "failed", "refused", "answered"
"""Ends of an attempt: killed with its fate unknown, no usable answer, refused for good, answered."""
_CLOSING = (LOST, FAILED, REFUSED, ANSWERED)


class Ledger:
    """An open ledger. `answers` has the record of each answered request by its index, `refusals` the reason of each
    refused one, `failures` the last reason of each failed one, `charged` what all attempts at each were charged.

    `maybe_paid` counts, by index, the attempts that brought nothing and may have been paid for; `killed` those among
    them whose process was killed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.answers: dict[int, Mapping[str, Any]] = {}
        self.refusals: dict[int, str] = {}
        self.failures: dict[int, str] = {}
        self.charged: dict[int, Use] = {}
        self.attempts: Counter[int] = Counter()
        self.maybe_paid: Counter[int] = Counter()
        self.killed: Counter[int] = Counter()
        self._open: dict[tuple[int, int], Use] = {}
        self._header: Mapping[str, Any] | None = None
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._file = _locked(self.path)
        try:
            self._replay()
        except BaseException:
            self._file.close()
            raise

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin with `header`, or check that the file began with an equal one, and close what a kill left open.

        Raises `InputError` that names the first field which differs: the file is of another collection.
        """
        header = json.loads(json.dumps({"ledger": FORMAT, **header}))
        if self._header is None:
            self._header = header
            self._write(_line(header))
            return
        for key in (*header, *self._header):
            if header.get(key) != self._header.get(key):
                raise InputError(
                    f"{self.path}: was begun with another {key}; go on with the same command, or into a new file"
                )
        for (index, attempt), worst in list(self._open.items()):
            record = {"end": LOST, "index": index, "attempt": attempt, "charged": list(worst)}
            self._write(_line(record))
            self._take(record)

    @property
    def begun(self) -> bool:
        """Whether the file held a collection already."""
        return self._header is not None

    @property
    def spent(self) -> Use:
        """What all attempts were charged."""
        return Use(sum(use.prompt for use in self.charged.values()), sum(use.output for use in self.charged.values()))

    async def intend(self, index: int, worst: Use) -> int:
        """Note that a request is about to be sent, for at most `worst`. Returns the attempt's number, from 0."""
        attempt = self.attempts[index]
        record = {"send": index, "attempt": attempt, "worst": list(worst)}
        self._take(record)
        await self._append(record)
        return attempt

    async def close_attempt(self, end: str, index: int, attempt: int, charged: Use, **fields: Any) -> None:
        """Note how an attempt ended, what it was charged, and its answer or reason."""
        record = {"end": end, "index": index, "attempt": attempt, "charged": list(charged), **fields}
        await self._append(record)
        self._take(record)

    async def settled(self) -> None:
        """Return once nothing is being written."""
        if self._writer is not None:
            await self._writer

    def close(self) -> None:
        """Close the file, which lets another process have it."""
        self._file.close()

    async def _append(self, record: Mapping[str, Any]) -> None:
        """Return once the record is on the disk. Records that wait at the same time share one flush."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_line(record), done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._write, b"".join(line for line, _ in batch))
            except InputError as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for _, done in batch:
                if not done.done():
                    done.set_result(None)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def _replay(self) -> None:
        self._file.seek(0)
        number, whole = 0, 0
        while line := self._file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n"):
                break
            record = parse_json(line, error=InputError) if line.strip() else None
            if not isinstance(record, dict):
                raise InputError(f"{self.path}:{number}: no record of a ledger")
            try:
                self._take(record)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{self.path}:{number}: no record of a ledger: {type(error).__name__}") from error
            whole = self._file.tell()
        self._file.seek(whole)
        self._file.truncate()

    def _take(self, record: Mapping[str, Any]) -> None:
        """Bring the state up to date with one record."""
        if self._header is None:
            if record["ledger"] != FORMAT:
                raise InputError(f"{self.path}: format {str(record['ledger'])[:20]}, this veridifr reads {FORMAT}")
            self._header = record
        elif "send" in record:
            index, attempt = int(record["send"]), int(record["attempt"])
            self._open[index, attempt] = Use(*record["worst"])
            self.attempts[index] += 1
        else:
            self._close(record)

    def _close(self, record: Mapping[str, Any]) -> None:
        end, index, charged = record["end"], int(record["index"]), Use(*record["charged"])
        if end not in _CLOSING:
            raise ValueError(end)
        del self._open[index, int(record["attempt"])]
        self.charged[index] = self.charged.get(index, Use()).plus(charged)
        if end == ANSWERED:
            self.answers[index] = record
            return
        self.maybe_paid[index] += any(charged)
        if end == LOST:
            self.killed[index] += 1
            return
        (self.refusals if end == REFUSED else self.failures)[index] = str(record["why"])


def _locked(path: Path) -> BinaryIO:
    """The file, made if need be, held by this process alone until it is closed or the process ends."""
    try:
        import fcntl
    except ImportError as error:
        raise UnsupportedError("collect", "needs the file locks of a Unix system") from error
    try:
        file = path.open("a+b")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # that the file exists must outlive a power loss as well
        finally:
            os.close(folder)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise InputError(f"{path}: another collector is at work on it") from error
        raise InputError(f"{path}: cannot be locked: {error.strerror or error}") from error
    return file


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.encode("ascii") + b"\n"
