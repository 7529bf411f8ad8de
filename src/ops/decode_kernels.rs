//! The kernels that decode, and what a launch of each is to know.

use crate::Error;
use crate::device::{Dtype, Family};

/// Bytes of shared memory a block (`kSharedBytes`).
pub(super) const SHARED_BYTES: u32 = 96 << 10;
/// Threads of a merging block (`kDecodeMergeThreads`).
pub(super) const MERGE_THREADS: u32 = 256;

/// The instances for head dimensions up to one.
pub(super) struct HeadDim {
    /// The images over keys as they are, and over keys that are rotated while they are read.
    images: [&'static str; 2],
    /// The padded head dimension (`kDim`).
    dim: usize,
    /// Threads a block (`kThreads`).
    pub(super) threads: u32,
    /// Query rows an item (`kRows`), few and many.
    rows: [usize; 2],
    /// bf16 with few and with many rows, f16 with few and with many; of each image.
    kernels: [[&'static str; 4]; 2],
}

macro_rules! head_dim {
    ($dim:literal, threads $threads:literal, rows $few:literal or $many:literal) => {
        HeadDim {
            images: [concat!("decode_d", $dim), concat!("decode_rotating_d", $dim)],
            dim: $dim,
            threads: $threads,
            rows: [$few, $many],
            kernels: [
                head_dim!(kernels "longrope_decode_d", $dim, $few, $many),
                head_dim!(kernels "longrope_decode_rotating_d", $dim, $few, $many),
            ],
        }
    };
    (kernels $name:literal, $dim:literal, $few:literal, $many:literal) => {
        [
            concat!($name, $dim, "_bf16_r", $few),
            concat!($name, $dim, "_bf16_r", $many),
            concat!($name, $dim, "_f16_r", $few),
            concat!($name, $dim, "_f16_r", $many),
        ]
    };
}

/// The instances in `cuda/decode_d*.cu` and `cuda/decode_rotating_d*.cu`.
static KERNELS: [HeadDim; 4] = [
    head_dim!(64, threads 128, rows 8 or 32),
    head_dim!(96, threads 128, rows 8 or 16),
    head_dim!(128, threads 128, rows 8 or 16),
    // More rows do not fit the registers.
    head_dim!(256, threads 64, rows 8 or 8),
];

/// bf16 and f16: the instances in `cuda/decode_merge.cu`.
pub(super) static MERGES: [&str; 2] = ["longrope_decode_merge_bf16", "longrope_decode_merge_f16"];

/// The instances for a head dimension.
pub(super) fn kernels(head_dim: usize) -> Result<&'static HeadDim, Error> {
    let found = KERNELS.iter().find(|instances| head_dim <= instances.dim);
    found.ok_or_else(|| Error::unsupported("q.head_dim", head_dim, "at most 256"))
}

impl HeadDim {
    /// The kernel for a type, for keys as they are or `rotating`, and for the rows of a sequence; and the rows of its items.
    pub(super) fn choose(&self, dtype: Dtype, rotating: bool, sequence_rows: usize) -> (&'static str, usize) {
        let many = usize::from(sequence_rows > self.rows[0]);
        let kernel = 2 * usize::from(dtype == Dtype::F16) + many;
        (self.kernels[usize::from(rotating)][kernel], self.rows[many])
    }
}

/// What a context loads.
pub(super) fn families() -> Vec<Family> {
    let attending = KERNELS.iter().flat_map(|instances| {
        instances.images.into_iter().zip(&instances.kernels).map(|(image, kernels)| Family {
            image,
            kernels: kernels.to_vec(),
            shared_bytes: SHARED_BYTES,
            only_on: None,
        })
    });
    let merging = Family { image: "decode_merge", kernels: MERGES.to_vec(), shared_bytes: 0, only_on: None };
    attending.chain([merging]).collect()
}
