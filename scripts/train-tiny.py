#!/usr/bin/env python3
"""Train the small byte-level Llama of data/models/tiny and measure it.

Needs PyTorch and safetensors, and the texts that scripts/fetch-texts makes.
One token is one byte. The trained context is short (256) on purpose: the
model exists to test position interpolation, and at 8 times that length plain
rotary embeddings must fail on it while a CPU can still run it. The evaluation
texts are read only for the tables at the end; the weights are chosen by a
held-out end piece of each training text.

    scripts/train-tiny.py --minutes 5             on a GPU
    scripts/train-tiny.py --steps 20 --batch 8    a quick try on a CPU
"""

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "torch_dtype": "bfloat16",
}
# How often a training window comes from each text. Moby Dick is 5 % of the
# bytes but the register of half the evaluation, so it is seen more often.
SHARES = {"king-james-bible": 0.22, "state-of-the-union-train": 0.63, "moby-dick-train": 0.15}
# Bytes at the end of each training text that are never trained on; a multiple
# of the context, plus the last target.
HELD_OUT = 128 * CONTEXT + 1
PEAK_RATE, WEIGHT_DECAY, DROPOUT, AVERAGE = 3e-3, 0.1, 0.05, 0.998
WARMUP, ROUNDS, SEED = 200, 20, 20402
FACTOR = 8.0
LENGTHS = [256, 512, 1024, 2048]


def rotary(length: int, inverse: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [length, head_dim], in Hugging Face's half-split layout."""
    angles = torch.outer(torch.arange(length, device=inverse.device).float(), inverse)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + head_dim / 2) of a query or key by its angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Norm(nn.Module):
    """RMSNorm in float32, as Llama has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CONFIG["hidden_size"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with grouped keys and values."""

    def __init__(self) -> None:
        super().__init__()
        hidden, dim = CONFIG["hidden_size"], CONFIG["head_dim"]
        queries, keys = CONFIG["num_attention_heads"] * dim, CONFIG["num_key_value_heads"] * dim
        self.q_proj = nn.Linear(hidden, queries, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        split = (batch, length, -1, CONFIG["head_dim"])
        q = self.q_proj(x).view(split).transpose(1, 2)
        k = self.k_proj(x).view(split).transpose(1, 2)
        v = self.v_proj(x).view(split).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(), Attention()
        self.post_attention_layernorm, self.mlp = Norm(), Mlp()

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        attended = self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + F.dropout(attended, DROPOUT, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), DROPOUT, self.training)


