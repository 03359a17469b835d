"""The text that models are trained on: Python sources of this machine, a tokenizer of them, and their token ids."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T")
SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")
BEGIN, END, PAD = 0, 1, 2
SHORTEST, LONGEST = 400, 300_000
"""Bytes of a source that is taken."""
LEARNED = 40_000_000
"""Characters that the tokenizer is learned from."""
HELD = 64
"""One of so many sources is held out."""
_SKIPPED = ("__pycache__", ".git", ".venv", "site-packages", "dist-packages")
"""Folders inside another root; those of packages are roots themselves."""
_HEADER = re.compile(r"\A(?:[ \t]*#[^\n]*\n|[ \t]*\n)+")
"""Licences and empty lines before a source's first statement: they would make all texts begin alike."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids, int32, each file between `BEGIN` and `END`; `begins` are where files of `train` begin, int64."""

    tokenizer: Any
    vocabulary: int
    train: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int64]
    held: npt.NDArray[np.int32]


def prepare(vocabulary: int, characters: int, seconds: float, say: Callable[[str], None]) -> Corpus:
    """Read, learn a tokenizer and tokenize, in about `seconds`: what is not tokenized by then is left out."""
    begun = time.monotonic()
    train, held = _split(_texts(sources(), characters, begun + seconds / 3))
    say(f"{len(train)} sources, {sum(map(len, train)) / 1e6:.0f} M characters; {len(held)} held out")
    order = np.random.default_rng(0).permutation(len(train))
    train = [train[place] for place in order]
    tokenizer = learn(train, vocabulary)
    say(f"tokenizer: {tokenizer.get_vocab_size()} tokens")
    held_ids = encode(tokenizer, held[:2000])
    train_ids = encode(tokenizer, train, max(begun + seconds, time.monotonic() + seconds / 4))
    say(f"{len(train_ids) / 1e6:.1f} M tokens to train on, {len(held_ids) / 1e3:.0f} k held out")
    return Corpus(tokenizer, vocabulary, train_ids, np.flatnonzero(train_ids == BEGIN), held_ids)


def sources() -> Iterator[Path]:
    """Python files of the packages and the standard library."""
    here = Path(__file__).resolve().parent
    roots = {Path(root).resolve() for root in (sysconfig.get_paths()["stdlib"], *sys.path) if Path(root).is_dir()}
    for root in sorted(roots - {here}):
        for folder, below, names in os.walk(root):
            below[:] = [one for one in below if one not in _SKIPPED]
            yield from (Path(folder) / name for name in names if name.endswith(".py"))


def learn(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    part, size = [], 0
    for text in texts:
        if size >= LEARNED:
            break
        part.append(text)
        size += len(text)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(part, trainer)
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str], until: float = float("inf")) -> npt.NDArray[np.int32]:
    """Ids of all texts, or of those that are done at time `until`."""
    found: list[npt.NDArray[np.int32]] = []
    for part in _parts(texts, 1000):
        if found and time.monotonic() > until:
            break
        found += [np.array([BEGIN, *one.ids, END], dtype=np.int32) for one in tokenizer.encode_batch(part)]
    return np.concatenate(found)


def _texts(paths: Iterator[Path], characters: int, until: float) -> Iterator[str]:
    """Different texts, until there are enough or it is late."""
    seen: set[bytes] = set()
    total = 0
    with ThreadPoolExecutor(8) as pool:
        for part in _parts(paths, 500):
            for text in pool.map(_read, part):
                digest = b"" if text is None else hashlib.sha1(text.encode(), usedforsecurity=False).digest()
                if text is None or digest in seen:
                    continue
                seen.add(digest)
                total += len(text)
                yield text
                if total > characters or time.monotonic() > until:
                    return


def _read(path: Path) -> str | None:
    try:
        if not SHORTEST < path.stat().st_size < LONGEST:
            return None
        text = _HEADER.sub("", path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) > SHORTEST else None


def _split(texts: Iterator[str]) -> tuple[list[str], list[str]]:
    train: list[str] = []
    held: list[str] = []
    for number, text in enumerate(texts):
        (train if number % HELD else held).append(text)
    return train, held


def _parts(items: Iterable[_T], count: int) -> Iterator[list[_T]]:
    """`count` items at a time."""
    rest = iter(items)
    while part := list(islice(rest, count)):
        yield part
