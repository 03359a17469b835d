"""Prompts, seeds and large sets of traces as compressed arrays. numpy only: it runs beside any engine.

A set is a group of arrays of one .npz file: all token ids laid end to end, their lengths, a seed and a prompt number
for each sequence, and `meta`, the UTF-8 bytes of a JSON object:

    model     the claimed model name
    sampling  the claimed settings without the seed
    engine    the engine record
    truth     what was really done (model, weights, kv_cache, sampling); never part of a trace
    finish_reason, seconds

A bundle holds several sets, the arrays named `set/array`.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SEED_BITS = 31
"""JSON proxies round above 2**53 and vLLM on a CPU collides mod 2**32: 31 bits pass unchanged everywhere."""
BUNDLE_BYTES = 15 * 2**20
SET_ARRAYS = ("prompt_ids", "prompt_lengths", "output_ids", "output_lengths", "seeds", "numbers", "meta")

Ints = npt.NDArray[np.integer[Any]]


class SeedSource:
    """Seeds of `SEED_BITS` bits, none of them handed out twice. The same start gives the same seeds."""

    def __init__(self, start: int) -> None:
        self._generator = np.random.default_rng(start)
        self._taken: set[int] = set()

    def take(self, count: int) -> list[int]:
        """The next `count` seeds, distinct from each other and from all that were taken before."""
        seeds: list[int] = []
        while len(seeds) < count:
            seed = int(self._generator.integers(0, 2**SEED_BITS))
            if seed not in self._taken:
                self._taken.add(seed)
                seeds.append(seed)
        return seeds


@dataclass(frozen=True)
class PromptSet:
    """Prompts with the seed that wrote each (`written_with`) and a fresh one for the sequence that continues it.

    A prompt's number is its place here; a prompt is used by one sequence of one set, never twice.
    """

    prompts: tuple[tuple[int, ...], ...]
    written_with: tuple[int, ...]
    seeds: tuple[int, ...]
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        if not len(self.prompts) == len(self.written_with) == len(self.seeds):
            raise ValueError(f"{len(self.prompts)} prompts, {len(self.written_with)} and {len(self.seeds)} seeds")

    def part(self, first: int, count: int) -> PromptSet:
        """Prompts `first` to `first + count - 1`; `ValueError` where there are fewer."""
        if first < 0 or count < 1 or first + count > len(self.prompts):
            raise ValueError(f"prompts {first} to {first + count - 1} asked for, of {len(self.prompts)}")
        cut = slice(first, first + count)
        return PromptSet(self.prompts[cut], self.written_with[cut], self.seeds[cut], self.meta)


def acceptable(ids: Sequence[int], special: Iterable[int]) -> bool:
    """Whether a written prompt reads as the middle of one file: nothing after its first token is special."""
    return set(ids[1:]).isdisjoint(special)


def pack_ids(rows: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Rows of token ids laid end to end, as uint16 where they fit and int32 elsewhere, and the lengths (int32)."""
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if rows else np.zeros(0, np.int64)
    if len(flat) and not 0 <= flat.min() <= flat.max() < 2**31:
        raise ValueError(f"token ids from {flat.min()} to {flat.max()}, expected 0 to {2**31 - 1}")
    small = not len(flat) or int(flat.max()) < 2**16
    lengths: Ints = np.asarray([len(row) for row in rows], dtype=np.int32)
    return flat.astype(np.uint16 if small else np.int32), lengths


def unpack_ids(flat: Ints, lengths: Ints) -> list[list[int]]:
    """The rows that `pack_ids` laid end to end; `ValueError` where the lengths do not add up to the ids."""
    if flat.ndim != 1 or lengths.ndim != 1 or (len(lengths) and int(lengths.min()) < 0):
        raise ValueError("token ids and lengths must be flat arrays, lengths not negative")
    ends = np.cumsum(lengths, dtype=np.int64)
    if int(ends[-1] if len(ends) else 0) != len(flat):
        raise ValueError(f"the lengths add up to {int(ends[-1]) if len(ends) else 0}, there are {len(flat)} token ids")
    return [flat[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True)]


def _meta_array(meta: dict[str, Any]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(meta, sort_keys=True).encode(), dtype=np.uint8)


