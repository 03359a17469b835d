"""Where a model lies, on disk or in a cache of the hub, and the SHA-256 of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from veridifr.errors import ReferenceError, require


def resolve(place: str, revision: str | None) -> Path:
    """The directory of a model: a path, or a hub id that is fetched at `revision`."""
    path = Path(place)
    if path.is_dir():
        return path
    if path.exists() or place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise ReferenceError(f"reference hf:{place}: no such directory")
    if revision is None:
        raise ReferenceError(f"reference hf:{place}: a hub model needs --revision, or its weights may change under you")
    hub = require("huggingface_hub", "hf")
    try:
        return Path(
            hub.snapshot_download(
                place, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]
            )
        )
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise ReferenceError(f"reference hf:{place}: cannot download it: {first_line(error)}") from error


def digest_model(path: Path) -> str:
    """SHA-256 (hex) over the names and contents of a model directory's config.json and safetensors files."""
    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").is_file():
        raise ReferenceError(f"reference {path}: expected config.json and at least one .safetensors file")
    digest = hashlib.sha256(b"veridifr weights 1\0")
    for file in [path / "config.json", *files]:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def digest_parameters(model: Any) -> str:
    """SHA-256 (hex) over the names, dtypes and bytes of a model's parameters in memory."""
    digest = hashlib.sha256(b"veridifr parameters 1\0")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
