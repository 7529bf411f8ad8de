"""FlashAttention-3 over a cache through its JAX binding (the wheel flash-attn3-jax), as a worker of decode.py."""

import time

from flash_attention3 import who
from worker import serve

# In how many parts the keys are divided: the binding has no heuristic of its own. The fastest of these is measured.
SPLITS = (16, 32, 33, 64, 66, 128)


def open_case(case):
    """Random normal bf16 inputs; a cache of [1, length, key_heads, dim] that is full."""
    import jax
    import jax.numpy as jnp
    from flash_attn3_jax.kvcache import flash_mha_with_kvcache

    if case["dim"] != 128:
        raise ValueError("the binding has head dimension 128 only")
    first, second = jax.random.split(jax.random.PRNGKey(0))
    q = jax.random.normal(first, (1, 1, case["heads"], case["dim"]), jnp.bfloat16)
    k = jax.random.normal(second, (1, case["length"], case["key_heads"], case["dim"]), jnp.bfloat16)
    # Making random numbers takes several times the memory that they fill: once will do.
    v = k * 0.5
    lengths = jnp.array([case["length"]], jnp.int32)

    def split(parts):
        def decode(q, k, v, lengths):
            return flash_mha_with_kvcache(q, k, v, cache_seqlens=lengths, num_splits=parts)

        run = jax.jit(decode)

        def work(launches):
            for _ in range(launches):
                result = run(q, k, v, lengths)
            jax.block_until_ready(result)

        return work

    def timed(work):
        work(2)
        start = time.perf_counter()
        work(10)
        return time.perf_counter() - start

    return min(map(split, SPLITS), key=timed)


if __name__ == "__main__":
    serve(who, open_case)
