"""Traces from what engines and servers return in memory: vLLM's `RequestOutput`, OpenAI-style completions.

The sampling settings are those that the verifier asked with, never what the answer says of itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from veridifr.errors import TraceError
from veridifr.trace import FINISH_REASONS, EngineRecord, Sampling, Trace, check_ids, check_int, check_text
from veridifr.traces.codec import SAMPLING_KEYS, engine_from_dict, sampling_from_dict
from veridifr.traces.jsonl import read_lines
from veridifr.traces.peer_files import from_difr, from_token_difr, per_item, read_document
from veridifr.traces.strict_json import parse_json

IMPORT_KINDS = ("difr", "openai", "token-difr")
"""The kinds of file that `import_file` reads."""

# vllm.SamplingParams (0.10 to 0.32): fields that change what is returned, cached or shown, never which token is drawn.
_VLLM_NEUTRAL = frozenset(
    {
        "n",
        "logprobs",
        "prompt_logprobs",
        "prompt_logprob_token_ids",
        "prompt_logprob_start",
        "logprob_token_ids",
        "flat_logprobs",
        "detokenize",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "include_stop_str_in_output",
        "output_kind",
        "stream_interval",
        "skip_clone",
        "output_text_buffer_length",
        "truncate_prompt_tokens",
        "skip_reading_prefix_cache",
        "routed_experts_prompt_start",
    }
)


def from_vllm(
    request_outputs: Iterable[Any],
    *,
    model: str,
    engine: EngineRecord,
    sampling: Any,
    id_prefix: str = "",
) -> list[Trace]:
    """The traces of vLLM's `RequestOutput` objects, one per output, with ids ``{id_prefix}{request_id}/{index}``.

    `sampling` is what was asked for: a `Sampling` or a `vllm.SamplingParams`, or one of them for each request. With
    n > 1, `engine.child` is the output's index (vLLM seeds child j with seed + j). Settings that `Sampling` does not
    know, LoRA and multi-modal inputs go to `Sampling.extra`, so that an audit refuses them by name. Raises `TraceError`
    for outputs without token ids, unfinished ones and encoder-decoder models.
    """
    outputs = list(request_outputs)
    traces = []
    for number, (request, asked) in enumerate(zip(outputs, per_item("sampling", sampling, len(outputs)), strict=True)):
        try:
            settings = asked if isinstance(asked, Sampling) else sampling_from_vllm(asked)
            several = getattr(asked, "n", 1) != 1 or len(request.outputs) > 1
            traces += _request_traces(request, settings, (model, engine, id_prefix), several=several)
        except TraceError as error:
            raise TraceError(f"request_outputs[{number}]: {error}") from error
    return traces


def _request_traces(
    request: Any, sampling: Sampling, claim: tuple[str, EngineRecord, str], *, several: bool
) -> list[Trace]:
    model, engine, id_prefix = claim
    if not getattr(request, "finished", True):
        raise TraceError(f"finished: request {request.request_id!a} is not finished")
    if request.prompt_token_ids is None:
        raise TraceError("prompt_token_ids: missing (was the prompt given as embeddings?)")
    if getattr(request, "encoder_prompt_token_ids", None):
        raise TraceError("encoder_prompt_token_ids: encoder-decoder models are not supported")
    unknown = dict(sampling.extra)
    for name in ("lora_request", "multi_modal_placeholders"):
        if getattr(request, name, None):
            unknown[name] = _shown(getattr(request, name))
    settings = replace(sampling, extra=unknown)
    traces = []
    for output in request.outputs:
        index = check_int("outputs.index", output.index, 0, 65535)
        traces.append(
            Trace(
                id=f"{id_prefix}{request.request_id}/{index}",
                model=model,
                prompt_token_ids=_ids("prompt_token_ids", request.prompt_token_ids),
                output_token_ids=_ids(f"outputs[{index}].token_ids", output.token_ids),
                sampling=settings,
                engine=replace(engine, child=index) if several else engine,
                **_ending(output.finish_reason, output.stop_reason),
            )
        )
    return traces


def sampling_from_vllm(params: Any) -> Sampling:
    """The settings of a `vllm.SamplingParams`. Fields that differ from their default and have no counterpart go to
    `extra`; fields that cannot change which token is drawn (logprobs, detokenize, ...) are dropped."""
    names = getattr(type(params), "__struct_fields__", None) or vars(params)
    default = type(params)()
    changed = {name: getattr(params, name) for name in names if not name.startswith("_")}
    if changed.get("watermarking") is False:  # what the engine makes of "not stated" where it has no watermark
        del changed["watermarking"]
    changed = {
        name: value
        for name, value in changed.items()
        if value is not None and not _same(value, getattr(default, name, None))
    }
    known: dict[str, Any] = {"temperature": params.temperature, "max_tokens": params.max_tokens}
    extra: dict[str, Any] = {}
    for name, value in changed.items():
        if name == "bad_words" and getattr(params, "_bad_words_token_ids", None):
            known["bad_words_token_ids"] = params._bad_words_token_ids
        elif name == "stop":
            known["stop"] = (value,) if isinstance(value, str) else tuple(value)
        elif name in SAMPLING_KEYS:
            known[name] = value
        elif name not in _VLLM_NEUTRAL:
            extra[name] = _shown(value)
    return Sampling(**known, extra=extra)


def from_openai(
    completion: Mapping[str, Any],
    *,
    sampling: Sampling,
    engine: EngineRecord,
    model: str | None = None,
    prompt_token_ids: Sequence[int] | None = None,
    id: str | None = None,
) -> list[Trace]:
    """The traces of one OpenAI-style completion or chat completion (a parsed body, one prompt) with token ids.

    vLLM returns the ids if asked with ``return_token_ids: true``. `prompt_token_ids` are what the verifier sent; where
    the answer states them too, they must be equal. `model` and `id` default to the answer's. One trace per choice, the
    id being ``{id}/{index}`` (or `id` alone where it is given and there is one choice); of several choices,
    `engine.child` is the index. Raises `TraceError` where token ids are missing: text alone cannot be audited.
    """
    if not isinstance(completion, Mapping):
        raise TraceError(f"completion: got {type(completion).__name__}, expected an object")
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices:
        raise TraceError("choices: expected a list of at least one choice")
    name = check_text("model", completion.get("model") if model is None else model)
    base = check_text("id", completion.get("id") if id is None else id)
    traces: list[Trace] = []
    for number, choice in enumerate(choices):
        if not isinstance(choice, Mapping):
            raise TraceError(f"choices[{number}]: got {type(choice).__name__}, expected an object")
        if choice.get("token_ids") is None:
            raise TraceError(
                f"choices[{number}].token_ids: missing: the server must return token ids "
                "(vLLM: ask with return_token_ids true)"
            )
        index = check_int(f"choices[{number}].index", choice.get("index", number), 0, 65535)
        prompt = _prompt(completion, choice, prompt_token_ids)
        if traces and not np.array_equal(prompt, traces[0].prompt_token_ids):
            raise TraceError(f"choices[{number}].prompt_token_ids: several prompts in one completion; ask one by one")
        traces.append(
            Trace(
                id=base if id is not None and len(choices) == 1 else f"{base}/{index}",
                model=name,
                prompt_token_ids=prompt,
                output_token_ids=check_ids(f"choices[{number}].token_ids", choice["token_ids"]),
                sampling=sampling,
                engine=replace(engine, child=index) if len(choices) > 1 else engine,
                **_ending(choice.get("finish_reason"), choice.get("stop_reason")),
            )
        )
    if len({trace.id for trace in traces}) != len(traces):
        raise TraceError("choices.index: the same index occurs twice")
    return traces


def _prompt(completion: Mapping[str, Any], choice: Mapping[str, Any], asked: Any) -> Any:
    """Prompt ids: as asked, else as stated (chat completions state them at the top, completions in each choice)."""
    stated = choice.get("prompt_token_ids")
    if stated is None:
        stated = completion.get("prompt_token_ids")
    if stated is not None:
        stated = check_ids("prompt_token_ids", stated, least=1)
    if asked is None:
        if stated is None:
            raise TraceError("prompt_token_ids: missing in the answer, and not given")
        return stated
    asked = check_ids("prompt_token_ids", asked, least=1)
    if stated is not None and not np.array_equal(asked, stated):
        raise TraceError("prompt_token_ids: the answer's prompt is not the one that was asked")
    return asked


def import_file(
    kind: str, path: str | Path, *, sampling: Mapping[str, Any], engine: Mapping[str, Any], model: str | None = None
) -> list[Trace]:
    """The traces of another tool's file. `kind` is one of `IMPORT_KINDS`; `sampling` and `engine` are as in the trace
    format and hold for all sequences. `model` may be left out for "openai", where the answers name it.

    "openai" reads one completion, a list of them, or JSON lines of them (suffix .jsonl). Raises `TraceError`.
    """
    settings, record = sampling_from_dict(sampling), engine_from_dict(engine)
    if kind == "openai":
        return _openai_file(Path(path), settings, record, model)
    readers: dict[str, Callable[..., list[Trace]]] = {"difr": from_difr, "token-difr": from_token_difr}
    if kind not in readers:
        raise TraceError(f"{kind[:60]!a}: unknown kind of file, expected one of {', '.join(IMPORT_KINDS)}")
    if model is None:
        raise TraceError(f"{path}: model: files of {kind} do not name the model: state it")
    return readers[kind](path, model=model, sampling=settings, engine=record)


def _openai_file(path: Path, sampling: Sampling, engine: EngineRecord, model: str | None) -> list[Trace]:
    items: Iterable[tuple[str, Any]]
    if path.suffix == ".jsonl":
        items = ((f"{path}:{number}", line) for number, line in read_lines(path))
    else:
        document = read_document(path)
        answers = document if isinstance(document, list) else [document]
        items = ((f"{path}: [{number}]", answer) for number, answer in enumerate(answers))
    traces: list[Trace] = []
    seen: dict[str, str] = {}
    for place, item in items:
        try:
            answer = parse_json(item) if isinstance(item, bytes) else item
            for trace in from_openai(answer, sampling=sampling, engine=engine, model=model):
                if trace.id in seen:
                    raise TraceError(f"id: {trace.id!a} was used before, at {seen[trace.id]}")
                seen[trace.id] = place
                traces.append(trace)
        except TraceError as error:
            raise TraceError(f"{place}: {error}") from error
    if not traces:
        raise TraceError(f"{path}: holds no completions")
    return traces


def _ending(finish_reason: Any, stop_reason: Any) -> dict[str, Any]:
    """Fields of a trace for how the output ended; an engine's own word for it is kept where the format has none."""
    if finish_reason is None or finish_reason in FINISH_REASONS:
        return {"finish_reason": finish_reason, "stop_reason": stop_reason}
    word = check_text("finish_reason", finish_reason)
    return {"stop_reason": stop_reason, "extra": {"engine_finish_reason": word}}


def _ids(name: str, value: Any) -> Any:
    # vLLM hands out tuples, lists, arrays and its own read-only views
    return check_ids(name, value if isinstance(value, np.ndarray) else list(value))


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, np.ndarray) or isinstance(default, np.ndarray):
        return False
    return bool(value == default)


def _shown(value: Any) -> Any:
    """`value` if JSON can hold it in a short text, else what it prints as, cut short."""
    try:
        if len(json.dumps(value, allow_nan=False)) <= 4096:
            return value
    except (TypeError, ValueError, RecursionError):
        pass
    return repr(value)[:1024]
