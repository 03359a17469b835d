"""References that have the model's tokenizer, as transformers loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from veridifr.errors import require
from veridifr.references import Reference


class TokenizingReference(Reference):
    """A reference with a transformers tokenizer in `_tokenizer`, or None there."""

    _tokenizer: Any

    def decode(self, ids: Sequence[int]) -> str | None:
        """See `Reference.decode`."""
        if self._tokenizer is None:
            return None
        return cast(str, self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def encode(self, text: str) -> list[int] | None:
        """See `Reference.encode`."""
        if self._tokenizer is None:
            return None
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]


def first_eos_ids(*stated: Any) -> tuple[int, ...]:
    """The ids that end an output, by the first configuration that states any: an id, several, or None."""
    found = next((value for value in stated if value is not None), ())
    return tuple(int(token) for token in found) if isinstance(found, list | tuple) else (int(found),)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer beside a model, or None: decoded text is for people only, so its absence is no error."""
    transformers = require("transformers", "hf")
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError):
        return None
