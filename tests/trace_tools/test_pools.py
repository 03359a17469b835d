"""Sets of traces as arrays: what is written is what is read, and the truth about a set stays out of its traces."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_pools import (
    PromptSet,
    SeedSource,
    TraceSet,
    acceptable,
    bundle,
    load_pool,
    load_prompts,
    load_set,
    pack_ids,
    pool_names,
    save_prompts,
    save_set,
    unpack_ids,
    write_jsonl,
)

from veridifr.trace import EngineRecord, Sampling, Trace

META = {
    "model": "tb24m",
    "sampling": {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "max_tokens": 3, "ignore_eos": True},
    "engine": {"name": "vllm", "version": "0.24.0", "runner": "v1", "dtype": "bfloat16", "multiprocessors": 132},
    "finish_reason": "length",
    "truth": {"model": "tb24m", "weights": "int4", "kv_cache": "auto", "sampling": {"temperature": 1.1}},
}


def small_set(first: int = 0, top: int = 8191) -> TraceSet:
    numbers = (first, first + 1)
    return TraceSet(((0, 5, 6), (0, 7)), ((9, top, 2), (1, 1, 1)), (11 + first, 2**31 - 1 - first), numbers, dict(META))


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=6))
def test_ids_come_back_as_they_were(rows: list[list[int]]) -> None:
    flat, lengths = pack_ids(rows)
    assert unpack_ids(flat, lengths) == rows
    assert (flat.dtype == np.uint16) == all(i < 65536 for row in rows for i in row)


def test_lengths_that_do_not_fit_the_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 4, there are 3"):
        unpack_ids(np.arange(3), np.array([2, 2]))
    with pytest.raises(ValueError, match="not negative"):
        unpack_ids(np.arange(3), np.array([4, -1]))
    with pytest.raises(ValueError, match="token ids from -1 to 4"):
        pack_ids([[4, -1]])


def test_seeds_are_distinct_fresh_and_repeatable() -> None:
    source = SeedSource(5)
    first, second = source.take(3000), source.take(3000)
    assert len({*first, *second}) == 6000
    assert all(0 <= seed < 2**31 for seed in first)
    assert SeedSource(5).take(6000) == first + second
    assert SeedSource(6).take(3000) != first


def test_a_special_token_inside_a_prompt_is_not_acceptable() -> None:
    assert acceptable([0, 5, 6], [0, 1, 2])
    assert not acceptable([0, 5, 1, 6], [0, 1, 2])
    assert not acceptable([0, 0], [0, 1, 2])


def test_prompts_come_back_and_a_part_cannot_run_past_the_end(tmp_path: Path) -> None:
    prompts = PromptSet(((0, 3), (0, 4, 5), (0, 6)), (7, 8, 9), (17, 18, 19), {"start": 1})
    save_prompts(tmp_path / "p.npz", prompts)
    assert load_prompts(tmp_path / "p.npz") == prompts
    assert prompts.part(1, 2) == PromptSet(((0, 4, 5), (0, 6)), (8, 9), (18, 19), {"start": 1})
    for first, count in ((1, 3), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="asked for, of 3"):
            prompts.part(first, count)
    with pytest.raises(ValueError, match="1 prompts, 1 and 0 seeds"):
        PromptSet(((0,),), (1,), (), {})


def test_a_trace_says_what_is_claimed_and_not_what_was_done() -> None:
    trace = next(small_set().traces("int4"))
    assert trace == {
        "id": "int4/0",
        "model": "tb24m",
        "prompt_token_ids": [0, 5, 6],
        "output_token_ids": [9, 8191, 2],
        "sampling": {**META["sampling"], "seed": 11},
        "engine": META["engine"],
        "finish_reason": "length",
    }
    read = Trace(**{**trace, "sampling": Sampling(**trace["sampling"]), "engine": EngineRecord(**trace["engine"])})
    assert read.sampling.seed == 11 and not read.sampling.extra and not read.engine.extra


@pytest.mark.parametrize("top", [8191, 128255])
def test_a_bundle_gives_back_each_set(tmp_path: Path, top: int) -> None:
    for name, first in (("a", 0), ("held.b", 2)):
        save_set(tmp_path / f"{name}.npz", small_set(first, top))
    made = bundle([(n, tmp_path / f"{n}.npz") for n in ("a", "held.b")], tmp_path / "pools")
    assert [path.name for path in made] == ["pools-0.npz"]
    assert pool_names(made[0]) == ["a", "held.b"]
    assert load_set(made[0], "held.b") == small_set(2, top) == load_set(tmp_path / "held.b.npz")
    assert load_pool(made[0], "a") == list(small_set(0, top).traces("a"))
    with pytest.raises(KeyError, match=r"no set 'c'; it holds a, held\.b"):
        load_pool(made[0], "c")


def test_a_bundle_is_split_between_sets_and_never_over_the_limit(tmp_path: Path) -> None:
    paths = []
    for index in range(3):
        paths.append((f"s{index}", tmp_path / f"s{index}.npz"))
        save_set(paths[-1][1], small_set(2 * index))
    size = paths[0][1].stat().st_size
    made = bundle(paths, tmp_path / "pools", limit=2 * size + 20)
    assert [pool_names(path) for path in made] == [["s0", "s1"], ["s2"]]
    with pytest.raises(ValueError, match="set s0 has"):
        bundle(paths, tmp_path / "pools", limit=size // 2)
    with pytest.raises(ValueError, match="same name"):
        bundle([paths[0], paths[0]], tmp_path / "pools")
    assert bundle([], tmp_path / "pools") == []


def test_trace_lines_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", "a", small_set())
    write_jsonl(tmp_path / "a.jsonl.gz", "a", small_set())
    plain, packed = (tmp_path / "a.jsonl").read_bytes(), (tmp_path / "a.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == plain
    assert packed == gzip.compress(plain, mtime=0)
    assert [json.loads(line) for line in plain.splitlines()] == list(small_set().traces("a"))


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    arrays = {**small_set().arrays(), "seeds": np.array([{}, {}], dtype=object)}
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_set(tmp_path / "bad.npz")
