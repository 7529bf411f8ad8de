//! The kernels that decode, and what a launch of each is to know.

use crate::Error;
use crate::device::{Context, Dtype, Family};

/// Bytes of shared memory a block (`kSharedBytes`).
pub(super) const SHARED_BYTES: u32 = 96 << 10;
/// The same of a block in a cluster, with what the others send it (`kInboxBytes`).
pub(super) const CLUSTER_SHARED_BYTES: u32 = SHARED_BYTES + (10 << 10);
/// Threads of a merging block (`kDecodeMergeThreads`).
pub(super) const MERGE_THREADS: u32 = 256;

/// The instances for head dimensions up to one. Of images and kernels the first are over keys as they are, the second over keys that are
/// rotated while they are read.
pub(super) struct HeadDim {
    images: [&'static str; 2],
    /// Those whose blocks form clusters, for Hopper.
    cluster_images: [&'static str; 2],
    /// The padded head dimension (`kDim`).
    dim: usize,
    /// Threads a block (`kThreads`).
    pub(super) threads: u32,
    /// Query rows an item (`kRows`), few and many.
    rows: [usize; 2],
    /// bf16 with few and with many rows, f16 with few and with many.
    kernels: [[&'static str; 4]; 2],
    /// bf16 and f16, with few rows.
    cluster_kernels: [[&'static str; 2]; 2],
}

macro_rules! head_dim {
    ($dim:literal, threads $threads:literal, rows $few:literal or $many:literal) => {
        HeadDim {
            images: [concat!("decode_d", $dim), concat!("decode_rotating_d", $dim)],
            cluster_images: [concat!("decode_sm90_d", $dim), concat!("decode_rotating_sm90_d", $dim)],
            dim: $dim,
            threads: $threads,
            rows: [$few, $many],
            kernels: [
                head_dim!(kernels "longrope_decode_d", $dim, $few, $many),
                head_dim!(kernels "longrope_decode_rotating_d", $dim, $few, $many),
            ],
            cluster_kernels: [
                head_dim!(kernels "longrope_decode_sm90_d", $dim, $few),
                head_dim!(kernels "longrope_decode_rotating_sm90_d", $dim, $few),
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
    (kernels $name:literal, $dim:literal, $few:literal) => {
        [concat!($name, $dim, "_bf16_r", $few), concat!($name, $dim, "_f16_r", $few)]
    };
}

/// The instances in `cuda/decode_d*.cu`, `decode_rotating_d*.cu`, `decode_sm90_d*.cu` and `decode_rotating_sm90_d*.cu`.
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

/// Whether the context has the kernels whose blocks form clusters.
pub(super) fn has_clusters(context: &Context) -> bool {
    context.has(KERNELS[0].cluster_kernels[0][0])
}

impl HeadDim {
    /// The kernel for a type, for keys as they are or `rotating`, and for the rows of a sequence; and the rows of its items.
    pub(super) fn choose(&self, dtype: Dtype, rotating: bool, sequence_rows: usize) -> (&'static str, usize) {
        let many = usize::from(sequence_rows > self.rows[0]);
        let kernel = 2 * usize::from(dtype == Dtype::F16) + many;
        (self.kernels[usize::from(rotating)][kernel], self.rows[many])
    }

    /// The same of those whose blocks form clusters; `None` where rows are many.
    pub(super) fn choose_for_clusters(
        &self,
        dtype: Dtype,
        rotating: bool,
        sequence_rows: usize,
    ) -> Option<&'static str> {
        let kernel = self.cluster_kernels[usize::from(rotating)][usize::from(dtype == Dtype::F16)];
        (sequence_rows <= self.rows[0]).then_some(kernel)
    }
}

/// What a context loads.
pub(super) fn families() -> Vec<Family> {
    let mut families = vec![Family::portable("decode_merge", MERGES.to_vec(), 0)];
    for HeadDim { images, cluster_images, kernels, cluster_kernels, .. } in &KERNELS {
        let all = images.iter().zip(kernels);
        families.extend(all.map(|(image, kernels)| Family::portable(image, kernels.to_vec(), SHARED_BYTES)));
        let clusters = cluster_images.iter().zip(cluster_kernels);
        families.extend(
            clusters.map(|(image, kernels)| Family::hopper(image, kernels.to_vec(), CLUSTER_SHARED_BYTES)),
        );
    }
    families
}
