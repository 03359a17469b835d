"""Files as `token-difr` 0.1.2 writes them, made by its own code: what the importer's tests run on.

    pip install --no-deps token-difr==0.1.2     # its dependency `tinker` is only needed to call that service
    python tools/make_token_difr_sample.py tests/data/token_difr

Needs torch, transformers and openai besides. Calls no network: the tokenizer is a word list made here, the answers are
made by hand.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

TEXT = "<unk> <s> user assistant what is the capital of france ? paris . explain photosynthesis plants eat light"
WORDS = TEXT.split()
CONVERSATIONS = [
    [{"role": "user", "content": "what is the capital of france ?"}],
    [{"role": "user", "content": "explain photosynthesis"}],
    [{"role": "user", "content": "what is light ?"}],
]
ANSWERS = ["paris .", "plants eat light . plants eat light .", ""]


def tokenizer_folder(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")
    tokenizer.chat_template = (
        "<s> {% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}assistant"
    )
    tokenizer.save_pretrained(folder)


def main(out: Path) -> None:
    import token_difr
    from openai.types.chat import ChatCompletion
    from token_difr.openrouter_api import save_results
    from transformers import AutoTokenizer

    if token_difr.__version__ != "0.1.2":
        raise SystemExit(f"token-difr is {token_difr.__version__}, expected 0.1.2")
    answers = [
        ChatCompletion.model_validate(
            {
                "id": f"gen-{number}",
                "object": "chat.completion",
                "created": 1,
                "model": "toy",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}],
            }
        )
        for number, answer in enumerate(ANSWERS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_folder(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config: dict[str, object] = {"model": "toy", "provider": "none", "max_tokens": 6, "temperature": 0.0}
        save_results(CONVERSATIONS, answers, out / "openrouter_toy.json", config, folder, 6)
        sequences = token_difr.tokenize_openrouter_responses(CONVERSATIONS, answers, tokenizer, 6)
    records = [sequence.to_dict() for sequence in sequences]
    (out / "sequences.json").write_text(json.dumps(records), encoding="utf-8")
    (out / "sequences.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
