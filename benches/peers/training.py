"""Training steps of a Llama of SmolLM2-135M's shape in PyTorch, for the times and the memory of `finetune` to stand beside.

What a user would write: transformers' model in bf16 with SDPA, every block checkpointed, AdamW; the loss of all logits at once, as
transformers has it, or in checkpointed chunks of rows, as `finetune` has it. Weights are random: no time depends on them.

    python3 benches/peers/training.py --lengths 65536,131072,262144

Prints rows `length,loss,backend,tokens_per_second,peak_GiB`; where it runs out of memory, these two are empty. Needs PyTorch,
transformers and one GPU.
"""

import argparse
import contextlib
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

CHUNK = 4096
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def model(longest):
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=longest,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    torch.manual_seed(0)
    made = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    made.gradient_checkpointing_enable({"use_reentrant": False})
    return made.train()


def loss_of(llama, ids, form):
    if form == "whole":
        return llama(ids, labels=ids).loss
    hidden, targets = llama.model(ids).last_hidden_state[0, :-1], ids[0, 1:]

    def of_rows(rows, wanted):
        return F.cross_entropy(llama.lm_head(rows).float(), wanted, reduction="sum")

    parts = zip(hidden.split(CHUNK), targets.split(CHUNK))
    return sum(checkpoint(of_rows, *part, use_reentrant=False) for part in parts) / targets.numel()


def tokens_per_second(llama, optimizer, length, form, steps):
    """Of all steps but the first."""
    ids = torch.randint(0, llama.config.vocab_size, (1, length), device="cuda")
    for step in range(steps + 1):
        if step == 1:
            torch.cuda.synchronize()
            began = time.perf_counter()
        loss_of(llama, ids, form).backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    return steps * length / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="65536,262144", help="tokens of a sequence, with commas between")
    parser.add_argument("--losses", default="whole,chunks", help="whole: of all logits at once; chunks: of some rows")
    parser.add_argument("--backends", default="default", help="of SDPA: default, cudnn, flash")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    llama = model(max(lengths))
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-5)
    print("length,loss,backend,tokens_per_second,peak_GiB", flush=True)
    for length in lengths:
        for form in options.losses.split(","):
            for backend in options.backends.split(","):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                chosen = sdpa_kernel(BACKENDS[backend]) if backend in BACKENDS else contextlib.nullcontext()
                try:
                    with chosen:
                        rate = tokens_per_second(llama, optimizer, length, form, options.steps)
                    measured = f"{rate:.0f},{torch.cuda.max_memory_allocated() / 2**30:.1f}"
                except torch.OutOfMemoryError:
                    optimizer.zero_grad()
                    measured = ","
                print(f"{length},{form},{backend},{measured}", flush=True)


if __name__ == "__main__":
    main()
