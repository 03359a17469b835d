"""Secrets: how they are made, kept in a file and read, and that no message shows one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from veridifr import generate_secret, read_secret, write_secret
from veridifr.errors import InputError

SECRET = bytes(range(32))


def test_a_generated_secret_is_new_and_long() -> None:
    found = {generate_secret() for _ in range(20)}
    assert len(found) == 20 and {len(value) for value in found} == {32}


def test_a_secret_file_is_the_owner_s_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_secret(path, SECRET)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_secret(path) == SECRET
    with pytest.raises(InputError, match="secret: exists already, and a secret is never overwritten"):
        write_secret(path, SECRET[::-1])
    assert read_secret(path) == SECRET
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="exists already"):
        write_secret(tmp_path / "link", SECRET)
    with pytest.raises(InputError, match="cannot be written: No such file"):
        write_secret(tmp_path / "none" / "secret", SECRET)


def test_a_failed_write_leaves_no_half_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write_secret(tmp_path / "secret", SECRET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [SECRET.hex(), SECRET.hex().upper() + "\n", SECRET.hex() + " \r\n\n"])
def test_secret_files_that_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").write_bytes(text.encode())
    assert read_secret(tmp_path / "s") == SECRET


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "secret: expected hexadecimal digits"),
        (b"hunter2-hunter2-hunter2", "secret: expected hexadecimal digits"),
        (b"0123456789abcdef0", "secret: expected hexadecimal digits"),  # half a byte
        (b"01 23 45 67 89 ab cd ef 01 23 45 67 89 ab cd ef", "secret: expected hexadecimal digits"),
        (SECRET, "secret: expected hexadecimal digits"),
        (b"\xff" * 40, "secret: expected hexadecimal digits"),
        (b"0123456789abcdef", "secret: got 8 bytes, expected 16 to 4096"),
        (b"00" * 32, "secret: one byte repeated"),
        (b"01" * 5000, "secret: got 4128 bytes"),
    ],
)
def test_secret_files_that_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_secret(tmp_path / "s")
    assert "hunter" not in str(caught.value) and "0123" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_secret(tmp_path / "none")
