#!/usr/bin/env python3
"""Inverse frequencies and attention scaling as Hugging Face transformers computes them.

Writes tests/data/rope_golden.json; `--check` compares instead and exits 1 on a difference.

Left out, because transformers 5.23.0 fails or warns on them:
- yarn, linear, dynamic or llama3 without the key `factor` (KeyError); `"factor": null` for yarn (warning);
- yarn with a factor other than max_position_embeddings / original length, unless the original length is absent
  (warning that the two disagree; the factor is used);
- llama3 without an original length (warning: not below max_position_embeddings);
- "su" for a llama config (unknown type), and "su" for phi3 with the original length only at the top level, as the
  first Phi-3 config.json had it (KeyError at validation);
- factors below 1, lists of a wrong length, types unknown to the config class.
The advice, given once, to add `factor` to a longrope dict is not counted as a warning: every Phi-3 config gets it.
"""

import argparse
import json
import logging
import os
import sys
import warnings

# torch's vectorised pow differs in the last bit between instruction sets. The plain one calls libm's powf, which
# rounds correctly for these arguments, so the file can be regenerated bit for bit on another processor.
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.utils import logging as transformers_logging

import common

OUT = common.DATA / "rope_golden.json"
SETS = json.loads((common.DATA / "longrope_factors.json").read_text())["published"]
ROTARY = {"llama": LlamaRotaryEmbedding, "phi3": Phi3RotaryEmbedding}
CASES = []


def add(name, config, seq_len=None, as_tensor=False):
    CASES.append((name, config, seq_len, as_tensor))


def llama(head_dim, max_positions, **keys):
    return {"model_type": "llama", "max_position_embeddings": max_positions, "head_dim": head_dim} | keys


def phi3(hidden, heads, max_positions, **keys):
    return {
        "model_type": "phi3",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "max_position_embeddings": max_positions,
    } | keys


def default_cases():
    for theta in (1e4, 5e5, 1e5):
        for dim in (64, 96, 128):
            add(f"default-{theta:.0f}-{dim}", llama(dim, 8192, rope_theta=theta))
    add("default-no-theta", llama(64, 2048))
    add("default-parameters-spelling", llama(64, 2048, rope_parameters={"rope_theta": 3e4, "rope_type": "default"}))
    add("default-theta-inside-wins", llama(64, 2048, rope_theta=5e5, rope_parameters={"rope_theta": 1e4}))
    add("default-empty-scaling", llama(64, 2048, rope_theta=5e5, rope_scaling={}))
    add("default-null-scaling", llama(64, 2048, rope_theta=5e5, rope_scaling=None))
    add("default-integer-theta", llama(80, 2048, rope_theta=10000))
    # A llama config ignores the partial factor when the type is default, and only then.
    add("default-partial-ignored-llama", llama(128, 2048, rope_theta=1e4, partial_rotary_factor=0.5))
    for partial in (0.5, 0.75):
        add(f"default-partial-{partial}-phi3", phi3(3072, 24, 4096, rope_theta=1e4, partial_rotary_factor=partial))
        scaling = {"type": "linear", "factor": 4.0}
        config = llama(128, 8192, rope_theta=1e4, partial_rotary_factor=partial, rope_scaling=scaling)
        add(f"linear-partial-{partial}", config)
    inside = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    add("linear-partial-inside-wins", llama(128, 8192, partial_rotary_factor=0.5, rope_parameters=inside))
    # The product is truncated: 0.3 of 80 is 24 in f64 too, but 0.7 of 90 is 62.99999999999999, so 62.
    for dim, partial in ((80, 0.3), (90, 0.7)):
        add(f"default-partial-{partial}-of-{dim}", phi3(4 * dim, 4, 4096, partial_rotary_factor=partial))


