//! The kernels of attention's backward pass, by head dimension and type: the instances in `cuda/attention_backward_sm80_d*.cu`, which
//! every GPU runs, and in `cuda/attention_backward_sm90_d*.cu` and `cuda/attention_backward_sm90_fast_d*.cu`, for Hopper.

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

/// An instance of Hopper's kernels, as in the source's `GradientShape`.
#[derive(Debug)]
pub(super) struct HopperKernel {
    pub(super) kernel: Kernel,
    /// Columns of a tile (`kColumns`).
    pub(super) columns: usize,
    /// The padded head dimension (`kDim`).
    pub(super) dim: usize,
    /// Gradients that it sums (`kSums`).
    pub(super) sums: usize,
}

impl HopperKernel {
    /// Tiles of columns from which on sums are folded (`kFoldTiles`).
    pub(super) fn fold_tiles(&self) -> usize {
        4096 / self.columns
    }

    /// Bytes of shared memory in which gradients are rotated, of eight rows for each warp that computes (`kRotatingBytes`).
    pub(super) fn staged_bytes(&self) -> u32 {
        let warps = self.kernel.threads / 32 - 4;
        warps * 8 * (self.dim as u32 + 8) * 4
    }

    /// Bytes of the sums that a block folds.
    pub(super) fn folded_bytes(&self) -> usize {
        4 * self.sums * self.kernel.rows * self.dim
    }
}

/// Hopper's kernels of a type: for dQ, whose rows are queries, and for dK and dV, whose rows are keys.
#[derive(Debug)]
pub(super) struct HopperKernels {
    pub(super) queries: HopperKernel,
    pub(super) keys: HopperKernel,
}

/// The instances for head dimensions up to one.
struct HopperHeadDim {
    image: &'static str,
    /// bf16 and f16.
    kernels: [HopperKernels; 2],
}

/// Consumers, columns and stages as in the sources' `GradientShape`.
macro_rules! hopper {
    (
        $dim:literal,
        queries $q_consumers:literal, $q_columns:literal, $q_stages:literal;
        keys $k_consumers:literal, $k_columns:literal, $k_stages:literal
    ) => {
        HopperHeadDim {
            image: concat!("attention_backward_sm90_d", $dim),
            kernels: [
                hopper!(@ $dim, "_bf16", $q_consumers, $q_columns, $q_stages, $k_consumers, $k_columns, $k_stages),
                hopper!(@ $dim, "_f16", $q_consumers, $q_columns, $q_stages, $k_consumers, $k_columns, $k_stages),
            ],
        }
    };
    (
        @ $dim:literal, $name:literal,
        $q_consumers:literal, $q_columns:literal, $q_stages:literal,
        $k_consumers:literal, $k_columns:literal, $k_stages:literal
    ) => {
        HopperKernels {
            queries: hopper!(@@ $dim, "queries", $name, $q_consumers, $q_columns, $q_stages, 1),
            keys: hopper!(@@ $dim, "keys", $name, $k_consumers, $k_columns, $k_stages, 2),
        }
    };
    (
        @@ $dim:literal, $of:literal, $name:literal,
        $consumers:literal, $columns:literal, $stages:literal, $sums:literal
    ) => {
        HopperKernel {
            kernel: Kernel {
                name: concat!("longrope_attention_backward_", $of, "_sm90_d", $dim, $name),
                rows: 64 * $consumers,
                threads: 128 * ($consumers + 1),
                // Alignment, rows and columns.
                shared_bytes: 1024 + 4 * $dim * (64 * $consumers + $stages * $columns),
            },
            columns: $columns,
            dim: $dim,
            sums: $sums,
        }
    };
}

static HOPPER: [HopperHeadDim; 2] =
    [hopper!(64, queries 3, 80, 3; keys 2, 96, 3), hopper!(128, queries 2, 112, 2; keys 2, 64, 3)];

/// Hopper's kernels for a type of 16 bits and a head dimension, if there are any.
pub(super) fn hopper(dtype: Dtype, head_dim: usize) -> Option<&'static HopperKernels> {
    let instances = HOPPER.iter().find(|instances| head_dim <= instances.kernels[0].keys.dim)?;
    Some(&instances.kernels[usize::from(dtype == Dtype::F16)])
}

/// An instance of the kernel that makes all gradients, as in the source's `FastShape`.
#[derive(Debug)]
pub(super) struct FastKernel {
    image: &'static str,
    /// Where sums may have any order.
    pub(super) kernel: Kernel,
    /// Where they have one, if there is such a kernel, and what lists its items.
    pub(super) in_turn: Option<[Kernel; 2]>,
    /// What makes dQ of its slab, and what makes dK and dV of theirs; a block takes `rows` queries or keys at a time.
    pub(super) slab: Kernel,
    pub(super) key_slab: Kernel,
    /// Queries of a tile (`kColumns`).
    pub(super) columns: usize,
    /// The padded head dimension (`kDim`).
    pub(super) dim: usize,
}

