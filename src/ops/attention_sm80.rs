//! The portable attention kernels, by head dimension and type: the instances in `cuda/attention_sm80_d*.cu`.

use crate::device::{Dtype, Family};

/// An instance of the kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    /// Queries a block (`kRows`).
    pub(super) rows: usize,
    /// Bytes of shared memory a block (`kSharedBytes`).
    pub(super) shared_bytes: u32,
}

/// The instances for head dimensions up to one.
struct HeadDim {
    image: &'static str,
    /// The padded head dimension (`kDim`).
    dim: usize,
    /// bf16 with vectors, bf16 with any strides, f16 with vectors, f16 with any strides.
    kernels: [Kernel; 4],
}

/// `$rows`, `$keys` and `$stages` as in the source's `AttentionShape`; with any strides, the ring is of one tile.
macro_rules! head_dim {
    ($dim:literal, rows $rows:literal, keys $keys:literal, stages $stages:literal) => {
        HeadDim {
            image: concat!("attention_sm80_d", $dim),
            dim: $dim,
            kernels: [
                head_dim!(@ $dim, "bf16_vector", $rows, $keys, $stages),
                head_dim!(@ $dim, "bf16_strided", $rows, $keys, 1),
                head_dim!(@ $dim, "f16_vector", $rows, $keys, $stages),
                head_dim!(@ $dim, "f16_strided", $rows, $keys, 1),
            ],
        }
    };
    (@ $dim:literal, $name:literal, $rows:literal, $keys:literal, $stages:literal) => {
        Kernel {
            name: concat!("longrope_attention_sm80_d", $dim, "_", $name),
            rows: $rows,
            shared_bytes: 2 * $dim * ($rows + 2 * $stages * $keys),
        }
    };
}

static HEAD_DIMS: [HeadDim; 4] = [
    head_dim!(64, rows 128, keys 112, stages 1),
    head_dim!(96, rows 128, keys 64, stages 2),
    head_dim!(128, rows 128, keys 64, stages 2),
    head_dim!(256, rows 64, keys 64, stages 1),
];

/// The kernel for a type of 16 bits and a head dimension up to 256.
pub(super) fn kernel(dtype: Dtype, head_dim: usize, vector: bool) -> &'static Kernel {
    let which = HEAD_DIMS.iter().position(|instances| head_dim <= instances.dim);
    let instances = &HEAD_DIMS[which.unwrap_or(HEAD_DIMS.len() - 1)];
    &instances.kernels[if dtype == Dtype::F16 { 2 } else { 0 } + usize::from(!vector)]
}

/// What a context loads.
pub(in crate::ops) fn families() -> Vec<Family> {
    HEAD_DIMS
        .iter()
        .map(|instances| Family {
            image: instances.image,
            kernels: instances.kernels.iter().map(|kernel| kernel.name).collect(),
            shared_bytes: instances.kernels[0].shared_bytes,
        })
        .collect()
}
