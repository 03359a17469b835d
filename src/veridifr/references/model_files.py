"""The small files of a model, without its weights: what the vocabulary is, where outputs end, and how ids read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veridifr.errors import ReferenceError, require
from veridifr.trace import MAX_TOKEN_ID
from veridifr.traces.strict_json import MAX_DOCUMENT_BYTES, parse_json, read_bounded


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFiles:
    """`vocab_size` is the width of a row of logits. `tokenizer` is None where there is no tokenizer.json."""

    vocab_size: int
    eos_ids: tuple[int, ...]
    config_digest: str
    """SHA-256 (hex) of config.json."""
    tokenizer: Any


def read_model_files(folder: Path) -> ModelFiles:
    """Read config.json, generation_config.json and tokenizer.json of `folder`; only the first must be there."""
    raw = read_bounded(folder / "config.json", MAX_DOCUMENT_BYTES, error=ReferenceError)
    config = _object(raw, folder / "config.json")
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    size = text.get("vocab_size")
    if type(size) is not int or not 1 <= size <= MAX_TOKEN_ID:
        raise ReferenceError(f"{folder / 'config.json'}: vocab_size: got {size!r:.40}, expected a whole number")
    generation = folder / "generation_config.json"
    sources = [config, text]
    if generation.is_file():
        sources.insert(0, _object(read_bounded(generation, MAX_DOCUMENT_BYTES, error=ReferenceError), generation))
    stated: Any = next((s["eos_token_id"] for s in sources if s.get("eos_token_id") is not None), [])
    eos = stated if isinstance(stated, list) else [stated]
    if not all(type(token) is int and 0 <= token < size for token in eos):
        raise ReferenceError(f"{folder}: eos_token_id: got {stated!r:.60}, expected token ids below {size}")
    return ModelFiles(
        vocab_size=size,
        eos_ids=tuple(eos),
        config_digest=hashlib.sha256(raw).hexdigest(),
        tokenizer=_tokenizer(folder / "tokenizer.json"),
    )


def _object(data: bytes, path: Path) -> Mapping[str, Any]:
    try:
        value = parse_json(data, error=ReferenceError)
    except ReferenceError as error:
        raise ReferenceError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ReferenceError(f"{path}: expected a JSON object")
    return value


def _tokenizer(path: Path) -> Any:
    if not path.is_file():
        return None
    found = require("tokenizers", "http").Tokenizer.from_file(str(path))
    found.no_truncation()  # both may be stated in the file, and would change the ids of a text
    found.no_padding()
    return found