def _meta_dict(array: Ints) -> dict[str, Any]:
    meta = json.loads(array.astype(np.uint8).tobytes())
    if not isinstance(meta, dict):
        raise ValueError("meta: expected a JSON object")
    return meta


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """An .npz file that `numpy.load` reads, compressed by LZMA: token ids take a fifth less than in numpy's own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.save(data, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # without a time stamp
            file.writestr(entry, data.getvalue(), zipfile.ZIP_LZMA)


def save_prompts(path: Path, prompts: PromptSet) -> None:
    """Write prompts, their seeds and how they were made to one .npz file."""
    ids, lengths = pack_ids(prompts.prompts)
    write_arrays(
        path,
        {
            "prompt_ids": ids,
            "prompt_lengths": lengths,
            "written_with": np.asarray(prompts.written_with, dtype=np.int64),
            "seeds": np.asarray(prompts.seeds, dtype=np.int64),
            "meta": _meta_array(prompts.meta),
        },
    )


def load_prompts(path: Path) -> PromptSet:
    """Read what `save_prompts` wrote."""
    with np.load(path, allow_pickle=False) as file:
        rows = unpack_ids(file["prompt_ids"], file["prompt_lengths"])
        written, seeds = file["written_with"].tolist(), file["seeds"].tolist()
        meta = _meta_dict(file["meta"])
    return PromptSet(tuple(map(tuple, rows)), tuple(written), tuple(seeds), meta)


@dataclass(frozen=True)
class TraceSet:
    """The sequences of one condition. `numbers` are prompt numbers, unique over all sets made from one prompt file."""

    prompts: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    numbers: tuple[int, ...]
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        counts = {len(self.prompts), len(self.outputs), len(self.seeds), len(self.numbers)}
        if len(counts) != 1:
            raise ValueError(f"prompts, outputs, seeds and numbers differ in length: {sorted(counts)}")

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of `SET_ARRAYS`, as stored."""
        prompt_ids, prompt_lengths = pack_ids(self.prompts)
        output_ids, output_lengths = pack_ids(self.outputs)
        seeds, numbers = np.asarray(self.seeds, dtype=np.int64), np.asarray(self.numbers, dtype=np.int32)
        values = (prompt_ids, prompt_lengths, output_ids, output_lengths, seeds, numbers, _meta_array(self.meta))
        return dict(zip(SET_ARRAYS, values, strict=True))

    def traces(self, name: str) -> Iterator[dict[str, Any]]:
        """Trace objects of format version 1, as claimed: nothing in them tells what was really done."""
        for prompt, output, seed, number in zip(self.prompts, self.outputs, self.seeds, self.numbers, strict=True):
            yield {
                "id": f"{name}/{number}",
                "model": self.meta["model"],
                "prompt_token_ids": list(prompt),
                "output_token_ids": list(output),
                "sampling": {**self.meta["sampling"], "seed": seed},
                "engine": dict(self.meta["engine"]),
                "finish_reason": self.meta["finish_reason"],
            }


def save_set(path: Path, traces: TraceSet) -> None:
    """Write one set to one .npz file."""
    write_arrays(path, traces.arrays())


def write_jsonl(path: Path, name: str, traces: TraceSet) -> None:
    """Write one set as trace JSON lines; gzip, without a time stamp, where the path ends in .gz."""
    lines = (json.dumps(trace, separators=(",", ":")) + "\n" for trace in traces.traces(name))
    data = "".join(lines).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def bundle(sets: Sequence[tuple[str, Path]], stem: Path, *, limit: int = BUNDLE_BYTES) -> list[Path]:
    """Join set files into `stem-0.npz`, `stem-1.npz`, ..., each of about at most `limit` bytes, in the order given.

    A set is never split. `ValueError` for a set that is larger than `limit` by itself, or a name used twice.
    """
    if len({name for name, _ in sets}) != len(sets):
        raise ValueError("bundle: two sets have the same name")
    groups: list[list[tuple[str, Path]]] = []
    room = 0
    for name, path in sets:
        size = path.stat().st_size
        if size > limit:
            raise ValueError(f"bundle: set {name} has {size} bytes, more than the {limit} that one file may hold")
        if size > room:
            groups.append([])
            room = limit
        groups[-1].append((name, path))
        room -= size
    made = []
    for index, group in enumerate(groups):
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, path in group:
            with np.load(path, allow_pickle=False) as file:
                arrays.update({f"{name}/{key}": file[key] for key in SET_ARRAYS})
        made.append(stem.with_name(f"{stem.name}-{index}.npz"))
        write_arrays(made[-1], arrays)
    return made


def pool_names(path: Path) -> list[str]:
    """The names of the sets in a bundle, sorted; [""] for a file of one set."""
    with np.load(path, allow_pickle=False) as file:
        return sorted({key.rpartition("/")[0] for key in file.files})


def load_set(path: Path, name: str = "") -> TraceSet:
    """One set of a bundle, or the only one of a set's own file (name ""); `KeyError` names what is there instead."""
    with np.load(path, allow_pickle=False) as file:
        prefix = f"{name}/" if f"{name}/meta" in file.files else ""
        if not prefix and "meta" not in file.files:
            raise KeyError(f"{path.name}: no set {name!r}; it holds {', '.join(pool_names(path))}")
        arrays = {key: file[prefix + key] for key in SET_ARRAYS}
    return TraceSet(
        tuple(map(tuple, unpack_ids(arrays["prompt_ids"], arrays["prompt_lengths"]))),
        tuple(map(tuple, unpack_ids(arrays["output_ids"], arrays["output_lengths"]))),
        tuple(arrays["seeds"].tolist()),
        tuple(arrays["numbers"].tolist()),
        _meta_dict(arrays["meta"]),
    )


def load_pool(path: Path, name: str) -> list[dict[str, Any]]:
    """The traces of one set of a bundle, as the objects of a trace file's lines."""
    return list(load_set(path, name).traces(name))