def linear_cases():
    for factor in (2.0, 4.0, 8.0):
        scaling = {"type": "linear", "factor": factor}
        add(f"linear-{factor:.0f}", llama(128, int(4096 * factor), rope_theta=1e4, rope_scaling=scaling))
    new = {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e5}
    add("linear-3-parameters", llama(64, 8192, rope_parameters=new))
    both = {"type": "dynamic", "rope_type": "linear", "factor": 2.5}
    add("linear-rope-type-over-type", llama(64, 8192, rope_theta=1e4, rope_scaling=both))
    old = {"type": "linear", "factor": 2.0}
    add("linear-scaling-replaces-parameters", llama(64, 8192, rope_theta=1e4, rope_parameters=new, rope_scaling=old))


def dynamic_cases():
    scaling = {"type": "dynamic", "factor": 2.0}
    for seq_len in (None, 1000, 4096, 4097, 6000, 8192, 32768):
        add(f"dynamic-2-at-{seq_len}", llama(128, 4096, rope_theta=1e4, rope_scaling=scaling), seq_len)
    new = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 5e5}
    for seq_len in (2048, 5000, 131072):
        add(f"dynamic-8-at-{seq_len}", llama(64, 2048, rope_parameters=new), seq_len)
    # A model's forward passes the length as a tensor, and the new base is then computed in float32.
    for seq_len in (3000, 6000):
        add(f"dynamic-8-forward-{seq_len}", llama(64, 2048, rope_parameters=new), seq_len, as_tensor=True)
    add("dynamic-partial", llama(128, 2048, rope_theta=1e4, partial_rotary_factor=0.5, rope_scaling=scaling), 9000)


def yarn_cases():
    def yarn(name, dim, maximum, theta=1e4, new=False, **keys):
        if new:
            add(name, llama(dim, maximum, rope_parameters={"rope_type": "yarn", "rope_theta": theta} | keys))
        else:
            add(name, llama(dim, maximum, rope_theta=theta, rope_scaling={"type": "yarn"} | keys))

    original = {"original_max_position_embeddings": 4096}
    yarn("yarn-16", 128, 65536, factor=16.0, **original)
    yarn("yarn-4-parameters", 64, 32768, 1e5, new=True, factor=4.0, original_max_position_embeddings=8192)
    yarn("yarn-qwen", 128, 131072, 1e6, factor=4.0, original_max_position_embeddings=32768)
    yarn("yarn-original-absent", 128, 32768, factor=8.0)
    yarn("yarn-factor-1", 128, 4096, factor=1.0, **original)
    deepseek = {"factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
    yarn("yarn-deepseek-v2-lite", 64, 163840, mscale=0.707, mscale_all_dim=0.707, **deepseek)
    yarn("yarn-deepseek-v3", 64, 163840, mscale=1.0, mscale_all_dim=1.0, **deepseek)
    yarn("yarn-mscale-pair", 64, 163840, mscale=1.0, mscale_all_dim=0.8, **deepseek)
    yarn("yarn-mscale-alone", 64, 163840, mscale=0.707, **deepseek)
    yarn("yarn-mscale-zero", 64, 163840, new=True, mscale=1.0, mscale_all_dim=0.0, **deepseek)
    yarn("yarn-attention-factor", 128, 65536, factor=16.0, attention_factor=0.9, **original)
    yarn("yarn-attention-factor-zero", 128, 65536, factor=16.0, attention_factor=0.0, **original)
    pair = {"mscale": 1.0, "mscale_all_dim": 0.8}
    yarn("yarn-attention-factor-over-mscale", 64, 163840, attention_factor=1.5, **pair, **deepseek)
    yarn("yarn-no-truncate", 64, 131072, 150000.0, new=True, factor=32.0, truncate=False, **original)
    yarn("yarn-no-truncate-128", 128, 65536, factor=16.0, truncate=False, **original)
    yarn("yarn-beta-128-2", 128, 65536, factor=16.0, beta_fast=128, beta_slow=2, **original)
    yarn("yarn-beta-zero-is-default", 128, 65536, factor=16.0, beta_fast=0, beta_slow=None, **original)
    # Both ends of the ramp clamp to 0, or fall on the same dimension: the 0.001 that avoids a division by zero.
    yarn("yarn-degenerate-short-original", 64, 20, factor=4.0, original_max_position_embeddings=5)
    yarn("yarn-degenerate-equal-beta", 128, 65536, factor=16.0, beta_fast=8, beta_slow=8, truncate=False, **original)
    yarn("yarn-high-clamped", 16, 65536, 20.0, factor=16.0, **original)
    top = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192}
    config = llama(128, 131072, rope_theta=1e4, original_max_position_embeddings=4096, rope_scaling=top)
    add("yarn-top-level-original-wins", config)
    partial = {"rope_type": "yarn", "factor": 16.0} | original
    add("yarn-partial", llama(128, 65536, rope_theta=1e4, partial_rotary_factor=0.5, rope_scaling=partial))