impl FastKernel {
    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Kernel> {
        [&self.kernel, &self.slab, &self.key_slab].into_iter().chain(self.in_turn.iter().flatten())
    }

    /// Tiles of queries beyond which sums are folded (`kFoldTiles`).
    pub(super) fn fold_tiles(&self) -> usize {
        4096 / self.columns
    }

    /// Bytes of the sums that a block folds.
    pub(super) fn folded_bytes(&self) -> usize {
        4 * 2 * self.kernel.rows * self.dim
    }

    /// Bytes of a tile of the slab of dQ.
    pub(super) fn tile_bytes(&self) -> usize {
        4 * self.columns * self.dim
    }

    /// Bytes of a tile of that of dK and dV.
    pub(super) fn key_tile_bytes(&self) -> usize {
        4 * 2 * self.kernel.rows * self.dim
    }
}

/// The dimensions of a row of a tile in shared memory, columns, and tiles of Q and of dO in the rings, as in the sources' `FastShape`.
/// Those with tiles as wide are in one image.
macro_rules! fast {
    ($dim:literal, $tile_dim:literal, $columns:literal, $first_stages:literal, $second_stages:literal) => {
        FastKernel {
            image: concat!("attention_backward_sm90_fast_d", $tile_dim),
            kernel: fast!(@ $dim, "fast", 128, 384, fast!(bytes $dim, $tile_dim, $columns, $first_stages, $second_stages)),
            in_turn: Some([
                fast!(@ $dim, "turns", 128, 384, fast!(bytes $dim, $tile_dim, $columns, $first_stages, $second_stages)),
                fast!(@ $dim, "items", 128, 128, 0),
            ]),
            slab: fast!(@ $dim, "slab_queries", $columns, 2 * $columns, fast!(staged $dim)),
            key_slab: fast!(@ $dim, "slab_keys", $columns, 2 * $columns, fast!(staged $dim)),
            columns: $columns,
            dim: $dim,
        }
    };
    // Alignment, keys and values, the rings, two places for gradients of logits, and dQ on its way.
    (bytes $dim:literal, $tile_dim:literal, $columns:literal, $first_stages:literal, $second_stages:literal) => {
        1024 + 4 * $tile_dim * 128
            + 2 * $tile_dim * $columns * ($first_stages + $second_stages)
            + 2 * 2 * 128 * $columns
            + 4 * $columns * $dim
    };
    // Eight rows of each of four warps, which are rotated there (`StagedGradient`).
    (staged $dim:literal) => { 4 * 8 * 4 * ($dim + 8) };
    (@ $dim:literal, $which:literal, $rows:literal, $threads:expr, $shared_bytes:expr) => {
        Kernel {
            name: concat!("longrope_attention_backward_", $which, "_sm90_d", $dim, "_bf16"),
            rows: $rows,
            threads: $threads,
            shared_bytes: $shared_bytes,
        }
    };
}

/// Where consumers have roles, as in the sources' `RolesShape`: keys and values, the rings, two places for gradients of
/// logits, and weights in f32.
const ROLES: FastKernel = FastKernel {
    image: "attention_backward_sm90_fast_d128",
    kernel: fast!(@ 256, "fast", 64, 384, 2 * 2 * 256 * 64 + 4 * 2 * 256 * 64 + 2 * 2 * 64 * 64 + 4 * 64 * 64),
    in_turn: None,
    slab: fast!(@ 256, "slab_queries", 64, 128, fast!(staged 256)),
    key_slab: fast!(@ 256, "slab_keys", 64, 128, fast!(staged 256)),
    columns: 64,
    dim: 256,
};

static FAST: [FastKernel; 4] =
    [fast!(64, 64, 64, 3, 2), fast!(96, 128, 64, 3, 2), fast!(128, 128, 64, 3, 2), ROLES];

/// The kernel that makes all gradients, for bf16 and a head dimension, if there is one; where sums are to have one order, one that
/// gives them.
pub(super) fn fast(head_dim: usize, in_turn: bool) -> Option<&'static FastKernel> {
    FAST.iter()
        .find(|instance| head_dim <= instance.dim)
        .filter(|instance| !in_turn || instance.in_turn.is_some())
}

