"""The ledger on its own: what a kill leaves of it, who may hold it, and that its accounts add up."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from veridifr.collecting.budget import Use
from veridifr.collecting.ledger import ANSWERED, FAILED, REFUSED, Ledger
from veridifr.errors import InputError

HEADER = {"model": "m", "base URL": "u"}


def written(path: Path) -> Path:
    """A ledger with one request of each fate: answered, failed then answered, refused, under way."""

    async def write() -> None:
        ledger = Ledger(path)
        ledger.start(HEADER)
        assert await ledger.intend(0, Use(3, 8)) == 0
        await ledger.close_attempt(ANSWERED, 0, 0, Use(3, 7), answer={"text": "é"})
        assert await ledger.intend(1, Use(3, 8)) == 0
        await ledger.close_attempt(FAILED, 1, 0, Use(3, 8), why="broke")
        assert await ledger.intend(1, Use(3, 8)) == 1
        await ledger.close_attempt(ANSWERED, 1, 1, Use(3, 8), answer={})
        await ledger.intend(2, Use(3, 8))
        await ledger.close_attempt(REFUSED, 2, 0, Use(), why="status 400")
        await ledger.intend(3, Use(4, 8))
        ledger.close()

    asyncio.run(write())
    return path


def test_a_ledger_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path / "l")
    ledger = Ledger(path)
    ledger.start(HEADER)
    assert ledger.answers[0]["answer"] == {"text": "é"}
    assert set(ledger.answers) == {0, 1}
    assert ledger.refusals == {2: "status 400"}
    assert ledger.failures == {1: "broke"}
    assert dict(ledger.attempts) == {0: 1, 1: 2, 2: 1, 3: 1}
    assert ledger.spent == Use(3 + 3 + 3 + 4, 7 + 8 + 8 + 8)  # the one under way at its worst
    assert (ledger.maybe_paid[1], ledger.maybe_paid[3], ledger.killed[3], ledger.maybe_paid[2]) == (1, 1, 1, 0)
    ledger.close()
    spent = ledger.spent
    again = Ledger(path)
    again.start(HEADER)  # it was closed on record: a second run charges it no second time
    assert (again.spent, again.killed[3]) == (spent, 1)
    again.close()


def test_a_cut_at_every_byte_is_read_or_refused(tmp_path: Path) -> None:
    """Wherever a kill cuts the file, it opens with what was whole, and can be gone on with."""
    whole = written(tmp_path / "l").read_bytes()
    for size in range(len(whole)):
        path = tmp_path / "cut"
        path.write_bytes(whole[:size])
        ledger = Ledger(path)
        complete = whole[:size].count(b"\n")
        assert ledger.begun == (complete > 0)
        ledger.start(HEADER)
        ledger.close()
        lines = path.read_bytes().splitlines()
        assert lines[:complete] == whole.splitlines()[:complete]
        for line in lines:
            json.loads(line)


@pytest.mark.parametrize(
    "line",
    [
        b"nothing\n",
        b"[]\n",
        b"{}\n",
        b"\n",
        b'{"send":0}\n',
        b'{"end":"answered","index":9,"attempt":0,"charged":[1,2]}\n',
        b'{"end":"vanished","index":3,"attempt":0,"charged":[1,2]}\n',
        b'{"end":"failed","index":3,"attempt":0,"charged":[1]}\n',
    ],
)
def test_a_line_that_is_no_record_is_refused_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path / "l")
    number = path.read_bytes().count(b"\n") + 1
    path.write_bytes(path.read_bytes() + line + b'{"send":5,"attempt":0,"worst":[1,2]}\n')
    with pytest.raises(InputError, match=rf"l:{number}: no record|JSON"):
        Ledger(path)
    path.write_bytes(b'{"send":5,"attempt":0,"worst":[1,2]}\n')
    with pytest.raises(InputError, match="l:1: no record"):
        Ledger(path)  # and the refusal before let go of the file


def test_another_format_and_another_header_are_refused(tmp_path: Path) -> None:
    (tmp_path / "new").write_text('{"ledger":2}\n')
    with pytest.raises(InputError, match="format 2"):
        Ledger(tmp_path / "new")
    ledger = Ledger(written(tmp_path / "l"))
    with pytest.raises(InputError, match="another model"):
        ledger.start({**HEADER, "model": "n"})
    ledger.close()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "l")
    with pytest.raises(InputError, match="another collector"):
        Ledger(tmp_path / "l")
    first.close()
    Ledger(tmp_path / "l").close()


def test_records_that_wait_together_are_all_written(tmp_path: Path) -> None:
    async def write() -> None:
        ledger = Ledger(tmp_path / "l")
        ledger.start(HEADER)
        await asyncio.gather(*(ledger.intend(index, Use(1, 1)) for index in range(200)))
        assert (tmp_path / "l").read_bytes().count(b'"send"') == 200  # on the disk before the call returns
        ledger.close()

    asyncio.run(write())


def test_a_disk_that_takes_no_more_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async def write() -> None:
        ledger = Ledger(tmp_path / "l")
        ledger.start(HEADER)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="cannot be written: No space left"):
            await ledger.intend(0, Use(1, 1))
        ledger.close()

    asyncio.run(write())