def llama3_cases():
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = {"rope_type": "llama3", "factor": 8.0} | bands
    add("llama-3.1", llama(128, 131072, rope_theta=5e5, rope_scaling=old))
    add("llama-3.2", llama(64, 131072, rope_theta=5e5, rope_scaling=old | {"factor": 32.0}))
    new = old | {"rope_theta": 5e5}
    add("llama-3.1-parameters", llama(128, 131072, rope_parameters=new))
    bands = {"low_freq_factor": 1.5, "high_freq_factor": 6.5, "original_max_position_embeddings": 3000}
    add("llama3-other-bands", llama(96, 16384, rope_theta=1e4, rope_scaling=old | {"factor": 5.0} | bands))
    add("llama3-top-original-wins", llama(128, 131072, original_max_position_embeddings=4096, rope_parameters=new))


def lists(name):
    return {"short_factor": SETS[name]["short"], "long_factor": SETS[name]["long"]}


def longrope_cases():
    def at(name, config, original, lengths=None):
        for seq_len in lengths or (original // 2, original, original + 1, 16 * original):
            add(f"{name}-at-{seq_len}", config, seq_len)

    def phi3_mini(key, **keys):
        base = phi3(3072, 32, 131072, rope_theta=1e4, original_max_position_embeddings=4096)
        return base | {"rope_scaling": {"type": "longrope"} | lists(key)} | keys

    at("phi-3-mini", phi3_mini("phi3_mini_128k_jun2024"), 4096)
    at("phi-3.5-mini", phi3_mini("phi3_5_mini"), 4096)
    at("phi-4-mini", phi3_mini("phi4_mini", num_attention_heads=24, partial_rotary_factor=0.75), 4096)
    add("phi-3.5-mini-no-length", phi3_mini("phi3_5_mini"))
    at("phi-3.5-mini-far", phi3_mini("phi3_5_mini"), 4096, (131072, 1048576))
    # "su" and "yarn" are rewritten for phi3; "su" needs the original length inside the dict too, the top level wins.
    april = lists("phi3_mini_128k_apr2024")
    inside = {"original_max_position_embeddings": 8192}
    su = phi3_mini("phi3_5_mini", rope_scaling={"type": "su"} | inside | april)
    at("phi-3-mini-su", su, 4096, (4096, 4097))
    at("phi-3-mini-yarn-alias", phi3_mini("phi3_5_mini", rope_scaling={"type": "yarn"} | april), 4096, (4096, 4097))
    # The class default 4096 stands for the top level and beats the dict.
    no_top = phi3_mini("phi3_5_mini", rope_scaling={"type": "longrope"} | inside | april)
    del no_top["original_max_position_embeddings"]
    at("phi-3-mini-class-default-wins", no_top, 4096, (4096, 4097))
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75} | lists("phi4_mini")
    new = phi3(3072, 24, 131072, original_max_position_embeddings=4096, rope_parameters=parameters)
    at("phi-4-mini-parameters", new, 4096, (4096, 4097))

    llama3 = {"rope_type": "longrope", "original_max_position_embeddings": 8192} | lists("llama3_8b_longrope2_128k")
    at("llama3-longrope2", llama(128, 131072, rope_theta=5e5, rope_scaling=llama3), 8192)
    new = llama3 | {"rope_theta": 5e5, "factor": 16.0}
    at("llama3-longrope2-parameters", llama(128, 131072, rope_parameters=new), 8192, (8192, 8193))
    minicpm = {"rope_type": "longrope", "original_max_position_embeddings": 32768} | lists("minicpm4_8b_128k")
    at("minicpm4", llama(128, 131072, rope_scaling=minicpm), 32768)

    def variant(name, maximum=131072, seq_len=8193, top=None, **keys):
        extra = {} if top is None else {"original_max_position_embeddings": top}
        add(f"longrope-{name}", llama(128, maximum, rope_theta=5e5, **extra, rope_scaling=llama3 | keys), seq_len)

    variant("attention-factor", attention_factor=1.25)
    variant("attention-factor-integer", attention_factor=1)
    variant("attention-factor-zero", attention_factor=0.0)
    variant("attention-factor-over-factor", attention_factor=1.243163121016122, factor=8.0)
    variant("factor-over-ratio", factor=4.0)
    variant("factor-1", factor=1.0)
    variant("ratio-1", maximum=8192)
    variant("ratio-below-1", maximum=4096)
    variant("top-level-original-wins", top=4096, seq_len=5000)
    variant("length-zero-is-short", seq_len=0)
    absent = {k: v for k, v in llama3.items() if k != "original_max_position_embeddings"}
    add("longrope-original-absent", llama(128, 16384, rope_theta=5e5, rope_scaling=absent), 16385)
    top_only = llama(128, 131072, rope_theta=5e5, original_max_position_embeddings=8192, rope_scaling=absent)
    add("longrope-original-top-only", top_only, 8193)


