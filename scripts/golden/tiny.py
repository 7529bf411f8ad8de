#!/usr/bin/env python3
"""Logits of the bundled byte-level model under every rope type, by transformers.

Reads data/models/tiny and data/texts/moby-dick-eval.txt; writes tests/data/tiny_logits.json.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

import common

TEXT = common.ROOT / "data" / "texts" / "moby-dick-eval.txt"
OUT = common.DATA / "tiny_logits.json"
TOKENS, SHORT = 300, 200  # above and below the model's context of 256

# Not searched sets: plausible shapes, no two values alike, so that a swapped or shifted list is noticed.
SHORT_FACTOR = [round(1.0 + 0.1 * i / 31, 4) for i in range(32)]
LONG_FACTOR = [round(8.0 ** min(1.0, (i / 20) ** 1.5) + 0.002 * i, 4) for i in range(32)]


def configs(own):
    """Fragments in the spellings that config.json files have, around the sizes of the model's own one."""
    context, theta, dim = own["max_position_embeddings"], own["rope_theta"], own["head_dim"]

    def config(scale, **keys):
        return {"model_type": "llama", "max_position_embeddings": scale * context, "head_dim": dim} | keys

    original = {"original_max_position_embeddings": context}
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 = {"rope_type": "llama3", "rope_theta": theta, "factor": 8.0} | bands
    longrope = {"rope_type": "longrope", "short_factor": SHORT_FACTOR, "long_factor": LONG_FACTOR}
    return {
        "none": config(1, rope_theta=theta),
        "linear-8": config(8, rope_theta=theta, rope_scaling={"type": "linear", "factor": 8.0}),
        "dynamic-8": config(1, rope_theta=theta, rope_scaling={"type": "dynamic", "factor": 8.0}),
        "yarn-8": config(8, rope_theta=theta, rope_scaling={"rope_type": "yarn", "factor": 8.0} | original),
        "llama3-8": config(8, rope_parameters=llama3 | original),
        "longrope-8": config(8, rope_theta=theta, rope_scaling=longrope | original),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=common.ROOT / "data" / "models" / "tiny")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    own = json.loads((args.model / "config.json").read_text())
    model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    prompt = TEXT.read_bytes()[:TOKENS]
    fragments = configs(own)
    base = common.base_of(model.config)

    def case(name, fragment, n):
        positions = [0, 1, n // 4, n // 2, 6 * n // 7, n - 1]
        return common.logits_case(name, model, fragment, base, list(prompt[:n]), positions, list(range(256)))

    cases = [case(name, fragment, TOKENS) for name, fragment in fragments.items()]
    cases.append(case("longrope-8-short-prompt", fragments["longrope-8"], SHORT))
    top = common.head(
        "tiny.py",
        model="data/models/tiny",
        model_sha256=hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest(),
        text="data/texts/moby-dick-eval.txt",
        prompt_ids=list(prompt),
        vocab_ids=list(range(256)),
    )
    common.write(args.out, common.render(top, cases=cases))


if __name__ == "__main__":
    main()
