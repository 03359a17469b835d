"""The model's own tokenizer on this machine: for prompt ids, and for the ids of an answer that comes without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veridifr.errors import InputError, require

_LOST = "\ufffd"
"""What decoding puts in place of bytes that are no character."""


class Tokenizer:
    """The tokenizer in a model's directory. Nothing is downloaded and no code of the directory is run."""

    def __init__(self, path: str | Path) -> None:
        transformers = require("transformers", "hf")
        if not Path(path).is_dir():
            raise InputError(f"{path}: is no directory, expected that of the model's tokenizer")
        try:
            self._inner: Any = transformers.AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(f"{path}: holds no tokenizer that can be loaded: {type(error).__name__}") from error
        self._path = path
        self.end: int | None = self._inner.eos_token_id
        self._table: dict[bytes, int | None] | None = None

    def of_text(self, text: str) -> list[int]:
        """Ids of a prompt's text, special tokens included where the tokenizer adds them."""
        return [int(token) for token in self._inner.encode(text)]

    def of_output(self, text: str) -> list[int]:
        """Ids of an output's text, none added."""
        return [int(token) for token in self._inner.encode(text, add_special_tokens=False)]

    def of_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of chat messages by the model's own template, ready for an answer."""
        try:
            made = self._inner.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:
            if type(error).__module__.startswith("jinja2") or isinstance(error, ValueError | TypeError | ImportError):
                raise InputError(
                    f"{self._path}: its chat template cannot be applied: {type(error).__name__}"
                ) from error
            raise
        return [int(token) for token in made]

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

    def exact(self, text: str, ids: Sequence[int]) -> bool:
        """Whether `ids` give `text` back, and none of it was lost."""
        return _LOST not in text and self.text(ids) == text

    def of_token(self, token: bytes) -> int | None:
        """The id of the one token that stands for these bytes; None where there is none, or more than one."""
        if self._table is None:
            self._table = {}
            for number in range(len(self._inner)):
                text = self.text([number])
                if _LOST not in text:
                    key = text.encode("utf-8")
                    self._table[key] = None if key in self._table else number
        return self._table.get(token)