class Complaints(logging.Handler):
    """Collects what transformers logs while a case runs."""

    ADVICE = "This model config has set a `rope_parameters['original_max_position_embeddings']`"

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        if not record.getMessage().startswith(self.ADVICE):
            self.lines.append(record.getMessage())


def compute(name, fragment, seq_len, as_tensor):
    transformers_logging.warning_once.cache_clear()  # a case must not hide behind an earlier one's warning
    config = common.make_config(fragment)
    rope_type = config.rope_parameters["rope_type"]
    length = torch.tensor(seq_len) if as_tensor else seq_len
    if rope_type == "default":
        inv_freq, scaling = ROTARY[fragment["model_type"]].compute_default_rope_parameters(config)
    else:
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=length)
    assert inv_freq.dtype == torch.float32
    case = {"name": name, "rope_type": rope_type, "seq_len": seq_len}
    if as_tensor:
        case["seq_len_is_tensor"] = True
    return case | {
        "config": fragment,
        "attention_factor": float(scaling),
        "inv_freq_bits": [bits & 0xFFFFFFFF for bits in inv_freq.view(torch.int32).tolist()],
        "inv_freq": [common.decimal(v) for v in inv_freq],
    }


def generate():
    complaints = Complaints()
    transformers_logging.disable_default_handler()
    logging.getLogger("transformers").addHandler(complaints)
    warnings.simplefilter("error")
    for collect in (default_cases, linear_cases, dynamic_cases, yarn_cases, llama3_cases, longrope_cases):
        collect()
    assert len({case[0] for case in CASES}) == len(CASES), "names must be unique"
    done = [compute(*case) for case in CASES]
    assert not complaints.lines, complaints.lines
    return common.render(common.head("rope.py", aten_cpu_capability=os.environ["ATEN_CPU_CAPABILITY"]), cases=done)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    check = parser.parse_args().check
    text = generate()
    if not check:
        common.write(OUT, text)
        return 0
    if not OUT.exists():
        print(f"rope.py: {OUT.name} is missing: run without --check", file=sys.stderr)
        return 1
    new, old = json.loads(text), json.loads(OUT.read_text())
    if new["cases"] == old["cases"]:
        print(f"{OUT.name}: {len(CASES)} cases, equal")
        return 0
    committed = {case["name"]: case for case in old["cases"]}
    current = {case["name"]: case for case in new["cases"]}
    differing = sorted(n for n in committed | current if committed.get(n) != current.get(n))
    print(f"rope.py: {OUT.name} differs in {len(differing)} cases: {' '.join(differing)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