class Tiny(nn.Module):
    """The model; the names of its parts give Hugging Face's tensor names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"]),
            "layers": nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"])),
            "norm": Norm(),
        })
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # Both branches of every layer add up in the residual stream.
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = 2 * CONFIG["num_hidden_layers"] if residual else 1
                nn.init.normal_(weight, std=0.02 / math.sqrt(depth))

    def forward(self, ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = self.model["embed_tokens"](ids)
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        return F.linear(self.model["norm"](x), self.model["embed_tokens"].weight)


def plain_inverse(theta: float = CONFIG["rope_theta"]) -> torch.Tensor:
    """Inverse frequencies of plain rotary embeddings."""
    dim = CONFIG["head_dim"]
    return 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)


def yarn_inverse(beta_fast: float = 32.0, beta_slow: float = 1.0) -> torch.Tensor:
    """YaRN as in Hugging Face transformers: dimensions with fewer than
    beta_slow turns over the context are interpolated, those with more than
    beta_fast kept, a linear ramp between."""
    dim, log_theta = CONFIG["head_dim"], math.log(CONFIG["rope_theta"])

    def bound(turns: float) -> float:
        return dim * math.log(CONTEXT / (turns * 2 * math.pi)) / (2 * log_theta)

    low = max(math.floor(bound(beta_fast)), 0)
    high = min(math.ceil(bound(beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain_inverse() / FACTOR * ramp + plain_inverse() * (1 - ramp)


def methods() -> dict[str, tuple[torch.Tensor, float]]:
    """Inverse frequencies and attention factor of the usual extensions."""
    dim = CONFIG["head_dim"]
    ntk = CONFIG["rope_theta"] * FACTOR ** (dim / (dim - 2))
    return {
        "none": (plain_inverse(), 1.0),
        "PI(8)": (plain_inverse() / FACTOR, 1.0),
        "NTK-aware(8)": (plain_inverse(ntk), 1.0),
        "YaRN(8)": (yarn_inverse(), 0.1 * math.log(FACTOR) + 1.0),
    }


@torch.no_grad()
def mean_loss(model: Tiny, text: torch.Tensor, length: int, inverse: torch.Tensor, scale: float) -> float:
    """Mean loss over the text in windows that do not overlap, each from
    position 0; the texts are cut so that all lengths score the same bytes."""
    model.eval()
    cos, sin = rotary(length, inverse.to(text.device), scale)
    count = (len(text) - 1) // length
    inputs = text[: count * length].view(count, length).long()
    targets = text[1 : count * length + 1].view(count, length).long()
    total, rows = 0.0, max(1, 16384 // length)
    for at in range(0, count, rows):
        logits = model(inputs[at : at + rows], cos, sin).float()
        total += F.cross_entropy(logits.flatten(0, 1), targets[at : at + rows].flatten(), reduction="sum").item()
    return total / (count * length)


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE without merges whose token ids are the byte values."""
    # GPT-2's printable stand-ins: a printable byte is its own character, the
    # others take the code points from 256 on.
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    symbols = {chr(b if b in plain else 256 + others.index(b)): b for b in range(256)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": symbols, "merges": [],
        },
    }
    path.write_text(json.dumps(tokenizer, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class Log:
    """Prints each line and keeps train.log up to date with it."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)
        self.path.write_text("\n".join(self.lines) + "\n")


def read_texts(log: Log) -> dict[str, torch.Tensor]:
    """The texts by name, each checked against the manifest."""
    texts = {}
    for entry in json.loads((ROOT / "data" / "manifest.json").read_text())["texts"]:
        data = (ROOT / entry["path"]).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != entry["sha256"]:
            raise SystemExit(f"{entry['path']} is not the manifest's: run scripts/fetch-texts")
        if entry["role"] != "search":
            log(f"  {entry['role']:5} {entry['name']}: {len(data)} bytes, sha256 {digest}")
            texts[entry["name"]] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return texts


def train(args: argparse.Namespace, texts: dict[str, torch.Tensor], log: Log) -> dict[str, torch.Tensor]:
    """Train, and return the averaged weights with the lowest held-out loss."""
    device = args.device
    model, average = Tiny().to(device), Tiny().to(device).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    log(f"parameters: {sum(p.numel() for p in model.parameters())}")
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=device == "cuda")
    forward = torch.compile(model) if device == "cuda" else model

    data = torch.cat([texts[name][:-HELD_OUT] for name in SHARES]).to(device)
    held_out = {name: texts[name][-HELD_OUT:].to(device) for name in SHARES}
    sizes = torch.tensor([len(texts[name]) - HELD_OUT for name in SHARES])
    starts, rooms = (sizes.cumsum(0) - sizes).to(device), (sizes - CONTEXT).to(device)
    shares = torch.tensor(list(SHARES.values()), device=device)
    steps_in_window = torch.arange(CONTEXT + 1, device=device)
    inverse = plain_inverse().to(device)
    cos, sin = rotary(CONTEXT, inverse)

    best, best_loss, seen, progress, step, began = {}, math.inf, 0.0, 0.0, 0, None
    while progress < 1.0:
        rate = PEAK_RATE * min((step + 1) / WARMUP, 1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        which = torch.multinomial(shares, args.batch, replacement=True)
        at = starts[which] + (torch.rand(args.batch, device=device) * rooms[which]).long()
        window = data[at[:, None] + steps_in_window].long()
        model.train()
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = forward(window[:, :-1], cos, sin)
        loss = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        # The average follows closely at first, when the weights still run.
        decay = min(AVERAGE, step / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], 1 - decay)

        if step % 10 == 0 or step == args.steps:
            if device == "cuda":
                torch.cuda.synchronize()  # so that the clock shows work done
            began = began or time.monotonic()  # compiling does not count
            progress = max(step / args.steps, (time.monotonic() - began) / (60 * args.minutes))
        if progress >= min(1.0, seen + 1 / ROUNDS):
            seen = progress
            losses = {name: mean_loss(average, text, CONTEXT, inverse, 1.0) for name, text in held_out.items()}
            total = sum(SHARES[name] * value for name, value in losses.items())
            each = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            log(f"  step {step:6} rate {rate:.2e} batch loss {loss.item():.4f} held-out {total:.4f} ({each})")
            if total < best_loss:
                best_loss = total
                best = {name: p.detach().to(torch.bfloat16).cpu().clone() for name, p in average.named_parameters()}
    log(f"steps: {step}, bytes seen: {step * args.batch * CONTEXT}, seconds: {time.monotonic() - began:.0f}")
    return best


def check_export(out: Path, model: Tiny, ids: torch.Tensor, log: Log) -> None:
    """Compare with transformers' Llama on the same files, where it is installed."""
    try:
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM
    except ImportError:
        log("transformers is not installed: export not compared")
        return
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    sample = "".join(map(chr, range(0x300))) + "  \r\n\n —“𝄞”\u0000"
    encoded = tokenizer.encode(sample).ids
    assert bytes(encoded) == sample.encode() and tokenizer.decode(encoded) == sample
    other = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(ids.device).eval()
    with torch.no_grad():
        ours = model(ids, *rotary(ids.shape[1], plain_inverse().to(ids.device)))
        gap = (ours - other(ids).logits).abs().max().item()
    log(f"largest logit difference from transformers' Llama, float32, {ids.shape[1]} bytes: {gap:.2e}")
    assert gap < 1e-2


def main() -> None:
    """Train, export, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="stop after so many steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="or after so many minutes")
    parser.add_argument("--batch", type=int, default=512, help="windows in a step")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "models" / "tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / "train.log")
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    log(f"scripts/train-tiny.py, PyTorch {torch.__version__.split('+')[0]}, {name}")
    log(f"at most {args.steps} steps or {args.minutes} minutes, {args.batch} windows of {CONTEXT} bytes a step, seed {SEED}")
    log(f"rate {PEAK_RATE} falling to 0, weight decay {WEIGHT_DECAY}, dropout {DROPOUT}, weight average {AVERAGE}")
    log(f"shares of the windows: {json.dumps(SHARES)}; last {HELD_OUT} bytes of each training text held out")
    log("texts:")
    texts = read_texts(log)
    weights = train(args, texts, log)
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "model.safetensors").chmod(0o644)
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    write_tokenizer(args.out / "tokenizer.json")

    # Everything below reads the exported bfloat16 weights, in float32.
    model = Tiny().to(args.device).eval()
    model.load_state_dict({k: v.float() for k, v in load_file(args.out / "model.safetensors").items()})
    log("\nloss (nats a byte) of the exported weights, windows of 256:")
    for name in SHARES:
        ends = {"trained on": texts[name][-2 * HELD_OUT : -HELD_OUT], "held out": texts[name][-HELD_OUT:]}
        values = [f"{k} {mean_loss(model, t.to(args.device), CONTEXT, plain_inverse(), 1.0):.4f}" for k, t in ends.items()]
        log(f"  {name}: {', '.join(values)}")
    for name in ["moby-dick-eval", "state-of-the-union-eval"]:
        text = texts[name][: (len(texts[name]) - 1) // LENGTHS[-1] * LENGTHS[-1] + 1].to(args.device)
        log(f"\nperplexity a byte, {name}, {len(text) - 1} bytes at every length:")
        log(f"  {'':14}" + "".join(f"{length:>9}" for length in LENGTHS))
        for method, (inverse, scale) in methods().items():
            row = [math.exp(mean_loss(model, text, length, inverse, scale)) for length in LENGTHS]
            log(f"  {method:14}" + "".join(f"{value:9.4f}" for value in row))
    log()
    check_export(args.out, model, texts["moby-dick-eval"][None, :CONTEXT].long().to(args.device), log)


if __name__ == "__main__":
    main()