/// The kernels for a type of 16 bits and a head dimension; `None` beyond 256. `vector`: whether 16 bytes can be moved at once.
pub(super) fn portable(dtype: Dtype, head_dim: usize, vector: bool) -> Option<&'static Kernels> {
    let which = if dtype == Dtype::F16 { 2 } else { 0 } + usize::from(!vector);
    Some(&PORTABLE.iter().find(|instances| head_dim <= instances.dim)?.kernels[which])
}

/// What a context loads.
pub(in crate::ops) fn families() -> Vec<Family> {
    let family = |instances: &HeadDim| {
        let kernels = instances.kernels.iter().flat_map(|kernels| [&kernels.queries, &kernels.keys]);
        let names = kernels.clone().map(|kernel| kernel.name).collect();
        let shared_bytes = kernels.map(|kernel| kernel.shared_bytes).max().unwrap_or(0);
        Family::portable(instances.image, names, shared_bytes)
    };
    let hopper = |instances: &HopperHeadDim| {
        let kernels = instances.kernels.iter().flat_map(|kernels| [&kernels.queries, &kernels.keys]);
        let shared_bytes = |kernel: &HopperKernel| kernel.kernel.shared_bytes + kernel.staged_bytes();
        let names = kernels.clone().map(|kernel| kernel.kernel.name).collect();
        Family::hopper(instances.image, names, kernels.map(shared_bytes).max().unwrap_or(0))
    };
    // Instances that follow each other may share an image.
    let fast = |instances: &[FastKernel]| {
        let kernels = instances.iter().flat_map(FastKernel::all).map(|kernel| kernel.name).collect();
        let shared_bytes = instances.iter().map(|instance| instance.kernel.shared_bytes).max().unwrap_or(0);
        Family::hopper(instances[0].image, kernels, shared_bytes)
    };
    let images = FAST.chunk_by(|a, b| a.image == b.image);
    PORTABLE.iter().map(family).chain(HOPPER.iter().map(hopper)).chain(images.map(fast)).collect()
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
    fn hopper_has_kernels_up_to_a_head_dimension_of_128() {
        for (head_dim, padded) in
            [(8, Some(64)), (64, Some(64)), (72, Some(128)), (128, Some(128)), (136, None)]
        {
            for (dtype, name) in [(Dtype::Bf16, "bf16"), (Dtype::F16, "f16")] {
                let kernels = hopper(dtype, head_dim);
                assert_eq!(kernels.map(|kernels| kernels.keys.dim), padded, "{head_dim}");
                for kernel in kernels.iter().flat_map(|kernels| [&kernels.queries, &kernels.keys]) {
                    assert!(kernel.kernel.name.ends_with(&format!("_sm90_d{}_{name}", kernel.dim)));
                    // Boxes of the copy engine, and the alignment of their tiles.
                    assert!(kernel.columns <= 256 && (kernel.columns * 128).is_multiple_of(1024));
                }
            }
        }
    }

    #[test]
    fn the_kernel_for_all_gradients_is_the_smallest_that_holds_the_head_dimension() {
        for (head_dim, padded) in [
            (8, Some(64)),
            (64, Some(64)),
            (72, Some(96)),
            (96, Some(96)),
            (104, Some(128)),
            (128, Some(128)),
            (136, Some(256)),
            (256, Some(256)),
            (264, None),
        ] {
            // In one order up to 128.
            let in_turn = fast(head_dim, true).map(|kernel| kernel.dim);
            assert_eq!(in_turn, padded.filter(|padded| *padded <= 128), "{head_dim}");
            let kernel = fast(head_dim, false);
            assert_eq!(kernel.map(|kernel| kernel.dim), padded, "{head_dim}");
            if let Some(FastKernel { kernel, slab, key_slab, columns, dim, .. }) = kernel {
                assert!(kernel.name.ends_with(&format!("_fast_sm90_d{dim}_bf16")));
                for (slab, of) in [(slab, "queries"), (key_slab, "keys")] {
                    assert!(slab.name.ends_with(&format!("_slab_{of}_sm90_d{dim}_bf16")));
                    // A thread has two rows of a tile.
                    assert_eq!((slab.rows, slab.threads as usize), (*columns, 2 * columns));
                }
                assert!(kernel.rows.is_multiple_of(key_slab.rows));
            }
        }
    }

    #[test]
    fn a_block_fits_the_shared_memory_of_its_gpus() {
        // 99 KiB, of which a kernel has 2 KiB for itself; on Hopper 227, of which it has 3.
        for family in families() {
            let most = if family.only_on.is_some() { 224 << 10 } else { 97 << 10 };
            assert!(family.shared_bytes <= most, "{}", family.image);
        }
    }
}
