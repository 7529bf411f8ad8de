#!/usr/bin/env python3
"""Golden values: what transformers makes of the configurations that `convert` writes, in both spellings.

Each source is written by the program into its own configuration, given to transformers, and kept with the
inverse frequencies and the attention factor that come out of it at the original
length and one token beyond. Run from a checkout with Rust; --convert names a
program that is built already.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("ATEN_CPU_CAPABILITY", "default")  # torch's plain code, whose pow is libm's

import common
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = common.DATA / "export_golden.json"
SETS = json.loads((common.DATA / "longrope_factors.json").read_text())["published"]
CARGO = ["cargo", "run", "--release", "--quiet", "-p", "longrope-drivers", "--bin", "convert", "--"]


def published(name, model_type, heads, hidden, **keys):
    made = SETS[name]
    scaling = {"rope_type": "longrope", "short_factor": made["short"], "long_factor": made["long"]}
    config = {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "max_position_embeddings": made["max"],
        "original_max_position_embeddings": made["L0"],
        "rope_theta": made.get("base") or 10000.0,
        "rope_scaling": scaling | keys,
    }
    if made.get("rotary_dim", made["head_dim"]) != made["head_dim"]:
        config["partial_rotary_factor"] = made["rotary_dim"] / made["head_dim"]
    return config


def sources():
    searched = json.loads((common.ROOT / "docs/results/smollm2-rope_scaling.json").read_text())
    yield "smollm2-searched", searched | {"model_type": "llama"}
    yield "phi-3.5-mini", published("phi3_5_mini", "phi3", 32, 3072)
    yield "phi-4-mini", published("phi4_mini", "phi3", 24, 3072)
    yield "llama3-longrope2", published("llama3_8b_longrope2_128k", "llama", 32, 4096)
    yield "llama3-longrope2-factors", published(
        "llama3_8b_longrope2_128k", "llama", 32, 4096, factor=8.0, attention_factor=1.25
    )
    yarn = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}
    llama = {"model_type": "llama", "head_dim": 64, "rope_theta": 5e5, "max_position_embeddings": 65536}
    yield "yarn", llama | {"rope_scaling": yarn}


def export(program, source, kind):
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.json", Path(folder) / "out.json"
        given.write_text(json.dumps(source))
        subprocess.run(
            [*program, "--from", given, "--to", kind, "--model", given, "--output", out],
            check=True,
            cwd=common.ROOT,
            stdout=subprocess.DEVNULL,
        )
        return json.loads(out.read_text())


def compute(name, source, kind, exported):
    config = common.make_config(exported)
    rope_type = config.rope_parameters["rope_type"]
    original = exported.get("original_max_position_embeddings", exported["max_position_embeddings"])
    bits, scaling = [], None
    for length in (original, original + 1):
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=length)
        bits.append([value & 0xFFFFFFFF for value in inv_freq.view(torch.int32).tolist()])
    return {
        "name": name,
        "to": kind,
        "rope_type": rope_type,
        "source": source,
        "exported": exported,
        "attention_factor": float(scaling),
        "original_length": original,
        "short_bits": bits[0],
        "long_bits": bits[1],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--convert", metavar="PROGRAM", help="instead of cargo run")
    chosen = parser.parse_args().convert
    program = [Path(chosen).resolve()] if chosen else CARGO
    cases = [
        compute(name, source, kind, export(program, source, kind))
        for name, source in sources()
        for kind in ("hf-old", "hf-new")
    ]
    common.write(OUT, common.render(common.head("export.py"), cases=cases))


if __name__ == "__main__":
    sys.exit(main())
