//! The kernels of attention's backward pass, by head dimension and type: the instances in `cuda/attention_backward_sm80_d*.cu`.

use crate::device::{Dtype, Family};
pub(super) use crate::ops::attention_kernels::Kernel;

/// The kernels of a type: for dQ, of which a block takes `rows` queries, and for dK and dV, of which it takes `rows` keys.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) queries: Kernel,
    pub(super) keys: Kernel,
    /// Queries that a block of the latter takes at a time (`kQueries`).
    pub(super) query_tile: usize,
}

/// The instances for head dimensions up to one.
struct HeadDim {
    image: &'static str,
    /// The padded head dimension (`kDim`).
    dim: usize,
    kernels: [Kernels; 4],
}

/// As in the sources' `QueryGradientShape` and `KeyGradientShape`: rows and keys, a tile and stages of the first; keys, a tile and
/// stages of the second.
macro_rules! head_dim {
    (
        $dim:literal,
        queries $rows:literal, tile $key_tile:literal, stages $key_stages:literal;
        keys $keys:literal, tile $query_tile:literal, stages $query_stages:literal
    ) => {
        HeadDim {
            image: concat!("attention_backward_sm80_d", $dim),
            dim: $dim,
            kernels: [
                head_dim!(@ $dim, "_bf16_vector", $rows, $key_tile, $key_stages, $keys, $query_tile, $query_stages),
                head_dim!(@ $dim, "_bf16_strided", $rows, $key_tile, $key_stages, $keys, $query_tile, $query_stages),
                head_dim!(@ $dim, "_f16_vector", $rows, $key_tile, $key_stages, $keys, $query_tile, $query_stages),
                head_dim!(@ $dim, "_f16_strided", $rows, $key_tile, $key_stages, $keys, $query_tile, $query_stages),
            ],
        }
    };
    (
        @ $dim:literal, $name:literal,
        $rows:literal, $key_tile:literal, $key_stages:literal, $keys:literal, $query_tile:literal, $query_stages:literal
    ) => {
        Kernels {
            queries: Kernel {
                name: concat!("longrope_attention_backward_queries_sm80_d", $dim, $name),
                rows: $rows,
                threads: 128,
                shared_bytes: 4 * $dim * ($rows + $key_stages * $key_tile),
            },
            keys: Kernel {
                name: concat!("longrope_attention_backward_keys_sm80_d", $dim, $name),
                rows: $keys,
                threads: 128,
                shared_bytes: 4 * $dim * ($keys + $query_stages * $query_tile) + 4 * $keys * $query_tile,
            },
            query_tile: $query_tile,
        }
    };
}

/// bf16 with vectors, bf16 with any strides, f16 with vectors, f16 with any strides.
static PORTABLE: [HeadDim; 4] = [
    head_dim!(64, queries 128, tile 32, stages 2; keys 64, tile 64, stages 2),
    head_dim!(96, queries 128, tile 32, stages 2; keys 64, tile 64, stages 2),
    head_dim!(128, queries 128, tile 32, stages 2; keys 64, tile 64, stages 1),
    head_dim!(256, queries 64, tile 32, stages 1; keys 32, tile 32, stages 1),
];

/// The kernels for a type of 16 bits and a head dimension; `None` beyond 256. `vector`: whether 16 bytes can be moved at once.
pub(super) fn portable(dtype: Dtype, head_dim: usize, vector: bool) -> Option<&'static Kernels> {
    let which = if dtype == Dtype::F16 { 2 } else { 0 } + usize::from(!vector);
    Some(&PORTABLE.iter().find(|instances| head_dim <= instances.dim)?.kernels[which])
}

/// What a context loads.
pub(in crate::ops) fn families() -> Vec<Family> {
    let family = |instances: &HeadDim| {
        let kernels = instances.kernels.iter().flat_map(|kernels| [&kernels.queries, &kernels.keys]);
        Family {
            image: instances.image,
            kernels: kernels.clone().map(|kernel| kernel.name).collect(),
            shared_bytes: kernels.map(|kernel| kernel.shared_bytes).max().unwrap_or(0),
            only_on: None,
        }
    };
    PORTABLE.iter().map(family).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_dimension_has_the_smallest_kernels_that_hold_it() {
        for (head_dim, padded) in [(8, 64), (64, 64), (72, 96), (104, 128), (136, 256), (256, 256)] {
            for (dtype, vector, name) in
                [(Dtype::Bf16, true, "bf16_vector"), (Dtype::F16, false, "f16_strided")]
            {
                let kernels = portable(dtype, head_dim, vector).unwrap();
                for kernel in [&kernels.queries, &kernels.keys] {
                    assert!(kernel.name.ends_with(&format!("_sm80_d{padded}_{name}")), "{}", kernel.name);
                }
            }
        }
        assert!(portable(Dtype::F16, 264, true).is_none());
    }

    #[test]
    fn a_block_fits_the_shared_memory_of_every_gpu() {
        // 99 KiB, of which a kernel has 2 KiB for itself.
        assert!(families().iter().all(|family| family.shared_bytes <= 97 << 10));
    }
}
