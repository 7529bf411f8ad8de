"""FlashAttention-3 through its JAX binding (the wheel flash-attn3-jax), as a worker of attention.py and backward.py."""

import importlib.metadata

from worker import serve


def who():
    import flash_attn3_jax  # noqa: F401

    return f"FlashAttention-3, flash-attn3-jax {importlib.metadata.version('flash-attn3-jax')}"


def open_case(case):
    """Random normal bf16 inputs of [batch, length, heads, head_dim]."""
    import jax
    import jax.numpy as jnp
    from flash_attn3_jax import flash_mha

    if case["dim"] != 128:
        raise ValueError("the binding has head dimension 128 only")
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    heads = (case["heads"], case["key_heads"], case["key_heads"])
    shapes = [(case["batch"], case["length"], h, case["dim"]) for h in heads]
    inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes)]
    run = jax.jit(lambda q, k, v: flash_mha(q, k, v, is_causal=case["causal"]))
    if case.get("backward"):
        # What the forward pass leaves is an argument, and so is not made anew in each launch.
        out, pull_back = jax.vjp(run, *inputs)
        inputs = (pull_back, jax.random.normal(keys[0], out.shape, out.dtype))
        run = jax.jit(lambda pull_back, d_out: pull_back(d_out))

    def work(launches):
        for _ in range(launches):
            result = run(*inputs)
        jax.block_until_ready(result)

    return work


if __name__ == "__main__":
    serve(who, open_case)
