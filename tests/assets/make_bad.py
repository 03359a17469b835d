"""Writes `bad/`: one trace file per way of being wrong, with what the error must say.

    python tests/assets/make_bad.py

`BAD` maps a file's name to its bytes and to the part of the message after the file's name: ``:line: field: ...``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "bad"

GOOD: dict[str, Any] = {
    "id": "a/0",
    "model": "m",
    "prompt_token_ids": [1, 2, 3],
    "output_token_ids": [4, 5],
    "sampling": {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 42},
    "engine": {"name": "vllm", "version": "0.24.0", "runner": "v1"},
}


def line(**changes: Any) -> bytes:
    """A good line with changed keys; `...` as the value removes the key."""
    record = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    return json.dumps(record).encode() + b"\n"


def sampling(**changes: Any) -> bytes:
    return line(sampling={**GOOD["sampling"], **changes})


def engine(**changes: Any) -> bytes:
    return line(engine={**GOOD["engine"], **changes})


GOOD_LINE = line()
SECOND = line(id="a/1")

BAD: dict[str, tuple[bytes, str]] = {
    # the file
    "empty_file": (b"", ": holds no traces"),
    "empty_line": (GOOD_LINE + b"\n" + SECOND, ":2: line: empty"),
    "blank_last_line": (GOOD_LINE + b"  \n", ":2: line: empty"),
    "byte_order_mark": (b"\xef\xbb\xbf" + GOOD_LINE, ":1: JSON: starts with a byte order mark"),
    "not_utf8": (GOOD_LINE + SECOND.replace(b"a/1", b"a\xff1"), ":2: JSON: byte 0xff at position 10 is not UTF-8"),
    "utf16": (GOOD_LINE.decode().encode("utf-16"), ":1: JSON: byte 0xff at position 1 is not UTF-8"),
    "gzip_named_jsonl": (b"\x1f\x8b\x08\x00" + bytes(8), ":1: JSON: byte 0x8b at position 2 is not UTF-8"),
    # JSON
    "truncated": (GOOD_LINE + SECOND[:80], ":2: JSON: "),
    "not_json": (GOOD_LINE + b"hello\n", ":2: JSON: Expecting value at position 1"),
    "two_objects": (GOOD_LINE.strip() + SECOND, ":1: JSON: Extra data"),
    "pretty_printed": (json.dumps(GOOD, indent=1).encode(), ":1: JSON: "),
    "single_quotes": (b"{'id': 'a'}\n", ":1: JSON: "),
    "control_character": (line(id="a\x01").replace(b"\\u0001", b"\x01"), ":1: JSON: Invalid control character"),
    "deep_arrays": (b"[" * 5000 + b"]" * 5000 + b"\n", ":1: JSON: nested deeper than 32"),
    "deep_objects": (b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\n", ":1: JSON: nested deeper than 32"),
    "deep_extra": (line(note=json.loads("[" * 40 + "]" * 40)), ":1: JSON: nested deeper than 32"),
    "nan": (sampling(temperature=float("nan")), ":1: JSON: NaN is no number"),
    "infinity": (sampling(temperature=float("inf")), ":1: JSON: Infinity is no number"),
    "float_overflow": (sampling(temperature=7).replace(b"7", b"1e999"), ":1: JSON: 1e999 is too large"),
    "huge_integer": (
        sampling(seed=7).replace(b"7", b"7" * 5000),
        ":1: JSON: holds an integer of thousands of digits",
    ),
    "duplicate_key": (GOOD_LINE.replace(b'"model"', b'"id"'), ":1: id: the key occurs twice"),
    "duplicate_key_inside": (
        GOOD_LINE.replace(b'"seed": 42', b'"seed": 42, "seed": 43'),
        ":1: seed: the key occurs twice",
    ),
    "lone_surrogate": (line(id="\ud800"), ":1: id: holds a lone surrogate"),
    "lone_surrogate_extra": (line(note={"text": ["x", "\udfff"]}), ":1: note.text[1]: holds a lone surrogate"),
    "lone_surrogate_key": (line(**{"\udc00": 1}), ":1: a key: holds a lone surrogate"),
    # keys
    "array": (b"[1, 2]\n", ":1: trace: got list, expected an object"),
    "null": (b"null\n", ":1: trace: got NoneType, expected an object"),
    "no_id": (line(id=...), ":1: id: missing"),
    "no_model": (line(model=...), ":1: model: missing"),
    "no_prompt": (line(prompt_token_ids=...), ":1: prompt_token_ids: missing"),
    "no_output": (line(output_token_ids=...), ":1: output_token_ids: missing"),
    "no_sampling": (line(sampling=...), ":1: sampling: missing"),
    "no_engine": (line(engine=...), ":1: engine: missing"),
    "no_engine_name": (line(engine={"version": "1"}), ":1: engine.name: missing"),
    "newer_version": (line(version=2), ":1: version: got 2, this veridifr reads up to 1"),
    "version_zero": (line(version=0), ":1: version: got 0, expected 1 to"),
    "version_string": (line(version="1"), ":1: version: got '1', expected an integer"),
    "duplicate_id": (GOOD_LINE + SECOND + GOOD_LINE, ":3: id: 'a/0' was used before, at "),
    # ids and names
    "empty_id": (line(id=""), ":1: id: got an empty string"),
    "id_number": (line(id=7), ":1: id: got 7, expected a string"),
    "long_id": (line(id="a" * 4097), ":1: id: got 4097 characters"),
    "model_null": (line(model=None), ":1: model: got None, expected a string"),
    # token ids
    "empty_prompt": (line(prompt_token_ids=[]), ":1: prompt_token_ids: got 0 token ids, expected at least 1"),
    "ids_string": (line(output_token_ids="4 5"), ":1: output_token_ids: got '4 5', expected a list"),
    "ids_object": (line(output_token_ids={"4": 5}), ":1: output_token_ids: got {'4': 5}, expected a list"),
    "ids_null": (line(output_token_ids=None), ":1: output_token_ids: got None, expected a list"),
    "id_negative": (line(output_token_ids=[4, -1]), ":1: output_token_ids[1]: got -1, expected 0 to"),
    "id_boolean": (line(output_token_ids=[4, True]), ":1: output_token_ids[1]: got True, expected an integer"),
    "id_float": (line(prompt_token_ids=[1.0]), ":1: prompt_token_ids[0]: got 1.0, expected an integer"),
    "id_text": (line(prompt_token_ids=[1, "2"]), ":1: prompt_token_ids[1]: got '2', expected an integer"),
    "id_null": (line(output_token_ids=[None]), ":1: output_token_ids[0]: got None, expected an integer"),
    "id_nested": (line(output_token_ids=[[4]]), ":1: output_token_ids[0]: got [4], expected an integer"),
    "id_beyond_int32": (line(output_token_ids=[2**31]), ":1: output_token_ids[0]: got 2147483648, expected 0 to"),
    "id_beyond_int64": (line(output_token_ids=[4, 2**70]), ":1: output_token_ids[1]: got 1180591620717411303424"),
    # sampling
    "sampling_null": (line(sampling=None), ":1: sampling: got NoneType, expected an object"),
    "temperature_negative": (sampling(temperature=-0.5), ":1: sampling.temperature: got -0.5, expected 0 to"),
    "temperature_text": (sampling(temperature="1"), ":1: sampling.temperature: got '1', expected a number"),
    "temperature_null": (sampling(temperature=None), ":1: sampling.temperature: got None, expected a number"),
    "temperature_boolean": (sampling(temperature=True), ":1: sampling.temperature: got True, expected a number"),
    "top_p_zero": (sampling(top_p=0), ":1: sampling.top_p: got 0, expected above 0"),
    "top_p_above_one": (sampling(top_p=1.5), ":1: sampling.top_p: got 1.5, expected 0 to 1"),
    "top_k_float": (sampling(top_k=50.0), ":1: sampling.top_k: got 50.0, expected an integer"),
    "top_k_below": (sampling(top_k=-2), ":1: sampling.top_k: got -2, expected -1 to"),
    "min_p_above_one": (sampling(min_p=2), ":1: sampling.min_p: got 2, expected 0 to 1"),
    "seed_text": (sampling(seed="42"), ":1: sampling.seed: got '42', expected an integer"),
    "seed_float": (sampling(seed=42.0), ":1: sampling.seed: got 42.0, expected an integer"),
    "seed_beyond_64_bits": (sampling(seed=2**64), ":1: sampling.seed: got 18446744073709551616, expected"),
    "repetition_penalty_zero": (sampling(repetition_penalty=0), ":1: sampling.repetition_penalty: got 0"),
    "max_tokens_negative": (sampling(max_tokens=-1), ":1: sampling.max_tokens: got -1, expected 0 to"),
    "logit_bias_list": (sampling(logit_bias=[1]), ":1: sampling.logit_bias: got list, expected an object"),
    "logit_bias_key": (sampling(logit_bias={"the": 1}), ":1: sampling.logit_bias: got the key 'the', expected a token"),
    "logit_bias_key_spelling": (sampling(logit_bias={"07": 1}), ":1: sampling.logit_bias: got the key '07'"),
    "logit_bias_value": (sampling(logit_bias={"7": "x"}), ":1: sampling.logit_bias[7]: got 'x', expected a number"),
    "allowed_empty": (sampling(allowed_token_ids=[]), ":1: sampling.allowed_token_ids: got 0 token ids"),
    "bad_words_flat": (
        sampling(bad_words_token_ids=[5]),
        ":1: sampling.bad_words_token_ids[0]: got 5, expected a list",
    ),
    "stop_string": (sampling(stop="\n"), ":1: sampling.stop: got '\\n', expected a list of strings"),
    "ignore_eos_number": (sampling(ignore_eos=1), ":1: sampling.ignore_eos: got 1, expected true or false"),
    # engine and ending
    "engine_string": (line(engine="vllm"), ":1: engine: got str, expected an object"),
    "multiprocessors_zero": (engine(multiprocessors=0), ":1: engine.multiprocessors: got 0, expected 1 to"),
    "version_number": (engine(version=0.24), ":1: engine.version: got 0.24, expected a string"),
    "fp64_noise_text": (engine(fp64_noise="no"), ":1: engine.fp64_noise: got 'no', expected true or false"),
    "batch_row": (engine(batch_row=4, batch_size=4), ":1: engine.batch_row: got 4, expected below batch_size 4"),
    "finish_reason": (line(finish_reason="tired"), ":1: finish_reason: got 'tired', expected one of"),
    "finish_reason_list": (line(finish_reason=["stop"]), ":1: finish_reason: got ['stop'], expected one of"),
    "stop_reason_negative": (line(stop_reason=-1), ":1: stop_reason: got -1, expected 0 to"),
    "stop_reason_long": (line(stop_reason="a" * 4097), ":1: stop_reason: got 4097 characters"),
}


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for name, (data, _) in BAD.items():
        (HERE / f"{name}.jsonl").write_bytes(data)
    print(f"{len(BAD)} files")  # noqa: T201


if __name__ == "__main__":
    main()
